"""The files of a folder of predictions: names, reading with checks, and writing in one piece."""

from __future__ import annotations

import csv
import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from afire_monai.core.errors import AfireError

TABLE, FACTS, HEATMAPS, MASKS = "predictions.csv", "predictions.json", "heatmaps", "masks"
INDEX, PERCENTILE = "index", "anomaly_percentile"
FORMAT = "afire predictions 1"
AGAIN = "Write the predictions again with `afire predict`"


def read_facts(path: Path) -> dict[str, Any]:
    """Read and check ``predictions.json``.

    Raises:
        AfireError: if it is missing, damaged or of another format.
    """
    try:
        facts = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise AfireError(
            f"{path}: {error.strerror}; a folder of finished predictions is expected (an interrupted run leaves none). "
            f"{AGAIN}"
        ) from error
    except ValueError as error:
        raise AfireError(f"{path}: not JSON ({error}). {AGAIN}") from error
    if not isinstance(facts, dict) or facts.get("format") != FORMAT:
        seen = facts.get("format") if isinstance(facts, dict) else type(facts).__name__
        raise AfireError(f"{path}: format {seen!r}; {FORMAT!r} is expected. {AGAIN}")
    if not isinstance(facts.get("labels"), list) or not isinstance(facts.get("count"), int):
        raise AfireError(f"{path}: 'labels' (names) and 'count' (a number) are expected. {AGAIN}")
    check_names(facts["labels"])
    thresholds = facts.get("thresholds") or {}
    if not isinstance(thresholds, dict) or not all(_is_number(v) for v in thresholds.values()):
        raise AfireError(f"{path}: 'thresholds' must give a number for each label, got {thresholds!r}. {AGAIN}")
    if not isinstance(facts.get("model") or {}, dict):
        raise AfireError(f"{path}: 'model' must say in named values what predicted, got {facts['model']!r}. {AGAIN}")
    return facts


def read_table(path: Path, columns: Sequence[str]) -> dict[str, NDArray[np.float64]]:
    """Read ``predictions.csv``: (n,) numbers for each column, NaN where a cell is empty.

    Raises:
        AfireError: if it is missing or damaged, or its columns are not those expected.
    """
    try:
        with path.open(encoding="utf-8", newline="") as file:
            rows = list(csv.reader(file))
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise AfireError(f"{path}: cannot be read ({error}). {AGAIN}") from error
    head = rows[0] if rows else []
    if head != list(columns):
        raise AfireError(f"{path}: columns are {', '.join(head) or 'none'}; {', '.join(columns)} are expected. {AGAIN}")
    if ragged := next((i for i, row in enumerate(rows) if len(row) != len(head)), None):
        raise AfireError(f"{path}: line {ragged + 1} has {len(rows[ragged])} cells, not {len(head)}. {AGAIN}")
    return {name: _numbers([row[i] for row in rows[1:]], name, path) for i, name in enumerate(columns)}


def check_names(labels: Sequence[str]) -> None:
    """Refuse label names that cannot be columns.

    Raises:
        AfireError: for a name that is empty, doubled, or that of another column.
    """
    bad = [name for name in labels if not isinstance(name, str) or not name or name in (INDEX, PERCENTILE)]
    if bad or len(set(labels)) != len(labels):
        raise AfireError(f"label names must be different and not {INDEX!r} or {PERCENTILE!r}, got {list(labels)!r}")


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and math.isfinite(value)


def _numbers(cells: Sequence[str], name: str, path: Path) -> NDArray[np.float64]:
    try:
        return np.array([cell or "nan" for cell in cells], dtype=object).astype(np.float64)
    except ValueError as error:
        raise AfireError(f"{path}: column {name!r}: {error}; a number or nothing is expected. {AGAIN}") from error
