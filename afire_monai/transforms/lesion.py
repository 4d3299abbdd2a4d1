"""Synthetic Lesion Mask: the abnormal twin of a normal radiograph, for one image or a batch of tensors."""

from __future__ import annotations

from collections.abc import Hashable, Mapping
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import torch
from monai.config import KeysCollection, NdarrayOrTensor
from monai.data import MetaTensor
from monai.transforms import MapTransform, Randomizable, Transform
from monai.utils import TransformBackends, convert_to_dst_type
from torch import Tensor

from afire_monai.core.errors import AfireError, RadiographError
from afire_monai.transforms.anatomy import LUNG_SIDE, anatomy_of
from afire_monai.transforms.lesion_render import add_to_images, added_by_lesions
from afire_monai.transforms.lesion_settings import LesionSettings, check_size


@dataclass(frozen=True)
class LesionRecord:
    """Random numbers drawn for one image: enough to make the same twin again, and plain enough for JSON."""

    image_size: tuple[int, int]  #: (height, width) in pixels
    uniforms: tuple[float, ...]  #: the numbers in [0, 1) that decide everything
    center: tuple[float, float]  #: row and column in pixels that the texture comes from

    def to_dict(self) -> dict[str, Any]:
        """Return a plain dictionary that `json.dumps` takes."""
        return asdict(self)

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> LesionRecord:
        """Return the record that `to_dict` described, also after a round trip through JSON.

        Raises AfireError if a key is missing or a value has the wrong form.
        """
        try:
            height, width = values["image_size"]
            row, column = values["center"]
            uniforms = tuple(float(u) for u in values["uniforms"])
            return cls((int(height), int(width)), uniforms, (float(row), float(column)))
        except (KeyError, TypeError, ValueError) as error:
            keys = "image_size, uniforms, center"
            raise AfireError(f"Not a lesion record ({error!r}); expected the keys {keys}, as to_dict gives.") from error


class SyntheticLesionMask(Randomizable, Transform):
    """Make the abnormal twin of a normal image: blobs of its own bright texture, added at random places.

    The Synthetic Lesion Mask of Liu et al. (AAAI 2025, AFiRe), read so that rows stay rows, sums never wrap around, the
    texture is never empty, and the twin equals the image outside the mask. This project's reading where the paper is
    silent: a lesion lies inside the image; the added value below one 8-bit grey level is set to zero, which gives the
    mask a definite edge; the clip at `ceiling` does not darken a pixel that is brighter already (such a pixel is in the
    mask although it does not change); a constant image, or a texture without any light in it, gives lesions of a flat
    texture of 0.5 so that training goes on.

    One image and a batch go through the same code. A single image is checked; a batch of tensors is not looked at, so
    that nothing waits for the device: its values must be finite and within 0…1.

    Args:
        settings: sizes and options; the published ones by default.

    Attributes:
        draws: number of uniform numbers that one image takes.
        record: record of the last single image's twin; give it to `replay`.

    Example:
        >>> import torch
        >>> make = SyntheticLesionMask()
        >>> make.set_random_state(seed=0) is make
        True
        >>> image = torch.rand(1, 64, 64)
        >>> twin, mask = make(image)
        >>> mask.shape, bool((twin == image)[mask == 0].all())
        (torch.Size([1, 64, 64]), True)
    """

    backend = [TransformBackends.TORCH]  # noqa: RUF012 - MONAI reads it as a class attribute

    def __init__(self, settings: LesionSettings | None = None) -> None:
        self.settings = settings or LesionSettings()
        self.draws = self.settings.draws
        self.record: LesionRecord | None = None
        self._uniforms = np.empty((0, self.draws), dtype=np.float32)

    def randomize(self, data: int) -> None:
        """Draw the uniform numbers of so many images."""
        numbers = self.R.random_sample((data, self.draws)).astype(np.float32)
        self._uniforms = np.minimum(numbers, np.float32(1 - 2**-24))  # rounding to float32 can give 1

    def __call__(
        self,
        img: NdarrayOrTensor,
        uniforms: Tensor | None = None,
        centers: Tensor | None = None,
        lungs: Tensor | None = None,
        name: str = "image",
    ) -> tuple[NdarrayOrTensor, NdarrayOrTensor]:
        """Make a twin.

        Args:
            img: (C, H, W), or tensors (B, C, H, W), float in 0…1, C equal channels.
            uniforms: (B, draws) float32 in [0, 1); drawn if not given.
            centers: (B, 2) row and column in pixels that the texture comes from; searched if not given.
            lungs: (B, 1, h, w) lung map in 0…1 over the whole image; estimated if not given and needed.
            name: name of the image in errors.

        Returns:
            Twin of the image's shape and type, and mask (1, H, W) or (B, 1, H, W) float32, 1 where a lesion was added.

        Raises:
            RadiographError: if an image has another shape, or a single one has unequal channels or values outside 0…1.
            AfireError: for uniforms of another shape, or an image smaller than 8 pixels.
        """
        single = img.ndim == 3
        images = _checked(img, name)[None] if single else _batch_of(img, name)
        if uniforms is None:
            self.randomize(len(images))
            uniforms = torch.from_numpy(self._uniforms)
        if uniforms.shape != (len(images), self.draws):
            expected = (len(images), self.draws)
            raise AfireError(f"uniforms are {tuple(uniforms.shape)}; expected (B, draws) = {expected}.")
        centers, lungs = self._anatomy(images, centers, lungs)
        twin, mask = self._add(images, uniforms.to(images.device, torch.float32, non_blocking=True), centers, lungs)
        if not single:
            return twin, mask
        place = (float(centers[0, 0]), float(centers[0, 1]))
        size = (images.shape[2], images.shape[3])
        self.record = LesionRecord(size, tuple(uniforms[0].tolist()), place)
        if isinstance(img, np.ndarray):
            return twin[0].numpy().astype(img.dtype, copy=False), mask[0].numpy()
        return convert_to_dst_type(twin[0], img)[0], convert_to_dst_type(mask[0], img, dtype=torch.float32)[0]

    def replay(self, img: NdarrayOrTensor, record: LesionRecord) -> tuple[NdarrayOrTensor, NdarrayOrTensor]:
        """Make the twin that a record describes; arguments and result as in `__call__`.

        Raises RadiographError: also if the record was made for another image size.
        """
        if tuple(img.shape[1:]) != tuple(record.image_size):
            raise RadiographError(f"'image' is {tuple(img.shape[1:])}; the lesion record is for {record.image_size}.")
        return self(img, torch.tensor([record.uniforms]), torch.tensor([record.center]))

    def _anatomy(self, images: Tensor, centers: Tensor | None, lungs: Tensor | None) -> tuple[Tensor, Tensor | None]:
        needs_lungs = self.settings.lung_probability > 0
        if centers is None or (needs_lungs and lungs is None):
            found = anatomy_of(images)
            if centers is None:
                centers = centers_in_pixels(found, images.shape[2], images.shape[3])
            if needs_lungs and lungs is None:
                lungs = lungs_of(found)
        return centers.to(images.device, torch.float32, non_blocking=True), lungs if needs_lungs else None

    @torch.no_grad()
    def _add(self, images: Tensor, uniforms: Tensor, centers: Tensor, lungs: Tensor | None) -> tuple[Tensor, Tensor]:
        with torch.autocast(images.device.type, enabled=False):
            pictures = images.float()
            added = added_by_lesions(self.settings, pictures[:, 0], uniforms, centers, lungs)[:, None]
            twin = add_to_images(self.settings, pictures, added, uniforms)
        return twin.to(images.dtype), added.sign()


class SyntheticLesionMaskd(MapTransform, Randomizable):
    """Dictionary form of `SyntheticLesionMask`: adds the twin and its mask, and leaves the image as it is.

    A single image (C, H, W), as in a `Compose` behind `LoadImaged`, and a batch (B, C, H, W) on the device, as in the
    training step, go through the same code. ``uniforms``, ``centers`` and ``lungs`` are taken from the dictionary where
    they are there.

    Args:
        keys: key of the image (one key).
        twin_key: key of the twin to write.
        mask_key: key of the mask to write.
        record_key: key of the record of a single image (a plain dictionary) to write; not written if None.
        settings: sizes and options; the published ones by default.
        allow_missing_keys: do nothing if the image is missing.

    Raises:
        RadiographError: for more than one key, or an output key that is the image's.

    Example:
        >>> import torch
        >>> sorted(SyntheticLesionMaskd("image")({"image": torch.rand(1, 64, 64)}))
        ['image', 'mask', 'twin']
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

    @property
    def draws(self) -> int:
        """Return how many uniform numbers one image takes."""
        return self.mask.draws

    @property
    def settings(self) -> LesionSettings:
        """Return the sizes and options."""
        return self.mask.settings

    def set_random_state(
        self, seed: int | None = None, state: np.random.RandomState | None = None
    ) -> SyntheticLesionMaskd:
        """Seed the draws, as MONAI's random transforms do."""
        super().set_random_state(seed, state)
        self.mask.set_random_state(seed, state)
        return self

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        """Add twin and mask (and record) to a dictionary that holds an image in 0…1."""
        result = dict(data)
        for key in self.key_iterator(result):
            given = {name: result.get(name) for name in ("uniforms", "centers", "lungs")}
            result[self.twin_key], result[self.mask_key] = self.mask(result[key], **given, name=str(key))
            if self.record_key is not None and self.mask.record is not None:
                result[self.record_key] = self.mask.record.to_dict()
        return result


def centers_in_pixels(anatomy: Tensor, height: int, width: int) -> Tensor:
    """Return the texture's centres (B, 2), row and column in pixels, from `Anatomy`'s values (B, 1026)."""
    rows, columns = anatomy[:, :2].float().unbind(1)
    return torch.stack([rows * height - 0.5, columns * width - 0.5], dim=1)


def lungs_of(anatomy: Tensor) -> Tensor:
    """Return the lung map (B, 1, 32, 32) from `Anatomy`'s values (B, 1026)."""
    return anatomy[:, 2:].float().unflatten(1, (1, LUNG_SIDE, LUNG_SIDE))


def _batch_of(images: NdarrayOrTensor, name: str) -> Tensor:
    if not isinstance(images, Tensor) or images.ndim != 4 or not images.is_floating_point():
        raise RadiographError(
            f"'{name}' is {tuple(images.shape)} {images.dtype}; expected (C, H, W) floats in 0…1, or tensors "
            "(B, C, H, W)."
        )
    check_size(images.shape[2], images.shape[3], name)
    return images.as_tensor() if isinstance(images, MetaTensor) else images


def _checked(image: NdarrayOrTensor, name: str) -> Tensor:
    """Return an image as a float32 tensor (C, H, W), or raise an error that describes its fault."""
    array = image if isinstance(image, np.ndarray) else np.asarray(image.detach().cpu())
    if array.shape[0] == 0 or not np.issubdtype(array.dtype, np.floating):
        raise RadiographError(f"'{name}' is {array.shape} {array.dtype}; expected (C, H, W) floats in 0…1.")
    check_size(array.shape[1], array.shape[2], name)
    array = np.ascontiguousarray(array, dtype=np.float32)
    low, high = float(array.min()), float(array.max())  # either is NaN if any value is
    if not (low >= 0 and high <= 1):
        raise RadiographError(f"'{name}' has values from {low:g} to {high:g}; expected finite values within 0…1.")
    if array.shape[0] > 1 and not (array[1:] == array[:1]).all():
        raise RadiographError(
            f"'{name}' has {array.shape[0]} channels that differ; expected equal ones (a grey image)."
        )
    return torch.from_numpy(array)
