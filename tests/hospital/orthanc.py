"""An Orthanc of its own for tests: on loopback, on a free port, with a temporary store, gone afterwards."""

from __future__ import annotations

import contextlib
import json
import shutil
import socket
import subprocess
import time
import urllib.error
import urllib.request
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest

PLUGINS = ("/usr/share/orthanc/plugins/libOrthancDicomWeb.so", "/usr/lib/orthanc/libOrthancDicomWeb.so")
USER, PASSWORD = "afire-test", "ein Passwort: mit Ümlaut"


def orthanc_parts() -> tuple[str, str]:
    """Program and plugin; skips the test where they are not installed."""
    program = shutil.which("Orthanc") or shutil.which("Orthanc", path="/usr/sbin:/usr/local/sbin")
    plugin = next((p for p in PLUGINS if Path(p).exists()), None)
    if program is None or plugin is None:
        pytest.skip("no Orthanc with its DICOMweb plugin (Debian: apt install orthanc orthanc-dicomweb)")
    return program, plugin


def free_port() -> int:
    """A TCP port of loopback that nobody uses now."""
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        return int(taken.getsockname()[1])


@contextlib.contextmanager
def running_orthanc(folder: Path, password: bool = False, dimse: Mapping[str, Any] | None = None) -> Iterator[str]:
    """Start Orthanc, give the address of its DICOMweb, and stop it whatever happens.

    Args:
        folder: for the configuration, the store and the log.
        password: whether it asks for USER and PASSWORD.
        dimse: settings of its DICOM server, with ``DicomPort``; it is off without.
    """
    program, plugin = orthanc_parts()
    folder.mkdir(parents=True, exist_ok=True)
    port = free_port()
    config = {
        "Name": "test",
        "StorageDirectory": str(folder / "store"),
        "IndexDirectory": str(folder / "store"),
        "DicomServerEnabled": False,
        "HttpPort": port,
        "HttpBindAddresses": ["127.0.0.1"],
        "RemoteAccessAllowed": False,
        "AuthenticationEnabled": password,
        "RegisteredUsers": {USER: PASSWORD},
        "Plugins": [plugin],
        "DicomWeb": {"Enable": True, "Root": "/dicom-web/"},
        **({"DicomServerEnabled": True, **dimse} if dimse else {}),
    }
    (folder / "orthanc.json").write_text(json.dumps(config), encoding="utf-8")
    with (folder / "orthanc.log").open("wb") as log:
        process = subprocess.Popen([program, str(folder / "orthanc.json")], stdout=log, stderr=subprocess.STDOUT)
    try:
        _wait(process, port, folder / "orthanc.log")
        yield f"http://127.0.0.1:{port}/dicom-web"
    finally:
        process.terminate()
        try:
            process.wait(timeout=20)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def _wait(process: subprocess.Popen[bytes], port: int, log: Path) -> None:
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    for _ in range(300):
        if process.poll() is not None:
            pytest.fail(f"Orthanc ended by itself:\n{log.read_text(errors='replace')[-2000:]}")
        try:
            opener.open(f"http://127.0.0.1:{port}/system", timeout=5).close()
            return
        except urllib.error.HTTPError:  # it asks for a password, so it is there
            return
        except OSError:
            time.sleep(0.1)
    pytest.fail("Orthanc did not answer within half a minute")
