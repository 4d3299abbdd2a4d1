"""The page to work in (``/work/``): its files, and the answers that it needs besides MONAI Label's own."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from starlette.responses import FileResponse, Response

from afire_monai.core.errors import AfireError
from afire_monai.label.images import open_image
from afire_monai.label.label_files import has_label, label_file, read_findings, read_mask
from afire_monai.label.messages import NotFoundError
from afire_monai.label.versions import use_version, versions

PAGE = Path(__file__).with_name("page")
_KINDS = {".html": "text/html", ".css": "text/css", ".js": "text/javascript", ".svg": "image/svg+xml"}
_POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; connect-src 'self'; base-uri 'none'; "
    "form-action 'none'; frame-ancestors 'none'; require-trusted-types-for 'script'"
)
_SAFE = {"X-Content-Type-Options": "nosniff", "Referrer-Policy": "no-referrer"}
_PICTURE = {**_SAFE, "Cache-Control": "no-store"}  # patients' pictures are not left in the browser's cache


class WorkPage:
    """Answers the page's requests.

    Args:
        app: gives the `RadiographLabelApp`: its store, models and trainings; called at each request.
    """

    def __init__(self, app: Callable[[], Any]) -> None:
        self._app = app

    @property
    def app(self) -> Any:
        """The application in use."""
        return self._app()

    def file(self, name: str = "index.html") -> Response:
        """Return a file of the page, which may load nothing but other such files.

        Raises:
            NotFoundError: if there is none of this name.
        """
        if name not in {path.name for path in PAGE.iterdir() if path.suffix in _KINDS}:
            raise NotFoundError("the page has no such file")
        headers = {**_SAFE, "Content-Security-Policy": _POLICY, "Cache-Control": "no-cache"}
        return FileResponse(PAGE / name, media_type=_KINDS[Path(name).suffix], headers=headers)

    def setup(self) -> dict[str, Any]:
        """Return the tasks and labels of this server.

        They are ``findings`` and ``classes`` that can be labelled, the numbers of ``images`` and of ``labelled`` ones,
        and the ``versions`` of each trainable model.
        """
        labelling, store = self.app.labelling, self.app.datastore()
        images = store.list_images()
        return {
            "images": len(images),
            "labelled": sum(has_label(store, image) for image in images),
            "findings": list(labelling["classification"].names) if "classification" in labelling else [],
            "classes": labelling["segmentation"].classes if "segmentation" in labelling else {},
            "versions": {task: versions(self.app.workshop, task) for task in self.app.trainable},
        }

    def case(self, image: str) -> dict[str, Any]:
        """Return the saved labels of an image.

        Returns:
            ``findings`` (by name, or None), whether there is a ``mask``, ``version``, which changes whenever either is
            saved again, and ``problems``: reasons why saved findings cannot be read.

        Raises:
            UnknownImageError: if there is no such image.
        """
        store = self.app.datastore()
        store.get_image_uri(image)
        files = [label_file(store, image, findings) for findings in (True, False)]
        findings, problems = None, []
        try:
            findings = read_findings(files[0]) if files[0] else None
        except AfireError as error:
            problems.append(f"The saved findings cannot be shown: {error}.")
        version = [(stat.st_ino, stat.st_mtime_ns) for stat in map(os.stat, filter(None, files))]
        return {"findings": findings, "mask": bool(files[1]), "version": str(version), "problems": problems}

    def pixels(self, image: str) -> Response:
        """Return the radiograph as the models see it, at its own size.

        Two bytes a pixel, row by row, little endian, 0 to 65535, bright = dense; headers ``X-Rows`` and ``X-Columns``.

        Raises:
            UnknownImageError: if there is no such image.
            AfireError: if it cannot be read.
        """
        stored = open_image(self.app.datastore().get_image_uri(image), self.app.shelf.reader())
        values = np.round(stored.pixels[0].numpy() * 65535).clip(0, 65535).astype("<u2")
        return _bare(values)

    def mask(self, image: str) -> Response:
        """Return the saved mask of an image, whatever client drew it: a byte a pixel, row by row, 0 for background.

        Raises:
            UnknownImageError: if there is no such image.
            NotFoundError: if it has no mask.
            AfireError: if image or mask cannot be read.
        """
        store = self.app.datastore()
        path = store.get_image_uri(image)
        file = label_file(store, image, findings=False)
        if not file:
            raise NotFoundError("no mask is saved for this image")
        return _bare(read_mask(open_image(path, self.app.shelf.reader()).grid, file, {}))

    def use(self, wanted: dict[str, Any]) -> dict[str, Any]:
        """Put another model in use; see `use_version`. Returns `setup`.

        Args:
            wanted: ``task`` and ``run``.

        Raises:
            AfireError: if that model cannot be used.
        """
        task, run = wanted.get("task"), wanted.get("run")
        if not isinstance(task, str) or not isinstance(run, str):
            raise AfireError('an object such as {"task": "classification", "run": "0001"} is expected')
        use_version(self.app.workshop, task, run)
        return self.setup()


def _bare(values: np.ndarray) -> Response:
    size = {"X-Rows": str(values.shape[0]), "X-Columns": str(values.shape[1])}
    return Response(values.tobytes(), media_type="application/octet-stream", headers={**_PICTURE, **size})
