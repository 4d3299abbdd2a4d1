"""The restorer: predict how each cell of a radiograph would look from its surroundings."""

from __future__ import annotations

from pathlib import Path
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from monai.inferers import Inferer
from torch import Tensor, nn

from afire_monai.core.errors import AfireError, CheckpointError
from afire_monai.models.bounds import refuse_sizes
from afire_monai.models.folder import load_module_files, weights_in, weights_that_fit
from afire_monai.networks import AnomalyRestorationDecoder, Encoder, encoder_from_config
from afire_monai.networks.build import refuse_kinds


class AnomalyOutput(NamedTuple):
    """The model's results for a batch of radiographs."""

    #: (B, C, H, W) in 0…1, the picture as it would look without anomaly
    restored: Tensor
    #: (B, 1, H, W) in 0…1, absolute difference of picture and restoration, smoothed over a cell
    anomaly: Tensor
    #: (B, 1 + L, D), class token first
    tokens: Tensor


def cell_groups(grid: tuple[int, int], groups: int, device: torch.device | None = None) -> Tensor:
    """Divide cells into interleaved groups: two make a checkerboard, n² repeat an n x n pattern.

    Args:
        grid: rows and columns (h, w) of cells.
        groups: 2, 4 or 9.
        device: device of the result.

    Returns:
        (h·w,) int64, the group of each cell, row by row. No cell has a neighbour beside it in its own group.

    Raises:
        AfireError: for another number of groups.
    """
    rows, columns = torch.arange(grid[0], device=device)[:, None], torch.arange(grid[1], device=device)[None]
    if groups == 2:
        return ((rows + columns) % 2).flatten()
    if groups not in (4, 9):
        raise AfireError(f"cells can be masked in 2, 4 or 9 groups, got {groups}")
    side = 2 if groups == 4 else 3
    return (rows % side * side + columns % side).flatten()


def hide_cells(images: Tensor, hidden: Tensor, patch_size: int) -> Tensor:
    """Replace cells by the mean of the visible surroundings of each pixel, so that nothing of them is left.

    Args:
        images: (B, C, H, W).
        hidden: (h, w) bool.
        patch_size: side P of a cell in pixels; the mean is taken over 2 P + 1 pixels each way.
    """
    pixels = _pixels(hidden, patch_size)
    seen = (~pixels).to(images.dtype)
    window = 2 * patch_size + 1
    total, weight = box_mean(images * seen, window), box_mean(seen, window)
    return torch.where(pixels, total / weight.clamp_min(1e-6), images)


def box_mean(images: Tensor, window: int) -> Tensor:
    """Average (B, C, H, W) over a square of ``window`` pixels a side (odd), at the border over the part inside."""
    half = window // 2
    # one direction after the other: 2 window operations a pixel in place of window²
    columns = F.avg_pool2d(images, (window, 1), stride=1, padding=(half, 0), count_include_pad=False)
    return F.avg_pool2d(columns, (1, window), stride=1, padding=(0, half), count_include_pad=False)


def _pixels(cells: Tensor, patch_size: int) -> Tensor:
    """Turn cells (h, w) into pixels (1, 1, H, W)."""
    return cells[None, None].repeat_interleave(patch_size, 2).repeat_interleave(patch_size, 3)


class AnomalyNetwork(nn.Module):
    """Restore a radiograph cell by cell from its surroundings, and show where it differs.

    The cells are masked in complementary groups, so that each is restored from cells of other groups (this project's
    reading: the paper restores synthetic lesions, whose place is known; for a real picture no cell is known to be
    abnormal). As in training, masking replaces tokens before the decoder; the encoder has seen the whole picture, so
    that other tokens can tell of a masked cell. ``hide_input`` hides the cells from the encoder as well, at the price
    of one encoder pass a group and of pictures that it was not trained on. The map is a difference of grey levels and
    no probability.

    Args:
        encoder: the student's encoder.
        decoder: the restoration decoder.
        groups: number of groups, 2, 4 or 9.
        hide_input: hide masked cells from the encoder.
    """

    def __init__(
        self, encoder: Encoder, decoder: AnomalyRestorationDecoder, groups: int = 2, hide_input: bool = False
    ) -> None:
        super().__init__()
        self.encoder = encoder
        self.decoder = decoder
        cell_groups((1, 1), groups)
        self.groups = groups
        self.hide_input = hide_input

    def restore(self, images: Tensor, tokens: Tensor | None = None) -> Tensor:
        """Restore each cell from the others.

        Args:
            images: (B, C, H, W) in 0…1, at the size that the model was trained on.
            tokens: (B, 1 + L, D), the encoder's output if it is available.
        """
        p, (h, w) = self.decoder.patch_size, self.decoder.grid
        group = cell_groups((h, w), self.groups, images.device)
        if tokens is None and not self.hide_input:
            tokens = self.encoder(images)
        restored = torch.zeros_like(images)
        for number in range(self.groups):
            masked = group == number
            seen = tokens
            if self.hide_input or seen is None:
                seen = self.encoder(hide_cells(images, masked.view(h, w), p))
            picture = self.encoder.denormalise(self.decoder(seen, masked.expand(images.shape[0], -1)).float())
            restored = torch.where(_pixels(masked.view(h, w), p), picture.clamp(0, 1), restored)
        return restored

    def analyse(self, images: Tensor) -> AnomalyOutput:
        """Restore and compare."""
        tokens = self.encoder(images)
        restored = self.restore(images, tokens)
        difference = (images - restored).abs().mean(1, keepdim=True)
        anomaly = box_mean(difference, self.decoder.patch_size // 2 * 2 + 1)
        return AnomalyOutput(restored, anomaly, tokens)

    def forward(self, images: Tensor) -> Tensor:
        """Return (B, C + 1, H, W): the restored picture, then the anomaly map, both in 0…1."""
        output = self.analyse(images)
        return torch.cat([output.restored, output.anomaly], dim=1)


def load_restorer(path: str | Path) -> AnomalyNetwork:
    """Load ``restorer.safetensors`` of a pre-training run, in evaluation mode.

    Args:
        path: the file, or the folder that holds it.

    Raises:
        CheckpointError: if a file is missing or damaged, or weights and description do not fit.
    """
    path = Path(path)
    path = weights_in(path, "restorer") if path.is_dir() else path
    tensors, description = load_module_files(path)
    if "decoder" not in description or "encoder" not in description:
        raise CheckpointError(f"{path}: its JSON lacks 'encoder' or 'decoder', so it does not describe a restorer")
    with weights_that_fit(path):
        refuse_sizes({part: description[part] for part in ("encoder", "decoder")}, tensors, path)
        encoder = encoder_from_config(description["encoder"], check_range=True)
        refuse_kinds(description["decoder"], AnomalyRestorationDecoder)
        network = AnomalyNetwork(encoder, AnomalyRestorationDecoder(**description["decoder"]))
        network.load_state_dict(tensors)
    return network.eval()


class AnomalyInferer(Inferer):
    """Return the model's whole answer, tokens included, where a plain call gives pictures only."""

    def __call__(self, inputs: Tensor, network: AnomalyNetwork, *args: Any, **kwargs: Any) -> dict[str, Tensor]:
        """Run the network; return ``restored``, ``anomaly`` and ``tokens`` (see :class:`AnomalyOutput`).

        Args:
            inputs: (B, C, H, W) in 0…1.
            network: the model.
            args: unused.
            kwargs: unused.
        """
        return network.analyse(inputs)._asdict()
