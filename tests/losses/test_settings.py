"""Bounds and defaults of the losses' settings, shapes that do not fit, and means over a single token."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from afire_monai.core.errors import AfireError
from afire_monai.losses import (
    MaskedBCELoss,
    MaskedDiceCELoss,
    MaskedPatchLoss,
    RestorationLoss,
    SelfDistillationLoss,
    TokenContrastiveLoss,
    TokenMatchLoss,
    VICRegLoss,
    own_cell_accuracy,
)
from afire_monai.losses.peac import PEACProjections, local_loss
from afire_monai.losses.token_match import teacher_tokens
from afire_monai.networks import PrototypeBank

ONE = torch.tensor([[False, True, False]])


def random(*shape: int, seed: int = 0) -> Tensor:
    return torch.rand(shape, generator=torch.Generator().manual_seed(seed)) * 2 - 1


@pytest.mark.parametrize(
    ("kind", "settings"),
    [
        *(
            (TokenContrastiveLoss, {name: value})
            for name in ("student_temperature", "temperature")
            for value in (0, -1)
        ),
        (TokenContrastiveLoss, {"category_weight": -0.5}),
        *(
            (TokenMatchLoss, {name: value})
            for name in ("student_temperature", "teacher_temperature")
            for value in (0, -1)
        ),
        *((VICRegLoss, {name: value}) for name in ("target", "eps") for value in (0, -1)),
        *((RestorationLoss, {"abnormal_weight": value}) for value in (0, -0.5)),
        *((MaskedBCELoss, {"positive_weight": value}) for value in ([1.0, 0.0], [-0.5, 2.0])),
        *((MaskedBCELoss, {"smoothing": value}) for value in (1, 1.5, -0.1)),
        *((SelfDistillationLoss, {"dim": 8, name: 0}) for name in ("student_temperature", "teacher_temperature")),
        *((SelfDistillationLoss, {"dim": 8, "center_momentum": value}) for value in (-0.1, 1.1)),
        (SelfDistillationLoss, {"dim": 1}),
        *((PrototypeBank, {"cells": 4, "momentum": value}) for value in (-0.1, 1.0, 1.5)),
    ],
)
def test_settings_out_of_bounds_are_refused(kind, settings):
    with pytest.raises(AfireError, match=r"must be"):
        kind(**settings)


def test_settings_on_and_within_bounds_are_taken():
    assert TokenContrastiveLoss(category_weight=0, student_temperature=1e-3, temperature=1e-3).category_weight == 0
    assert VICRegLoss(target=0.5).target == 0.5
    assert TokenMatchLoss(0.5, 0.5).teacher_temperature == 0.5
    assert RestorationLoss(0.25).abnormal_weight == 0.25
    assert MaskedBCELoss([0.5, 0.25], smoothing=0.9).smoothing == 0.9
    assert [SelfDistillationLoss(2, center_momentum=value).center_momentum for value in (0, 1)] == [0, 1]
    assert PrototypeBank(4, momentum=0).momentum == 0


def test_defaults_are_the_documented_ones():
    contrastive, match, vicreg = TokenContrastiveLoss(), TokenMatchLoss(), VICRegLoss()
    assert (contrastive.structure, contrastive.category_weight) == ("contrastive", 1)
    assert (contrastive.student_temperature, contrastive.temperature) == (0.1, 1)
    assert (match.student_temperature, match.teacher_temperature) == (0.1, 0.04)
    assert (vicreg.target, vicreg.eps) == (1, 1e-4)
    assert RestorationLoss().abnormal_weight == 1
    assert (MaskedBCELoss().smoothing, MaskedBCELoss().weight) == (0, None)
    assert (MaskedDiceCELoss().dice_weight, MaskedDiceCELoss().ce_weight) == (1, 1)
    assert MaskedPatchLoss(8).normalise is True
    distillation, bank = SelfDistillationLoss(8), PrototypeBank(4)
    assert (distillation.student_temperature, distillation.teacher_temperature) == (0.1, 0.04)
    assert distillation.center_momentum == 0.9
    assert distillation.center.tolist() == [0] * 8
    assert (bank.momentum, bank.temperature, bank.iterations) == (0.75, 0.05, 3)
    assert torch.equal(bank.prototypes, torch.zeros(4, 256))


def test_means_over_one_token_are_its_value():
    logits, assignment = random(1, 3, 4), random(3, 4, seed=1).softmax(-1)
    s = (assignment[1] * (logits[0, 1] / 0.1).log_softmax(-1)).sum()
    terms = TokenContrastiveLoss("cross_entropy")(logits, assignment, ~ONE)
    torch.testing.assert_close(terms.structure, -s)

    teacher, prototypes = random(1, 3, 4, seed=2), random(1, 3, 4, seed=3)
    target = ((teacher - prototypes)[0, 1] / 0.04).softmax(-1)
    expected = -(target * ((logits - prototypes)[0, 1] / 0.1).log_softmax(-1)).sum()
    torch.testing.assert_close(TokenMatchLoss()(logits, teacher, prototypes, ONE), expected)

    label = torch.tensor([[math.nan, 1.0]])
    torch.testing.assert_close(MaskedBCELoss()(random(1, 2), label), -F.logsigmoid(random(1, 2)[0, 1]))

    images, predicted = random(1, 1, 4, 12), random(1, 1, 4, 12, seed=4)
    expected = (images - predicted)[..., 4:8].square().mean()
    torch.testing.assert_close(MaskedPatchLoss(4, normalise=False)(predicted, images, ONE), expected)

    tokens = [random(1, 3, 4, seed=seed) for seed in range(4)]
    student, taught = (PEACProjections(random(1, 2), random(1, 2), *tokens[n : n + 2]) for n in (0, 2))
    match = torch.tensor([[2, 0, 1]])
    one, other = tokens[0][0, 1] - tokens[3][0, 0], tokens[1][0, 0] - tokens[2][0, 1]
    expected = (one.square().mean() + other.square().mean()) / 2
    torch.testing.assert_close(local_loss(student, taught, match, ONE, normalise=False), expected)


def test_masses_that_an_exponential_would_lose_still_count():
    # log q is −20 for both tokens, −200 after division by τ: equal tokens give log 2
    logits = torch.tensor([[[-1.0, 1.0]], [[-1.0, 1.0]]])
    loss = TokenContrastiveLoss(temperature=0.1)
    terms = loss(logits, torch.tensor([[1.0, 0.0]]), torch.tensor([[True], [False]]))
    assert terms.category.item() == pytest.approx(math.log(2), abs=1e-4)


def test_tokens_that_are_ignored_are_neither_normal_nor_abnormal():
    logits, assignment, abnormal = random(2, 3, 4), random(3, 4, seed=1).softmax(-1), ONE.repeat(2, 1)
    ignored = torch.tensor([[True, False, False], [False, False, False]])
    loss = TokenContrastiveLoss("cross_entropy")
    log_q = (logits / 0.1).log_softmax(-1)
    own = [-(assignment[token] * log_q[image, token]).sum() for image, token in ((0, 2), (1, 0), (1, 2))]
    torch.testing.assert_close(loss(logits, assignment, abnormal, ignored=ignored).structure, torch.stack(own).mean())


def test_accuracy_over_more_images_than_tokens_and_more_dimensions_than_either():
    assignment = torch.eye(4)[:2]
    logits = torch.tensor([[[1.0, 0, 0, 0], [0, 1, 0, 0]], [[0, 1, 0, 0], [0, 1, 0, 0]], [[0, 1, 0, 0], [1, 0, 0, 0]]])
    assert own_cell_accuracy(logits, assignment, 0.1).item() == pytest.approx(3 / 6)


SHAPES = {
    "contrastive": (TokenContrastiveLoss(), [(2, 3, 8), (3, 8), (2, 3)], [(2, 3, 8), (3, 8), (2, 4)]),
    "match": (TokenMatchLoss(), [(1, 2, 3)] * 3 + [(1, 2)], [(1, 2, 3), (1, 2, 3), (1, 2, 4), (1, 2)]),
    "matched": (TokenMatchLoss(), [(1, 2, 3)] * 3 + [(1, 2)], [(1, 2, 3)] * 3 + [(1, 3)]),
    "vicreg": (VICRegLoss(), [(2, 4)] * 2, [(2, 4, 1)] * 2),
    "reconstruction": (MaskedPatchLoss(4), [(1, 1, 8, 8)] * 2 + [(1, 4)], [(1, 1, 8, 4), (1, 1, 8, 8), (1, 4)]),
    "masked": (MaskedPatchLoss(4), [(1, 1, 8, 8)] * 2 + [(1, 4)], [(1, 1, 8, 8), (1, 1, 8, 8), (1, 2)]),
    "views": (SelfDistillationLoss(8), [(2, 3, 8)] * 2, [(2, 3, 8), (3, 3, 8)]),
    "a single view": (SelfDistillationLoss(8), [(2, 3, 8), (1, 3, 8)], [(1, 3, 8), (1, 3, 8)]),
    "images": (SelfDistillationLoss(8), [(2, 3, 8)] * 2, [(2, 3, 8), (2, 2, 8)]),
}


@pytest.mark.parametrize("name", SHAPES)
def test_shapes_that_do_not_fit_are_refused_and_those_that_do_are_not(name):
    loss, right, wrong = SHAPES[name]

    def inputs(shapes: list[tuple[int, ...]]) -> list[Tensor]:
        *values, last = shapes
        boolean = not isinstance(loss, VICRegLoss | SelfDistillationLoss)
        return [*(random(*shape) for shape in values), random(*last) > 0 if boolean else random(*last)]

    found = loss(*inputs(right))
    assert all(value.isfinite() for value in (found if isinstance(found, tuple) else (found,)))
    with pytest.raises(AfireError, match=r"do not fit|got \("):
        loss(*inputs(wrong))


@pytest.mark.parametrize(("height", "width"), [(9, 12), (8, 13)])
def test_pictures_that_cells_do_not_divide_are_refused(height, width):
    picture = torch.zeros(1, 1, height, width)
    with pytest.raises(AfireError, match="grid 2 x 3 do not fit"):
        RestorationLoss()(picture, picture, torch.zeros(1, 6, dtype=torch.bool), (2, 3))


def test_one_view_of_each_is_enough_where_every_pair_counts():
    student, teacher = random(1, 2, 4), random(1, 2, 4, seed=1)
    expected = -((teacher / 0.04).softmax(-1) * (student / 0.1).log_softmax(-1)).sum(-1).mean()
    torch.testing.assert_close(SelfDistillationLoss(4)(student, teacher, all_pairs=True), expected)


def test_tokens_behind_an_edge_are_marked_and_those_at_it_are_not():
    tokens = torch.arange(6.0).view(1, 6, 1)
    shown, inside = teacher_tokens(tokens, torch.tensor([[1, -1]]), (2, 3))
    assert inside.tolist() == [[False, True, True, False, False, False]]
    assert shown[0, 1:3, 0].tolist() == [3, 4]


def test_without_a_masked_patch_the_loss_is_zero():
    images = random(1, 1, 4, 12)
    assert MaskedPatchLoss(4)(images, images, torch.zeros(1, 3, dtype=torch.bool)).item() == 0


def test_dice_is_zero_where_neither_mask_nor_prediction_has_anything():
    logits = torch.full((1, 1, 2, 2), -200.0)
    assert MaskedDiceCELoss()(logits, torch.zeros(1, 1, 2, 2))["dice"].item() == 0


def test_dice_of_a_class_in_one_image_counts_once():
    logits, target = random(2, 1, 2, 2), torch.zeros(2, 1, 2, 2)
    target[0, 0, 0, 0] = 1
    p = logits[0].sigmoid()
    expected = 1 - 2 * p[0, 0, 0] / (p.sum() + 1)
    torch.testing.assert_close(MaskedDiceCELoss()(logits, target)["dice"], expected)


def contrastive(times: int) -> Tensor:
    logits, abnormal = random(2, 3, 4).repeat(times, 1, 1), torch.tensor([[True, False, False], [False, True, False]])
    return sum(TokenContrastiveLoss()(logits, random(3, 4, seed=1).softmax(-1), abnormal.repeat(times, 1)))  # type: ignore[return-value]


def match(times: int) -> Tensor:
    logits, teacher, prototypes = (random(1, 3, 4, seed=seed).repeat(times, 1, 1) for seed in range(3))
    return TokenMatchLoss()(logits, teacher, prototypes, ~ONE.repeat(times, 1))


def labels(times: int) -> Tensor:
    return MaskedBCELoss()(random(1, 2).repeat(times, 1), torch.tensor([[0.0, 1.0]]).repeat(times, 1))


def masks(times: int) -> Tensor:
    logits, target = random(2, 2, 2, 2), (random(2, 2, 2, 2, seed=1) > 0).float()
    return sum(MaskedDiceCELoss()(logits.repeat(times, 1, 1, 1), target.repeat(times, 1, 1, 1)).values())  # type: ignore[return-value]


def patches(times: int) -> Tensor:
    images, predicted = (random(1, 1, 4, 12, seed=seed).repeat(times, 1, 1, 1) for seed in range(2))
    return MaskedPatchLoss(4)(predicted, images, ~ONE.repeat(times, 1))


def restoration(times: int) -> Tensor:
    images, restored = (random(1, 1, 4, 12, seed=seed).repeat(times, 1, 1, 1) for seed in range(2))
    return RestorationLoss(3)(restored, images, ONE.repeat(times, 1), (1, 3))


def local(times: int) -> Tensor:
    tokens = [random(1, 3, 4, seed=seed).repeat(times, 1, 1) for seed in range(4)]
    one, other = (PEACProjections(tokens[0], tokens[0], *tokens[n : n + 2]) for n in (0, 2))
    return local_loss(one, other, torch.tensor([[2, 0, 1]]).repeat(times, 1), ~ONE.repeat(times, 1), normalise=True)


@pytest.mark.parametrize("value", [contrastive, match, labels, masks, patches, restoration, local])
def test_loss_of_four_processes_with_equal_images_is_that_of_all_images_in_one(value, monkeypatch):
    expected = value(4)
    for module in ("core.distributed", "losses.token_contrastive", "losses.restoration"):
        place = f"afire_monai.{module}."
        monkeypatch.setattr(place + "world_size", lambda: 4)
        monkeypatch.setattr(place + "sum_over_processes", lambda tensor: 4 * tensor)
        monkeypatch.setattr(place + "sum_over_processes_with_gradient", lambda tensor: 4 * tensor, raising=False)
        monkeypatch.setattr(place + "max_over_processes", lambda tensor: tensor, raising=False)
    torch.testing.assert_close(value(1), expected)
