"""Inference with a pre-trained model: restored picture, anomaly map and tokens of a radiograph."""

from __future__ import annotations

import csv
import logging
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
import torch.nn as nn
import torch.nn.functional as F
from monai.inferers import Inferer
from PIL import Image
from torch import Tensor

from afire_monai.errors import CheckpointError
from afire_monai.export.encoder import load_module_files
from afire_monai.networks import AnomalyRestorationDecoder, ViTEncoder

logger = logging.getLogger(__name__)


class AnomalyOutput(NamedTuple):
    """What the model says of a batch of radiographs."""

    #: (B, C, H, W) in 0…1, the picture as it would look without anomaly
    restored: Tensor
    #: (B, 1, H, W) in 0…1, absolute difference of picture and restoration, smoothed over a cell
    anomaly: Tensor
    #: (B, 1 + L, D), class token first
    tokens: Tensor


class AnomalyNetwork(nn.Module):
    """Restore a radiograph cell by cell from its surroundings, and show where it differs.

    The cells are masked in two complementary checkerboards, so that each is restored from its neighbours (this
    project's reading: the paper restores synthetic lesions, whose place is known; for a real picture no cell is known
    to be abnormal). The map is a difference of grey levels and no probability.

    Args:
        encoder: the student's encoder.
        decoder: the restoration decoder.
    """

    def __init__(self, encoder: ViTEncoder, decoder: AnomalyRestorationDecoder) -> None:
        super().__init__()
        self.encoder = encoder
        self.decoder = decoder

    def analyse(self, images: Tensor) -> AnomalyOutput:
        """Restore and compare.

        Args:
            images: (B, C, H, W) in 0…1, at the size that the model was trained on.
        """
        tokens = self.encoder(images)
        h, w = self.decoder.grid
        rows, columns = torch.arange(h, device=images.device)[:, None], torch.arange(w, device=images.device)[None]
        odd = ((rows + columns) % 2 == 1).flatten()
        pictures = [self.decoder(tokens, group.expand(len(images), -1)) for group in (odd, ~odd)]
        pixels = odd.view(1, 1, h, w).repeat_interleave(self.decoder.patch_size, 2)
        pixels = pixels.repeat_interleave(self.decoder.patch_size, 3)
        restored = self.encoder.denormalise(torch.where(pixels, pictures[0], pictures[1]).float()).clamp(0, 1)
        difference = (images - restored).abs().mean(1, keepdim=True)
        window = self.decoder.patch_size // 2 * 2 + 1
        anomaly = F.avg_pool2d(difference, window, stride=1, padding=window // 2, count_include_pad=False)
        return AnomalyOutput(restored, anomaly, tokens)

    def forward(self, images: Tensor) -> Tensor:
        """Give (B, C + 1, H, W): the restored picture, then the anomaly map, both in 0…1."""
        output = self.analyse(images)
        return torch.cat([output.restored, output.anomaly], dim=1)


def load_restorer(path: str | Path) -> AnomalyNetwork:
    """Load what a pre-training run exported as ``restorer.safetensors``, in evaluation mode.

    Args:
        path: the file, or the folder that holds it.

    Raises:
        CheckpointError: if a file is missing or damaged, or weights and description do not fit.
    """
    path = Path(path)
    path = path / "restorer.safetensors" if path.is_dir() else path
    tensors, description = load_module_files(path)
    if "decoder" not in description or "encoder" not in description:
        raise CheckpointError(f"{path}: its JSON lacks 'encoder' or 'decoder', so it does not describe a restorer")
    encoder = ViTEncoder(**description["encoder"], check_range=True)
    network = AnomalyNetwork(encoder, AnomalyRestorationDecoder(**description["decoder"]))
    try:
        network.load_state_dict(tensors)
    except RuntimeError as error:
        raise CheckpointError(f"{path}: the weights do not fit their description: {error}") from error
    return network.eval()


class AnomalyInferer(Inferer):
    """Give the model's whole answer, tokens included, where a plain call gives pictures only."""

    def __call__(self, inputs: Tensor, network: AnomalyNetwork, *args: Any, **kwargs: Any) -> dict[str, Tensor]:
        """Run the network.

        Args:
            inputs: (B, C, H, W) in 0…1.
            network: the model.
            args: unused.
            kwargs: unused.

        Returns:
            ``restored``, ``anomaly`` and ``tokens`` (see :class:`AnomalyOutput`).
        """
        return network.analyse(inputs)._asdict()


class ResultWriter:
    """Write restored pictures, anomaly maps, tokens and a summary, one set an image.

    Args:
        output_dir: gets ``NAME_restored.png``, ``NAME_anomaly.png`` (white is a difference of half the grey scale or
            more), ``NAME_tokens.npy`` (1 + L, D) and ``summary.csv``. NAME is the place in the list and, for PNG and
            JPEG files, the file's name; names of DICOM files can identify a patient and are left out.
        items: data-list items in the order of the loader.
    """

    def __init__(self, output_dir: str | Path, items: Sequence[Mapping[str, Any]]) -> None:
        self.folder = Path(output_dir)
        self.items = items
        self.rows: list[dict[str, Any]] = []

    def attach(self, engine: Any) -> None:
        """Register with an evaluator whose inferer is :class:`AnomalyInferer`."""
        from ignite.engine import Events

        engine.add_event_handler(Events.ITERATION_COMPLETED, self._write)
        engine.add_event_handler(Events.COMPLETED, self._summarise)

    def _name(self, index: int) -> str:
        file = Path(str(self.items[index]["image"]))
        picture = file.suffix.lower() in (".png", ".jpg", ".jpeg")
        return f"{index:05d}_{file.stem}" if picture else f"{index:05d}"

    def _write(self, engine: Any) -> None:
        self.folder.mkdir(parents=True, exist_ok=True)
        output = engine.state.output["pred"]
        for place, index in enumerate(engine.state.batch["index"].tolist()):
            name = self._name(index)
            anomaly = output["anomaly"][place, 0].float().cpu()
            self._picture(output["restored"][place].float().mean(0).cpu(), f"{name}_restored.png")
            self._picture(anomaly * 2, f"{name}_anomaly.png")
            np.save(self.folder / f"{name}_tokens.npy", output["tokens"][place].float().cpu().numpy())
            self.rows.append({"name": name, "anomaly_mean": anomaly.mean().item(), "anomaly_max": anomaly.max().item()})

    def _picture(self, values: Tensor, name: str) -> None:
        grey = (values.clamp(0, 1) * 255).round().numpy().astype(np.uint8)
        Image.fromarray(grey).save(self.folder / name)

    def _summarise(self) -> None:
        self.folder.mkdir(parents=True, exist_ok=True)
        part = self.folder / "summary.part"
        with part.open("w", newline="", encoding="utf-8") as file:
            writer = csv.DictWriter(file, ["name", "anomaly_mean", "anomaly_max"])
            writer.writeheader()
            writer.writerows(self.rows)
        os.replace(part, self.folder / "summary.csv")
        logger.info("%d images: pictures, tokens and summary.csv written to %s", len(self.rows), self.folder.name)
