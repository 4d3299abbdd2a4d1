"""Synthetic Lesion Mask for one image: array and dictionary form."""

from __future__ import annotations

import functools
from collections.abc import Hashable, Mapping
from typing import Any

import numpy as np
from monai.config import KeysCollection, NdarrayOrTensor
from monai.transforms import MapTransform, Randomizable, RandomizableTransform
from monai.utils import TransformBackends, convert_data_type, convert_to_dst_type

from afire_monai.errors import RadiographError
from afire_monai.transforms.lesion_search import texture_circle
from afire_monai.transforms.lesion_settings import (
    GREY_LEVEL,
    LesionRecord,
    LesionSettings,
    Polarity,
    check_size,
    lesion_boxes,
    lesion_number,
)


class SyntheticLesionMask(RandomizableTransform):
    """Make the abnormal twin of a normal image: blobs of its own bright texture, added at random places.

    The Synthetic Lesion Mask of Liu et al. (AAAI 2025, AFiRe), read so that rows stay rows, sums never wrap around, the
    texture is never empty, and the twin equals the image outside the mask. This project's reading where the paper is
    silent: a lesion lies inside the image; the added value below one 8-bit grey level is set to zero, which gives the
    mask a definite edge; the clip at `ceiling` does not darken a pixel that is brighter already (such a pixel is in the
    mask although it does not change); a constant image, or a texture without any light in it, gives lesions of a flat
    texture of 0.5 so that training goes on.

    Args:
        settings: sizes and options; the published ones by default.

    Attributes:
        record: what the last `randomize` drew; `apply` makes the same twin from it again.
    """

    backend = [TransformBackends.NUMPY]  # noqa: RUF012 - MONAI reads it as a class attribute

    def __init__(self, settings: LesionSettings | None = None) -> None:
        RandomizableTransform.__init__(self, prob=1.0)
        self.settings = settings or LesionSettings()
        self.record: LesionRecord | None = None

    def __call__(
        self, img: NdarrayOrTensor, randomize: bool = True, name: str = "image"
    ) -> tuple[NdarrayOrTensor, NdarrayOrTensor]:
        """Make a twin.

        Args:
            img: (C, H, W) float in 0…1, C equal channels.
            randomize: draw anew; otherwise `record` is applied again.
            name: what errors call the image.

        Returns:
            Twin (C, H, W) of the image's type, and mask (1, H, W) float32, 1 where lesion was added.

        Raises:
            RadiographError: the image has another shape, unequal channels, or values that are not within 0…1.
        """
        if self.record is not None and not randomize:
            return self.apply(img, self.record, name)
        image = _checked(img, name)
        self.record = self._draw(image)
        return self._add(img, image, self.record)

    def randomize(self, data: NdarrayOrTensor, name: str = "image") -> None:
        """Draw lesions for an image (C, H, W) and keep them in `record`."""
        self.record = self._draw(_checked(data, name))

    def _draw(self, image: np.ndarray) -> LesionRecord:
        super().randomize(None)
        numbers = self.R.random_sample(self.settings.draws).astype(np.float32)
        uniforms = np.minimum(numbers, np.float32(1 - 2**-24))  # rounding to float32 can give 1
        return self.plan(image[0], uniforms)

    def plan(self, image: np.ndarray, uniforms: np.ndarray) -> LesionRecord:
        """Record for an image (H, W) float32 and (draws,) uniform numbers, which decide everything."""
        height, width = image.shape
        if uniforms[2] < self.settings.elsewhere_probability:
            center, radius = (float(uniforms[3] * (height - 1)), float(uniforms[4] * (width - 1))), 0.0
        else:
            center, radius = texture_circle(image, self.settings)
        count = int(lesion_number(self.settings, uniforms))
        corners = np.stack(lesion_boxes(self.settings, uniforms, height, width), axis=-1)[:count].astype(int)
        boxes = tuple((int(t), int(le), int(h), int(w)) for t, le, h, w in corners)
        polarity: Polarity = "dark" if uniforms[1] < self.settings.dark_probability else "bright"
        return LesionRecord((height, width), center, radius, boxes, polarity)

    def apply(
        self, img: NdarrayOrTensor, record: LesionRecord, name: str = "image"
    ) -> tuple[NdarrayOrTensor, NdarrayOrTensor]:
        """Make the twin that a record describes; nothing is random. Arguments and result as in `__call__`.

        Raises:
            RadiographError: also if the record was made for another image size.
        """
        image = _checked(img, name)
        if image.shape[1:] != tuple(record.image_size):
            raise RadiographError(f"'{name}' is {image.shape[1:]}; the lesion record is for {record.image_size}.")
        return self._add(img, image, record)

    def _add(
        self, img: NdarrayOrTensor, image: np.ndarray, record: LesionRecord
    ) -> tuple[NdarrayOrTensor, NdarrayOrTensor]:
        """Twin and mask of an image that was checked (`image`), as the type of what was given (`img`)."""
        added = _render(_blob(image[0], record.texture_center, self.settings), record)
        if record.polarity == "dark":
            twin = np.minimum(image, np.maximum(image - added, np.float32(self.settings.floor)))
        else:
            twin = np.maximum(image, np.minimum(image + added, np.float32(self.settings.ceiling)))
        mask = (added > 0).astype(np.float32)[None]
        if isinstance(img, np.ndarray):
            return twin.astype(img.dtype, copy=False), mask
        return convert_to_dst_type(twin, img)[0], convert_to_dst_type(mask, img, dtype=np.float32)[0]


class SyntheticLesionMaskd(MapTransform, Randomizable):
    """Dictionary form of `SyntheticLesionMask`: adds the twin and its mask, and leaves the image as it is.

    Args:
        keys: key of the image (one key).
        twin_key: key of the twin to write.
        mask_key: key of the mask to write.
        record_key: key of the record (a plain dictionary) to write; not written if None.
        settings: sizes and options; the published ones by default.
        allow_missing_keys: do nothing where the image is missing.

    Raises:
        RadiographError: more than one key, or an output key that is the image's.
    """

    backend = SyntheticLesionMask.backend

    def __init__(
        self,
        keys: KeysCollection = "image",
        twin_key: str = "twin",
        mask_key: str = "mask",
        record_key: str | None = None,
        settings: LesionSettings | None = None,
        allow_missing_keys: bool = False,
    ) -> None:
        MapTransform.__init__(self, keys, allow_missing_keys)
        if len(self.keys) != 1 or self.keys[0] in (twin_key, mask_key, record_key):
            raise RadiographError(
                f"SyntheticLesionMaskd got keys {self.keys}, twin_key {twin_key!r}, mask_key {mask_key!r}; "
                "expected one image key that differs from the keys it writes."
            )
        self.twin_key, self.mask_key, self.record_key = twin_key, mask_key, record_key
        self.mask = SyntheticLesionMask(settings)

    def set_random_state(
        self, seed: int | None = None, state: np.random.RandomState | None = None
    ) -> SyntheticLesionMaskd:
        """Seed the draws, as MONAI's random transforms do."""
        super().set_random_state(seed, state)
        self.mask.set_random_state(seed, state)
        return self

    def randomize(self, data: NdarrayOrTensor) -> None:
        """Draw lesions for an image (C, H, W)."""
        self.mask.randomize(data, str(self.keys[0]))

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        """Add twin and mask (and record) to a dictionary that holds an image (C, H, W) in 0…1."""
        result = dict(data)
        for key in self.key_iterator(result):
            self.randomize(result[key])
            twin, mask = self.mask(result[key], randomize=False, name=str(key))
            result[self.twin_key], result[self.mask_key] = twin, mask
            if self.record_key is not None and self.mask.record is not None:
                result[self.record_key] = self.mask.record.to_dict()
        return result


def _checked(image: NdarrayOrTensor, name: str) -> np.ndarray:
    """Image as a float32 array (C, H, W), or an error that says what is wrong with it."""
    array: np.ndarray = image if isinstance(image, np.ndarray) else convert_data_type(image, np.ndarray)[0]
    if array.ndim != 3 or array.shape[0] == 0 or not np.issubdtype(array.dtype, np.floating):
        raise RadiographError(f"'{name}' is {array.shape} {array.dtype}; expected (C, H, W) floats in 0…1.")
    check_size(array.shape[1], array.shape[2], name)
    array = array.astype(np.float32, copy=False)
    low, high = float(array.min()), float(array.max())  # either is NaN if any value is
    if not (low >= 0 and high <= 1):
        raise RadiographError(f"'{name}' has values from {low:g} to {high:g}; expected finite values within 0…1.")
    if array.shape[0] > 1 and not (array[1:] == array[:1]).all():
        raise RadiographError(
            f"'{name}' has {array.shape[0]} channels that differ; expected equal ones (a grey image)."
        )
    return array


def _blob(image: np.ndarray, center: tuple[float, float], settings: LesionSettings) -> np.ndarray:
    """Weighted texture (t, t) around a place of an image (H, W), shifted inside where it would cross the border."""
    height, width = image.shape
    side = settings.texture_pixels(height, width)
    corner = np.floor(np.asarray(center, dtype=np.float32) - np.float32((side - 1) / 2 - 0.5)).astype(int)
    top, left = np.clip(corner, 0, (height - side, width - side))
    patch = image[top : top + side, left : left + side]
    low, high = patch.min(), patch.max()
    # the whole image is looked at only where its patch is constant
    flat = high < 4 * GREY_LEVEL or (high - low < GREY_LEVEL and image.max() - image.min() < GREY_LEVEL)
    blob: np.ndarray = _weights(side, settings) * (np.float32(0.5) if flat else patch)
    return blob


@functools.lru_cache(maxsize=16)
def _weights(side: int, settings: LesionSettings) -> np.ndarray:
    """Elliptical Gaussian exp(−(r²/0.5)^edge) on a (side, side) square, min-max scaled to 0…peak."""
    axis = (np.arange(side) - (side - 1) / 2) / (side / 2)
    bell = np.exp(-(((axis[:, None] ** 2 + axis**2) / 0.5) ** settings.edge))
    scaled: np.ndarray = ((bell - bell.min()) / np.ptp(bell) * settings.peak).astype(np.float32)
    return scaled


@functools.lru_cache(maxsize=512)
def _taps(length: int, side: int) -> tuple[np.ndarray, np.ndarray]:
    """First of the two of `side` samples that each of `length` samples takes, and the share (length, 1) of the second.

    Bilinear: half-pixel centres aligned, border value repeated.
    """
    source = np.clip((np.arange(length) + 0.5) * side / length - 0.5, 0, side - 1)
    lower = np.minimum(source.astype(int), side - 2)
    return lower, (source - lower).astype(np.float32)[:, None]


def _stretch(blob: np.ndarray, length: int) -> np.ndarray:
    """Resize the rows of (t, n) to (length, n), bilinearly.

    No matrix product: for so little work the threads of a BLAS library cost more than they save.
    """
    lower, share = _taps(length, blob.shape[0])
    first = blob[lower]
    resized: np.ndarray = first + share * (blob[lower + 1] - first)
    return resized


def _render(blob: np.ndarray, record: LesionRecord) -> np.ndarray:
    """Sum (H, W) of the blob resized to each box; what is below one 8-bit grey level is zero."""
    added = np.zeros(record.image_size, dtype=np.float32)
    for top, left, rows, columns in record.boxes:
        lesion = _stretch(np.ascontiguousarray(_stretch(blob, rows).T), columns)
        added[top : top + rows, left : left + columns] += lesion.T
    added *= added >= GREY_LEVEL
    return added
