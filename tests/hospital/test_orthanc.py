"""The whole way through a hospital with a real archive: radiographs out of it, results into it."""

from __future__ import annotations

import pydicom
import pytest

pytest.importorskip("dicomweb_client")

from hospital.orthanc import PASSWORD, USER, running_orthanc
from hospital.planted import small, write

from afire_monai.hospital.dicomweb import DicomWeb
from afire_monai.hospital.dicomweb_access import DicomWebError
from afire_monai.hospital.dicomweb_query import Query, SeriesReference
from afire_monai.hospital.dicomweb_transfer import retrieve_series, send_folder


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
