"""MLVICX against a slow step, every parameter in the optimiser, running statistics, and inputs that are hard."""

from __future__ import annotations

import copy

import pytest
import torch
from helpers import smooth_images
from tiny_mlvicx import tiny_mlvicx
from torch.nn import functional as F

from afire_monai.core.errors import AfireError, CheckpointError
from afire_monai.methods import MLVICX
from afire_monai.models.folder import export_encoder, load_encoder
from afire_monai.training.plan import parameter_groups
from afire_monai.transforms import RandomViews, ViewAugment


def uniforms_for(method: MLVICX, batch: int, seed: int = 0) -> torch.Tensor:
    return torch.rand(batch, method.draws, generator=torch.Generator().manual_seed(seed))


def total_of(method: MLVICX, losses: dict[str, torch.Tensor]) -> torch.Tensor:
    return torch.stack([losses[name] * weight for name, weight in method.loss_weights.items()]).sum()


def slow_losses(method: MLVICX, images: torch.Tensor, uniforms: torch.Tensor) -> dict[str, torch.Tensor]:
    """One view at a time, the dense branch written out, the terms by torch's own functions."""
    student = method.student
    embedded = {"global": [], "dense": []}
    for number, view in enumerate(method.views.views):
        picture = view(images, uniforms[:, number * 11 : (number + 1) * 11])
        maps = student.encoder.pyramid(picture)
        embedded["global"].append(student.global_projector(F.adaptive_avg_pool2d(maps[-1], 1).flatten(1)))
        dense = sum(
            F.interpolate(convolution(x), (16, 16), mode="bilinear")
            for x, convolution in zip(maps, student.dense.convolutions, strict=True)
        )
        embedded["dense"].append(student.dense_projector(F.adaptive_avg_pool2d(dense, 2).flatten(1)))
    losses = {}
    for branch, views in embedded.items():
        matrices = [torch.cov(z.T) for z in views]
        losses[f"{branch}_invariance"] = F.mse_loss(*views)
        losses[f"{branch}_variance"] = sum(F.relu(1 - (m.diag() + 1e-4).sqrt()).mean() for m in matrices) / 2
        losses[f"{branch}_covariance"] = sum((m - m.diag().diag()).square().sum() / 16 for m in matrices)
    return losses


def test_losses_and_running_statistics_equal_the_slow_step():
    method = tiny_mlvicx().train()
    slow = copy.deepcopy(method)
    images, uniforms = smooth_images(6, (80, 80)), uniforms_for(method, 6)
    losses, expected = method.losses(images, uniforms, True), slow_losses(slow, images, uniforms)
    assert losses.keys() == expected.keys() == method.loss_weights.keys()
    for name, value in losses.items():
        torch.testing.assert_close(value, expected[name], atol=1e-5, rtol=1e-3)
    for name, value in method.state_dict().items():
        torch.testing.assert_close(value, slow.state_dict()[name], atol=1e-6, rtol=1e-4)
    total_of(method, losses).backward()
    total_of(slow, expected).backward()
    for (name, p), q in zip(method.student.named_parameters(), slow.student.parameters(), strict=True):
        assert p.grad is not None
        assert (p.grad - q.grad).norm() <= 1e-3 * q.grad.norm() + 1e-5, name  # type: ignore[union-attr, operator]


def test_weights_are_the_papers():
    assert tiny_mlvicx(dense_weight=2.0).loss_weights == {
        "global_invariance": 25.0,
        "global_variance": 25.0,
        "global_covariance": 1.0,
        "dense_invariance": 50.0,
        "dense_variance": 50.0,
        "dense_covariance": 2.0,
    }


def test_every_parameter_is_in_an_optimiser_group_and_learns():
    method = tiny_mlvicx().train()
    before = {name for name, _ in method.named_parameters()}
    grouped = [id(p) for group in parameter_groups(method) for p in group["params"]]
    total_of(method, method.losses(smooth_images(6, (80, 80)), uniforms_for(method, 6), True)).backward()
    assert {name for name, _ in method.named_parameters()} == before  # none is made on the way
    assert len(grouped) == len(set(grouped))
    assert set(grouped) == {id(p) for p in method.parameters()}
    assert [name for name, p in method.named_parameters() if p.grad is None or not p.grad.any()] == []


def test_biases_and_norms_are_neither_adapted_nor_decayed():
    method = tiny_mlvicx()
    names = {id(p): name for name, p in method.named_parameters()}
    adapted, plain = ({names[id(p)] for p in group["params"]} for group in parameter_groups(method))
    assert {"student.encoder.stem.1.weight", "student.global_projector.layers.0.bias"} <= plain
    assert {"student.encoder.stem.0.weight", "student.encoder.contexts.2.spatial.weight"} <= adapted
    assert {name.rsplit(".", 1)[1] for name in adapted} == {"weight"}


def test_a_state_with_a_name_missing_or_more_is_refused():
    state = tiny_mlvicx(seed=1).state_dict()
    method = tiny_mlvicx()
    method.load_state_dict(state)
    del state["student.dense.convolutions.3.weight"]
    with pytest.raises(RuntimeError, match=r"Missing key.*dense\.convolutions\.3"):
        method.load_state_dict(state)


@pytest.mark.parametrize("images", [torch.zeros(4, 1, 80, 80), torch.ones(4, 1, 80, 80), smooth_images(2, (80, 80))])
def test_black_white_and_two_images_give_finite_losses_and_gradients(images):
    method = tiny_mlvicx().train()
    losses = method.losses(images, uniforms_for(method, len(images)), True)
    total_of(method, losses).backward()
    assert all(loss.isfinite() for loss in losses.values())
    assert all(p.grad is not None and p.grad.isfinite().all() for p in method.parameters())
    assert all(value.isfinite().all() for value in method.state_dict().values())


def test_exported_encoder_has_the_running_statistics_of_training(tmp_path):
    method = tiny_mlvicx().train()
    for step in range(3):
        method.losses(smooth_images(4, (80, 80), seed=step), uniforms_for(method, 4), True)
    assert method.teacher is None
    loaded = load_encoder(export_encoder(method.export_encoder, tmp_path))
    state = method.state_dict()
    for name, value in loaded.state_dict().items():
        assert torch.equal(value, state[f"student.encoder.{name}"]), name
    # two views in each of three steps
    assert loaded.state_dict()["stem.1.num_batches_tracked"] == 6


def test_health_looks_without_changing_anything():
    method = tiny_mlvicx().eval()
    before = {name: value.clone() for name, value in method.state_dict().items()}
    figures = method.health(smooth_images(8, (80, 80)), uniforms_for(method, 8))
    assert {"feature_std_ratio", "effective_rank", "validation_vicreg"} == figures.keys()
    assert all(value == value for value in figures.values())
    assert all(torch.equal(value, before[name]) for name, value in method.state_dict().items())


def test_panels_are_pictures():
    method = tiny_mlvicx().eval()
    panels = method.panels(smooth_images(3, (80, 80)), uniforms_for(method, 3))
    assert list(panels) == ["image", "first", "second", "context"]
    for picture in panels.values():
        assert picture.shape == (3, 1, 64, 64)
        assert 0 <= picture.min() <= picture.max() <= 1


def test_views_that_do_not_fit_are_refused():
    student = tiny_mlvicx().student
    for views in ([ViewAugment(64)], [ViewAugment(64), ViewAugment(32)]):
        with pytest.raises(AfireError, match="compares two views"):
            MLVICX(student, RandomViews(views), (80, 80))


def test_a_batch_of_one_is_refused_with_the_way_out():
    method = tiny_mlvicx().train()
    with pytest.raises(AfireError, match="set batch_size to 2 or more"):
        method.losses(smooth_images(1, (80, 80)), uniforms_for(method, 1), True)


def test_another_encoder_is_refused_with_its_file(tmp_path):
    export_encoder(tiny_mlvicx().export_encoder, tmp_path)
    description = tmp_path / "encoder.json"
    description.write_text(description.read_text().replace('"context": true', '"context": false'))
    with pytest.raises(CheckpointError, match=r"do not fit their description.*contexts\.0"):
        load_encoder(tmp_path)
