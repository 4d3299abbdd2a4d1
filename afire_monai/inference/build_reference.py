"""Gather the statistics of normal radiographs, cross-fitted by patient."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, get_args

import torch
from torch import Tensor

from afire_monai.errors import AfireError
from afire_monai.inference.anomaly import AnomalyDetector
from afire_monai.inference.gaussian import CellGaussian, Moments
from afire_monai.inference.reference import NormalReference, Pooling, pool

MIN_NORMALS = 20
FOLDS = 10


@torch.no_grad()
def build_reference(
    detector: AnomalyDetector,
    batches: Iterable[Tensor],
    groups: Sequence[str],
    parts: Sequence[str] | None = None,
    pooling: str = "mean",
    facts: Mapping[str, Any] | None = None,
) -> NormalReference:
    """Gather the statistics of normal radiographs.

    Args:
        detector: what looks at them.
        batches: their pictures (B, 1, Hc, Wc) in 0…1.
        groups: the patient of each, in the same order; patients are kept whole when cross-fitting.
        parts: which parts to use; None for the detector's default.
        pooling: see :class:`NormalReference`.
        facts: plain values to keep: data list, section, model.

    Raises:
        AfireError: for fewer than 20 radiographs or 2 patients, unknown parts or pooling.
    """
    parts = detector.default_parts if parts is None else tuple(parts)
    if pooling not in get_args(Pooling) or not parts:
        raise AfireError(f"pooling must be mean, top or max and there must be a part, got {pooling!r} and {parts}")
    kept: dict[str, list[Tensor]] = {part: [] for part in parts}
    count = 0
    for images in batches:
        found = detector.features(images, parts)
        count += len(images)
        # of the pictures themselves nothing is kept, of thousands they would fill the memory
        for part in parts:
            kept[part].append(found.tokens.half().cpu() if part == "tokens" else found.cells[part].cpu())
    fold = _folds(groups, count)
    values = {part: torch.cat(some) for part, some in kept.items()}
    gaussian = None
    if "tokens" in parts:
        gaussian, values["tokens"] = _fit_tokens(values["tokens"], fold)
    raw = torch.stack([values[part] for part in parts], 1).float()
    if not raw.isfinite().all():
        raise AfireError("the model gives values that are not finite: damaged weights, or failed training")
    mean, std = raw.mean(0), _floored(raw.std(0))
    combined = ((raw - mean) / std).mean(1)
    combined_std = _floored(combined.std(0)[None])[0]
    described = {**(facts or {}), "patients": len(set(groups))}
    scores = pool(combined / combined_std, pooling)
    return NormalReference(parts, pooling, mean, std, combined_std, scores, gaussian, described).eval()


def _folds(groups: Sequence[str], count: int) -> Tensor:
    """Give the fold of each radiograph (n,); a patient's are in one fold."""
    if count < MIN_NORMALS:
        raise AfireError(
            f"{count} normal radiographs are too few for a reference: percentiles would come in steps of "
            f"{100 / max(count, 1):.0f} %; at least {MIN_NORMALS} are needed, some hundreds are better"
        )
    if len(groups) != count:
        raise AfireError(f"{len(groups)} groups do not fit {count} radiographs")
    numbers = {group: place for place, group in enumerate(dict.fromkeys(groups))}
    if len(numbers) < 2:
        raise AfireError(f"the {count} normal radiographs are of one patient; a reference needs several")
    return torch.tensor([numbers[group] for group in groups]) % min(FOLDS, len(numbers))


def _fit_tokens(tokens: Tensor, fold: Tensor) -> tuple[CellGaussian, Tensor]:
    """Fit a Gaussian to all tokens (n, N, D); give each radiograph's distances (n, N) to the fit without its fold."""
    parts = [Moments.of(tokens[fold == number]) for number in range(int(fold.max()) + 1)]
    total = Moments.sum(parts)
    distances = torch.zeros(tokens.shape[:2])
    for number, part in enumerate(parts):
        distances[fold == number] = (total - part).fit().distance(tokens[fold == number].float())
    return total.fit(), distances


def _floored(std: Tensor) -> Tensor:
    """Keep standard deviations (M, N) from vanishing where all radiographs are alike, such as black borders."""
    return std.clamp_min(1e-6).maximum(0.1 * std.median(dim=1, keepdim=True).values)
