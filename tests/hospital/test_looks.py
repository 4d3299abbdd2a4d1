from __future__ import annotations

import csv
import random
from pathlib import Path

import numpy as np
import pytest
from hospital_files import chest
from PIL import Image, ImageDraw, ImageFont

from afire_monai.hospital.convert import burned_in_text
from afire_monai.radiographs.decode import read_picture
from afire_monai.radiographs.frontal_look import chest_grid, frontal_look, looks_frontal, lung_fields, spread


def picture(seed: int = 0, side: int = 512) -> np.ndarray:
    return (chest(seed, side) / 4095).astype(np.float32)


def written(text: str, where: tuple[float, float], bright: bool = True, side: int = 512) -> np.ndarray:
    image = Image.fromarray((picture(0, side) * 200 + 20).astype(np.uint8))
    place = (round(where[0] * side), round(where[1] * side))
    ImageDraw.Draw(image).text(place, text, fill=255 if bright else 0, font=ImageFont.load_default(size=side // 32))
    return np.asarray(image, dtype=np.float32) / 255


def test_two_fields_are_told_from_one_and_from_none() -> None:
    frontal = picture()
    one = frontal.copy()
    one[:, 256:] = frontal[:, 250:251]  # bright from the middle on
    flat = np.linspace(0, 1, 512, dtype=np.float32)[None].repeat(512, 0)
    assert looks_frontal(frontal)
    assert not looks_frontal(one)
    assert not looks_frontal(flat)


def test_lung_fields_do_not_depend_on_contrast_or_mirroring() -> None:
    frontal = picture()
    plain, faint, mirrored = (lung_fields(spread(p)) for p in (frontal, frontal * 0.3 + 0.2, frontal[:, ::-1].copy()))
    assert faint == pytest.approx(plain, abs=1e-4)
    assert mirrored == pytest.approx(plain, abs=0.05)


@pytest.mark.parametrize("bright", [True, False])
@pytest.mark.parametrize("where", [(0.02, 0.02), (0.5, 0.93), (0.45, 0.02)])
def test_line_of_letters_near_the_border_is_seen(where: tuple[float, float], bright: bool) -> None:
    assert burned_in_text(written("DOE JOHN 1943", where, bright)) >= 5


def test_side_marker_and_plain_picture_are_no_text() -> None:
    assert burned_in_text(picture()) == 0
    assert burned_in_text(written("L", (0.05, 0.05))) == 0
    assert burned_in_text(np.zeros((512, 512), dtype=np.float32)) == 0
    assert burned_in_text(np.ones((20, 20), dtype=np.float32)) == 0


@pytest.mark.real_data
def test_hardly_any_frontal_radiograph_is_lost(real_data: Path) -> None:
    with (real_data / "cxr" / "manifest.csv").open(newline="") as file:
        paths = [row["path"] for row in csv.DictReader(file)]
    chosen = random.Random(1).sample(paths, 300)
    lost = sum(not looks_frontal(read_picture(real_data / "cxr" / path).pixels) for path in chosen)
    assert lost <= 3


def test_grid_holds_standardised_grey_levels_of_both_sides() -> None:
    quarter = np.zeros((64, 64), dtype=np.float32)
    quarter[:32, :32] = 1
    # a quarter of ones has mean 1/4 and deviation sqrt(3)/4; the left half is added to the dark right one
    grid = chest_grid(spread(quarter))
    np.testing.assert_allclose(grid[:4], (3 - 1) / np.sqrt(3), atol=1e-6)
    np.testing.assert_allclose(grid[4:], -2 / np.sqrt(3), atol=1e-6)


@pytest.mark.real_data
def test_most_of_what_is_turned_inverted_or_of_the_limbs_is_seen(real_data: Path) -> None:
    with (real_data / "cxr" / "manifest.csv").open(newline="") as file:
        paths = [row["path"] for row in csv.DictReader(file)]
    pictures = [read_picture(real_data / "cxr" / path).pixels for path in random.Random(2).sample(paths, 150)]
    turned = {
        "right": [np.rot90(p).copy() for p in pictures], "down": [p[::-1].copy() for p in pictures],
        "inverted": [1 - p for p in pictures],
    }  # fmt: skip
    passed = {name: np.mean([looks_frontal(p) for p in found]) for name, found in turned.items()}
    assert passed["right"] < 0.15
    assert passed["down"] < 0.3
    assert passed["inverted"] < 0.03
    pytest.importorskip("openjpeg", reason="needs the decoders of the dicom extra")
    for name in ("hip_mono2_rle", "extremity_mono1_jpegls_lossless", "cr_modality_lut_sequence_jpeg_lossless"):
        assert not looks_frontal(read_picture(real_data / "dicom" / "other_cr" / f"{name}.dcm").pixels), name


def test_mirroring_changes_nothing_and_turning_does() -> None:
    frontal = picture()
    assert frontal_look(np.ascontiguousarray(frontal[:, ::-1])) == pytest.approx(frontal_look(frontal), abs=0.5)
    assert not looks_frontal(np.rot90(frontal).copy())
    assert not looks_frontal(1 - frontal)
