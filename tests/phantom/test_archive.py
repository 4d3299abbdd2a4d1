"""The phantom archive: what an archive holds, read back by the reader and by ingest."""

import csv

import numpy as np
import pytest
from pydicom import dcmread

from afire_monai.cli.main import run
from afire_monai.core.errors import AfireError
from afire_monai.phantom import PHANTOM_LABELS, ChestPhantom, write_phantom_archive
from afire_monai.radiographs.judgement import FIT
from afire_monai.radiographs.reader import RadiographReader


def test_files_hold_the_phantoms_pictures_and_the_table_their_findings(tmp_path):
    table = write_phantom_archive(tmp_path, normal=2, abnormal=3, size=64, seed=1)
    rows = list(csv.DictReader(table.open(encoding="utf-8")))
    files = sorted((tmp_path / "dicom").iterdir())
    phantom = ChestPhantom(64)
    assert [(row["Normal"], *(row[name] for name in PHANTOM_LABELS)) for row in rows] == [
        ("1", "0", "0", "0", "0"),
        ("1", "0", "0", "0", "0"),
        ("0", "1", "0", "0", "0"),
        ("0", "0", "1", "0", "0"),
        ("0", "0", "0", "1", "0"),
    ]
    findings = [None, None, *phantom.findings[:3]]
    for number, (file, row, finding) in enumerate(zip(files, rows, findings, strict=True)):
        reader = RadiographReader(unfit="note")
        pixels, meta = reader.get_data(reader.read(file))
        expected = phantom(1_000_000 + number, finding).image
        assert np.abs(pixels - expected).max() < 1 / 4000
        assert (meta["unfit"] or FIT) == FIT
        assert dcmread(file).AccessionNumber == row["AccessionNumber"]
    again = write_phantom_archive(tmp_path / "again", normal=2, abnormal=3, size=64, seed=1)
    assert again.read_text() == table.read_text()
    assert (tmp_path / "again/dicom/00004.dcm").read_bytes() == files[4].read_bytes()
    with pytest.raises(AfireError, match="at least one radiograph"):
        write_phantom_archive(tmp_path, normal=0, abnormal=0)


def test_the_commands_write_a_list_or_an_archive_and_name_what_comes_next(tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert run(["datalist", "phantom", "--out", "p", "--normal", "10", "--abnormal", "0", "--size", "32"]) == 0
    assert "afire check p/datalist.json" in capsys.readouterr().out
    assert (
        run(["datalist", "phantom", "--out", "h", "--dicom", "--normal", "3", "--abnormal", "4", "--size", "64"]) == 0
    )
    command = capsys.readouterr().out.split("afire ")[1].split()
    assert run([*command, "--quiet"]) == 0
    assert "labels, matched: 7" in capsys.readouterr().out
