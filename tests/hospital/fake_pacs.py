"""An archive over DIMSE for tests, on loopback, built on pynetdicom alone; it misbehaves on demand."""

from __future__ import annotations

import contextlib
import threading
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

from hospital.orthanc import free_port
from pydicom.dataset import Dataset
from pydicom.uid import RLELossless
from pynetdicom import AE, AllStoragePresentationContexts, evt
from pynetdicom.dimse_primitives import C_STORE
from pynetdicom.sop_class import (
    ComputedRadiographyImageStorage,
    DigitalXRayImageStorageForPresentation,
    StorageCommitmentPushModel,
    StorageCommitmentPushModelInstance,
    StudyRootQueryRetrieveInformationModelFind,
    StudyRootQueryRetrieveInformationModelGet,
    StudyRootQueryRetrieveInformationModelMove,
    Verification,
)

AET = "FAKEPACS"
LEVELS = {"STUDY": "StudyInstanceUID", "SERIES": "SeriesInstanceUID", "IMAGE": "SOPInstanceUID"}


@dataclass
class FakePacs:
    port: int = field(default_factory=free_port)
    held: dict[str, Dataset] = field(default_factory=dict)
    stored: Counter[str] = field(default_factory=Counter)
    associations: int = 0
    status: int = 0x0000
    """Answer to C-STORE."""
    drop_every: int = 0
    """End the association instead of answering every n-th object."""
    breaks_after: int = 1_000_000
    """Objects after which it ends the association instead of answering C-STORE."""
    breaks_on: frozenset[str] = frozenset()
    """SOPInstanceUIDs of objects that it ends the association over."""
    asleep: threading.Event | None = None
    """No C-STORE is answered before this is set."""
    twice: bool = False
    """Answer each C-STORE twice."""
    move_to: tuple[str, int] | None = None
    sub_failure: bool = False
    room: int = 1_000_000
    """Objects after which C-STORE is answered with A700."""
    commitment: str = "reports"
    """Answer to a request for storage commitment: "reports" on the same connection, "silent", "refuses" it, "hangs
    up", "hangs up once", or "early": reports before it answers, or "early, hangs up": instead."""
    others: tuple[Dataset, ...] = ()
    """Reports that it sends before the right one."""
    lost: frozenset[str] = frozenset()
    """Modalities of objects that it reports not to keep."""
    unnamed: frozenset[str] = frozenset()
    """Modalities of objects that it says nothing about in a report."""
    refused: frozenset[str] = frozenset()
    """Modalities of objects that it answers C-STORE of with 0122."""
    asked: Counter[str] = field(default_factory=Counter)
    """How often it was asked to commit itself to each object."""
    answers: list[int | None] = field(default_factory=list)
    """Status that each of its reports was answered with; None without an answer."""
    transactions: set[str] = field(default_factory=set)
    """Of requests to commit itself; one that it knows is refused."""

    @property
    def address(self) -> str:
        return f"{AET}@127.0.0.1:{self.port}"

    def hold(self, *datasets: Dataset) -> None:
        self.held |= {str(d.SOPInstanceUID): d for d in datasets}

    def find(self, event: Any) -> Iterator[tuple[int, Dataset | None]]:
        wanted = event.identifier
        level = wanted.QueryRetrieveLevel
        seen = set()
        for dataset in self.held.values():
            uid = str(dataset[LEVELS[level]].value)
            if uid not in seen and self._matches(dataset, wanted):
                seen.add(uid)
                answer = Dataset()
                for element in wanted:
                    if element.keyword in dataset:
                        answer[element.keyword] = dataset[element.keyword]
                answer.QueryRetrieveLevel = level
                yield 0xFF00, answer
        yield 0x0000, None

    @staticmethod
    def _matches(dataset: Dataset, wanted: Dataset) -> bool:
        for keyword in (*LEVELS.values(), "Modality"):
            if wanted.get(keyword) and wanted[keyword].value != dataset[keyword].value:
                return False
        first, dash, last = str(wanted.get("StudyDate") or "").partition("-")
        day = dataset.StudyDate
        return (not first or day >= first) and (not (last or not dash) or not first or day <= (last or first))

    def _chosen(self, event: Any) -> list[Dataset]:
        uid = event.identifier.SOPInstanceUID
        return [self.held[uid]] if uid in self.held else []

    def get(self, event: Any) -> Iterator[Any]:
        chosen = self._chosen(event)
        yield len(chosen)
        for dataset in chosen:
            yield (0xA702, None) if self.sub_failure else (0xFF00, dataset)

    def move(self, event: Any) -> Iterator[Any]:
        if self.move_to is None or event.move_destination != self.move_to[0]:
            yield None, None
            return
        yield "127.0.0.1", self.move_to[1], {"ae_title": self.move_to[0]}
        yield from self.get(event)

    def store(self, event: Any) -> int:
        uid = str(event.request.AffectedSOPInstanceUID)
        if self.asleep is not None:
            self.asleep.wait(600)
        if self.drop_every and (self.stored.total() + 1) % self.drop_every == 0:
            self.stored["dropped"] += 1
            event.assoc.abort()
            return 0xC000
        if len(self.held) >= self.breaks_after or uid in self.breaks_on:
            event.assoc.abort()
            return 0xC000
        if event.dataset.Modality in self.refused:
            return 0x0122
        if len(self.held) >= self.room:
            return 0xA700
        if self.status == 0:
            self.stored[uid] += 1
            dataset = event.dataset
            dataset.file_meta = event.file_meta
            self.held[uid] = dataset
        if self.twice:
            answer = C_STORE()
            answer.MessageIDBeingRespondedTo, answer.Status = event.request.MessageID, self.status
            answer.AffectedSOPClassUID = event.request.AffectedSOPClassUID
            answer.AffectedSOPInstanceUID = event.request.AffectedSOPInstanceUID
            event.assoc.dimse.send_msg(answer, event.context.context_id)
        return self.status

    def commit(self, event: Any) -> tuple[int, None]:
        request, report = event.action_information, Dataset()
        items = {str(item.ReferencedSOPInstanceUID): item for item in request.ReferencedSOPSequence}
        self.asked.update(items.keys())
        if str(request.TransactionUID) in self.transactions:
            return 0x0131, None
        self.transactions.add(str(request.TransactionUID))
        failed = [uid for uid in items if uid not in self.held or self.held[uid].Modality in self.lost]
        report.TransactionUID = request.TransactionUID
        kept = [uid for uid in items if uid not in failed and self.held[uid].Modality not in self.unnamed]
        report.ReferencedSOPSequence = [items[uid] for uid in kept]
        if failed:
            report.FailedSOPSequence = [items[uid] for uid in failed]
            for item in report.FailedSOPSequence:
                item.FailureReason = 0x0110

        def tell() -> None:
            time.sleep(0.1)
            kind, instance = StorageCommitmentPushModel, StorageCommitmentPushModelInstance
            for one in (*self.others, report):
                told = 2 if one.get("FailedSOPSequence") else 1
                status, _ = event.assoc.send_n_event_report(one, told, kind, instance)
                self.answers.append(status.get("Status"))

        if self.commitment == "reports":
            threading.Thread(target=tell, daemon=True).start()
        if self.commitment.startswith("early"):
            tell()
        if "hangs up" in self.commitment:
            event.assoc.abort()
        if self.commitment == "hangs up once":
            self.commitment = "reports"
        return (0x0110 if self.commitment == "refuses" else 0x0000), None


@contextlib.contextmanager
def fake_pacs(tls: Any = None, **state: Any) -> Iterator[FakePacs]:
    pacs = FakePacs(**state)
    entity = AE(AET)
    entity.require_called_aet = True
    entity.network_timeout = 20
    for context in AllStoragePresentationContexts:
        syntaxes = [*context.transfer_syntax, RLELossless]
        entity.add_supported_context(context.abstract_syntax, syntaxes, scu_role=True, scp_role=True)
    for model in (
        StudyRootQueryRetrieveInformationModelFind,
        StudyRootQueryRetrieveInformationModelGet,
        StudyRootQueryRetrieveInformationModelMove,
        Verification,
        StorageCommitmentPushModel,
    ):
        entity.add_supported_context(model)
    for kind in (ComputedRadiographyImageStorage, DigitalXRayImageStorageForPresentation):
        entity.add_requested_context(kind)
        entity.add_requested_context(kind, RLELossless)

    def count(_: Any) -> None:
        pacs.associations += 1

    handlers = [
        (evt.EVT_C_FIND, pacs.find),
        (evt.EVT_C_GET, pacs.get),
        (evt.EVT_C_MOVE, pacs.move),
        (evt.EVT_C_STORE, pacs.store),
        (evt.EVT_N_ACTION, pacs.commit),
        (evt.EVT_ESTABLISHED, count),
    ]
    server = entity.start_server(("127.0.0.1", pacs.port), block=False, evt_handlers=handlers, ssl_context=tls)
    try:
        yield pacs
    finally:
        server.shutdown()
        for _ in range(50):
            if not entity.active_associations:
                break
            time.sleep(0.1)
