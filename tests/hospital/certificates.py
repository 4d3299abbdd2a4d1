"""Certificates of this machine, made anew for each test run."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest


def make_certificates(folder: Path, *names: str) -> Path:
    """Write NAME.pem and NAME.key of each name; give the folder."""
    program = shutil.which("openssl")
    if program is None:
        pytest.skip("no openssl to make certificates with")
    for name in names:
        command = [program, "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "2", "-subj", f"/CN={name}"]
        command += ["-addext", "subjectAltName=IP:127.0.0.1", "-keyout", f"{folder}/{name}.key"]
        subprocess.run([*command, "-out", f"{folder}/{name}.pem"], check=True, capture_output=True)
    return folder
