from __future__ import annotations

import importlib
import re
import shlex
from pathlib import Path

import pytest
import yaml
from hospital_files import radiograph

from afire_monai.cli import main as cli
from afire_monai.cli.arguments import UsageError, parse

ROOT = Path(__file__).resolve().parents[1]
README = (ROOT / "README.md").read_text(encoding="utf-8")
CODE = re.findall(r"```bash\n(.*?)```", README, re.DOTALL)


def commands():
    """Each command of the README's code blocks, continued lines joined."""
    lines = "".join(CODE).replace("\\\n", " ").splitlines()
    return [line.split("  #")[0].strip() for line in lines if line.strip()]


def settings_table():
    table = README.split("<!-- settings")[1].split("\n\n")[0].splitlines()
    rows = [[cell.strip() for cell in line.split("|")[1:3]] for line in table if line.startswith("| `")]
    return [pair for keys, values in rows for pair in zip(keys.split(", "), values.split(", "), strict=True)]


@pytest.fixture(scope="module")
def configs():
    files = [ROOT / "bundle/configs" / name for name in ("pretrain.yaml", "method_afire.yaml")]
    return {k: v for file in files for k, v in yaml.safe_load(file.read_text(encoding="utf-8")).items()}


def test_every_setting_of_the_table_has_the_default_that_the_configs_give(configs):
    told = {key.strip("`"): value.strip("`") for key, value in settings_table()}
    # 1.0e-6 in YAML is a number, and 1e-06 in Python
    assert told == {key: str(configs[key]).lower() if configs[key] != "" else "" for key in told}


def test_every_setting_that_a_user_may_give_is_in_the_table(configs):
    plain = {k for k, v in configs.items() if isinstance(v, str | int | float) and not str(v).startswith(("$", "@"))}
    assert {key.strip("`") for key, _ in settings_table()} == plain - {"bundle_root"}


@pytest.mark.parametrize("command", [c for c in commands() if c.startswith("afire ")])
def test_every_command_of_afire_is_understood(command):
    assert callable(parse(cli.COMMANDS, shlex.split(command)[1:]))


def named_commands(path):
    """What stands between backticks and begins with `afire`, in a page or a message; several strings are joined."""
    text = re.sub(r'"\s*\n\s*f?"', "", path.read_text(encoding="utf-8"))
    return re.findall(r"`(afire [^`\n…|]+)`", re.sub(r"\{[^{}`]*\}", "X", text))


SAID = [*ROOT.glob("*.md"), *ROOT.glob("docs/**/*.md"), *ROOT.glob("bundle/**/*.md"), *ROOT.glob("afire_monai/**/*.py")]


@pytest.mark.parametrize(
    "path", [p for p in SAID if named_commands(p)], ids=lambda path: path.relative_to(ROOT).as_posix()
)
def test_every_command_that_a_page_or_a_message_names_exists_with_its_options(path):
    refused = []
    for command in named_commands(path):
        try:
            parse(cli.COMMANDS, shlex.split(command)[1:])
        except UsageError as error:
            refused.append(str(error))
    # what is named in passing need not be complete; the version is printed before commands are looked at
    assert [line for line in refused if "missing" not in line and "--version" not in line] == []


PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md")), *sorted((ROOT / "bundle/docs").glob("*.md"))]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_every_import_that_a_page_shows_works(page):
    shown = re.findall(r"from (afire_monai[\w.]*) import ([\w, ]+)", page.read_text(encoding="utf-8"))
    found = [(module, name.strip()) for module, names in shown for name in names.split(",")]
    assert [pair for pair in found if not hasattr(importlib.import_module(pair[0]), pair[1])] == []


def test_every_file_that_the_readme_names_is_there():
    named = re.findall(r"(?:bundle/configs|scripts)/[\w.]+", README) + re.findall(r"\]\((?!http)([^)]+)\)", README)
    assert [name for name in dict.fromkeys(named) if not (ROOT / name).exists()] == []


def test_the_readmes_first_lines_of_python_give_the_tokens_that_they_name(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    radiograph().save_as("chest.dcm", enforce_file_format=True)
    (code,) = re.findall(r"```python\n(.*?)```", README, re.DOTALL)
    names = {}
    exec(code, names)
    assert tuple(names["tokens"].shape) == (1, 197, 384)
