"""Who is one patient, where issuers are absent, spelled in several ways, or different."""

from __future__ import annotations

import json
from collections import defaultdict
from pathlib import Path

import pytest
from hospital_files import write

from afire_monai.core.errors import AfireError
from afire_monai.hospital.identity import IdentityKey
from afire_monai.hospital.ingest import IngestSummary, ingest
from afire_monai.label.images import patient_of


def make(folder: Path, *issuers: str | None, patients: int = 6) -> Path:
    for patient in range(patients):
        for place, issuer in enumerate(issuers):
            given = {"IssuerOfPatientID": issuer} if issuer else {}
            write(folder / f"{patient}_{place}", 10 * patient + place, PatientID=str(4711 + patient), **given)
    return folder


def run(tmp_path: Path, **options: object) -> tuple[IngestSummary, dict[str, set[str]]]:
    done = ingest(tmp_path / "in", tmp_path / "out", workers=0, split=(0.5, 0.25, 0.25), **options)
    content = json.loads((tmp_path / "out" / "datalist.json").read_text())
    found = defaultdict(set)
    for section in done.sections:
        for item in content[section]:
            found[item["group"]].add(section)
    return done, found


@pytest.mark.parametrize("issuers", ["one", "separate"])
def test_missing_and_respelled_issuers_are_one_patient_in_one_section(tmp_path: Path, issuers: str) -> None:
    make(tmp_path / "in", None, "HOSP", "hosp ", "Hosp")
    done, sections = run(tmp_path, issuers=issuers)
    assert (done.kept, done.patients) == (24, 6)
    assert {len(found) for found in sections.values()} == {1}
    assert [remark for remark in done.remarks if remark.startswith("6 PatientIDs occur with and without")]
    assert not [remark for remark in done.remarks if "different issuers" in remark]


def test_different_issuers_are_one_patient_unless_told_apart(tmp_path: Path) -> None:
    make(tmp_path / "in", "North", "SOUTH", patients=4)
    done, sections = run(tmp_path)
    assert done.patients == 4
    assert {len(found) for found in sections.values()} == {1}
    assert [remark for remark in done.remarks if remark.startswith("4 PatientIDs") and "--issuers separate" in remark]
    with pytest.raises(AfireError, match="made with --issuers one"):
        run(tmp_path, issuers="separate")
    apart = ingest(tmp_path / "in", tmp_path / "apart", workers=0, issuers="separate")
    assert apart.patients == 8


def test_image_without_issuer_beside_two_issuers_is_counted(tmp_path: Path) -> None:
    make(tmp_path / "in", None, "A", "B", patients=3)
    done, _ = run(tmp_path, issuers="separate")
    assert done.patients == 9
    assert [remark for remark in done.remarks if remark.startswith("3 of them also occur without issuer")]


def test_hashes_of_earlier_versions_stay_where_they_can(tmp_path: Path) -> None:
    IdentityKey.make(tmp_path / "key")
    key = IdentityKey.load(tmp_path / "key")
    make(tmp_path / "in", None, patients=3)
    _, without = run(tmp_path, key=tmp_path / "key")
    assert set(without) == {key.patient(str(4711 + n)) for n in range(3)}
    make(tmp_path / "named", "HOSP", patients=3)
    ingest(tmp_path / "named", tmp_path / "named_out", workers=0, issuers="separate", key=tmp_path / "key")
    index = (tmp_path / "named_out" / "private" / "index.csv").read_text()
    assert all(key.patient(str(4711 + n), "HOSP") in index for n in range(3))


def test_another_rule_is_refused_before_anything_is_written(tmp_path: Path) -> None:
    make(tmp_path / "in", None, patients=3)
    with pytest.raises(AfireError, match="issuers is 'none'; one or separate"):
        run(tmp_path, issuers="none")
    assert not (tmp_path / "out").exists()


def test_label_server_counts_patients_alike(tmp_path: Path) -> None:
    key = IdentityKey(b"k" * 32)
    make(tmp_path, None, "HOSP", "hosp ", patients=2)
    hashes = {file.name: patient_of(file, file.name, key) for file in tmp_path.iterdir()}
    assert len(set(hashes.values())) == 2
    assert len({hashes[f"0_{place}"] for place in range(3)}) == 1
