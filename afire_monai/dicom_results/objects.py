"""Common parts of all new objects: who made them, for what, and how they are written to disk."""

from __future__ import annotations

import contextlib
import io
import json
import os
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from afire_monai import __version__
from afire_monai.core.errors import AfireError
from afire_monai.core.files import whole_file
from afire_monai.core.quiet import quiet
from afire_monai.dicom_results.codes import named_uid, new_uid
from afire_monai.dicom_results.prediction import ImagePrediction
from afire_monai.dicom_results.source import SourceImage

MAKER = "afire-monai"
WARNING = "RESEARCH USE ONLY"
NOTE = (
    "Research use only. Made by software that is not a medical device; not a diagnosis. A finding that is named here "
    "is not said to be present: its probability is what the model says. Read with the radiograph, by someone who can."
)
SERIES_NUMBERS = {"sr": 9801, "seg": 9802, "sc": 9803, "finding": 9804, "gsps": 9805}
"""High numbers, so that results are listed after the images of a study."""

UNPAIRED = ("CHEST", "ABDOMEN", "PELVIS", "HEAD", "SKULL", "NECK", "SPINE", "CSPINE", "TSPINE", "LSPINE", "HEART")
"""Body parts for which no side may be named."""


def note(prediction: ImagePrediction) -> str:
    """Return the note of every report, and for a file that is not a frontal chest radiograph, the warning."""
    return f"{NOTE} {unfit_note(prediction)}".strip()


def unfit_note(prediction: ImagePrediction) -> str:
    """Return the warning that results are of a file that is not a frontal chest radiograph; "" for one that is."""
    if not prediction.unfit:
        return ""
    return f"WARNING: judged not to be a frontal chest radiograph ({prediction.unfit}); the model knows no others."


class OutputError(AfireError):
    """A file cannot be written: the next one could not be written either."""


@contextlib.contextmanager
def building(what: str) -> Iterator[None]:
    """Turn whatever goes wrong while an object is built into an error that quotes nothing of the source's header."""
    try:
        with quiet():
            yield
    except (AfireError, KeyboardInterrupt, MemoryError):
        raise
    except Exception as error:
        raise AfireError(
            f"no {what} can be built for this source ({type(error).__name__}): its header has a value that is not "
            "expected, or this program is at fault. Please report it, without the file"
        ) from None


def common(
    kind: str, source: SourceImage, prediction: ImagePrediction, seed: str | None, title: str, *of: str
) -> dict[str, Any]:
    """Return the arguments that the constructors of all objects share; ``of`` tells apart those of one kind."""
    origin = str(source.header.SOPInstanceUID)
    return {
        "series_instance_uid": new_uid(seed, origin, kind, "series", *of),
        "sop_instance_uid": new_uid(seed, origin, kind, "object", *of),
        "series_number": SERIES_NUMBERS[kind],
        "instance_number": 1,
        "manufacturer": MAKER,
        "manufacturer_model_name": MAKER,
        "software_versions": __version__,
        "device_serial_number": model_digest(prediction.model),
        "series_description": with_warning(f"{title}, UNFIT IMAGE" if prediction.unfit else title),
        "content_qualification": "RESEARCH",
        # set by `write_new`, because highdicom does not know all character sets
        "specific_character_set": None,
    }


def with_warning(title: str) -> str:
    """Add that this is research to a title; where both are too long for DICOM (64 characters) the title is cut."""
    warning = f" - {WARNING}"
    return title[: 64 - len(warning)] + warning


def keep_side(dataset: Any, header: Any) -> None:
    """Take over body part and side; no side of a part of which there is one only."""
    if header.get("BodyPartExamined"):
        dataset.BodyPartExamined = header.BodyPartExamined
    if header.get("BodyPartExamined") not in UNPAIRED:
        dataset.Laterality = header.get("Laterality")


def character_set(source: SourceImage, prediction: ImagePrediction) -> Any:
    """Keep the source's character set; use UTF-8 if added text might not fit into it."""
    texts = [*prediction.probabilities, prediction.heatmap_kind, prediction.heatmap_label]
    texts += prediction.rests_on.values()
    texts += [*model_parameters(prediction.model), *model_parameters(prediction.model).values()]
    return source.header.get("SpecificCharacterSet") if all(text.isascii() for text in texts) else "ISO_IR 192"


def model_digest(model: Mapping[str, Any]) -> str:
    """Return 16 hexadecimal digits that stand for exactly these weights and this version."""
    return f"{int(model_uid(model)[5:]):032x}"[:16]


def model_uid(model: Mapping[str, Any]) -> str:
    """Return the UID of the model as an observer: the same for the same weights and version."""
    return named_uid("model", json.dumps(dict(model), sort_keys=True, default=str), __version__)


def model_parameters(model: Mapping[str, Any]) -> dict[str, str]:
    """Flatten a model's description into names and short values."""
    flat: dict[str, str] = {}
    for name, value in model.items():
        inner = value.items() if isinstance(value, Mapping) else [("", value)]
        flat.update({f"{name} {key}".strip(): str(text) for key, text in inner})
    return flat


def write_new(dataset: Any, characters: Any, folder: str | os.PathLike[str]) -> Path:
    """Write a DICOM object under the name of its UID, for its owner's eyes only (file 0600, a new folder 0700).

    The file is written whole or not at all, and an existing one is never overwritten. Raises AfireError if there is
    such a file; OutputError if the folder cannot be written.
    """
    uid = str(dataset.SOPInstanceUID)
    if not re.fullmatch(r"2\.25\.(0|[1-9][0-9]{0,38})", uid):
        raise AfireError(f"{uid!r} is not a UID of a new object, so no file is named after it")
    content = io.BytesIO()
    with building("file"):
        if characters:
            dataset.SpecificCharacterSet = characters
        dataset.save_as(content, enforce_file_format=True)
    path = Path(folder) / f"{uid}.dcm"
    try:
        Path(folder).mkdir(mode=0o700, parents=True, exist_ok=True)
        with whole_file(path, private=True, shared=True, new=True) as part:
            part.write_bytes(content.getbuffer())
    except FileExistsError as error:
        raise AfireError(f"{path.name}: this file exists; nothing is overwritten. Give another folder") from error
    except OSError as error:
        reason = error.strerror or type(error).__name__
        raise OutputError(f"results cannot be written: {reason}. Give a folder that can be written") from error
    return path
