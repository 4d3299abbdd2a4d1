"""DICOM files that are not frontal chest radiographs: left out with the reason, or predicted and marked."""

from __future__ import annotations

import csv
import json
from pathlib import Path

import numpy as np
import pydicom
import pytest
from helpers import export_pneumonia_classifier
from hospital_files import DX_RAW, chest, write
from PIL import Image

from afire_monai.cli.main import run
from afire_monai.predictions.format import load_predictions
from afire_monai.predictions.predict import predict
from afire_monai.radiographs.judgement import BURNED_IN, FIT, LATERAL, LOOKS_OTHER, NOT_CHEST, RAW_ALONE, reason_of_file

FLAT = np.linspace(0, 4095, 64)[None].repeat(64, 0).astype(np.uint16)
REASONS = [FIT, BURNED_IN, NOT_CHEST, LATERAL, LOOKS_OTHER, RAW_ALONE, FIT]
"""Of the files in the order of their names; the PNG after them is not judged."""


@pytest.fixture(scope="module")
def model(tmp_path_factory) -> Path:
    return export_pneumonia_classifier(tmp_path_factory.mktemp("model"))


@pytest.fixture
def archive(tmp_path) -> Path:
    folder = tmp_path / "archive"
    write(folder / "a_chest.dcm", 0)
    write(folder / "b_burned_in.dcm", 1, BurnedInAnnotation="YES")
    write(folder / "c_leg.dcm", 2, BodyPartExamined="", SeriesDescription="Kniegelenk rechts", ViewPosition="AP")
    write(folder / "d_lateral.dcm", 3, ViewPosition="LL")
    write(folder / "e_look.dcm", 4, FLAT, BodyPartExamined="", ViewPosition="")
    write(folder / "f_raw.dcm", 5, SOPClassUID=DX_RAW, PresentationIntentType="FOR PROCESSING")
    write(folder / "g_silent.dcm", 6, BodyPartExamined="", ViewPosition="")  # the picture alone shows what it is
    Image.fromarray(FLAT).save(folder / "h.png")
    return folder


def _texts(report: pydicom.Dataset) -> str:
    return " ".join(str(element.value) for element in report.iterall() if element.keyword == "TextValue")


def rows(path: Path) -> list[list[str]]:
    with path.open(newline="", encoding="utf-8") as file:
        return list(csv.reader(file))


def test_what_is_no_frontal_chest_is_left_out_and_counted(archive, model, tmp_path, capsys):
    out = tmp_path / "out"
    assert run(["predict", str(archive), "--model", str(model), "--out", str(out), "--quiet"]) == 1
    words = capsys.readouterr().out
    assert "scored:   3 of 8" in words
    assert "left out: 5" in words
    assert f"{LATERAL} 1" in words
    assert "5 can be read" in words
    assert [int(row[0]) for row in rows(out / "predictions.csv")[1:]] == [0, 6, 7]
    found = {int(row[0]): row[1].partition(":")[0] for row in rows(out / "left_out.csv")[1:]}
    assert found == {index: reason for index, reason in enumerate(REASONS) if reason != FIT}
    facts = json.loads((out / "predictions.json").read_text(encoding="utf-8"))
    assert facts["left_out"] == dict.fromkeys(found.values(), 1)
    assert (facts["any"], facts["unfit"]) == (False, {})


def test_any_predicts_them_and_table_and_records_say_so(archive, model, tmp_path, capsys):
    out = tmp_path / "out"
    assert run(["predict", str(archive), "--model", str(model), "--out", str(out), "--any", "--quiet"]) == 0
    assert "warning:  5 are not frontal chest radiographs" in capsys.readouterr().out
    table = rows(out / "predictions.csv")
    assert [row[table[0].index("judgement")] for row in table[1:]] == [*REASONS, ""]
    records = [json.loads((out / "json" / f"{i:05d}.json").read_text(encoding="utf-8")) for i in range(8)]
    assert [record.get("judgement") for record in records] == [*REASONS, None]
    assert len(load_predictions(out)) == 8
    facts = json.loads((out / "predictions.json").read_text(encoding="utf-8"))
    assert facts["unfit"] == {reason: 1 for reason in REASONS if reason != FIT}


def test_modalities_that_a_list_names_are_radiographs(tmp_path, model):
    write(tmp_path / "ot.dcm", 0, Modality="OT")
    write(tmp_path / "leg.dcm", 1, Modality="OT", BodyPartExamined="KNEE")
    content = {"meta": {"reader": {"modalities": ["OT"]}}, "test": [{"image": "ot.dcm"}, {"image": "leg.dcm"}]}
    (tmp_path / "list.json").write_text(json.dumps(content), encoding="utf-8")
    done = predict([tmp_path / "list.json"], [model], tmp_path / "out")
    assert (done.scored, {index: reason.partition(":")[0] for index, reason in done.left_out.items()}) == (
        1,
        {1: NOT_CHEST},
    )


def test_results_are_written_for_frontal_chests_alone_unless_any_is_asked_for(archive, model, tmp_path, capsys):
    pytest.importorskip("highdicom")
    out = tmp_path / "out"
    assert run(["predict", str(archive), "--model", str(model), "--out", str(out), "--any", "--quiet"]) == 0
    words = ["dicom-results", str(out), "--kinds", "sr,sc", "--quiet", "--out"]
    assert run([*words, str(tmp_path / "fit")]) == 1
    assert "written:  2 of 8" in capsys.readouterr().out
    assert [row[0] for row in rows(tmp_path / "fit" / "objects.csv")[1:]] == ["0", "0", "6", "6"]
    assert run([*words, str(tmp_path / "all"), "--any"]) == 1
    assert "warning:  5 are not frontal chest radiographs" in capsys.readouterr().out
    for index, kind, name in rows(tmp_path / "all" / "objects.csv")[1:]:
        written = pydicom.dcmread(tmp_path / "all" / name)
        reason = REASONS[int(index)]
        assert ("UNFIT IMAGE" in written.SeriesDescription) == (reason != FIT)
        if kind == "sr":
            assert (f"not to be a frontal chest radiograph ({reason})" in _texts(written)) == (reason != FIT)


def test_results_of_other_predictions_are_judged_by_the_file(archive, model, tmp_path):
    """Of PNG pictures whose DICOM files a table names: nobody has judged these."""
    pytest.importorskip("highdicom")
    from afire_monai.dicom_results.folder import write_dicom_results

    for number in range(7):
        Image.fromarray(chest(number)).save(tmp_path / f"{number}.png")
    predict([tmp_path / f"{number}.png" for number in range(7)], [model], tmp_path / "out", heatmap="none")
    with (tmp_path / "index.csv").open("w", newline="") as file:
        csv.writer(file).writerows([["index", "file"], *enumerate(sorted(archive.glob("*.dcm")))])
    done = write_dicom_results(tmp_path / "out", tmp_path / "results", tmp_path / "index.csv", ["sr"])
    assert done.done == 2
    assert [reason.partition(":")[0] for reason in done.left_out.values()] == [r for r in REASONS if r != FIT]


def test_files_of_other_formats_are_not_judged(archive):
    assert reason_of_file(archive / "h.png") == ""
    assert reason_of_file(archive / "g_silent.dcm") == ""
    assert reason_of_file(archive / "e_look.dcm") == LOOKS_OTHER
