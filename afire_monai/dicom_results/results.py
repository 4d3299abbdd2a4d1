"""All objects of one radiograph together."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from afire_monai.core.errors import AfireError
from afire_monai.dicom_results.capture import write_capture
from afire_monai.dicom_results.heatmap import write_heatmap
from afire_monai.dicom_results.prediction import ImagePrediction
from afire_monai.dicom_results.report import write_report
from afire_monai.dicom_results.source import SourceImage, open_source

_WRITERS = {"sr": write_report, "seg": write_heatmap, "sc": write_capture}
KINDS = tuple(_WRITERS)


def write_results(
    source_file: SourceImage | str | os.PathLike[str],
    prediction: ImagePrediction | Mapping[str, Any],
    out_dir: str | os.PathLike[str],
    kinds: Sequence[str] = KINDS,
    heatmap: NDArray[np.floating[Any]] | None = None,
    seed: str | None = None,
) -> list[Path]:
    """Write what a model says of one radiograph as DICOM objects of the radiograph's study.

    Args:
        source_file: DICOM radiograph; opened for reading only.
        prediction: or the record that ``afire predict`` writes for an image (``json/NNNNN.json``).
        out_dir: folder for the files, each named after its UID; made with mode 0700 if need be.
        kinds: ``sr`` (report), ``seg`` (heatmap), ``sc`` (picture).
        heatmap: (h, w) in 0…1, with a record.
        seed: see `NewUids`; None outside tests.

    Returns:
        The files, in the order of ``kinds``. If one cannot be written, those before it are taken away again.

    Raises:
        RadiographError: if the source cannot carry results.
        AfireError: for an unknown kind, a kind that the prediction has nothing for, or a folder that cannot be written.
    """
    check_kinds(kinds)
    if not isinstance(prediction, ImagePrediction):
        prediction = ImagePrediction.from_record(prediction, heatmap)
    source = source_file if isinstance(source_file, SourceImage) else open_source(source_file)
    written: list[Path] = []
    try:
        for kind in kinds:
            written.append(_WRITERS[kind](source, prediction, out_dir, seed))
    except BaseException:
        for path in written:
            path.unlink(missing_ok=True)
        raise
    return written


def check_kinds(kinds: Sequence[str]) -> None:
    """Refuse kinds that are not known, repeated, or none.

    Raises:
        AfireError: naming what is wrong.
    """
    if not kinds or isinstance(kinds, str) or len(set(kinds)) != len(kinds) or not set(kinds) <= set(KINDS):
        raise AfireError(f"kinds {kinds!r}: some of {', '.join(KINDS)}, each once, are expected")
