"""The normal reference: what normal radiographs look like to a detector, so that others can be ranked among them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, get_args

import torch
import torch.nn as nn
from torch import Tensor

from afire_monai import __version__
from afire_monai.core.errors import CheckpointError
from afire_monai.models.encoder import load_module_files, save_module_files, weights_that_fit
from afire_monai.predictions.anomaly.combination import Combination, Combined, Pooling, pool
from afire_monai.predictions.anomaly.detector import AnomalyDetector, AnomalyFeatures, enlarge_cells, heat_of
from afire_monai.predictions.anomaly.gaussian import CellGaussian
from afire_monai.predictions.anomaly.measures import Fitted, measures_of
from afire_monai.predictions.anomaly.neighbours import CellNeighbours

FORMAT = "afire-monai reference 2"


@dataclass
class Judgement:
    """What the reference says of a batch.

    Attributes:
        score: (B,) combined standard deviations above the normal mean.
        percentile: (B,) in 0…100, how many of the normal radiographs score lower.
        heat: (B, Hc, Wc) in 0…1, `heat_of` the combined cells; None if no part judges cells.
        cells: for each measure of cells (B, N) standard deviations above the normal mean of that cell; ``combined`` as
            well, if there is one.
        parts: for each part (B,) its share of the score by itself: standard deviations above the normal mean, pooled
            over cells and averaged over layers.
    """

    score: Tensor
    percentile: Tensor
    heat: Tensor | None
    cells: dict[str, Tensor]
    parts: dict[str, Tensor]


class NormalReference(nn.Module):
    """Statistics of normal radiographs.

    Every part of a detector is standardised by the normal radiographs, in each cell where it judges cells, and the
    parts are averaged (see `Combination`). The image's score is ranked among
    those of the normal radiographs. Where tokens are compared with those of normal radiographs, the distances and
    scores of these are cross-fitted (each patient's from the statistics of others), or new normals would seem more
    unusual than they are.

    Args:
        parts: of the detector.
        layers: blocks whose tokens are judged besides the encoder's output.
        canvas: rows and columns of the detector's cells.
        models: what was fitted to normal radiographs, by the measures' names.
        combination: of the measures.
        scores: (n,) of the normal radiographs.
        facts: plain values, as saved.
    """

    scores: Tensor

    def __init__(
        self,
        parts: Sequence[str],
        layers: Sequence[int],
        canvas: tuple[int, int],
        models: Mapping[str, Fitted],
        combination: Combination,
        scores: Tensor,
        facts: Mapping[str, Any] | None = None,
    ) -> None:
        super().__init__()
        self.parts = tuple(parts)
        self.layers = tuple(layers)
        self.canvas = canvas
        self.facts = dict(facts or {})
        self.of_cells, self.of_images = measures_of(parts, layers)
        self.models = nn.ModuleDict(dict(models))
        self.combination = combination
        self.register_buffer("scores", scores.float().sort().values)

    @property
    def count(self) -> int:
        """Number of normal radiographs."""
        return len(self.scores)

    @property
    def has_map(self) -> bool:
        """Whether a part judges cells, so that there is a heatmap."""
        return bool(self.of_cells)

    @torch.no_grad()
    def judge(self, features: AnomalyFeatures, size: tuple[int, int]) -> Judgement:
        """Rank radiographs among the normal ones.

        Args:
            features: of the detector that the reference was made with.
            size: height and width of the heatmap.
        """
        models: Any = self.models
        cells, images = ([m.values(features, models) for m in some] for some in (self.of_cells, self.of_images))
        none = features.tokens.new_zeros(features.tokens.shape[0], 0)
        found = self.combination.combine(
            torch.stack(cells, 1) if cells else none[:, :, None], torch.cat(images, 1) if images else none
        )
        # above the ties and half of them; by comparison, as ONNX has no sorted search
        below = (self.scores < found.score[:, None]).sum(1) + (self.scores <= found.score[:, None]).sum(1)
        standard = {m.name: found.cells[:, place] for place, m in enumerate(self.of_cells)}
        heat = None
        if found.heat is not None:
            standard["combined"] = found.heat
            heat = heat_of(enlarge_cells(found.heat, self.canvas, size))
        return Judgement(found.score, 50 * below.double() / self.count, heat, standard, self._by_part(found))

    def _by_part(self, found: Combined) -> dict[str, Tensor]:
        """Return for each part (B,) the mean over layers of its pooled standardised values."""
        # by index: an exported program cannot unbind what has no columns
        pooled = [pool(found.cells[:, place], self.combination.pooling) for place in range(len(self.of_cells))]
        values = torch.stack([*pooled, *(found.images[:, place] for place in range(len(self.of_images)))], 1)
        measures = [*self.of_cells, *self.of_images]
        weights = values.new_tensor([[m.weight * (m.part == part) for m in measures] for part in self.parts])
        return dict(zip(self.parts, weights @ values.T, strict=True))

    def in_words(self, percentile: float) -> dict[str, Any]:
        """Return what a percentile means, as plain values for a record."""
        highest = percentile > 100 - 50 / self.count
        share = "all" if highest else f"{int(percentile)} % of"
        return {"normals": self.count, "meaning": f"more unusual than {share} {self.count} normal radiographs"}

    def save(self, folder: str | Path) -> Path:
        """Write ``reference.safetensors`` and its JSON into a model folder; return the first."""
        neighbours = [m for m in self.models.values() if isinstance(m, CellNeighbours)]
        tensors = {k: v.half() if k.endswith(".bank") else v for k, v in self.state_dict().items()}
        description = {
            "format": FORMAT,
            "version": __version__,
            "parts": list(self.parts),
            "layers": list(self.layers),
            "pooling": self.combination.pooling,
            "canvas": list(self.canvas),
            "neighbours": {"nearest": neighbours[0].nearest, "window": neighbours[0].window} if neighbours else None,
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
            CheckpointError: if a file is missing, damaged, or of an earlier version.
        """
        path = Path(path)
        path = path / "reference.safetensors" if path.is_dir() else path
        tensors, description = load_module_files(path)
        if description.get("format") != FORMAT:
            raise CheckpointError(
                f"{path}: its format is {description.get('format')!r}, {FORMAT!r} is expected; make it again with "
                "`afire reference`"
            )
        with weights_that_fit(path):
            return _built(tensors, description).eval()

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
        if differing or missing or self.canvas != detector.canvas.canvas_grid:
            what = f"other {', '.join(differing)} weights" if differing else "another detector"
            raise CheckpointError(f"reference.safetensors was made with {what}; make it again with `afire reference`")


def _built(tensors: Mapping[str, Tensor], description: Mapping[str, Any]) -> NormalReference:
    """Build a reference from its files.

    Raises:
        ValueError: if values are missing or do not fit.
    """
    parts, layers, pooling = (description[key] for key in ("parts", "layers", "pooling"))
    canvas = (int(description["canvas"][0]), int(description["canvas"][1]))
    if pooling not in get_args(Pooling):
        raise ValueError(f"pooling is {pooling!r}")
    if not isinstance(description.get("model_sha256") or {}, dict):
        raise ValueError("'model_sha256' must give a hash for each kind of weights")
    measures = measures_of(parts, layers)
    models: dict[str, Fitted] = {}
    for measure in (m for some in measures for m in some if m.fitted):
        name = f"models.{measure.name}"
        if measure.part == "neighbours":
            models[measure.name] = CellNeighbours(tensors[f"{name}.bank"], canvas, **description["neighbours"])
        else:
            cells = 1 if measure.of_image else canvas[0] * canvas[1]
            models[measure.name] = CellGaussian(tensors[f"{name}.mean"], tensors[f"{name}.whitening"], cells)
    values = {key.partition(".")[2]: value for key, value in tensors.items() if key.startswith("combination.")}
    if measures[0] and values["mean"].shape[1:] != (canvas[0] * canvas[1],):
        raise ValueError(f"means of shape {tuple(values['mean'].shape)} do not fit a canvas of {canvas} cells")
    of_cells, of_images = ([m.weight for m in some] for some in measures)
    combination = Combination(of_cells, of_images, pooling, **values)
    if tensors["scores"].ndim != 1 or not len(tensors["scores"]):
        raise ValueError(f"scores are of shape {tuple(tensors['scores'].shape)}")
    return NormalReference(parts, layers, canvas, models, combination, tensors["scores"], description)
