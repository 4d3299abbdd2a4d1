"""The restorer: predict how each cell of a radiograph would look from its surroundings."""

from __future__ import annotations

from pathlib import Path
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from monai.inferers import Inferer
from torch import Tensor, nn

from afire_monai.core.errors import CheckpointError
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


def box_mean(images: Tensor, window: int) -> Tensor:
    """Average (B, C, H, W) over a square of ``window`` pixels a side (odd), at the border over the part inside."""
    half = window // 2
    # one direction after the other: 2 window operations a pixel in place of window²
    columns = F.avg_pool2d(images, (window, 1), stride=1, padding=(half, 0), count_include_pad=False)
    return F.avg_pool2d(columns, (1, window), stride=1, padding=(0, half), count_include_pad=False)


class AnomalyNetwork(nn.Module):
    """Restore a radiograph cell by cell from its surroundings, and show where it differs.

    The cells are masked in the two halves of a checkerboard, so that each is restored from its neighbours (this
    project's reading: the paper restores synthetic lesions, whose place is known; for a real picture no cell is known
    to be abnormal). As in training, masking replaces tokens before the decoder; the encoder has seen the whole picture,
    so that other tokens can tell of a masked cell. The map is a difference of grey levels and no probability.

    Args:
        encoder: the student's encoder.
        decoder: the restoration decoder.
    """

    def __init__(self, encoder: Encoder, decoder: AnomalyRestorationDecoder) -> None:
        super().__init__()
        self.encoder = encoder
        self.decoder = decoder

    def restore(self, images: Tensor, tokens: Tensor | None = None) -> Tensor:
        """Restore each cell from the others.

        Args:
            images: (B, C, H, W) in 0…1, at the size that the model was trained on.
            tokens: (B, 1 + L, D), the encoder's output if it is available.
        """
        p, (h, w) = self.decoder.patch_size, self.decoder.grid
        tokens = self.encoder(images) if tokens is None else tokens
        rows, columns = (torch.arange(side, device=images.device) for side in (h, w))
        board = (rows[:, None] + columns) % 2 == 1
        halves = (self.decoder(tokens, half.flatten().expand(images.shape[0], -1)) for half in (~board, board))
        even, odd = (self.encoder.denormalise(picture.float()).clamp(0, 1) for picture in halves)
        return torch.where(board.repeat_interleave(p, 0).repeat_interleave(p, 1), odd, even)

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
    path = weights_in(path, "restorer")
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
