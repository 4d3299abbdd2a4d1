"""DICOMweb against a server that misbehaves on demand."""

from __future__ import annotations

import base64
import builtins
import contextlib
import gzip
import io
import json
import logging
import os
import resource
import signal
import socket
import ssl
import stat
import subprocess
import time
import tracemalloc
import warnings
from pathlib import Path
from types import SimpleNamespace

import pydicom
import pytest

pytest.importorskip("dicomweb_client")

from hospital.certificates import asking_for_a_certificate, make_certificates
from hospital.fake_dicomweb import FakeServer, busy, cut, fake_dicomweb, hang_up, multipart, plain, says
from hospital.planted import SECRETS, small, write

from afire_monai.cli.main import run
from afire_monai.core.errors import AfireError
from afire_monai.hospital.dicomweb import client as client_module
from afire_monai.hospital.dicomweb import connection
from afire_monai.hospital.dicomweb.client import DicomWeb, Query, SeriesReference, is_uid
from afire_monai.hospital.dicomweb.connection import PASSWORD, TOKEN, AnswerError, ConnectionLostError
from afire_monai.hospital.dicomweb.credentials import TOKEN_FILE, USER, DicomWebError, find_credentials
from afire_monai.hospital.dicomweb.transfer import GIVE_UP, Fetched, Transfer, retrieve_series, send_folder


@pytest.fixture(autouse=True)
def _no_credentials(monkeypatch, tmp_path):
    for name in (USER, PASSWORD, TOKEN, TOKEN_FILE, "NETRC"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HOME", str(tmp_path / "home"))


@pytest.fixture
def server():
    with fake_dicomweb() as state:
        yield state


def client(server: FakeServer, **options: object) -> DicomWeb:
    given = {"timeout": 5.0, "retries": 2, "first_wait": 0.001, **options}
    return DicomWeb(server.url, **given)  # type: ignore[arg-type]


def references(*datasets: pydicom.Dataset) -> list[SeriesReference]:
    return [SeriesReference(str(d.StudyInstanceUID), str(d.SeriesInstanceUID)) for d in datasets]


# asking ---------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("page", [1, 3, 1000])
def test_every_series_is_found_once_however_small_the_pages_of_the_server(server, page):
    held = [small(n, "CR" if n % 3 else "DX") for n in range(10)]
    server.hold(*held)
    server.page = page
    found = client(server).find_series(Query())
    assert set(found) == set(references(*held))
    assert len(found) == 10


def test_a_server_that_ignores_filters_and_paging_does_not_widen_what_is_fetched_nor_go_on_for_ever(server):
    wanted = small(1, StudyDate="20210301")
    server.hold(wanted, small(2, "DX"), small(3, StudyDate="20200301"), small(4, StudyDate="20220301"))
    server.hold(small(5, StudyDate="20210302", StudyDescription="Hand"))
    server.honest = False
    found = client(server).find_series(Query.of(["cr"], "20210101-20211231", ["THORAX"]))
    assert found == references(wanted)


@pytest.mark.parametrize(
    ("date", "months"),
    [("20210401-20210631", None), ("20210401-20210630", {4, 5, 6}), ("20210415", {4}), ("20211001-", {10, 11, 12})],
)
def test_dates_limit_what_is_found(server, date, months):
    held = [small(n) for n in range(12)]
    server.hold(*held)
    if months is None:
        with pytest.raises(DicomWebError, match="--date takes"):
            Query.of(["CR"], date)
        return
    found = client(server).find_series(Query.of(["CR"], date))
    assert set(found) == set(references(*(d for d in held if int(d.StudyDate[4:6]) in months)))


@pytest.mark.parametrize("date", ["", "-", "2021", "20211301", "20220101-20210101", "2021-01-01", "heute"])
def test_dates_that_are_none_are_refused(date):
    with pytest.raises(DicomWebError, match="--date"):
        Query.of(["CR"], date)


@pytest.mark.parametrize("modalities", [[], [""], ["CR\\DX"], ["CR&x=1"]])
def test_modalities_that_are_none_are_refused(modalities):
    with pytest.raises(DicomWebError, match="--modality"):
        Query.of(modalities)


@pytest.mark.parametrize(
    "answer", [b"<html>log in</html>", b'"text"', b"[1]", b"{", b'[{"0020000E": {"Value": [{}]}}]']
)
def test_a_page_that_is_not_dicomweb_is_named_as_that(server, answer):
    server.tricks = [says(answer, "application/dicom+json")]
    if answer.startswith(b"[{"):
        assert client(server).find_series(Query(("CR",))) == []  # no UID, so no series
        return
    with pytest.raises(DicomWebError, match="not DICOMweb; check the address"):
        client(server).find_series(Query())


@pytest.mark.parametrize("status", [401, 403])
def test_refused_credentials_end_all_with_the_way_out(server, status, tmp_path):
    server.hold(small(1), small(2))
    server.tricks = [says(b"", status=status)]
    with pytest.raises(DicomWebError, match=rf"answers {status}.*AFIRE_DICOMWEB_USER.*AFIRE_DICOMWEB_TOKEN"):
        client(server).find_series(Query())
    server.tricks = [plain, says(b"", status=status)]
    with pytest.raises(DicomWebError, match="other credentials"):
        retrieve_series(client(server), references(small(1), small(2)), tmp_path / "private" / "dicom")
    assert len(server.asked) == 3


# retrieving -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("trouble", [busy(503), busy(429, Retry_After="0"), busy(500), hang_up])
def test_a_server_that_recovers_costs_nothing(server, trouble, tmp_path):
    held = small(1)
    server.hold(held)
    server.tricks = [trouble, trouble, plain, trouble]
    folder = tmp_path / "private" / "dicom"
    done = retrieve_series(client(server), references(held), folder)
    assert (done.done, done.failed, done.status) == (1, [], 0)
    back = pydicom.dcmread(folder / f"{held.SOPInstanceUID}.dcm")
    assert back == held
    assert back.file_meta.TransferSyntaxUID == held.file_meta.TransferSyntaxUID


@pytest.mark.parametrize("framing", ["length", "chunks", "close"])
def test_an_answer_cut_off_in_the_middle_is_asked_for_again(server, framing, tmp_path):
    held = small(1)
    server.hold(held)
    server.tricks = [plain, cut(framing)]
    done = retrieve_series(client(server), references(held), tmp_path / "private" / "dicom")
    assert (done.done, done.failed) == (1, [])
    assert len(server.paths(part=str(held.SOPInstanceUID))) == 2
    assert pydicom.dcmread(tmp_path / "private" / "dicom" / f"{held.SOPInstanceUID}.dcm") == held


@pytest.mark.parametrize("framing", ["length", "chunks", "close"])
def test_an_answer_that_is_always_cut_off_leaves_no_file(server, framing, tmp_path):
    held, other = small(1), small(2)
    server.hold(held, other)
    server.tricks = [plain, cut(framing), cut(framing), cut(framing)]
    folder = tmp_path / "private" / "dicom"
    done = retrieve_series(client(server), references(held, other), folder)
    assert (done.done, done.status) == (1, 1)
    assert [what for what, _ in done.failed] == [held.SOPInstanceUID]
    assert [p.name for p in folder.iterdir()] == [f"{other.SOPInstanceUID}.dcm"]


def test_wrong_content_is_a_failure_of_that_instance_only(server, tmp_path):
    held = [small(n) for n in range(5)]
    server.hold(*held)
    other, kind = multipart(held[4])
    wrong = [says(b"<html>", "text/html"), says(other, kind), says(b"", status=404), says(b"DICOM?", kind)]
    server.tricks = [t for trick in wrong for t in (plain, trick)]
    # the last one lacks the closing line, so that it is taken for cut off and asked for three times
    server.tricks += [wrong[3], wrong[3]]
    done = retrieve_series(client(server), references(*held), tmp_path / "private" / "dicom")
    assert (done.done, done.status) == (1, 1)
    reasons = " | ".join(reason for _, reason in done.failed)
    for word in ("not DICOMweb", "a different instance", "404", "in the middle"):
        assert word in reasons


def test_what_is_there_is_not_fetched_again(server, tmp_path):
    held = [small(n) for n in range(4)]
    server.hold(*held)
    folder = tmp_path / "private" / "dicom"
    assert retrieve_series(client(server), references(*held[:2]), folder).done == 2
    (folder / "1.2.3.part").write_bytes(b"half")
    before = len(server.paths(part="/instances/"))
    done = retrieve_series(client(server), references(*held), folder)
    assert (done.done, done.already, done.status) == (2, 2, 0)
    assert len(server.paths(part="/instances/")) == before + 2
    assert not list(folder.glob("*.part"))


def test_what_was_forgotten_is_gone(server, tmp_path):
    server.hold(small(1), small(2))
    folder = tmp_path / "private" / "dicom"
    retrieve_series(client(server), references(small(1), small(2)), folder)
    (folder / "another file").write_bytes(b"mine")
    assert Fetched(folder, 0, Transfer()).forget() == 2
    assert [p.name for p in folder.iterdir()] == ["another file"]
    assert retrieve_series(client(server), references(small(1)), folder).done == 1


def test_retrieved_files_are_their_owners_only(server, tmp_path):
    held = small(1)
    server.hold(held)
    folder = tmp_path / "out" / "private" / "dicom"
    old = os.umask(0)
    try:
        retrieve_series(client(server), references(held), folder)
    finally:
        os.umask(old)
    modes = {p.suffix or p.name: stat.S_IMODE(p.stat().st_mode) for p in (folder.parent, *folder.parent.rglob("*"))}
    assert modes == {"private": 0o700, "dicom": 0o700, ".dcm": 0o600}


def test_an_interruption_leaves_whole_files_only(server, tmp_path, monkeypatch):
    held = [small(n) for n in range(3)]
    server.hold(*held)
    folder = tmp_path / "private" / "dicom"
    real = client_module.save_object

    def interrupted(response, path):
        real(response, path)
        if held[1].SOPInstanceUID in path.name:
            path.write_bytes(b"half")
            raise KeyboardInterrupt

    monkeypatch.setattr(client_module, "save_object", interrupted)
    with pytest.raises(KeyboardInterrupt):
        retrieve_series(client(server), references(*held), folder)
    assert [p.name for p in folder.iterdir()] == [f"{held[0].SOPInstanceUID}.dcm"]
    monkeypatch.setattr(client_module, "save_object", real)
    done = retrieve_series(client(server), references(*held), folder)
    assert (done.done, done.already) == (2, 1)


@pytest.mark.parametrize("name", ["../../evil", "1.2/../3", "1..2", ".1", "", "1" * 65, "1.2\n3", "１.2"])
def test_names_that_are_no_uids_reach_no_path(server, name, tmp_path):
    assert not is_uid(name)
    held = small(1)
    server.hold(held)
    answer = [{"00080018": {"vr": "UI", "Value": [name]}}]
    server.tricks = [says(json.dumps(answer).encode(), "application/dicom+json")]
    done = retrieve_series(client(server), references(held), tmp_path / "private" / "dicom")
    assert done.status == 2
    assert "not a UID" in done.failed[0][1]
    assert not [p for p in tmp_path.rglob("*") if p.is_file()]


def test_a_server_that_is_gone_for_good_is_not_asked_for_everything(server, tmp_path):
    held = [small(n) for n in range(20)]
    server.hold(*held)
    server.tricks = [plain, plain, *[hang_up] * 1000]
    with pytest.raises(ConnectionLostError, match="give the command again"):
        retrieve_series(client(server, retries=0), references(*held), tmp_path / "private" / "dicom")
    assert len(server.asked) == 2 + GIVE_UP
    assert len(list((tmp_path / "private" / "dicom").iterdir())) == 1


def test_a_server_that_lists_but_delivers_nothing_is_given_up(server, tmp_path):
    held = [small(n) for n in range(20)]
    server.hold(*held)
    server.tricks = [plain, hang_up] * 20
    with pytest.raises(ConnectionLostError):
        retrieve_series(client(server, retries=0), references(*held), tmp_path / "private" / "dicom")
    assert len(server.paths(part="/instances/")) == GIVE_UP


# into an ingest -------------------------------------------------------------------------------------------------------


def test_an_ingest_goes_on_without_what_cannot_be_fetched_and_says_so(server, tmp_path, capsys):
    held = [small(n) for n in range(10)]
    server.hold(*held)
    out = tmp_path / "chest"
    words = ["ingest", "--dicomweb", server.url, "--out", str(out), "--workers", "0", "--quiet", "--modality", "CR"]
    server.tricks = [plain, plain, plain, says(b"", status=404)]
    assert run(words) == 1
    said = capsys.readouterr().out
    assert "fetched:  9 files of 10 series" in said
    assert "1 x the server answers 404" in said
    assert str(held[0].SOPInstanceUID) not in said
    table = out / "private" / "not_retrieved.csv"
    assert str(held[0].SOPInstanceUID) in table.read_text()
    assert stat.S_IMODE(table.stat().st_mode) == 0o600
    assert run(words) == 0
    assert "fetched:  1 files of 10 series (9 were there)" in capsys.readouterr().out
    assert not table.exists()
    assert len(list((out / "private" / "dicom").iterdir())) == 10


def test_an_ingest_of_nothing_says_what_to_look_at(server, tmp_path, capsys):
    words = ["ingest", "--dicomweb", server.url, "--out", str(tmp_path / "chest")]
    assert run(words) == 2
    assert "--modality, --date and --description" in capsys.readouterr().err
    server.hold(small(1))
    server.tricks = [plain, plain, plain, plain, says(b"<html>")]
    assert run(words) == 2
    assert "nothing of 1 series could be retrieved: what the server answers is not DICOMweb" in capsys.readouterr().err
    assert run(["ingest", str(tmp_path), "--out", str(tmp_path / "other"), "--date", "2021"]) == 2
    assert "go with --dicomweb" in capsys.readouterr().err
    assert run([*words, "--date", "2021"]) == 2
    assert "--date takes YYYYMMDD" in capsys.readouterr().err


# storing --------------------------------------------------------------------------------------------------------------


@pytest.fixture
def outbox(tmp_path) -> Path:
    for n in range(3):
        write(small(n), tmp_path / "outbox" / f"study {n}" / "file")
    (tmp_path / "outbox" / "notes.txt").write_text("nothing")
    return tmp_path / "outbox"


def test_sending_again_is_fine(server, outbox):
    server.tricks = [busy(503), hang_up]
    first = send_folder(client(server), outbox)
    assert (first.done, first.already, first.skipped, first.status) == (3, 0, 1, 0)
    for n in range(3):
        assert server.held[str(small(n).SOPInstanceUID)] == pydicom.dcmread(outbox / f"study {n}" / "file")
    again = send_folder(client(server), outbox)
    assert (again.done, again.already, again.failed, again.status) == (0, 3, [], 0)


def test_what_the_server_refuses_is_listed_and_the_rest_is_sent(server, outbox, tmp_path):
    uids = [str(small(n).SOPInstanceUID) for n in range(3)]

    def refuse(handler):
        handler.refuse(uids[0], 0x0122, status=409)
        return True

    server.tricks = [refuse, says(b"<html>welcome</html>")]
    done = send_folder(client(server), outbox)
    assert (done.done, done.status) == (1, 1)
    assert [Path(what).parent.name for what, _ in done.failed] == ["study 0", "study 1"]
    assert done.failed[0][1] == "refused by the server: the server does not store this kind of object (reason 0122)"
    assert "did not confirm" in done.failed[1][1]
    done.write_failures(tmp_path / "failures.csv")
    assert (tmp_path / "failures.csv").read_text().count("\n") == 3
    assert stat.S_IMODE((tmp_path / "failures.csv").stat().st_mode) == 0o600


@pytest.mark.parametrize(("reason", "told"), [(0xA700, "A700"), ([1, 2], "0000")])
def test_an_object_that_a_server_takes_only_in_part_of_its_answers_is_a_failure(reason, told, server, outbox):
    def refuse(handler):
        handler.refuse(str(small(0).SOPInstanceUID), reason, status=202)
        return True

    server.tricks = [refuse]
    done = send_folder(client(server), outbox)
    assert (done.done, done.failed[0][1]) == (2, f"refused by the server: failure (reason {told})")


def test_indexes_and_broken_files_are_not_sent(server, tmp_path):
    from pydicom.fileset import FileSet

    files = FileSet()
    files.add(small(1))
    files.write(tmp_path / "medium")
    (tmp_path / "medium" / "broken").write_bytes(bytes(128) + b"DICM" + b"\x02\x00")
    done = send_folder(client(server), tmp_path / "medium")
    assert (done.done, done.skipped, len(done.failed)) == (1, 1, 1)
    assert "not a readable DICOM file" in done.failed[0][1]


def test_what_cannot_be_read_is_a_failure_and_what_is_no_file_is_not_opened(server, outbox, monkeypatch):
    os.mkfifo(outbox / "pipe")
    (outbox / "gone").symlink_to(outbox / "nothing")

    def closed(real):
        def opened(file, *words, **options):
            if str(file) == str(outbox / "study 0" / "file"):
                raise PermissionError(13, "Permission denied", str(file))
            return real(file, *words, **options)

        return opened

    monkeypatch.setattr(Path, "open", closed(Path.open))
    monkeypatch.setattr(pydicom, "dcmread", closed(pydicom.dcmread))
    done = send_folder(client(server), outbox)
    assert (done.done, done.skipped, done.status) == (2, 1, 1)
    assert done.failed == [(str(outbox / "study 0" / "file"), "not a readable DICOM file (PermissionError)")]


def test_the_command_tells_what_came_of_it(server, outbox, tmp_path, capsys):
    words = ["send", str(outbox), "--dicomweb", server.url, "--quiet", "--retries", "0"]
    assert run(words) == 0
    assert run(words) == 0
    out = capsys.readouterr().out
    assert "stored:   3" in out
    assert "there:    3 the server had already" in out
    assert "skipped:  1" in out
    server.held.clear()
    server.tricks = [says(b"", status=400)]
    assert run([*words, "--failures", str(tmp_path / "failures.csv")]) == 1
    assert "1 x the server answers 400" in capsys.readouterr().out
    server.tricks = [says(b"", status=401)]
    assert run(words) == 2
    assert "AFIRE_DICOMWEB_USER" in capsys.readouterr().err
    assert run(["send", str(tmp_path / "nothing"), "--dicomweb", server.url]) == 2
    (tmp_path / "empty").mkdir()
    assert run(["send", str(tmp_path / "empty"), "--dicomweb", server.url]) == 2
    assert run(["send", str(outbox), "--dicomweb", server.url, "--timeout", "0"]) == 2


# who may, and how -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("url", "words"),
    [
        ("https://anna:hunter2@pacs/dicom-web", "process lists"),
        ("https://anna@pacs/dicom-web", "process lists"),
        ("ftp://pacs/dicom-web", "https:// or http://"),
        ("pacs:8042", "https:// or http://"),
        ("https:///dicom-web", "name a host"),
        ("https://pacs/dicom-web?a=1", "\\? or #"),
        ("https://pacs:99999/", "cannot be understood"),
    ],
)
def test_addresses_that_will_not_do_are_refused_without_repeating_them(url, words):
    with pytest.raises(DicomWebError, match=words) as caught:
        DicomWeb(url)
    assert "hunter2" not in str(caught.value)
    assert "anna" not in str(caught.value)


def test_credentials_of_the_environment_are_sent(server, monkeypatch):
    monkeypatch.setenv("AFIRE_DICOMWEB_USER", "anna")
    monkeypatch.setenv("AFIRE_DICOMWEB_PASSWORD", "hünter:2")
    client(server).find_series(Query(("CR",)))
    assert server.authorizations == ["Basic " + base64.b64encode("anna:hünter:2".encode()).decode()]
    monkeypatch.delenv("AFIRE_DICOMWEB_USER")
    with pytest.raises(DicomWebError, match="AFIRE_DICOMWEB_USER is not set"):
        client(server)
    monkeypatch.delenv("AFIRE_DICOMWEB_PASSWORD")
    monkeypatch.setenv("AFIRE_DICOMWEB_TOKEN", "abc.def")
    client(server).find_series(Query(("CR",)))
    assert server.authorizations[-1] == "Bearer abc.def"
    monkeypatch.setenv("AFIRE_DICOMWEB_PASSWORD", "x")
    with pytest.raises(DicomWebError, match="unset those"):
        client(server)


def test_file_of_a_folder_that_can_only_be_listed_is_a_failure_and_the_others_are_sent(server, tmp_path, monkeypatch):
    write(small(1), tmp_path / "open" / "a.dcm")
    closed = write(small(2), tmp_path / "closed" / "b.dcm")

    def refusing(call):
        def refused(path, *rest, **options):
            if str(path) == str(closed):
                raise PermissionError(13, "Permission denied", path)
            return call(path, *rest, **options)

        return refused

    for module, name in ((os, "stat"), (os, "lstat"), (builtins, "open"), (io, "open")):
        monkeypatch.setattr(module, name, refusing(getattr(module, name)))
    done = send_folder(client(server), tmp_path)
    assert (done.done, done.failed) == (1, [(str(closed), "not a readable DICOM file (PermissionError)")])


def test_user_without_a_home_has_no_netrc_file(monkeypatch):
    def unknown(_):
        raise KeyError

    monkeypatch.delenv("HOME")
    monkeypatch.setattr("pwd.getpwuid", unknown)
    assert not find_credentials("127.0.0.1")


def test_credentials_of_a_netrc_file_are_sent_if_it_is_its_owners_only(server, monkeypatch, tmp_path):
    home = tmp_path / "home"
    home.mkdir()
    netrc = home / ".netrc"
    netrc.write_text("machine 127.0.0.1 login anna password hunter2\n")
    netrc.chmod(0o644)
    with pytest.raises(DicomWebError, match=r"mode 0644.*chmod 600") as caught:
        client(server)
    assert "hunter2" not in str(caught.value)
    netrc.chmod(0o600)
    client(server).find_series(Query(("CR",)))
    assert server.authorizations == ["Basic " + base64.b64encode(b"anna:hunter2").decode()]
    netrc.write_text("machine elsewhere login anna password hunter2\ndefault login bob password hunter3\n")
    client(server).find_series(Query(("CR",)))
    assert server.authorizations[-1] is None
    netrc.write_text("machine 127.0.0.1 login anna hunter2\n")
    with pytest.raises(DicomWebError, match="cannot be read") as caught:
        client(server)
    assert "hunter2" not in str(caught.value)
    monkeypatch.setenv("NETRC", str(tmp_path / "absent"))
    with pytest.raises(DicomWebError, match="not there"):
        client(server)


def test_credentials_do_not_cross_a_network_in_the_clear(monkeypatch):
    monkeypatch.setenv("AFIRE_DICOMWEB_TOKEN", "abc")
    for url in ("http://pacs.invalid/dicom-web", "http://192.0.2.1", "http://127.0.0.1.invalid"):
        with pytest.raises(DicomWebError, match="unencrypted"):
            DicomWeb(url)
    DicomWeb("http://pacs.invalid/dicom-web", insecure=True)
    for url in ("https://pacs.invalid/dicom-web", "http://localhost:1", "http://[::1]:1/x", "http://127.8.9.1"):
        DicomWeb(url)


def test_patients_pictures_do_not_cross_a_network_in_the_clear_without_a_word(caplog):
    DicomWeb("http://pacs.invalid/dicom-web")
    assert "unencrypted" in caplog.text
    assert "pacs.invalid" not in caplog.text


def test_redirects_are_not_followed(server, monkeypatch):
    monkeypatch.setenv("AFIRE_DICOMWEB_TOKEN", "abc")
    with fake_dicomweb() as elsewhere:
        server.tricks = [busy(302, Location=elsewhere.url), busy(307, Location=elsewhere.url)]
        for _ in range(2):
            with pytest.raises(DicomWebError, match="sends requests elsewhere"):
                client(server).find_series(Query())
        with pytest.raises(DicomWebError):
            client(server).store(small(1))
        assert elsewhere.asked == []


def test_proxies_of_the_environment_are_not_used(server, monkeypatch):
    monkeypatch.setenv("HTTP_PROXY", "http://127.0.0.1:1")
    monkeypatch.setenv("http_proxy", "http://127.0.0.1:1")
    assert client(server).find_series(Query()) == []


def test_an_unknown_authority_is_named_with_the_way_out(tmp_path):
    import threading

    key, cert = tmp_path / "key.pem", tmp_path / "cert.pem"
    words = "req -x509 -newkey rsa:2048 -nodes -days 1 -subj /CN=localhost -addext subjectAltName=DNS:localhost"
    try:
        subprocess.run(
            ["openssl", *words.split(), "-keyout", str(key), "-out", str(cert)], check=True, capture_output=True
        )
    except (OSError, subprocess.CalledProcessError):
        pytest.skip("no openssl to make a certificate with")
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(cert, key)

    def answer(listener: socket.socket) -> None:
        for _ in range(2):
            try:
                with context.wrap_socket(listener.accept()[0], server_side=True) as opened:
                    opened.recv(65536)
                    opened.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\nContent-Type: application/json\r\n\r\n[]")
            except OSError:
                continue

    with socket.create_server(("127.0.0.1", 0)) as listener:
        thread = threading.Thread(target=answer, args=(listener,), daemon=True)
        thread.start()
        url = f"https://localhost:{listener.getsockname()[1]}"
        with pytest.raises(DicomWebError, match=r"certificate is not trusted.*--ca"):
            DicomWeb(url, first_wait=0.001).find_series(Query(("CR",)))
        assert DicomWeb(url, first_wait=0.001, ca=cert).find_series(Query(("CR",))) == []
        thread.join(10)
    with pytest.raises(DicomWebError, match="--ca names a file"):
        DicomWeb(url, ca=tmp_path / "absent.pem")


@pytest.fixture(scope="module")
def certificates(tmp_path_factory) -> Path:
    return make_certificates(tmp_path_factory.mktemp("tls"), "server", "client", "stranger")


def test_a_certificate_and_its_authority_open_an_archive_that_asks_for_one(certificates, tmp_path):
    ca, cert, key = (str(certificates / name) for name in ("server.pem", "client.pem", "client.key"))
    tls = asking_for_a_certificate(certificates)
    tls.maximum_version = ssl.TLSVersion.TLSv1_2  # later ones may cut the connection before they say why
    with fake_dicomweb(tls) as server:
        server.hold(small(1))
        strange = {"cert": certificates / "stranger.pem", "key": certificates / "stranger.key"}
        for files, words in (({}, "--ca"), ({"ca": ca}, "--tls-cert"), ({"ca": ca, **strange}, "--tls-cert")):
            with pytest.raises(DicomWebError, match=words):
                client(server, **files).find_series(Query())
        assert server.asked == []
        assert len(client(server, ca=ca, cert=cert, key=key).find_series(Query())) == 1
        words = ["--dicomweb", server.url, "--ca", ca, "--tls-cert", cert, "--tls-key", key]
        assert run(["ingest", *words, "--out", str(tmp_path / "out"), "--quiet"]) in (0, 2)
        assert server.paths(part="/instances/")
        server.url = server.url.replace("127.0.0.1", "localhost")
        with pytest.raises(DicomWebError, match="another name"):
            client(server, ca=ca, cert=cert, key=key).find_series(Query())


def test_files_of_certificates_that_will_not_do_are_refused_before_anything_is_asked(certificates, tmp_path):
    ca, cert, key = (str(certificates / name) for name in ("server.pem", "client.pem", "client.key"))
    (tmp_path / "none.pem").write_text("nothing")
    locked = tmp_path / "locked.key"
    command = ["openssl", "rsa", "-in", key, "-aes256", "-passout", "pass:hunter2", "-out", str(locked)]
    subprocess.run(command, check=True, capture_output=True)
    for files, words in (
        ({"cert": cert}, "go together"),
        ({"ca": tmp_path / "none.pem"}, "must be PEM files"),
        ({"cert": cert, "key": certificates / "server.key"}, "must be PEM files"),
        ({"cert": cert, "key": locked}, "must match the certificate"),
        ({"cert": cert, "key": tmp_path / "absent.key"}, "must be PEM files"),
    ):
        with pytest.raises(DicomWebError, match=words):
            DicomWeb("https://pacs.invalid/dicom-web", **files)
    with pytest.raises(DicomWebError, match="begins with http"):
        DicomWeb("http://localhost/dicom-web", ca=ca)


def test_https_at_a_port_of_http_is_told_as_that(server):
    server.url = server.url.replace("http:", "https:")
    with pytest.raises(DicomWebError, match="speaks no https"):
        client(server).find_series(Query())


def test_a_token_in_a_file_is_read_for_each_request_if_others_cannot_read_it(server, monkeypatch, tmp_path):
    file = tmp_path / "token"
    file.write_text("abc.def\n")
    file.chmod(0o644)
    monkeypatch.setenv(TOKEN_FILE, str(file))
    with pytest.raises(DicomWebError, match="mode 0644"):
        client(server)
    file.chmod(0o400)
    web = client(server)
    web.find_series(Query(("CR",)))
    assert server.authorizations == ["Bearer abc.def"]
    file.chmod(0o600)
    file.write_text("new")
    web.find_series(Query(("CR",)))
    assert server.authorizations[-1] == "Bearer new"
    file.unlink()
    with pytest.raises(DicomWebError, match="cannot be read"):
        web.find_series(Query(("CR",)))
    for token in ("", "two words", "gehört"):
        file.write_text(token)
        file.chmod(0o600)
        with pytest.raises(DicomWebError, match="only the token"):
            client(server)
    monkeypatch.setenv(TOKEN, "abc")
    with pytest.raises(DicomWebError, match="unset those"):
        client(server)


def test_nobody_reads_credentials_or_patients_in_logs_warnings_and_messages(
    server, monkeypatch, caplog, capsys, tmp_path, recwarn
):
    monkeypatch.setenv("AFIRE_DICOMWEB_USER", "anna")
    monkeypatch.setenv("AFIRE_DICOMWEB_PASSWORD", "hunter2")
    held = small(1)
    server.hold(held, small(2))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        write(small(3, PatientBirthDate="19540317x"), tmp_path / "outbox" / "Geheimniskraemer.dcm")
    web = client(server, retries=1)
    server.tricks = [plain, cut("length"), cut("chunks"), plain, says(b"no")]
    with caplog.at_level(logging.DEBUG):
        done = retrieve_series(web, references(held, small(2)), tmp_path / "private" / "dicom")
        server.tricks = [hang_up] * 2
        sent = send_folder(web, tmp_path / "outbox")
    reasons = [reason for _, reason in done.failed + sent.failed]
    assert len(reasons) == 3
    shown = "\n".join([caplog.text, repr(web), *reasons, *map(str, recwarn.list), *capsys.readouterr()])
    shown += repr(find_credentials("127.0.0.1"))
    hidden = [*SECRETS, "hunter2", "YW5uYTpodW50ZXIy", str(held.SOPInstanceUID), str(held.StudyInstanceUID)]
    assert [word for word in hidden if word in shown] == []


def test_retries_end(server):
    server.tricks = [busy(503)] * 10
    with pytest.raises(AnswerError, match="503, however often"):
        client(server).find_series(Query())
    assert len(server.asked) == 3


# limits ---------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("framing", ["length", "chunks", "close"])
def test_an_answer_without_end_is_not_taken(server, framing, monkeypatch, tmp_path):
    monkeypatch.setattr(connection, "LARGEST_OBJECT", 2**20)
    sent = 0

    def flood(handler) -> bool:
        nonlocal sent
        handler.send_response(200)
        handler.send_header("Content-Type", 'multipart/related; boundary="a"')
        if framing == "chunks":
            handler.send_header("Transfer-Encoding", "chunked")
        elif framing == "length":
            handler.send_header("Content-Length", str(2**40))
        handler.end_headers()
        block = bytes(2**16)
        with contextlib.suppress(OSError):
            while sent < 2**27:
                handler.wfile.write(b"10000\r\n" + block + b"\r\n" if framing == "chunks" else block)
                sent += len(block)
        handler.close_connection = True
        return True

    server.hold(small(1), small(2))
    server.tricks = [plain, flood]
    result = retrieve_series(client(server), references(small(1), small(2)), tmp_path / "private" / "dicom")
    assert [reason for _, reason in result.failed] == ["the answer is larger than 1 MiB and was rejected"]
    assert result.done == 1
    assert sent < 2**26


def large(handler, size: int, around: tuple[bytes, bytes]) -> bool:
    """Answer with an object of so many bytes, which is never in memory as a whole."""
    head, end = around
    handler.send_response(200)
    handler.send_header("Content-Type", 'multipart/related; type="application/dicom"; boundary="a-b-c"')
    handler.send_header("Content-Length", str(len(head) + size + len(end)))
    handler.end_headers()
    with contextlib.suppress(OSError):
        handler.wfile.write(head)
        for _ in range(size // 2**20):
            handler.wfile.write(bytes(2**20))
        handler.wfile.write(end)
    return True


def around_pixels(held: pydicom.Dataset, size: int) -> tuple[bytes, bytes]:
    """Return what comes before and after so many bytes of pixels in an answer with an object."""
    held.PixelData, held["PixelData"].VR = b"12", "OW"
    body, _ = multipart(held)
    head, _, end = body.rpartition(b"\x02\x00\x00\x0012")
    return head + size.to_bytes(4, "little"), end


def hold_large(server, size):
    """Let the server answer one small object with pixels of this many bytes."""
    held = small(1)
    around = around_pixels(held, size)
    server.hold(held)
    server.tricks = [plain, lambda handler: large(handler, size, around)]
    return held


def test_a_large_object_goes_to_disk_and_not_into_memory(server, tmp_path):
    size = 100 * 2**20
    held = hold_large(server, size)
    folder = tmp_path / "private" / "dicom"
    tracemalloc.start()
    result = retrieve_series(client(server), references(held), folder)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert (result.done, result.failed) == (1, [])
    assert peak < 12 * 2**20
    (path,) = folder.iterdir()
    assert len(pydicom.dcmread(path).PixelData) == size


def test_a_disk_that_is_full_in_the_middle_of_an_object_ends_with_words(server, tmp_path):
    held = hold_large(server, 4 * 2**20)
    folder = tmp_path / "private" / "dicom"
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    handling = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (2**20, before[1]))
    try:
        with pytest.raises(AfireError, match=r"cannot be used: File too large; what is done is kept"):
            retrieve_series(client(server), references(held), folder)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
        signal.signal(signal.SIGXFSZ, handling)
    assert list(folder.iterdir()) == []


def test_several_objects_for_one_are_not_taken(server, tmp_path):
    held = small(1)
    server.hold(held)
    body, kind = multipart(held)
    server.tricks = [plain, says(body.replace(b"--a-b-c--\r\n", body.strip()), kind)]
    result = retrieve_series(client(server), references(held), tmp_path / "private" / "dicom")
    assert [reason for _, reason in result.failed] == [
        "the server answered with several objects although one was requested"
    ]


def test_an_object_without_parts_around_it_is_taken(server, tmp_path):
    held = small(1)
    server.hold(held)
    body, _ = multipart(held)
    whole = body[body.index(b"\r\n\r\n") + 4 : body.rindex(b"\r\n--")]
    server.tricks = [plain, says(whole, "application/dicom")]
    folder = tmp_path / "private" / "dicom"
    assert retrieve_series(client(server), references(held), folder).done == 1
    assert (folder / f"{held.SOPInstanceUID}.dcm").read_bytes() == whole


def test_a_list_has_a_limit_of_its_own_also_if_it_is_packed(server, monkeypatch):
    monkeypatch.setattr(connection, "LARGEST_LIST", 2**20)
    server.tricks = [says(gzip.compress(b"[" + b" " * 2**24 + b"]"), "application/dicom+json", Content_Encoding="gzip")]
    with pytest.raises(AnswerError, match="larger than 1 MiB"):
        client(server).find_series(Query(("CR",)))


def test_an_answer_that_trickles_ends_by_the_clock(server):
    def trickle(handler) -> bool:
        handler.send_response(200)
        handler.send_header("Content-Type", "application/dicom+json")
        handler.send_header("Content-Length", "1000")
        handler.end_headers()
        with contextlib.suppress(OSError):
            for _ in range(600):
                handler.wfile.write(b" ")
                time.sleep(0.02)
        handler.close_connection = True
        return True

    server.tricks = [trickle]
    with pytest.raises(AnswerError, match=r"not complete after 2 seconds; raise --timeout"):
        client(server, timeout=0.2).find_series(Query(("CR",)))


def test_a_list_whose_pages_never_end_is_given_up(server, monkeypatch):
    monkeypatch.setattr("afire_monai.hospital.dicomweb.client.MOST_PAGES", 4)
    server.hold(*(small(n) for n in range(9)))
    server.page = 2
    with pytest.raises(AnswerError, match="more than 4 pages of series; ask for fewer with --date"):
        client(server).find_series(Query(("CR",)))
    assert len(server.asked) == 4


@pytest.mark.parametrize(("asked", "waited"), [("999999999", 60.0), ("9" * 400, 60.0), ("7", 7.0), ("²", 1.0)])
def test_the_wait_that_a_server_asks_for_is_bounded(server, monkeypatch, asked, waited):
    waits: list[float] = []
    monkeypatch.setattr(connection, "time", SimpleNamespace(sleep=waits.append, monotonic=time.monotonic))
    server.tricks = [busy(Retry_After=asked)]
    assert client(server, first_wait=1.0).find_series(Query(("CR",))) == []
    assert waits == [waited]
