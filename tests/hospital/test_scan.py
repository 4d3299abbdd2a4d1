from __future__ import annotations

import os
import threading
from pathlib import Path

import pytest
from hospital_files import radiograph, write
from pydicom.fileset import FileSet

from afire_monai.core.errors import AfireError
from afire_monai.hospital.scan import scan, scan_dicomdir, scan_folder


def names(found: object) -> list[str]:
    return [os.path.basename(entry.path) for entry in found]  # type: ignore[attr-defined]


def test_files_of_any_name_are_found_in_order_and_once(tmp_path: Path) -> None:
    for name in ("b/IM1", "a/2.dcm", ".hidden", "1.2.3.4"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(b"x")
    assert names(scan([tmp_path, tmp_path / "a"])) == [".hidden", "1.2.3.4", "2.dcm", "IM1"]


def test_circles_of_links_end(tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "file").write_bytes(b"x")
    (tmp_path / "a" / "up").symlink_to(tmp_path)
    (tmp_path / "self").symlink_to(tmp_path / "self")
    found = list(scan_folder(tmp_path))
    assert sorted((os.path.basename(f.path), bool(f.problem)) for f in found) == [("file", False), ("self", True)]


def test_what_cannot_be_opened_comes_with_a_problem_and_is_not_opened(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "broken").symlink_to(tmp_path / "nowhere")
    done = threading.Event()

    def run() -> None:
        assert all(found.problem for found in scan([tmp_path]))
        done.set()

    threading.Thread(target=run, daemon=True).start()
    assert done.wait(10), "opening a pipe waits for ever"


def test_folder_that_cannot_be_entered_is_an_entry(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "closed").mkdir()
    (tmp_path / "open").write_bytes(b"x")
    listing = os.scandir

    def refuse(path: str) -> object:
        if path.endswith("closed"):
            raise PermissionError(13, "Permission denied", path)
        return listing(path)

    monkeypatch.setattr(os, "scandir", refuse)
    assert {os.path.basename(f.path): f.problem for f in scan_folder(tmp_path)} == {
        "open": "",
        "closed": "not readable",
    }


def test_folder_that_is_written_is_left_alone(tmp_path: Path) -> None:
    write(tmp_path / "in" / "a")
    write(tmp_path / "out" / "b")
    assert names(scan([tmp_path], [tmp_path / "out"])) == ["a"]


def test_dicomdir_gives_the_files_that_it_refers_to(tmp_path: Path) -> None:
    files = FileSet()
    for seed in (0, 1):
        files.add(radiograph(seed, StudyTime="1200", StudyID="1", SeriesNumber=1, InstanceNumber=seed))
    files.write(tmp_path / "disc")
    (tmp_path / "disc" / "README").write_text("not referred to")
    found = list(scan([tmp_path / "disc" / "DICOMDIR"]))
    assert len(found) == 2
    assert all(Path(f.path).is_file() and not f.problem for f in found)
    first = Path(found[0].path)
    first.rename(first.with_name(first.name.lower()))
    assert [f.problem for f in scan_dicomdir(tmp_path / "disc" / "DICOMDIR")] == ["", ""]
    first.with_name(first.name.lower()).unlink()
    assert sorted(f.problem for f in scan_dicomdir(tmp_path / "disc" / "DICOMDIR")) == ["", "not readable"]


def test_dicomdir_does_not_lead_out_of_its_folder(tmp_path: Path) -> None:
    (tmp_path / "secret").write_bytes(b"x")
    files = FileSet()
    files.add(radiograph(0, StudyTime="1200", StudyID="1", SeriesNumber=1, InstanceNumber=1))
    files.write(tmp_path / "disc")
    index = tmp_path / "disc" / "DICOMDIR"
    import pydicom

    dataset = pydicom.dcmread(index)
    for record in dataset.DirectoryRecordSequence:
        if "ReferencedFileID" in record:
            record.ReferencedFileID = ["..", "secret"]
    dataset.save_as(index)
    assert [(os.path.basename(f.path), f.problem) for f in scan_dicomdir(index)] == [("DICOMDIR", "not readable")]


def test_nothing_and_a_broken_dicomdir_are_user_errors(tmp_path: Path) -> None:
    with pytest.raises(AfireError, match="no such folder"):
        list(scan([tmp_path / "nowhere"]))
    (tmp_path / "DICOMDIR").write_bytes(b"\0" * 128 + b"DICM" + b"\2\0\2\0UI\x14\0" + b"1.2.840.10008.1.3.10\0\0")
    with pytest.raises(AfireError, match="Give its folder"):
        list(scan([tmp_path / "DICOMDIR"]))
