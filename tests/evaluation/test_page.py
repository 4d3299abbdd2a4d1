from __future__ import annotations

import html
import json
import re
import shutil
import subprocess
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from afire_monai.evaluation.evaluate import run_evaluation
from afire_monai.evaluation.page import verdicts, worst_cases
from afire_monai.evaluation.page_tables import facts, interval

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser")
QUIET = [
    "--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run",
    "--disable-background-networking", "--disable-component-update", "--disable-sync",
]  # fmt: skip


def browse(page: Path, profile: Path, *arguments: str) -> str:
    assert CHROMIUM is not None
    command = [CHROMIUM, *QUIET, f"--user-data-dir={profile}", *arguments, page.as_uri()]
    return subprocess.run(command, check=True, capture_output=True, timeout=120).stdout.decode()


def written(small, out, **options):
    a, b = small.predictions("a"), small.predictions("b", seed=1, signal=0.1)
    results = run_evaluation(a, small.path, out=out, compare=b, repeats=100, **options)
    return results, out / "evaluation.html"


def test_the_page_needs_nothing_else(small, tmp_path):
    text = written(small, tmp_path / "out")[1].read_text()
    assert not re.search(r"<script|<link|https?://|src='(?!data:)", text)
    assert "Research use only: not a medical device" in text


def test_without_pictures_no_radiograph_is_on_the_page(small, tmp_path):
    results, page = written(small, tmp_path / "out", pictures=False)
    assert "worst cases" not in page.read_text()
    assert "worst cases of Mass" in written(small, tmp_path / "more")[1].read_text()
    assert results["labels"]["labels"][0]["confusion"]["fp"] > 0


def test_boxes_that_cannot_be_are_not_drawn_where_there_is_no_heatmap_to_judge(small, tmp_path):
    content = json.loads(small.path.read_text())
    content["test"] = [{**item, "boxes": [["a"], [1, 2, 3, "Mass"]]} for item in content["test"]]
    small.path.write_text(json.dumps(content))
    folder = small.predictions()
    shutil.rmtree(folder / "heatmaps")
    run_evaluation(folder, small.path, out=tmp_path / "out", repeats=100)
    assert "worst cases of Mass" in (tmp_path / "out/evaluation.html").read_text()


def test_names_in_a_data_list_cannot_become_markup(small, tmp_path):
    small.path.write_text(small.path.read_text().replace('"toy"', '"<script>alert(1)</script>"'))
    text = written(small, tmp_path / "out")[1].read_text()
    assert "<script>" not in text
    assert "&lt;script&gt;" in text


def test_worst_cases_are_the_furthest_on_the_wrong_side():
    targets = np.array([0, 0, 0, 1, 1, 1, np.nan, 0])
    scores = np.array([0.9, 0.6, 0.1, 0.2, 0.8, 0.05, 0.99, np.nan])
    high, low = worst_cases(targets, scores, 0.5)
    assert (high.tolist(), low.tolist()) == ([0, 1], [5, 3])
    high, low = worst_cases(np.zeros(20), np.arange(20.0), 0)
    assert (high.tolist(), low.tolist()) == ([19, 18, 17, 16], [])


@pytest.mark.parametrize(
    ("low", "high", "kind", "more"),
    [(0.6, 0.8, "good", ""), (0.4, 0.6, "bad", " Chance is not excluded."), (0.1, 0.4, "bad", " This is below chance."),
     (None, None, "note", "")],
)  # fmt: skip
def test_area_is_compared_with_chance(low, high, kind, more):
    area = {"value": 0.3, "low": low, "high": high}
    results = {"labels": {"macro": {"auroc": area}, "macro_over": ["Mass"]}, "comparison": None, "anomaly": None}
    assert verdicts({**results, "heatmaps": None}) == [(kind, f"Mass: AUROC {interval(area)}.{more}")]


def test_intervals_in_words():
    assert interval({"value": 0.81234, "low": 0.7, "high": 0.9}) == "0.812 (0.700 to 0.900)"
    assert interval({"value": 0.1, "low": -0.2, "high": 0.4}, 2, signed=True) == "+0.10 (-0.20 to +0.40)"
    assert interval({"value": 0.5, "low": None, "high": None}) == "0.500 (no interval)"
    assert interval({"value": None, "low": None, "high": None}) == interval(None) == "–"


def test_paths_of_the_machine_are_no_facts_for_the_page():
    settings = {"uncertain": "ignore", "repeats": 1, "seed": 0}
    model = {
        "encoder": "ViT-Ti/6",
        "size": 128,
        "a": "/home/x",
        "b": "runs/x/models",
        "c": "C:\\x",
        "d": "~/x",
        "e": [1],
    }
    named = {"name": "n", "section": "test", "sha256": "s"}
    rows = facts({"settings": settings, "datalist": named, "model": model, "compared_with": None})
    assert rows[4:] == [["model: encoder", "ViT-Ti/6"], ["model: size", "128"]]


@pytest.mark.skipif(CHROMIUM is None, reason="no chromium")
def test_a_browser_shows_the_whole_page(small, tmp_path):
    results, page = written(small, tmp_path / "out")
    shown = html.unescape(browse(page, tmp_path / "profile", "--dump-dom")).replace("\u00a0", " ")
    for title in (
        "Evaluation: toy", "Findings", "At the threshold", "Comparison", "Groups", "Anomaly score", "Masks", "Heatmaps",
        "Each finding", "What was run", "chance: centre of the picture", "chance: mean lesion of other patients",
        "not judged: no positives among 89 cases", results["datalist"]["sha256"],
    ):  # fmt: skip
        assert title in shown, title
    for figures in (results["labels"]["labels"][0]["figures"], results["labels"]["macro"]):
        assert interval(figures["auroc"]) in shown
    assert interval(results["comparison"]["macro"]["auroc"], signed=True) in shown
    assert interval(results["masks"]["classes"]["foreground"]["dice"]) in shown
    assert shown.count("<img") == len(re.findall(r"src=.data:image/(?:png|jpeg);base64,", shown)) == 6
    picture = tmp_path / "page.png"
    browse(page, tmp_path / "profile", f"--screenshot={picture}", "--window-size=1060,2400")
    pixels = np.asarray(Image.open(picture).convert("L"))
    inked = (pixels < 128).mean(1)
    assert inked.mean() > 0.01
    # something is drawn over most of the height, not only at the top
    assert all(part.max() > 0 for part in np.array_split(inked, 12))
