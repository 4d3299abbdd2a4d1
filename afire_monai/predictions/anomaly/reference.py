"""The normal reference: how normal radiographs look to a detector, so that others can be ranked among them."""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeAlias, get_args

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from afire_monai import __version__
from afire_monai.core.errors import AfireError, CheckpointError
from afire_monai.models.bounds import refuse_sizes
from afire_monai.models.folder import load_module_files, save_module_files, weights_hashes, weights_in, weights_that_fit
from afire_monai.predictions.anomaly.combination import Combination, Combined, Pooling, pool
from afire_monai.predictions.anomaly.detector import (
    HEAD_PARTS,
    AnomalyDetector,
    AnomalyFeatures,
    enlarge_cells,
    heat_of,
    load_detector,
    smooth_cells,
)
from afire_monai.predictions.anomaly.normals import CellGaussian, CellNeighbours

IMAGE_PARTS = ("density", "class_density", "class_lesion")
"""Parts that give one number for the whole image, and no map."""
LAYER_PARTS = ("tokens", "neighbours", "density")
"""Parts that judge each layer separately."""
SCALE_PARTS = ("tokens", "neighbours")
"""Parts that judge each scale separately."""

Fitted: TypeAlias = CellGaussian | CellNeighbours


@dataclass(frozen=True)
class Measure:
    """One way of measuring."""

    part: str  #: part of the detector
    #: block of the encoder whose tokens are judged; None for the encoder's output, or if tokens play no role
    block: int | None = None
    #: side in cells of the square over which tokens are averaged before they are compared; odd
    scale: int = 1
    #: weight of its standardised value among the measures of its kind; those of a part add up to 1; 0 if only drawn
    weight: float = 1.0

    @property
    def name(self) -> str:
        """The part, with ``@block`` for an earlier block and ``x3`` for a scale of 3 cells."""
        block = "" if self.block is None else f"@{self.block}"
        return f"{self.part}{block}" + (f"x{self.scale}" if self.scale > 1 else "")

    @property
    def of_image(self) -> bool:
        """Whether it is one number for the whole image."""
        return self.part in IMAGE_PARTS

    @property
    def fitted(self) -> bool:
        """Whether it compares vectors with those of normal radiographs."""
        return self.part in (*LAYER_PARTS, "class_density", "places")

    def vectors(self, features: AnomalyFeatures) -> Tensor:
        """Return the compared vectors, (B, N, D), or (B, 1, D) for an image; AfireError if the features lack them."""
        taken = {"class_density": features.class_token, "places": features.middle}
        tokens = taken.get(self.part, features.tokens) if self.block is None else features.layers.get(self.block)
        if tokens is None:
            raise AfireError(
                f"the features do not contain what {self.name} compares; request this part and layer from the detector"
            )
        if self.scale > 1:
            tokens = _averaged(tokens, features.grid, self.scale)
        if self.part == "density":
            return tokens.mean(1, keepdim=True)
        return tokens[:, None] if self.part == "class_density" else tokens

    def values(self, features: AnomalyFeatures, models: Mapping[str, Fitted]) -> Tensor:
        """Return the values before they are standardised, (B, N), or (B, 1) for an image."""
        if not self.fitted:
            return features.cells[self.part]
        return models[self.name].distance(self.vectors(features))


def _averaged(tokens: Tensor, grid: tuple[int, int], scale: int) -> Tensor:
    """Average tokens (B, N, D) over squares of cells, at the border over those that there are."""
    cells = tokens.transpose(1, 2).unflatten(2, grid)
    return F.avg_pool2d(cells, scale, 1, scale // 2, count_include_pad=False).flatten(2).transpose(1, 2)


def measures_of(
    parts: Sequence[str], layers: Sequence[int], scales: Sequence[int] = (1,)
) -> tuple[list[Measure], list[Measure]]:
    """List the measures of cells and of whole images; AfireError for scales that are not odd."""
    if not scales or any(scale < 1 or scale % 2 == 0 for scale in scales):
        raise AfireError(f"scales are odd numbers of cells, such as 1,3; got {list(scales)}")
    found: list[Measure] = []
    for part in parts:
        blocks = [None, *layers] if part in LAYER_PARTS else [None]
        variants = [*itertools.product(blocks, scales if part in SCALE_PARTS else [1])]
        found += [Measure(part, *variant, weight=float(part != "places") / len(variants)) for variant in variants]
    return [m for m in found if not m.of_image], [m for m in found if m.of_image]


def percentiles(scores: Tensor, normals: Tensor) -> Tensor:
    """Return the percentile (m,) of scores (m,) among those of normals (n,); of ties half count as below."""
    # by comparison, as ONNX has no sorted search
    below = (normals < scores[:, None]).sum(1) + (normals <= scores[:, None]).sum(1)
    return 50 * below.double() / len(normals)


FORMAT = "afire-monai reference 2"


@dataclass
class Judgement:
    """Results of the reference for a batch."""

    score: Tensor  #: (B,) combined standard deviations above the normal mean
    percentile: Tensor  #: (B,) in 0…100, share of the normal radiographs that score lower
    heat: Tensor | None  #: (B, Hc, Wc) in 0…1, `heat_of` the combined cells; None if no part judges cells
    #: for each measure of cells (B, N) standard deviations above the normal mean of that cell; ``combined`` as well, if
    #: there is one
    cells: dict[str, Tensor]
    #: for each part (B,) its share of the score by itself: standard deviations above the normal mean, pooled over cells
    #: and averaged over layers
    parts: dict[str, Tensor]


class NormalReference(nn.Module):
    """Statistics of normal radiographs.

    Every part of a detector is standardised by the normal radiographs, in each cell if it judges cells, and the parts
    are averaged (see `Combination`). The image's score is ranked among those of the normal radiographs. If tokens are
    compared with those of normal radiographs, the distances and scores of the normal radiographs are cross-fitted (each
    patient's from the statistics of others). Otherwise, new normals would seem more unusual than they are.

    Args:
        parts: parts of the detector.
        layers: blocks whose tokens are judged besides the encoder's output.
        canvas: rows and columns of the detector's cells.
        models: models fitted to normal radiographs, by the measures' names.
        combination: combination of the measures.
        scores: (n,) scores of the normal radiographs.
        facts: plain values, as saved.
        scales: sides in cells of the squares over which tokens are averaged before they are compared.
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
        scales: Sequence[int] = (1,),
    ) -> None:
        super().__init__()
        self.parts = tuple(parts)
        self.layers = tuple(layers)
        self.scales = tuple(scales)
        self.canvas = canvas
        self.facts = dict(facts or {})
        self.of_cells, self.of_images = measures_of(parts, layers, scales)
        self.models = nn.ModuleDict(dict(models))
        self.combination = combination
        self.register_buffer("scores", scores.float().sort().values)
        #: scores of the normals in the order in which they were given, for code that builds a reference
        self.crossed = scores.float()

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
        """Rank radiographs among the normal ones."""
        models: Any = self.models
        cells, images = ([m.values(features, models) for m in some] for some in (self.of_cells, self.of_images))
        none = features.tokens.new_zeros(features.tokens.shape[0], 0)
        found = self.combination.combine(
            torch.stack(cells, 1) if cells else none[:, :, None], torch.cat(images, 1) if images else none
        )
        standard = {m.name: found.cells[:, place] for place, m in enumerate(self.of_cells)}
        heat = None
        if found.heat is not None:
            standard["combined"] = found.heat
        if found.drawn is not None:
            drawn = found.drawn if self.combination.only_drawn is None else smooth_cells(found.drawn, self.canvas)
            heat = heat_of(enlarge_cells(drawn, self.canvas, size))
        return Judgement(found.score, percentiles(found.score, self.scores), heat, standard, self._by_part(found))

    def _by_part(self, found: Combined) -> dict[str, Tensor]:
        """Return for each part (B,) the mean over layers of its pooled standardised values."""
        # by index: an exported program cannot unbind a tensor without columns
        pooled = [pool(found.cells[:, place], self.combination.pooling) for place in range(len(self.of_cells))]
        values = torch.stack([*pooled, *(found.images[:, place] for place in range(len(self.of_images)))], 1)
        measures = [*self.of_cells, *self.of_images]
        weights = values.new_tensor([[m.weight * (m.part == part) for m in measures] for part in self.parts])
        shares = dict(zip(self.parts, weights @ values.T, strict=True))
        return {part: share for part, share in shares.items() if part != "places"}

    def in_words(self, percentile: float) -> dict[str, Any]:
        """Return the meaning of a percentile, as plain values for a record."""
        highest = percentile > 100 - 50 / self.count
        share = "all" if highest else f"{int(percentile)} % of"
        words = {"normals": self.count, "meaning": f"more unusual than {share} {self.count} normal radiographs"}
        corrected = self.facts.get("corrections")
        if isinstance(corrected, dict) and "alarm_percentile" in corrected:
            words |= {"alarm_percentile": corrected["alarm_percentile"]}
            words |= {"alarm": bool(percentile >= corrected["alarm_percentile"])}
        return words

    def save(self, folder: str | Path) -> Path:
        """Write ``reference.safetensors`` and its JSON into a model folder; return the first."""
        neighbours = [m for m in self.models.values() if isinstance(m, CellNeighbours)]
        tensors = {k: v.half() if k.endswith(".bank") else v for k, v in self.state_dict().items()}
        description = {
            "format": FORMAT,
            "version": __version__,
            "parts": list(self.parts),
            "layers": list(self.layers),
            "scales": list(self.scales),
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
        """Read the files of :meth:`save`.

        Args:
            path: the file, or the folder that holds it.

        Raises:
            CheckpointError: if a file is missing, damaged, or of an earlier version.
        """
        path = weights_in(path, "reference")
        tensors, description = load_module_files(path)
        if description.get("format") != FORMAT:
            raise CheckpointError(
                f"{path}: its format is {description.get('format')!r}, {FORMAT!r} is expected; make it again with "
                "`afire reference`"
            )
        with weights_that_fit(path):
            refuse_sizes({key: description.get(key) for key in ("canvas", "neighbours")}, tensors, path)
            return _built(tensors, description).eval()

    def check(self, detector: AnomalyDetector, hashes: Mapping[str, str]) -> None:
        """See that a detector is the one that this reference was made with; CheckpointError if it is another."""
        made_with = self.facts.get("model_sha256") or {}
        differing = [kind for kind, value in made_with.items() if hashes.get(kind) != value]
        missing = [part for part in self.parts if part not in detector.parts]
        if differing or missing or self.canvas != detector.canvas.canvas_grid:
            what = f"other {', '.join(differing)} weights" if differing else "another detector"
            raise CheckpointError(f"reference.safetensors was made with {what}; make it again with `afire reference`")


def load_judge(files: dict[str, Path]) -> tuple[AnomalyDetector, NormalReference | None]:
    """Load a detector and, if there is one, the reference that was made with it.

    Args:
        files: weights files by kind; the heads (``detector``) are taken out if the reference does not need them.

    Raises:
        CheckpointError: if a file is missing or damaged, or the reference was made with another detector.
    """
    if "reference" not in files:
        return load_detector(files), None
    reference = NormalReference.load(files["reference"])
    if not HEAD_PARTS & set(reference.parts):
        files.pop("detector", None)
    detector = load_detector(files)
    reference.check(detector, weights_hashes(files))
    return detector, reference


def _built(tensors: Mapping[str, Tensor], description: Mapping[str, Any]) -> NormalReference:
    """Build a reference from its files."""
    parts, layers, pooling = (description[key] for key in ("parts", "layers", "pooling"))
    scales = description.get("scales", [1])
    canvas = (int(description["canvas"][0]), int(description["canvas"][1]))
    if pooling not in get_args(Pooling):
        raise ValueError(f"pooling is {pooling!r}")
    if not isinstance(description.get("model_sha256") or {}, dict):
        raise ValueError("'model_sha256' must give a hash for each kind of weights")
    if not isinstance(scales, list) or not all(isinstance(scale, int) and scale % 2 == 1 for scale in scales):
        raise ValueError(f"scales is {scales!r}")
    measures = measures_of(parts, layers, scales)
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
    return NormalReference(parts, layers, canvas, models, combination, tensors["scores"], description, scales)
