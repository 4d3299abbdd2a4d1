from __future__ import annotations

import base64
import errno
import io
import json
import os
import re
from pathlib import Path

import numpy as np
import pytest
import torch
from helpers import dataset_of, smooth_images, tiny_afire
from PIL import Image

from afire_monai.core.errors import AfireError
from afire_monai.training import finish as run
from afire_monai.training.handlers import write_panel
from afire_monai.training.report import pictures as report_pictures
from afire_monai.training.report.page import PANEL_ROWS, RunFiles, facts, verdicts, write_report

SETTINGS = """
run_name: first <run>
datalist: /home/somebody/secret/list.json
image_size: 32
patch_size: 8
shift: 1
encoder_preset: vit_ti6
epochs: 3
lr: 0.004
seed: 7
"""
HEALTH = {
    "feature_std_ratio": 0.5,
    "effective_rank": 9.0,
    "prototype_usage": 0.8,
    "position_gap": 0.6,
    "structure_real": 1.0,
}


def write_log(folder, rows):
    names = list(dict.fromkeys(name for row in rows for name in row))
    lines = [",".join(names)] + [",".join(str(row.get(name, "")) for name in names) for row in rows]
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "log.csv").write_text("\n".join(lines) + "\n")


@pytest.fixture
def run_dir(tmp_path):
    """A run's folder as training leaves it: settings, log, a checkpoint with a 5 x 5 bank, a panel of 2 images."""
    folder = tmp_path / "first"
    rows = [
        {"epoch": e, "lr": 0.1 / e, "structure": 2 / e, "restoration": 1 / e, "images_per_second": 10 * e, **HEALTH}
        for e in (1, 2, 3)
    ]
    write_log(folder, rows)
    (folder / "settings.yaml").write_text(SETTINGS)
    method = tiny_afire(shift=1)
    method.prototypes.prototypes.normal_(generator=torch.Generator().manual_seed(0))
    progress = {"images": 40, "max_epochs": 3, "global_batch": 16}
    state = {"method": method.state_dict(), "optimizer": {}, "random": {}, "progress": progress}
    (folder / "checkpoints").mkdir()
    torch.save(state, folder / "checkpoints" / "checkpoint_00000009.pt")
    uniforms = torch.rand(2, method.draws, generator=torch.Generator().manual_seed(0))
    write_panel(method.panels(smooth_images(2, (40, 40)), uniforms), folder / "panels" / "epoch_0003.png")
    return folder


@pytest.mark.parametrize(("epochs", "shown"), [(3, True), (9, False)])
def test_the_page_says_what_a_time_budget_decided_as_long_as_it_counts(run_dir, epochs, shown):
    seconds = {"before": 21.2, "step": 0.1387, "epoch_end": 0.78, "after": 5.6}
    budget = {"minutes": 4.0, "epochs": epochs, "steps_per_epoch": 14, "seconds": seconds}
    (run_dir / "time_budget.json").write_text(json.dumps(budget))
    words = f"4 minutes: {epochs} epochs of 14 steps (0.139 s a step, 0.8 s at an epoch's end, "
    words += "21 s before training and 6 s after it)"
    rows = dict(facts(RunFiles.read(run_dir)))
    assert rows.get("time budget") == (words if shown else None)


def embedded_pictures(page):
    data = re.findall(r"src='data:image/png;base64,([^']+)'", page)
    return [Image.open(io.BytesIO(base64.b64decode(d))) for d in data]


def test_the_page_holds_all_its_pictures_and_reaches_for_nothing_else(run_dir):
    page = write_report(run_dir).read_text(encoding="utf-8")
    # restoration, prototypes, losses, schedules, health
    assert len(embedded_pictures(page)) == 5
    assert not re.search(r"<script|https?://|<link|src='(?!data:)", page)


def test_the_page_tells_no_folder_of_the_machine(run_dir, tmp_path):
    page = write_report(run_dir).read_text(encoding="utf-8")
    assert "secret" not in page
    assert str(tmp_path) not in page
    assert "list.json" in page
    assert "load_encoder('first/models')" in page


def test_text_from_the_settings_is_escaped(run_dir):
    page = write_report(run_dir).read_text(encoding="utf-8")
    assert "first &lt;run&gt;" in page
    assert "<run>" not in page


def test_the_facts_are_those_of_the_run(run_dir):
    told = {row[0]: row[1] for row in facts(RunFiles.read(run_dir))}
    assert told["epochs"] == "3 of 3"
    assert told["training images"] == "40"
    assert told["image"] == "32 x 32 px, cells of 8 px"
    assert told["form"] == "grid-shifted (shift 1)"
    assert told["speed"].startswith("20.0 images/s")


def test_a_collapsed_run_is_called_that(run_dir):
    write_log(run_dir, [{"epoch": 1, **HEALTH, "feature_std_ratio": 0.001}])
    (kind, text), *_ = verdicts(RunFiles.read(run_dir))
    assert kind == "bad"
    assert "COLLAPSE" in text
    assert "COLLAPSE" in write_report(run_dir).read_text(encoding="utf-8")


@pytest.mark.parametrize(("gap", "shift", "kind"), [(0.6, 2, "good"), (0.0, 2, "bad"), (0.0, 0, "note")])
def test_the_position_shortcut_is_a_fault_only_where_it_can_be_avoided(run_dir, gap, shift, kind):
    write_log(run_dir, [{"epoch": 1, **HEALTH, "position_gap": gap}])
    (run_dir / "settings.yaml").write_text(SETTINGS.replace("shift: 1", f"shift: {shift}"))
    assert [k for k, text in verdicts(RunFiles.read(run_dir)) if "Position shortcut" in text] == [kind]


@pytest.mark.parametrize(("error", "said"), [(1.55, True), (0.8, True), (0.2, False)])
def test_a_restoration_that_was_not_learned_is_said(run_dir, error, said):
    rows = [{"epoch": 1, "structure": 1.0, **HEALTH, "validation_restoration": error}]
    write_log(run_dir, rows)
    found = [text for kind, text in verdicts(RunFiles.read(run_dir)) if kind == "bad" and "Restoration" in text]
    assert bool(found) == said


def test_a_run_of_which_only_the_log_is_left_still_gets_a_page(tmp_path):
    write_log(tmp_path / "bare", [{"epoch": 1, "restoration": 0.5}])
    page = write_report(tmp_path / "bare").read_text(encoding="utf-8")
    assert len(embedded_pictures(page)) == 1


def test_a_folder_without_a_run_is_refused_by_name(tmp_path):
    with pytest.raises(AfireError, match=r"has no log\.csv"):
        write_report(tmp_path)


def test_each_row_of_the_panel_has_its_name_and_place(run_dir):
    """The repaired twin equals the restoration in lesioned cells and the twin in all others."""
    panel = np.asarray(Image.open(run_dir / "panels" / "epoch_0003.png")).astype(int)
    assert panel.shape == (32 * len(PANEL_ROWS), 2 * 32)
    _, twin, mask, restored, repaired = np.split(panel, len(PANEL_ROWS))
    hidden = np.repeat(np.repeat(mask.reshape(4, 8, 8, 8).max((1, 3)) > 0, 8, 0), 8, 1)
    assert 0 < hidden.mean() < 1
    assert (repaired == np.where(hidden, restored, twin)).all()


def test_like_prototypes_get_like_colours():
    generator = torch.Generator().manual_seed(1)
    kinds = torch.randn(3, 16, generator=generator)
    which = torch.arange(30) % 3
    colours = report_pictures.prototype_colours(kinds[which] + 0.01 * torch.randn(30, 16, generator=generator))
    distance = np.linalg.norm(colours[:, None] - colours[None], axis=-1)
    # three kinds span two directions; the third colour is noise, so distances within a kind are not tiny
    same = which[:, None].numpy() == which[None].numpy()
    first_two = np.linalg.norm(colours[:, None, :2] - colours[None, :, :2], axis=-1)
    assert first_two[same].max() < 0.2
    assert first_two[~same].min() > 0.5
    assert distance.max() <= 3**0.5


def test_equal_prototypes_are_all_mid_grey():
    assert (report_pictures.prototype_colours(torch.ones(9, 4)) == 0.5).all()


def test_figures_that_were_only_carried_on_are_not_drawn_as_measured():
    log = [{"epoch": float(e), "x": v} for e, v in enumerate([1.0, 1.0, 2.0, 2.0, 2.0, 3.0, 3.0])]
    assert report_pictures.measured(log, "x") == [(0, 1), (2, 2), (5, 3), (6, 3)]


def test_the_mean_picture_is_the_mean_of_the_images(run_dir):
    images = torch.stack([torch.zeros(1, 40, 40), torch.ones(1, 40, 40), torch.full((1, 40, 40), 0.2)])
    run.write_run_report(run_dir, dataset_of(images))
    mean = np.asarray(Image.open(run_dir / "pictures" / "mean_image.png"))
    assert mean.shape == (40, 40)
    assert (mean == round(0.4 * 255)).all()


def test_a_full_disk_at_the_page_is_told_in_words_and_the_earlier_picture_kept(run_dir, monkeypatch):
    images = dataset_of(torch.zeros(3, 1, 40, 40))
    run.write_run_report(run_dir, images)
    before = (run_dir / "pictures" / "mean_image.png").read_bytes()

    def full(self: object, path: Path, **_: object) -> None:
        path.write_bytes(b"half")
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(Image.Image, "save", full)
    with pytest.raises(AfireError, match=f"trained and exported.*{run_dir.name}.*No space left.*afire report"):
        run.write_run_report(run_dir, images)
    assert (run_dir / "pictures" / "mean_image.png").read_bytes() == before
    with pytest.raises(OSError, match="No space left"):
        write_panel({"a": torch.ones(1, 1, 8, 8)}, run_dir / "panels" / "epoch_0003.png")
    Image.open(run_dir / "panels" / "epoch_0003.png").load()


def test_a_page_that_cannot_be_drawn_does_not_lose_the_run(tmp_path, caplog):
    run.write_run_report(tmp_path / "nothing", dataset_of(smooth_images(2, (8, 8))))
    assert "report could not be written" in caplog.text
    assert not (tmp_path / "nothing" / "report.html").exists()
