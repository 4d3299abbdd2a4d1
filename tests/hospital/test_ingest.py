from __future__ import annotations

import csv
import json
import os
import stat
import struct
import sys
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import warm
from hospital_files import ACCESSION, PATIENT, PLANTED, chest, write
from PIL import Image
from pydicom.uid import RLELossless

from afire_monai.cli.main import run as afire
from afire_monai.core.errors import AfireError
from afire_monai.datalists.file import load_datalist
from afire_monai.datalists.validate import validate_datalist
from afire_monai.hospital import convert
from afire_monai.hospital.identity import IdentityKey
from afire_monai.hospital.ingest import IngestSummary, ingest
from afire_monai.hospital.series_choice import (
    ANOTHER,
    DUPLICATE,
    NO_DATE,
    RAW,
    TEXT_SEEN,
)
from afire_monai.radiographs import header
from afire_monai.radiographs.decode import read_picture
from afire_monai.radiographs.judgement import (
    LATERAL,
    LOOKS_OTHER,
    NOT_CHEST,
)


def archive(folder: Path, count: int = 6) -> Path:
    """Patients with a frontal image each, one with two, a lateral, a knee, and a file that is no DICOM."""
    for seed in range(count):
        write(folder / f"PAT7734421{seed}" / "IM1", seed)
    write(folder / "Zyxwolski" / "second", 100, PatientID="PAT77344210")
    write(folder / "Zyxwolski" / "lateral.dcm", 101, ViewPosition="LL")
    write(folder / "Zyxwolski" / "knee.dcm", 102, BodyPartExamined="KNEE", ViewPosition="AP")
    (folder / "readme ACC5550193.txt").write_text("Zyxwolski")
    return folder


def table(folder: Path, count: int = 6) -> Path:
    path = folder / "labels.csv"
    lines = [f"ACC5550193{seed},{seed % 2},Zyxwolski" for seed in range(count)]
    path.write_text("\n".join(["AccessionNumber,Effusion,name", *lines, "ACC5550193999,1,"]) + "\n")
    return path


def reasons(out: Path) -> dict[str, str]:
    with (out / "private" / "left_out.csv").open(newline="") as file:
        return {os.path.basename(row["file"]): row["reason"] for row in csv.DictReader(file)}


def run(tmp_path: Path, **options: Any) -> IngestSummary:
    return ingest(tmp_path / "in", tmp_path / "out", **{"workers": 0, **options})


def public_files(out: Path) -> list[Path]:
    return [path for path in sorted(out.rglob("*")) if path.is_file() and "private" not in path.parts]


def test_frontal_chests_become_a_sound_data_list(tmp_path: Path) -> None:
    archive(tmp_path / "in")
    done = run(tmp_path, allow=("age", "sex", "view", "manufacturer_model"), split=(0.5, 0.25, 0.25))
    assert (done.seen, done.kept, done.patients) == (10, 7, 6)
    assert done.left_out == {LATERAL: 1, NOT_CHEST: 1, "not DICOM": 1}
    assert sum(done.sections.values()) == 7
    assert validate_datalist(tmp_path / "out" / "datalist.json", decode=True).ok
    items = [i for s in done.sections for i in load_datalist(tmp_path / "out" / "datalist.json", section=s)]
    assert {item["age"] for item in items} == {75}
    assert {item["view"] for item in items} == {"PA"}
    assert {item["sex"] for item in items} == {"F", "M"}
    assert {item["manufacturer_model"] for item in items} == {"Acme Ray 5"}


def test_order_of_items_says_nothing_about_paths(tmp_path: Path) -> None:
    archive(tmp_path / "in", 12)
    run(tmp_path, split=(1, 0, 0))
    images = [item["image"] for item in load_datalist(tmp_path / "out" / "datalist.json", section="training")]
    with (tmp_path / "out" / "private" / "index.csv").open(newline="") as file:
        by_path = [row["image"] for row in csv.DictReader(file)]
    assert images == sorted(images)
    assert [Path(image).stem for image in images] != by_path


def test_by_default_items_hold_image_and_group_only(tmp_path: Path) -> None:
    archive(tmp_path / "in")
    done = run(tmp_path)
    for section in done.sections:
        for item in load_datalist(tmp_path / "out" / "datalist.json", section=section):
            assert set(item) == {"image", "group"}


def test_pictures_are_what_the_reader_gives_at_16_bits_and_hold_nothing_else(tmp_path: Path) -> None:
    source = write(tmp_path / "in" / "a", 1, chest(1, 96))
    run(tmp_path)
    (picture,) = (tmp_path / "out" / "images").iterdir()
    values = np.asarray(Image.open(picture))
    np.testing.assert_array_equal(values, np.rint(read_picture(source).pixels * 65535))
    np.testing.assert_allclose(read_picture(picture).pixels, read_picture(source).pixels, atol=1 / 65535)
    content, chunks, at = picture.read_bytes(), [], 8
    while at < len(content):
        length, name = struct.unpack(">I4s", content[at : at + 8])
        chunks.append(name)
        at += 12 + length
    assert chunks == [b"IHDR", b"IDAT", b"IEND"]


def test_large_pictures_are_averaged_over_areas(tmp_path: Path) -> None:
    pixels = chest(1, 96)
    source = write(tmp_path / "in" / "a", 1, pixels)
    run(tmp_path, max_side=32)
    (picture,) = (tmp_path / "out" / "images").iterdir()
    expected = read_picture(source).pixels.reshape(32, 3, 32, 3).mean(axis=(1, 3))
    np.testing.assert_allclose(np.asarray(Image.open(picture)) / 65535, expected, atol=2e-5)


def test_nothing_that_was_planted_leaves_the_private_folder(
    tmp_path: Path, capfd: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> None:
    archive(tmp_path / "in")
    broken = (tmp_path / "in" / "Zyxwolski" / "second").read_bytes()
    (tmp_path / "in" / "Zyxwolski" / "cut").write_bytes(broken[:-500])
    words = ["ingest", str(tmp_path / "in"), "--out", str(tmp_path / "out"), "--workers", "1", "--check-text"]
    words += ["--labels", str(table(tmp_path)), "--label-columns", "Effusion", "--allow", "age,sex,view"]
    assert afire(words) == 0
    said = capfd.readouterr()
    texts = {"said": (said.out + said.err + caplog.text).encode()}
    texts |= {str(path.relative_to(tmp_path)): path.read_bytes() for path in public_files(tmp_path / "out")}
    assert len(texts) > 10
    forbidden = [word.encode() for word in PLANTED]
    forbidden += [b"20210304", b"2021-03-04", b"IM1", b"lateral.dcm", b"2.25."]
    for name, content in texts.items():
        for word in forbidden:
            assert word not in content, f"{word!r} in {name}"
            assert word.decode() not in name


def test_private_files_are_their_owners_alone(tmp_path: Path) -> None:
    archive(tmp_path / "in", 2)
    previous = os.umask(0)
    try:
        write(tmp_path / "in" / "silent", 8, BodyPartExamined="", ViewPosition="")
        unwanted = tmp_path / "unwanted"
        unwanted.write_text("")
        run(tmp_path, labels=table(tmp_path), label_columns=["Effusion"], exclude=unwanted)
        with (tmp_path / "out" / "private" / "index.csv").open(newline="") as file:
            unwanted.write_text(next(csv.DictReader(file))["image"])
        run(tmp_path, labels=table(tmp_path), label_columns=["Effusion"], exclude=unwanted)
    finally:
        os.umask(previous)
    private = tmp_path / "out" / "private"
    assert stat.S_IMODE(private.stat().st_mode) == 0o700
    files = {path.name: stat.S_IMODE(path.stat().st_mode) for path in private.iterdir()}
    names = {"key", "index.csv", "left_out.csv", "unmatched_labels.csv", "state.sqlite", "audit.csv"}
    assert set(files) == names | {"contact_sheet.html", "excluded.csv"}
    assert set(files.values()) == {0o600}


def test_index_leads_back_to_files_and_groups_are_keyed_hashes(tmp_path: Path) -> None:
    archive(tmp_path / "in")
    run(tmp_path)
    with (tmp_path / "out" / "private" / "index.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert list(rows[0]) == ["image", "group", "file", "study_uid", "series_uid", "sop_uid", "rests_on"]
    key = IdentityKey.load(tmp_path / "out" / "private" / "key")
    assert {row["group"] for row in rows} == {key.patient(f"PAT7734421{seed}") for seed in range(6)}
    for row in rows:
        assert (tmp_path / "out" / "images" / f"{row['image']}.png").is_file()
        assert row["image"] == key.image(row["sop_uid"])
        assert header.read_header(Path(row["file"])).series_uid == row["series_uid"]


def test_second_run_opens_no_file_and_gives_the_same(tmp_path: Path) -> None:
    archive(tmp_path / "in")
    write(tmp_path / "in" / "copy", 0)
    write(tmp_path / "in" / "same pixels", 50, chest(1))
    first = run(tmp_path)
    before = {path: path.read_bytes() for path in public_files(tmp_path / "out")}
    opened: list[str] = []
    watching = True

    def watch(event: str, args: tuple[Any, ...]) -> None:  # a hook cannot be taken away again
        if watching and event == "open" and isinstance(args[0], str | Path):
            opened.append(str(args[0]))

    sys.addaudithook(watch)
    second = run(tmp_path)
    watching = False
    assert opened
    assert [path for path in opened if path.startswith(str(tmp_path / "in"))] == []
    assert (second.headers_read, second.images_read) == (0, 0)
    assert first.headers_read == first.seen == 12
    assert {path: path.read_bytes() for path in public_files(tmp_path / "out")} == before


@pytest.mark.parametrize("seconds", [2**33, 15_000_000_000, -(2**31)])
def test_files_from_another_century_are_read_once(tmp_path: Path, seconds: int) -> None:
    archive(tmp_path / "in")
    for path in (tmp_path / "in").rglob("*"):
        os.utime(path, (seconds, seconds))
    assert run(tmp_path).headers_read == 10
    assert run(tmp_path).headers_read == 0


def test_only_what_changed_is_read_again(tmp_path: Path) -> None:
    archive(tmp_path / "in")
    run(tmp_path)
    write(tmp_path / "in" / "PAT77344210" / "IM1", 0, chest(77))
    write(tmp_path / "in" / "new", 200)
    (tmp_path / "in" / "PAT77344211" / "IM1").unlink()
    done = run(tmp_path)
    assert (done.headers_read, done.images_read, done.kept) == (2, 2, 7)
    assert len(list((tmp_path / "out" / "images").iterdir())) == 7


def test_lost_picture_is_written_again(tmp_path: Path) -> None:
    archive(tmp_path / "in", 3)
    run(tmp_path)
    lost, cut, *_ = sorted((tmp_path / "out" / "images").iterdir())
    contents = lost.read_bytes(), cut.read_bytes()
    lost.unlink()
    cut.write_bytes(contents[1][:50])
    assert run(tmp_path).images_read == 2
    assert (lost.read_bytes(), cut.read_bytes()) == contents


KILLED = """
import os, sys
from afire_monai.hospital import ingest, state
from afire_monai.hospital import series_choice as choose
state._AT_ONCE = 2
left, read = int(sys.argv[4]), choose.read_file
def dying(task):
    global left
    if left == 0:
        os._exit(9)
    left -= 1
    return read(task)
choose.read_file = dying
ingest.ingest(sys.argv[1], sys.argv[2], key=sys.argv[3], workers=0)
"""


def test_killed_run_goes_on_to_the_same_result(tmp_path: Path) -> None:
    archive(tmp_path / "in")
    key = tmp_path / "key"
    IdentityKey.make(key)
    words = ["-c", KILLED, tmp_path / "in", tmp_path / "out", key, "5"]
    assert warm.Program(words, tmp_path / "log.txt").wait() == 9
    assert not (tmp_path / "out" / "datalist.json").exists()
    (tmp_path / "out" / "images" / f".{'0' * 20}.png.part").write_bytes(b"half")
    done = run(tmp_path, key=key)
    assert 0 < done.headers_read < done.seen
    assert 0 < done.images_read < done.kept
    whole = tmp_path / "whole"
    ingest(tmp_path / "in", whole, key=key, workers=0)
    for path in [*public_files(whole), whole / "private/index.csv", whole / "private/left_out.csv"]:
        assert (tmp_path / "out" / path.relative_to(whole)).read_bytes() == path.read_bytes(), path.name
    assert len(public_files(whole)) == len(public_files(tmp_path / "out"))


def test_processes_give_the_same_as_none(tmp_path: Path) -> None:
    archive(tmp_path / "in")
    key = tmp_path / "key"
    IdentityKey.make(key)
    run(tmp_path, key=key)
    ingest(tmp_path / "in", tmp_path / "two", key=key, workers=2)
    for path in public_files(tmp_path / "out"):
        assert (tmp_path / "two" / path.relative_to(tmp_path / "out")).read_bytes() == path.read_bytes(), path.name


def test_one_image_a_series_each_once_and_processed_ones_first(tmp_path: Path) -> None:
    folder = tmp_path / "in"
    study = {"StudyInstanceUID": "1.2", "PatientID": "P"}
    series = {"SeriesInstanceUID": "1.2.3", **study}
    write(folder / "a_small", 1, chest(1, 48), **series)
    write(folder / "b_large", 2, chest(2, 64), **series)
    write(folder / "c_copy", 2, chest(2, 64), **series)
    write(folder / "d_raw", 3, chest(3, 80), PresentationIntentType="FOR PROCESSING", **series)
    write(folder / "e_raw_series", 4, **study, PresentationIntentType="FOR PROCESSING")
    write(folder / "f_raw_alone", 5, PresentationIntentType="FOR PROCESSING")
    write(folder / "g_same_pixels", 6, chest(2, 64))
    done = run(tmp_path)
    assert reasons(tmp_path / "out") == {
        "a_small": ANOTHER, "c_copy": DUPLICATE, "d_raw": RAW, "e_raw_series": RAW, "g_same_pixels": DUPLICATE,
    }  # fmt: skip
    assert done.kept == 2


def test_next_image_stands_in_for_one_that_cannot_be_decoded(tmp_path: Path) -> None:
    folder = tmp_path / "in"
    whole = write(folder / "b_whole", 1).read_bytes()
    (folder / "a_cut").write_bytes(whole[:-1000])
    series = {"SeriesInstanceUID": "1.2.3", "PatientID": "P"}
    write(folder / "d_raw", 2, PresentationIntentType="FOR PROCESSING", **series)
    shown = write(folder / "c_shown", 3, **series)
    shown.write_bytes(shown.read_bytes()[:-1000])
    assert run(tmp_path).kept == 2
    assert reasons(tmp_path / "out") == {"a_cut": "broken or truncated", "c_shown": "broken or truncated"}


def test_another_window_is_used_when_asked_for_also_in_a_folder_that_had_the_first(tmp_path: Path) -> None:
    windows = {"WindowCenter": [2000, 3000], "WindowWidth": [4000, 1500]}
    source = write(tmp_path / "in" / "a", 1, chest(1, 96), **windows)
    for window_index in (0, 1, 0):
        run(tmp_path, window_index=window_index)
        (picture,) = (tmp_path / "out" / "images").iterdir()
        wanted = read_picture(source, window_index=window_index).pixels
        np.testing.assert_array_equal(np.asarray(Image.open(picture)), np.rint(wanted * 65535))
    with pytest.raises(AfireError, match="window-index is -1"):
        run(tmp_path, window_index=-1)


def test_picture_of_a_run_that_ended_early_is_not_taken_under_another_window(tmp_path: Path) -> None:
    write(tmp_path / "in" / "a", 1, WindowCenter=[1000, 3000], WindowWidth=[500, 500])
    (tmp_path / "unwanted").write_text("0" * 20)
    with pytest.raises(AfireError, match="no image of this folder"):
        run(tmp_path, exclude=tmp_path / "unwanted")
    run(tmp_path, window_index=1)
    (picture,) = (tmp_path / "out" / "images").iterdir()
    expected = read_picture(tmp_path / "in" / "a", window_index=1).pixels
    np.testing.assert_allclose(read_picture(picture).pixels, expected, atol=1 / 65535)


def test_silent_tags_need_a_picture_with_two_fields(tmp_path: Path) -> None:
    flat = np.linspace(0, 4095, 64).astype(np.uint16)[None].repeat(64, 0)
    write(tmp_path / "in" / "a_looks_right", 1, BodyPartExamined="", ViewPosition="")
    write(tmp_path / "in" / "b_looks_wrong", 2, flat, BodyPartExamined="", ViewPosition="")
    write(tmp_path / "in" / "c_says_so", 3, flat)
    done = run(tmp_path)
    assert reasons(tmp_path / "out") == {"b_looks_wrong": LOOKS_OTHER}
    assert any("tags of 1 images" in r and "contact_sheet.html" in r and "--exclude" in r for r in done.remarks)
    with (tmp_path / "out" / "private" / "index.csv").open(newline="") as file:
        found = {os.path.basename(row["file"]): row["rests_on"] for row in csv.DictReader(file)}
    assert found == {"a_looks_right": "look", "c_says_so": "tags"}


def test_text_near_the_border_is_left_out_only_when_looked_for(tmp_path: Path) -> None:
    from PIL import ImageDraw, ImageFont

    canvas = Image.fromarray((chest(1, 256) // 17).astype(np.uint8))
    ImageDraw.Draw(canvas).text((8, 8), "DOE JOHN 1943", fill=255, font=ImageFont.load_default(size=12))
    write(tmp_path / "in" / "text", 1, np.asarray(canvas).astype(np.uint16) * 16)
    write(tmp_path / "in" / "clean", 2, chest(2, 256))
    assert run(tmp_path).kept == 2
    assert run(tmp_path, check_text=True).left_out == {TEXT_SEEN: 1}
    done = run(tmp_path, check_text=True, accept_text=True)
    assert (done.kept, done.images_read) == (2, 1)
    assert any("text was seen" in remark for remark in done.remarks)


def test_labels_are_joined_and_what_was_not_is_told_by_line_number(tmp_path: Path) -> None:
    archive(tmp_path / "in")
    done = run(tmp_path, labels=table(tmp_path), label_columns=["Effusion"])
    assert done.labels["matched"] == 6
    assert done.labels["unmatched_lines"] == [8]
    assert done.labels["images_without_label"] == 1
    datalist = load_datalist(tmp_path / "out" / "datalist.json")
    assert datalist["labels"] == ["Effusion"]
    values = sorted(str(item["label"]) for section in done.sections for item in datalist[section])
    assert values == ["[0]"] * 3 + ["[1]"] * 3 + ["[None]"]
    unmatched = (tmp_path / "out" / "private" / "unmatched_labels.csv").read_text()
    assert unmatched == "line,value\n8,ACC5550193999\n"


@pytest.mark.parametrize(("join", "key"), [("patient", "P"), ("accession", "A")])
def test_label_of_two_patients_is_not_used(tmp_path: Path, join: str, key: str) -> None:
    for seed, issuer in enumerate("XYY"):
        elements = {"PatientID": "P", "AccessionNumber": "A"} if seed < 2 else {}
        write(tmp_path / "in" / str(seed), seed, IssuerOfPatientID=issuer, **elements)
    other = {"patient": f"{PATIENT}2", "accession": f"{ACCESSION}2"}[join]
    (tmp_path / "labels.csv").write_text(f"key,Edema\n{key},1\n{other},1\n")
    options = {"labels": tmp_path / "labels.csv", "label_columns": ["Edema"], "join": join, "join_column": "key"}
    done = run(tmp_path, issuers="separate", split=(1, 0, 0), **options)
    assert (done.labels["matched"], done.labels["ambiguous_lines"]) == (1, [2])
    items = load_datalist(tmp_path / "out" / "datalist.json", section="training")
    assert sorted(str(item["label"]) for item in items) == ["[1.0]", "[nan]", "[nan]"]


def test_labels_that_fit_nothing_are_a_user_error(tmp_path: Path) -> None:
    archive(tmp_path / "in", 2)
    with pytest.raises(AfireError, match="none of its 7 lines"):
        run(tmp_path, labels=table(tmp_path), label_columns=["Effusion"], join="patient", join_column="AccessionNumber")


def test_images_without_date_are_left_out_of_a_split_by_date(tmp_path: Path) -> None:
    for seed, day in enumerate(["20200101", "20220101", "20240101", None]):
        write(tmp_path / "in" / str(seed), seed, StudyDate=day)
    done = run(tmp_path, split_by="date:2021-06-01,2023-06-01")
    assert done.sections == {"training": 1, "validation": 1, "test": 1}
    assert done.left_out == {NO_DATE: 1}
    assert len(list((tmp_path / "out" / "images").iterdir())) == done.kept
    done = run(tmp_path, split_by="date:2021-06-01")
    assert done.sections == {"training": 1, "test": 2}
    assert not [remark for remark in done.remarks if "no image for" in remark]  # one date makes no validation section
    done = run(tmp_path, split_by="date:2021-06-01,2021-07-01")
    assert [remark for remark in done.remarks if "no image for validation:" in remark]


def test_dated_image_of_a_series_stands_in_for_one_without_date(tmp_path: Path) -> None:
    write(tmp_path / "in" / "undated", 1, chest(1, 96), SeriesInstanceUID="1.2.3", PatientID="P", StudyDate=None)
    write(tmp_path / "in" / "dated", 2, SeriesInstanceUID="1.2.3", PatientID="P")
    assert run(tmp_path, split_by="date:2024-01-01").kept == 1
    assert reasons(tmp_path / "out") == {"undated": NO_DATE}


def test_sites_are_split_without_being_named(tmp_path: Path) -> None:
    for seed in range(8):
        write(tmp_path / "in" / str(seed), seed, InstitutionName="Quirinus A" if seed < 6 else "Quirinus B")
    done = run(tmp_path, split_by="site", split=(0.5, 0.25, 0.25))
    assert done.sections["test"] == 2
    assert "Quirinus" not in "".join(path.read_text() for path in (tmp_path / "out").glob("*.json"))


def test_without_patient_id_images_of_a_study_stay_together(tmp_path: Path) -> None:
    write(tmp_path / "in" / "a", 1, PatientID="", StudyInstanceUID="1.2")
    write(tmp_path / "in" / "b", 2, PatientID="", StudyInstanceUID="1.2")
    write(tmp_path / "in" / "c", 3, PatientID="")
    assert run(tmp_path, split=(1, 0, 0)).patients == 2


def test_full_disk_is_a_user_error_and_loses_no_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    archive(tmp_path / "in", 3)
    written = convert.whole_file

    def full(path: Path) -> AbstractContextManager[Path]:
        if len(list(path.parent.iterdir())) >= 2:
            raise OSError(28, "No space left on device")
        return written(path)

    monkeypatch.setattr(convert, "whole_file", full)
    with pytest.raises(AfireError, match=r"No space left on device.*continues where it stopped"):
        run(tmp_path)
    monkeypatch.setattr(convert, "whole_file", written)
    done = run(tmp_path)
    assert (done.kept, done.images_read) == (4, 2)


def test_source_is_never_written(tmp_path: Path) -> None:
    archive(tmp_path / "in", 2)
    before = {p: (p.read_bytes(), p.stat().st_mtime_ns) for p in (tmp_path / "in").rglob("*") if p.is_file()}
    run(tmp_path)
    after = {p: (p.read_bytes(), p.stat().st_mtime_ns) for p in (tmp_path / "in").rglob("*") if p.is_file()}
    assert after == before


def test_names_of_files_that_are_no_text_are_dealt_with(tmp_path: Path) -> None:
    name = os.fsdecode(b'\xff\xfe M\xfcller,\n"x"')
    write(tmp_path / "in" / "plain", 1)
    os.rename(tmp_path / "in" / "plain", os.path.join(tmp_path, "in", name))
    write(tmp_path / "in" / "knee", 2, BodyPartExamined="KNEE")
    assert run(tmp_path).kept == 1
    with (tmp_path / "out/private/index.csv").open(newline="", encoding="utf-8", errors="surrogateescape") as file:
        (row,) = csv.DictReader(file)
    assert os.path.exists(row["file"])


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"allow": ("name",)}, "allow names 'name'"),
        ({"max_side": 8}, "max-side is 8"),
        ({"split_by": "weekday"}, "split-by is 'weekday'"),
        ({"key": "nowhere"}, "cannot be read"),
        ({"workers": -1}, "workers is -1"),
    ],
)
def test_wrong_options_are_refused(tmp_path: Path, options: dict[str, Any], message: str) -> None:
    archive(tmp_path / "in", 1)
    with pytest.raises(AfireError, match=message):
        run(tmp_path, **options)


def test_another_or_a_lost_key_would_give_other_hashes_and_is_refused(tmp_path: Path) -> None:
    archive(tmp_path / "in", 1)
    run(tmp_path)
    IdentityKey.make(tmp_path / "other")
    with pytest.raises(AfireError, match="another key"):
        run(tmp_path, key=tmp_path / "other")
    key = (tmp_path / "out" / "private" / "key").read_bytes()
    (tmp_path / "out" / "private" / "key").unlink()
    with pytest.raises(AfireError, match="is gone"):
        run(tmp_path)
    (tmp_path / "out" / "private" / "key").write_bytes(key)
    os.chmod(tmp_path / "out" / "private" / "key", 0o644)
    with pytest.raises(AfireError, match="chmod 600"):
        run(tmp_path)


def test_folder_that_is_not_named_again_is_a_user_error(tmp_path: Path) -> None:
    archive(tmp_path / "in", 1)
    write(tmp_path / "more" / "a", 70)
    run(tmp_path)
    with pytest.raises(AfireError, match="not named now"):
        ingest(tmp_path / "more", tmp_path / "out", workers=0)
    assert ingest([tmp_path / "in", tmp_path / "more"], tmp_path / "out", workers=0).kept == 3


def test_second_ingest_into_the_same_folder_at_once_is_refused(tmp_path: Path) -> None:
    from afire_monai.hospital.identity import make_private_folder
    from afire_monai.hospital.state import State

    archive(tmp_path / "in", 1)
    state = State(make_private_folder(tmp_path / "out"))
    with pytest.raises(AfireError, match="another `afire ingest`"):
        run(tmp_path)
    state.close()


def test_folder_of_something_else_is_never_written(tmp_path: Path) -> None:
    archive(tmp_path / "in", 1)
    mine = tmp_path / "out" / "images" / "mine.png"
    mine.parent.mkdir(parents=True)
    mine.write_bytes(b"mine")
    with pytest.raises(AfireError, match="not written by `afire ingest`"):
        run(tmp_path)
    mine.unlink()
    mine.parent.rmdir()
    run(tmp_path)
    mine.write_bytes(b"mine")
    run(tmp_path)
    assert mine.read_bytes() == b"mine"


def test_patients_that_share_a_series_uid_are_not_mixed_up(tmp_path: Path) -> None:
    for seed in (1, 2):
        write(tmp_path / "in" / str(seed), seed, SeriesInstanceUID="1.2.3", StudyInstanceUID="1.2")
    assert run(tmp_path).kept == 2


def test_nothing_usable_is_a_user_error_with_reasons(tmp_path: Path) -> None:
    write(tmp_path / "in" / "a", 1, BodyPartExamined="KNEE", ViewPosition="AP")
    with pytest.raises(AfireError, match=r"none of 1 files.*not a chest: 1"):
        run(tmp_path)
    assert (tmp_path / "out" / "left_out.csv").read_text() == "number,reason\n1,not a chest\n"


def test_data_card_shows_scanners_only_if_allowed(tmp_path: Path) -> None:
    archive(tmp_path / "in")
    run(tmp_path)
    card = json.loads((tmp_path / "out" / "datacard.json").read_text())
    assert set(card["properties"]) == {"view", "sex", "age"}
    assert card["properties"]["age"]["70-79"]["images"] == 7
    assert sum(card["histogram"]) == pytest.approx(1, abs=1e-3)
    run(tmp_path, allow=("manufacturer_model",))
    card = json.loads((tmp_path / "out" / "datacard.json").read_text())
    assert card["properties"]["manufacturer_model"]["Acme Ray 5"]["patients"] == 6


def test_compressed_files_are_kept_as_well(tmp_path: Path) -> None:
    from hospital_files import radiograph

    item = radiograph(3)
    item.compress(RLELossless)
    (tmp_path / "in").mkdir()
    item.save_as(tmp_path / "in" / "rle", enforce_file_format=True)
    assert run(tmp_path).kept == 1


@pytest.mark.real_data
def test_real_files_are_kept_or_left_out_for_the_right_reason(real_data: Path, tmp_path: Path) -> None:
    pytest.importorskip("openjpeg", reason="needs the decoders of the dicom extra")
    done = ingest(real_data / "dicom", tmp_path / "out", workers=0, include_laterals=False)
    with (tmp_path / "out" / "private" / "index.csv").open(newline="") as file:
        kept = {os.path.basename(row["file"]) for row in csv.DictReader(file)}
    assert kept == {
        "cr_mono1_10bit_explicit.dcm", "cr_rg1_mono1_15bit_j2k_lossless.dcm", "cr_siim_mono1_tag_changed.dcm",
        "dx_nih_mono2_implicit.dcm",
    }  # fmt: skip
    found = reasons(tmp_path / "out")
    assert found["cr_mono1_10bit_headless.dcm"] == DUPLICATE
    assert found["cr_siim_mono2_8bit_jpeg_baseline.dcm"] == DUPLICATE
    assert found["cr_rg1_mono1_15bit_j2k_lossy.dcm"] == ANOTHER
    assert found["dx_small_mono1.dcm"] == LATERAL  # a dog, lateral by its protocol
    others = {"hip_mono2_rle.dcm", "extremity_mono1_jpegls_lossless.dcm", "cspine_16x16_a.dcm"}
    assert {found[name] for name in others} == {NOT_CHEST}
    assert (done.seen, done.kept, sum(done.left_out.values())) == (27, 4, 23)


def test_each_file_is_opened_once_and_pixels_only_of_those_that_may_be_kept(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "in"
    write(folder / "a", 1)
    write(folder / "b_ct", 2, Modality="CT", SOPClassUID="1.2.840.10008.5.1.4.1.1.2")
    write(folder / "c_raw", 3, PresentationIntentType="FOR PROCESSING")
    opened: list[str] = []
    watching = True

    def watch(event: str, args: tuple[Any, ...]) -> None:
        if watching and event == "open" and isinstance(args[0], str | Path) and str(args[0]).startswith(str(folder)):
            opened.append(Path(args[0]).name)

    decoded: list[int] = []
    picture_of = convert.picture_of
    monkeypatch.setattr(
        convert, "picture_of", lambda path, *a, **k: decoded.append(path.name) or picture_of(path, *a, **k)
    )
    sys.addaudithook(watch)
    done = run(tmp_path)
    watching = False
    assert done.kept == 2
    assert sorted(opened) == ["a", "b_ct", "c_raw", "c_raw"]
    assert decoded == ["a", "c_raw"]


def test_file_whose_pixels_end_a_process_keeps_its_header(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    series = {"SeriesInstanceUID": "1.2.3", "PatientID": "P"}
    write(tmp_path / "in" / "a_bad", 1, chest(1, 96), **series)
    write(tmp_path / "in" / "b_small", 2, **series)

    def strange(path: Path, *others: Any, **named: Any) -> Any:
        if path.name == "a_bad":
            raise ZeroDivisionError
        return picture_of(path, *others, **named)

    picture_of = convert.picture_of
    monkeypatch.setattr(convert, "picture_of", strange)
    assert run(tmp_path).kept == 1
    assert reasons(tmp_path / "out") == {"a_bad": "unexpected error"}


def test_copies_of_one_instance_with_other_pixels_do_not_mix(tmp_path: Path) -> None:
    write(tmp_path / "in" / "a", 1, chest(1))
    write(tmp_path / "in" / "b", 1, chest(2))
    run(tmp_path, key=None)
    (picture,) = (tmp_path / "out" / "images").iterdir()
    alone = tmp_path / "alone"
    (tmp_path / "in" / "b").unlink()
    ingest(tmp_path / "in", alone, key=tmp_path / "out" / "private" / "key", workers=0)
    assert picture.read_bytes() == (alone / "images" / picture.name).read_bytes()


@pytest.mark.parametrize("shape", [(1, 1), (3, 5), (200, 170), (1, 40000)])
def test_written_png_is_read_by_another_library(shape: tuple[int, int]) -> None:
    import io

    values = np.random.default_rng(0).integers(0, 65536, shape, dtype=np.uint16)
    content = b"".join(bytes(part) for part in convert.encode_png(values))
    with Image.open(io.BytesIO(content)) as picture:
        assert picture.mode.startswith("I;16")
        assert np.array_equal(np.asarray(picture), values)
        assert not picture.info


def test_blocks_are_averaged_as_areas_are() -> None:
    picture = np.random.default_rng(0).random((96, 192)).astype(np.float32)
    reduced = convert.reduce(picture, 64)
    expected = picture.astype(np.float64).reshape(32, 3, 64, 3).mean((1, 3))
    np.testing.assert_allclose(reduced, expected, atol=1e-6)
