"""Frozen features of the radiographs of a data list, from one encoder or several at once."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor
from tqdm import tqdm

from afire_monai.core.errors import AfireError
from afire_monai.core.quiet import hidden
from afire_monai.networks import Encoder
from afire_monai.predictions.reading import LeftOut, Radiograph, Size, ahead, batches, read_radiograph


@dataclass(frozen=True)
class Embedding:
    """An embedding of pictures as features."""

    size: Size  #: height and width in pixels of the pictures that it takes
    embed: Callable[[Tensor], Tensor]  #: images (B, 1, H, W) float32 in 0…1 to features (B, D) on the CPU

    @classmethod
    def of_encoder(cls, encoder: Encoder) -> Embedding:
        """Return the encoder's summary (B, summary_dim), computed on the encoder's device."""
        encoder.eval()

        def embed(images: Tensor) -> Tensor:
            images = images.to(encoder.mean.device).expand(-1, encoder.in_channels, -1, -1)
            return encoder.summary(images).float().cpu()

        return cls(encoder.image_size, embed)

    @classmethod
    def of_pixels(cls) -> Embedding:
        """Return the picture itself, reduced to 32 x 32 pixels: the floor for any encoder."""
        return cls((32, 32), lambda images: images.flatten(1))


@dataclass
class FeatureReader:
    """Reads images once and returns the features of each embedding; remembers images that cannot be used.

    Raises:
        AfireError: for an impossible batch size or number of workers.
    """

    embeddings: Mapping[str, Embedding]
    batch_size: int = 16
    workers: int = 2
    progress: bool = False
    options: Mapping[str, Any] = field(default_factory=dict)
    #: reasons by place, for each section with files that cannot be used
    left_out: dict[str, dict[int, str]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if self.batch_size < 1 or self.workers < 0:
            raise AfireError(
                f"--batch-size must be at least 1 and --workers at least 0, got {self.batch_size}, {self.workers}"
            )

    @torch.no_grad()
    def features(self, items: Sequence[Mapping[str, Any]], section: str) -> dict[str, dict[int, Tensor]]:
        """Return features (D,) by embedding and place in ``items``; of the same places for each."""
        found: dict[str, dict[int, Tensor]] = {name: {} for name in self.embeddings}
        sizes = {embedding.size for embedding in self.embeddings.values()}
        left_out: dict[int, str] = {}

        def read(index: int) -> Radiograph | LeftOut:
            return read_radiograph(index, str(items[index]["image"]), sizes, options=self.options)

        reading = ahead(read, range(len(items)), self.workers, 2 * (self.batch_size + self.workers))
        bar = tqdm(reading, f"{section} images", len(items), unit="image", disable=hidden(self.progress))
        for batch in batches(bar, self.batch_size, left_out):
            for name, embedding in self.embeddings.items():
                features = embedding.embed(torch.stack([radiograph.images[embedding.size] for radiograph in batch]))
                found[name].update({r.index: values for r, values in zip(batch, features, strict=True)})
        if left_out:
            self.left_out.setdefault(section, {}).update(left_out)
        return found
