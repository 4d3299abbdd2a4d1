"""The node against pynetdicom's own applications, dcmtk and Orthanc; kills in the middle lose and double nothing."""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import shutil
import signal
import socket
import sqlite3
import stat
import struct
import subprocess
import tempfile
import threading
import time
import urllib.request
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pydicom
import pytest

pytest.importorskip("pynetdicom")
pytest.importorskip("highdicom")

import warm
from helpers import export_pneumonia_classifier
from hospital import planted
from hospital.certificates import make_certificates
from hospital.fake_pacs import AET, fake_pacs
from hospital.orthanc import free_port, running_orthanc
from hospital_files import PLANTED, radiograph, validator_errors, write
from pynetdicom import AE, evt
from pynetdicom.dimse_primitives import C_STORE

from afire_monai.cli.main import run
from afire_monai.core.errors import AfireError
from afire_monai.hospital.dicomweb.connection import ConnectionLostError
from afire_monai.hospital.node import receiver as receiving
from afire_monai.hospital.node import run as running
from afire_monai.hospital.node import sender as sending
from afire_monai.hospital.node.predictor import ENDED, MOST_TRIES, Predictor
from afire_monai.hospital.node.queue import KEPT, PREDICTED, RECEIVED, REFUSED, SENT, UNSENT, Queue
from afire_monai.hospital.node.receiver import Receiver
from afire_monai.hospital.node.run import NodeStatus, node_status, run_node
from afire_monai.hospital.node.sender import Sender
from afire_monai.hospital.pacs import listener as listening
from afire_monai.hospital.pacs.association import VERIFY, StatusError, Tls
from afire_monai.hospital.pacs.client import Pacs
from afire_monai.hospital.pacs.commitment import Reports
from afire_monai.phantom import ChestPhantom
from afire_monai.predictions.format import load_predictions
from afire_monai.predictions.predict import predict
from afire_monai.predictions.scoring import Scorer
from afire_monai.radiographs.judgement import LATERAL, NOT_CHEST

KINDS = 3
"""Results of a radiograph: report, segmentation, picture."""


@pytest.fixture(scope="module")
def model(tmp_path_factory) -> Path:
    return export_pneumonia_classifier(tmp_path_factory.mktemp("model"))


@contextlib.contextmanager
def running_node(state: Path, model: Path, **options: object) -> Iterator[int]:
    """A node in a thread of this process; gives its port."""
    stop, listening, ports, errors = threading.Event(), threading.Event(), [], []

    def ready(port: int) -> None:
        ports.append(port)
        listening.set()

    def work() -> None:
        try:
            values = {"workers": 0, "timeout": 20, **options}
            run_node(state, [model], port=0, stop=stop, ready=ready, **values)  # type: ignore[arg-type]
        except Exception as error:
            errors.append(error)
        finally:
            listening.set()

    thread = threading.Thread(target=work)
    thread.start()
    try:
        assert listening.wait(60)
        if errors:
            raise errors[0]
        yield ports[0]
    finally:
        stop.set()
        thread.join(60)
        assert not thread.is_alive()
    assert errors == []


def wait_for(state: Path, done: Callable[[NodeStatus], bool], seconds: float = 60) -> NodeStatus:
    end = time.monotonic() + seconds
    while not done(status := node_status(state)):
        assert time.monotonic() < end, status
        time.sleep(0.1)
    return status


def queue_of_results(model: Path, state: Path, count: int, **options: object) -> Queue:
    """The queue of a node that received ``count`` radiographs and ended; their results wait to be sent."""
    with running_node(state, model, **options) as port, client(port) as router:
        for number in range(count):
            router.store(radiograph(number))
        wait_for(state, lambda status: status.counts[KEPT] == count)
    queue = Queue(state)
    queue.send_what_was_kept()
    return queue


def client(port: int, called: str = "AFIRE", **options: object) -> Pacs:
    values = {"aet": "ROUTER", "timeout": 20, "retries": 0, **options}
    return Pacs(f"{called}@127.0.0.1:{port}", **values)  # type: ignore[arg-type]


def finished(count: int) -> Callable[[NodeStatus], bool]:
    return lambda status: status.counts[SENT] + status.counts[REFUSED] == count


def test_routed_radiographs_come_back_as_results_of_their_studies(model, tmp_path, capsys):
    held = [radiograph(n) for n in range(4)]
    held.append(radiograph(4, BodyPartExamined="", SeriesDescription="Kniegelenk rechts", ViewPosition="AP"))
    held.append(radiograph(5, ViewPosition="LL"))
    state = tmp_path / "state"
    with fake_pacs() as pacs, running_node(state, model, send_to=pacs.address, batch_size=3) as port:
        with client(port) as router:
            router.echo()
            assert all(router.store(dataset) for dataset in held)
        wait_for(state, finished(6))
        assert run(["node", "--state", str(state), "--status"]) == 0
    printed = capsys.readouterr().out
    for line in ("running", "received:  6", "refused:   2", f"1 x {NOT_CHEST}", f"1 x {LATERAL}", "sent:      4"):
        assert line in printed
    assert pacs.stored.total() == len(pacs.held) == 4 * KINDS
    by_study: dict[str, set[str]] = {}
    for result in pacs.held.values():
        by_study.setdefault(result.StudyInstanceUID, set()).add(result.Modality)
        (source,) = [d for d in held if d.StudyInstanceUID == result.StudyInstanceUID]
        assert (result.PatientID, result.PatientName) == (source.PatientID, source.PatientName)
    assert by_study == {str(d.StudyInstanceUID): {"SR", "SEG", "OT"} for d in held[:4]}


def test_the_node_says_what_predict_says(model, tmp_path):
    for number in range(3):
        write(tmp_path / "files" / f"{number}.dcm", number)
    predict([tmp_path / "files"], [model], tmp_path / "results", workers=0)
    expected = load_predictions(tmp_path / "results").scores["Pneumonia"].tolist()
    state = tmp_path / "state"
    with running_node(state, model, kinds=("sr",), batch_size=3) as port, client(port) as router:
        for number in range(3):
            router.store(radiograph(number))
        wait_for(state, lambda status: status.counts[KEPT] == 3)
    reports = [pydicom.dcmread(path) for path in (state / "results").glob("*/*.dcm")]
    assert len(reports) == 3
    for report in reports:
        number = int(report.PatientID[-1])
        assert any(abs(value - expected[number]) < 1e-4 for value in _numbers(report)), number


def _numbers(item: pydicom.Dataset) -> list[float]:
    values = [float(measured.NumericValue) for measured in item.get("MeasuredValueSequence") or ()]
    return values + [value for child in item.get("ContentSequence") or () for value in _numbers(child)]


def test_state_folder_is_closed_and_nothing_stays_of_what_was_sent(model, tmp_path, caplog):
    state = tmp_path / "state"
    with fake_pacs() as pacs, running_node(state, model, send_to=pacs.address) as port, client(port) as router:
        for number in range(3):
            router.store(radiograph(number))
        wait_for(state, finished(3))
    assert stat.S_IMODE(state.stat().st_mode) == 0o700
    assert {stat.S_IMODE(path.stat().st_mode) for path in state.iterdir() if path.is_dir()} == {0o700}
    files = [path for path in state.rglob("*") if path.is_file()]
    assert {path.name for path in files} <= {"node.sqlite", "node.sqlite-wal", "node.sqlite-shm", "key", "lock"}
    assert {path.stat().st_mode & 0o077 for path in files} == {0}
    content = b"".join(path.read_bytes() for path in files)
    secrets = [*PLANTED, *(str(radiograph(n).SOPInstanceUID) for n in range(3))]
    assert [word for word in secrets if word.encode() in content or word in caplog.text] == []


def test_an_object_is_predicted_once_and_another_content_again(model, tmp_path):
    state = tmp_path / "state"
    with fake_pacs() as pacs, running_node(state, model, send_to=pacs.address) as port, client(port) as router:
        for _ in range(3):
            assert router.store(radiograph(1))
        wait_for(state, finished(1))
        assert router.store(radiograph(1))
        assert router.store(radiograph(1, PatientSex="O"))
        status = wait_for(state, finished(2))
    assert status.repeated == 3
    assert (pacs.stored.total(), len(pacs.held)) == (2 * KINDS, 2 * KINDS)


def test_a_dead_archive_is_waited_for(model, tmp_path, monkeypatch):
    monkeypatch.setattr(sending, "LONGEST_WAIT", 0.2)
    state, port_of_pacs = tmp_path / "state", free_port()
    with running_node(state, model, send_to=f"FAKEPACS@127.0.0.1:{port_of_pacs}") as port, client(port) as router:
        router.store(radiograph(1))
        status = wait_for(state, lambda status: status.counts[PREDICTED] == 1 and status.trouble != "")
        assert "cannot be reached" in "\n".join(status.lines())
        with fake_pacs(port=port_of_pacs) as pacs:
            status = wait_for(state, lambda status: status.counts[SENT] == 1 and not status.trouble)
    assert pacs.stored.total() == KINDS


@pytest.mark.parametrize("silent", ["at once", "after the association"])
def test_an_archive_that_falls_silent_does_not_hold_up_the_end(silent, model, tmp_path, monkeypatch):
    monkeypatch.setattr(running, "SENDER_GRACE", 0.2)
    state, asleep = tmp_path / "state", threading.Event()
    with contextlib.ExitStack() as stack:
        if silent == "at once":
            archive = stack.enter_context(socket.create_server(("127.0.0.1", 0)))
            address = f"FAKEPACS@127.0.0.1:{archive.getsockname()[1]}"
        else:
            pacs = stack.enter_context(fake_pacs())
            pacs.asleep = asleep
            address = pacs.address
        stack.callback(asleep.set)
        with running_node(state, model, send_to=address, timeout=600) as port, client(port) as router:
            router.store(radiograph(1))
            wait_for(state, lambda status: status.counts[PREDICTED] == 1)
            time.sleep(1.0)  # it waits for the archive; the end is waited for by `running_node`
    assert node_status(state).counts[PREDICTED] == 1


def test_what_was_kept_is_sent_once_there_is_an_archive(model, tmp_path):
    state = tmp_path / "state"
    with running_node(state, model) as port, client(port) as router:
        router.store(radiograph(1))
        wait_for(state, lambda status: status.counts[KEPT] == 1)
    with fake_pacs() as pacs, running_node(state, model, send_to=pacs.address):
        wait_for(state, finished(1))
    assert pacs.stored.total() == KINDS


# who may send, and how much -------------------------------------------------------------------------------------------


def test_only_the_named_callers_are_let_in(model, tmp_path):
    with running_node(tmp_path / "s", model, allow=["CR1", "ROUTER"]) as port:
        with client(port) as router:
            assert router.store(radiograph(1))
        with client(port, aet="STRANGER") as stranger, pytest.raises(AfireError, match="calling AE title 'STRANGER'"):
            stranger.store(radiograph(2))
    assert node_status(tmp_path / "s").counts.total() == 1


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"host": "0.0.0.0"}, "--allow is empty"),
        ({"host": "192.0.2.1", "allow": ["A"]}, "cannot be listened on"),
        ({"tls_ca": __file__}, "certificate of its own"),
        ({"kinds": ["pdf"]}, "kinds"),
        ({"queue": 0}, "--queue"),
        ({"send_to": "host:104"}, "AET@HOST:PORT"),
        ({"aet": "ä"}, "--aet"),
    ],
)
def test_what_cannot_be_meant_is_refused(options, words, model, tmp_path):
    with pytest.raises(AfireError, match=words), running_node(tmp_path / "s", model, **options):
        pass


def test_a_full_queue_says_so_and_takes_again_when_there_is_room(tmp_path):
    queue = Queue(tmp_path / "s", most=2, most_bytes=100)
    assert [queue.put(f"1.{n}", b"", b"x") for n in range(3)] == [True, True, False]
    assert queue.put("1.0", b"", b"x")  # that one is there
    for held in queue.take(RECEIVED, 1):
        queue.end(held.key, REFUSED, "no reason")
    assert queue.put("1.4", b"", b"x" * 99)
    queue.close()
    assert node_status(tmp_path / "s").turned_away == 1
    queue = Queue(tmp_path / "t", most_bytes=100)
    assert [queue.put(f"1.{n}", b"", b"x" * 60) for n in range(2)] == [True, False]
    queue.close()


def test_no_room_reaches_the_sender_as_out_of_resources(model, tmp_path):
    with (
        running_node(tmp_path / "s", model, queue_gib=1e-9) as port,
        client(port) as router,
        pytest.raises(StatusError, match="out of resources") as caught,
    ):
        router.store(radiograph(1))
    assert caught.value.status == 0xA700


def test_a_disk_that_cannot_be_written_to_is_no_success(model, tmp_path, monkeypatch):
    def full(*_: object) -> bool:
        raise OSError(28, "No space left on device")

    with running_node(tmp_path / "s", model) as port, client(port) as router:
        monkeypatch.setattr(Queue, "put", full)
        with pytest.raises(StatusError, match="A700"):
            router.store(radiograph(1))


def test_a_data_base_that_finds_no_room_is_no_success_and_leaves_nothing(model, tmp_path):
    queue = Queue(tmp_path / "s")
    (pages,) = queue._base.execute("PRAGMA page_count").fetchone()
    queue._base.execute(f"PRAGMA max_page_count={pages}")  # what SQLite says then is what it says of a full disk
    receiver = Receiver(queue, "AFIRE", "127.0.0.1", 0, [], Tls(), 20, 2**28)
    with client(receiver.port) as router, pytest.raises(StatusError, match="A700"):
        all(router.store(radiograph(number, np.zeros((8, 8), np.uint16))) for number in range(200))
    receiver.close()
    with pytest.raises(OSError, match=r"node\.sqlite: .* full"):
        queue.note("trouble", "x" * 10_000)
    assert len(list((tmp_path / "s" / "incoming").iterdir())) == len(queue.take(RECEIVED, 500)) > 0
    queue.close()


def test_a_store_without_a_data_set_is_not_understood(model, tmp_path):
    with running_node(tmp_path / "s", model) as port, client(port) as router:
        router.store(radiograph(1))
        association = router._open["store"]
        request = C_STORE()
        request.MessageID, request.Priority, request.AffectedSOPInstanceUID = 1, 2, "1.2.3"
        request.AffectedSOPClassUID = radiograph(1).SOPClassUID
        association.dimse.send_msg(request, association.accepted_contexts[0].context_id)
        assert association.dimse.get_msg(block=True)[1].Status == 0xC000
    assert node_status(tmp_path / "s").counts.total() == 1


def test_stalled_and_silent_connections_do_not_hold_up_the_end(tmp_path, monkeypatch, capfd):
    monkeypatch.setattr(receiving, "GRACE", 0.5)
    queue = Queue(tmp_path / "s")
    receiver = Receiver(queue, "AFIRE", "127.0.0.1", 0, [], Tls(), 600, 2**28)
    with client(receiver.port) as router, socket.create_connection(("127.0.0.1", receiver.port)) as silent:
        router.store(radiograph(1))
        stalled = router._open["store"].dul.socket.socket
        stalled.sendall(struct.pack(">BBL", 4, 0, 60_000) + b"\0" * 1000)
        end = time.monotonic() + 20
        while len(receiver._entity.active_associations) < 2:
            assert time.monotonic() < end
            time.sleep(0.1)
        receiver.close()
        silent.settimeout(20)
        assert silent.recv(1) == b""
        end = time.monotonic() + 20
        while receiver._entity.active_associations:
            assert time.monotonic() < end
            time.sleep(0.1)
    queue.close()
    assert "Traceback" not in "".join(capfd.readouterr())


def test_connections_that_were_closed_without_a_word_take_no_place(tmp_path):
    queue = Queue(tmp_path / "s")
    receiver = Receiver(queue, "AFIRE", "127.0.0.1", 0, [], Tls(), 600, 2**28)
    for _ in range(receiving.ASSOCIATIONS + 2):
        socket.create_connection(("127.0.0.1", receiver.port)).close()
    end = time.monotonic() + 30
    while receiver._entity.active_associations:
        assert time.monotonic() < end
        time.sleep(0.1)
    with client(receiver.port) as router:
        router.echo()
    receiver.close()
    queue.close()


def test_connections_that_say_nothing_leave_room_for_others(tmp_path, monkeypatch):
    monkeypatch.setattr(listening, "SPEECHLESS", 0.05)
    queue = Queue(tmp_path / "s")
    receiver = Receiver(queue, "AFIRE", "127.0.0.1", 0, [], Tls(), 600, 2**28)
    with contextlib.ExitStack() as stack:
        for _ in range(receiving.ASSOCIATIONS):
            stack.enter_context(socket.create_connection(("127.0.0.1", receiver.port)))
            time.sleep(0.1)
        for number in range(3):
            with client(receiver.port) as router:
                router.echo()
                assert router.store(radiograph(number))
        waiting = [one for one in receiver._entity.active_associations if one.requestor.primitive is None]
        assert 0 < len(waiting) <= receiving.ASSOCIATIONS // 2
    receiver.close()
    queue.close()


def test_callers_that_connect_at_the_same_moment_are_all_let_in(tmp_path):
    queue = Queue(tmp_path / "s")
    receiver = Receiver(queue, "AFIRE", "127.0.0.1", 0, [], Tls(), 600, 2**28)
    together = threading.Barrier(receiving.ASSOCIATIONS, timeout=30)

    def call(_: int) -> bool:
        entity = AE("ROUTER")
        entity.add_requested_context(VERIFY)
        handlers = [(evt.EVT_CONN_OPEN, lambda _: together.wait())]  # all are connected before one says who it is
        association = entity.associate("127.0.0.1", receiver.port, ae_title="AFIRE", evt_handlers=handlers)
        established = association.is_established
        association.release()
        return established

    with ThreadPoolExecutor(receiving.ASSOCIATIONS) as pool:
        assert all(pool.map(call, range(receiving.ASSOCIATIONS)))
    receiver.close()
    queue.close()


def test_the_end_does_not_wait_for_a_whole_batch(model, tmp_path, monkeypatch):
    queue, stop, files = Queue(tmp_path / "s"), threading.Event(), Path(tmp_path)
    for number in range(3):
        content = write(files / f"{number}.dcm", number).read_bytes()
        queue.put(f"1.{number}", content[:132], content[132:])
    end = queue.end

    def noted(*words: str) -> None:
        end(*words)
        stop.set()

    monkeypatch.setattr(queue, "end", noted)
    predictor = Predictor(queue, Scorer([model]), ["sr"], 3, 0, KEPT)
    assert predictor.work(stop) == 3
    assert node_status(tmp_path / "s").counts == {KEPT: 1, RECEIVED: 2}
    assert [held.tries for held in queue.take(RECEIVED, 3)] == [0, 0]
    queue.close()


def test_results_that_are_gone_do_not_hold_up_the_others(model, tmp_path):
    state = tmp_path / "s"
    queue = queue_of_results(model, state, 2, kinds=("sr",))
    _, first, _ = next(queue.waiting(PREDICTED))
    shutil.rmtree(queue.results(first))
    with fake_pacs() as pacs, Pacs(pacs.address, retries=0) as archive:
        assert "No such file" in Sender(queue, archive).send_all(threading.Event())
    assert node_status(state).counts == {SENT: 1, PREDICTED: 1}
    queue.close()


def test_a_folder_of_another_version_is_refused(tmp_path):
    queue = Queue(tmp_path / "s")
    queue._base.execute("PRAGMA user_version=7")
    queue.close()
    for use in (Queue, node_status):
        with pytest.raises(AfireError, match="another version"):
            use(tmp_path / "s")


def test_asking_for_the_status_stops_no_node_and_no_other_question(tmp_path):
    Queue(tmp_path / "s").close()
    with (tmp_path / "s" / "lock").open("rb") as asking:
        fcntl.flock(asking, fcntl.LOCK_SH)  # as another `--status` does for a moment
        assert not node_status(tmp_path / "s").running
        threading.Timer(0.2, fcntl.flock, [asking, fcntl.LOCK_UN]).start()
        queue = Queue(tmp_path / "s")
        assert node_status(tmp_path / "s").running
        queue.close()


def test_an_object_beyond_the_limit_ends_the_connection(model, tmp_path):
    large = radiograph(1, np.random.default_rng(0).integers(0, 4096, (1200, 1200)).astype(np.uint16))
    with running_node(tmp_path / "s", model, object_mib=1) as port:
        with client(port) as router, pytest.raises(ConnectionLostError):
            router.store(large)
        with client(port) as router:
            assert router.store(radiograph(2))
    assert node_status(tmp_path / "s").counts.total() == 1


def test_two_nodes_do_not_share_a_folder(tmp_path):
    queue = Queue(tmp_path / "s")
    with pytest.raises(AfireError, match="another node works"):
        Queue(tmp_path / "s")
    queue.close()
    (tmp_path / "x").mkdir()
    (tmp_path / "x" / "radiograph.dcm").write_text("a")
    with pytest.raises(AfireError, match="holds something else"):
        Queue(tmp_path / "x")
    with pytest.raises(AfireError, match="no node has worked"):
        node_status(tmp_path / "x")


def test_status_of_another_users_node_is_an_error_in_words(tmp_path, monkeypatch):
    def forbidden(*_, **__):
        raise sqlite3.OperationalError("unable to open database file")

    Queue(tmp_path).close()
    monkeypatch.setattr(sqlite3, "connect", forbidden)
    with pytest.raises(AfireError, match=r"cannot be read .*as the node's user"):
        node_status(tmp_path)


def test_the_page_of_counts_is_on_loopback_and_for_its_own_address_alone(model, tmp_path):
    page = free_port()
    with running_node(tmp_path / "s", model, status_port=page) as port, client(port) as router:
        assert router.store(radiograph(1))
        wait_for(tmp_path / "s", lambda status: status.counts[KEPT] == 1)
        with urllib.request.urlopen(f"http://127.0.0.1:{page}/", timeout=10) as answer:
            text = answer.read().decode()
            assert answer.headers["Refresh"] == "10"
        without_port = urllib.request.Request(f"http://127.0.0.1:{page}/", headers={"Host": "localhost"})  # as for 80
        assert urllib.request.urlopen(without_port, timeout=10).status == 200
        assert "predicted: 1 (1 kept in results/" in text
        assert not any(word in text for word in (*PLANTED, str(tmp_path)))
        for request in (
            urllib.request.Request(f"http://127.0.0.1:{page}/", headers={"Host": f"evil.example:{page}"}),
            f"http://127.0.0.1:{page}/node.sqlite",
        ):
            with pytest.raises(urllib.error.HTTPError, match="404"):
                urllib.request.urlopen(request, timeout=10)
        unused = free_port()
        with pytest.raises(AfireError, match="--status-port"):
            run_node(tmp_path / "t", [model], port=unused, status_port=page, workers=0)
        with pytest.raises(OSError, match="refused"):  # a node that does not start takes no radiographs
            socket.create_connection(("127.0.0.1", unused), 5)
    with pytest.raises(OSError, match="refused"):
        urllib.request.urlopen(f"http://127.0.0.1:{page}/", timeout=10)


@pytest.fixture(scope="module")
def certificates(tmp_path_factory) -> Path:
    return make_certificates(tmp_path_factory.mktemp("tls"), "node", "router", "stranger")


def test_with_tls_only_callers_with_a_certificate_are_let_in_and_a_silent_one_stops_nobody(
    certificates, model, tmp_path
):
    def pem(name: str, end: str = "pem") -> str:
        return str(certificates / f"{name}.{end}")

    options = {"tls_cert": pem("node"), "tls_key": pem("node", "key"), "tls_ca": pem("router")}
    with running_node(tmp_path / "s", model, **options) as port, socket.create_connection(("127.0.0.1", port)):
        for name, allowed in (("stranger", False), ("router", True)):
            tls = Tls(pem("node"), pem(name), pem(name, "key"))
            refused = contextlib.nullcontext() if allowed else pytest.raises(ConnectionLostError)
            with client(port, tls=tls) as router, refused:
                assert router.store(radiograph(1))
        with client(port) as plain, pytest.raises(ConnectionLostError):
            plain.store(radiograph(2))
    assert node_status(tmp_path / "s").counts.total() == 1


# kills and damage -----------------------------------------------------------------------------------------------------


def test_an_object_that_ends_the_program_is_tried_alone_and_then_left_out(model, tmp_path):
    queue = Queue(tmp_path / "s")
    for number in range(3):
        queue.put(f"1.{number}", b"", b"x")
    first = queue.take(RECEIVED, 2)  # and the program dies
    assert len(first) == 2
    for _ in range(MOST_TRIES - 1):
        assert [held.key for held in queue.take(RECEIVED, 3)] == [first[0].key]
    predictor = Predictor(queue, Scorer([model]), None, 3, 0, KEPT)
    assert predictor.work() == 1
    while predictor.work():
        pass
    queue.close()
    status = node_status(tmp_path / "s")
    assert status.refused[ENDED] == 1
    assert status.counts[REFUSED] == 3  # the others are no DICOM files


def test_what_a_kill_left_half_done_is_cleaned_up(tmp_path):
    queue = Queue(tmp_path / "s")
    queue.put("1.1", b"", b"x")
    (held,) = queue.take(RECEIVED, 1)
    queue.results(f"{held.key}.part").mkdir()
    queue.results(held.key).mkdir()  # written whole, but not noted: done again with the same UIDs
    (tmp_path / "s" / "incoming" / "unknown").write_text("never answered")
    queue.close()
    queue = Queue(tmp_path / "s")
    assert [path.name for path in (tmp_path / "s" / "incoming").iterdir()] == [held.key]
    assert list((tmp_path / "s" / "results").iterdir()) == []
    queue.file(held.key).unlink()
    queue.close()
    queue = Queue(tmp_path / "s")
    queue.close()
    assert node_status(tmp_path / "s").refused == {"its file is gone": 1}


def test_what_the_archive_refuses_is_given_up_after_some_tries_and_taken_up_at_the_next_start(model, tmp_path):
    state = tmp_path / "s"
    queue = queue_of_results(model, state, 2)
    with fake_pacs(status=0x0122) as pacs, Pacs(pacs.address, retries=0) as archive:
        sender = Sender(queue, archive)
        for _ in range(sending.MOST_TRIES):
            assert "does not take this kind" in sender.send_all(threading.Event())
        assert sender.send_all(threading.Event()) == ""
        assert node_status(state).counts[UNSENT] == 2
        queue.close()
        queue = Queue(state)
        pacs.status = 0xA700  # full: waited for, however long it takes
        for _ in range(sending.MOST_TRIES + 1):
            assert "out of resources" in Sender(queue, archive).send_all(threading.Event())
        pacs.status = 0
        assert Sender(queue, archive).send_all(threading.Event()) == ""
    queue.close()
    assert node_status(state).counts[SENT] == 2
    assert len(pacs.held) == 2 * KINDS


def test_results_that_always_break_the_exchange_do_not_hold_up_the_others(model, tmp_path):
    state = tmp_path / "s"
    queue = queue_of_results(model, state, 3, kinds=("sr",))
    _, first, _ = next(queue.waiting(PREDICTED))
    (path,) = queue.results(first).iterdir()
    with (
        fake_pacs(breaks_on=frozenset({pydicom.dcmread(path).SOPInstanceUID})) as pacs,
        Pacs(pacs.address, retries=0) as archive,
    ):
        sender = Sender(queue, archive)
        for sent in (0, 2, 2):
            assert "ended the connection" in sender.send_all(threading.Event())
            assert node_status(state).counts[SENT] == sent
        assert [(key, tries) for _, key, tries in queue.waiting(PREDICTED)] == [(first, 1)]  # for others went through
    queue.close()


def test_an_archive_that_ends_every_connection_is_waited_for_and_nothing_is_given_up(model, tmp_path):
    state = tmp_path / "s"
    queue = queue_of_results(model, state, 3, kinds=("sr",))
    with fake_pacs(breaks_after=0) as pacs, Pacs(pacs.address, retries=0) as archive:
        sender = Sender(queue, archive)
        for _ in range(3 * sending.MOST_TRIES):
            assert "ended the connection" in sender.send_all(threading.Event())
        assert [tries for _, _, tries in queue.waiting(PREDICTED)] == [0, 0, 0]
        pacs.breaks_after = 100
        assert sender.send_all(threading.Event()) == ""
    assert node_status(state).counts == {SENT: 3}
    queue.close()


def test_results_stay_until_the_archive_says_that_it_keeps_them(model, tmp_path, monkeypatch):
    monkeypatch.setattr(sending, "LONGEST_WAIT", 0.2)
    state = tmp_path / "state"
    with fake_pacs(lost=frozenset({"SR"})) as pacs:
        with running_node(state, model, send_to=pacs.address, commit=True) as port, client(port) as router:
            for number in range(2):
                router.store(radiograph(number))
            wait_for(state, lambda status: sum(pacs.asked.values()) >= 2 * KINDS and bool(status.trouble))
            status = node_status(state)
            assert (status.counts[SENT], status.counts[PREDICTED]) == (0, 2)
            assert "not kept by the archive" in status.trouble
            assert len(list((state / "results").glob("*/*.dcm"))) == 2 * KINDS
            pacs.lost = frozenset()
            status = wait_for(state, finished(2))
        assert status.counts[SENT] == 2
        assert len(pacs.held) == 2 * KINDS
        assert list((state / "results").iterdir()) == []
        before = pacs.stored.total()
    with fake_pacs(commitment="silent") as pacs:  # the node's end does not wait for a report
        with running_node(state, model, send_to=pacs.address, commit=True, timeout=60) as port, client(port) as router:
            router.store(radiograph(3))
            wait_for(state, lambda _: bool(pacs.asked))
            begin = time.monotonic()
        assert time.monotonic() - begin < 30
        assert node_status(state).counts[PREDICTED] == 1
    assert before >= 2 * KINDS


def test_what_the_archive_refuses_is_not_given_up_because_it_keeps_the_rest(model, tmp_path):
    state = tmp_path / "s"
    queue, reports = queue_of_results(model, state, 1), Reports()
    with fake_pacs(refused=frozenset({"SR"})) as pacs, client(pacs.port, called=AET, reports=reports) as archive:
        sender = Sender(queue, archive, commit=True)
        assert "does not take this kind" in sender.send_all(threading.Event())
        assert node_status(state).counts[PREDICTED] == 1
        pacs.refused = frozenset()
        assert sender.send_all(threading.Event()) == ""
    queue.close()
    assert node_status(state).counts[SENT] == 1
    assert sorted(d.Modality for d in pacs.held.values()) == ["OT", "SEG", "SR"]


def test_what_went_into_an_archive_before_it_was_full_is_not_sent_again(model, tmp_path):
    state = tmp_path / "s"
    queue, reports = queue_of_results(model, state, 2), Reports()
    with fake_pacs(room=KINDS) as pacs, client(pacs.port, called=AET, reports=reports) as archive:
        sender = Sender(queue, archive, commit=True)
        assert "out of resources" in sender.send_all(threading.Event())
        assert node_status(state).counts == {SENT: 1, PREDICTED: 1}
        pacs.room = 100
        assert sender.send_all(threading.Event()) == ""
    queue.close()
    assert pacs.stored.total() == 2 * KINDS


def test_what_went_in_before_an_object_that_ends_the_connection_is_not_sent_again(model, tmp_path):
    state = tmp_path / "s"
    queue, reports = queue_of_results(model, state, 2), Reports()
    with fake_pacs(drop_every=KINDS + 1) as pacs, client(pacs.port, called=AET, reports=reports) as archive:
        assert "ended the connection" in Sender(queue, archive, commit=True).send_all(threading.Event())
        assert node_status(state).counts == {SENT: 1, PREDICTED: 1}
    queue.close()


def test_with_commitment_a_radiograph_without_results_is_not_waited_for(model, tmp_path):
    state = tmp_path / "s"
    queue, reports = queue_of_results(model, state, 2, kinds=("sr",)), Reports()
    _, first, _ = next(queue.waiting(PREDICTED))
    for result in queue.results(first).iterdir():
        result.unlink()
    with fake_pacs() as pacs, client(pacs.port, called=AET, reports=reports) as archive:
        assert Sender(queue, archive, commit=True).send_all(threading.Event()) == ""
    assert node_status(state).counts == {SENT: 2}
    queue.close()


def test_an_archive_that_never_reports_is_asked_less_and_less_often(model, tmp_path, monkeypatch):
    state = tmp_path / "s"
    queue, reports, waits = queue_of_results(model, state, 1), Reports(), []

    class Stop(threading.Event):
        def wait(self, timeout: float | None = None) -> bool:
            waits.append(timeout)
            if len(waits) > sending.MOST_TRIES:
                self.set()
            return self.is_set()

    monkeypatch.setattr(sending, "AT_ONCE", 1)
    with fake_pacs(commitment="refuses") as pacs, client(pacs.port, called=AET, reports=reports) as archive:
        Sender(queue, archive, commit=True).run(Stop())
    queue.close()
    assert waits == [2.0**n for n in range(sending.MOST_TRIES + 1)]
    assert node_status(state).counts == {PREDICTED: 1}  # it is no fault of the results


def test_only_named_callers_may_send_although_the_archive_may_report(model, tmp_path):
    state = tmp_path / "state"
    with fake_pacs() as pacs, running_node(state, model, send_to=pacs.address, commit=True, allow=["ROUTER"]) as port:
        with client(port, aet=pacs.address.partition("@")[0]) as archive, pytest.raises(StatusError, match="0124"):
            archive.store(radiograph(1))
        with client(port, aet="STRANGER") as stranger, pytest.raises(AfireError, match="AE title"):
            stranger.store(radiograph(1))
        with client(port) as router:
            assert router.store(radiograph(1))
        wait_for(state, finished(1))


def start_node(state: Path, model: Path, port: int, pacs: str, *more: str) -> warm.Program:
    command = ["-m", "afire_monai", "node", "--state", str(state), "--model", str(model)]
    command += ["--port", str(port), "--send-to", pacs, "--workers", "0", "--batch-size", "4", *more]
    process = warm.Program(command, Path(tempfile.mkdtemp(dir=state.parent)) / "log.txt")
    until = time.monotonic() + 60
    while "listening" not in process.output():
        assert process.poll() is None, process.output()
        assert time.monotonic() < until, process.output()
        time.sleep(0.02)
    return process


def kill_in_the_middle(model: Path, tmp_path: Path, pacs: str, count: int, sent: Callable[[], int]) -> None:
    """Send to a node that is killed twice while it works; what is not answered with success is sent again."""
    state, port, kills = tmp_path / "state", free_port(), 0
    process = start_node(state, model, port, pacs)
    waiting = [radiograph(number) for number in range(count)]
    try:
        while waiting:
            try:
                with client(port, timeout=60) as router:
                    while waiting:
                        router.store(waiting[0])
                        waiting.pop(0)
                        if len(waiting) == count // 3 * (2 - kills) and kills < 2:
                            time.sleep(1.0)  # so that it predicts and sends, too
                            os.kill(process.pid, signal.SIGKILL)
                            kills += 1
            except AfireError:
                process.wait(60)
                process = start_node(state, model, port, pacs)
        wait_for(state, finished(count), 120)
        assert kills == 2
        process.send_signal(signal.SIGTERM)
        assert process.wait(60) == 0
    finally:
        process.kill()
        process.wait()
    status = node_status(state)
    assert (status.counts[SENT], status.counts.total(), status.running) == (count, count, False)
    assert sent() == count * KINDS


@pytest.mark.slow
def test_kills_in_the_middle_lose_and_double_nothing(model, tmp_path):
    with fake_pacs() as pacs:
        kill_in_the_middle(model, tmp_path, pacs.address, 30, lambda: len(pacs.held))
    sources = {reference for result in pacs.held.values() for reference in _sources(result)}
    assert len(sources) == 30


@pytest.mark.slow
def test_a_kill_between_store_and_report_loses_and_doubles_nothing(model, tmp_path):
    state, port = tmp_path / "state", free_port()
    with fake_pacs(commitment="silent") as pacs:
        process = start_node(state, model, port, pacs.address, "--commit")
        try:
            with client(port) as router:
                for number in range(3):
                    router.store(radiograph(number))
            wait_for(state, lambda _: len(pacs.asked) == 3 * KINDS)
            process.kill()
            process.wait()
            assert node_status(state).counts == {PREDICTED: 3}
            pacs.commitment = "reports"
            process = start_node(state, model, port, pacs.address, "--commit")
            wait_for(state, finished(3))
        finally:
            process.kill()
            process.wait()
    assert len(pacs.held) == 3 * KINDS
    assert pacs.stored.total() <= 2 * 3 * KINDS


def _sources(result: pydicom.Dataset) -> set[str]:
    return {str(e.value) for e in result.iterall() if e.keyword == "ReferencedSOPInstanceUID"}


# others' programs -----------------------------------------------------------------------------------------------------


def dimse(port: int, node: int) -> dict[str, object]:
    return {
        "DicomAet": "ORTHANC",
        "DicomPort": port,
        "DicomCheckCalledAet": True,
        "DicomModalities": {"node": ["AFIRE", "127.0.0.1", node]},
        "StorageCompression": False,
    }


def ask(url: str, body: object = None) -> object:
    request = urllib.request.Request(url, None if body is None else json.dumps(body).encode())
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    with opener.open(request, timeout=60) as answer:
        return json.load(answer)


@pytest.mark.slow
def test_orthanc_routes_to_the_node_and_gets_the_results_back(model, tmp_path):
    theirs, ours = free_port(), free_port()
    with running_orthanc(tmp_path / "orthanc", dimse=dimse(theirs, ours)) as url:
        root = url.removesuffix("/dicom-web")
        with Pacs(f"ORTHANC@127.0.0.1:{theirs}", timeout=20) as archive:
            for number in range(5):
                archive.store(radiograph(number))
        process = start_node(tmp_path / "state", model, ours, f"ORTHANC@127.0.0.1:{theirs}", "--commit",
                             "--kinds", "sr,seg,sc,gsps", "--allow", "ORTHANC")  # fmt: skip
        try:
            studies = ask(f"{root}/studies")
            ask(f"{root}/modalities/node/store", studies)
            wait_for(tmp_path / "state", finished(5))
        finally:
            process.terminate()
            process.wait(60)
        for study in studies:
            series = [ask(f"{root}/series/{one}") for one in ask(f"{root}/studies/{study}")["Series"]]
            assert sorted(one["MainDicomTags"]["Modality"] for one in series) == ["DX", "OT", "PR", "SEG", "SR"]


@pytest.mark.slow
def test_kills_with_orthanc_lose_and_double_nothing(model, tmp_path):
    theirs = free_port()
    with running_orthanc(tmp_path / "orthanc", dimse=dimse(theirs, 1)) as url:
        root = url.removesuffix("/dicom-web")
        address = f"ORTHANC@127.0.0.1:{theirs}"
        kill_in_the_middle(model, tmp_path, address, 30, lambda: len(ask(f"{root}/instances")))


def test_dcmtk_sends_compressed_files_and_each_is_read(model, tmp_path):
    # pynetdicom has a program of this name, too: a script
    found = [shutil.which("storescu", path=folder) for folder in os.environ["PATH"].split(os.pathsep)]
    program = next((path for path in found if path and Path(path).read_bytes()[:2] != b"#!"), None)
    if program is None:
        pytest.skip("no storescu (Debian: apt install dcmtk)")
    dataset = radiograph(1)
    write(tmp_path / "files" / "plain.dcm", 2)
    dataset.compress(pydicom.uid.RLELossless, generate_instance_uid=False)
    dataset.save_as(tmp_path / "files" / "rle.dcm", enforce_file_format=True)
    with running_node(tmp_path / "s", model, allow=["STORESCU"]) as port:
        command = [program, "-aec", "AFIRE", "-aet", "STORESCU", "-xr", "+sd", "127.0.0.1", str(port)]
        subprocess.run([*command, str(tmp_path / "files")], check=True, capture_output=True, timeout=60)
        status = wait_for(tmp_path / "s", lambda status: status.counts[RECEIVED] == 0 and status.counts.total() == 2)
    assert status.counts[KEPT] == 2


def test_the_validator_finds_no_error_in_what_the_node_writes(model, tmp_path):
    with running_node(tmp_path / "s", model) as port, client(port) as router:
        router.store(planted.radiograph(1, ChestPhantom(96)(1, None).image[0], "DX"))
        wait_for(tmp_path / "s", lambda status: status.counts[KEPT] == 1)
    files = list((tmp_path / "s" / "results").glob("*/*.dcm"))
    assert len(files) == KINDS
    for file in files:
        assert validator_errors(file) == []
