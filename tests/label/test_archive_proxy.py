"""What a browser sees of an archive through the label server."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Iterator
from typing import Any

import pytest
from hospital.fake_dicomweb import FakeServer, Handler, fake_dicomweb
from hospital_files import radiograph

from afire_monai.hospital.dicomweb.client import DicomWeb
from afire_monai.hospital.dicomweb.credentials import DicomWebError
from afire_monai.label.archive_proxy import ArchiveProxy
from afire_monai.label.messages import NotFoundError, problem


@pytest.fixture
def archive() -> Iterator[FakeServer]:
    """Study 1.1 has a radiograph (series 1.1.1) and a CT (1.1.2), study 1.2 a CT alone (1.2.1)."""
    with fake_dicomweb() as server:
        for study, series, modality in (("1.1", "1.1.1", "DX"), ("1.1", "1.1.2", "CT"), ("1.2", "1.2.1", "CT")):
            uids = {"StudyInstanceUID": study, "SeriesInstanceUID": series, "SOPInstanceUID": f"{series}.9"}
            server.hold(radiograph(0, Modality=modality, **uids))
        yield server


@pytest.fixture
def proxy(archive) -> ArchiveProxy:
    return ArchiveProxy(DicomWeb(archive.url, timeout=0.5, retries=0), ["CR", "DX"])


def element(*values: str) -> dict[str, Any]:
    return {"vr": "UI", "Value": list(values)}


def lists(*entries: dict[str, Any]) -> Any:
    def trick(handler: Handler) -> bool:
        handler.json(200, list(entries))
        return True

    return trick


def ready(proxy: ArchiveProxy, archive: FakeServer, *tricks: Any) -> None:
    """Let the proxy learn which series there are before the server misbehaves."""
    proxy._known(proxy.LIST_FOR)
    archive.tricks += tricks
    archive.asked.clear()


def test_instances_of_chosen_modalities_come_as_they_are(proxy):
    reply = proxy.answer("wado/studies/1.1/series/1.1.1/instances/1.1.1.9", [], "*/*")
    assert reply[1].startswith("multipart/related")
    assert b"DICM" in reply[0]
    listed = proxy.answer("qido/studies/1.1/series/1.1.1/instances", [], "application/dicom+json")
    assert json.loads(listed[0])[0]["00080018"]["Value"] == ["1.1.1.9"]


@pytest.mark.parametrize(
    "path",
    [
        "studies/1.1/series/1.1.2/instances/1.1.2.9",  # a CT of a study that is shown
        "studies/1.2/series/1.2.1/instances/1.2.1.9",
        "studies/1.2/series/1.1.1/instances/1.1.1.9",  # the series of another study
        "studies/1.2/series",
        "studies/1.2/metadata",
        "studies/1.1",  # all of a study, whatever it is
        "studies/1.1/series/1.1.1/../1.1.2/instances/1.1.2.9",
        "studies/1.1/series/1.1.1/%2e%2e/1.1.2",
        "wado/../system",
        "../instances",
        "",
        "wado",
        "stow/studies",
    ],
)
def test_everything_else_is_neither_shown_nor_asked_for(proxy, archive, path):
    ready(proxy, archive)
    proxy._listed -= 2 * proxy.ASK_AGAIN
    with pytest.raises(NotFoundError, match="only series of CR, DX"):
        proxy.answer(path, [], "*/*")
    assert [asked for _, asked in archive.asked if "Modality=" not in asked] == []


def test_studies_are_asked_for_by_modality_and_others_are_left_out(proxy, archive):
    one = {"0020000D": element("1.1"), "00080061": element("CT", "DX")}
    other = {"0020000D": element("1.2"), "00080061": element("CT")}
    ready(proxy, archive, lists(one, other), lists(one, other))
    reply = proxy.answer("qido/studies", [("limit", "101"), ("offset", "0"), ("PatientName", "A*")], "*/*")
    assert json.loads(reply[0]) == [{**one, "00080061": element("DX")}]
    asked = [path for _, path in archive.asked]
    assert [("ModalitiesInStudy=CR" in path, "ModalitiesInStudy=DX" in path) for path in asked] == [
        (True, False),
        (False, True),
    ]
    assert all("limit" not in path and "PatientName=A" in path for path in asked)
    archive.asked.clear()
    assert json.loads(proxy.answer("qido/studies", [("ModalitiesInStudy", "CT")], "*/*")[0]) == []
    assert archive.asked == []


def test_series_and_instances_of_other_modalities_are_left_out_of_lists(proxy, archive):
    shown, hidden = {"0020000E": element("1.1.1")}, {"0020000E": element("1.1.2")}
    for path in ("studies/1.1/series", "studies/1.1/instances", "studies/1.1/metadata"):
        ready(proxy, archive, lists(hidden, shown))
        assert json.loads(proxy.answer(path, [], "*/*")[0]) == [shown]
    whole = [{"0020000D": element("1.1"), **entry} for entry in (hidden, shown)]
    ready(proxy, archive, lists(*whole))
    assert json.loads(proxy.answer("series", [], "*/*")[0]) == whole[1:]


def test_lists_are_paged_after_what_is_hidden_is_gone(proxy, archive):
    entries = [{"0020000E": element("1.1.2")}, *({"0020000E": element("1.1.1"), "n": i} for i in range(5))]
    ready(proxy, archive, lists(*entries))
    reply = proxy.answer("studies/1.1/series", [("offset", "1"), ("limit", "2")], "*/*")
    assert [entry["n"] for entry in json.loads(reply[0])] == [1, 2]


def test_a_series_that_has_just_come_is_found(proxy, archive):
    ready(proxy, archive)
    new = {"StudyInstanceUID": "1.3", "SeriesInstanceUID": "1.3.1", "SOPInstanceUID": "1.3.1.9"}
    archive.hold(radiograph(3, **new))
    proxy._listed -= 2 * proxy.ASK_AGAIN
    assert b"DICM" in proxy.answer("studies/1.3/series/1.3.1/instances/1.3.1.9", [], "*/*")[0]


def test_an_archive_that_hangs_or_fails_is_a_502_in_words_within_its_time(proxy, archive):
    awake = threading.Event()

    def hang(handler: Handler) -> bool:
        awake.wait(60)
        handler.close_connection = True
        return True

    def fail(handler: Handler) -> bool:
        handler.reply(500, b"1.1.1 of Zyxwolski", "text/plain")
        return True

    def wants_a_password(handler: Handler) -> bool:
        handler.reply(401, b"", "text/plain")
        return True

    for trick in (hang, fail, wants_a_password):
        ready(proxy, archive, trick)
        start = time.monotonic()
        with pytest.raises(DicomWebError) as caught:
            proxy.answer("studies/1.1/series/1.1.1/instances/1.1.1.9", [], "*/*")
        assert time.monotonic() - start < 30  # not the 60 of the archive
        awake.set()
        status, words = problem(caught.value)
        assert (status, words.startswith("the DICOMweb archive: ")) == (502, True)
        assert "Zyxwolski" not in words


def test_what_the_archive_does_not_have_is_a_404(proxy):
    with pytest.raises(NotFoundError) as caught:
        proxy.answer("studies/1.1/series/1.1.1/instances/1.1.1.8", [], "*/*")
    assert problem(caught.value)[0] == 404
