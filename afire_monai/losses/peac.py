"""The four losses of PEAC: patch order, patch appearance, global and local agreement of two views."""

from __future__ import annotations

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from afire_monai.core.distributed import share_of_mean


class PEACProjections(NamedTuple):
    """Projections of both views by one network."""

    #: (B, G) of the mean token of view 1
    global_first: Tensor
    #: (B, G) of the mean token of view 2
    global_second: Tensor
    #: (B, L, E) of each token of view 1
    local_first: Tensor
    #: (B, L, E) of each token of view 2
    local_second: Tensor


def order_loss(logits: Tensor, order: Tensor) -> Tensor:
    """Return the cross-entropy of which patch each place shows, a mean over all places of all images.

    Args:
        logits: (B, L, L), the last dimension over patches.
        order: (B, L) int64, the patch at each place.
    """
    return F.cross_entropy(logits.float().flatten(0, 1), order.flatten())


def global_loss(student: PEACProjections, teacher: PEACProjections) -> Tensor:
    """Return the mean squared difference of L2-normalised global projections, both directions averaged.

    Student view 1 is compared with teacher view 2 and the reverse. The mean runs over dimensions as well, so the value
    is a squared distance (0…4) divided by G: hence the weight of 1e5 for G = 8192 in the paper.
    """
    pairs = ((student.global_first, teacher.global_second), (student.global_second, teacher.global_first))
    one, other = (F.mse_loss(F.normalize(s.float(), dim=-1), F.normalize(t.float(), dim=-1)) for s, t in pairs)
    return (one + other) / 2


def local_loss(
    student: PEACProjections, teacher: PEACProjections, match: Tensor, valid: Tensor, normalise: bool
) -> Tensor:
    """Return the mean squared difference of local projections of matched cells, both directions averaged.

    Args:
        student: projections with gradient.
        teacher: projections without gradient.
        match: (B, L) int64, the cell of view 2 that matches each cell of view 1.
        valid: (B, L) bool, pairs that count.
        normalise: compare L2-normalised projections.

    Returns:
        Scalar, a mean over the pairs of all processes and over dimensions; 0, with a gradient of 0, without any pair.
        Averaged over processes it is the loss of the global batch.
    """

    def matching(second: Tensor) -> Tensor:
        return second.gather(1, match[..., None].expand(-1, -1, second.shape[2]))

    pairs = (
        (student.local_first, matching(teacher.local_second)),
        (matching(student.local_second), teacher.local_first),
    )
    total = torch.zeros((), device=match.device)
    for s, t in pairs:
        s, t = s.float(), t.float()
        if normalise:
            s, t = F.normalize(s, dim=-1), F.normalize(t, dim=-1)
        # pairs that do not count are filled with 0, not multiplied by it: an infinite value times 0 is not 0
        total = total + (s - t).square().mean(-1).masked_fill(~valid, 0).sum()
    return share_of_mean(total / 2, valid.sum())
