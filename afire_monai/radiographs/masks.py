"""The only reader of masks, alone or together with their images."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from os import PathLike, fspath
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from afire_monai.core.errors import DataListError, RadiographError
from afire_monai.radiographs.picture import check_size, refusal

MASK_FORMATS = ("PNG", "GIF", "BMP", "JPEG")
"""What is opened as a mask, whatever it is called: no format whose reader starts other programs."""
MASK_SUFFIXES = (".png", ".gif", ".bmp", ".jpg", ".jpeg")
_BLUR = 40
"""How far, of 255, JPEG may have moved black and white."""


def read_mask(path: str | PathLike[str]) -> NDArray[np.integer[Any]]:
    """Read a drawn mask (H, W) of label values as a viewer shows them, 0…255, or 0…65535 of a 16-bit PNG.

    The colours of a grey palette count, not its indices; three equal channels of 8 bits are their
    grey; white is 255 in a picture of less than 8 bits. A JPEG is read if it is black and white, and comes out as 0
    and 255.

    Raises:
        RadiographError: if it is not a picture of `MASK_FORMATS`, is too large, has several frames, or is not grey.
    """
    try:
        with Image.open(fspath(path), formats=MASK_FORMATS) as picture:
            check_size(path, picture.height, picture.width)
            if (frames := getattr(picture, "n_frames", 1)) > 1:
                raise refusal(path, "multi-frame mask", f"it holds {frames} frames; save one a file")
            mode, name = picture.mode, picture.format
            if mode == "RGB" and any(";16" in str(tile.args) for tile in picture.tile):
                raise refusal(path, "colour mask", "it has three channels of 16 bits; save it as grey PNG")
            if mode == "P":
                picture.apply_transparency()
                colours = np.asarray(picture.getpalette("RGB"), dtype=np.uint8).reshape(-1, 3)
                used = np.unique(np.asarray(picture))
                if (colours[used] == colours[used, :1]).all():
                    return colours[np.asarray(picture), 0]
                mode = "palette of colours"
            values = np.array(picture.convert("L") if mode == "1" else picture)
            if mode == "RGB" and (values == values[..., :1]).all():
                values = values[..., 0]
    except RadiographError:
        raise
    except (OSError, SyntaxError, ValueError, TypeError, IndexError, EOFError, MemoryError,
            Image.DecompressionBombError) as error:  # fmt: skip
        if isinstance(error, OSError) and error.errno is not None:
            raise refusal(path, "mask not readable", f"{error.strerror}. Check the path") from error
        raise refusal(
            path, "mask not readable", f"{', '.join(MASK_FORMATS)} is read, but this is broken or something else "
            f"({type(error).__name__}); make it again as grey PNG"
        ) from error  # fmt: skip
    if values.ndim != 2 or mode == "palette of colours" or values.dtype.kind not in "ui":
        raise refusal(path, "colour mask", f"it is {mode}; one grey value for each class is read. Save it as grey PNG")
    if name in ("JPEG", "MPO"):
        if ((values > _BLUR) & (values < 255 - _BLUR)).mean() > 0.02:
            raise refusal(path, "lossy mask", "JPEG has changed its label values; save the mask as PNG")
        return np.where(values > 127, np.uint8(255), np.uint8(0))
    return values


def mask_folders(paths: Iterable[Path]) -> list[Path]:
    """Return the folders of radiographs that hold masks: their first pictures, two to four, have two values each."""
    folders: dict[Path, list[Path]] = defaultdict(list)
    for path in paths:
        if path.suffix.lower() in (".png", ".jpg", ".jpeg") and len(folders[path.parent]) < 4:
            folders[path.parent].append(path)
    return [folder for folder, some in folders.items() if len(some) > 1 and all(map(_of_two_values, some))]


def _of_two_values(path: Path) -> bool:
    try:
        return len(np.unique(read_mask(path))) <= 2
    except RadiographError:
        return False


class MaskReading:
    """Read an item's image and its mask: (classes, H, W) float32 of 1, 0, and NaN for pixels to ignore.

    Args:
        reading: function that reads the image of an item.
        size: height and width to bring the mask to; a pixel belongs to a class if more than half of its area does.
        classes: name of each class and the mask values that mean it; an empty list means every value but 0 and
            ``ignore``.
        ignore: the mask value of pixels to leave out; None for none.

    Raises:
        DataListError: if there is no class, or a mask value is outside 0…65535.
    """

    def __init__(
        self,
        reading: Callable[[Any], Any],
        size: Sequence[int],
        classes: Mapping[str, Sequence[int]],
        ignore: int | None = None,
    ) -> None:
        self.reading = reading
        self.size = (int(size[0]), int(size[1]))
        self.ignore = ignore
        groups = list(classes.values()) if isinstance(classes, Mapping) else [None]
        right = all(isinstance(g, list | tuple) and all(_is_grey(v) for v in g) for g in groups)
        if not groups or not right:
            raise DataListError(f"classes must name mask values in 0…65535, for example {{lung: [255]}}; got {classes}")
        self.classes = {name: list(values) for name, values in classes.items()}

    def __call__(self, item: Mapping[str, Any]) -> dict[str, Any]:
        """Return the item with ``image`` and ``mask`` read."""
        return {**self.reading(item), "mask": self.read_mask(item.get("mask"))}

    def read_mask(self, path: str | None) -> Tensor:
        """Read a mask (classes, H, W); an empty path is an empty mask."""
        if not path:
            return torch.zeros(len(self.classes), *self.size)
        values = read_mask(path)
        ignored = values == self.ignore if self.ignore is not None else np.zeros(values.shape, bool)
        planes = [np.isin(values, v) if v else (values > 0) & ~ignored for v in self.classes.values()]
        stack = torch.from_numpy(np.stack([*planes, ignored])).float()[None]
        shrunk = F.adaptive_avg_pool2d(stack, self.size)[0]
        # a cell of the smaller grid that is mostly "ignore" counts as not known
        return (shrunk[:-1] > 0.5).float().masked_fill(shrunk[-1] > 0.5, float("nan"))


def _is_grey(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and 0 <= value <= 65535
