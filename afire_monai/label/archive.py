"""Radiographs of a DICOMweb archive as a store of MONAI Label: needs MONAI Label."""

from __future__ import annotations

import logging
import os
import tempfile
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from monailabel.datastore.local import DataModel, ImageLabelModel

from afire_monai.core.errors import AfireError
from afire_monai.hospital.dicomweb.client import DicomWeb
from afire_monai.hospital.dicomweb.query import Query, SeriesReference, is_uid
from afire_monai.hospital.dicomweb.transfer import retrieve_series
from afire_monai.hospital.header import read_header
from afire_monai.hospital.series_rules import judge
from afire_monai.label.http_errors import UnknownImageError
from afire_monai.label.images import file_of
from afire_monai.label.label_files import FINAL, is_findings, read_mask
from afire_monai.label.stores import CarefulStore
from afire_monai.radiographs.decode import list_images

logger = logging.getLogger(__name__)


class ArchiveStore(CarefulStore):
    """Radiographs of a DICOMweb archive, one image a series, fetched when they are first needed.

    The id of an image is its SeriesInstanceUID. Of a series with several images the first that is no lateral is taken.
    Labels are kept in the cache folder, and go to the archive as DICOM segmentations if that is wanted.

    Args:
        url: root of its DICOMweb services. Credentials: see `DicomWeb`.
        folder: cache; holds what identifies patients, so it gets mode 0700.
        classes: value of each class in masks.
        findings: labels of the classifier.
        modalities: which series.
        to_archive: whether saved masks go to the archive.
    """

    LIST_FOR = 30.0
    """Seconds for which the archive's list of series is believed."""

    def __init__(
        self,
        url: str,
        folder: str,
        classes: Mapping[str, int],
        findings: Sequence[str],
        modalities: Sequence[str] = ("CR", "DX"),
        to_archive: bool = True,
    ) -> None:
        self._web = DicomWeb(url, retries=2)
        self._query = Query.of(modalities)
        self._to_archive = to_archive
        self._series: dict[str, SeriesReference] = {}
        self._listed = -self.LIST_FOR
        Path(folder).mkdir(mode=0o700, parents=True, exist_ok=True)
        super().__init__(folder, classes, findings)

    def list_images(self) -> list[str]:
        """Give the SeriesInstanceUIDs that the archive has now."""
        with self._guard:
            if time.monotonic() - self._listed > self.LIST_FOR:
                self._series = {r.series: r for r in self._web.find_series(self._query)}
                self._listed = time.monotonic()
            super().list_images()  # labels that another process saved
            return list(self._series)

    def get_image_uri(self, image_id: str) -> str:
        """Fetch an image, if it is not there yet, and give its file.

        Raises:
            UnknownImageError: if the archive has no such series of the modalities that are served.
            AfireError: if it cannot be fetched or holds no radiograph.
        """
        if not is_uid(image_id):
            raise UnknownImageError("the id of an image is its SeriesInstanceUID")
        with self._guard:
            path = Path(self._datastore.image_path(), f"{image_id}.dcm")
            if not path.is_file():
                if image_id not in self.list_images():
                    self._listed = -self.LIST_FOR  # it may have come just now
                if image_id not in self.list_images():
                    known = ", ".join(self._query.modalities)
                    raise UnknownImageError(f"the archive has no such series among its {known}")
                self._fetch(self._series[image_id], path)
            if image_id not in self._datastore.objects:
                info = {"ts": int(time.time()), "name": path.name}
                self._datastore.objects[image_id] = ImageLabelModel(image=DataModel(info=info, ext=".dcm"))
                self._update_datastore_file()
            return str(path.resolve())

    def _fetch(self, series: SeriesReference, path: Path) -> None:
        start = time.perf_counter()
        with tempfile.TemporaryDirectory(dir=path.parent, prefix=".fetch-") as folder:
            done = retrieve_series(self._web, [series], folder)
            if not done.done:
                reason = next((reason for reason, _ in done.reasons()), "it is empty")
                raise AfireError(f"the series could not be fetched: {reason}")
            os.replace(_frontal(Path(folder)), path)
        logger.info("fetched a series of %d in %.0f ms", done.done, 1000 * (time.perf_counter() - start))

    def _keep(self, image_id: str, label: str, tag: str, info: dict[str, Any]) -> str:
        saved = super()._keep(image_id, label, tag, info)
        if self._to_archive and tag == FINAL and not is_findings(label):
            self._send(image_id, label)
        return saved

    def _send(self, image_id: str, label: str) -> None:
        """Give the archive a saved mask as a DICOM segmentation; an empty mask makes none."""
        import pydicom

        from afire_monai.dicom_results import write_masks

        image = self.get_image_uri(image_id)
        mask = read_mask(image, label, {})
        if not mask.any():
            return
        classes = self.classes or {f"class {value}": int(value) for value in set(mask.ravel().tolist()) - {0}}
        with tempfile.TemporaryDirectory(prefix="afire-seg-") as folder:
            file = write_masks(image, mask, classes, folder)
            try:
                self._web.store(pydicom.dcmread(file))
            except AfireError as error:
                raise AfireError(f"the label is saved here, but the archive did not take it: {error}") from error


def _frontal(folder: Path) -> Path:
    """Choose the image of a series: a frontal chest rather than another, for presentation rather than raw, large."""

    def rank(file: Path) -> tuple[bool, bool, int, str]:
        try:
            header = read_header(file)
        except ValueError:
            return True, True, 0, file.name
        verdict = judge(header)
        return bool(verdict.reason), verdict.raw, -header.rows * header.columns, file.name

    return min(list_images(folder), key=rank, default=None) or file_of(folder)
