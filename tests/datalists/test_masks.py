"""Masks: read as they look, and checked before a training."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from afire_monai.cli.main import run
from afire_monai.core.errors import DataListError, RadiographError
from afire_monai.datalists.build import datalist_from_folder
from afire_monai.datalists.mask_check import mask_problems, refuse_wrong_masks
from afire_monai.radiographs.masks import read_mask

CASES = Path(__file__).resolve().parents[3] / "shared" / "cases" / "masks"
SQUARE = np.zeros((8, 6), np.uint8)
SQUARE[2:5, 1:4] = 1


def save(path: Path, values: np.ndarray, mode: str | None = None, palette: list[int] | None = None) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    picture = Image.fromarray(values)
    if palette is not None:
        picture.putpalette(palette)
    (picture.convert(mode) if mode else picture).save(path)
    return path


@pytest.mark.parametrize(
    ("values", "mode", "palette", "white"),
    [
        (SQUARE, None, None, 1), (SQUARE * 254, None, None, 254), (SQUARE * 255, None, None, 255),
        (SQUARE * 255, "1", None, 255), (SQUARE.astype(np.uint16) * 65535, None, None, 65535),
        (1 - SQUARE, None, [255, 255, 255, 0, 0, 0], 255), (SQUARE, None, [0, 0, 0, 255, 255, 255], 255),
        (SQUARE, None, [0, 0, 0, 1, 1, 1], 1), (np.stack([SQUARE * 9] * 3, -1), None, None, 9),
    ],
)  # fmt: skip
def test_mask_is_what_one_sees(
    tmp_path: Path, values: np.ndarray, mode: str | None, palette: list[int] | None, white: int
) -> None:
    np.testing.assert_array_equal(read_mask(save(tmp_path / "m.png", values, mode, palette)), SQUARE * np.int64(white))


def test_gif_and_black_and_white_jpeg_are_masks(tmp_path: Path) -> None:
    large = np.kron(SQUARE, np.ones((16, 16), np.uint8)) * 255
    np.testing.assert_array_equal(read_mask(save(tmp_path / "m.gif", large)), large)
    Image.fromarray(large).save(tmp_path / "m.jpg", quality=80)
    np.testing.assert_array_equal(read_mask(tmp_path / "m.jpg"), large)
    Image.fromarray(large // 2).save(tmp_path / "grey.jpg")
    with pytest.raises(RadiographError, match="lossy mask"):
        read_mask(tmp_path / "grey.jpg")


def test_what_is_no_mask_is_refused_without_other_programs(tmp_path: Path) -> None:
    (tmp_path / "eps.png").write_bytes(b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 8 8\nshowpage\n")
    save(tmp_path / "rgb.png", np.stack([SQUARE * 255, SQUARE * 255, SQUARE], -1))
    save(tmp_path / "colours.png", SQUARE, None, [0, 0, 0, 255, 0, 0])
    Image.fromarray(SQUARE).save(tmp_path / "tiff.png", format="TIFF")
    huge = bytearray(save(tmp_path / "ok.png", SQUARE).read_bytes())
    huge[16:24] = (60_000).to_bytes(4, "big") * 2
    (tmp_path / "huge.png").write_bytes(huge)
    for name, kind in [("eps", "mask not readable"), ("tiff", "mask not readable"), ("rgb", "colour mask"),
                       ("colours", "colour mask"), ("huge", ".*"), ("gone", "mask not readable: No such")]:  # fmt: skip
        with pytest.raises(RadiographError, match=rf"{name}\.png: ({kind})"):
            read_mask(tmp_path / f"{name}.png")


def folder(tmp_path: Path, masks: dict[str, Any]) -> list[dict[str, Any]]:
    """Items with an image of 8 × 6 each and the masks given."""
    noise = np.random.default_rng(0)
    items = []
    for number, (name, mask) in enumerate(masks.items()):
        image = save(tmp_path / "images" / f"{number}.png", noise.integers(0, 255, (8, 6), dtype=np.uint8))
        path = tmp_path / "masks" / f"{name}.png"
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(mask) if isinstance(mask, bytes) else save(path, mask)
        items.append({"image": str(image), "mask": str(path)})
    return items


def found(items: list[dict[str, Any]], **options: Any) -> set[tuple[str, str]]:
    entries = [("training", f"training[{i}]", item) for i, item in enumerate(items)]
    return {(p.kind, p.severity) for p in mask_problems(entries, **options)}


def test_each_kind_of_wrong_mask_is_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    items = folder(
        tmp_path,
        {"a": SQUARE, "b": SQUARE, "white": SQUARE * 255, "broken": b"x",
         "rgb": np.stack([SQUARE, SQUARE, 2 * SQUARE], -1),
         "size": SQUARE[:, :3], "empty": SQUARE * 0},
    )  # fmt: skip
    errors = {("mask not readable", "error"), ("colour mask", "error"), ("mask of another size", "error")}
    assert found(items) == errors | {("empty mask", "warning"), ("another mask value", "warning")}
    assert found(items[:2], classes={"lung": [255]}) == {
        ("class that no mask has", "error"), ("values outside the classes", "warning")
    }  # fmt: skip
    assert found(items[:2], classes={"lung": [1]}) == set() == found(items[:2], classes={"any": []})
    ignored = found(items[:2], classes={"any": []}, ignore=1)
    assert ignored == {("class that no mask has", "error"), ("empty mask", "warning")}
    (tmp_path / "l.json").write_text(json.dumps({"training": items}))
    made = str(tmp_path / "l.json")
    for command in (["check", made, "--quiet"], ["datalist", "validate", made, "--decode"]):
        assert run(command) == 1
        printed = capsys.readouterr().out
        for kind in ("mask not readable", "colour mask", "mask of another size", "empty mask", "another mask value"):
            assert kind in printed
    assert run(["check", made, "--quiet", "--classes", "lung=7"]) == 1
    assert "'lung' is 7, but the masks have the values 0, 1, 255" in capsys.readouterr().out


def test_masks_that_would_spoil_a_training_stop_it(tmp_path: Path) -> None:
    items = folder(tmp_path, {"a": SQUARE, "b": SQUARE})
    refuse_wrong_masks(items, {"lung": [1]})
    with pytest.raises(DataListError, match="'lung' is 255, but the masks have the values 0, 1"):
        refuse_wrong_masks(items, {"lung": [255]})


def test_shared_masks_are_named_by_check(capsys: pytest.CaptureFixture[str]) -> None:
    if not CASES.is_dir():
        pytest.skip("no shared cases")
    assert (read_mask(CASES / "pal_white0.png") == 255).sum() == 768
    assert (read_mask(CASES / "i16.png") == 65535).sum() == 768
    assert run(["check", str(CASES / "list" / "listbad.json"), "--quiet"]) == 1
    printed = capsys.readouterr().out
    for kind, name in [("mask of another size", "size"), ("another mask value", "rgb"), ("mask not readable", "broken"),
                       ("another mask value", "pal"), ("empty mask", "empty")]:  # fmt: skip
        assert any(kind in line and f"m/{name}.png" in line for line in printed.splitlines()), kind
    assert run(["check", str(CASES / "list" / "list01.json"), "--quiet"]) == 0


def test_folder_of_masks_is_joined_by_name(tmp_path: Path) -> None:
    folder(tmp_path, {"0": SQUARE, "1_mask": SQUARE, "x": SQUARE, "2-seg": SQUARE})
    made = datalist_from_folder(tmp_path, masks=tmp_path / "masks", fractions=(1, 0, 0))
    assert {Path(i["image"]).name: Path(i.get("mask", "none")).name for i in made["training"]} == {
        "0.png": "0.png", "1.png": "1_mask.png", "2.png": "2-seg.png", "3.png": "none"
    }  # fmt: skip
    assert made["meta"]["skipped"] == {"mask_without_image": 1, "no_mask_but_kept": 1}
    save(tmp_path / "masks" / "0_mask.png", SQUARE)
    with pytest.raises(DataListError, match=r"0_mask\.png and .*0\.png could both be the mask of"):
        datalist_from_folder(tmp_path / "images", masks=tmp_path / "masks")


def test_folder_of_pictures_of_two_values_is_not_taken_for_radiographs(tmp_path: Path) -> None:
    folder(tmp_path, {"0": SQUARE, "1": SQUARE})
    with pytest.raises(DataListError, match=r"masks: each of its pictures has only two values.*--masks"):
        datalist_from_folder(tmp_path)
