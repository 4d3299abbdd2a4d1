"""The examples of services: what they start is understood, and they are shut in as they say."""

from __future__ import annotations

import shlex
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

from afire_monai.cli.arguments import parse
from afire_monai.cli.main import COMMANDS

ROOT = Path(__file__).resolve().parents[1]
EXAMPLES = ROOT / "examples" / "service"
UNITS = ("afire-node", "afire-label")
ARCHIVE = "10.0.0.20"


def settings(name: str) -> dict[str, str]:
    """Settings of a unit's section Service; a setting that is there several times with its values in a line each."""
    text = (EXAMPLES / f"{name}.service").read_text().replace("\\\n", " ")
    section = text.split("[Service]")[1].split("[Install]")[0]
    found: dict[str, str] = {}
    for line in section.splitlines():
        key, equals, value = line.partition("=")
        if equals and not line.startswith("#"):
            found[key] = f"{found[key]}\n{value}" if key in found else value
    return found


def service(name: str) -> dict[str, Any]:
    return yaml.safe_load((EXAMPLES / "compose.yaml").read_text())["services"][name]


def understood_by_the_label_server(words: list[str], folder: Path) -> None:
    """Let the script read the options; it ends at the port, which comes after them."""
    for number, word in enumerate(words):
        if word in ("--ca", "--tls-cert", "--tls-key"):
            words[number + 1] = str(folder / "file")
    (folder / "file").touch()
    command = ["bash", str(ROOT / "scripts" / "label_server.sh"), *words, "--work", str(folder / "work"), "--port", "x"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.stderr == "afire: --port x: a number is expected\n"


def tool() -> str:
    program = shutil.which("systemd-analyze")
    if program is None:
        pytest.skip("no systemd-analyze")
    return program


@pytest.mark.parametrize("name", UNITS)
def test_units_are_what_systemd_takes(name, tmp_path):
    text = (EXAMPLES / f"{name}.service").read_text().replace("/opt/afire/bin/afire", sys.executable)
    (tmp_path / f"{name}.service").write_text(text)
    done = subprocess.run([tool(), "verify", str(tmp_path / f"{name}.service")], capture_output=True, text=True)
    assert (done.returncode, [line for line in done.stderr.splitlines() if name in line]) == (0, [])


@pytest.mark.parametrize("name", UNITS)
def test_units_are_shut_in(name):
    found = settings(name)
    wanted = {
        "User": "afire",
        "UMask": "0077",
        "Restart": "always",
        "ProtectSystem": "strict",
        "ProtectHome": "yes",
        "NoNewPrivileges": "yes",
        "CapabilityBoundingSet": "",
        "StateDirectoryMode": "0700",
        "IPAddressDeny": "any",
    }
    assert {key: found.get(key) for key in wanted} == wanted
    allowed = found["IPAddressAllow"].split()
    assert ARCHIVE in allowed
    assert not {"any", "0.0.0.0/0", "::/0"} & set(allowed)
    command = [tool(), "security", "--offline=true", "--threshold=20", str(EXAMPLES / f"{name}.service")]
    assert subprocess.run(command, capture_output=True, check=False).returncode == 0  # exposure of 2 of 10 at most


def test_commands_of_the_units_are_understood(tmp_path):
    node = settings("afire-node")["ExecStart"]
    assert ARCHIVE in node
    program, *words = shlex.split(node)
    assert Path(program).name == "afire"
    assert callable(parse(COMMANDS, words))
    label = shlex.split(settings("afire-label")["ExecStart"])
    assert label[:2] == ["/bin/bash", "/opt/afire-monai/scripts/label_server.sh"]
    understood_by_the_label_server(label[2:], tmp_path)


def test_containers_are_shut_in_and_their_commands_understood(tmp_path):
    for name in ("node", "label"):
        found = service(name)
        assert found["read_only"] is True
        assert found["user"].split(":")[0] not in ("0", "root")
        assert found["cap_drop"] == ["ALL"]
        assert found["security_opt"] == ["no-new-privileges:true"]
        assert found["restart"] == "unless-stopped"
        assert [volume for volume in found["volumes"] if not volume.endswith(":ro")] == [
            {"node": "/var/lib/afire-node:/state", "label": "/var/lib/afire-label:/work"}[name]
        ]
    assert callable(parse(COMMANDS, service("node")["command"]))
    understood_by_the_label_server(service("label")["command"], tmp_path)
    stages = [line.split()[-1] for line in (ROOT / "Dockerfile").read_text().splitlines() if line.startswith("FROM")]
    assert service("label")["build"]["target"] in stages
