from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from hospital_files import write
from PIL import Image

from afire_monai.core.errors import DataListError
from afire_monai.datalists.build import datalist_from_folder
from afire_monai.datalists.cells import parse_sex
from afire_monai.datalists.check import check_path


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    noise = np.random.default_rng(0).integers(0, 255, (20, 10, 3), dtype=np.uint8)
    Image.fromarray(noise[..., 0]).save(tmp_path / "good.png")
    Image.fromarray(noise[:10, :, 1]).save(tmp_path / "good2.jpg")
    Image.fromarray(noise).save(tmp_path / "colour.png")
    Image.fromarray(noise[..., ::-1]).save(tmp_path / "colour2.png")
    Image.fromarray(np.zeros((20, 10), dtype=np.uint8)).save(tmp_path / "black.png")
    Image.fromarray(np.full((20, 10), 7, dtype=np.uint8)).save(tmp_path / "flat.png")
    Image.fromarray(noise[..., 0] // 32).save(tmp_path / "dark.png")
    (tmp_path / "empty.png").write_bytes(b"")
    (tmp_path / "notes.txt").write_text("not an image, not listed")
    return tmp_path


def test_folder_is_counted_and_bad_files_do_not_stop_it(folder: Path) -> None:
    report = check_path(folder, progress=False)
    assert report.total == 8
    assert {Path(facts.path).name for facts in report.readable} == {
        "good.png", "good2.jpg", "black.png", "flat.png", "dark.png"
    }  # fmt: skip
    assert {kind: len(files) for kind, files in report.refused_by_kind().items()} == {
        "colour image": 2,
        "empty file": 1,
    }
    assert {kind: [Path(p).name for p in paths] for kind, paths in report.intensity_problems().items()} == {
        "all black": ["black.png"],
        "constant": ["flat.png"],
        "hardly any contrast": ["dark.png"],
    }
    assert not report.ok


def test_summary_says_in_words_what_was_found(folder: Path) -> None:
    text = check_path(folder, progress=False).summary(most=1)
    assert "8 files: 5 readable, 3 refused" in text
    assert "smallest 10 × 10, median 20 × 10, largest 20 × 10" in text
    assert "JPEG 1, PNG 4" in text
    assert "refused, colour image: 2" in text
    assert "… and 1 more" in text
    assert "readable, but all black: 1" in text


def test_pixels_that_are_not_square_are_named(tmp_path: Path) -> None:
    for name, spacing in (("square", [0.14, 0.1401]), ("stretched", [0.14, 0.2]), ("zero", [0.0, 0.2])):
        write(tmp_path / name, PixelSpacing=spacing)
    report = check_path(tmp_path, progress=False)
    assert [Path(facts.path).name for facts in report.readable if facts.stretched] == ["stretched"]
    assert "pixels are not square, so the picture is stretched: 1" in report.summary()
    assert report.ok


def test_data_list_is_checked_with_its_missing_files(folder: Path) -> None:
    items = [{"image": name} for name in ("good.png", "good2.jpg", "gone.png")]
    (folder / "list.json").write_text(json.dumps({"training": items[:1], "test": items[1:]}))
    report = check_path(folder / "list.json", progress=False)
    assert (report.total, [Path(r.path).name for r in report.refused]) == (3, ["gone.png"])


def test_good_data_is_ok(folder: Path) -> None:
    for name in ("colour.png", "colour2.png", "black.png", "flat.png", "dark.png", "empty.png"):
        (folder / name).unlink()
    assert check_path(folder, progress=False).ok
    datalist_from_folder(folder, out=folder / "l.json")
    assert check_path(folder / "l.json", progress=False, workers=1).ok
    assert check_path(folder / "good.png", progress=False).ok


def test_error_of_a_decoder_that_nobody_foresaw_does_not_stop_it(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(path: str) -> None:
        raise ZeroDivisionError

    monkeypatch.setattr("afire_monai.datalists.check.read_picture", fail)
    assert list(check_path(folder, progress=False).refused_by_kind()) == ["unexpected error"]


def test_nothing_to_check_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(DataListError, match="no such file or folder"):
        check_path(tmp_path / "nowhere")
    with pytest.raises(DataListError, match="no PNG, JPEG, NIfTI or DICOM"):
        check_path(tmp_path)


@pytest.mark.real_data
def test_dicom_corpus_is_reported_with_reasons(real_data: Path) -> None:
    report = check_path(real_data / "dicom", progress=False)
    assert report.total == 26
    assert {"modality CT", "modality SEG", "modality MR", "modality NM"} <= set(report.refused_by_kind())
    assert sum(facts.format == "DICOM" for facts in report.readable) == len(report.readable) >= 8


def test_next_step_names_the_list_that_keeps_the_reader_options(tmp_path, capsys):
    from afire_monai.cli.main import run

    for number in range(3):
        grey = np.random.default_rng(number).integers(0, 4096, (16, 16)).astype(np.uint16)
        Image.fromarray(grey).save(tmp_path / f"{number}.png")
    sections = {name: [{"image": f"{n}.png"}] for n, name in enumerate(("training", "validation", "test"))}
    (tmp_path / "list.json").write_text(json.dumps(sections), encoding="utf-8")
    words = ["check", str(tmp_path / "list.json"), "--png16-max", "4095"]
    assert run(words) == 0
    printed = capsys.readouterr().out
    assert "--write FILE makes one that keeps these options" in printed
    assert "next:" not in printed
    assert run([*words, "--write", str(tmp_path / "kept.json")]) == 0
    assert f"next:    afire pretrain {tmp_path / 'kept.json'} --out" in capsys.readouterr().out


@pytest.mark.parametrize(("text", "sex"), [("w", "F"), ("Weiblich", "F"), ("männlich", "M"), ("m", "M"), ("d", None)])
def test_sex_is_also_read_in_german(text, sex):
    assert parse_sex(text) == sex
