"""Which hosts a process asks for: name resolution and connections are recorded, and nothing leaves the machine."""

from __future__ import annotations

import os
from pathlib import Path

RECORDER = """
import os, socket

def note(host):
    if str(host) not in ("localhost", "127.0.0.1", "::1", "None"):
        with open(os.environ["ASKED_FOR"], "a") as file:
            file.write(f"{host}\\n")
        raise OSError("no network here")

def resolver(real):
    def resolve(host, *rest, **more):
        note(host.decode() if isinstance(host, bytes) else host)
        return real(host, *rest, **more)
    return resolve

for name in ("getaddrinfo", "gethostbyname", "gethostbyname_ex"):
    setattr(socket, name, resolver(getattr(socket, name)))

class Socket(socket.socket):
    def connect(self, address):
        if self.family != socket.AF_UNIX:
            note(address[0])
        return super().connect(address)

socket.socket = Socket
"""
# these switch MLflow's telemetry off by themselves, so they would hide that nobody else does
QUIET = ("PYTEST_", "CI", "GITHUB_", "GITLAB_", "JENKINS_", "BUILDKITE", "TEAMCITY_", "MLFLOW_", "DO_NOT_TRACK")


def recording(folder: Path, *paths: str) -> dict[str, str]:
    """Return the environment of a process that writes what it asks for into a file of a folder.

    Args:
        folder: gets the recorder; is the process's home.
        paths: where it finds packages.
    """
    (folder / "recorder").mkdir(exist_ok=True)
    (folder / "recorder" / "sitecustomize.py").write_text(RECORDER)
    environment = {name: value for name, value in os.environ.items() if not name.startswith(QUIET)}
    return environment | {
        "PYTHONPATH": os.pathsep.join([str(folder / "recorder"), *paths]),
        "ASKED_FOR": str(folder / "asked.txt"),
        "HOME": str(folder),
        "OMP_NUM_THREADS": "1",
    }


def asked_for(folder: Path) -> list[str]:
    """Return the hosts that were asked for."""
    return (folder / "asked.txt").read_text().split() if (folder / "asked.txt").exists() else []
