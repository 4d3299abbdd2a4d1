"""The page for hospitals says what there is."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import pytest

from afire_monai.cli import main as cli
from afire_monai.cli.arguments import parse
from afire_monai.cli.fronts import Command

ROOT = Path(__file__).resolve().parents[2]
PAGE = (ROOT / "docs" / "hospital.md").read_text(encoding="utf-8")


def commands() -> list[str]:
    lines = "".join(re.findall(r"```bash\n(.*?)```", PAGE, re.DOTALL)).replace("\\\n", " ").splitlines()
    return [line for line in lines if line.startswith("afire ")]


@pytest.mark.parametrize("command", commands())
def test_every_command_is_understood(command):
    assert callable(parse(cli.COMMANDS, shlex.split(command)[1:]))


def test_every_option_and_file_that_is_named_exists():
    commands = [command for command in cli.COMMANDS.values() if not isinstance(command, dict)]
    known = {
        name for one in commands for name in (one if isinstance(one, Command) else Command(one)).signature.parameters
    }
    others = r"`(?:python benchmarks/|sudo |iptables |docker |curl |ssh )[^`]*`|^sudo (?!-u afire).*$"  # other programs
    page = re.sub(others, "", PAGE, flags=re.MULTILINE)
    for option in set(re.findall(r"--([a-z][a-z-]+)", page)) - {"config", "datalist", "output", "init"}:
        assert option.replace("-", "_") in known, option
    for name in set(re.findall(r"(?:docs|tests|scripts|bundle)/[\w./]+\w", PAGE)):
        assert (ROOT / name).exists(), name


def test_files_of_the_table_are_those_that_are_written():
    from afire_monai.hospital import datacard, identity, outputs, state
    from afire_monai.hospital.dicomweb import transfer as dicomweb_fetch

    names = {
        identity.KEY,
        identity.INDEX,
        identity.LEFT_OUT,
        identity.UNMATCHED,
        state.STATE,
        dicomweb_fetch.NOT_RETRIEVED,
    }
    names |= {outputs.IMAGES, outputs.DATALIST, outputs.SUMMARY, f"{dicomweb_fetch.RETRIEVED}/"}
    assert [name for name in names if name not in PAGE] == []
    assert datacard.FEWEST == 5
    assert "fewer than five patients" in PAGE
    assert all(f"`{tag}`" in PAGE for tag in outputs.ALLOWED)
