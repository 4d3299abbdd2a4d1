"""The step against a slow reference that goes through the tokens one by one, as the released code does."""

from __future__ import annotations

import copy

import pytest
import torch
from helpers import PATCH, full_afire, smooth_images, tiny_afire
from torch.nn import functional as F
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from afire_monai.core.errors import AfireError
from afire_monai.losses import RestorationLoss, TokenContrastiveLoss
from afire_monai.methods import AFiRe
from afire_monai.methods.afire import abnormal_cells
from afire_monai.networks import AnomalyRestorationDecoder, PrototypeBank, TokenHead, ViTEncoder
from afire_monai.transforms import SyntheticLesionMaskd
from afire_monai.transforms.anatomy import anatomy_of
from afire_monai.transforms.lesion import lungs_of


def uniforms_for(method: AFiRe, batch: int, seed: int = 0) -> torch.Tensor:
    return torch.rand(batch, method.draws, generator=torch.Generator().manual_seed(seed))


def total_of(method: AFiRe, losses: dict[str, torch.Tensor]) -> torch.Tensor:
    return torch.stack([losses[name] * weight for name, weight in method.loss_weights.items()]).sum()


class FixedMask:
    """Stands in for the lesion synthesis: one mask for all images, brightened by a tenth."""

    draws, twin_key, mask_key = 21, "twin", "mask"

    def __init__(self, value: float) -> None:
        self.value = value

    def __call__(self, data: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        mask = torch.full_like(data["image"][:, :1], self.value)
        return {"twin": (data["image"] + 0.1 * mask).clamp(0, 1), "mask": mask}


# the slow reference --------------------------------------------------------------------------------------------------


def slow_head(head: TokenHead, tokens: torch.Tensor) -> list[list[torch.Tensor]]:
    """Cosines of each token, as a list of images of lists of tokens."""
    bottleneck = head.mlp(tokens)
    return [
        [F.normalize(head.weight[cell], dim=1) @ (token / token.norm()) for cell, token in enumerate(image)]
        for image in bottleneck
    ]


class SlowRelease:
    """The released step: cross-entropy of normal tokens to Sinkhorn-balanced prototypes, and a plain MSE."""

    def __init__(self, method: AFiRe) -> None:
        self.student = copy.deepcopy(method.student)
        self.teacher = copy.deepcopy(method.teacher)
        self.prototypes = list(method.prototypes.prototypes.clone())
        self.lesion = method.lesion

    def loss(self, images: torch.Tensor, uniforms: torch.Tensor, first_epoch: bool) -> dict[str, torch.Tensor]:
        lesioned = self.lesion({"image": images, "uniforms": uniforms})
        twin, mask = lesioned["twin"], lesioned["mask"]
        h, w = self.student.encoder.grid
        with torch.no_grad():
            teacher = slow_head(self.teacher.head, self.teacher.encoder(images)[:, 1:])
            means = [sum(image[cell] for image in teacher) / len(teacher) for cell in range(h * w)]
            if first_epoch:
                self.prototypes = means  # nothing but the last batch
            else:
                self.prototypes = [0.75 * p + 0.25 * m for p, m in zip(self.prototypes, means, strict=True)]
            assignment = self._sinkhorn(torch.stack(self.prototypes))
        tokens = self.student.encoder(twin)
        student = slow_head(self.student.head, tokens[:, 1:])
        terms, abnormal = [], torch.zeros(len(images), h * w, dtype=torch.bool)
        for i in range(len(images)):
            for cell in range(h * w):
                row, column = divmod(cell, w)
                patch = mask[i, 0, row * PATCH : (row + 1) * PATCH, column * PATCH : (column + 1) * PATCH]
                abnormal[i, cell] = bool((patch > 0).any())
                if not abnormal[i, cell]:
                    log_q = torch.log_softmax(student[i][cell] / 0.1, dim=0)
                    terms.append(-(assignment[cell] * log_q).sum())
        restored = self.student.decoder(tokens, abnormal)
        target = (images - self.student.encoder.mean) / self.student.encoder.std
        return {"structure": sum(terms) / len(terms), "restoration": ((restored - target) ** 2).mean()}

    @staticmethod
    def _sinkhorn(prototypes: torch.Tensor) -> torch.Tensor:
        q = torch.exp(prototypes / 0.05).T
        dims, cells = q.shape
        q = q / q.sum()
        for _ in range(3):
            q = q / q.sum(1, keepdim=True) / dims
            q = q / q.sum(0, keepdim=True) / cells
        return (q * cells).T

    def update_teacher(self, momentum: float) -> None:
        for ours, theirs in ((self.teacher.encoder, self.student.encoder), (self.teacher.head, self.student.head)):
            for t, s in zip(ours.parameters(), theirs.parameters(), strict=True):
                t.data = momentum * t.data + (1 - momentum) * s.data


@pytest.mark.parametrize("first_epoch", [(True, True), (False, False), (True, False)])
def test_released_form_equals_the_slow_reference_over_two_steps(first_epoch):
    method = tiny_afire(structure="cross_entropy", category_weight=0)
    slow = SlowRelease(method)
    for step, first in enumerate(first_epoch):
        images, uniforms = smooth_images(4, (32, 32), seed=step), uniforms_for(method, 4, seed=step)
        losses, expected = method.losses(images, uniforms, first), slow.loss(images, uniforms, first)
        for name, value in expected.items():
            torch.testing.assert_close(losses[name], value, atol=1e-5, rtol=0)
        assert losses["category"].item() == 0
        torch.testing.assert_close(method.prototypes.prototypes, torch.stack(slow.prototypes), atol=1e-6, rtol=0)
        total_of(method, losses).backward()
        (expected["structure"] + expected["restoration"]).backward()
        reference = dict(slow.student.named_parameters())
        for name, parameter in method.student.named_parameters():
            torch.testing.assert_close(parameter.grad, reference[name].grad, atol=1e-5, rtol=1e-4, msg=name)
        # large steps, so that the second one starts from other weights and another teacher than the first
        for model in (method.student, slow.student):
            for parameter in model.parameters():
                parameter.data -= 0.5 * parameter.grad
                parameter.grad = None
        method.update_teacher(0.5)
        slow.update_teacher(0.5)


@pytest.mark.parametrize("first_epoch", [True, False])
def test_shifted_form_books_each_token_under_the_canvas_cell_that_it_shows(first_epoch):
    method = tiny_afire(shift=2)
    method.prototypes.prototypes.copy_(torch.rand(36, 16) * 2 - 1)
    before = method.prototypes.prototypes.clone()
    images, uniforms = smooth_images(3, method.canvas_size), uniforms_for(method, 3)
    views = method.views(images, uniforms)
    losses = method.losses(images, uniforms, first_epoch)
    with torch.no_grad():
        (taught,) = method.teacher(views.normal)
        seen, restored = method.student(views.twin, views.abnormal)
    for cell in range(36):
        shown = [taught[i, j] for i in range(3) for j in range(16) if views.teacher_cells[i, j] == cell]
        expected = before[cell]
        if shown:
            mean = torch.stack(shown).mean(0)
            expected = mean if first_epoch else 0.75 * expected + 0.25 * mean
        torch.testing.assert_close(method.prototypes.prototypes[cell], expected, atol=1e-6, rtol=1e-5)
    assignment = method.prototypes.assignment()
    terms = []
    for i in range(3):
        for j in range(16):
            if not views.abnormal[i, j]:
                similarity = assignment @ torch.log_softmax(seen[i, j] / 0.1, dim=0)
                terms.append(-torch.log_softmax(similarity, dim=0)[views.cells[i, j]])
    torch.testing.assert_close(losses["structure"].detach(), torch.stack(terms).mean(), atol=1e-5, rtol=0)
    target = (views.clean - 0.5) / 0.25
    torch.testing.assert_close(losses["restoration"].detach(), F.mse_loss(restored, target), atol=1e-6, rtol=1e-5)


# this project's terms -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("shift", [0, 2])
def test_every_optional_term_equals_a_slow_reference(shift):
    method = full_afire(shift)
    published, ours = {"structure", "category", "restoration"}, {"match", "class", "lesion", "latent", "koleo"}
    assert set(method.loss_weights) == published | ours
    assert method.loss_weights["lesion"] == 0.5
    method.prototypes.prototypes.copy_(torch.rand(method.prototypes.prototypes.shape) * 2 - 1)
    method.class_loss.center.copy_(torch.rand(8) * 0.1)
    center = method.class_loss.center.clone()
    images, uniforms = smooth_images(3, method.canvas_size), uniforms_for(method, 3)
    v = method.views(images, uniforms)
    losses = method.losses(images, uniforms, False)
    with torch.no_grad():
        taught, taught_class, taught_tokens = method.teacher(v.normal)
        seen, _, seen_class, seen_lesion, predicted, summary = method.student(v.twin, v.abnormal)
    prototypes = method.prototypes.prototypes
    cells = torch.arange(16).expand(3, 16) if v.cells is None else v.cells
    teacher_cells = torch.arange(16).expand(3, 16) if v.teacher_cells is None else v.teacher_cells
    match, lesion, latent = [], [], []
    for i in range(3):
        for j in range(16):
            row, column = divmod(j, 4)
            share = v.mask[i, 0, row * PATCH : (row + 1) * PATCH, column * PATCH : (column + 1) * PATCH].mean()
            lesion.append(F.binary_cross_entropy_with_logits(seen_lesion[i, 1 + j], share) / 2)
            for k in range(16):
                if teacher_cells[i, k] == cells[i, j] and not v.abnormal[i, j] and not v.ambiguous[i, j]:
                    prototype = min(prototypes[cells[i, j]], key=lambda p: float((taught[i, k] - p).norm()))
                    target = torch.softmax((taught[i, k] - prototype) / 0.04, 0)
                    match.append(-(target * torch.log_softmax((seen[i, j] - prototype) / 0.1, 0)).sum())
                if teacher_cells[i, k] == cells[i, j] and v.abnormal[i, j]:
                    wanted = F.layer_norm(taught_tokens[i, k], (32,))
                    latent.append(F.smooth_l1_loss(predicted[i, j], wanted))
    whole = F.binary_cross_entropy_with_logits(seen_lesion[:, 0], v.mask.flatten(1).amax(1)) / 2
    lesion = [term + whole for term in lesion]
    target = torch.softmax((taught_class[:, 0] - center) / 0.04, 1)
    distillation = -(target * torch.log_softmax(seen_class[:, 0] / 0.1, 1)).sum(1).mean()
    points = [token / token.norm() for token in summary]
    others = [min((a - b).norm() for b in points if b is not a) for a in points]
    lists = {"match": match, "lesion": lesion, "latent": latent, "koleo": [-distance.log() for distance in others]}
    assert all(lists.values())
    for name, expected in {**{name: torch.stack(x) for name, x in lists.items()}, "class": distillation}.items():
        torch.testing.assert_close(losses[name].detach(), expected.mean(), atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(method.class_loss.center, 0.9 * center + 0.1 * taught_class[:, 0].mean(0))
    total_of(method, losses).backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for _, p in method.trainable())


def test_images_of_a_known_kind_are_judged_by_its_prototypes_alone():
    kinds = [0, 2, 1, 2]
    method = full_afire(2, kinds)
    method.prototypes.prototypes.copy_(torch.rand(method.prototypes.prototypes.shape) * 2 - 1)
    images, uniforms = smooth_images(3, method.canvas_size), uniforms_for(method, 3)
    index = torch.tensor([3, 0, 1])
    losses = method.batch_losses({"image": images, "index": index}, uniforms, False)
    v = method.views(images, uniforms)
    with torch.no_grad():
        taught, seen = method.teacher(v.normal)[0], method.student(v.twin, v.abnormal)[0]
    assignment, structure, match = method.prototypes.assignment(), [], []
    for i, kind in enumerate([2, 0, 2]):
        normal = ~v.abnormal[i] & ~v.ambiguous[i]
        scores = torch.log_softmax(seen[i] / 0.1, 1) @ assignment[:, kind].T
        structure.append(F.cross_entropy(scores, v.cells[i], reduction="none")[normal])
        for j, k in (v.cells[i][:, None] == v.teacher_cells[i]).nonzero():
            if normal[j]:
                prototype = method.prototypes.prototypes[v.cells[i, j], kind]
                target = torch.softmax((taught[i, k] - prototype) / 0.04, 0)
                match.append(-(target * torch.log_softmax((seen[i, j] - prototype) / 0.1, 0)).sum())
    torch.testing.assert_close(losses["structure"].detach(), torch.cat(structure).mean(), atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(losses["match"].detach(), torch.stack(match).mean(), atol=1e-5, rtol=1e-4)
    with pytest.raises(AfireError, match="5 populations, but 3 prototypes a cell"):
        full_afire(2, [0, 4])


def test_exposure_differs_between_student_and_teacher_and_the_target_has_the_students():
    method = full_afire(0)
    images, uniforms = smooth_images(4, (32, 32)), uniforms_for(method, 4)
    v = method.views(images, uniforms)
    draws = uniforms[:, method.lesion.draws :]
    assert torch.equal(v.clean, method.exposure(images, draws[:, :4]))
    assert torch.equal(v.normal, method.exposure(images, draws[:, 4:8]))
    assert torch.equal(v.twin[v.mask == 0], v.clean[v.mask == 0])
    assert not torch.allclose(v.clean, v.normal, atol=0.01)


def test_anatomy_that_is_given_equals_what_would_be_found():
    method = full_afire(2)
    images, uniforms = smooth_images(4, method.canvas_size), uniforms_for(method, 4)
    searched, given = method.views(images, uniforms), method.views(images, uniforms, anatomy_of(images))
    assert torch.equal(searched.twin, given.twin)
    batch = {"image": images, "anatomy": anatomy_of(images)}
    first = method.batch_losses(batch, uniforms, False)
    moved = {**batch, "anatomy": batch["anatomy"].flip(0)}
    assert first["restoration"] != method.batch_losses(moved, uniforms, False)["restoration"]


def test_texture_comes_from_the_place_found_in_the_canvas_moved_into_the_crop():
    method = tiny_afire(shift=2)
    canvas = torch.full((1, 1, 48, 48), 0.2)
    canvas[..., 30:40, 10:24] = 0.9
    found = anatomy_of(canvas)
    offsets = torch.tensor([[1, 2]])
    place = method._place(found, offsets)["centers"]
    assert place[0].tolist() == pytest.approx([34.5 - 8, 16.5 - 16], abs=0.01)


def test_lungs_of_a_crop_are_those_of_the_canvas_at_its_place():
    method = tiny_afire(shift=2)
    anatomy = torch.rand(2, 1026)
    offsets = torch.tensor([[0, 2], [1, 0]])
    lungs = method._place(anatomy, offsets)["lungs"]
    side = 4 * method.grid_shift.grid[0]
    canvas = torch.nn.functional.interpolate(lungs_of(anatomy), (side + 8, side + 8), mode="bilinear")
    for place, (row, column) in enumerate((offsets * 4).tolist()):
        assert torch.equal(lungs[place], canvas[place, :, row : row + side, column : column + side])


# teacher -------------------------------------------------------------------------------------------------------------


def test_teacher_starts_as_a_copy_of_its_own_without_gradient_and_never_trains():
    method = tiny_afire()
    student = method.student.state_dict()
    for name, parameter in method.teacher.named_parameters():
        assert torch.equal(parameter, student[name])
        assert parameter.data_ptr() != student[name].data_ptr()
        assert not parameter.requires_grad
    method.train()
    assert method.student.training
    assert not any(module.training for module in method.teacher.modules())
    total_of(method, method.losses(smooth_images(2, (32, 32)), uniforms_for(method, 2), True)).backward()
    assert all(parameter.grad is None for parameter in method.teacher.parameters())
    trained = {id(parameter) for _, parameter in method.trainable()}
    assert not trained & {id(parameter) for parameter in method.teacher.parameters()}


def test_moving_average_equals_a_loop_over_parameters():
    method = tiny_afire()
    with torch.no_grad():
        for parameter in method.student.parameters():
            parameter.add_(torch.randn_like(parameter))
    student = dict(method.student.named_parameters())
    expected = {n: 0.9 * p.detach() + 0.1 * student[n].detach() for n, p in method.teacher.named_parameters()}
    before = {n: p.detach().clone() for n, p in student.items()}
    method.update_teacher(0.9)
    for name, parameter in method.teacher.named_parameters():
        torch.testing.assert_close(parameter.data, expected[name])
        assert torch.equal(student[name], before[name])
    method.update_teacher(1.0)
    for name, parameter in method.teacher.named_parameters():
        torch.testing.assert_close(parameter.data, expected[name])


def test_exported_encoder_is_the_teachers():
    method = tiny_afire()
    assert method.export_encoder is method.teacher.encoder


def test_last_layer_is_the_heads():
    method = tiny_afire()
    assert [id(p) for p in method.last_layer_parameters()] == [id(method.student.head.weight)]


# views ---------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("shift", [0, 2])
def test_twin_equals_the_clean_picture_outside_the_mask(shift):
    method = tiny_afire(shift)
    canvas = smooth_images(16, method.canvas_size)
    views = method.views(canvas, uniforms_for(method, 16))
    assert torch.equal(views.twin[views.mask == 0], views.clean[views.mask == 0])
    inside = views.mask > 0
    assert (views.twin[inside] >= views.clean[inside]).all()
    assert (views.twin != views.clean).flatten(1).any(1).all()
    assert inside.flatten(1).any(1).all()
    assert torch.equal(views.abnormal, F.max_pool2d(views.mask, PATCH).flatten(1) > 0)
    assert not views.ambiguous.any()
    assert 0 < views.abnormal.float().mean() < 1


def test_published_form_shows_the_whole_picture_to_both():
    method = tiny_afire()
    images = smooth_images(3, (32, 32))
    views = method.views(images, uniforms_for(method, 3))
    assert torch.equal(views.clean, images)
    assert torch.equal(views.normal, images)
    assert views.cells is None
    assert views.teacher_cells is None


def test_a_single_lesion_pixel_makes_its_cell_abnormal_and_no_other():
    mask = torch.zeros(2, 1, 16, 24)
    mask[0, 0, 7, 8] = 1e-6  # the last row of the first row of cells, the first column of the second
    mask[1, 0, 8, 23] = 1
    clean = torch.zeros_like(mask)
    abnormal, ambiguous = abnormal_cells(mask, clean, mask, 8, 0.0)
    assert abnormal.nonzero().tolist() == [[0, 1], [1, 5]]
    assert not ambiguous.any()
    assert not abnormal_cells(clean, clean, clean, 8, 0.0)[0].any()


def test_a_cell_that_changes_too_little_is_neither_normal_nor_abnormal():
    clean = torch.full((1, 1, 8, 24), 0.5)
    change = torch.zeros_like(clean)
    change[..., :8] = 0.02  # a whole cell
    change[..., 8:16] = 0.004
    change[..., :4, 16:24] = -0.04  # half a cell, darker: 0.02 on average
    abnormal, ambiguous = abnormal_cells(clean + change, clean, (change != 0).float(), 8, 0.01)
    assert abnormal.tolist() == [[True, False, True]]
    assert ambiguous.tolist() == [[False, True, False]]


def test_pictures_of_another_size_than_the_canvas_are_refused_with_both_sizes():
    method = tiny_afire(shift=2)
    with pytest.raises(AfireError, match=r"must be 48 x 48 pixels.*got 32 x 32"):
        method.views(smooth_images(2, (32, 32)), uniforms_for(method, 2))


def test_repaired_panel_takes_abnormal_cells_from_the_restoration_and_the_rest_from_the_twin():
    method = tiny_afire(shift=2)
    images, uniforms = smooth_images(4, (48, 48)), uniforms_for(method, 4)
    panels = method.panels(images, uniforms)
    for picture in panels.values():
        assert picture.shape == (4, 1, 32, 32)
        assert 0 <= picture.min() <= picture.max() <= 1
    abnormal = method.views(images, uniforms).abnormal.view(4, 1, 4, 4)
    hidden = abnormal.repeat_interleave(PATCH, 2).repeat_interleave(PATCH, 3)
    assert torch.equal(panels["repaired"][hidden], panels["restoration"][hidden])
    assert torch.equal(panels["repaired"][~hidden], panels["twin"][~hidden])


# awkward inputs ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("structure", ["contrastive", "cross_entropy"])
@pytest.mark.parametrize("shift", [0, 2], ids=["published", "grid-shifted"])
@pytest.mark.parametrize("kind", ["black", "white", "batch of one", "all abnormal", "none abnormal"])
def test_awkward_batches_give_finite_losses_and_a_gradient_for_every_parameter(kind, shift, structure):
    method = tiny_afire(shift, structure=structure).train()
    batch = 1 if kind == "batch of one" else 3
    images = smooth_images(batch, method.canvas_size)
    if kind in ("black", "white"):
        images = torch.full_like(images, float(kind == "white"))
    if kind in ("all abnormal", "none abnormal"):
        method.lesion = FixedMask(float(kind == "all abnormal"))
    for step, first_epoch in enumerate((True, False)):
        losses = method.losses(images, uniforms_for(method, batch, seed=step), first_epoch)
        assert all(loss.isfinite() for loss in losses.values()), losses
        total_of(method, losses).backward()
    for name, parameter in method.student.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.isfinite().all(), name
    assert method.prototypes.prototypes.isfinite().all()


class LargestTensor(TorchDispatchMode):
    """Remembers the largest tensor that any operation makes."""

    def __init__(self) -> None:
        super().__init__()
        self.numel = 0
        self.what = ""

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        result = func(*args, **(kwargs or {}))
        for leaf in tree_leaves(result):
            if isinstance(leaf, torch.Tensor) and leaf.numel() > self.numel and leaf.untyped_storage().nbytes():
                self.numel, self.what = leaf.numel(), f"{func} {tuple(leaf.shape)}"
        return result


@pytest.mark.parametrize("shift", [0, 2])
def test_no_tensor_compares_every_token_with_every_prototype_dimension_by_dimension(shift):
    method = tiny_afire(shift, side=64)
    batch, tokens, dims = 4, 64, 16
    images, uniforms = smooth_images(batch, method.canvas_size), uniforms_for(method, batch)
    with LargestTensor() as largest:
        total_of(method, method.losses(images, uniforms, True)).backward()
    assert largest.numel < batch * tokens * tokens * dims, largest.what


# parts that do not fit ------------------------------------------------------------------------------------------------


def parts(**replaced) -> dict:
    encoder = ViTEncoder(32, PATCH, embed_dim=32, depth=1, num_heads=2)
    return {
        "encoder": encoder,
        "head": TokenHead(32, 16, out_dim=16, hidden_dim=32, bottleneck_dim=16),
        "decoder": AnomalyRestorationDecoder(32, (4, 4), PATCH, dim=32, depth=1, num_heads=2),
        "prototypes": PrototypeBank(16, 16),
        "token_loss": TokenContrastiveLoss(),
        "restoration_loss": RestorationLoss(),
        "lesion": SyntheticLesionMaskd(),
        **replaced,
    }


@pytest.mark.parametrize(
    ("replaced", "text"),
    [
        (
            {"decoder": AnomalyRestorationDecoder(32, (3, 4), PATCH, dim=32, depth=1, num_heads=2)},
            r"decoder grid \(3, 4\) at patch 8 differs from the encoder's \(4, 4\)",
        ),
        (
            {"decoder": AnomalyRestorationDecoder(32, (4, 4), 4, dim=32, depth=1, num_heads=2)},
            r"at patch 4 differs .* at patch 8",
        ),
        ({"head": TokenHead(32, None, 16)}, r"shift 0 the head needs cells=16 \(a layer per cell\), got None"),
        ({"shift": 2}, r"shift 2 the head needs cells=None \(one layer shared by all cells\), got 16"),
        (
            {"shift": 2, "head": TokenHead(32, None, 16)},
            "4 x 4 grid with shift 2 has 36 canvas cells, the prototype bank has 16",
        ),
        ({"shift": -1}, "shift must be at least 0 cells, got -1"),
    ],
)
def test_parts_that_do_not_fit_are_refused_by_name(replaced, text):
    AFiRe(**parts())
    with pytest.raises(AfireError, match=text):
        AFiRe(**parts(**replaced))


def test_loss_weights_name_every_loss():
    method = AFiRe(**parts(token_loss=TokenContrastiveLoss(category_weight=0.3)), structure_weight=2.0)
    assert method.loss_weights == {"structure": 2.0, "category": 0.3, "restoration": 1.0}
    losses = method.losses(smooth_images(2, (32, 32)), uniforms_for(method, 2), True)
    assert losses.keys() == method.loss_weights.keys()


@pytest.mark.parametrize("shift", [0, 1])
def test_without_lesions_the_twin_is_the_image_and_only_the_category_term_is_silent(shift: int) -> None:
    method = tiny_afire(shift=shift)
    bare = AFiRe(
        method.student.encoder,
        method.student.head,
        method.student.decoder,
        method.prototypes,
        method.token_loss,
        method.restoration_loss,
        lesion=None,
        shift=shift,
    )
    images = smooth_images(3, bare.canvas_size)
    views = bare.views(images, uniforms_for(bare, 3))
    assert torch.equal(views.twin, views.clean)
    assert not views.abnormal.any()
    losses = bare.losses(images, uniforms_for(bare, 3), first_epoch=True)
    assert losses["category"] == 0
    assert losses["structure"] > 0
    assert losses["restoration"] > 0
    assert "lesion_token_auroc" in bare.health(images, uniforms_for(bare, 3))
