"""Anomaly detection without labels: find places that are unlike the same places in normal radiographs."""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from monai.networks.layers import gaussian_1d, separable_filtering
from torch import Tensor, nn

from afire_monai.core.errors import AfireError, CheckpointError
from afire_monai.losses.token_contrastive import similarities
from afire_monai.methods.grid_shift import GridShift
from afire_monai.models.bounds import refuse_sizes
from afire_monai.models.folder import load_encoder, load_module_files, model_files, weights_that_fit
from afire_monai.models.restorer import AnomalyNetwork, box_mean, load_restorer
from afire_monai.networks import Encoder, TokenHead

CELL_PARTS = ("tokens", "neighbours", "residual", "difference", "prototypes", "lesions")
PARTS = (*CELL_PARTS, "density", "class_density", "class_lesion", "places")
"""Parts by which a radiograph can be judged; see `AnomalyDetector`."""
HEAD_PARTS = {"prototypes", "lesions", "class_lesion"}
"""Parts that need ``detector.safetensors``."""
MOST_SHIFT = 64
"""Cells by which a picture may be larger than the grid; no tensor holds this number if there are no prototypes."""
DEFAULT_PARTS = ("tokens", "density", "class_density")
"""Parts that are used unless others are named; every encoder has them (docs/predict.md has figures)."""


@dataclass
class AnomalyFeatures:
    """Features of a batch, by cells of the canvas (N cells, row by row)."""

    tokens: Tensor  #: (B, N, D) of the encoder
    grid: tuple[int, int]  #: rows and columns of the cells
    #: for ``residual``, ``difference``, ``prototypes`` and ``lesions`` a number a cell, (B, N); ``class_lesion`` (B, 1)
    cells: dict[str, Tensor] = field(default_factory=dict)
    restored: Tensor | None = None  #: (B, C, Hc, Wc) in 0…1, or None
    #: (B, Hc, Wc) absolute difference of picture and restoration, smoothed over a cell; or None
    difference: Tensor | None = None
    class_token: Tensor | None = None  #: (B, D) of the encoder, averaged over crops
    #: for each requested block its tokens (B, N, D'), each of zero mean and unit variance
    layers: dict[int, Tensor] = field(default_factory=dict)
    middle: Tensor | None = None  #: for ``places``, tokens after half of the blocks, like those of `layers`


class AnomalyDetector(nn.Module):
    """Look at each anatomical cell of a radiograph in the ways that pre-training on normals offers.

    A model of the grid-shifted form was trained on crops of a canvas that is larger by ``shift`` cells. The whole
    radiograph is read at the canvas' size, seen through the crops at its corners (which together show every cell), and
    overlapping crops' values of a cell are averaged (this project's reading). With ``shift`` 0 there is one crop.

    Parts, each a number for each cell; the first two need a `NormalReference`:

    - ``tokens``: distance of the cell's token to the mean of the tokens of the same cell in normal radiographs (in the
      way of PaDiM, Defard et al., ICPR 2021);
    - ``neighbours``: cosine distance of the cell's token to the nearest tokens of the same cell in normal radiographs
      (in the way of PatchCore, Roth et al., CVPR 2022);
    - ``residual``: grey level minus that of the restoration, averaged over the cell: above 0 if it is denser;
    - ``difference``: the same without sign;
    - ``prototypes``: cross-entropy of the cell's token to the prototype of its cell (the structure term's similarity);
    - ``lesions``: logit of the share of the cell that the lesion term's head takes for a synthetic lesion (in the way
      of DRAEM, Zavrtanik et al., ICCV 2021, and NSA, Schlüter et al., ECCV 2022).

    Parts that give one number for the whole image, and need a reference:

    - ``density``: distance of the mean patch token to those of normal radiographs;
    - ``class_density``: the same for the class token;
    - ``class_lesion``: logit of any lesion, of the lesion term's head on the class token.

    ``tokens``, ``neighbours`` and ``density`` can judge the tokens of earlier blocks as well.

    One part draws the map and does not count in the score; it needs a reference:

    - ``places``: the distance of ``tokens``, after half of the blocks. Features of the middle tell places better than
      the last ones, as in PatchCore.

    Args:
        encoder: encoder that gives the tokens; the restorer's if there is one.
        shift: s, in cells.
        restorer: for ``residual`` and ``difference``; its encoder must be ``encoder``.
        head: token head on ``encoder``, for ``prototypes``.
        assignment: (N, K) of the prototypes (`PrototypeBank.assignment`), for ``prototypes``.
        temperature: temperature of the head's softmax, τ_s.
        lesion_head: layer on tokens of ``encoder``, for ``lesions`` and ``class_lesion``.

    Raises:
        AfireError: if the parts do not fit.
    """

    assignment: Tensor | None
    corners: Tensor

    def __init__(
        self,
        encoder: Encoder,
        shift: int = 0,
        restorer: AnomalyNetwork | None = None,
        head: TokenHead | None = None,
        assignment: Tensor | None = None,
        temperature: float = 0.1,
        lesion_head: nn.Linear | None = None,
    ) -> None:
        super().__init__()
        self.encoder = encoder
        self.restorer = restorer
        self.head = head
        self.lesion_head = lesion_head
        self.temperature = temperature
        self.canvas = GridShift(encoder.grid, encoder.patch_size, shift)
        self.register_buffer("assignment", assignment, persistent=False)
        self.register_buffer("corners", torch.tensor(self.offsets()), persistent=False)
        if restorer is not None and restorer.encoder is not encoder:
            raise AfireError("the restorer must have the detector's encoder")
        if (head is None) != (assignment is None):
            raise AfireError("the token head and the prototypes are needed together")
        if assignment is not None and len(assignment) != self.canvas.canvas_cells:
            raise AfireError(f"{len(assignment)} prototypes do not fit a canvas of {self.canvas.canvas_cells} cells")

    @property
    def canvas_size(self) -> tuple[int, int]:
        """Height and width in pixels of the pictures that the detector wants."""
        return self.canvas.canvas_size

    @property
    def parts(self) -> tuple[str, ...]:
        """Parts that this detector can give."""
        able = {
            "residual": self.restorer is not None,
            "difference": self.restorer is not None,
            "prototypes": self.head is not None,
            "lesions": self.lesion_head is not None,
            "class_lesion": self.lesion_head is not None,
        }
        return tuple(part for part in PARTS if able.get(part, True))

    def offsets(self) -> list[tuple[int, int]]:
        """Return the crops' offsets (row, column) in cells: the canvas' corners, and between them if need be."""
        s, grid = self.canvas.shift, self.canvas.grid
        rows, columns = (sorted({s, *range(0, s, side)}) for side in grid)
        return [(row, column) for row in rows for column in columns]

    def features(
        self, images: Tensor, parts: Sequence[str] | None = None, restore: bool = False, layers: Sequence[int] = ()
    ) -> AnomalyFeatures:
        """Look at radiographs.

        Args:
            images: (B, 1 or C, Hc, Wc) in 0…1, of :attr:`canvas_size`.
            parts: parts to compute; None for all that are available.
            restore: return the restored pictures and the difference, whatever the parts.
            layers: blocks whose tokens are wanted besides the encoder's output; 0 is the first, -1 the last.

        Raises:
            AfireError: for pictures of another size, or parts or blocks that the detector does not have.
        """
        parts = self.parts if parts is None else parts
        if missing := [part for part in parts if part not in self.parts]:
            raise AfireError(f"the detector has no {', '.join(missing)}; it has {', '.join(self.parts)}")
        if tuple(images.shape[2:]) != self.canvas_size:
            h, w = self.canvas_size
            raise AfireError(f"pictures must be {h} x {w} pixels, got {images.shape[2]} x {images.shape[3]}")
        images = images.expand(-1, self.encoder.in_channels, -1, -1)
        crops = self._crops(images)
        middle = max(0, self.encoder.depth // 2 - 1)
        seen, hidden = self._encode(crops, {*layers, middle} if "places" in parts else layers)
        found = AnomalyFeatures(
            self._on_canvas(seen[:, 1:].float()),
            self.canvas.canvas_grid,
            class_token=seen[:, 0].float().unflatten(0, (len(self.offsets()), -1)).mean(0),
            layers={block: self._on_canvas(hidden[block]) for block in layers},
            middle=self._on_canvas(hidden[middle]) if "places" in parts else None,
        )
        if "prototypes" in parts:
            found.cells["prototypes"] = self._prototype_distance(seen)
        if {"lesions", "class_lesion"} & set(parts):
            assert self.lesion_head is not None
            logits = self.lesion_head(seen.float())
            found.cells["lesions"] = self._on_canvas(logits[:, 1:])[..., 0]
            found.cells["class_lesion"] = logits[:, 0].unflatten(0, (len(self.offsets()), -1)).mean(0)
        if restore or {"residual", "difference"} & set(parts):
            self._compare(images, torch.cat(crops), seen, parts, found)
        return found

    def _crops(self, images: Tensor) -> list[Tensor]:
        """Cut canvases (B, C, Hc, Wc) at each of :meth:`offsets`, each crop (B, C, H, W)."""
        p, (h, w) = self.encoder.patch_size, self.canvas.grid
        return [images[:, :, r * p : (r + h) * p, c * p : (c + w) * p] for r, c in self.offsets()]

    def _encode(self, crops: list[Tensor], layers: Iterable[int]) -> tuple[Tensor, dict[int, Tensor]]:
        """Run the encoder; return its tokens (b, 1 + L, D), and for each of some blocks its patch tokens (b, L, D')."""
        outputs: dict[int, list[Tensor]] = {block: [] for block in layers}
        with contextlib.ExitStack() as hooks:
            for block, kept in outputs.items():
                module = self.encoder.attribution_layer(block, class_token=False)
                hooks.enter_context(module.register_forward_hook(lambda _, __, output, kept=kept: kept.append(output)))
            # one crop of all images after the other: this is a third faster on a CPU, as all crops together would fill
            # its cache; an exported graph holds the encoder once
            groups = [torch.cat(list(crops))] if torch.compiler.is_exporting() else crops
            seen = torch.cat([self.encoder(some) for some in groups])
        return seen, {block: self._patch_tokens(torch.cat(kept).float()) for block, kept in outputs.items()}

    def _patch_tokens(self, output: Tensor) -> Tensor:
        """Bring a block's output, tokens (b, 1 + L, D') or a map (b, D', h, w), to (b, L, D') of unit variance."""
        if output.ndim == 4:
            output = F.adaptive_avg_pool2d(output, self.encoder.grid).flatten(2).transpose(1, 2)
        cells = self.encoder.grid[0] * self.encoder.grid[1]
        return F.layer_norm(output[:, -cells:], output.shape[-1:])

    def _compare(
        self, images: Tensor, crops: Tensor, tokens: Tensor, parts: Sequence[str], found: AnomalyFeatures
    ) -> None:
        if self.restorer is None:
            raise AfireError("there is no restorer, so nothing can be restored")
        p = self.encoder.patch_size
        pixels = self.restorer.restore(crops, tokens)
        # as tokens with C·P² channels, so that overlapping crops are averaged in the same way
        restored = self._on_canvas(F.pixel_unshuffle(pixels, p).flatten(2).transpose(1, 2))
        h, w = self.canvas.canvas_grid
        found.restored = F.pixel_shuffle(restored.transpose(1, 2).unflatten(2, (h, w)), p)
        signed = (images - found.restored).mean(1, keepdim=True)
        found.difference = box_mean(signed.abs(), p // 2 * 2 + 1)[:, 0]
        if "residual" in parts:
            found.cells["residual"] = F.avg_pool2d(signed, p).flatten(1)
        if "difference" in parts:
            found.cells["difference"] = F.avg_pool2d(signed.abs(), p).flatten(1)

    def _prototype_distance(self, tokens: Tensor) -> Tensor:
        assert self.head is not None
        assert self.assignment is not None
        batch = tokens.shape[0] // len(self.offsets())
        cells = self.canvas.cells(self.corners)[:, None].expand(-1, batch, -1).flatten(0, 1)
        cross, log_partition = similarities(self.head(tokens[:, 1:]), self.assignment, self.temperature)
        own = cross.gather(-1, cells[..., None])[..., 0] - log_partition
        return self._on_canvas(-own[..., None])[..., 0]

    def _on_canvas(self, values: Tensor) -> Tensor:
        """Bring values of crop cells (crops · B, L, F) to canvas cells (B, N, F), averaged where crops overlap."""
        (h, w), (hc, wc) = self.canvas.grid, self.canvas.canvas_grid
        offsets = self.offsets()
        crops = values.unflatten(0, (len(offsets), -1)).unflatten(2, (h, w))
        total = values.new_zeros(crops.shape[1], hc, wc, values.shape[-1])
        count = values.new_zeros(hc, wc, 1)
        for crop, (row, column) in zip(crops, offsets, strict=True):
            total[:, row : row + h, column : column + w] += crop
            count[row : row + h, column : column + w] += 1
        return (total / count).flatten(1, 2)


def heat_of(standardised: Tensor) -> Tensor:
    """Turn standard deviations above the normal mean into 0…1: z / (z + 3) above 0, 0 below; 3 gives a half.

    The result never saturates, so that places keep their order, and it is comparable between images.
    """
    above = standardised.clamp_min(0)
    return above / (above + 3)


def smooth_cells(cells: Tensor, grid: tuple[int, int]) -> Tensor:
    """Smooth cells (B, N) by a Gaussian of one cell's standard deviation; the outermost cells go on beyond the edge."""
    kernel = gaussian_1d(torch.tensor(1.0, device=cells.device), approx="sampled")
    return separable_filtering(cells.unflatten(1, grid)[:, None], [kernel, kernel], mode="replicate").flatten(1)


def enlarge_cells(cells: Tensor, grid: tuple[int, int], size: tuple[int, int]) -> Tensor:
    """Draw cells (B, N) as pictures (B, H, W), bilinear between the cells' centres."""
    return F.interpolate(cells.unflatten(1, grid)[:, None].float(), size, mode="bilinear", align_corners=False)[:, 0]


def load_detector(path: str | Path | Mapping[str, Path]) -> AnomalyDetector:
    """Build a detector from the weights in a model folder, in evaluation mode.

    It uses the restorer (``restorer.safetensors``) or, without one, the encoder (``encoder.safetensors``), and the
    student's heads with the prototypes (``detector.safetensors``) if they are there. A restorer that an earlier
    version wrote does not say its shift, which is then taken to be 0. Raises CheckpointError if there is neither
    encoder nor restorer, or a file is damaged.
    """
    files = path if isinstance(path, Mapping) else model_files([path])
    if "restorer" not in files:
        if "encoder" not in files:
            there = ", ".join(map(str, files.values())) or path
            raise CheckpointError(f"{there}: neither restorer.safetensors nor encoder.safetensors is there")
        return AnomalyDetector(load_encoder(files["encoder"]), _shift_of(files["encoder"])).eval()
    restorer = load_restorer(files["restorer"])
    shift = _shift_of(files["restorer"])
    heads = _load_heads(files["detector"]) if "detector" in files else {}
    with weights_that_fit(files["restorer"]):
        return AnomalyDetector(restorer.encoder, shift, restorer, **heads).eval()


def _shift_of(path: Path) -> int:
    with weights_that_fit(path):
        shift = load_module_files(path)[1].get("shift", 0)
        if not isinstance(shift, int) or not 0 <= shift <= MOST_SHIFT:
            raise ValueError(f"shift is {shift!r}, a whole number from 0 to {MOST_SHIFT} is expected")
        return shift


def _load_heads(path: Path) -> dict[str, Any]:
    tensors, description = load_module_files(path)
    with weights_that_fit(path):
        refuse_sizes(description["head"], tensors, path)
        head = TokenHead(**description["head"])
        head.load_state_dict({k.removeprefix("head."): v for k, v in tensors.items() if k.startswith("head.")})
        if head.cells is not None and head.cells != len(head.weight):
            raise ValueError(f"cells is {head.cells!r}, the head has layers for {len(head.weight)}")
        found = {"head": head, "assignment": tensors["assignment"], "temperature": float(description["temperature"])}
        if "lesion_head.weight" in tensors:
            lesions = nn.Linear(tensors["lesion_head.weight"].shape[1], 1)
            lesions.load_state_dict({name: tensors[f"lesion_head.{name}"] for name in ("weight", "bias")})
            found["lesion_head"] = lesions
        return found
