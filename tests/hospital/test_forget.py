"""Erasing one patient: nothing of theirs is left, all else stays, and they do not come back."""

from __future__ import annotations

import csv
import json
import os
import shutil
import stat
import zipfile
from pathlib import Path
from typing import Any

import pytest
import warm
from hospital_files import PATIENT, chest, write

from afire_monai.cli.main import run as afire
from afire_monai.core.errors import AfireError
from afire_monai.datalists.file import datalist_hash, load_datalist, read_raw
from afire_monai.datalists.validate import validate_datalist
from afire_monai.hospital import erase
from afire_monai.hospital.forget import ForgetSummary, forget
from afire_monai.hospital.identity import IdentityKey
from afire_monai.hospital.ingest import IngestSummary, ingest
from afire_monai.hospital.state import State

WHO = f"{PATIENT}3"
SILENT = {"BodyPartExamined": "", "ViewPosition": ""}


def archive(tmp_path: Path, count: int = 8) -> None:
    """Patients with an image each; patient 3 has a second one, a lateral and one that rests on its look."""
    for seed in range(count):
        write(tmp_path / "in" / f"file{seed}", seed)
    write(tmp_path / "in" / "second", 103, PatientID=WHO)
    write(tmp_path / "in" / "lateral", 203, PatientID=f" {WHO} ", ViewPosition="LL")
    write(tmp_path / "in" / "silent", 303, PatientID=WHO, **SILENT)
    write(tmp_path / "in" / "other_silent", 504, **SILENT)


def labels(tmp_path: Path, count: int = 8) -> dict[str, Any]:
    lines = [f"ACC5550193{seed},{seed % 2}" for seed in range(count)] + ["ACC5550193203,1", "ACC5550193777,1"]
    (tmp_path / "labels.csv").write_text("\n".join(["AccessionNumber,Effusion", *lines]) + "\n")
    return {"labels": tmp_path / "labels.csv", "label_columns": ["Effusion"]}


def run(tmp_path: Path, **options: Any) -> IngestSummary:
    return ingest(tmp_path / "in", tmp_path / "out", workers=0, split=(0.5, 0.25, 0.25), **options)


def rows(path: Path) -> list[dict[str, str]]:
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


def planted(tmp_path: Path) -> tuple[set[bytes], set[str]]:
    """What must be gone: numbers and paths of the patient, and the hashes of their images and of themselves."""
    key = IdentityKey.load(tmp_path / "out" / "private" / "key")
    table = [row for row in rows(tmp_path / "out/private/index.csv") if row["group"] == key.patient(WHO)]
    assert len(table) == 3
    words = {WHO.encode(), b"ACC5550193203", b"ACC55501933", b"file3", b"in/second", b"in/lateral", b"in/silent"}
    words |= {row[name].encode() for row in table for name in ("study_uid", "series_uid", "sop_uid", "image")}
    return words, {row["image"] for row in table}


def holding(folder: Path, words: set[bytes]) -> list[tuple[str, bytes]]:
    files = [path for path in folder.rglob("*") if path.is_file()]
    assert files
    return [
        (path.name, word) for path in files for word in words if word in path.read_bytes() or word in path.name.encode()
    ]


def test_nothing_of_the_patient_is_left_and_everything_of_others_stays(tmp_path: Path) -> None:
    archive(tmp_path)
    run(tmp_path, allow=("age", "sex"), **labels(tmp_path))
    words, images = planted(tmp_path)
    out = tmp_path / "out"
    (out / "private" / "excluded.csv").write_text(f"image\n{sorted(images)[0]}\n{'0' * 20}\n")
    unmatched = (out / "private" / "unmatched_labels.csv").read_text()
    assert "ACC5550193203" in unmatched  # the lateral's line belongs to nothing that is kept
    assert {name for name, _ in holding(out, words)} >= {"index.csv", "state.sqlite", "datalist.json"}
    before, pictures = read_raw(out / "datalist.json"), {p.name: p.read_bytes() for p in (out / "images").iterdir()}
    done = forget(WHO, out)
    counts = done.erased.counts
    assert holding(out, words) == []
    assert (done.erased.files, counts["pictures"], counts["entries of the data list"]) == (4, 3, 3)
    after = read_raw(out / "datalist.json")
    group = IdentityKey.load(out / "private" / "key").patient(WHO)
    for section in ("training", "validation", "test"):
        assert after.get(section, []) == [item for item in before[section] if item["group"] != group]
    assert {p.name: p.read_bytes() for p in (out / "images").iterdir()} == {
        name: content for name, content in pictures.items() if name[:-4] not in images
    }
    assert (done.erased.before, done.erased.after) == (datalist_hash(before), datalist_hash(after))
    assert after["meta"]["sha256"] == done.erased.after != done.erased.before
    assert validate_datalist(out / "datalist.json", decode=True).ok
    assert "0" * 20 in (out / "private" / "excluded.csv").read_text()
    assert "ACC5550193777" in (out / "private" / "unmatched_labels.csv").read_text()
    sheet = (out / "private" / "contact_sheet.html").read_text()
    assert sheet.count("data:image/jpeg") == 1
    summary, card = (json.loads((out / name).read_text()) for name in ("ingest.json", "datacard.json"))
    assert (summary["kept"], summary["patients"], summary["left_out"]) == (8, 8, {"forgotten": 4})
    assert summary["datalist_sha256"] == done.erased.after
    assert card["images"] == 8
    modes = {stat.S_IMODE(path.stat().st_mode) for path in (out / "private").iterdir()}
    assert modes == {0o600}


def test_patient_stays_forgotten_over_the_same_source_and_with_new_images(tmp_path: Path) -> None:
    archive(tmp_path)
    run(tmp_path, **labels(tmp_path))
    words, _ = planted(tmp_path)
    forget(WHO, tmp_path / "out")
    write(tmp_path / "in" / "new", 403, PatientID=WHO)
    write(tmp_path / "in" / "new_other", 404)
    for _ in range(2):
        done = run(tmp_path, **labels(tmp_path))
        assert (done.kept, done.left_out) == (9, {"forgotten": 5})
        assert holding(tmp_path / "out", words | {b"in/new\n", b"in/new,"}) == []
    again = forget(WHO, tmp_path / "out")
    assert again.already
    assert "before" in again.lines()[0]


def test_processes_keep_the_patient_forgotten_as_well(tmp_path: Path) -> None:
    archive(tmp_path, 4)
    run(tmp_path)
    words, _ = planted(tmp_path)
    forget(WHO, tmp_path / "out")
    done = ingest(tmp_path / "in", tmp_path / "out", workers=1)
    assert done.left_out == {"forgotten": 4}
    assert holding(tmp_path / "out", words) == []


def test_hash_names_a_patient_too_also_one_without_patient_id(tmp_path: Path) -> None:
    archive(tmp_path, 4)
    write(tmp_path / "in" / "nameless", 9, PatientID="")
    run(tmp_path)
    (group,) = (row["group"] for row in rows(tmp_path / "out/private/index.csv") if row["file"].endswith("nameless"))
    assert forget(hash=group, folder=tmp_path / "out").erased.files == 1
    done = run(tmp_path)
    assert done.left_out["forgotten"] == 1
    assert forget(hash=group, folder=tmp_path / "out").already


def test_issuers_that_count_are_told_apart(tmp_path: Path) -> None:
    for seed, issuer in enumerate(("A", "B", "a ")):
        write(tmp_path / "in" / str(seed), seed, PatientID="P", IssuerOfPatientID=issuer)
    run(tmp_path, issuers="separate")
    out = tmp_path / "out"
    with pytest.raises(AfireError, match="2 patients of different issuers"):
        forget("P", out)
    (group,) = {row["group"] for row in rows(out / "private/index.csv") if row["file"][-1] in "02"}
    assert forget(hash=group, folder=out).erased.files == 2
    assert run(tmp_path, issuers="separate").left_out == {"forgotten": 2}


STEPS = [
    "_pictures",
    "_unread",
    "_without",
    "_include",
    "_rewrite_list",
    "drop_forgotten",
    "save_datalist",
    "write_datacard",
]


@pytest.mark.parametrize("step", STEPS)
def test_interrupted_at_any_step_it_blocks_ingest_and_is_completed_by_the_same_command(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, step: str
) -> None:
    archive(tmp_path)
    run(tmp_path, **labels(tmp_path))
    words, _ = planted(tmp_path)
    before = datalist_hash(read_raw(tmp_path / "out" / "datalist.json"))

    def cut(*_: Any, **__: Any) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(erase, step, cut)
        with pytest.raises(KeyboardInterrupt):
            forget(WHO, tmp_path / "out")
    with pytest.raises(AfireError, match="was interrupted in this folder"):
        run(tmp_path, **labels(tmp_path))
    done = forget(WHO, tmp_path / "out")
    assert holding(tmp_path / "out", words) == []
    assert done.erased.after == datalist_hash(read_raw(tmp_path / "out" / "datalist.json")) != before
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "classifier.json").write_text(json.dumps({"data_sha256": before}))
    (sight,) = forget(WHO, tmp_path / "out", model=[tmp_path / "run"]).models
    assert "held the patient" in sight.words()
    assert run(tmp_path, **labels(tmp_path)).left_out == {"forgotten": 4}


KILLED = """
import os, sys
from afire_monai.hospital import erase
from afire_monai.hospital.forget import forget
erase.write_datacard = lambda *_: os._exit(9)
forget(sys.argv[1], sys.argv[2])
"""


def test_killed_in_the_middle_it_is_completed_by_the_same_command(tmp_path: Path) -> None:
    archive(tmp_path, 4)
    run(tmp_path)
    words, _ = planted(tmp_path)
    out = tmp_path / "out"
    assert warm.Program(["-c", KILLED, WHO, out], tmp_path / "log.txt").wait() == 9
    assert holding(out, words)
    assert not forget(WHO, out).already
    assert holding(out, words) == []
    assert run(tmp_path).left_out == {"forgotten": 4}


def test_what_cannot_be_done_changes_nothing(tmp_path: Path) -> None:
    archive(tmp_path, 4)
    run(tmp_path)
    out = tmp_path / "out"
    files = {p: p.read_bytes() for p in out.rglob("*") if p.is_file() and p.name not in ("audit.csv", "state.sqlite")}
    with pytest.raises(AfireError, match="no file of this patient is known"):
        forget("PAT9", out)
    with pytest.raises(AfireError, match="name one patient"):
        forget(" ", out)
    with pytest.raises(AfireError, match="name one patient"):
        forget(WHO, out, hash="0" * 20)
    with pytest.raises(AfireError, match="nowhere: no such folder"):
        forget(WHO, out, model=["nowhere"])
    with pytest.raises(AfireError, match="no folder of `afire ingest`"):
        forget(WHO, tmp_path / "in")
    IdentityKey.make(tmp_path / "other")
    with pytest.raises(AfireError, match="another key"):
        forget(WHO, out, key=tmp_path / "other")
    (out / "datalist.json").rename(tmp_path / "kept.json")
    with pytest.raises(AfireError, match="not the list that"):
        forget(WHO, out)
    changed = json.loads((tmp_path / "kept.json").read_text())
    changed["training"][0]["image"] = "images/other.png"
    for content in (changed, {"training": [{"image": "images/a.png"}]}, {"training": 5}):
        (out / "datalist.json").write_text(json.dumps(content))
        with pytest.raises(AfireError, match="not the list that"):
            forget(WHO, out)
    (tmp_path / "kept.json").rename(out / "datalist.json")
    after = {p: p.read_bytes() for p in out.rglob("*") if p.is_file() and p.name not in ("audit.csv", "state.sqlite")}
    assert after == files
    assert run(tmp_path).headers_read == 0


def test_full_disk_is_no_damage(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    archive(tmp_path)
    run(tmp_path)
    erase_forgotten = State.erase_forgotten

    def full(state: State) -> None:
        state._base.execute("PRAGMA max_page_count=1")  # SQLite sets it to the present size
        state.set_fact("more", "x" * 10**6)
        erase_forgotten(state)

    monkeypatch.setattr(State, "erase_forgotten", full)
    with pytest.raises(AfireError, match=r"cannot be written \(.*full\)\. Make room"):
        forget(WHO, tmp_path / "out")
    monkeypatch.undo()
    forget(WHO, tmp_path / "out")
    assert run(tmp_path).left_out["forgotten"] == 4


def test_models_are_told_by_the_lists_that_they_name(tmp_path: Path) -> None:
    archive(tmp_path)
    run(tmp_path)
    out = tmp_path / "out"
    earlier = datalist_hash(read_raw(out / "datalist.json"))
    write(tmp_path / "in" / "more", 50)
    run(tmp_path)
    current = read_raw(out / "datalist.json")
    group = IdentityKey.load(out / "private" / "key").patient(WHO)
    (section,) = (s for s in ("training", "validation", "test") if any(i["group"] == group for i in current[s]))
    descriptions = {
        "saw": {"encoder": {"from": {"data_sha256": datalist_hash(current)}}, "data_sha256": "5" * 64},
        "perhaps": {"data_sha256": earlier}, "not": {"data_sha256": "5" * 64}, "silent": {"epochs": 3},
    }  # fmt: skip
    for name, content in descriptions.items():
        (tmp_path / name / "models").mkdir(parents=True)
        (tmp_path / name / "models" / "classifier.json").write_text(json.dumps(content))
    done = forget(WHO, out, model=[tmp_path / name for name in descriptions])
    words = dict(zip(descriptions, (sight.words() for sight in done.models), strict=True))
    assert f"held the patient ({section})" in words["saw"]
    assert "Weights cannot forget" in words["saw"]
    assert "may have held" in words["perhaps"]
    assert "none that is known" in words["not"]
    assert "names no data list" in words["silent"]
    again = forget(WHO, out, model=[tmp_path / name for name in descriptions])
    assert again.already
    assert again.models == done.models


def test_models_of_a_patient_with_an_issuer_are_told_again(tmp_path: Path) -> None:
    for seed, issuer in enumerate("ABC"):
        write(tmp_path / "in" / str(seed), seed, PatientID=f"P{seed}", IssuerOfPatientID=issuer)
    run(tmp_path, issuers="separate")
    facts = {"data_sha256": datalist_hash(read_raw(tmp_path / "out" / "datalist.json"))}
    (tmp_path / "saw").mkdir()
    (tmp_path / "saw" / "classifier.json").write_text(json.dumps(facts))
    first = forget("P1", tmp_path / "out", model=[tmp_path / "saw"])
    again = forget("P1", tmp_path / "out", model=[tmp_path / "saw"])
    assert "held the patient (" in first.models[0].words()
    assert again.models == first.models


def test_list_before_a_patient_was_excluded_may_have_held_them(tmp_path: Path) -> None:
    archive(tmp_path)
    run(tmp_path)
    facts = {"data_sha256": datalist_hash(read_raw(tmp_path / "out" / "datalist.json"))}
    (tmp_path / "saw").mkdir()
    (tmp_path / "saw" / "classifier.json").write_text(json.dumps(facts))
    (tmp_path / "unwanted").write_text("\n".join(planted(tmp_path)[1]))
    run(tmp_path, exclude=tmp_path / "unwanted")
    done = forget(WHO, tmp_path / "out", model=[tmp_path / "saw"])
    assert "may have held" in done.models[0].words()


def test_retrieved_files_are_deleted_and_those_fetched_again_too(tmp_path: Path) -> None:
    retrieved = tmp_path / "out" / "private" / "dicom"
    for seed in range(4):
        write(retrieved / f"1.2.{seed}.dcm", seed)
    os.chmod(tmp_path / "out" / "private", 0o700)
    IdentityKey.make(tmp_path / "out" / "private" / "key")
    out = tmp_path / "out"
    ingest(retrieved, out, workers=0)
    write(retrieved / "1.2.30.dcm", 103, PatientID=WHO)  # fetched, and not read in yet
    content = (retrieved / "1.2.3.dcm").read_bytes()
    (out / "private" / "not_retrieved.csv").write_text("what,reason\n1.2.9,lost\n")
    assert forget(WHO, out).erased.counts["copies of DICOM files"] == 2
    assert sorted(path.name for path in retrieved.iterdir()) == ["1.2.0.dcm", "1.2.1.dcm", "1.2.2.dcm"]
    (retrieved / "1.2.3.dcm").write_bytes(content)
    assert ingest(retrieved, out, workers=0).left_out == {"forgotten": 1}
    assert not (retrieved / "1.2.3.dcm").exists()


def test_what_was_unpacked_of_an_archive_is_deleted_with_its_folders(tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "in.zip", "w") as archive:
        for seed in range(4):
            archive.write(write(tmp_path / "out of the way" / f"{seed}", seed), f"disc/name {seed}/IM1")
    out = tmp_path / "out"
    ingest(tmp_path / "in.zip", out, workers=0)
    assert forget(WHO, out).erased.counts["copies of DICOM files"] == 1
    (unpacked,) = (out / "private" / "unpacked").iterdir()
    assert sorted(path.name for path in (unpacked / "disc").iterdir()) == ["name 0", "name 1", "name 2"]
    assert ingest(tmp_path / "in.zip", out, workers=0).left_out == {}  # not unpacked again
    shutil.rmtree(unpacked)
    assert ingest(tmp_path / "in.zip", out, workers=0).left_out == {"forgotten": 1}
    assert not (unpacked / "disc" / "name 3").exists()


def test_image_of_another_patient_with_the_same_uid_stays(tmp_path: Path) -> None:
    write(tmp_path / "in" / "a", 1, PatientID="P", SOPInstanceUID="1.2.3")
    write(tmp_path / "in" / "b", 2, chest(5), PatientID="Q", SOPInstanceUID="1.2.3", SeriesInstanceUID="1.2.4")
    run(tmp_path)
    (row,) = rows(tmp_path / "out/private/index.csv")
    other = "P" if row["file"].endswith("b") else "Q"
    forget(other, tmp_path / "out")
    assert (tmp_path / "out" / "images" / f"{row['image']}.png").exists()


def test_the_only_patient_can_be_erased_and_the_command_says_so(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write(tmp_path / "in" / "a", 3)
    run(tmp_path)
    assert afire(["forget", WHO, "--folder", str(tmp_path / "out")]) == 0
    printed = capsys.readouterr().out
    assert "data list: removed" in printed
    assert WHO not in printed
    assert [path.name for path in (tmp_path / "out").iterdir() if path.is_file()] == ["left_out.csv"]
    assert afire(["forget", WHO, "--folder", str(tmp_path / "out")]) == 0
    assert "erased before" in capsys.readouterr().out
    write(tmp_path / "in" / "b", 4)
    assert run(tmp_path).left_out == {"forgotten": 1}


def test_numbers_are_not_mixed_up_with_lines(tmp_path: Path) -> None:
    write(tmp_path / "in" / "a", 1, PatientID="3")
    write(tmp_path / "in" / "b", 2)
    (tmp_path / "labels.csv").write_text("PatientID,Effusion\n3,1\nnobody,0\n")
    run(tmp_path, labels=tmp_path / "labels.csv", label_columns=["Effusion"], join="patient")
    assert isinstance(forget("3", tmp_path / "out"), ForgetSummary)
    assert (tmp_path / "out/private/unmatched_labels.csv").read_text() == "line,value\n3,nobody\n"
    assert load_datalist(tmp_path / "out/datalist.json")["labels"] == ["Effusion"]
