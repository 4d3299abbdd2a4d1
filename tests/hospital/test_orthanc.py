"""The whole way through a hospital with a real archive: radiographs out of it, results into it."""

from __future__ import annotations

import contextlib
import io
import json
import stat
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pydicom
import pytest
import torch

pytest.importorskip("dicomweb_client")
pytest.importorskip("highdicom")

from helpers import CONFIGS, run_bundle
from hospital.orthanc import PASSWORD, USER, running_orthanc
from hospital.planted import SECRETS, radiograph, small, write

from afire_monai.cli.main import run
from afire_monai.hospital.dicomweb.client import DicomWeb, Query, SeriesReference
from afire_monai.hospital.dicomweb.credentials import DicomWebError
from afire_monai.hospital.dicomweb.transfer import retrieve_series, send_folder
from afire_monai.models.folder import export_encoder
from afire_monai.networks import ViTEncoder
from afire_monai.phantom import ChestPhantom


@pytest.fixture(autouse=True)
def _no_credentials(monkeypatch, tmp_path):
    for name in ("AFIRE_DICOMWEB_USER", "AFIRE_DICOMWEB_PASSWORD", "AFIRE_DICOMWEB_TOKEN", "NETRC"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HOME", str(tmp_path / "home"))


@pytest.fixture(scope="module")
def orthanc(tmp_path_factory):
    with running_orthanc(tmp_path_factory.mktemp("orthanc")) as url:
        yield url


def test_an_archive_with_a_password_is_used_with_it_only(tmp_path, monkeypatch):
    with running_orthanc(tmp_path / "orthanc", password=True) as url:
        with pytest.raises(DicomWebError, match="answers 401"):
            DicomWeb(url).find_series(Query())
        monkeypatch.setenv("AFIRE_DICOMWEB_USER", USER)
        monkeypatch.setenv("AFIRE_DICOMWEB_PASSWORD", PASSWORD)
        write(small(1), tmp_path / "outbox" / "a")
        web = DicomWeb(url)
        assert send_folder(web, tmp_path / "outbox").done == 1
        assert len(web.find_series(Query())) == 1


def test_queries_find_what_they_name(orthanc, tmp_path):
    held = [small(100 + n, "CR" if n < 7 else "DX") for n in range(10)]
    held[3].StudyDescription = "Röntgen Hand"
    for n, dataset in enumerate(held):
        write(dataset, tmp_path / "outbox" / str(n))
    web = DicomWeb(orthanc)
    assert send_folder(web, tmp_path / "outbox").status == 0

    def found(query: Query, page: int = 500) -> set[str]:
        ours = {str(d.SeriesInstanceUID) for d in held}
        return {reference.series for reference in web.find_series(query, page)} & ours

    def expected(*numbers: int) -> set[str]:
        return {str(held[n].SeriesInstanceUID) for n in numbers}

    assert found(Query()) == found(Query(), page=3) == expected(*range(10))
    assert found(Query.of(["DX"])) == expected(7, 8, 9)
    days = [d.StudyDate for d in held]
    first, last = sorted(days)[2], sorted(days)[5]
    for text, wanted in (
        (f"{first}-{last}", [n for n, day in enumerate(days) if first <= day <= last]),
        (f"-{last}", [n for n, day in enumerate(days) if day <= last]),
        (f"{first}-", [n for n, day in enumerate(days) if day >= first]),
        (first, [n for n, day in enumerate(days) if day == first]),
    ):
        assert found(Query.of(["CR", "DX"], text)) == expected(*wanted), text
    assert found(Query.of(["CR"], words=["RÖNTGEN hand", "nichts"])) == {str(held[3].SeriesInstanceUID)}


@pytest.mark.real_data
def test_real_files_come_back_as_they_were_sent(orthanc, real_data, tmp_path):
    web = DicomWeb(orthanc)
    sent = send_folder(web, real_data / "dicom")
    assert sent.done >= 20
    by_uid: dict[str, list[pydicom.Dataset]] = {}
    refused = {what for what, _ in sent.failed}
    for path in (real_data / "dicom").rglob("*"):
        if path.is_file() and str(path) not in refused and path.read_bytes()[128:132] == b"DICM":
            dataset = pydicom.dcmread(path)
            by_uid.setdefault(str(dataset.SOPInstanceUID), []).append(dataset)
    wanted = {
        SeriesReference(str(d.StudyInstanceUID), str(d.SeriesInstanceUID))
        for d, *_ in by_uid.values()
        if d.get("Modality") in ("CR", "DX")
    }
    assert wanted <= set(web.find_series(Query()))
    folder = tmp_path / "private" / "dicom"
    done = retrieve_series(web, sorted(wanted, key=str), folder)
    assert done.failed == []
    assert done.done >= 10
    for path in folder.glob("*.dcm"):
        back = pydicom.dcmread(path)
        original = next(d for d in by_uid[str(back.SOPInstanceUID)] if d[0x00280004] == back[0x00280004])
        assert back.file_meta.TransferSyntaxUID == original.file_meta.TransferSyntaxUID
        size = len(original.PixelData)  # one file has an odd number of bytes, which is made even
        assert (back.PixelData[:size], len(back.PixelData)) == (original.PixelData, size + size % 2)
        assert {e.tag for e in back} >= {e.tag for e in original if e.tag.element and e.tag.group > 8}
    again = retrieve_series(web, sorted(wanted, key=str), folder)
    assert (again.done, again.already) == (0, done.done)


# the whole way --------------------------------------------------------------------------------------------------------


INGEST = ["--label-columns", "Normal,Effusion", "--split", "0.5,0.25,0.25", "--allow", "sex,view", "--workers", "0"]


@pytest.fixture(scope="module")
def archive(tmp_path_factory) -> Path:
    """Folder of an archive: 24 patients who do not exist, half of them with a finding, and the table that says so."""
    folder = tmp_path_factory.mktemp("archive")
    phantom = ChestPhantom(96)
    rows = ["AccessionNumber,Normal,Effusion"]
    for number in range(24):
        sick = number % 4 > 1
        sample = phantom(number, phantom.findings[0] if sick else None)
        dataset = radiograph(number, sample.image[0], "DX" if number % 2 else "CR")
        write(dataset, folder / "dicom" / f"Geheimniskraemer {number}" / "IM0001")
        rows.append(f"{dataset.AccessionNumber},{int(not sick)},{int(sick)}")
    (folder / "labels.csv").write_text("\n".join(rows) + "\n", encoding="utf-8")
    return folder


@pytest.fixture(scope="module")
def way(archive, tmp_path_factory):
    """Walk it once: each step is what a user types. Gives the folders, and all that was said on the way."""
    folder = tmp_path_factory.mktemp("way")
    said = io.StringIO()

    def afire(*words: object) -> None:
        with contextlib.redirect_stdout(said), contextlib.redirect_stderr(said):
            status = run([str(word) for word in words])
        assert status == 0, said.getvalue()[-2000:]

    torch.manual_seed(0)
    net = ViTEncoder(32, 8, embed_dim=32, depth=2, num_heads=2)
    encoder = export_encoder(net, folder / "encoder", method_name="AFiRe", epochs=1, data_sha256="0" * 64)
    with pytest.MonkeyPatch.context() as patch, running_orthanc(folder / "orthanc") as url:
        for name in ("AFIRE_DICOMWEB_USER", "AFIRE_DICOMWEB_TOKEN", "NETRC"):
            patch.delenv(name, raising=False)
        patch.setenv("HOME", str(folder))
        afire("send", archive / "dicom", "--dicomweb", url)
        afire(
            *("ingest", "--dicomweb", url, "--out", folder / "chest", "--labels", archive / "labels.csv"),
            *(
                "--label-columns",
                "Normal,Effusion",
                "--split",
                "0.5,0.25,0.25",
                "--allow",
                "sex,view",
                "--workers",
                "0",
            ),
        )
        settings = {"epochs": 1, "batch_size": 4, "image_size": 32, "patch_size": 8, "device": "cpu"}
        (folder / "elsewhere").mkdir()
        run_bundle(
            folder / "elsewhere",
            str(CONFIGS / "finetune_classification.yaml"),
            datalist=str(folder / "chest" / "datalist.json"),
            init=str(encoder.parent),
            output_dir=str(folder / "run"),
            **settings,
        )
        afire(
            *("predict", folder / "chest" / "datalist.json", "--section", "test", "--model", folder / "run" / "models"),
            *("--out", folder / "results", "--heatmap", "gradcam", "--workers", "0"),
        )
        index = folder / "chest" / "private" / "index.csv"
        kinds = ("--kinds", "sr,seg,sc,gsps")
        afire("dicom-results", folder / "results", "--index", index, "--out", folder / "results_dicom", *kinds)
        afire("send", folder / "results_dicom", "--dicomweb", url)
        yield Way(folder, url, said.getvalue())


@dataclass(frozen=True)
class Way:
    folder: Path
    url: str
    said: str


def test_results_are_new_series_of_the_studies_they_belong_to(way, archive):
    from dicomweb_client import DICOMwebClient

    client = DICOMwebClient(way.url)
    sources = {d.StudyInstanceUID: d for d in map(pydicom.dcmread, (archive / "dicom").rglob("IM0001"))}
    in_study: dict[str, Counter[str]] = {uid: Counter() for uid in sources}
    for entry in client.search_for_series():
        in_study[entry["0020000D"]["Value"][0]][entry["00080060"]["Value"][0]] += 1
    tested = len(json.loads((way.folder / "chest" / "datalist.json").read_text())["test"])
    assert tested >= 4
    found = Counter(tuple(sorted(kinds.elements())) for kinds in in_study.values())
    plain = Counter((d.Modality,) for d in sources.values())
    with_results = {kinds: n for kinds, n in found.items() if len(kinds) > 1}
    assert sum(with_results.values()) == tested
    assert {kinds[-4:] for kinds in with_results} <= {("OT", "PR", "SEG", "SR")}
    assert found.total() == plain.total() == 24


def test_results_come_back_and_can_be_read(way, archive, tmp_path):
    import highdicom

    sources = {d.SOPInstanceUID: d for d in map(pydicom.dcmread, (archive / "dicom").rglob("IM0001"))}
    web = DicomWeb(way.url)
    done = retrieve_series(web, web.find_series(Query(("SR", "SEG", "OT", "PR"))), tmp_path / "private" / "dicom")
    assert done.failed == []
    kinds: Counter[str] = Counter()
    for path in (tmp_path / "private" / "dicom").glob("*.dcm"):
        back = pydicom.dcmread(path)
        kinds[back.Modality] += 1
        if back.Modality == "SEG":
            read = highdicom.seg.segread(path)
            assert read.segmentation_type.value == "FRACTIONAL"
            ((_, _, source),) = read.get_source_image_uids()
        elif back.Modality == "SR":
            report = highdicom.sr.srread(path)
            assert report.content.get_image_measurement_groups()
            source = (
                back.CurrentRequestedProcedureEvidenceSequence[0].ReferencedSeriesSequence[0].ReferencedSOPSequence[0]
            )
            source = source.ReferencedSOPInstanceUID
        elif back.Modality == "PR":
            source = back.ReferencedSeriesSequence[0].ReferencedImageSequence[0].ReferencedSOPInstanceUID
            widths = [item.WindowWidth for item in back.get("SoftcopyVOILUTSequence") or ()]
            assert widths == [4096] * (sources[source].Modality == "DX")  # the others have none
        else:
            assert back.pixel_array.shape[-1] == 3
            source = back.SourceImageSequence[0].ReferencedSOPInstanceUID
        of = sources[source]
        assert back.StudyInstanceUID == of.StudyInstanceUID
        assert back.SeriesInstanceUID != of.SeriesInstanceUID
        for keyword in ("PatientName", "PatientID", "PatientBirthDate", "AccessionNumber", "StudyDate"):
            assert back[keyword].value == of[keyword].value
    assert len(set(kinds.values())) == 1
    assert set(kinds) == {"SR", "SEG", "OT", "PR"}


def test_nothing_that_is_written_or_said_tells_who_the_patients_are(way, archive):
    sources = list(map(pydicom.dcmread, (archive / "dicom").rglob("IM0001")))
    hidden = {word.encode() for word in SECRETS}
    hidden |= {str(d[k].value).encode() for d in sources for k in ("SOPInstanceUID", "StudyInstanceUID", "StudyDate")}
    apart = {way.folder / name for name in ("orthanc", "results_dicom")} | {way.folder / "chest" / "private"}
    looked_at = 0
    for path in way.folder.rglob("*"):
        if not path.is_file() or apart & set(path.parents):
            continue
        content = path.read_bytes()
        content += b"".join(text(path)) if path.suffix == ".png" else b""
        assert [word for word in hidden if word in content] == [], path
        assert [word for word in hidden if word in str(path.relative_to(way.folder)).encode()] == [], path
        looked_at += 1
    assert looked_at > 40
    assert [word for word in hidden if word in way.said.encode()] == []


def test_private_files_are_their_owners_only(way):
    private = way.folder / "chest" / "private"
    assert stat.S_IMODE(private.stat().st_mode) == 0o700
    modes = {stat.S_IMODE(p.stat().st_mode) for p in private.rglob("*") if p.is_file()}
    assert modes == {0o600}


def test_the_same_command_again_fetches_and_reads_nothing(way, archive, capsys):
    again = [
        "ingest",
        "--dicomweb",
        way.url,
        "--out",
        str(way.folder / "chest"),
        "--labels",
        str(archive / "labels.csv"),
    ]
    again += ["--label-columns", "Normal,Effusion", "--split", "0.5,0.25,0.25", "--allow", "sex,view", "--workers", "0"]
    before = (way.folder / "chest" / "datalist.json").read_bytes()
    assert run(again) == 0
    said = capsys.readouterr().out
    assert "fetched:  0 files of 24 series (24 were there)" in said
    assert "read now: 0 headers, 0 images" in said
    assert (way.folder / "chest" / "datalist.json").read_bytes() == before


def test_originals_are_forgotten_when_asked(way, tmp_path, capsys):
    out = tmp_path / "chest"
    words = ["ingest", "--dicomweb", way.url, "--out", str(out), "--workers", "0", "--modality", "dx"]
    assert run([*words, "--description", "thorax", "--date", "20210101-20211231", "--forget-originals"]) == 0
    said = capsys.readouterr().out
    assert "fetched:  12 files" in said
    assert "deleted:  12 retrieved files" in said
    assert not list((out / "private" / "dicom").iterdir())
    assert len(list((out / "images").rglob("*.png"))) == 12


@pytest.mark.real_data
def test_real_radiographs_go_the_same_way(way, real_data, tmp_path):
    """With an archive of their own; whatever can be used of them comes back with results."""
    originals = {}
    for path in (real_data / "dicom").rglob("*.dcm"):
        with contextlib.suppress(Exception):
            dataset = pydicom.dcmread(path, stop_before_pixels=True)
            originals[str(dataset.SOPInstanceUID)] = dataset
    with running_orthanc(tmp_path / "orthanc") as url:
        assert run(["send", str(real_data / "dicom"), "--dicomweb", url, "--quiet"]) == 1  # some are no radiographs
        chest, results = tmp_path / "chest", tmp_path / "results"
        assert run(["ingest", "--dicomweb", url, "--out", str(chest), "--workers", "0", "--split", "0,0,1"]) == 0
        model = str(way.folder / "run" / "models")
        words = ["predict", str(chest / "datalist.json"), "--model", model, "--out", str(results), "--workers", "0"]
        assert run([*words, "--heatmap", "gradcam"]) == 0
        index, out = str(chest / "private" / "index.csv"), tmp_path / "results_dicom"
        assert run(["dicom-results", str(results), "--index", index, "--out", str(out)]) in (0, 1)
        assert run(["send", str(out), "--dicomweb", url]) == 0
        web = DicomWeb(url)
        for modality in ("SR", "SEG", "OT"):
            found = web.find_series(Query((modality,)))
            studies = {reference.study for reference in found}
            assert len(studies & {str(d.StudyInstanceUID) for d in originals.values()}) >= 3
    hidden = {
        str(dataset.get(keyword)).encode()
        for dataset in originals.values()
        for keyword in ("PatientName", "PatientID", "SOPInstanceUID", "AccessionNumber")
        if len(str(dataset.get(keyword, ""))) > 5
    }
    for path in (*chest.glob("*.*"), *chest.rglob("*.png"), *results.rglob("*")):
        if path.is_file() and path.name != "index.csv":
            content = path.read_bytes() + (b"".join(text(path)) if path.suffix == ".png" else b"")
            assert [word for word in hidden if word in content] == [], path


def text(path: Path) -> Iterator[bytes]:
    """What a PNG picture says beside its pixels, unpacked."""
    from PIL import Image

    with Image.open(path) as picture:
        picture.load()
        for key, value in picture.info.items():
            yield f"{key}={value}".encode()
