"""Masks by hand: bounds of what JPEG may have changed, halves of cells, empty paths, and classes that make no sense."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from afire_monai.core.errors import DataListError, RadiographError
from afire_monai.radiographs.masks import MaskReading, read_mask


def blocks(path: Path, *values: int) -> Path:
    """A JPEG of 100 blocks of one grey level each: black, but the first ones; such blocks come back as they were."""
    grey = np.zeros(100, np.uint8)
    grey[: len(values)] = values
    picture = Image.fromarray(np.kron(grey.reshape(10, 10), np.ones((8, 8), np.uint8)))
    picture.save(path, quality=100)
    return path


def reading(classes: object, size: tuple[int, int] = (1, 2), ignore: int | None = None) -> MaskReading:
    return MaskReading(lambda item: {"image": item["image"]}, size, classes, ignore)  # type: ignore[arg-type]


@pytest.mark.parametrize(("level", "read"), [(40, 0), (215, 255), (41, None), (214, None), (127, None)])
def test_levels_that_jpeg_may_have_moved_black_and_white_to(tmp_path: Path, level: int, read: int | None) -> None:
    path = blocks(tmp_path / "a.jpg", *[level] * 100)
    if read is None:
        with pytest.raises(RadiographError, match="lossy mask"):
            read_mask(path)
    else:
        assert np.unique(read_mask(path)).tolist() == [read]


def test_two_hundredths_may_lie_between_and_fall_to_the_nearer_side(tmp_path: Path) -> None:
    values = read_mask(blocks(tmp_path / "a.jpg", 127, 128))
    assert (values[:8, :8] == 0).all()
    assert (values[:8, 8:16] == 255).all()
    assert values.dtype == np.uint8
    with pytest.raises(RadiographError, match="lossy mask"):
        read_mask(blocks(tmp_path / "b.jpg", 128, 128, 128))


def test_two_frames_colours_and_numbers_with_a_point_are_refused(tmp_path: Path) -> None:
    frames = [Image.fromarray(np.full((4, 4), level, np.uint8)) for level in (0, 255)]
    frames[0].save(tmp_path / "a.gif", save_all=True, append_images=frames[1:])
    with pytest.raises(RadiographError, match="multi-frame mask: it holds 2 frames"):
        read_mask(tmp_path / "a.gif")
    for channel in range(3):
        colour = np.zeros((4, 4, 3), np.uint8)
        colour[0, 0, channel] = 1
        Image.fromarray(colour).save(tmp_path / "b.png")
        with pytest.raises(RadiographError, match="it is RGB"):
            read_mask(tmp_path / "b.png")
    palette = Image.fromarray(np.array([[0, 1], [1, 0]], np.uint8))
    palette.putpalette([0, 0, 0, 9, 9, 8])
    palette.save(tmp_path / "c.png")
    with pytest.raises(RadiographError, match="it is palette of colours"):
        read_mask(tmp_path / "c.png")


def test_item_comes_back_with_image_and_mask_and_an_empty_path_is_an_empty_mask(tmp_path: Path) -> None:
    Image.fromarray(np.array([[7, 0]], np.uint8)).save(tmp_path / "a.png")
    read = reading({"one": [7], "any": []})
    found = read({"image": "i", "mask": str(tmp_path / "a.png")})
    assert found["image"] == "i"
    assert found["mask"].tolist() == [[[1, 0]], [[1, 0]]]
    for path in ("", None):
        assert torch.equal(read({"image": "i", "mask": path})["mask"], torch.zeros(2, 1, 2))


def test_half_of_a_cell_is_not_most_of_it(tmp_path: Path) -> None:
    # cells of 2 x 2: half, three quarters, half to ignore, three quarters to ignore
    values = [[5, 0, 5, 5, 9, 0, 9, 9], [5, 0, 5, 0, 9, 5, 9, 5]]
    Image.fromarray(np.array(values, np.uint8)).save(tmp_path / "a.png")
    found = reading({"a": [5], "b": []}, (1, 4), ignore=9).read_mask(str(tmp_path / "a.png"))
    assert found.dtype == torch.float32
    for plane in found:
        assert plane[0, :3].tolist() == [0, 1, 0]
        assert plane[0, 3].isnan()
    # without a value to ignore, 9 is a value like any other: any value but 0 belongs to the class
    found = reading({"b": []}, (1, 4)).read_mask(str(tmp_path / "a.png"))
    assert found.tolist() == [[[0, 1, 1, 1]]]


@pytest.mark.parametrize(
    "classes",
    [{}, [1], {"a": [1], "b": "x"}, {"a": [1, "x"]}, {"a": [True]}, {"a": [-1]}, {"a": [65536]}, {"a": [0.5]}],
)
def test_classes_that_make_no_sense_are_refused(classes: object) -> None:
    with pytest.raises(DataListError, match="classes must name mask values in 0…65535"):
        reading(classes)


def test_values_at_the_bounds_and_tuples_are_taken() -> None:
    read = reading({"a": (0, 65535), "b": []}, (3, 4))
    assert read.classes == {"a": [0, 65535], "b": []}
    assert (read.size, read.ignore) == ((3, 4), None)
