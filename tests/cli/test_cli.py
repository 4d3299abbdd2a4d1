from __future__ import annotations

import json
import subprocess
import sys

import numpy as np
import pytest
from PIL import Image

from afire_monai.cli import arguments
from afire_monai.cli import main as cli
from afire_monai.core.errors import AfireError


@pytest.fixture
def calls(monkeypatch):
    """Replace the commands by one of each kind of option that only notes how it was called."""
    seen = []

    def work(
        path: str,
        *,
        out: str = "x",
        epochs: int = 3,
        share: float = 0.5,
        fast: bool = False,
        group: str | None = "g",
        parts: tuple[float, ...] = (1.0,),
        source: tuple[str, ...] | None = None,
    ) -> int:
        """Work.

        Example: afire work PATH
        """  # fmt: skip
        seen.append((path, out, epochs, share, fast, group, parts, source))
        return 0

    monkeypatch.setattr(cli, "COMMANDS", {"work": work, "group": {"work-more": work}})
    return seen


def test_options_become_values_of_their_types(calls):
    words = "work 2024_11 --out=007 --epochs 5 --share 1e-2 --fast --group None --parts 0.8,0.2 --source a,b"
    assert cli.run(words.split()) == 0
    assert calls == [("2024_11", "007", 5, 0.01, True, None, (0.8, 0.2), ("a", "b"))]


@pytest.mark.parametrize("written", ["--fast", "--fast true", "--fast=True", "--fast TRUE", "--nofast", "--fast false"])
def test_a_switch_is_on_or_off_however_it_is_written(calls, written):
    assert cli.run(["work", "folder", *written.split()]) == 0
    assert calls[0][4] == ("no" not in written and "false" not in written)


def test_options_that_are_left_out_keep_their_defaults(calls):
    assert cli.run(["group", "work-more", "folder"]) == 0
    assert calls == [("folder", "x", 3, 0.5, False, "g", (1.0,), None)]


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ("work p --epoch 5", "unknown option --epoch; did you mean --epochs?"),
        ("wrok p", "unknown command wrok; did you mean work?"),
        ("work", "path is missing (`"),
        ("work --epochs 5", "path is missing (`"),
        ("work --fast true", "path is missing (`"),
        ("work --fast p", "path is missing: the switch --fast takes no value; write p before it"),
        ("work -f p", "path is missing: the switch -f takes no value; write p before it"),
        ("work p q", "unknown word q"),
        ("work p --epochs many", "--epochs must be a whole number of at least 0, got 'many'"),
        ("work p --epochs 1.5", "--epochs must be a whole number of at least 0, got '1.5'"),
        ("work p --epochs -1", "--epochs must be a whole number of at least 0, got '-1'"),
        ("work p --share much", "--share must be a number, got 'much'"),
        ("work p --parts a,b", "--parts must be numbers with commas between them, got 'a,b'"),
        ("work p --out", "--out needs a value"),
        ("work p --fast maybe", "--fast is a switch and takes no value but true or false, got 'maybe'"),
    ],
)
def test_a_wrong_command_line_is_one_clear_line_and_runs_nothing(calls, capsys, words, said):
    assert cli.run(words.split()) == 2
    error = capsys.readouterr().err
    assert said in error
    assert error.count("\n") == 1
    assert calls == []


def test_a_required_option_that_is_missing_is_named(capsys):
    assert cli.run(["datalist", "from-folder", "x"]) == 2
    assert "--out is missing" in capsys.readouterr().err


COMMANDS = [
    "demo", "check", "report", "import-release", "datalist from-csv", "datalist from-folder", "datalist merge",
    "datalist validate",
]  # fmt: skip


@pytest.mark.parametrize("command", COMMANDS)
def test_help_of_each_command_shows_an_example_of_it(command, capsys):
    assert cli.run([*command.split(), "--help"]) == 0
    shown = capsys.readouterr().out
    assert f"Example: afire {command}" in shown
    assert "FIRE_METADATA" not in shown


def test_help_wins_over_other_words_and_runs_nothing(calls, capsys):
    assert cli.run(["work", "p", "--epochs", "3", "--help"]) == 0
    assert "Example: afire work PATH" in capsys.readouterr().out
    assert calls == []


@pytest.mark.parametrize("words", [[], ["--help"], ["datalist"]])
def test_without_a_command_the_commands_are_listed(words, capsys):
    assert cli.run(words) == 0
    shown = capsys.readouterr().out
    assert all(name in shown for name in (["from-csv", "from-folder"] if words == ["datalist"] else cli.COMMANDS))


def test_a_user_error_behind_another_error_is_what_is_shown(monkeypatch, capsys):
    def fail() -> int:
        try:
            raise AfireError("list.json: no image; give one")
        except AfireError as error:
            raise RuntimeError("could not instantiate") from error

    monkeypatch.setattr(cli, "COMMANDS", {"fail": fail})
    monkeypatch.delenv("AFIRE_TRACEBACK", raising=False)
    assert cli.run(["fail"]) == 2
    assert capsys.readouterr().err == "afire: list.json: no image; give one\n"


def test_an_error_of_the_program_is_not_hidden(monkeypatch):
    def fail() -> int:
        raise RuntimeError("a bug")

    monkeypatch.setattr(cli, "COMMANDS", {"fail": fail})
    with pytest.raises(RuntimeError, match="a bug"):
        cli.run(["fail"])


def test_an_interrupt_gives_130_and_a_word(monkeypatch, capsys):
    def wait() -> int:
        raise KeyboardInterrupt

    monkeypatch.setattr(cli, "COMMANDS", {"wait": wait})
    assert cli.run(["wait"]) == 130
    assert "interrupted" in capsys.readouterr().err


def test_the_exit_status_reaches_the_process(monkeypatch):
    monkeypatch.setattr(cli, "COMMANDS", {"fail": lambda: 1})
    with pytest.raises(SystemExit) as stop:
        cli.main(["fail"])
    assert stop.value.code == 1


@pytest.mark.parametrize(
    ("kind", "text", "value"),
    [
        ("str", "True ", "True "),
        ("int | None", "none", None),
        ("tuple[float, ...]", " (0.8,0.1,0.1) ", (0.8, 0.1, 0.1)),
        ("Sequence[str] | None", "[a,b]", ("a", "b")),
        ("Sequence[str]", "Mass (large),Nodule (small)", ("Mass (large)", "Nodule (small)")),
        ("tuple[str, ...]", "epochs=20,labels=['a']", ("epochs=20", "labels=['a']")),
        ("tuple[str, ...]", "(1),runs (2)", ("(1)", "runs (2)")),
    ],
)
def test_texts_are_converted_by_the_type_as_written(kind, text, value):
    assert arguments.convert("x", text, kind) == value


def test_help_of_the_module_imports_nothing_heavy():
    code = (
        "import sys, runpy; sys.argv = ['afire', '--help']\n"
        "try: runpy.run_module('afire_monai', run_name='__main__')\n"
        "except SystemExit: pass\n"
        "print('heavy:', sorted({'torch', 'monai', 'numpy', 'mlflow', 'ignite', 'matplotlib'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert "import-release" in done.stdout
    assert "heavy: []" in done.stdout


def write_images(folder, count=4):
    folder.mkdir(parents=True)
    for i in range(count):
        pixels = np.random.default_rng(i).integers(0, 256, (16, 16), dtype=np.uint8)
        Image.fromarray(pixels).save(folder / f"person{i}_1.png")


def test_a_folder_becomes_a_list_that_passes_the_check(tmp_path, capsys):
    write_images(tmp_path / "images", 10)
    out = tmp_path / "mine.json"
    words = ["datalist", "from-folder", str(tmp_path / "images"), "--out", str(out), "--group-pattern", r"person(\d+)_"]
    assert cli.run([*words, "--fractions", "0.6,0.2,0.2"]) == 0
    content = json.loads(out.read_text())
    assert [len(content[s]) for s in ("training", "validation", "test")] == [6, 2, 2]
    assert sorted(int(item["group"]) for s in ("training", "validation", "test") for item in content[s]) == [*range(10)]
    assert cli.run(["datalist", "validate", str(out)]) == 0
    assert cli.run(["check", str(out), "--quiet"]) == 0
    assert "10 files: 10 readable, 0 refused" in capsys.readouterr().out


def test_a_csv_becomes_one_list_for_each_source(tmp_path, capsys):
    write_images(tmp_path / "images")
    lines = ["file,patient,labels,source"] + [f"images/person{i}_1.png,{i},Normal,{'ab'[i % 2]}" for i in range(4)]
    (tmp_path / "m.csv").write_text("\n".join(lines))
    words = ["datalist", "from-csv", str(tmp_path / "m.csv"), "--out", str(tmp_path / "lists"), "--by-source"]
    assert cli.run([*words, "--image-column", "file", "--group-column", "patient"]) == 0
    assert sorted(p.name for p in (tmp_path / "lists").iterdir()) == ["a.json", "b.json"]
    assert cli.run(words) == 2
    assert "no column 'path', 'group'" in capsys.readouterr().err


def test_lists_are_merged_into_one(tmp_path, capsys):
    for name in "ab":
        write_images(tmp_path / name, 5)
        out = ["--out", str(tmp_path / f"{name}.json"), "--fractions", "0.6,0.2,0.2"]
        # patients of the two folders are told apart by the folder's name
        assert cli.run(["datalist", "from-folder", str(tmp_path / name), *out, "--name", name]) == 0
        content = json.loads((tmp_path / f"{name}.json").read_text())
        for section in ("training", "validation", "test"):
            for item in content[section]:
                item["group"] = name + item["group"]
        (tmp_path / f"{name}.json").write_text(json.dumps(content))
    merged = tmp_path / "merged.json"
    assert cli.run(["datalist", "merge", *(str(tmp_path / f"{n}.json") for n in "ab"), "--out", str(merged)]) == 0
    assert [len(json.loads(merged.read_text())[s]) for s in ("training", "validation", "test")] == [6, 2, 2]


def test_check_exits_1_when_a_file_is_refused(tmp_path, capsys):
    write_images(tmp_path / "images")
    (tmp_path / "images" / "broken.png").write_bytes(b"\x89PNG\r\n\x1a\n")
    assert cli.run(["check", str(tmp_path / "images"), "--quiet"]) == 1
    assert "broken.png" in capsys.readouterr().out


def test_check_exits_1_when_a_list_has_a_patient_in_two_splits(tmp_path, capsys):
    write_images(tmp_path / "images")
    item = [{"image": f"images/person{i}_1.png", "group": "p"} for i in range(2)]
    (tmp_path / "l.json").write_text(json.dumps({"name": "l", "training": item[:1], "test": item[1:]}))
    assert cli.run(["check", str(tmp_path / "l.json"), "--quiet"]) == 1
    assert cli.run(["datalist", "validate", str(tmp_path / "l.json")]) == 1
    assert "patient" in capsys.readouterr().out


def test_import_release_hands_its_options_on(tmp_path, monkeypatch, capsys):
    released = pytest.importorskip("afire_monai.models.released")
    seen = {}

    def fake(path, output, **options):
        seen.update(path=path, output=output, **options)
        return released.ImportReport(files=[tmp_path / "encoder.safetensors"], unplaced=["args.x"], assumed=["heads"])

    monkeypatch.setattr(released, "import_released", fake)
    words = "import-release a.pth --output o --channels fold --part student --strict False --decoder-heads 4"
    assert cli.run(words.split()) == 0
    options = {"channels": "fold", "part": "student", "strict": False, "decoder_heads": 4}
    assert seen == {"path": "a.pth", "output": "o", **options}
    output = capsys.readouterr().out
    assert "without a place here: args.x" in output
    assert "assumed: heads" in output
