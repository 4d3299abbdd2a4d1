"""The normal reference: what normal radiographs look like to a detector, so that others can be ranked among them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, get_args

import torch
import torch.nn as nn
from torch import Tensor

from afire_monai import __version__
from afire_monai.errors import CheckpointError
from afire_monai.export.encoder import load_module_files, save_module_files, weights_that_fit
from afire_monai.inference.anomaly import AnomalyDetector, AnomalyFeatures, enlarge_cells, heat_of
from afire_monai.inference.gaussian import CellGaussian

Pooling = Literal["mean", "top", "max"]


@dataclass
class Judgement:
    """What the reference says of a batch.

    Attributes:
        score: (B,) combined standard deviations above the normal mean, pooled over cells.
        percentile: (B,) in 0…100, how many of the normal radiographs score lower.
        heat: (B, Hc, Wc) in 0…1, `heat_of` the combined cells.
        cells: for each part (B, N) standard deviations above the normal mean of that cell; ``combined`` as well.
    """

    score: Tensor
    percentile: Tensor
    heat: Tensor
    cells: dict[str, Tensor]


class NormalReference(nn.Module):
    """Statistics of normal radiographs.

    Every part of a detector is standardised in each cell by the mean and the standard deviation of the normal
    radiographs there; the parts are averaged, standardised again in each cell, and pooled over cells into the image's
    score, which is ranked among those of the normal radiographs. For the part ``tokens`` the distance is Mahalanobis'
    to the mean token of the cell, with one covariance for all cells. Its distances and scores of normals are
    cross-fitted (each patient's from the statistics of others), or new normals would seem more unusual than they are.

    Args:
        parts: of the detector, in the order of ``mean`` and ``std``.
        pooling: ``mean`` of all cells, of the ``top`` 5 %, or ``max``.
        mean: (M, N) of the M parts.
        std: (M, N).
        combined_std: (N,) of the average of the standardised parts.
        scores: (n,) of the normal radiographs.
        gaussian: of the tokens; None without that part.
        facts: plain values, as saved.
    """

    mean: Tensor
    std: Tensor
    combined_std: Tensor
    scores: Tensor

    def __init__(
        self,
        parts: Sequence[str],
        pooling: str,
        mean: Tensor,
        std: Tensor,
        combined_std: Tensor,
        scores: Tensor,
        gaussian: CellGaussian | None,
        facts: Mapping[str, Any] | None = None,
    ) -> None:
        super().__init__()
        self.parts = tuple(parts)
        self.pooling = pooling
        self.facts = dict(facts or {})
        self.gaussian = gaussian
        for name, value in (("mean", mean), ("std", std), ("combined_std", combined_std)):
            self.register_buffer(name, value.float())
        self.register_buffer("scores", scores.float().sort().values)

    @property
    def count(self) -> int:
        """Number of normal radiographs."""
        return len(self.scores)

    @torch.no_grad()
    def judge(self, features: AnomalyFeatures, canvas: tuple[int, int], size: tuple[int, int]) -> Judgement:
        """Rank radiographs among the normal ones.

        Args:
            features: of the detector that the reference was made with.
            canvas: rows and columns (hc, wc) of its cells.
            size: height and width of the heatmap.
        """
        values = dict(features.cells)
        if self.gaussian is not None:
            values["tokens"] = self.gaussian.distance(features.tokens)
        raw = torch.stack([values[part] for part in self.parts], 1)
        standard = (raw - self.mean) / self.std
        combined = standard.mean(1) / self.combined_std
        score = pool(combined, self.pooling)
        # above the ties and half of them
        below = torch.searchsorted(self.scores, score) + torch.searchsorted(self.scores, score, right=True)
        cells = {part: standard[:, place] for place, part in enumerate(self.parts)}
        heat = heat_of(enlarge_cells(combined, canvas, size))
        return Judgement(score, 50 * below.double() / self.count, heat, {**cells, "combined": combined})

    def in_words(self, percentile: float) -> dict[str, Any]:
        """Say what a percentile means, as plain values for a record."""
        highest = percentile > 100 - 50 / self.count
        share = "all" if highest else f"{int(percentile)} % of"
        return {"normals": self.count, "meaning": f"more unusual than {share} {self.count} normal radiographs"}

    def save(self, folder: str | Path) -> Path:
        """Write ``reference.safetensors`` and its JSON into a model folder; give the first."""
        tensors = {"mean": self.mean, "std": self.std, "combined_std": self.combined_std, "scores": self.scores}
        if self.gaussian is not None:
            tensors |= {"token_mean": self.gaussian.mean, "token_whitening": self.gaussian.whitening}
        description = {
            "format": "afire-monai reference 1",
            "version": __version__,
            "parts": list(self.parts),
            "pooling": self.pooling,
            "count": self.count,
            "resolution_percent": round(100 / self.count, 3),
            **self.facts,
        }
        return save_module_files(tensors, description, Path(folder) / "reference.safetensors")

    @classmethod
    def load(cls, path: str | Path) -> NormalReference:
        """Read what :meth:`save` wrote.

        Args:
            path: the file, or the folder that holds it.

        Raises:
            CheckpointError: if a file is missing or damaged.
        """
        path = Path(path)
        path = path / "reference.safetensors" if path.is_dir() else path
        tensors, description = load_module_files(path)
        with weights_that_fit(path):
            gaussian = None
            if "tokens" in description["parts"]:
                gaussian = CellGaussian(tensors["token_mean"], tensors["token_whitening"])
            mean, std, combined_std, scores = (tensors[name] for name in ("mean", "std", "combined_std", "scores"))
            parts, pooling = description["parts"], description["pooling"]
            _refuse_wrong_shapes(parts, pooling, mean, std, combined_std, scores, gaussian)
            if not isinstance(description.get("model_sha256") or {}, dict):
                raise ValueError("'model_sha256' must give a hash for each kind of weights")
            return cls(parts, pooling, mean, std, combined_std, scores, gaussian, description).eval()

    def check(self, detector: AnomalyDetector, hashes: Mapping[str, str]) -> None:
        """See that a detector is the one that this reference was made with.

        Args:
            detector: to be judged by it.
            hashes: SHA-256 of its weights files by kind.

        Raises:
            CheckpointError: if it is another.
        """
        made_with = self.facts.get("model_sha256") or {}
        differing = [kind for kind, value in made_with.items() if hashes.get(kind) != value]
        missing = [part for part in self.parts if part not in detector.parts]
        if differing or missing or self.mean.shape[1] != detector.canvas.canvas_cells:
            what = f"other {', '.join(differing)} weights" if differing else "another detector"
            raise CheckpointError(f"reference.safetensors was made with {what}; make it again with `afire reference`")


def _refuse_wrong_shapes(
    parts: Sequence[str],
    pooling: str,
    mean: Tensor,
    std: Tensor,
    combined_std: Tensor,
    scores: Tensor,
    gaussian: CellGaussian | None,
) -> None:
    if pooling not in get_args(Pooling):
        raise ValueError(f"pooling is {pooling!r}")
    shapes = [tuple(t.shape) for t in (mean, std, combined_std, scores)]
    cells = shapes[0][-1] if shapes[0] else 0
    right = shapes[:3] == [(len(parts), cells), (len(parts), cells), (cells,)] and len(shapes[3]) == 1 and len(scores)
    if gaussian is not None and right:
        tokens, whitening = gaussian.mean.shape, gaussian.whitening.shape
        right = len(tokens) == 2 and tokens[0] == cells and tuple(whitening) == (tokens[1], tokens[1])
    if not right:
        raise ValueError(f"mean, std, combined_std and scores have shapes {shapes}")


def pool(cells: Tensor, pooling: str) -> Tensor:
    """Pool cells (B, N) into scores (B,): ``mean``, mean of the ``top`` 5 %, or ``max``."""
    if pooling == "mean":
        return cells.mean(1)
    return cells.topk(1 if pooling == "max" else max(1, round(0.05 * cells.shape[1])), 1).values.mean(1)
