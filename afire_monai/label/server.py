"""MONAI Label's web server with this app's manners: errors in words, no waiting, DICOM segmentations."""

from __future__ import annotations

import contextlib
import functools
import inspect
import json
import logging
import os
import re
import tempfile
import threading
import time
from collections.abc import Callable, Coroutine, Iterator
from typing import Annotated, Any
from urllib.parse import urlsplit

from anyio import CapacityLimiter
from anyio.to_thread import run_sync
from fastapi import BackgroundTasks, Body, Depends, FastAPI, File, Form, UploadFile
from monailabel.app import app as monailabel_app
from monailabel.config import settings
from monailabel.endpoints import activelearning, datastore, infer, info, model, scoring, session, train
from monailabel.endpoints.user.auth import RBAC
from monailabel.interfaces.exception import ImageNotFoundException, LabelNotFoundException, MONAILabelException
from monailabel.interfaces.utils.app import app_instance
from monailabel.utils.async_tasks.utils import tasks
from monailabel.utils.others.generic import remove_file
from starlette.datastructures import Headers
from starlette.exceptions import HTTPException
from starlette.middleware.trustedhost import TrustedHostMiddleware
from starlette.requests import Request
from starlette.responses import FileResponse, JSONResponse, Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from afire_monai.core.errors import AfireError
from afire_monai.label.access import TokenRequired, token_of_environment
from afire_monai.label.inference_service import answer, asked_for, class_values
from afire_monai.label.messages import NotFoundError, problem
from afire_monai.label.work_page import WorkPage

logger = logging.getLogger(__name__)

Params = Annotated[dict[str, Any] | None, Body()]

STARTS_WITHIN = 60.0
"""Seconds after which a training that has not begun no longer keeps others from being asked for."""

_submitted = -STARTS_WITHIN
_submitting = threading.Lock()  # held from the check for a running training until another is submitted


class ErrorsInWords:
    """Answers whatever goes wrong with a status and words (``{"detail": …}``); the log gets no text of errors.

    Args:
        app: the rest of the server.
    """

    def __init__(self, app: ASGIApp) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass a request on, and catch its errors."""
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        if _foreign(scope):
            words = "requests from pages of other servers are refused"
            await JSONResponse({"detail": words}, 403)(scope, receive, send)
            return
        begun = False
        start = time.perf_counter()

        async def watch(message: Message) -> None:
            nonlocal begun
            begun = begun or message["type"] == "http.response.start"
            await send(message)

        try:
            await self.app(scope, receive, watch)
        except Exception as error:
            if begun:
                raise
            status, words = _told(error)
            logger.warning("%s %s: %d, %s", scope["method"], _route(scope["path"]), status, type(error).__name__)
            await JSONResponse({"detail": words}, status)(scope, receive, send)
        else:
            if re.match(r"/(infer|train|activelearning|datastore|scoring)\b", scope["path"]):
                seconds = time.perf_counter() - start
                logger.info("%s %s: %.0f ms", scope["method"], _route(scope["path"]), 1000 * seconds)


def _foreign(scope: Scope) -> bool:
    """Whether a page of another server sent a request: through the browser of someone who may see patients here."""
    headers = Headers(scope=scope)
    origin = headers.get("origin", "")
    return bool(origin) and urlsplit(origin).netloc != headers.get("host", "")


def _route(path: str) -> str:
    """Return the first two words of an address, which name no image."""
    return " ".join(re.findall(r"[a-z_]+", path)[:2])


def _told(error: Exception) -> tuple[int, str]:
    if isinstance(error, ImageNotFoundException | LabelNotFoundException):
        return 404, "there is no such image or label"
    if isinstance(error, MONAILabelException):
        return 400, str(error.msg)
    if isinstance(error, json.JSONDecodeError):
        return 400, "params: JSON is expected"
    if isinstance(error, HTTPException):
        return error.status_code, str(error.detail)
    return problem(error)


def _params(text: str) -> dict[str, Any]:
    found = json.loads(text) if text else {}
    if not isinstance(found, dict):
        raise AfireError('params: an object is expected, such as {"result_extension": ".nii.gz"}')
    # the image is named in the address and looked up in the store; here it could name any file of the machine
    return {key: value for key, value in found.items() if key not in ("image", "label", "model", "session")}


def run_inference(
    background_tasks: BackgroundTasks,
    model: str,
    image: str = "",
    session_id: str = "",
    params: Annotated[str, Form()] = "{}",
    file: Annotated[UploadFile | None, File()] = None,
    label: Annotated[UploadFile | None, File()] = None,
    output: infer.ResultType | None = None,
) -> Any:
    """Run a task on an image of the store, an upload or a session.

    The task runs in a thread of its own, whereas MONAI Label would make everybody wait. Ids that are not in the store
    are refused, whereas MONAI Label would open any path. This project writes ``output=dicom_seg``, as MONAI Label
    cannot do so for CR.
    """
    app = app_instance()
    asked = _params(params)
    if not file and not (session_id and app.sessions().get_session(session_id)):
        if not image:
            raise AfireError("no image: give its id, a file or a session that has not ended")
        app.datastore().get_image_uri(image)
    if output == infer.ResultType.image and model == "classification" and not asked_for(asked, "heatmap"):
        raise AfireError('classification gives a picture with {"heatmap": true} only; ask for output=json')
    with _clearing(background_tasks):
        if output == infer.ResultType.dicom_seg:
            return _dicom_seg(app, background_tasks, model, image, asked)
        return infer.run_inference(background_tasks, model, image, session_id, json.dumps(asked), file, label, output)


@contextlib.contextmanager
def _clearing(background: BackgroundTasks) -> Iterator[None]:
    """Delete the files that were to be deleted after the answer, such as uploads, also if there is only an error."""
    try:
        yield
    except BaseException:
        for task in background.tasks:
            task.func(*task.args)
        raise


def _dicom_seg(app: Any, background: BackgroundTasks, model: str, image: str, asked: dict[str, Any]) -> FileResponse:
    """Return the answer as a DICOM segmentation of the image's study: fractional for heatmaps, binary for outlines."""
    from afire_monai.dicom_results import ImagePrediction, write_heatmap, write_masks

    path = app.datastore().get_image_uri(image)
    reply = answer(model, app.shelf, path, asked)
    if reply.rows is None or model == "restoration":
        raise AfireError(f"{model} gives no heatmap and no outline, so there is no segmentation to write")
    facts = {"version": reply.params["model_version"]}
    folder = tempfile.mkdtemp(prefix="afire-seg-")
    background.add_task(remove_file, folder)
    if reply.rows.dtype.kind == "f":
        shown = reply.params.get("heatmap", {})
        kind, of = shown.get("kind", "anomaly"), shown.get("label", "")
        prediction = ImagePrediction(heatmap=reply.rows, heatmap_kind=kind, heatmap_label=of, model=facts)
        seg = write_heatmap(path, prediction, folder)
    else:
        classes = class_values(app.shelf) if model == "segmentation" else {"anomaly": 1}
        seg = write_masks(path, reply.rows, classes, folder, facts)
    return FileResponse(seg, media_type="application/dicom", filename=seg.name)


def run_training(model: str, params: Params = None, run_sync: bool = False, enqueue: bool = False) -> Any:
    """Train; a training that cannot work is refused in words before a process is started.

    MONAI Label sees a training only once its process runs, so a second click before that would train twice.
    """
    app_instance().check_training(model)
    _check_gpus(params)
    if run_sync:
        return train.run_model(model, params, run_sync, enqueue)
    global _submitted
    with _submitting:
        # one that could not be started at all stays submitted for ever
        starting = time.monotonic() - _submitted < STARTS_WITHIN
        if not enqueue and starting and any(task["status"] == "SUBMITTED" for task in tasks("train")):
            raise HTTPException(429, "a training is about to start; wait for its end, stop it, or set enqueue=true")
        _submitted = time.monotonic()
        return train.run_model(model, params, run_sync, enqueue)


def _check_gpus(params: Params) -> None:
    gpus = params.get("gpus") if isinstance(params, dict) else None
    if gpus and not isinstance(gpus, str):  # MONAI Label would fail in silence when it starts the process
        raise AfireError(f'gpus is {gpus}; "all" or a string of device numbers such as "0,1" is expected')


def run_all_training(params: Params = None, run_sync: bool = False) -> Any:
    """Train everything that has enough labels, as OHIF asks for."""
    app = app_instance()
    names, refused = [], []
    for of_model in (params or {}).values():
        _check_gpus(of_model)
    for name in app.info()["trainers"]:
        try:
            app.check_training(name)
            names.append(name)
        except AfireError as error:
            refused.append(str(error))
    if not names:
        raise AfireError("; ".join(refused) or "nothing can be trained here")
    return {name: train.run_model(name, (params or {}).get(name), run_sync, True) for name in names}


def next_sample(strategy: str, params: Params = None) -> Any:
    """Choose the next image, in a thread of its own."""
    return activelearning.sample(strategy, params)


def save_label(
    background_tasks: BackgroundTasks,
    image: str,
    label: Annotated[UploadFile, File()],
    params: Annotated[str, Form()] = "{}",
    tag: str = "final",
) -> Any:
    """Save a label, in a thread of its own."""
    kept = _params(params)
    with _clearing(background_tasks):
        return datastore.save_label(background_tasks, image, json.dumps(kept), tag, label)


_one_at_a_time = threading.Lock()
_archive_threads = CapacityLimiter(8)  # an archive that hangs must not take all threads of the server


async def show_archive(request: Request, path: str) -> Response:
    """Answer a browser's question to the archive, in threads of its own; see `ArchiveProxy`."""
    proxy = app_instance().archive_proxy
    if proxy is None:
        raise NotFoundError("this server has a folder of radiographs, and no archive")
    accept = request.headers.get("accept", "*/*")
    ask = functools.partial(proxy.answer, path, request.query_params.multi_items(), accept)
    body, kind = await run_sync(ask, limiter=_archive_threads)
    return Response(body, media_type=kind, headers={"Cache-Control": "no-store"})


def only_read(path: str) -> None:
    """Refuse to change anything in the archive on behalf of a browser.

    Raises:
        HTTPException: always.
    """
    raise HTTPException(405, "the archive is only read here")


def keep_model(model: str) -> None:
    """Refuse: MONAI Label would write over, or move away, the files of the model folders that were given.

    Raises:
        AfireError: always.
    """
    raise AfireError("models are neither replaced nor deleted over the network; the model folders are only read")


def _in_thread(endpoint: Callable[..., Coroutine[Any, Any, Any]]) -> Callable[..., Any]:
    """Return an answer of MONAI Label as a plain function, which FastAPI runs in a thread.

    MONAI Label's endpoints wait only for the disk and the archive, but do so in the event loop: while an archive hangs,
    nobody would be answered. They still run one after the other.
    """

    def call(**given: Any) -> Any:
        with _one_at_a_time:
            coroutine = endpoint(**given)
            try:
                coroutine.send(None)
            except StopIteration as done:
                return done.value
            coroutine.close()
            raise RuntimeError(f"{endpoint.__name__} waits in the event loop")

    call.__name__ = endpoint.__name__
    vars(call)["__signature__"] = inspect.signature(endpoint)
    return call


def _prepare(app: FastAPI) -> FastAPI:
    """Put this module's answers before MONAI Label's own, for the same users."""
    user, annotator = settings.MONAI_LABEL_AUTH_ROLE_USER, settings.MONAI_LABEL_AUTH_ROLE_ANNOTATOR
    admin = settings.MONAI_LABEL_AUTH_ROLE_ADMIN
    count, page = len(app.router.routes), WorkPage(app_instance)
    for path, method, answering, role in (
        ("/infer/{model}", "POST", run_inference, user),
        ("/train/{model}", "POST", run_training, admin),
        ("/train/", "POST", run_all_training, admin),
        ("/activelearning/{strategy}", "POST", next_sample, user),
        ("/datastore/label", "PUT", save_label, annotator),
        ("/proxy/dicom/{path:path}", "GET", show_archive, user),
        *(("/proxy/dicom/{path:path}", m, only_read, user) for m in ("POST", "PUT", "PATCH", "DELETE")),
        ("/work/", "GET", page.file, user),
        ("/work/{name}", "GET", page.file, user),
        ("/work/api/setup", "GET", page.setup, user),
        ("/work/api/case", "GET", page.case, user),
        ("/work/api/pixels", "GET", page.pixels, user),
        ("/work/api/mask", "GET", page.mask, user),
        ("/work/api/version", "POST", page.use, admin),
        ("/model/{model}", "PUT", keep_model, annotator),
        ("/model/{model}", "DELETE", keep_model, annotator),
    ):
        app.add_api_route(path, answering, methods=[method], dependencies=[Depends(RBAC(role))])
    for module in (info, datastore, model, scoring, session, train):
        for route in module.router.routes:
            app.add_api_route(route.path, _in_thread(route.endpoint), methods=list(route.methods))
    app.router.routes[:] = [*app.router.routes[count:], *app.router.routes[:count]]
    app.add_middleware(ErrorsInWords)
    token = token_of_environment()
    if token is not None:
        app.add_middleware(TokenRequired, token=token)
    hosts = os.environ.get("AFIRE_LABEL_HOSTS", "127.0.0.1,localhost").split(",")
    app.add_middleware(TrustedHostMiddleware, allowed_hosts=hosts)
    return app


def _begin() -> None:
    """Open models and images now, so that their faults are reported in words instead of a traceback.

    Raises:
        SystemExit: if they cannot be used.
    """
    try:
        app_instance().datastore().list_images()
    except Exception as error:
        raise SystemExit(f"error: {_told(error)[1]}") from None


app = _prepare(monailabel_app)
_begin()
