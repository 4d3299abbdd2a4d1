"""ZIP archives in what is ingested."""

from __future__ import annotations

import csv
import shutil
import stat
import struct
import zipfile
from collections import namedtuple
from pathlib import Path

import pytest
from hospital_files import write

from afire_monai.core.errors import AfireError
from afire_monai.hospital import unpack
from afire_monai.hospital.ingest import IngestSummary, ingest


def pack(path: Path, *seeds: int, names: str = "disc/IM{}", how: int = zipfile.ZIP_DEFLATED) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    with zipfile.ZipFile(path, "w", how) as archive:
        for seed in seeds:
            archive.write(write(path.parent.parent / "files" / str(seed), seed), names.format(seed))
    return path


def run(tmp_path: Path, *inputs: Path) -> IngestSummary:
    return ingest(list(inputs) or tmp_path / "in", tmp_path / "out", workers=0)


def folders(tmp_path: Path) -> list[Path]:
    return sorted((tmp_path / "out" / "private" / "unpacked").iterdir())


def with_fields(path: Path, **fields: int) -> None:
    """Change the first entry of a ZIP archive, in its own header and in the central directory."""
    raw = bytearray(path.read_bytes())
    local, central = raw.index(b"PK\3\4"), raw.index(b"PK\1\2")
    offsets = {"flags": (6, 8, "<H"), "crc": (14, 16, "<I"), "size": (22, 24, "<I")}
    for name, value in fields.items():
        at_local, at_central, form = offsets[name]
        struct.pack_into(form, raw, local + at_local, value)
        struct.pack_into(form, raw, central + at_central, value)
    path.write_bytes(raw)


def test_files_in_archives_are_read_as_if_they_were_unpacked_and_names_join_labels(tmp_path):
    pack(tmp_path / "in" / "first.zip", 0, 1)
    pack(tmp_path / "in" / "SECOND.ZIP", 2, names="other\\IM{}", how=zipfile.ZIP_LZMA)
    write(tmp_path / "in" / "plain", 3)
    (tmp_path / "labels.csv").write_text("file,Effusion\n" + "".join(f"IM{n},1\n" for n in range(3)))
    labels = {"labels": tmp_path / "labels.csv", "join": "file", "label_columns": ["Effusion"]}
    done = ingest(tmp_path / "in", tmp_path / "out", workers=0, **labels)
    assert (done.seen, done.kept, done.left_out, done.labels["matched"]) == (4, 4, {}, 3)
    private = (tmp_path / "out" / "private" / "unpacked").rglob("*")
    assert {stat.S_IMODE(path.stat().st_mode) for path in private if path.is_file()} == {0o600}
    with (tmp_path / "out" / "private" / "index.csv").open(newline="") as file:
        assert all(Path(row["file"]).is_file() for row in csv.DictReader(file))  # for `afire dicom-results`


def test_an_archive_is_unpacked_once_until_it_changes_or_is_gone(tmp_path, monkeypatch):
    pack(tmp_path / "in" / "a.zip", 0)
    pack(tmp_path / "in" / "b.zip", 1, 2)
    assert run(tmp_path).kept == 3
    before = folders(tmp_path)
    with monkeypatch.context() as patch:
        patch.setattr(unpack, "_unpack", None)
        again = run(tmp_path)
    assert (again.kept, again.headers_read, again.images_read) == (3, 0, 0)
    pack(tmp_path / "in" / "b.zip", 1, 2, 3)
    (tmp_path / "in" / "a.zip").unlink()
    assert run(tmp_path).kept == 3
    assert len(folders(tmp_path)) == 1
    assert not set(folders(tmp_path)) & set(before)


def test_an_interrupted_unpacking_begins_again(tmp_path, monkeypatch):
    archive = pack(tmp_path / "in" / "a.zip", 0, 1)

    def stop(*_: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(shutil, "copyfileobj", stop)
        with pytest.raises(KeyboardInterrupt):
            run(tmp_path, archive)
    assert [folder.suffix for folder in folders(tmp_path)] == [".part"]
    assert run(tmp_path, archive).kept == 2
    assert [folder.suffix for folder in folders(tmp_path)] == [""]


@pytest.mark.parametrize("name", ["../../../outside", "/tmp/outside", "a/../../outside", "..\\..\\..\\outside"])
def test_nothing_is_written_outside(name, tmp_path):
    archive = pack(tmp_path / "in" / "a.zip", 0)
    with zipfile.ZipFile(archive, "a") as more:
        more.writestr(name, "x")
    write(tmp_path / "in" / "plain", 3)
    before = {path for path in tmp_path.rglob("*") if "out" not in path.parts}
    assert run(tmp_path).left_out == {"zip: unpack it (a name that leads out of it)": 1}
    assert {path for path in tmp_path.rglob("*") if "outside" in path.name} == set()
    assert {path for path in tmp_path.rglob("*") if "out" not in path.parts} == before
    assert folders(tmp_path) == []


def test_what_cannot_be_unpacked_safely_is_named_and_counted(tmp_path, monkeypatch):
    monkeypatch.setattr(unpack, "ALWAYS", 1 << 20)
    write(tmp_path / "in" / "plain", 9)
    with zipfile.ZipFile(tmp_path / "in" / "bomb.zip", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("IM1", bytes(4 << 20))
    with_fields(pack(tmp_path / "in" / "locked.zip", 0), flags=1)
    with_fields(pack(tmp_path / "in" / "broken.zip", 1), crc=4711)
    pack(tmp_path / "in" / "cut.zip", 2)
    (tmp_path / "in" / "cut.zip").write_bytes((tmp_path / "in" / "cut.zip").read_bytes()[:-40])
    with zipfile.ZipFile(tmp_path / "in" / "nest.zip", "w") as archive:
        archive.write(tmp_path / "in" / "bomb.zip", "bomb.zip")
    done = run(tmp_path)
    assert done.left_out == {
        "zip: unpack it (damaged)": 2,
        "zip: unpack it (inside another)": 1,
        "zip: unpack it (password)": 1,
        "zip: unpack it (too large)": 1,
    }
    assert (done.seen, done.kept) == (6, 1)
    assert len(folders(tmp_path)) == 1  # that of nest.zip


def test_a_bomb_that_lies_about_its_size_gives_no_more_than_it_says(tmp_path):
    with zipfile.ZipFile(tmp_path / "a.zip", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("IM1", bytes(64 << 20))
    with_fields(tmp_path / "a.zip", size=1000)
    write(tmp_path / "in" / "plain", 9)
    assert run(tmp_path, tmp_path / "a.zip", tmp_path / "in").left_out == {"zip: unpack it (damaged)": 1}


def test_too_many_files_are_too_large(tmp_path, monkeypatch):
    monkeypatch.setattr(unpack, "MOST_FILES", 2)
    pack(tmp_path / "in" / "a.zip", 0, 1, 2)
    pack(tmp_path / "in" / "b.zip", 3, 4)
    done = run(tmp_path)
    assert (done.kept, done.left_out) == (2, {"zip: unpack it (too large)": 1})


def test_a_disk_without_room_for_it_ends_with_words_before_it_is_full(tmp_path, monkeypatch):
    pack(tmp_path / "in" / "a.zip", 0)
    usage = namedtuple("usage", "total used free")
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage(1, 1, unpack.SPARE))
    with pytest.raises(AfireError, match="make room"):
        run(tmp_path)
    assert folders(tmp_path) == []
