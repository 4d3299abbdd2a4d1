"""The documentation: tutorials and notebooks run as they are written, and the site is built without a dead link."""

import json
import re
import shlex
from pathlib import Path

import pytest
import yaml

from afire_monai.cli.main import run

ROOT = Path(__file__).resolve().parents[1]
DOCS = ROOT / "docs"


def blocks(page, language):
    return re.findall(rf"```{language}\n(.*?)```", (DOCS / page).read_text(encoding="utf-8"), re.DOTALL)


@pytest.mark.slow
@pytest.mark.parametrize("page", ["researcher", "clinic", "radiologist"])
def test_a_tutorial_runs_from_its_first_command_to_its_last(page, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    commands = [line for block in blocks(f"tutorials/{page}.md", "bash") for line in block.splitlines()]
    assert commands
    for command in commands:
        words = shlex.split(command)
        assert (words[0], run(words[1:])) == ("afire", 0), command
    for block in blocks(f"tutorials/{page}.md", "python"):
        exec(compile(block, page, "exec"), {})


def test_the_servers_options_in_the_tutorial_are_those_of_the_script():
    script = (ROOT / "scripts/label_server.sh").read_text(encoding="utf-8")
    shown = re.findall(r"--[a-z-]+", "".join(blocks("tutorials/radiologist.md", "text")))
    known = script + (DOCS / "label.md").read_text(encoding="utf-8")
    assert shown
    assert [option for option in shown if f"{option} " not in known] == []


@pytest.mark.slow
@pytest.mark.parametrize("name", ["pytorch_loop", "monai"])
def test_a_notebook_runs_from_top_to_bottom(name, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    cells = json.loads((DOCS / f"notebooks/{name}.ipynb").read_text(encoding="utf-8"))["cells"]
    code = ["".join(cell["source"]) for cell in cells if cell["cell_type"] == "code"]
    scope = {}
    for number, text in enumerate(code):
        exec(compile(text, f"{name}, cell {number}", "exec"), scope)
    if name == "pytorch_loop":
        assert 0.5 < scope["auroc"] <= 1
    else:
        assert tuple(scope["logits"].shape) == (len(scope["batch"]), len(scope["network"].labels))


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    commands = pytest.importorskip("mkdocs.commands.build")
    from mkdocs.config import load_config

    folder = tmp_path_factory.mktemp("site")
    config = load_config(str(ROOT / "mkdocs.yml"), site_dir=str(folder), strict=True)
    commands.build(config)  # raises for a link or an anchor that leads nowhere
    return folder


def test_the_site_has_a_page_for_each_of_the_docs_and_loads_nothing_from_elsewhere(site):
    pages = {path.relative_to(DOCS).with_suffix(".html") for path in DOCS.rglob("*.md")}
    pages -= {path for path in pages if path.parts[0] == "gpu"}
    assert [page for page in pages if not (site / page).is_file()] == []
    elsewhere = r'"(?:https?:)?//'
    loaded = (
        rf'<(?:script|img|iframe)[^>]*\ssrc={elsewhere}|<link[^>]*rel="(?:stylesheet|preconnect)"[^>]*href={elsewhere}'
    )
    assert [page.name for page in site.rglob("*.html") if re.search(loaded, page.read_text(encoding="utf-8"))] == []


def test_every_plain_setting_of_every_config_is_in_the_table_of_settings(site):
    text = (site / "settings.html").read_text(encoding="utf-8")
    for path in (ROOT / "bundle/configs").glob("*.yaml"):
        content = yaml.safe_load(path.read_text(encoding="utf-8"))
        plain = [
            k for k, v in content.items() if isinstance(v, str | int | float) and not str(v).startswith(("$", "@"))
        ]
        missing = [key for key in plain if f"<code>{key}</code>" not in text]
        assert missing == [], path.name
