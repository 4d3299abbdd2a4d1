"""Losses that leave out what is not known, against PyTorch, MONAI and arithmetic by hand."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F
from monai.losses import DiceLoss

from afire_monai.core.errors import AfireError
from afire_monai.losses import MaskedBCELoss, MaskedDiceCELoss

NAN = math.nan


def test_bce_with_all_labels_known_is_pytorchs():
    torch.manual_seed(0)
    logits, target = torch.randn(5, 3), torch.randint(0, 2, (5, 3)).float()
    weight = torch.tensor([1.0, 2.0, 5.0])
    expected = F.binary_cross_entropy_with_logits(logits, target, pos_weight=weight)
    torch.testing.assert_close(MaskedBCELoss(weight)(logits, target), expected)


def test_unknown_labels_change_neither_loss_nor_gradient():
    logits = torch.tensor([[0.0, 3.0], [1.0, -2.0]], requires_grad=True)
    loss = MaskedBCELoss()(logits, torch.tensor([[1.0, NAN], [NAN, 0.0]]))
    # log 2 for the logit 0, log(1 + e^-2) for the negative at -2, over two known labels
    assert loss.item() == pytest.approx((math.log(2) + math.log(1 + math.exp(-2))) / 2)
    loss.backward()
    assert logits.grad[0, 1] == 0
    assert logits.grad[1, 0] == 0
    assert logits.grad[0, 0] == pytest.approx(-0.25)


def test_nothing_known_is_zero_with_zero_gradient():
    logits = torch.randn(2, 2, requires_grad=True)
    loss = MaskedBCELoss()(logits, torch.full((2, 2), NAN))
    loss.backward()
    assert loss == 0
    assert not logits.grad.any()


def test_smoothing_moves_targets_by_half_of_it():
    logits = torch.tensor([[1.5]])
    expected = F.binary_cross_entropy_with_logits(logits, torch.tensor([[0.95]]))
    torch.testing.assert_close(MaskedBCELoss(smoothing=0.1)(logits, torch.ones(1, 1)), expected)


@pytest.mark.parametrize("wrong", [{"positive_weight": [1.0, 0.0]}, {"smoothing": 1.0}, {"smoothing": -0.1}])
def test_impossible_settings_are_refused(wrong):
    with pytest.raises(AfireError):
        MaskedBCELoss(**wrong)


def test_shapes_must_agree():
    with pytest.raises(AfireError, match=r"\(2, 3\).*\(2, 2\)"):
        MaskedBCELoss()(torch.zeros(2, 3), torch.zeros(2, 2))
    with pytest.raises(AfireError, match="one shape"):
        MaskedDiceCELoss()(torch.zeros(2, 1, 4, 4), torch.zeros(2, 1, 4, 5))


def test_dice_and_cross_entropy_of_full_masks_are_monais_and_pytorchs():
    torch.manual_seed(0)
    logits, target = torch.randn(4, 2, 8, 8), torch.randint(0, 2, (4, 2, 8, 8)).float()
    terms = MaskedDiceCELoss()(logits, target)
    expected = DiceLoss(sigmoid=True, smooth_nr=0, smooth_dr=1e-9)(logits, target)
    torch.testing.assert_close(terms["dice"], expected)
    torch.testing.assert_close(terms["cross_entropy"], F.binary_cross_entropy_with_logits(logits, target))


def test_empty_masks_count_in_the_cross_entropy_only():
    torch.manual_seed(0)
    logits = torch.randn(2, 1, 4, 4)
    target = torch.zeros(2, 1, 4, 4)
    target[0, 0, :2] = 1
    both, first = MaskedDiceCELoss()(logits, target), MaskedDiceCELoss()(logits[:1], target[:1])
    torch.testing.assert_close(both["dice"], first["dice"])
    assert both["cross_entropy"] != first["cross_entropy"]


def test_only_empty_masks_give_a_finite_loss_and_a_gradient():
    logits = torch.randn(2, 1, 4, 4, requires_grad=True)
    terms = MaskedDiceCELoss()(logits, torch.zeros(2, 1, 4, 4))
    sum(terms.values()).backward()
    assert terms["dice"] == 0
    assert (logits.grad > 0).all()  # each pixel is pushed down


def test_ignored_pixels_do_not_matter():
    torch.manual_seed(0)
    logits = torch.randn(1, 1, 4, 4)
    target = torch.randint(0, 2, (1, 1, 4, 4)).float()
    target[..., 3] = NAN
    changed = logits.clone()
    changed[..., 3] += 10
    one, other = MaskedDiceCELoss()(logits, target), MaskedDiceCELoss()(changed, target)
    torch.testing.assert_close(one["dice"], other["dice"])
    torch.testing.assert_close(one["cross_entropy"], other["cross_entropy"])
    cut = MaskedDiceCELoss()(logits[..., :3], target[..., :3])
    torch.testing.assert_close(one["dice"], cut["dice"])
    torch.testing.assert_close(one["cross_entropy"], cut["cross_entropy"])
