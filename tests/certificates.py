"""Certificates of a made-up hospital's authority, for tests of servers on loopback."""

from __future__ import annotations

import shutil
import ssl
import subprocess
from pathlib import Path

import pytest


def make_certificates(folder: Path) -> Path:
    """Write ca.pem, and of its server (127.0.0.1), its client and a stranger NAME.pem and NAME.key; give the folder."""
    program = shutil.which("openssl")
    if program is None:
        pytest.skip("no openssl to make certificates with")
    folder.mkdir(parents=True, exist_ok=True)
    signed = ["-CA", f"{folder}/ca.pem", "-CAkey", f"{folder}/ca.key", "-addext", "basicConstraints=critical,CA:FALSE"]
    own_name = ["-addext", "subjectAltName=IP:127.0.0.1"]
    for name, more in (("ca", []), ("server", [*signed, *own_name]), ("client", signed), ("stranger", own_name)):
        new = [program, "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "2", "-subj", f"/CN=test {name}"]
        files = ["-keyout", f"{folder}/{name}.key", "-out", f"{folder}/{name}.pem"]
        subprocess.run([*new, *more, *files], check=True, capture_output=True)
    return folder


def asking_for_a_certificate(folder: Path) -> ssl.SSLContext:
    """What a server uses that lets in only clients with a certificate of the authority."""
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH, cafile=str(folder / "ca.pem"))
    context.verify_mode = ssl.CERT_REQUIRED
    context.load_cert_chain(folder / "server.pem", folder / "server.key")
    return context
