"""Images that are left out by hand, and the sheet on which they are found."""

from __future__ import annotations

import csv
import os
import re
import stat
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hospital_files import PLANTED, chest, write
from PIL import Image

from afire_monai.cli.main import run as afire
from afire_monai.core.errors import AfireError
from afire_monai.hospital import contact_sheet
from afire_monai.hospital.contact_sheet import write_contact_sheet
from afire_monai.hospital.ingest import IngestSummary, ingest
from afire_monai.hospital.series_choice import DUPLICATE, EXCLUDED

SILENT = {"BodyPartExamined": "", "ViewPosition": ""}


def run(tmp_path: Path, **options: Any) -> IngestSummary:
    return ingest(tmp_path / "in", tmp_path / "out", **{"workers": 0, **options})


def index(out: Path) -> dict[str, str]:
    with (out / "private" / "index.csv").open(newline="") as file:
        return {os.path.basename(row["file"]): row["image"] for row in csv.DictReader(file)}


def listed(tmp_path: Path, text: str) -> Path:
    path = tmp_path / "unwanted"
    path.write_text(text)
    return path


@pytest.mark.parametrize(
    "form", ["{}", "\ufeff{}\r\n\r\n", "{}.png", "images/{}.png", "image,note\n{},a leg", "note;image\nx;{}"]
)
def test_listed_image_is_left_out_and_stays_left_out(tmp_path: Path, form: str) -> None:
    for seed in range(4):
        write(tmp_path / "in" / str(seed), seed)
    run(tmp_path)
    image = index(tmp_path / "out")["2"]
    done = run(tmp_path, exclude=listed(tmp_path, form.format(image)))
    assert (done.kept, done.left_out) == (3, {EXCLUDED: 1})
    assert not (tmp_path / "out" / "images" / f"{image}.png").exists()
    write(tmp_path / "in" / "5", 5)
    again = run(tmp_path)
    assert (again.kept, again.left_out) == (4, {EXCLUDED: 1})
    assert image not in (tmp_path / "out" / "datalist.json").read_text()


def test_next_image_of_the_series_may_stand_in_but_no_copy_of_the_excluded_one(tmp_path: Path) -> None:
    series = {"SeriesInstanceUID": "1.2.3", "PatientID": "P"}
    write(tmp_path / "in" / "a", 1, chest(1, 96), **series)
    write(tmp_path / "in" / "b", 2, **series)
    write(tmp_path / "in" / "c_same_pixels", 3, chest(1, 96), PatientID="Q")
    run(tmp_path)
    run(tmp_path, exclude=listed(tmp_path, index(tmp_path / "out")["a"]))
    assert set(index(tmp_path / "out")) == {"b"}
    with (tmp_path / "out" / "private" / "left_out.csv").open(newline="") as file:
        reasons = {os.path.basename(row["file"]): row["reason"] for row in csv.DictReader(file)}
    assert reasons == {"a": EXCLUDED, "c_same_pixels": DUPLICATE}
    run(tmp_path, max_side=32)
    assert set(index(tmp_path / "out")) == {"b"}
    assert len(list((tmp_path / "out" / "images").iterdir())) == 1


def test_excluded_in_a_new_folder_under_the_same_key(tmp_path: Path) -> None:
    for seed in range(3):
        write(tmp_path / "in" / str(seed), seed)
    run(tmp_path)
    unwanted = listed(tmp_path, index(tmp_path / "out")["1"])
    done = ingest(tmp_path / "in", tmp_path / "b", key=tmp_path / "out/private/key", exclude=unwanted, workers=0)
    assert done.left_out == {EXCLUDED: 1}


def test_line_that_is_no_image_of_the_folder_is_an_error_that_names_it_and_changes_nothing(tmp_path: Path) -> None:
    for seed in range(3):
        write(tmp_path / "in" / str(seed), seed)
    run(tmp_path)
    known, stranger = index(tmp_path / "out")["0"], "0123456789abcdef0123"
    before = (tmp_path / "out" / "datalist.json").read_bytes()
    with pytest.raises(AfireError, match=rf"line 2: no image of this folder \({stranger}\)"):
        run(tmp_path, exclude=listed(tmp_path, f"{known}\n{stranger}\n"))
    assert not (tmp_path / "out" / "private" / "excluded.csv").exists()
    with pytest.raises(AfireError, match="line 2: no hash or name of a picture") as error:
        run(tmp_path, exclude=listed(tmp_path, f"{known}\nZyxwolski^Anna\n"))
    assert "Zyxwolski" not in str(error.value)
    with pytest.raises(AfireError, match="No such file"):
        run(tmp_path, exclude=tmp_path / "nowhere")
    assert run(tmp_path).kept == 3
    assert (tmp_path / "out" / "datalist.json").read_bytes() == before


def test_contact_sheet_shows_what_rests_on_the_look_alone_and_says_what_to_do(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write(tmp_path / "in" / "says_so", 1)
    write(tmp_path / "in" / "silent", 2, **SILENT)
    assert afire(["ingest", str(tmp_path / "in"), "--out", str(tmp_path / "out"), "--workers", "0"]) == 0
    printed = capsys.readouterr().out
    assert "private/contact_sheet.html" in printed
    assert "--exclude FILE" in printed
    sheet = tmp_path / "out" / "private" / "contact_sheet.html"
    page = sheet.read_text()
    images = index(tmp_path / "out")
    assert re.findall(r"value='(\w+)'", page) == [images["silent"]]
    assert page.count("data:image/jpeg") == 1
    assert not any(word in page for word in PLANTED)
    assert stat.S_IMODE(sheet.stat().st_mode) == 0o600
    unwanted = listed(tmp_path, images["silent"])
    run(tmp_path, exclude=unwanted)
    assert not sheet.exists()


def test_pages_of_the_sheet_are_bounded_and_those_not_needed_any_more_are_removed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(contact_sheet, "A_PAGE", 2)
    monkeypatch.setattr(contact_sheet, "MOST_PAGES", 3)
    names = [f"{n:020x}" for n in range(8)]
    for name in names[1:]:
        Image.fromarray(np.full((400, 300), 30000, dtype=np.uint16)).save(tmp_path / f"{name}.png")
    assert write_contact_sheet(tmp_path, tmp_path, names) == 6
    pages = [tmp_path / f"contact_sheet{end}.html" for end in ("", "_2", "_3")]
    assert [re.findall(r"value='(\w+)'", page.read_text()) for page in pages] == [names[:2], names[2:4], names[4:6]]
    assert "cannot be shown" in pages[0].read_text()
    assert all(f"href='{page.name}'" in pages[1].read_text() for page in (pages[0], pages[2]))
    assert write_contact_sheet(tmp_path, tmp_path, names[1:2]) == 1
    assert [page.exists() for page in pages] == [True, False, False]
    assert write_contact_sheet(tmp_path, tmp_path, []) == 0
    assert not pages[0].exists()


def test_doubtful_pictures_come_first(tmp_path: Path) -> None:
    clear = chest(1, 96)
    weak = (2000 + (clear.astype(float) - 2000) * np.linspace(1, 0.25, 96)[:, None]).clip(0, 4095).astype(np.uint16)
    write(tmp_path / "in" / "a_clear", 1, clear, **SILENT)
    write(tmp_path / "in" / "b_weak", 2, weak, **SILENT)
    run(tmp_path)
    page = (tmp_path / "out" / "private" / "contact_sheet.html").read_text()
    images = index(tmp_path / "out")
    from afire_monai.radiographs.decode import read_picture
    from afire_monai.radiographs.frontal_look import frontal_look

    looks = {name: frontal_look(read_picture(tmp_path / "in" / name).pixels) for name in images}
    assert re.findall(r"value='(\w+)'", page) == [images[name] for name in sorted(looks, key=looks.__getitem__)]
