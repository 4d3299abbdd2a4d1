"""PEAC as a method: one step against a slow reference, its health figures, and what must stay finite."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F
from helpers import smooth_images
from tiny_peac import tiny_peac
from torch import Tensor

from afire_monai.core.errors import AfireError
from afire_monai.methods.peac import PEAC, OverlappingViews, cells_found
from afire_monai.networks import ViTEncoder
from afire_monai.networks.swin import SwinEncoder
from afire_monai.training.plan import parameter_groups
from afire_monai.transforms.perturb import AppearancePerturbation


def uniforms(method: PEAC, batch: int, seed: int = 0) -> Tensor:
    return torch.rand(batch, method.draws, generator=torch.Generator().manual_seed(seed))


def student_gradients(method: PEAC, terms: dict[str, Tensor]) -> dict[str, Tensor]:
    total = torch.stack([terms[name] * weight for name, weight in method.loss_weights.items()]).sum()
    named = dict(method.student.named_parameters())
    return dict(zip(named, torch.autograd.grad(total, list(named.values())), strict=True))


def move_teacher(method: PEAC) -> None:
    """A teacher that differs from the student, as it does in training."""
    generator = torch.Generator().manual_seed(5)
    with torch.no_grad():
        for parameter in method.teacher.parameters():
            parameter += 0.05 * torch.randn(parameter.shape, generator=generator)


def slow_step(method: PEAC, images: Tensor, u: Tensor) -> dict[str, Tensor]:
    """The four terms, image by image and cell by cell, from the networks' parts."""
    order, restoration, whole, local, pairs = [], [], [], [], 0
    encoder = method.student.encoder
    for i in range(len(images)):
        v = method.views(images[i : i + 1], u[i : i + 1])
        tokens = [encoder(view)[0, 1:] for view in (v.first, v.second)]
        with torch.no_grad():
            teacher = [method.teacher.encoder(view)[0, 1:] for view in (v.first, v.second)]
        for place, label in enumerate(v.order[0].tolist()):
            order.append(-method.student.order_head(tokens[0][place]).log_softmax(0)[label])
        head, p = method.student.appearance_head.convolution, encoder.patch_size
        weight, bias = head.weight[:, :, 0, 0], head.bias
        clean = (v.clean[0, 0] - encoder.mean.item()) / encoder.std.item()
        for place in range(len(tokens[0])):
            row, column = divmod(place, encoder.grid[1])
            drawn = (weight @ tokens[0][place] + bias).view(p, p)
            right = clean[row * p : (row + 1) * p, column * p : (column + 1) * p]
            restoration.append(((drawn - right) ** 2).mean())
        s = [F.normalize(method.student.global_projector(t.mean(0)), dim=0) for t in tokens]
        t = [F.normalize(method.teacher.global_projector(x.mean(0)), dim=0) for x in teacher]
        whole += [((s[0] - t[1]) ** 2).mean(), ((s[1] - t[0]) ** 2).mean()]
        if not v.kept.item():
            continue
        for here in torch.nonzero(v.matched[0])[:, 0].tolist():
            there = int(v.match[0, here])
            pairs += 1
            one = method.student.local_projector(tokens[0][here]) - method.teacher.local_projector(teacher[1][there])
            two = method.student.local_projector(tokens[1][there]) - method.teacher.local_projector(teacher[0][here])
            local.append(((one**2).mean() + (two**2).mean()) / 2)
    return {
        "order": torch.stack(order).mean(),
        "restoration": torch.stack(restoration).mean(),
        "global": torch.stack(whole).mean(),
        "local": torch.stack(local).sum() / pairs,
    }


def test_a_step_equals_image_by_image_and_cell_by_cell():
    method = tiny_peac(shift=2)
    move_teacher(method)
    images, u = smooth_images(5, (56, 56)), uniforms(method, 5)
    assert 0 < method.views(images, u).kept.sum() < 5
    fast, slow = method.losses(images, u, False), slow_step(method, images, u)
    assert fast.keys() == slow.keys() == method.loss_weights.keys()
    for name, value in slow.items():
        assert fast[name].item() == pytest.approx(value.item(), rel=1e-4), name
    expected = student_gradients(method, slow)
    for name, gradient in student_gradients(method, fast).items():
        difference = torch.linalg.vector_norm(gradient - expected[name])
        assert difference <= 1e-3 * torch.linalg.vector_norm(expected[name]) + 1e-6, name


def test_local_term_is_there_only_where_the_order_is_kept():
    images = smooth_images(4, (48, 48))
    for keep in (0.0, 1.0):
        method = tiny_peac(keep)
        move_teacher(method)
        terms = method.losses(images, uniforms(method, 4), False)
        assert (terms["local"].item() > 0) == bool(keep)
        gradients = student_gradients(method, terms)
        local = [g for name, g in gradients.items() if name.startswith("local_projector")]
        assert any(g.any() for g in local) == bool(keep)


@pytest.mark.parametrize("keep", [0.0, 0.5, 1.0])
@pytest.mark.parametrize("batch", [1, 2, 4])
def test_black_images_and_small_batches_give_finite_losses_and_gradients(keep, batch):
    method = tiny_peac(keep)
    for images in (torch.zeros(batch, 1, 48, 48), torch.ones(batch, 1, 48, 48), smooth_images(batch, (48, 48))):
        terms = method.losses(images, uniforms(method, batch), True)
        assert all(term.isfinite() for term in terms.values())
        assert all(g.isfinite().all() for g in student_gradients(method, terms).values())


def test_every_trainable_parameter_is_used_and_in_an_optimiser_group():
    method = tiny_peac()
    move_teacher(method)
    gradients = student_gradients(method, method.losses(smooth_images(8, (48, 48)), uniforms(method, 8), False))
    assert all(g.any() for g in gradients.values()), [name for name, g in gradients.items() if not g.any()]
    grouped = {id(p) for group in parameter_groups(method) for p in group["params"]}
    assert grouped == {id(p) for p in method.student.parameters()}
    assert not any(p.requires_grad for p in method.teacher.parameters())


def test_predictors_stand_between_the_students_projections_and_the_teachers():
    method = tiny_peac(predictor_dim=12)
    move_teacher(method)
    images, u = smooth_images(4, (48, 48)), uniforms(method, 4)
    terms = method.losses(images, u, False)
    assert all(g.any() for g in student_gradients(method, terms).values())
    plain = tiny_peac()
    move_teacher(plain)
    shared = {name: value for name, value in method.state_dict().items() if "predictor" not in name}
    plain.load_state_dict(shared)
    assert plain.losses(images, u, False)["global"].item() != terms["global"].item()
    with torch.no_grad():
        v = method.views(images, u)
        projections = plain.student(v.first, v.second)
        expected = [method.student.global_predictor(p) for p in (projections.global_first, projections.global_second)]
        got = method.student(v.first, v.second)
    torch.testing.assert_close([got.global_first, got.global_second], expected)
    assert [p.shape for p in method.teacher.parameters()] == [p.shape for p in plain.teacher.parameters()]
    method.update_teacher(0.5)


def test_teacher_moves_towards_the_student_by_the_momentum():
    method = tiny_peac()
    with torch.no_grad():
        for parameter in method.student.parameters():
            parameter += 1
    before = [p.clone() for p in method.teacher.parameters()]
    method.update_teacher(0.75)
    for old, new in zip(before, method.teacher.parameters(), strict=True):
        torch.testing.assert_close(new, old + 0.25)
    assert method.export_encoder is method.teacher.encoder


def test_health_of_a_fresh_network_is_near_chance_and_in_bounds():
    method = tiny_peac()
    images, u = smooth_images(12, (48, 48)), uniforms(method, 12)
    figures = method.health(images, u)
    assert all(math.isfinite(value) for value in figures.values())
    assert figures["order_permuted"] < 0.3
    assert 0 <= figures["cells_found"] <= 1
    assert figures["validation_order"] == pytest.approx(math.log(16), abs=1.0)
    assert figures["validation_global"] <= 4 / 24
    assert method.health(images, u) == figures


def test_collapsed_projector_and_blind_order_head_show_in_the_health_figures():
    method = tiny_peac()
    with torch.no_grad():
        method.teacher.global_projector.layers[0].weight.zero_()
        method.student.order_head.weight.zero_()
        method.student.order_head.bias[3] = 10
    figures = method.health(smooth_images(12, (48, 48)), uniforms(method, 12))
    assert figures["projection_spread"] == pytest.approx(0, abs=1e-6)
    assert figures["order_permuted"] == pytest.approx(1 / 16)


def test_cells_found_counts_matched_cells_by_hand():
    one = torch.eye(4).unsqueeze(0)
    other = one[:, [1, 0, 2, 3]]
    match = torch.tensor([[1, 0, 3, 0]])
    matched = torch.tensor([[True, True, True, False]])
    # the first two find their match, the third finds cell 2 instead of 3, the fourth is not asked
    assert cells_found(one, other, match, matched).item() == pytest.approx(2 / 3)
    assert cells_found(one, other, match, matched & False).item() == 0


def test_panels_show_both_kinds_of_first_views():
    method = tiny_peac()
    images, u = smooth_images(3, (48, 48)), uniforms(method, 3)
    pictures = method.panels(images, u)
    assert list(pictures) == ["view 1", "view 2", "perturbed", "restored", "permuted", "restored from permuted"]
    for picture in pictures.values():
        assert picture.shape == (3, 1, 32, 32)
        assert 0 <= picture.min() <= picture.max() <= 1
    assert torch.equal(pictures["view 1"].flatten(1).sort(1).values, pictures["permuted"].flatten(1).sort(1).values)
    assert (pictures["perturbed"] != pictures["view 1"]).flatten(1).any(1).all()


def test_views_of_another_grid_are_refused():
    views = OverlappingViews((5, 4), 8, 1, AppearancePerturbation())
    with pytest.raises(AfireError, match=r"\(5, 4\).*\(4, 4\)"):
        PEAC(ViTEncoder(32, 8, embed_dim=32, depth=1, num_heads=2), views, 8)


def test_a_swin_transformer_takes_the_place_of_the_encoder():
    torch.manual_seed(0)
    encoder = SwinEncoder(128, embed_dim=8, depths=(1, 1, 2, 1), heads=(1, 1, 2, 2), window=4)
    method = PEAC(encoder, OverlappingViews((4, 4), 32, 1, AppearancePerturbation(), 1.0), 16)
    move_teacher(method)
    images, u = smooth_images(4, method.canvas_size), uniforms(method, 4)
    gradients = student_gradients(method, method.losses(images, u, False))
    assert all(g.isfinite().all() and g.any() for g in gradients.values())
    assert all(math.isfinite(value) for value in method.health(images, u).values())
