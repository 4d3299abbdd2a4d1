from __future__ import annotations

import math

import pytest
import torch
from helpers import PATCH, smooth_images, tiny_afire

from afire_monai.methods.health import (
    content_free_inputs,
    effective_rank,
    feature_health,
    feature_std_ratio,
    health_warnings,
    rank_auroc,
    shortcut_in_words,
)

HEALTHY = {
    "feature_std_ratio": 0.8,
    "effective_rank": 20.0,
    "prototype_usage": 0.9,
    "position_gap": 2.0,
    "structure_real": 1.0,
}


def after_one_step(shift: int):
    """A method whose prototypes have seen one batch, images and draws for health."""
    method = tiny_afire(shift)
    images = smooth_images(16, method.canvas_size)
    uniforms = torch.rand(16, method.draws, generator=torch.Generator().manual_seed(0))
    method.losses(images, uniforms, first_epoch=True)
    return method.eval(), smooth_images(12, method.canvas_size, seed=1), uniforms[:12]


def test_spread_is_one_for_features_all_over_the_sphere_and_zero_for_equal_ones():
    features = torch.randn(3000, 3, 64, generator=torch.Generator().manual_seed(0))
    assert feature_std_ratio(features) == pytest.approx(1, abs=0.02)
    assert feature_std_ratio(features * 100) == pytest.approx(1, abs=0.02)  # length does not count, direction does
    assert feature_std_ratio(features[:1].expand(10, -1, -1)) == pytest.approx(0, abs=1e-6)
    # cells that differ from one another but not between images are no sign of health
    assert feature_std_ratio(features[:1].expand(10, -1, -1) * torch.rand(10, 1, 1)) == pytest.approx(0, abs=1e-6)


@pytest.mark.parametrize(
    ("spectrum", "rank"),
    [([1.0, 1.0, 1.0, 1.0], 4), ([5.0], 1), ([3.0, 1.0], math.exp(-0.75 * math.log(0.75) - 0.25 * math.log(0.25)))],
)
def test_effective_rank_of_known_spectra(spectrum, rank):
    # pairs of opposite rows: centred, and the singular values are √2 times the spectrum
    rows = torch.diag(torch.tensor(spectrum))
    features = torch.nn.functional.pad(torch.cat([rows, -rows]), (0, 3))
    assert effective_rank(features) == pytest.approx(rank, rel=1e-6)
    assert effective_rank(features + 100) == pytest.approx(rank, rel=1e-4)


def test_effective_rank_of_equal_features_is_one_and_finite():
    assert effective_rank(torch.ones(8, 4)) == 1


def test_features_that_are_not_finite_have_no_rank_and_are_told_in_words():
    rank = effective_rank(torch.full((8, 4), torch.inf))
    assert math.isnan(rank)
    (warning,) = health_warnings({"feature_std_ratio": math.nan, "effective_rank": rank})
    assert "COLLAPSE" in warning


def test_rank_auroc_counts_ties_half_and_is_a_half_of_an_empty_set():
    assert rank_auroc(torch.tensor([2.0, 3.0]), torch.tensor([1.0, 2.0])) == 0.875
    assert rank_auroc(torch.tensor([]), torch.tensor([1.0])) == 0.5
    assert rank_auroc(torch.tensor([1.0]), torch.tensor([])) == 0.5
    assert math.isnan(rank_auroc(torch.tensor([1.0]), torch.tensor([float("nan")])))


def test_shuffled_input_holds_each_pictures_own_patches_in_another_order():
    images = torch.rand(3, 2, 4 * PATCH, 5 * PATCH)
    shuffled = content_free_inputs(images, PATCH)["shuffled"]

    def patches(picture):
        cells = [
            picture[:, r : r + PATCH, c : c + PATCH]
            for r in range(0, 4 * PATCH, PATCH)
            for c in range(0, 5 * PATCH, PATCH)
        ]
        return {tuple(cell.flatten().tolist()): place for place, cell in enumerate(cells)}

    orders = []
    for before, after in zip(images, shuffled, strict=True):
        was, now = patches(before), patches(after)
        assert was.keys() == now.keys()
        orders.append([now[patch] for patch in was])
        assert orders[-1] != list(range(20))
    assert orders[0] != orders[1]


def test_blank_and_noise_keep_the_greys_of_the_batch_but_not_its_anatomy():
    images = smooth_images(8, (64, 64)) * 0.5 + 0.2
    inputs = content_free_inputs(images, PATCH)
    assert torch.equal(inputs["blank"], images.mean().expand_as(images))
    assert inputs["noise"].mean().item() == pytest.approx(images.mean().item(), abs=0.01)
    assert inputs["noise"].std().item() == pytest.approx(images.std().item(), abs=0.01)
    neighbours = torch.corrcoef(torch.stack([inputs["noise"][..., :-1].flatten(), inputs["noise"][..., 1:].flatten()]))
    assert abs(neighbours[0, 1].item()) < 0.02
    for name, again in content_free_inputs(images, PATCH).items():
        assert torch.equal(inputs[name], again)


@pytest.mark.parametrize("shift", [0, 2])
def test_all_figures_are_finite_and_measuring_changes_nothing(shift):
    method, images, uniforms = after_one_step(shift)
    before = {name: tensor.clone() for name, tensor in method.state_dict().items()}
    figures = method.health(images, uniforms)
    assert all(math.isfinite(value) for value in figures.values()), figures
    assert figures == method.health(images, uniforms)
    for name, tensor in method.state_dict().items():
        assert torch.equal(tensor, before[name])
    for name in ("prototype_entropy", "prototype_usage", "lesion_token_auroc", "own_cell_real"):
        assert 0 <= figures[name] <= 1
    free = min(figures[f"structure_{name}"] for name in ("blank", "noise", "shuffled"))
    assert figures["position_gap"] == pytest.approx(free - figures["structure_real"])


def test_collapsed_encoder_is_told_in_words_and_a_sound_one_is_not():
    method, images, uniforms = after_one_step(shift=2)
    # the teacher's features of an untrained network on pictures that differ are sound enough
    assert health_warnings(method.health(images, uniforms)) == []
    with torch.no_grad():
        for parameter in method.teacher.encoder.parameters():
            parameter.zero_()
    (warning,) = health_warnings(method.health(images, uniforms))
    assert "COLLAPSE" in warning
    assert "same features for every image" in warning
    assert "learning rate" in warning


def test_unused_prototype_dimensions_are_told_in_words():
    method, images, uniforms = after_one_step(shift=2)
    method.prototypes.prototypes.zero_()
    (warning,) = health_warnings(method.health(images, uniforms))
    assert "only 6% of the dimensions" in warning


@pytest.mark.parametrize(
    ("figure", "value", "text"),
    [("feature_std_ratio", 0.04, "COLLAPSE"), ("effective_rank", 1.9, "COLLAPSE"), ("prototype_usage", 0.09, "9%")],
)
def test_each_figure_below_its_limit_warns(figure, value, text):
    assert health_warnings(HEALTHY) == []
    (warning,) = health_warnings({**HEALTHY, figure: value})
    assert text in warning


def test_shortcut_is_told_in_words():
    assert "none" in shortcut_in_words(HEALTHY)
    solved = shortcut_in_words({**HEALTHY, "position_gap": 0.001})
    assert "as low without the anatomy" in solved
    assert "set shift above 0" in solved
    # a loss near zero has small gaps by itself: what counts is the gap beside it
    assert "none" in shortcut_in_words({**HEALTHY, "position_gap": 0.02, "structure_real": 0.01})


def test_published_form_is_no_better_with_the_anatomy_than_without_before_any_training():
    method, images, uniforms = after_one_step(shift=0)
    figures = method.health(images, uniforms)
    assert figures["position_gap"] < 0.05
    assert figures["own_cell_blank"] >= figures["own_cell_real"]
    assert "as low without the anatomy" in shortcut_in_words(figures)


@pytest.mark.parametrize("shift", [0, 2])
def test_a_head_that_ignores_the_picture_solves_the_published_task_but_not_the_shifted_one(shift):
    method, images, uniforms = after_one_step(shift)
    for head in (method.student.head, method.teacher.head):
        with torch.no_grad():
            head.mlp[-1].weight.zero_()
            head.mlp[-1].bias.copy_(torch.linspace(-1, 1, 16))
    method.losses(images, uniforms, first_epoch=True)
    figures = method.health(images, uniforms)
    assert figures["position_gap"] == pytest.approx(0, abs=1e-5)
    assert figures["own_cell_real"] == figures["own_cell_blank"]
    if shift == 0:
        assert figures["own_cell_real"] > 0.9
        assert figures["structure_real"] < 0.5 * math.log(16)
    else:
        assert figures["own_cell_real"] < 0.2
        assert figures["structure_real"] == pytest.approx(math.log(36), abs=0.2)


def test_lesion_figure_is_a_half_without_lesions():
    method, images, uniforms = after_one_step(shift=0)

    class NoLesion:
        draws, twin_key, mask_key = method.lesion.draws, "twin", "mask"

        def __call__(self, data):
            return {"twin": data["image"], "mask": torch.zeros_like(data["image"][:, :1])}

    method.lesion = NoLesion()
    assert method.health(images, uniforms)["lesion_token_auroc"] == 0.5


def test_figures_of_another_method_are_judged_without_those_it_lacks():
    method = tiny_afire().eval()
    figures = feature_health(method.export_encoder, torch.zeros(4, 1, 32, 32))
    assert set(figures) == {"feature_std_ratio", "effective_rank"}
    assert [w[:8] for w in health_warnings(figures)] == ["COLLAPSE"]
    assert shortcut_in_words(figures) is None
