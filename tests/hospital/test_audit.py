"""The log of what was fetched, read in, written, sent and erased."""

from __future__ import annotations

import csv
import getpass
import json
import logging
import os
import re
import stat
from datetime import UTC, datetime
from pathlib import Path

import numpy as np
import pytest
from pydicom import Dataset

pytest.importorskip("dicomweb_client")
pytest.importorskip("highdicom")

from hospital.fake_dicomweb import FakeServer, fake_dicomweb
from hospital.planted import SECRETS, small
from hospital_files import chest, write

from afire_monai.cli.main import run as afire
from afire_monai.core.errors import AfireError
from afire_monai.hospital.audit import audited, follow, leave_pointer
from afire_monai.hospital.dicomweb.client import Query, SeriesReference
from afire_monai.hospital.dicomweb.credentials import DicomWebError
from afire_monai.hospital.dicomweb.transfer import fetch, send_folder
from afire_monai.hospital.ingest import ingest
from afire_monai.predictions.format import Predictions, save_predictions


def rows(path: Path) -> list[dict[str, str]]:
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


def predict(chests: Path, folder: Path) -> Path:
    images = [chests / "images" / f"{row['image']}.png" for row in rows(chests / "private" / "index.csv")]
    facts = {"section": "", "datalist_sha256": "", "model": {"afire": "1"}, "thresholds": {"Edema": 0.5}}
    table = Predictions(np.arange(len(images)), {"Edema": np.full(len(images), 0.5)}, None, facts)
    save_predictions(table, folder)
    with (folder / "index.csv").open("w", newline="") as file:
        csv.writer(file).writerows([["index", "file"], *enumerate(images)])
    return folder


@pytest.fixture
def server(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    with fake_dicomweb() as state:
        yield state


def test_each_command_appends_a_line_with_counts_pseudonyms_and_peer(tmp_path: Path, server: FakeServer) -> None:
    held = [small(n) for n in range(3)]
    server.hold(*held)
    chests, log = tmp_path / "chest", tmp_path / "chest" / "private" / "audit.csv"
    started = datetime.now(UTC).replace(microsecond=0)
    assert afire(["ingest", "--dicomweb", server.url, "--out", str(chests), "--workers", "0", "--split", "1,0,0"]) == 0
    images = {row["image"]: row["group"] for row in rows(chests / "private" / "index.csv")}
    predictions = predict(chests, tmp_path / "results")
    words = ["dicom-results", str(predictions), "--index", str(chests / "private" / "index.csv"), "--out"]
    assert afire([*words, str(tmp_path / "objects"), "--kinds", "sr", "--quiet"]) == 0
    assert afire(["send", str(tmp_path / "objects"), "--dicomweb", server.url]) == 0
    first = next(iter(images))
    assert afire(["forget", "--hash", images[first], "--folder", str(chests)]) == 0
    lines = rows(log)
    assert [line["command"] for line in lines] == ["fetch", "ingest", "dicom-results", "send", "forget"]
    assert [line["what"] for line in lines] == [
        "3 files of 3 series fetched, 0 were there, 0 failed",
        "3 files seen, 3 images of 3 patients kept",
        "3 objects of 3 images",
        "3 files sent, 0 were there, 0 failed",
        "files known: 1, pictures erased: 1",
    ]
    everybody, everything = " ".join(sorted(set(images.values()))), " ".join(sorted(images))
    assert [line["pseudonyms"] for line in lines] == ["", everybody, everything, everything, images[first]]
    assert [line["peer"] for line in lines] == [server.url, "", "", server.url, ""]
    assert {line["user"] for line in lines} == {getpass.getuser()}
    assert all(started <= datetime.fromisoformat(line["time"]) <= datetime.now(UTC) for line in lines)
    assert stat.S_IMODE(log.stat().st_mode) == 0o600
    text = log.read_text()
    assert not any(str(secret) in text for secret in SECRETS)
    assert not re.search(r"\d+(\.\d+){4,}", text)
    assert not any(str(item.PatientID) in text or str(item.SOPInstanceUID) in text for item in held)
    others = [path for path in chests.rglob("*") if path.is_file() and "private" not in path.parts]
    assert not any(server.url.encode() in path.read_bytes() for path in others)


def test_any_other_folder_is_only_read_and_logged_where_a_log_is_named(tmp_path: Path, server: FakeServer) -> None:
    write(tmp_path / "outbox" / "a", 1)
    words = ["send", str(tmp_path / "outbox"), "--dicomweb", server.url]
    assert afire(words) == 0
    assert [path.name for path in (tmp_path / "outbox").iterdir()] == ["a"]
    assert afire([*words, "--audit", str(tmp_path / "audit.csv")]) == 0
    assert [line["what"] for line in rows(tmp_path / "audit.csv")] == ["0 files sent, 1 were there, 0 failed"]
    assert stat.S_IMODE((tmp_path / "audit.csv").stat().st_mode) == 0o600


def test_a_run_that_fails_is_in_the_log_without_what_was_wrong(tmp_path: Path) -> None:
    write(tmp_path / "in" / "Zyxwolski", 1, BodyPartExamined="KNEE", ViewPosition="AP")
    with pytest.raises(AfireError):
        ingest(tmp_path / "in", tmp_path / "out", workers=0)
    (line,) = rows(tmp_path / "out" / "private" / "audit.csv")
    assert line["what"] == "ended by AfireError"


class Refusing:
    """An archive that takes one object and then refuses the credentials."""

    peer = "archive"

    def __init__(self) -> None:
        self.taken = 0

    def _take(self) -> bool:
        if self.taken:
            raise DicomWebError("refused")
        self.taken += 1
        return True

    def find_series(self, query: Query) -> list[SeriesReference]:
        return [SeriesReference("1.2", "1.2.3")]

    def find_instances(self, series: SeriesReference) -> list[str]:
        return ["1.2.3.4", "1.2.3.5"]

    def retrieve(self, series: SeriesReference, instance: str, path: Path) -> None:
        self._take()
        path.write_bytes(b"")

    def store(self, dataset: Dataset) -> bool:
        return self._take()

    def settle(self) -> dict[str, str]:
        return {}


def test_only_what_an_archive_took_is_named_also_when_the_transfer_ends_early(tmp_path: Path) -> None:
    objects, log = tmp_path / "objects", tmp_path / "audit.csv"
    for number, name in enumerate("abc"):
        write(objects / f"{name}.dcm", number)
    log.touch()
    leave_pointer(objects, log, {f"{name}.dcm": f"image-{name}" for name in "abcd"})
    with pytest.raises(DicomWebError):
        send_folder(Refusing(), objects)
    send_folder(Refusing(), objects / "b.dcm")
    with pytest.raises(DicomWebError):
        fetch(Refusing(), Query.of(["DX"]), tmp_path / "out")
    assert [(line["what"], line["pseudonyms"]) for line in rows(log)] == [
        ("1 files sent, 0 were there, 0 failed, ended by DicomWebError", "image-a"),
        ("1 files sent, 0 were there, 0 failed", "image-b"),
    ]
    (line,) = rows(tmp_path / "out" / "private" / "audit.csv")
    assert line["what"] == "1 files of 1 series fetched, 0 were there, 0 failed, ended by DicomWebError"


@pytest.mark.parametrize("obstacle", ["folder", "link"])
def test_a_log_that_cannot_be_written_fails_no_run(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, obstacle: str
) -> None:
    write(tmp_path / "in" / "a", 1, chest(1))
    log = tmp_path / "out" / "private" / "audit.csv"
    log.parent.mkdir(parents=True)
    if obstacle == "folder":
        log.mkdir()
    else:
        (tmp_path / "elsewhere").write_text("")
        log.symlink_to(tmp_path / "elsewhere")
    with caplog.at_level(logging.WARNING):
        assert ingest(tmp_path / "in", tmp_path / "out", workers=0, split=(1, 0, 0)).kept == 1
    assert "not in the audit log" in caplog.text
    if obstacle == "link":
        assert (tmp_path / "elsewhere").read_text() == ""


def test_many_pseudonyms_are_on_lines_that_every_program_can_read(tmp_path: Path) -> None:
    hashes = [f"{n:020x}" for n in range(2500)]
    with audited(tmp_path / "audit.csv", "send") as entry:
        entry.what, entry.pseudonyms = "2500 files sent", hashes
    lines = rows(tmp_path / "audit.csv")
    assert [line["what"] for line in lines] == ["2500 files sent", "continued", "continued"]
    assert [name for line in lines for name in line["pseudonyms"].split()] == hashes


@pytest.mark.parametrize(
    "content", ["", "[]", '{"log": 3}', '{"log": "/etc/passwd", "images": {}}', '{"log": "audit.csv", "images": [1]}']
)
def test_a_pointer_that_was_changed_leads_nowhere_else(tmp_path: Path, content: str) -> None:
    (tmp_path / ".afire-audit.json").write_text(content)
    assert follow(tmp_path) == (None, {})
    (tmp_path / ".afire-audit.json").write_text(
        json.dumps({"log": os.path.join(tmp_path, "gone", "audit.csv"), "images": {}})
    )
    assert follow(tmp_path) == (None, {})
