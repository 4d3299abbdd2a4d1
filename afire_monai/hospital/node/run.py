"""The node: receive, predict and send until it is stopped, and report the state of what it received."""

from __future__ import annotations

import logging
import os
import signal
import sqlite3
import threading
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass
from pathlib import Path

from afire_monai.core.errors import AfireError
from afire_monai.core.pool import threads
from afire_monai.core.quiet import silence
from afire_monai.dicom_results.folder import check_kinds
from afire_monai.dicom_results.objects import OutputError
from afire_monai.hospital.dicomweb.connection import is_loopback
from afire_monai.hospital.node.predictor import Predictor
from afire_monai.hospital.node.queue import (
    BASE,
    KEPT,
    PREDICTED,
    RECEIVED,
    REFUSED,
    SENT,
    UNSENT,
    Queue,
    check_version,
    is_running,
    open_base,
)
from afire_monai.hospital.node.receiver import Receiver
from afire_monai.hospital.node.sender import TROUBLE, Sender
from afire_monai.hospital.node.status_page import status_page
from afire_monai.hospital.pacs.association import Tls
from afire_monai.hospital.pacs.client import Pacs
from afire_monai.hospital.pacs.commitment import Reports
from afire_monai.predictions.scoring import Scorer

logger = logging.getLogger(__name__)
DISK_WAIT = 30.0
"""Seconds to wait when results cannot be written."""
SENDER_GRACE = 5.0
"""Seconds that the archive has for an answer when the node ends."""


def run_node(
    state: str | Path,
    model: Sequence[str | Path],
    aet: str = "AFIRE",
    host: str = "127.0.0.1",
    port: int = 11112,
    allow: Sequence[str] = (),
    tls_cert: str | None = None,
    tls_key: str | None = None,
    tls_ca: str | None = None,
    send_to: str | None = None,
    send_tls_ca: str | None = None,
    commit: bool = False,
    kinds: Sequence[str] | None = None,
    heatmap: str = "auto",
    batch_size: int = 16,
    workers: int | None = None,
    queue: int = 10_000,
    queue_gib: float = 20.0,
    object_mib: int = 256,
    timeout: float = 60.0,
    status_port: int | None = None,
    stop: threading.Event | None = None,
    ready: Callable[[int], None] | None = None,
) -> None:
    """Take radiographs by C-STORE, judge and predict them, and send report, segmentation and picture to an archive.

    An object that was answered with success is on the disk and survives a kill at any moment. Each object (UID and
    content) is predicted once, and its results have the same UIDs however often they are sent. SIGTERM and SIGINT end
    the node after the radiograph that is being written.

    Args:
        state: folder of the queue (mode 0700), for one node at a time.
        model: model folders (see `Scorer`).
        aet: AE title of this node, which callers must name.
        host: address to listen on; any address other than loopback needs ``allow``.
        port: TCP port to listen on.
        allow: AE titles that may send, with commas between them; all unless given.
        tls_cert: PEM file of this node's certificate; callers must then use TLS.
        tls_key: PEM file of its private key.
        tls_ca: PEM file of authorities; callers must then have a certificate from one of them.
        send_to: archive that gets the results, as AET@HOST:PORT; unless given, they stay in the state folder.
        send_tls_ca: PEM file of the authorities to trust for that archive; the connection then uses TLS.
        commit: ask that archive to confirm that it keeps the results (storage commitment) before they count as sent; it
            may report to this node's address and port.
        kinds: sr (report), seg (heatmap), sc (picture), gsps (outline and scores, drawn on the radiograph by the
            viewer), with commas between them; unless given, those of the first three that there is content for.
        heatmap: anomaly, gradcam, rollout or none; auto takes the first that the model supports.
        batch_size: number of radiographs computed at once.
        workers: number of threads that read; the number of cores, at most 8, unless given. 0 reads without threads.
        queue: maximum number of waiting objects; further ones are answered with "out of resources" (A700).
        queue_gib: maximum size of all waiting objects in GiB.
        object_mib: maximum size of an object in MiB; a connection that sends more is closed.
        timeout: seconds of silence after which a connection is closed, and seconds to wait for the archive's answers.
        status_port: TCP port on loopback for a page with the counts of --status; no page unless given.
        stop: event that ends the node when it is set.
        ready: function that is called with the port once the node listens.

    Raises:
        AfireError: for wrong options, models that cannot be read, or a folder or port that is in use.
    """
    _check(batch_size, workers, queue, queue_gib, object_mib, timeout, kinds)
    silence()
    stop = stop or threading.Event()
    tls, client = Tls(tls_ca, tls_cert, tls_key), Tls(send_tls_ca, *((tls_cert, tls_key) if send_tls_ca else ()))
    if commit and send_to is None:
        raise AfireError("--commit asks the archive of --send-to, and none is named")
    reports = Reports() if commit else None
    pacs = None if send_to is None else Pacs(send_to, aet, tls=client, timeout=timeout, retries=0, reports=reports)
    scorer = Scorer(model, heatmap=heatmap)
    if not is_loopback(host) and not tls_cert:
        logger.warning("no TLS: pictures of patients cross the network unencrypted; --tls-cert turns it on")
    with closing(Queue(state, queue, int(queue_gib * 2**30))) as held:
        if pacs is not None:
            held.send_what_was_kept()
        predictor = Predictor(held, scorer, kinds, batch_size, threads(workers), PREDICTED if pacs else KEPT)
        with (
            status_page(status_port, lambda: node_status(state).lines()),
            closing(Receiver(held, aet, host, port, allow, tls, timeout, object_mib << 20, pacs, reports)) as receiver,
            _sending(held, pacs, commit, stop),
            _until_signal(stop),
        ):
            if ready is not None:
                ready(receiver.port)
            _work(predictor, held, stop)


def _check(
    batch_size: int,
    workers: int | None,
    queue: int,
    queue_gib: float,
    object_mib: int,
    timeout: float,
    kinds: Sequence[str] | None,
) -> None:
    if kinds is not None:
        check_kinds(kinds)
    if batch_size < 1 or (workers is not None and workers < 0):
        raise AfireError(f"--batch-size must be at least 1 and --workers at least 0, got {batch_size} and {workers}")
    if queue < 1 or not queue_gib > 0 or not 1 <= object_mib <= 1024 or not timeout > 0:
        raise AfireError("--queue, --queue-gib and --timeout must be above 0, and --object-mib from 1 to 1024")


def _work(predictor: Predictor, queue: Queue, stop: threading.Event) -> None:
    while not stop.is_set():
        queue.changed.clear()
        try:
            if predictor.work(stop) == 0:
                queue.changed.wait(0.5)
        except OSError as error:
            logger.error("nothing can be written: %s; tried again in %g seconds", error.strerror, DISK_WAIT)
            stop.wait(DISK_WAIT)
        except OutputError as error:
            logger.error("%s; tried again in %g seconds", error, DISK_WAIT)
            stop.wait(DISK_WAIT)


@contextmanager
def _sending(queue: Queue, pacs: Pacs | None, commit: bool, stop: threading.Event) -> Iterator[None]:
    if pacs is None:
        yield
        return
    thread = threading.Thread(target=Sender(queue, pacs, commit).run, args=(stop,), name="sender")
    thread.start()
    try:
        yield
    finally:
        stop.set()
        thread.join(SENDER_GRACE)
        while thread.is_alive():
            pacs.interrupt()
            thread.join(0.5)


@contextmanager
def _until_signal(stop: threading.Event) -> Iterator[None]:
    """Set an event on SIGTERM and SIGINT; in other threads than the first one only the caller can."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = {number: signal.signal(number, lambda *_: stop.set()) for number in (signal.SIGTERM, signal.SIGINT)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


@dataclass(frozen=True)
class NodeStatus:
    """Counts of received objects by state; nothing in it identifies anybody.

    ``counts`` are by state, ``refused`` and ``unsent`` by reason; ``trouble`` is the last problem with the archive.
    """

    running: bool
    counts: Counter[str]
    refused: dict[str, int]
    unsent: dict[str, int]
    repeated: int
    turned_away: int
    trouble: str

    def lines(self) -> list[str]:
        """Return it as text for a console."""
        count = self.counts
        predicted = count[PREDICTED] + count[KEPT] + count[SENT] + count[UNSENT]
        lines = [
            f"node:      {'running' if self.running else 'not running'}",
            f"received:  {count.total()}"
            + f" ({self.repeated} came again)" * (self.repeated > 0)
            + f" ({self.turned_away} times no room)" * (self.turned_away > 0),
            f"refused:   {count[REFUSED]}",
            *(f"  {number} x {reason}" for reason, number in self.refused.items()),
            f"predicted: {predicted}" + f" ({count[KEPT]} kept in results/, no --send-to)" * (count[KEPT] > 0),
            f"sent:      {count[SENT]}",
            f"waiting:   {count[RECEIVED]} to be predicted, {count[PREDICTED]} to be sent",
        ]
        if self.unsent:
            lines.append(f"not sent:  {count[UNSENT]}; tried again when the node is started")
            lines += [f"  {number} x {reason}" for reason, number in self.unsent.items()]
        return lines + ([f"archive:   {self.trouble}"] if self.trouble else [])


def node_status(state: str | Path) -> NodeStatus:
    """Read the states of received objects, while a node runs or afterwards; AfireError if no node has worked there."""
    folder = Path(state)
    if not os.path.isfile(folder / BASE):
        raise AfireError("--state: no node has worked in this folder, or it is another user's; name that of a node")
    try:
        with closing(open_base(folder)) as base:
            check_version(base)
            rows = base.execute("SELECT state, reason, COUNT(*) FROM objects GROUP BY state, reason").fetchall()
            facts = dict(base.execute("SELECT name, value FROM facts").fetchall())
    except sqlite3.DatabaseError as error:
        raise AfireError(f"--state: {BASE} cannot be read ({error}); give this command as the node's user") from None
    counts: Counter[str] = Counter()
    for name, _, number in rows:
        counts[name] += number
    reasons = {
        wanted: dict(sorted(((r, n) for s, r, n in rows if s == wanted), key=lambda pair: -pair[1]))
        for wanted in (REFUSED, UNSENT)
    }
    return NodeStatus(
        is_running(folder),
        counts,
        reasons[REFUSED],
        reasons[UNSENT],
        int(facts.get("repeated", 0)),
        int(facts.get("turned away", 0)),
        str(facts.get(TROUBLE, "")),
    )
