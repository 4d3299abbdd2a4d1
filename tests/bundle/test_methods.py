"""Every method, run from its config as users do: finished, killed and resumed, on two processes, and put to use."""

from __future__ import annotations

import json
import math
import re
import time
from pathlib import Path
from typing import Any

import pytest
import torch
import warm
from helpers import CONFIGS, run_bundle
from published_vits import facebook_names, random_vit
from safetensors.torch import load_file

from afire_monai.figures.run import Settings, draw_figures
from afire_monai.models.folder import load_encoder
from afire_monai.models.foreign import load_foreign
from afire_monai.phantom import write_phantom_dataset
from afire_monai.training.handlers import read_csv_log

COMMON: dict[str, Any] = {"use_mlflow": False, "epochs": 2, "batch_size": 4, "health_images": 8, "image_size": 64}
METHODS: dict[str, dict[str, Any]] = {
    "afire": {"prototype_dim": 16, "head_hidden": 32, "decoder_dim": 32, "decoder_depth": 1, "decoder_heads": 2},
    "peac": {"projector_dim": 32, "shift": 1},
    # a small rate: with batch norm of four pictures, rounding grows a hundredfold in a few of LARS's usual steps
    "mlvicx": {"projector_dim": 32, "dense_dim": 16, "lr": 1e-5, "final_lr": 1e-5},
    "mae": {"decoder_dim": 32, "decoder_depth": 1, "decoder_heads": 2},
    "dino": {"head_dim": 32, "head_hidden": 32, "local_size": 32, "local_views": 1},
}


@pytest.fixture(scope="module")
def phantoms(tmp_path_factory) -> Path:
    """A data list of 28 normal training pictures."""
    return write_phantom_dataset(tmp_path_factory.mktemp("phantoms"), normal=40, abnormal=4, size=72)


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """Where the runs are."""
    return tmp_path_factory.mktemp("runs")


def files_of(method: str, *more: str) -> list[str]:
    return [str(CONFIGS / name) for name in ("pretrain.yaml", f"method_{method}.yaml", *more)]


def settings_of(method: str, phantoms: Path, output: str) -> dict[str, Any]:
    return {**COMMON, **METHODS[method], "datalist": str(phantoms), "output_dir": output}


def weights(run: Path) -> dict[str, torch.Tensor]:
    return load_file(run / "models" / "encoder.safetensors")


@pytest.fixture(scope="module", params=METHODS)
def finished(request, phantoms, folder) -> tuple[str, Path]:
    """Name of a method and the folder of its short run."""
    method = request.param
    run_bundle(folder, files_of(method), device="cpu", **settings_of(method, phantoms, method))
    return method, folder / method


def test_run_leaves_an_encoder_a_log_and_a_page(finished):
    method, run = finished
    log = read_csv_log(run / "log.csv")
    description = json.loads((run / "models" / "encoder.json").read_text())
    assert len(log) == 2
    assert description["method_name"].lower() == method
    assert set(description["losses"]) <= set(log[0])
    assert not [name for row in log for name, value in row.items() if not math.isfinite(value)]
    assert {"feature_std_ratio", "effective_rank"} <= set(log[-1])
    assert (run / "checkpoints" / "best.pt").is_file()
    assert method in (run / "report.html").read_text(encoding="utf-8").lower()
    assert (run / "pictures" / "losses.png").is_file()
    assert (run / "pictures" / "restoration.png").is_file()
    tokens = load_encoder(run / "models")(torch.rand(2, 1, 64, 64))
    assert tokens.isfinite().all()


def test_encoder_serves_probes_classifier_segmenter_and_anomaly_maps(finished):
    from afire_monai.evaluation.probes import extract_features
    from afire_monai.networks.task_networks import ViTClassifier, ViTSegmenter
    from afire_monai.predictions.anomaly.build_reference import build_reference
    from afire_monai.predictions.anomaly.detector import load_detector

    _, run = finished
    encoder = load_encoder(run / "models")
    images = torch.rand(6, 1, 64, 64, generator=torch.Generator().manual_seed(0))
    assert extract_features(encoder, images, "mean").shape == (6, encoder.embed_dim)
    assert ViTClassifier(encoder, ["a", "b"])(images).shape == (6, 2)
    assert ViTSegmenter(encoder, ["lung"], width=4)(images).shape[0::2] == (6, 64)
    detector = load_detector(run / "models").eval()
    large = torch.rand(24, 1, *detector.canvas_size, generator=torch.Generator().manual_seed(0))
    reference = build_reference(detector, [large], [str(i) for i in range(24)], ("tokens",))
    judged = reference.judge(detector.features(large, ("tokens",)), (32, 32))
    assert judged.heat.shape == (24, 32, 32)


def test_figures_take_the_encoder(finished, phantoms, tmp_path):
    settings = Settings(section="training", images=8, clusters=3)
    page, numbers = draw_figures(finished[1] / "models", phantoms, tmp_path, settings)
    assert page.is_file()
    assert {"cells", "correspondence"} <= numbers.keys()
    assert {"tsne_cells.png", "correspondence.png", "segments.png"} <= {path.name for path in tmp_path.iterdir()}


@pytest.mark.parametrize("method", METHODS)
def test_config_gives_a_reason_beside_every_constant(method):
    text = Path(files_of(method)[1]).read_text(encoding="utf-8")
    settings = [line for line in text[: text.index("canvas:")].splitlines() if re.match(r"[a-z_]+: ", line)]
    assert len(settings) >= 5
    assert [line for line in settings if not re.search(r"\S\s+# \S", line)] == []


@pytest.mark.slow
def test_killed_run_goes_on_to_the_weights_of_the_finished_one(finished, phantoms, folder):
    method, run = finished
    settings = {**settings_of(method, phantoms, f"{method}_killed"), "checkpoint_every_iterations": 2}
    words = [word for key, value in settings.items() for word in (f"--{key}", str(value))]
    command = ["-m", "monai.bundle", "run", "--config_file", str(files_of(method)), *words]
    environment = {"OMP_NUM_THREADS": str(torch.get_num_threads())}
    killed = folder / f"{method}_killed"
    process = warm.Program(command, folder / f"{method}_killed.txt", folder, environment)
    until = time.monotonic() + 200
    while not list(killed.glob("checkpoints/checkpoint_*.pt")):
        assert time.monotonic() < until
        assert process.poll() is None, process.output()[-2000:]
        time.sleep(0.01)
    process.kill()
    process.wait()
    assert not (killed / "models" / "encoder.safetensors").exists()
    run_bundle(folder, files_of(method), device="cpu", resume=True, **settings)
    expected, got = weights(run), weights(killed)
    assert expected.keys() == got.keys()
    for name, value in expected.items():
        assert torch.equal(value, got[name]), name


@pytest.mark.slow
def test_two_processes_end_where_one_does(finished, phantoms, folder):
    method, run = finished
    settings = {**settings_of(method, phantoms, f"{method}_two"), "batch_size": COMMON["batch_size"] // 2}
    words = [word for key, value in settings.items() for word in (f"--{key}", str(value))]
    command = ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2", "-m"]
    command += ["monai.bundle", "run", "--config_file", str(files_of(method, "multi_gpu.yaml")), *words]
    warm.run(command, folder / f"{method}_two.txt", folder)
    one, two = (read_csv_log(path / "log.csv") for path in (run, folder / f"{method}_two"))
    names = json.loads((run / "models" / "encoder.json").read_text())["losses"]
    for row, other in zip(one, two, strict=True):
        for name in names:
            assert other[name] == pytest.approx(row[name], rel=2e-3, abs=1e-5), name


@pytest.mark.parametrize("method", ["afire", "mae", "dino"])
def test_pretraining_goes_on_from_weights_of_another_project_and_resumes(method, phantoms, tmp_path):
    vit = random_vit(scaled=True, registers=2, gated=True, positions=method != "mae")
    torch.save({"teacher": facebook_names(vit)}, tmp_path / "dinov2.pth")
    settings = {**settings_of(method, phantoms, "run"), "init": str(tmp_path / "dinov2.pth"), "patch_size": 8}
    run_bundle(tmp_path, files_of(method), device="cpu", **settings)
    encoder = load_encoder(tmp_path / "run" / "models")
    start = load_foreign(tmp_path / "dinov2.pth", 64).encoder
    assert encoder.config == start.config
    moved = (encoder.patch_embed.weight - start.patch_embed.weight).norm() / start.patch_embed.weight.norm()
    assert 0 < moved < 0.5
    run_bundle(tmp_path, files_of(method), device="cpu", **{**settings, "epochs": 3, "resume": True})
    assert len(read_csv_log(tmp_path / "run" / "log.csv")) == 3


def test_kinds_of_people_have_prototypes_of_their_own(phantoms, tmp_path, caplog):
    datalist = json.loads(phantoms.read_text())
    for number, item in enumerate(datalist["training"]):
        item["image"] = str(phantoms.parent / item["image"])
        item |= {"sex": "FM"[number % 2], "age": 30 if number % 3 else 60}
    datalist["training"][0]["image"] = "gone.png"
    whole = tmp_path / "list.json"
    whole.write_text(json.dumps({**datalist, "validation": [], "test": []}))
    settings = {**settings_of("afire", whole, str(tmp_path / "run")), "epochs": 1, "prototypes_by": "sex,age"}
    with caplog.at_level("INFO"):
        run_bundle(tmp_path, files_of("afire"), device="cpu", **settings)
    assert "prototypes by sex,age: 4 kinds of people" in caplog.text
    state = torch.load(tmp_path / "run" / "checkpoints" / "best.pt", weights_only=True)
    assert state["method"]["prototypes.prototypes"].shape[1] == 4
    assert state["method"]["prototypes.prototypes"].abs().sum((0, 2)).all()
    assert not [name for name in state["method"] if "populations" in name]
