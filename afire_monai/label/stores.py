"""MONAI Label's stores of images and labels, made careful: needs MONAI Label."""

from __future__ import annotations

import json
import logging
import os
import re
import shutil
import tempfile
import threading
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from filelock import FileLock
from monailabel.datastore.local import DataModel, ImageLabelModel, LocalDatastore

from afire_monai.core.errors import AfireError
from afire_monai.core.files import write_text
from afire_monai.hospital.dicomweb.client import DicomWeb, Query, SeriesReference, is_uid
from afire_monai.hospital.dicomweb.transfer import retrieve_series
from afire_monai.label.images import MAP_SUFFIXES, file_of, open_image, write_map
from afire_monai.label.label_files import (
    FINAL,
    FINDINGS,
    FINDINGS_SUFFIX,
    has_label,
    is_findings,
    read_findings,
    read_mask,
)
from afire_monai.label.messages import NotFoundError, UnknownImageError
from afire_monai.radiographs.decode import RADIOGRAPH_SUFFIXES, list_images
from afire_monai.radiographs.header import read_header
from afire_monai.radiographs.judgement import judge

logger = logging.getLogger(__name__)

_SUFFIXES = tuple(
    sorted({*RADIOGRAPH_SUFFIXES, *MAP_SUFFIXES, FINDINGS_SUFFIX}, key=len, reverse=True)
)  # .seg.nrrd before .nrrd


class CarefulStore(LocalDatastore):
    """A folder of radiographs (not its subfolders) with MONAI Label's ``labels`` and ``datastore_v2.json`` in it.

    Unlike in MONAI Label's own store, labels are checked against their image before they are kept; a full disk destroys
    neither earlier labels nor the list of them; DICOM files without suffix are found; images are never overwritten
    or deleted; new files are seen without a watcher.

    Args:
        folder: folder of the radiographs.
        classes: value of each class in masks.
        findings: labels of the classifier; if empty, any label is allowed.
        reader: options of `RadiographReader`.
    """

    def __init__(
        self, folder: str, classes: Mapping[str, int], findings: Sequence[str], reader: Mapping[str, Any]
    ) -> None:
        self.classes, self.findings, self.reader = dict(classes), list(findings), dict(reader)
        self._guard = threading.RLock()
        self._seen_at = -1
        super().__init__(folder, extensions=[f"*{suffix}" for suffix in _SUFFIXES], auto_reload=False)

    def _list_files(self, path: str, patterns: Sequence[str]) -> dict[str, str]:
        if os.path.realpath(path) == os.path.realpath(self._datastore.image_path()):
            files = {p.name: p.name for p in list_images(path) if p.parent == Path(path)}
            if alike := len(files) - len({self._to_id(name)[0] for name in files}):
                logger.warning("%d images are left out, as others differ in the suffix alone; rename them", alike)
            return files
        names = (name for name in os.listdir(path) if name.lower().endswith((*MAP_SUFFIXES, FINDINGS_SUFFIX)))
        return {name: name for name in names}

    def _to_id(self, file: str) -> tuple[str, str]:
        for suffix in _SUFFIXES:
            if file.lower().endswith(suffix):
                return file[: -len(suffix)], file[-len(suffix) :]
        return file, ""

    def _update_datastore_file(self, lock: bool = True) -> None:
        """Write the list of images and labels whole or not at all."""
        if lock:
            with FileLock(self._lock_file):
                return self._update_datastore_file(lock=False)
        path = Path(self._datastore_config_path)
        content = self._datastore.model_dump(exclude={"base_path"})
        write_text(path, json.dumps(content, indent=2, default=str))
        self._config_ts = path.stat().st_mtime
        return None

    def list_images(self) -> list[str]:
        """Return the ids of all images, after a look at the folder if it changed."""
        with self._guard:
            now = os.stat(self._datastore.image_path()).st_mtime_ns
            if self._seen_at != now:
                self._seen_at = now  # of before the look: a file that comes meanwhile is seen by the next one
                self.refresh()
            return list(self._datastore.objects)

    def get_labeled_images(self, label_tag: str | None = None, labels: Any = None) -> list[str]:
        """Return the ids of images that a person labelled."""
        return [i for i in self.list_images() if has_label(self, i)]

    def get_unlabeled_images(self, label_tag: str | None = None, labels: Any = None) -> list[str]:
        """Return the ids of images that no person labelled."""
        return [i for i in self.list_images() if not has_label(self, i)]

    def get_image_uri(self, image_id: str) -> str:
        """Return the file of an image.

        Raises:
            UnknownImageError: if there is none of this id.
        """
        self.list_images()
        uri: str = super().get_image_uri(image_id)
        if not uri or not os.path.isfile(uri):
            raise UnknownImageError("there is no image of this id in the store; /datastore/?output=all names them")
        return uri

    def add_image(self, image_id: str, image_filename: str, image_info: dict[str, Any]) -> str:
        """Take an uploaded radiograph.

        Raises:
            AfireError: for an id that is not a plain name or is taken, or a file that is not a radiograph.
        """
        if not re.fullmatch(r"\w[\w.+ -]{0,120}", image_id or ""):
            raise AfireError("an image id has letters, digits, blanks and . _ + -, and begins with a letter or digit")
        if image_id in self.list_images():
            raise AfireError("there is an image of this id; images are never overwritten. Give another id")
        open_image(image_filename, self.reader)
        added: str = super().add_image(image_id, image_filename, image_info)
        return added

    def remove_image(self, image_id: str) -> None:
        """Refuse: sources are only read.

        Raises:
            AfireError: always.
        """
        raise AfireError("images are not deleted here: sources are only read. Take the file out of the folder yourself")

    def save_label(self, image_id: str, label_filename: str, label_tag: str, label_info: dict[str, Any]) -> str:
        """Keep a label if it fits its image. If it cannot be kept whole, the label before it stays.

        Raises:
            UnknownImageError: if there is no such image.
            AfireError: for a mask of another size or with unknown classes, unreadable findings, or an invalid tag.
        """
        with self._guard:
            image = self.get_image_uri(image_id)
            if label_tag == FINAL and is_findings(label_filename):
                label_tag = FINDINGS  # under the same tag, findings and mask would replace each other
            if not re.fullmatch(r"[A-Za-z0-9_-]{1,32}", label_tag):
                raise AfireError("the tag of a label has letters, digits, _ and -")
            with tempfile.TemporaryDirectory(prefix="afire-label-") as folder:
                file = self._checked(image, label_filename, label_tag, Path(folder))
                return self._keep(image_id, str(file), label_tag, label_info)

    def _checked(self, image: str, label: str, tag: str, folder: Path) -> Path:
        """Return the file to keep: as it came, but bare bytes as NIfTI."""
        if is_findings(label):
            read_findings(label, self.findings)
            return Path(label)
        if tag == FINDINGS:
            raise AfireError('under the tag "findings" a JSON file of findings is kept; masks belong under "final"')
        if tag != FINAL:  # a model's map may be regions, a heatmap, …
            return Path(label)
        grid = open_image(image, self.reader).grid
        mask = read_mask(grid, label, self.classes)
        if not label.lower().endswith(".bin"):
            return Path(label)
        return write_map(folder / "label.nii.gz", mask, grid)

    def _keep(self, image_id: str, label: str, tag: str, info: dict[str, Any]) -> str:
        """Replace the label before in one step, as a training or another browser may be reading it."""
        folder, labels = Path(self._datastore.label_path(tag)), self._datastore.objects[image_id].labels
        before, suffix = labels.get(tag), self._to_id(os.path.basename(label))[1]
        target = folder / f"{image_id}{suffix}"
        with FileLock(self._lock_file):
            folder.mkdir(parents=True, exist_ok=True)
            handle, part = tempfile.mkstemp(dir=folder, suffix=".part")
            os.close(handle)
            try:
                shutil.copyfile(label, part)
                labels[tag] = DataModel(info={**info, "ts": int(time.time()), "name": target.name}, ext=suffix)
                self._update_datastore_file(lock=False)
                os.replace(part, target)
            except BaseException:
                labels.pop(tag, None)
                if before is not None:
                    labels[tag] = before
                Path(part).unlink(missing_ok=True)
                raise
        if before is not None and before.ext != suffix:
            (folder / f"{image_id}{before.ext}").unlink(missing_ok=True)  # else it would be found again after a restart
        return image_id

    def remove_label(self, label_id: str, label_tag: str) -> None:
        """Delete a label.

        Raises:
            NotFoundError: if there is none.
        """
        with self._guard:
            if not self.get_label_uri(label_id, label_tag):
                raise NotFoundError("there is no such label")
            super().remove_label(label_id, label_tag)
            self.refresh()

    def get_dataset_archive(self, limit_cases: int | None) -> str:
        """Pack images and labels.

        Raises:
            NotFoundError: if nothing is labelled.
        """
        if not self.datalist():
            raise NotFoundError("no image has a label under the tag final, so there is nothing to pack")
        packed: str = super().get_dataset_archive(limit_cases)
        return packed


class ArchiveStore(CarefulStore):
    """Radiographs of a DICOMweb archive, one image a series, fetched when they are first needed.

    The id of an image is its SeriesInstanceUID. If a series has several images, one is used, preferably a frontal
    chest. Labels are kept in the cache folder, and go to the archive as DICOM segmentations if ``to_archive`` is set.

    Args:
        web: the archive; with a short timeout and few repetitions, as a user waits for the answer.
        folder: cache folder; its content identifies patients, so it gets mode 0700.
        classes: value of each class in masks.
        findings: labels of the classifier.
        modalities: modalities of the series.
        to_archive: whether saved masks go to the archive.
        reader: options of `RadiographReader`.
    """

    LIST_FOR = 30.0
    """Seconds for which the archive's list of series is reused."""

    def __init__(
        self,
        web: DicomWeb,
        folder: str,
        classes: Mapping[str, int],
        findings: Sequence[str],
        modalities: Sequence[str],
        to_archive: bool,
        reader: Mapping[str, Any],
    ) -> None:
        self._web = web
        self._query = Query.of(modalities)
        self._to_archive = to_archive
        self._series: dict[str, SeriesReference] = {}
        self._listed = -self.LIST_FOR
        Path(folder).mkdir(mode=0o700, parents=True, exist_ok=True)
        super().__init__(folder, classes, findings, reader)

    def list_images(self) -> list[str]:
        """Return the SeriesInstanceUIDs that the archive has now."""
        with self._guard:
            if time.monotonic() - self._listed > self.LIST_FOR:
                self._series = {r.series: r for r in self._web.find_series(self._query)}
                self._listed = time.monotonic()
            super().list_images()  # finds labels that another process saved
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
                    self._listed = -self.LIST_FOR  # the series may be new
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
        """Store a saved mask in the archive as a DICOM segmentation; an empty mask makes none."""
        import pydicom

        from afire_monai.dicom_results import write_masks

        image = self.get_image_uri(image_id)
        mask = read_mask(open_image(image, self.reader).grid, label, {})
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
