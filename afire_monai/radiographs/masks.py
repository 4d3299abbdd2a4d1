"""Reading of masks beside their images."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

from afire_monai.core.errors import DataListError, RadiographError


class MaskReading:
    """Read an item's image and its mask: (classes, H, W) float32 of 1, 0, and NaN for pixels to ignore.

    Args:
        reading: reads the image of an item.
        size: height and width to bring the mask to; a pixel belongs to a class if more than half of its area does.
        classes: name of each class and the mask values that mean it; an empty list means every value but 0 and
            ``ignore``.
        ignore: the mask value of pixels to leave out; None for none.

    Raises:
        DataListError: if there is no class, or a mask value is outside 0…255.
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
            raise DataListError(f"classes must name mask values in 0…255, for example {{lung: [255]}}; got {classes}")
        self.classes = {name: list(values) for name, values in classes.items()}

    def __call__(self, item: Mapping[str, Any]) -> dict[str, Any]:
        """Give the item with ``image`` and ``mask`` read.

        Raises:
            RadiographError: if the mask cannot be read or is no single-channel picture.
        """
        return {**self.reading(item), "mask": self.read_mask(item.get("mask"))}

    def read_mask(self, path: str | None) -> Tensor:
        """Read a mask (classes, H, W); an empty path is an empty mask.

        Raises:
            RadiographError: if it cannot be read or is no single-channel picture.
        """
        if not path:
            return torch.zeros(len(self.classes), *self.size)
        try:
            with Image.open(path) as picture:
                # 1 bit a pixel: white is 255, as it is for whoever looks at the picture
                values = np.array(picture.convert("L") if picture.mode == "1" else picture)
        except (OSError, SyntaxError, ValueError, TypeError, AttributeError, Image.DecompressionBombError) as error:
            raise RadiographError(f"{path}: this mask cannot be read ({error}); make it again as PNG") from error
        if values.ndim != 2:
            raise RadiographError(f"{path}: a mask of shape {values.shape}; one channel of label values is expected")
        ignored = values == self.ignore if self.ignore is not None else np.zeros(values.shape, bool)
        planes = [np.isin(values, v) if v else (values > 0) & ~ignored for v in self.classes.values()]
        stack = torch.from_numpy(np.stack([*planes, ignored])).float()[None]
        shrunk = F.adaptive_avg_pool2d(stack, self.size)[0]
        # where a cell of the smaller grid is mostly "ignore", nothing is known
        return (shrunk[:-1] > 0.5).float().masked_fill(shrunk[-1] > 0.5, float("nan"))


def _is_grey(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and 0 <= value <= 255
