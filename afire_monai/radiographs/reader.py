"""The image reader for MONAI's ``LoadImaged``."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from os import PathLike
from pathlib import Path
from typing import Any, Literal

import numpy as np
from monai.data import ImageReader
from monai.utils import MetaKeys, SpaceKeys, ensure_tuple
from numpy.typing import NDArray

from afire_monai.radiographs.decode import RADIOGRAPH_SUFFIXES, is_dicom, read_picture
from afire_monai.radiographs.dicom import RADIOGRAPHY_MODALITIES, modality_names
from afire_monai.radiographs.judgement import (
    COLOUR,
    NOT_RADIOGRAPH,
    SEVERAL_FRAMES,
    Verdict,
    judge_file,
    reason_with_look,
)
from afire_monai.radiographs.picture import Picture, refusal
from afire_monai.radiographs.raster import WhiteLevel

Unfit = Literal["read", "refuse", "note"]
_DECODER_REFUSES = (NOT_RADIOGRAPH, SEVERAL_FRAMES, COLOUR)
"""The decoder has better words for these."""


class RadiographReader(ImageReader):
    """Read a chest radiograph as (1, H, W) float32 in 0…1, bright = dense, row 0 at the top, never transposed.

    For ``LoadImaged(keys, reader=RadiographReader())``. PNG, JPEG, NIfTI (one slice) and DICOM, told apart by content.
    Colour, multi-frame, empty, truncated and other files are refused with a `RadiographError` that names the file.
    Nothing that identifies a patient is put into the metadata.

    The metadata has the same keys for every format, so that batches may mix formats: ``affine``, ``original_affine``,
    ``spatial_shape``, ``original_channel_dim`` (0) and ``space`` for MONAI; ``spacing`` (row, column) in mm with NaN
    for unknown; ``spacing_source``; ``polarity_inverted``; ``bits``; ``format``; ``intensity`` (how stored values
    became 0…1); ``modality``; ``unfit`` (why it is not a frontal chest radiograph, with ``unfit="note"``; else "").

    The affine says that columns run to the patient's left and rows to the back, 1 mm a step where the spacing is
    unknown: the layout in which ITK reads flat pictures, and in which a picture that is saved as NIfTI comes back
    upright. It is a display convention, not a measured orientation.

    Args:
        modalities: DICOM modalities to read; None for any single-frame grey image.
        window_index: number of the DICOM window or VOI LUT to use if a file offers several.
        png16_max: white level of 16-bit PNG: "dtype" (65535), "image" (its largest value) or a number.
        unfit: treatment of DICOM files that `judgement` does not accept as frontal chest radiographs for presentation
            (other parts, laterals, raw images, burned-in text, …): ``read`` them without a check, ``refuse`` them, or
            ``note`` the reason in the metadata. Other formats do not give this information and are always read.

    Example:
        >>> import tempfile
        >>> from monai.transforms import LoadImaged
        >>> from PIL import Image
        >>> with tempfile.NamedTemporaryFile(suffix=".png") as file:
        ...     Image.new("L", (40, 30), 51).save(file.name)
        ...     picture = LoadImaged("image", reader=RadiographReader())({"image": file.name})["image"]
        >>> tuple(picture.shape), round(picture.max().item(), 3)  # 51 of 255
        ((1, 30, 40), 0.2)
    """

    def __init__(
        self,
        modalities: Collection[str] | str | None = RADIOGRAPHY_MODALITIES,
        window_index: int = 0,
        png16_max: WhiteLevel = "dtype",
        unfit: Unfit = "read",
    ) -> None:
        super().__init__()
        self.unfit = unfit
        self.modalities = modality_names(modalities)
        self.window_index = window_index
        self.png16_max: WhiteLevel = png16_max

    def verify_suffix(self, filename: Sequence[str | PathLike[str]] | str | PathLike[str]) -> bool:
        """Whether all names have a suffix of a supported format; content decides later."""
        return all(str(name).lower().endswith(RADIOGRAPH_SUFFIXES) for name in ensure_tuple(filename))

    def read(self, data: Sequence[str | PathLike[str]] | str | PathLike[str], **kwargs: Any) -> tuple[Path, ...]:
        """Take the file name, or several that `get_data`, which decodes, will refuse.

        ``LoadImage`` answers an error in this method by trying MONAI's own readers, which would accept what this
        reader refuses, transposed. An error in `get_data` reaches the user.
        """
        return tuple(Path(name) for name in ensure_tuple(data))

    def get_data(self, img: tuple[Path, ...]) -> tuple[NDArray[np.float32], dict[str, Any]]:
        """Decode; return array (1, H, W) float32 in 0…1, and the metadata described at the class.

        Raises:
            RadiographError: if the file is not a radiograph that can be used.
        """
        path, *others = img
        if others:
            raise refusal(path, "several files", f"{len(img)} files for one image; a radiograph is one file")
        judged = self.unfit != "read" and is_dicom(path)
        verdict = judge_file(path, self.modalities) if judged else Verdict(stated=True)
        if verdict.reason not in _DECODER_REFUSES:
            self._refuse(path, verdict.reason)
        picture = read_picture(path, self.modalities, self.window_index, self.png16_max)
        if not np.isfinite(picture.pixels).all():
            raise refusal(path, "not finite", "decoding gave values that are NaN or infinite")
        reason = reason_with_look(verdict, picture.pixels)
        self._refuse(path, reason)
        return picture.pixels[None], {**_metadata(picture), "unfit": reason}

    def _refuse(self, path: Path, reason: str) -> None:
        if reason and self.unfit == "refuse":
            raise refusal(path, reason, "a frontal chest radiograph for presentation is expected")


def _metadata(picture: Picture) -> dict[str, Any]:
    row, column = (step if step > 0 else 1.0 for step in picture.spacing)
    affine = np.array([[0, -column, 0, 0], [-row, 0, 0, 0], [0, 0, 1, 0], [0, 0, 0, 1]], dtype=np.float64)
    return {
        MetaKeys.AFFINE.value: affine,
        MetaKeys.ORIGINAL_AFFINE.value: affine.copy(),
        MetaKeys.SPATIAL_SHAPE.value: np.asarray(picture.pixels.shape),
        MetaKeys.ORIGINAL_CHANNEL_DIM.value: 0,
        MetaKeys.SPACE.value: SpaceKeys.RAS.value,
        "spacing": np.asarray(picture.spacing, dtype=np.float64),
        "spacing_source": picture.spacing_source,
        "polarity_inverted": picture.polarity_inverted,
        "bits": picture.bits,
        "format": picture.format,
        "intensity": picture.intensity,
        "modality": picture.modality,
    }
