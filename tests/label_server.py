"""A real MONAI Label server on loopback, started and stopped as users do, for tests that ask it something."""

from __future__ import annotations

import contextlib
import json
import os
import socket
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
import pytest
import requests
from PIL import Image

ROOT = Path(__file__).resolve().parents[1]


@dataclass
class Server:
    """A server with its work folder, and the id of each phantom in its store."""

    url: str
    work: Path
    ids: dict[str, str]
    web: str = ""
    token: str = ""

    def __post_init__(self) -> None:
        self.http = requests.Session()
        self.http.trust_env = False
        self.http.headers["Authorization"] = f"Bearer {self.token}"

    def get(self, path: str, **query: Any) -> requests.Response:
        return self.http.get(self.url + path, params=query, timeout=120)

    def info(self) -> dict[str, Any]:
        answer = self.get("info/")
        assert answer.status_code == 200, answer.text
        return answer.json()

    def infer(self, task: str, image: str, output: str = "json", **params: Any) -> requests.Response:
        query = {"image": image, "output": output}
        body = {"params": (None, json.dumps(params))}
        return self.http.post(f"{self.url}infer/{task}", params=query, files=body, timeout=120)

    def map(self, task: str, image: str, folder: Path, suffix: str = ".nii.gz", **params: Any) -> np.ndarray:
        """The map of an answer as the radiograph's rows, read by nibabel and Pillow alone."""
        answer = self.infer(task, image, "image", result_extension=suffix, **params)
        assert answer.status_code == 200, answer.text
        (folder / f"map{suffix}").write_bytes(answer.content)
        if suffix == ".png":
            return np.asarray(Image.open(folder / "map.png"))
        stored = nibabel.load(folder / f"map{suffix}")
        assert (np.diag(stored.affine)[:2] < 0).all()  # columns to the left, rows to the back, as ITK places pictures
        return np.asarray(stored.dataobj)[:, :, 0].T

    def save(self, image: str, label: Path, tag: str = "final", **params: Any) -> requests.Response:
        body = {"label": (label.name, label.read_bytes()), "params": (None, json.dumps(params))}
        return self.http.put(f"{self.url}datastore/label", params={"image": image, "tag": tag}, files=body, timeout=120)

    def next(self, strategy: str) -> requests.Response:
        return self.http.post(f"{self.url}activelearning/{strategy}", json={}, timeout=120)

    def train(self, task: str, sync: bool = False, **params: Any) -> requests.Response:
        query = {"run_sync": sync}
        return self.http.post(f"{self.url}train/{task}", params=query, json=params, timeout=300)

    def log(self) -> str:
        return (self.work / "server.log").read_text(encoding="utf-8")


@contextlib.contextmanager
def running(
    studies: str, work: Path, models: Path | str, ids: dict[str, str], web: str = "", **options: str
) -> Iterator[Server]:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        port = taken.getsockname()[1]
    work.mkdir(mode=0o700)
    (work / "key").write_bytes(b"k" * 32)  # or chance would decide which patients are held back, of so few
    (work / "key").chmod(0o600)
    words = [word for key, value in options.items() for word in (f"--{key.replace('_', '-')}", value)]
    script = ["bash", str(ROOT / "scripts" / "label_server.sh")]
    start = [*script, "start", studies, "--model", str(models), "--work", str(work), "--port", str(port), *words]
    done = subprocess.run(start, capture_output=True, text=True, timeout=300, check=False)
    console = work / "console.log"
    assert done.returncode == 0, done.stderr + (console.read_text() if console.exists() else "")
    address, _, token = done.stdout.splitlines()[0].partition("?token=")
    assert address == f"http://127.0.0.1:{port}/"
    assert len(token) > 40
    assert all((work / name).stat().st_mode & 0o077 == 0 for name in ("address", "authorization"))
    group = int((work / "server.pid").read_text())
    try:
        yield Server(f"http://127.0.0.1:{port}/", work, ids, web, token)
    finally:
        subprocess.run([*script, "stop", "--work", str(work)], timeout=60, check=True)
        with pytest.raises(ProcessLookupError):
            os.killpg(group, 0)
