from __future__ import annotations

import pytest
import torch
from helpers import PATCH, smooth_images

from afire_monai.core.errors import AfireError
from afire_monai.losses import SelfDistillationLoss
from afire_monai.methods import DINO
from afire_monai.networks import ResNetEncoder, TokenHead, ViTEncoder
from afire_monai.transforms import RandomViews, ViewAugment


def tiny_dino(local: int = 2, cells: int | None = None, local_size: int = 16) -> DINO:
    torch.manual_seed(0)
    encoder = ViTEncoder(32, PATCH, embed_dim=32, depth=2, num_heads=2)
    small = RandomViews([ViewAugment(local_size, scale=(0.1, 0.5)) for _ in range(local)]) if local else None
    return DINO(
        encoder,
        TokenHead(32, cells, out_dim=24, hidden_dim=32, bottleneck_dim=16),
        SelfDistillationLoss(24),
        RandomViews([ViewAugment(32, scale=(0.5, 1.0)) for _ in range(2)]),
        small,
    )


def draws_for(method: DINO, count: int) -> torch.Tensor:
    return torch.rand(count, method.draws, generator=torch.Generator().manual_seed(0))


def test_loss_and_gradient_equal_a_loop_over_pairs_of_views_and_images():
    generator = torch.Generator().manual_seed(0)
    student = torch.randn(4, 3, 7, generator=generator, requires_grad=True)
    teacher = torch.randn(2, 3, 7, generator=generator)
    loss = SelfDistillationLoss(7, student_temperature=0.2, teacher_temperature=0.07)
    loss.center.copy_(torch.randn(7, generator=generator))
    terms = []
    for t in range(2):
        for s in range(4):
            if s == t:
                continue
            for b in range(3):
                p = torch.softmax((teacher[t, b] - loss.center) / 0.07, 0)
                terms.append(-(p * torch.log_softmax(student[s, b] / 0.2, 0)).sum())
    expected = torch.stack(terms).mean()
    torch.testing.assert_close(loss(student, teacher), expected)
    ours = torch.autograd.grad(loss(student, teacher), student)[0]
    torch.testing.assert_close(ours, torch.autograd.grad(expected, student)[0])


def test_centre_is_a_moving_average_of_the_teachers_outputs():
    loss = SelfDistillationLoss(2, center_momentum=0.9)
    loss.update_center(torch.tensor([[[1.0, 2.0]], [[3.0, 6.0]]]))
    torch.testing.assert_close(loss.center, torch.tensor([0.2, 0.4]))
    loss.update_center(torch.zeros(2, 1, 2))
    torch.testing.assert_close(loss.center, torch.tensor([0.18, 0.36]))


def test_views_of_both_sizes_come_back_in_their_order():
    method = tiny_dino().eval()
    large, small = method.views(smooth_images(3, (40, 40)), draws_for(method, 3))
    assert [v.shape[-1] for v in (*large, *small)] == [32, 32, 16, 16]
    (together,) = method.student(*large, *small)
    for place, view in enumerate((*large, *small)):
        torch.testing.assert_close(together[place], method.student.head(method.student.encoder(view)[:, :1])[:, 0])


def test_teacher_sees_global_views_only_and_gets_no_gradient():
    method = tiny_dino()
    seen: list[int] = []
    method.teacher.encoder.register_forward_hook(lambda _m, inputs, _o: seen.append(inputs[0].shape[-1]))
    loss = method.losses(smooth_images(2, (40, 40)), draws_for(method, 2), first_epoch=True)["distillation"]
    loss.backward()
    assert set(seen) == {32}
    assert all(p.grad is None for p in method.teacher.parameters())
    assert all(p.grad is not None for _, p in method.trainable())


@pytest.mark.parametrize("local", [0, 2])
def test_black_pictures_and_a_batch_of_two_are_finite(local):
    method = tiny_dino(local)
    loss = method.losses(torch.zeros(2, 1, 32, 32), draws_for(method, 2), first_epoch=True)["distillation"]
    loss.backward()
    assert loss.isfinite()
    assert all(p.grad.isfinite().all() for _, p in method.trainable())
    assert method.loss.center.isfinite().all()


def test_health_says_so_when_all_outputs_are_alike():
    method = tiny_dino().eval()
    figures = method.health(smooth_images(6, (40, 40)), draws_for(method, 6))
    assert 0 < figures["teacher_entropy"] <= 1
    with torch.no_grad():
        method.teacher.head.weight.copy_(method.teacher.head.weight[:, :1].expand_as(method.teacher.head.weight))
    assert method.health(smooth_images(6, (40, 40)), draws_for(method, 6))["teacher_entropy"] == pytest.approx(1)


def test_encoders_without_fixed_positions_are_trained_as_well():
    encoder = ResNetEncoder(64, blocks=(1, 1, 1, 1))
    views, small = RandomViews([ViewAugment(64)] * 2), RandomViews([ViewAugment(32)])
    head = TokenHead(encoder.embed_dim, None, out_dim=8, hidden_dim=8, bottleneck_dim=4)
    method = DINO(encoder, head, SelfDistillationLoss(8), views, small)
    loss = method.losses(smooth_images(2, (80, 80)), draws_for(method, 2), first_epoch=True)["distillation"]
    loss.backward()
    assert all(p.grad is not None for _, p in method.trainable())


def test_panels_show_every_view_at_one_size():
    method = tiny_dino().eval()
    pictures = method.panels(smooth_images(2, (40, 40)), draws_for(method, 2))
    assert list(pictures) == ["global 1", "global 2", "local 1", "local 2"]
    assert {p.shape for p in pictures.values()} == {(2, 1, 32, 32)}


def test_parts_that_do_not_fit_are_refused():
    with pytest.raises(AfireError, match="one shared layer"):
        tiny_dino(cells=16)
    for size in (32, 40):
        with pytest.raises(AfireError, match="local_size below image_size"):
            tiny_dino(local_size=size)
    with pytest.raises(AfireError, match="local_size 20 must be a multiple of the patch size"):
        tiny_dino(local_size=20)
    with pytest.raises(AfireError, match="teacher_temperature must be above 0"):
        SelfDistillationLoss(8, teacher_temperature=0)
    with pytest.raises(AfireError, match="head_dim must be at least 2"):
        SelfDistillationLoss(1)
    with pytest.raises(AfireError, match="do not fit"):
        SelfDistillationLoss(8)(torch.zeros(1, 2, 8), torch.zeros(1, 2, 8))


def test_a_step_computes_no_positions(monkeypatch):
    method = tiny_dino()
    # what a step asked for would be computed on the CPU and copied to a GPU, each time
    monkeypatch.setattr("afire_monai.networks.encoder.sincos_positions", None)
    images = smooth_images(3, method.canvas_size)
    assert method.losses(images, draws_for(method, 3), first_epoch=False)["distillation"].isfinite()
