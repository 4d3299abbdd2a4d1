"""Query, retrieve and store over DIMSE, against pynetdicom's own archive and, where it is installed, Orthanc."""

from __future__ import annotations

import contextlib
import json
import logging
import socket
import ssl
import stat
import struct
import sys
import threading
import time
import urllib.request
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import SimpleNamespace

import pydicom
import pytest

pytest.importorskip("pynetdicom")

from hospital.certificates import make_certificates
from hospital.fake_pacs import AET, fake_pacs
from hospital.orthanc import free_port, running_orthanc
from hospital.planted import SECRETS, radiograph, small, write
from pynetdicom.dimse import DIMSEServiceProvider
from pynetdicom.dimse_primitives import N_EVENT_REPORT

from afire_monai.cli.main import run
from afire_monai.core.errors import AfireError
from afire_monai.hospital.dicomweb.client import Query, SeriesReference
from afire_monai.hospital.dicomweb.connection import AnswerError, ConnectionLostError
from afire_monai.hospital.dicomweb.transfer import retrieve_series, send_folder
from afire_monai.hospital.pacs import client as asking
from afire_monai.hospital.pacs.association import PacsAddress, Tls, cut
from afire_monai.hospital.pacs.client import Pacs
from afire_monai.hospital.pacs.commitment import Reports
from afire_monai.hospital.pacs.sent import SENT, RememberingPacs
from afire_monai.phantom import ChestPhantom


def client(address: str, **options: object) -> Pacs:
    return Pacs(address, **{"timeout": 10.0, "retries": 2, "first_wait": 0.01, **options})  # type: ignore[arg-type]


def reference(dataset: pydicom.Dataset) -> SeriesReference:
    return SeriesReference(str(dataset.StudyInstanceUID), str(dataset.SeriesInstanceUID))


def outbox(folder: Path, count: int) -> list[pydicom.Dataset]:
    held = [small(n, "CR" if n % 3 else "DX") for n in range(count)]
    for n, dataset in enumerate(held):
        write(dataset, folder / str(n))
    return held


# the address ----------------------------------------------------------------------------------------------------------


def test_addresses_are_read():
    assert PacsAddress.parse("ARCHIVE@pacs.example:104") == PacsAddress("ARCHIVE", "pacs.example", 104)
    assert PacsAddress.parse("MY PACS@[::1]:11112") == PacsAddress("MY PACS", "::1", 11112)


@pytest.mark.parametrize(
    "text", ["pacs.example:104", "A@host", "A@host:0", "A@host:70000", "@host:104", "A" * 17 + "@host:104", "Ä@host:1"]
)
def test_wrong_addresses_are_refused_with_an_example(text):
    with pytest.raises(AfireError, match=r"AET@HOST:PORT|AE title"):
        PacsAddress.parse(text)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["send", "{folder}"], "name one archive"),
        (["send", "{folder}", "--pacs", "A@h:1", "--dicomweb", "http://localhost"], "name one archive"),
        (["send", "{folder}", "--pacs", "A@h:1", "--ca", "x"], "--tls-ca"),
        (["send", "{folder}", "--pacs", "A@h:1", "--tls-ca", "missing.pem"], "--tls-ca names a file"),
        (["send", "{folder}", "--dicomweb", "http://localhost", "--tls-ca", "x"], "go with --pacs"),
        (["ingest", "{folder}", "--out", "{folder}/o", "--move-to", "A:1"], "go with --dicomweb or --pacs"),
        (["ingest", "--pacs", "A@127.0.0.1:1", "--out", "{folder}/o", "--move-to", "A"], "takes AET:PORT"),
    ],
)
def test_commands_that_cannot_be_meant_are_refused(words, message, tmp_path, capsys):
    assert run([word.format(folder=tmp_path) for word in words]) == 2
    assert message in capsys.readouterr().err


def test_without_pynetdicom_the_extra_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "pynetdicom", None)
    with pytest.raises(AfireError, match=r"pip install 'afire-monai\[pacs\]'"):
        client("A@127.0.0.1:104")


# sending --------------------------------------------------------------------------------------------------------------


def test_each_object_is_sent_once_however_often_the_command_is_given(tmp_path, capsys):
    held = outbox(tmp_path / "out", 7)
    with fake_pacs() as pacs:
        for expected in ("stored:   7", "there:    7"):
            assert run(["send", str(tmp_path / "out"), "--pacs", pacs.address]) == 0
            assert expected in capsys.readouterr().out
        assert pacs.stored == Counter(str(d.SOPInstanceUID) for d in held)
        assert pacs.associations <= 3  # one for each kind of object, and none where all is there
        assert stat.S_IMODE((tmp_path / "out" / ".afire-sent").stat().st_mode) == 0o600
        changed = write(small(0, "DX", PatientSex="O"), tmp_path / "out" / "0")
        assert changed.exists()
        assert run(["send", str(tmp_path / "out"), "--pacs", pacs.address]) == 0
        assert "stored:   1" in capsys.readouterr().out
    with fake_pacs() as other:
        assert run(["send", str(tmp_path / "out"), "--pacs", other.address]) == 0
        assert other.stored.total() == 7


def test_a_list_of_what_was_sent_that_ends_in_half_a_line_is_no_object(tmp_path):
    (dataset,) = outbox(tmp_path, 1)
    with fake_pacs() as pacs:
        with RememberingPacs(tmp_path, pacs.address) as archive:
            assert send_folder(archive, tmp_path).done == 1
        listed = tmp_path / ".afire-sent"
        whole = listed.read_bytes()
        listed.write_bytes(whole[:20])
        for done in (1, 0):
            with RememberingPacs(tmp_path, pacs.address) as again:
                assert send_folder(again, tmp_path).done == done
        assert pacs.stored[str(dataset.SOPInstanceUID)] == 2


def test_connections_that_end_in_the_middle_lose_nothing(tmp_path):
    held = outbox(tmp_path, 9)
    with fake_pacs(drop_every=3) as pacs, client(pacs.address) as archive:
        done = send_folder(archive, tmp_path)
        assert (done.done, done.failed) == (9, [])
        assert pacs.stored.pop("dropped") >= 3
        assert set(pacs.stored) == {str(d.SOPInstanceUID) for d in held}


def test_the_end_of_a_message_does_not_wait_for_its_beginning_to_be_confirmed():
    with fake_pacs() as pacs, client(pacs.address) as archive:
        assert archive.store(small(0))
        connection = archive._open["store"].dul.socket.socket
        assert connection.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY)


class LateAfterWait(threading.Event):
    """Its waiter loses the processor just after it was let through."""

    def wait(self, timeout: float | None = None) -> bool:
        done = super().wait(timeout)
        time.sleep(0.2)
        return done


def test_an_answer_reaches_its_request_when_threads_lose_the_processor():
    with fake_pacs() as pacs, client(pacs.address, timeout=20.0, retries=0) as archive:
        assert archive.store(small(0))
        association = archive._open["store"]
        checkpoint, send = LateAfterWait(), association.dimse.send_msg
        checkpoint.set()
        association._reactor_checkpoint = checkpoint  # pynetdicom's own, at which its thread pauses during requests
        association.dimse.send_msg = lambda *words: (send(*words), time.sleep(0.3))  # and the asking thread
        time.sleep(0.1)
        for number in range(1, 5):
            assert archive.store(small(number))
    assert set(pacs.stored.values()) == {1}
    assert pacs.associations == 1


def test_a_second_answer_is_not_taken_for_that_of_the_next_object():
    with fake_pacs(twice=True) as pacs, client(pacs.address) as archive:
        assert archive.store(small(0))
        time.sleep(0.5)  # the second answer is there
        pacs.status = 0xC000
        with pytest.raises(AnswerError, match="cannot understand"):
            archive.store(small(1))


@pytest.mark.parametrize(
    ("status", "words"),
    [(0xA700, "out of resources"), (0x0122, "does not take this kind"), (0x0124, "not authorised"), (0xC123, "cannot")],
)
def test_a_refusal_is_counted_in_words_without_names(status, words, tmp_path, capsys):
    outbox(tmp_path, 3)
    with fake_pacs(status=status) as pacs:
        assert run(["send", str(tmp_path), "--pacs", pacs.address]) == 2
    printed = capsys.readouterr().out
    assert "3 x refused by the archive: " in printed
    assert words in printed
    assert f"{status:04X}" in printed
    assert not [word for word in SECRETS if word in printed]


def test_an_object_that_the_archive_has_already_counts_as_there(tmp_path):
    outbox(tmp_path, 2)
    with fake_pacs(status=0x0111) as pacs, client(pacs.address) as archive:
        done = send_folder(archive, tmp_path)
    assert (done.done, done.already, done.status) == (0, 2, 0)


def test_compressed_files_are_sent_as_they_are_or_refused_by_name(tmp_path):
    dataset = small(1)
    dataset.compress(pydicom.uid.RLELossless, generate_instance_uid=False)
    write(dataset, tmp_path / "a")
    with fake_pacs() as pacs, client(pacs.address) as archive:
        assert send_folder(archive, tmp_path).done == 1
        (there,) = pacs.held.values()
        assert there.PixelData == dataset.PixelData
        other = pydicom.dcmread(tmp_path / "a")
        other.file_meta.TransferSyntaxUID = pydicom.uid.JPEGLSLossless
        with pytest.raises(AnswerError, match=r"JPEG-LS|no object or request of this kind"):
            archive.store(other)
        assert archive.store(pydicom.dcmread(tmp_path / "a"))


def test_an_archive_that_is_not_there_ends_the_command_in_words(tmp_path):
    words = "cannot be reached .* the rest can follow when it is back"
    with client(f"A@127.0.0.1:{free_port()}", retries=1) as archive, pytest.raises(ConnectionLostError, match=words):
        archive.echo()


def test_a_wrong_ae_title_is_said(tmp_path):
    with (
        fake_pacs() as pacs,
        client(pacs.address.replace(AET, "OTHER")) as archive,
        pytest.raises(AfireError, match="AE title is not 'OTHER'"),
    ):
        archive.find_series(Query())


# fetching -------------------------------------------------------------------------------------------------------------


def test_queries_find_series_by_modality_dates_and_words():
    held = [small(n, "CR" if n < 5 else "DX") for n in range(8)]
    held[3].SeriesDescription = "Röntgen Hand"
    with fake_pacs() as pacs, client(pacs.address) as archive:
        pacs.hold(*held)

        def expected(*numbers: int) -> set[SeriesReference]:
            return {reference(held[n]) for n in numbers}

        assert set(archive.find_series(Query())) == expected(*range(8))
        assert set(archive.find_series(Query.of(["DX"]))) == expected(5, 6, 7)
        days = Query.of(["CR", "DX"], f"{held[2].StudyDate}-{held[6].StudyDate}")
        assert set(archive.find_series(days)) == expected(2, 3, 4, 5, 6)
        assert set(archive.find_series(Query.of(["CR"], words=["röntgen hand"]))) == expected(3)
        assert pacs.associations == 1


@pytest.mark.parametrize("way", ["get", "move"])
def test_what_is_fetched_is_what_is_held_and_is_fetched_once(way, tmp_path):
    held = [small(n) for n in range(4)]
    held[1].compress(pydicom.uid.RLELossless, generate_instance_uid=False)
    port = free_port()
    with fake_pacs(move_to=("MINE", port)) as pacs:
        pacs.hold(*held)
        with client(pacs.address, move_to=f"MINE:{port}" if way == "move" else None) as archive:
            folder = tmp_path / "private" / "dicom"
            series = archive.find_series(Query())
            done = retrieve_series(archive, series[:2], folder)
            assert (done.done, done.failed) == (2, [])
            done = retrieve_series(archive, series, folder)
            assert (done.done, done.already, done.failed) == (2, 2, [])
    assert {stat.S_IMODE(path.stat().st_mode) for path in folder.iterdir()} == {0o600}
    for dataset in held:
        back = pydicom.dcmread(folder / f"{dataset.SOPInstanceUID}.dcm")
        assert back.PixelData == dataset.PixelData
        assert back.PatientName == dataset.PatientName


def test_a_move_to_a_destination_that_the_archive_does_not_know_is_said(tmp_path):
    with fake_pacs() as pacs:
        pacs.hold(small(1))
        with client(pacs.address, move_to=f"MINE:{free_port()}") as archive:
            done = retrieve_series(archive, archive.find_series(Query()), tmp_path / "p" / "d")
    assert done.reasons() == [
        ("refused by the archive: it does not know the move destination; have it entered there (status A801)", 1)
    ]


def test_objects_that_an_archive_moves_elsewhere_are_not_waited_for_long(tmp_path, monkeypatch):
    monkeypatch.setattr(asking, "MOVE_GRACE", 0.1)
    elsewhere = free_port()
    with fake_pacs(port=elsewhere), fake_pacs(move_to=(AET, elsewhere)) as pacs:
        pacs.hold(small(1))
        with client(pacs.address, move_to=f"{AET}:{free_port()}", timeout=600.0) as archive:
            done = retrieve_series(archive, archive.find_series(Query()), tmp_path / "p" / "d")
    ((reason, count),) = done.reasons()
    assert "none came to --move-to; check the port" in reason
    assert count == 1


def test_listener_takes_only_what_was_asked_for(tmp_path):
    port = free_port()
    write(small(1), tmp_path / "a")
    with (
        fake_pacs() as pacs,
        client(pacs.address, move_to=f"MINE:{port}"),
        client(f"MINE@127.0.0.1:{port}") as stranger,
    ):
        (failure,) = send_folder(stranger, tmp_path).failed
    assert "not authorised" in failure[1]


def test_an_object_that_cannot_be_sent_is_counted_and_the_others_come(tmp_path):
    with fake_pacs(sub_failure=True) as pacs, client(pacs.address) as archive:
        pacs.hold(small(1), small(2))
        done = retrieve_series(archive, archive.find_series(Query()), tmp_path / "p" / "d")
    assert (done.done, len(done.failed)) == (0, 2)
    assert all("refused by the archive" in reason for _, reason in done.failed)


def test_ingest_makes_the_same_list_from_an_archive_as_from_files(tmp_path, capsys, caplog):
    phantom = ChestPhantom(96)
    held = [radiograph(n, phantom(n, None).image[0], "DX" if n % 2 else "CR") for n in range(6)]
    for n, dataset in enumerate(held):
        write(dataset, tmp_path / "files" / str(n))
    options = ["--split", "0.5,0.25,0.25", "--workers", "0", "--quiet"]
    caplog.set_level(logging.DEBUG)
    logging.getLogger("matplotlib").setLevel(logging.INFO)
    assert run(["ingest", str(tmp_path / "files"), "--out", str(tmp_path / "a"), *options]) == 0
    key = str(tmp_path / "a" / "private" / "key")
    with fake_pacs() as pacs:
        pacs.hold(*held)
        words = ["ingest", "--pacs", pacs.address, "--out", str(tmp_path / "b"), "--key", key, *options]
        assert run(words) == 0
        assert run(words) == 0
    assert "(6 were there)" in capsys.readouterr().out
    images = []
    for name in ("a", "b"):
        sections = json.loads((tmp_path / name / "datalist.json").read_text())
        items = [item for section in ("training", "validation", "test") for item in sections[section]]
        images.append({(item["image"], item["group"]) for item in items})
    assert images[0] == images[1]
    assert len(images[0]) == 6
    assert not [word for word in SECRETS if word in caplog.text]


# limits and TLS -------------------------------------------------------------------------------------------------------


def test_a_pdu_that_claims_gigabytes_is_not_waited_for():
    port = free_port()
    with (
        fake_pacs() as pacs,
        client(pacs.address, move_to=f"MINE:{port}"),
        socket.create_connection(("127.0.0.1", port), timeout=5) as raw,
    ):
        raw.sendall(struct.pack(">BBL", 1, 0, 2**32 - 1) + b"\0" * 1000)
        with contextlib.suppress(ConnectionResetError):
            assert raw.recv(1) == b""


@pytest.fixture(scope="module")
def certificates(tmp_path_factory) -> Path:
    return make_certificates(tmp_path_factory.mktemp("tls"), "archive", "stranger")


def test_tls_reaches_the_archive_of_the_named_authority_only(certificates, tmp_path):
    outbox(tmp_path / "out", 2)
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    context.load_cert_chain(certificates / "archive.pem", certificates / "archive.key")
    with fake_pacs(tls=context) as pacs:
        for authority, status in (("stranger", 2), ("archive", 0)):
            words = ["--tls-ca", str(certificates / f"{authority}.pem"), "--timeout", "5", "--retries", "0"]
            assert run(["send", str(tmp_path / "out"), "--pacs", pacs.address, *words]) == status, authority
        assert pacs.stored.total() == 2


def test_a_tls_connection_that_is_cut_keeps_its_keys(certificates):
    """So that what another thread still sends cannot go out unencrypted."""
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    context.load_cert_chain(certificates / "archive.pem", certificates / "archive.key")
    trusting = ssl.create_default_context(cafile=str(certificates / "archive.pem"))
    left, right = socket.socketpair()
    with ThreadPoolExecutor(1) as other:
        accepted = other.submit(context.wrap_socket, right, server_side=True)
        with trusting.wrap_socket(left, server_hostname="127.0.0.1") as ours, accepted.result() as theirs:
            cut(SimpleNamespace(dul=SimpleNamespace(socket=SimpleNamespace(socket=ours))))
            assert theirs.recv(1) == b""
            assert ours.version() is not None
    for closed in (SimpleNamespace(socket=None), None):
        cut(SimpleNamespace(dul=SimpleNamespace(socket=closed)))


def test_tls_files_that_are_none_are_refused(certificates, tmp_path):
    (tmp_path / "x.pem").write_text("nothing")
    with pytest.raises(AfireError, match="must be PEM files"):
        Tls(ca=str(tmp_path / "x.pem")).client()
    with pytest.raises(AfireError, match="go together"):
        Tls(cert=str(certificates / "archive.pem")).client()


# a real archive -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("way", ["get", "move"])
def test_orthanc_gives_back_what_it_was_sent(way, tmp_path):
    mine, theirs = free_port(), free_port()
    dimse = {
        "DicomAet": "ORTHANC",
        "DicomPort": theirs,
        "DicomAlwaysAllowGet": True,
        "DicomAlwaysAllowFind": True,
        "DicomAlwaysAllowMove": True,
        "DicomModalities": {"mine": ["MINE", "127.0.0.1", mine]},
    }
    held = outbox(tmp_path / "out", 12)
    with running_orthanc(tmp_path / "orthanc", dimse=dimse):
        address = f"ORTHANC@127.0.0.1:{theirs}"
        assert run(["send", str(tmp_path / "out"), "--pacs", address]) == 0
        with client(address, aet="MINE", move_to=f"MINE:{mine}" if way == "move" else None) as archive:
            series = archive.find_series(Query())
            assert set(series) == set(map(reference, held))
            assert set(archive.find_series(Query.of(["DX"]))) == {reference(d) for d in held if d.Modality == "DX"}
            done = retrieve_series(archive, series, tmp_path / "p" / "d")
    assert (done.done, done.failed) == (12, [])
    for dataset in held:
        assert pydicom.dcmread(tmp_path / "p" / "d" / f"{dataset.SOPInstanceUID}.dcm").PixelData == dataset.PixelData


# storage commitment ---------------------------------------------------------------------------------------------------


def test_what_orthanc_reports_to_keep_is_sent_and_asked_for_once(tmp_path, capsys):
    ours, theirs = free_port(), free_port()
    dimse = {"DicomAet": "ORTHANC", "DicomPort": theirs, "DicomModalities": {"we": ["AFIRE", "127.0.0.1", ours]}}
    held = outbox(tmp_path / "out", 3)
    with running_orthanc(tmp_path / "orthanc", dimse=dimse) as url:
        address = f"ORTHANC@127.0.0.1:{theirs}"
        words = ["send", str(tmp_path / "out"), "--pacs", address]
        assert run(words) == 0
        for _ in range(2):
            assert run([*words, "--commit", str(ours), "--timeout", "30"]) == 0
        printed = capsys.readouterr().out.splitlines()
        assert [line.split()[:2] for line in printed if "stored" in line or "there" in line] == [
            *(["stored:", "3"], ["stored:", "3"], ["stored:", "0"], ["there:", "3"])
        ]  # what was sent without a report is sent again
        assert len((tmp_path / "out" / SENT).read_text().splitlines()) == 6
        # one that the archive lost before it was asked
        reports = Reports()
        with client(address, reports=reports) as archive:
            reports.listen("AFIRE", ours, archive.address, Tls(), 20)
            for dataset in held:
                archive.store(dataset)
            root = url.removesuffix("/dicom-web")
            with urllib.request.urlopen(f"{root}/instances?expand") as answer:
                instances = json.load(answer)
            lost = next(i["ID"] for i in instances if i["MainDicomTags"]["SOPInstanceUID"] == held[1].SOPInstanceUID)
            with urllib.request.urlopen(urllib.request.Request(f"{root}/instances/{lost}", method="DELETE")):
                pass
            assert archive.settle() == {held[1].SOPInstanceUID: "not kept by the archive: it has no such object"}


def test_what_an_archive_does_not_keep_is_named_counted_and_sent_again(tmp_path, capsys):
    held = outbox(tmp_path / "out", 4)
    modalities = [dataset.Modality for dataset in held]
    with fake_pacs(lost=frozenset({"DX"})) as pacs:
        words = ["send", str(tmp_path / "out"), "--pacs", pacs.address, "--commit", "0"]
        assert run([*words, "--failures", str(tmp_path / "failures.csv")]) == 1
        printed = capsys.readouterr().out
        assert f"stored:   {modalities.count('CR')}" in printed
        assert f"{modalities.count('DX')} x not kept by the archive: processing failure" in printed
        assert len((tmp_path / "failures.csv").read_text().splitlines()) == 1 + modalities.count("DX")
        pacs.lost = frozenset()
        assert run(words) == 0
        assert f"there:    {modalities.count('CR')}" in capsys.readouterr().out
    expected = {d.SOPInstanceUID: 1 + (d.Modality == "DX") for d in held}
    assert pacs.stored == expected
    assert pacs.asked == expected


def test_what_a_report_does_not_name_is_not_taken_for_kept(tmp_path, capsys):
    held = outbox(tmp_path / "out", 4)
    unnamed = sum(dataset.Modality == "DX" for dataset in held)
    with fake_pacs(unnamed=frozenset({"DX"})) as pacs:
        words = ["send", str(tmp_path / "out"), "--pacs", pacs.address, "--commit", "0"]
        assert run(words) == 1
        assert f"{unnamed} x not kept by the archive: its report does not name it" in capsys.readouterr().out
        pacs.unnamed = frozenset()
        assert run(words) == 0
        assert f"stored:   {unnamed}" in capsys.readouterr().out


def test_what_an_archive_keeps_is_not_sent_again_without_commit(tmp_path, capsys):
    outbox(tmp_path / "out", 2)
    with fake_pacs() as pacs:
        words = ["send", str(tmp_path / "out"), "--pacs", pacs.address]
        assert run([*words, "--commit", "0"]) == 0
        capsys.readouterr()
        assert run(words) == 0
        assert "there:    2" in capsys.readouterr().out
        assert pacs.stored.total() == 2


def test_reports_on_something_else_are_passed_over(tmp_path, capsys):
    def item(uid: str) -> pydicom.Dataset:
        named = pydicom.Dataset()
        named.ReferencedSOPClassUID, named.ReferencedSOPInstanceUID = "1.2.840.10008.5.1.4.1.1.1", uid
        return named

    held = outbox(tmp_path / "out", 2)
    late, odd = pydicom.Dataset(), pydicom.Dataset()
    late.TransactionUID = "2.25.1"
    late.FailedSOPSequence = [item(str(dataset.SOPInstanceUID)) for dataset in held]
    late.ReferencedSOPSequence = [item("1.2.3")]
    odd.TransactionUID, odd.FailedSOPSequence = "", [pydicom.Dataset()]
    with fake_pacs(others=(late, odd)) as pacs:
        assert run(["send", str(tmp_path / "out"), "--pacs", pacs.address, "--commit", "0"]) == 0
    assert "stored:   2" in capsys.readouterr().out


def test_a_report_may_come_before_the_answer_to_the_request(tmp_path, capsys):
    outbox(tmp_path / "out", 2)
    with fake_pacs(commitment="early") as pacs:
        assert run(["send", str(tmp_path / "out"), "--pacs", pacs.address, "--commit", "0", "--timeout", "5"]) == 0
    assert "stored:   2" in capsys.readouterr().out


@pytest.mark.parametrize(("way", "requests"), [("hangs up once", 2), ("early, hangs up", 1)])
def test_a_lost_answer_to_the_request_is_no_lost_commitment(way, requests, tmp_path):
    (dataset,) = outbox(tmp_path, 1)
    with fake_pacs(commitment=way) as pacs, client(pacs.address, timeout=5, reports=Reports()) as archive:
        archive.store(dataset)
        assert archive.settle() == {}
        assert len(pacs.transactions) == pacs.asked.total() == requests


def test_a_report_is_answered_before_the_connection_ends(tmp_path, monkeypatch):
    send = DIMSEServiceProvider.send_msg

    def late(self, message, context):
        if isinstance(message, N_EVENT_REPORT) and message.MessageIDBeingRespondedTo is not None:
            time.sleep(0.5)
        send(self, message, context)

    monkeypatch.setattr(DIMSEServiceProvider, "send_msg", late)
    (dataset,) = outbox(tmp_path, 1)
    with fake_pacs() as pacs, client(pacs.address, timeout=5, reports=Reports()) as archive:
        archive.store(dataset)
        assert archive.settle() == {}
        end = time.monotonic() + 10
        while not pacs.answers and time.monotonic() < end:
            time.sleep(0.05)
    assert pacs.answers == [0x0000]


def test_the_listener_for_reports_answers_when_it_is_tried():
    reports, port = Reports(), free_port()
    reports.listen("AFIRE", port, PacsAddress("ARCHIVE", "127.0.0.1", 104), Tls(), 5)
    try:
        with client(f"AFIRE@127.0.0.1:{port}") as archive:
            archive.echo()
    finally:
        reports.close()


def test_what_was_sent_before_a_transfer_ended_early_is_not_sent_again(tmp_path, capsys):
    outbox(tmp_path / "out", 12)
    with fake_pacs(breaks_after=4) as pacs:
        words = ["send", str(tmp_path / "out"), "--pacs", pacs.address, "--commit", "0", "--retries", "0"]
        assert run(words) == 2
        assert "did not answer in time or ended the connection" in capsys.readouterr().err
        assert pacs.asked.total() == 4
        pacs.breaks_after = 100
        assert run(words) == 0
        assert "stored:   8\nthere:    4" in capsys.readouterr().out


def test_of_two_files_of_one_uid_each_is_noted_or_counted_as_failed(tmp_path, capsys):
    outbox(tmp_path / "out", 1)
    write(small(0, "DX", PatientSex="O"), tmp_path / "out" / "later")
    with fake_pacs(lost=frozenset({"DX"})) as pacs:
        words = ["send", str(tmp_path / "out"), "--pacs", pacs.address, "--commit", "0"]
        assert run(words) == 2
        assert "2 x not kept by the archive" in capsys.readouterr().out
        pacs.lost = frozenset()
        for expected in ("stored:   2", "there:    2"):
            assert run(words) == 0
            assert expected in capsys.readouterr().out
        (held,) = pacs.held.values()
        assert held.PatientSex == "O"


def test_two_commands_do_not_send_a_folder_at_once(tmp_path, capsys):
    outbox(tmp_path / "out", 2)
    with fake_pacs() as pacs, RememberingPacs(tmp_path / "out", pacs.address) as earlier:
        assert earlier.store(pydicom.dcmread(tmp_path / "out" / "0"))
        words = ["send", str(tmp_path / "out"), "--pacs", pacs.address]
        assert run(words) == 2
        assert "another afire send works in this folder" in capsys.readouterr().err
        earlier.close()
        assert run(words) == 0
    assert "stored:   1\nthere:    1" in capsys.readouterr().out
    assert pacs.stored.total() == 2


@pytest.mark.parametrize(
    ("answer", "words"),
    [
        ("silent", "the archive did not report in time"),
        ("refuses", "refused by the archive: proc"),
        ("hangs up", "the archive ended the connection or did not answer when it was asked whether it keeps"),
    ],
)
def test_an_archive_that_reports_nothing_is_waited_for_as_long_as_was_said(answer, words, tmp_path, capsys):
    outbox(tmp_path / "out", 2)
    with fake_pacs(commitment=answer) as pacs:
        line = [
            "send",
            str(tmp_path / "out"),
            "--pacs",
            pacs.address,
            "--commit",
            "0",
            "--timeout",
            "2",
            "--retries",
            "0",
        ]
        assert run(line) == 2
        assert f"2 x {words}" in capsys.readouterr().out
        pacs.commitment = "reports"
        assert run(line) == 0
    assert pacs.stored.total() == 4


def test_commitment_is_for_dimse_alone(tmp_path, capsys):
    outbox(tmp_path / "out", 1)
    assert run(["send", str(tmp_path / "out"), "--dicomweb", "http://127.0.0.1:9", "--commit", "0"]) == 2
    assert "--commit go with --pacs" in capsys.readouterr().err
