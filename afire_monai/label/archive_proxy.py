"""The part of a DICOMweb archive that a browser may see through the label server: chosen modalities, read only."""

from __future__ import annotations

import json
import re
import threading
import time
from collections.abc import Sequence
from typing import Any

from afire_monai.hospital.dicomweb.client import DicomWeb, Query, is_uid, value
from afire_monai.hospital.dicomweb.connection import entries_of, not_dicomweb
from afire_monai.hospital.dicomweb.credentials import DicomWebError
from afire_monai.label.messages import NotFoundError

JSON = "application/dicom+json"
_STUDY, _SERIES, _MODALITIES = "0020000D", "0020000E", "00080061"
_SERVICES = ("wado", "qido")
_STEP = re.compile(r"(?!\.+$)[\w.,:-]{1,128}", re.ASCII)
_PAGING = ("limit", "offset")
Pairs = Sequence[tuple[str, str]]


class ArchiveProxy:
    """Asks an archive on behalf of a browser, and returns only objects in series of the chosen modalities.

    Lists of studies, series and instances are filtered to these series, and requests below a series are passed on for
    these only. The rest of DICOMweb (whole studies, storing, deleting, WADO-URI) does not exist here. The list of
    series is requested again after `LIST_FOR` seconds and if a series is not known, but not for `ASK_AGAIN` seconds
    after a failure.

    Args:
        web: the archive; with a short timeout and without repetitions, as a user waits.
        modalities: modalities of the series to show.
    """

    LIST_FOR = 30.0
    ASK_AGAIN = 3.0

    def __init__(self, web: DicomWeb, modalities: Sequence[str]) -> None:
        self._web, self._query = web, Query.of(modalities)
        self._guard = threading.Lock()
        self._listed = -self.LIST_FOR
        self._series: dict[str, set[str]] = {}
        self._failure: tuple[float, DicomWebError | None] = (0.0, None)

    def answer(self, path: str, query: Pairs, accept: str) -> tuple[bytes, str]:
        """Return the body that answers a GET request, and its media type.

        Args:
            path: path below the root of DICOMweb, possibly after ``wado`` or ``qido``.
            query: names and values.
            accept: media types that the browser takes.

        Raises:
            NotFoundError: if the object does not exist or is not shown.
            DicomWebError: if the archive does not answer, or refuses.
        """
        match _steps(path):
            case ["studies"]:
                return self._studies(query)
            case ["series" | "instances" as what]:
                return self._filtered(what, query)
            case ["studies", study, "series" | "instances" | "metadata" as what] if self._knows(study):
                return self._filtered(f"studies/{study}/{what}", query, study)
            case ["studies", study, "series", series, *rest] if self._knows(study, series):
                return self._get("/".join(["studies", study, "series", series, *rest]), query, accept)
        shown = ", ".join(self._query.modalities)
        raise NotFoundError(f"the archive has no such thing, or it is not shown here: only series of {shown} are")

    def _known(self, oldest: float) -> dict[str, set[str]]:
        with self._guard:
            now = time.monotonic()
            if now - self._listed > oldest:
                at, error = self._failure
                if error is not None and now - at < self.ASK_AGAIN:  # requests that have waited must not wait again
                    raise error
                try:
                    found = self._web.find_series(self._query)
                except DicomWebError as error:
                    self._failure = time.monotonic(), error
                    raise
                self._series = {}
                for one in found:
                    self._series.setdefault(one.study, set()).add(one.series)
                self._listed = time.monotonic()
            return self._series

    def _knows(self, study: str, series: str = "") -> bool:
        if not is_uid(study) or (series and not is_uid(series)):
            return False
        for oldest in (self.LIST_FOR, self.ASK_AGAIN):  # the series may be new
            known = self._known(oldest)
            if series in known.get(study, ()) or (not series and study in known):
                return True
        return False

    def _studies(self, query: Pairs) -> tuple[bytes, str]:
        """List studies, for one modality after the other: an archive has many more of others."""
        known = self._known(self.LIST_FOR)
        wanted = {part for name, text in query if name in ("ModalitiesInStudy", _MODALITIES) and text
                  for part in re.split(r"[,\\]", text)}  # fmt: skip
        others = [pair for pair in query if pair[0] not in ("ModalitiesInStudy", _MODALITIES)]
        found: dict[str, dict[str, Any]] = {}
        for modality in self._query.modalities:
            if not wanted or modality in wanted:
                for entry in self._list("studies", [*others, ("ModalitiesInStudy", modality)]):
                    if value(entry, _STUDY) in known:
                        found[value(entry, _STUDY)] = self._only_shown(entry)
        return _page(list(found.values()), query)

    def _only_shown(self, entry: dict[str, Any]) -> dict[str, Any]:
        element = entry.get(_MODALITIES)
        if not isinstance(element, dict) or not isinstance(element.get("Value"), list):
            return entry
        shown = [name for name in element["Value"] if name in self._query.modalities]
        return {**entry, _MODALITIES: {**element, "Value": shown}}

    def _filtered(self, path: str, query: Pairs, study: str = "") -> tuple[bytes, str]:
        known = self._known(self.LIST_FOR)
        entries = self._list(path, query)
        shown = [entry for entry in entries if value(entry, _SERIES) in known.get(study or value(entry, _STUDY), ())]
        return _page(shown, query)

    def _list(self, path: str, query: Pairs) -> list[dict[str, Any]]:
        body, _ = self._get(path, [pair for pair in query if pair[0] not in _PAGING], JSON)
        try:
            return [dict(entry) for entry in entries_of(json.loads(body or b"[]"))]
        except ValueError:
            raise not_dicomweb() from None

    def _get(self, path: str, query: Pairs, accept: str) -> tuple[bytes, str]:
        found = self._web.get(path, query, accept)
        if found is None:
            raise NotFoundError("the archive has no such thing")
        return found


def _steps(path: str) -> list[str]:
    """Return the parts of a path without the service before it; nothing for one that could lead elsewhere."""
    steps = path.strip("/").split("/")
    steps = steps[1:] if steps[0] in _SERVICES else steps
    return steps if all(_STEP.fullmatch(step) for step in steps) else []


def _page(entries: list[dict[str, Any]], query: Pairs) -> tuple[bytes, str]:
    numbers = {name: int(text) for name, text in query if name in _PAGING and re.fullmatch("[0-9]{1,9}", text)}
    start = numbers.get("offset", 0)
    return json.dumps(entries[start : start + numbers.get("limit", len(entries))]).encode(), JSON
