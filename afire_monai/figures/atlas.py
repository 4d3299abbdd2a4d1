"""What prototypes stand for: the patches that choose each of them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from afire_monai.figures.views import pixel_tokens
from afire_monai.losses.token_contrastive import similarities


@dataclass(frozen=True)
class Atlas:
    """The prototypes of a canvas of rows · columns cells.

    Attributes:
        strongest: (rows, columns) dimension with the largest share of each cell's assignment.
        mosaic: (H, W) mean patch of the tokens that chose each cell's prototype; NaN where none did.
        share: (rows, columns) share of the tokens of each cell that chose its own prototype; NaN where none was seen.
        found: share over all tokens.
    """

    strongest: NDArray[np.int64]
    mosaic: NDArray[np.float32]
    share: NDArray[np.float64]
    found: float


@torch.no_grad()
def build_atlas(detector: Any, canvas: Tensor, batch_size: int = 32) -> Atlas:
    """Let each token of each canvas, seen through the crops at its corners, choose the prototype that it is nearest to.

    Args:
        detector: an `AnomalyDetector` with token head and assignment (N, K).
        canvas: (n, C, Hc, Wc) in 0…1.
        batch_size: crops at a time.
    """
    shift, assignment = detector.canvas, detector.assignment.cpu()
    rows, columns = shift.canvas_grid
    count, p = rows * columns, shift.patch_size
    sums, chosen = torch.zeros(count, p * p, dtype=torch.float64), torch.zeros(count)
    own, seen = torch.zeros(count), torch.zeros(count)
    for offset in detector.offsets():
        for part in canvas.split(batch_size):
            offsets = torch.tensor([offset]).expand(len(part), 2)
            crops = shift.crop(part, offsets)
            logits = detector.head(detector.encoder(crops)[:, 1:])
            best = similarities(logits, assignment, detector.temperature)[0].argmax(-1).flatten()
            sums.index_add_(0, best, pixel_tokens(crops, p).flatten(0, 1).double())
            chosen.index_add_(0, best, torch.ones(len(best)))
            here = shift.cells(offsets).flatten()
            seen.index_add_(0, here, torch.ones(len(here)))
            own.index_add_(0, here, (best == here).float())
    mean = torch.where(chosen[:, None] > 0, sums / chosen[:, None].clamp_min(1), torch.nan)
    mosaic = mean.view(rows, columns, p, p).transpose(1, 2).reshape(rows * p, columns * p)
    share = torch.where(seen > 0, own / seen.clamp_min(1), torch.nan)
    return Atlas(
        assignment.argmax(1).view(rows, columns).numpy(),
        mosaic.float().numpy(),
        share.view(rows, columns).double().numpy(),
        float(own.sum() / seen.sum()),
    )
