"""The bundle's configs as users run them, only smaller and in this process."""

from __future__ import annotations

import csv
import json
import re
import shutil
import sys
from pathlib import Path

import pytest
import torch
import yaml
from helpers import METADATA, cause_of, run_bundle
from hospital_files import write
from PIL import Image

from afire_monai.core.errors import CheckpointError
from afire_monai.models.folder import load_encoder
from afire_monai.phantom import write_phantom_dataset
from afire_monai.predictions.format import load_predictions
from afire_monai.training.checkpoint import load_checkpoint
from afire_monai.training.handlers import read_csv_log

CONFIGS = Path(__file__).resolve().parents[2] / "bundle" / "configs"
PRETRAIN = [str(CONFIGS / name) for name in ("pretrain.yaml", "method_afire.yaml")]
PUBLISHED = [*PRETRAIN, str(CONFIGS / "afire_published.yaml")]
INFERENCE = str(CONFIGS / "inference.yaml")
TINY = {
    **{"use_mlflow": False, "epochs": 2, "batch_size": 4, "health_images": 8, "device": "cpu"},
    **{"prototype_dim": 32, "head_hidden": 64, "decoder_dim": 32, "decoder_depth": 1, "decoder_heads": 2},
}
SMALL = {**TINY, "image_size": 48, "epochs": 1}


@pytest.fixture(scope="module")
def phantoms(tmp_path_factory) -> Path:
    """A data list of 28 normal training pictures."""
    return write_phantom_dataset(tmp_path_factory.mktemp("phantoms"), normal=40, abnormal=4, size=64)


@pytest.fixture(scope="module")
def foreign(tmp_path_factory) -> Path:
    """A working directory that has nothing to do with the bundle."""
    return tmp_path_factory.mktemp("elsewhere")


@pytest.fixture(scope="module")
def trained(phantoms, foreign) -> Path:
    """The folder of a short run of the default (grid-shifted) form at the default size."""
    run_bundle(foreign, PRETRAIN, datalist=str(phantoms), output_dir="out", lr=0.05, **TINY)
    return foreign / "out"


# pre-training ---------------------------------------------------------------------------------------------------------


def test_run_from_a_foreign_folder_leaves_its_results_there(trained):
    files = {str(path.relative_to(trained)) for path in trained.rglob("*") if path.is_file()}
    assert {
        "log.csv",
        "settings.yaml",
        "panels/epoch_0002.png",
        "checkpoints/checkpoint_00000014.pt",
        "checkpoints/best.pt",
        "models/encoder.safetensors",
        "models/encoder.json",
        "models/restorer.safetensors",
        "models/restorer.json",
    } <= files
    assert not [name for name in files if name.endswith(".part") or "mlflow" in name]


def test_losses_fall(trained):
    first, second = read_csv_log(trained / "log.csv")
    assert second["loss"] < first["loss"]
    assert second["restoration"] < first["restoration"]


def test_settings_are_those_of_the_run_without_folders_of_the_machine(trained, phantoms):
    text = (trained / "settings.yaml").read_text(encoding="utf-8")
    settings = yaml.safe_load(text)
    assert (settings["epochs"], settings["lr"], settings["shift"]) == (2, 0.05, 2)
    assert "dataset_dir" not in settings
    assert str(phantoms.parent) not in text


def test_checkpoints_are_tensors_and_plain_values(trained):
    state = load_checkpoint(trained / "checkpoints" / "best.pt")
    assert state["method"]["prototypes.prototypes"].shape == (10 * 10, 32)
    assert state["method"]["student.head.weight"].shape[0] == 1  # one layer, shared by all cells


def test_exported_encoder_is_the_teacher_with_the_statistics_of_the_data(trained):
    encoder = load_encoder(trained / "models")
    state = load_checkpoint(trained / "checkpoints" / "checkpoint_00000014.pt")["method"]
    assert torch.equal(encoder.cls_token, state["teacher.encoder.cls_token"])
    assert encoder(torch.rand(2, 1, 128, 128)).shape == (2, 65, 192)
    assert 0.1 < encoder.config["mean"][0] < 0.9
    assert 0.05 < encoder.config["std"][0] < 0.5
    description = json.loads((trained / "models" / "encoder.json").read_text(encoding="utf-8"))
    assert (description["method_name"], description["epochs"]) == ("AFiRe", 2)
    assert re.fullmatch("[0-9a-f]{64}", description["data_sha256"])


def test_run_is_not_mixed_with_an_earlier_one_but_can_go_on(trained, phantoms, foreign, tmp_path):
    shutil.copytree(trained, tmp_path / "out")
    settings = {**TINY, "datalist": str(phantoms), "output_dir": str(tmp_path / "out"), "lr": 0.05}
    with pytest.raises((RuntimeError, ValueError)) as caught:
        run_bundle(foreign, PRETRAIN, **settings)
    cause = cause_of(caught.value)
    assert isinstance(cause, CheckpointError)
    assert "--resume true" in str(cause)
    run_bundle(foreign, PRETRAIN, **{**settings, "resume": True, "epochs": 3})
    rows = read_csv_log(tmp_path / "out" / "log.csv")
    assert [row["epoch"] for row in rows] == [1, 2, 3]
    assert rows[:2] == read_csv_log(trained / "log.csv")


def published(phantoms: Path, foreign: Path, name: str, **settings: object) -> Path:
    form = {"structure": "cross_entropy", "category_weight": 0}
    run_bundle(foreign, PUBLISHED, datalist=str(phantoms), output_dir=name, **{**SMALL, **form, **settings})
    return foreign / name


def weights(folder: Path) -> bytes:
    return (folder / "models" / "restorer.safetensors").read_bytes()


@pytest.fixture(scope="module")
def first(phantoms, foreign) -> Path:
    """The folder of a run of the published form."""
    return published(phantoms, foreign, "first")


def test_published_form_has_a_layer_and_a_prototype_per_cell(first):
    state = load_checkpoint(next((first / "checkpoints").glob("checkpoint_*.pt")))["method"]
    assert state["prototypes.prototypes"].shape == (9, 32)
    assert state["student.head.weight"].shape[0] == 9
    (row,) = read_csv_log(first / "log.csv")
    assert row["category"] == 0
    assert row["loss"] == pytest.approx(row["structure"] + row["restoration"], rel=1e-4)


def test_another_seed_gives_other_weights(first, phantoms, foreign):
    assert weights(first) != weights(published(phantoms, foreign, "other", seed=1))


def test_same_seed_gives_the_same_weights_also_while_mlflow_logs(first, phantoms, foreign):
    from mlflow import MlflowClient

    again = published(phantoms, foreign, "again", use_mlflow=True, run_name="mine")
    assert weights(first) == weights(again)
    client = MlflowClient(f"sqlite:///{again / 'mlflow.db'}")
    (run,) = client.search_runs([client.get_experiment_by_name("afire-pretraining").experiment_id])
    assert (run.info.run_name, run.info.status) == ("mine", "FINISHED")
    assert {"loss", "validation_restoration", "lr"} <= run.data.metrics.keys()
    assert (run.data.params["encoder_preset"], run.data.params["seed"]) == ("vit_ti6", "0")
    assert len(run.data.tags["data_sha256"]) == 64
    artifacts = {a.path for a in client.list_artifacts(run.info.run_id)}
    assert artifacts == {"settings.yaml", "panels", "models", "report.html"}


def test_unknown_setting_stops_the_run_and_names_the_nearest(phantoms, foreign):
    with pytest.raises((RuntimeError, ValueError)) as caught:
        run_bundle(foreign, PRETRAIN, datalist=str(phantoms), output_dir="none", batchsize=4)
    assert "unknown setting --batchsize" in str(cause_of(caught.value))
    assert "batch_size" in str(cause_of(caught.value))


def test_missing_data_list_is_told_with_the_way_out(foreign):
    with pytest.raises((RuntimeError, ValueError)) as caught:
        run_bundle(foreign, PRETRAIN, datalist="absent.json", output_dir="none", **SMALL)
    assert "no data list at 'absent.json'" in str(cause_of(caught.value))


# what MONAI looks for -------------------------------------------------------------------------------------------------


@pytest.fixture
def workflow(monkeypatch, foreign):
    from monai.bundle import ConfigWorkflow

    monkeypatch.chdir(foreign)
    monkeypatch.setattr(sys, "argv", ["monai.bundle"])
    monkeypatch.setattr(sys, "excepthook", sys.excepthook)

    def make(files: list[str] | str, kind: str, **settings: object):
        flow = ConfigWorkflow(files, METADATA, logging_file=False, workflow_type=kind, **settings)
        flow.initialize()
        return flow

    return make


def test_training_has_all_properties_that_monai_asks_for(workflow, phantoms, tmp_path):
    flow = workflow(PRETRAIN, "train", **{**SMALL, "datalist": str(phantoms), "output_dir": str(tmp_path)})
    assert flow.check_properties() == []
    assert flow.max_epochs == 1
    assert len(flow.train_dataset) == 28
    assert len(flow.train_dataset_data) == 28
    assert flow.version


def test_inference_has_all_properties_that_monai_asks_for(workflow, trained, phantoms, tmp_path):
    settings = {"model_dir": str(trained / "models"), "dataset_dir": str(phantoms.parent / "images"), "device": "cpu"}
    flow = workflow(INFERENCE, "infer", output_dir=str(tmp_path), **settings)
    assert flow.check_properties() == []
    assert flow.network_def.decoder.grid == (8, 8)


def test_network_fits_the_metadata(trained):
    from monai.bundle import verify_net_in_out

    settings = {"config_file": INFERENCE, "device": "cpu", "model_dir": str(trained / "models")}
    verify_net_in_out("network_def", METADATA, **settings)
    with pytest.raises(ValueError, match="output channel number"):
        verify_net_in_out(
            "network_def", METADATA, **settings, **{"_meta_#network_data_format#outputs#pred#num_channels": 3}
        )


# inference ------------------------------------------------------------------------------------------------------------


def test_inference_writes_a_set_for_each_picture_and_passes_over_a_broken_one_and_a_leg(
    trained, phantoms, foreign, caplog
):
    folder = foreign / "scans" / "below"
    folder.mkdir(parents=True)
    for picture in sorted((phantoms.parent / "images").iterdir())[:4]:
        shutil.copy(picture, folder)
    (folder / "p0002x.png").write_bytes(b"\x89PNG\r\n\x1a\nbroken")
    write(folder / "p0002y.dcm", BodyPartExamined="KNEE")
    run_bundle(
        foreign,
        INFERENCE,
        dataset_dir="scans",
        output_dir="results",
        model_dir=str(trained / "models"),
        batch_size=3,
        device="cpu",
    )
    with (foreign / "results" / "summary.csv").open(newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    places = [0, 1, 4, 5]  # among all six files, as for `afire predict`
    assert [row["name"] for row in rows] == ["p0001.png", "p0002.png", "p0003.png", "p0004.png"]
    assert load_predictions(foreign / "results").index.tolist() == places
    for place, row in zip(places, rows, strict=True):
        assert Image.open(foreign / "results" / f"restored/{place:05d}.png").size == (128, 128)
        assert int(row["index"]) == place
        assert 0 < float(row["anomaly_mean"]) < float(row["anomaly_max"]) <= 1
    assert "2 of 6 images cannot be used" in caplog.text


def test_inference_refuses_settings_that_it_does_not_have(trained, phantoms, foreign):
    with pytest.raises((RuntimeError, ValueError)) as caught:
        run_bundle(foreign, INFERENCE, dataset_dir=str(phantoms.parent), modeldir=str(trained), device="cpu")
    assert "unknown setting --modeldir" in str(cause_of(caught.value))


def test_inference_without_a_model_names_the_files_that_are_missing(foreign, phantoms):
    with pytest.raises((RuntimeError, ValueError)) as caught:
        run_bundle(foreign, INFERENCE, dataset_dir=str(phantoms.parent), model_dir="absent", device="cpu")
    assert re.search(r"absent.* must both be there", str(cause_of(caught.value)))


# the files themselves -------------------------------------------------------------------------------------------------


def load(name: str) -> dict:
    return yaml.safe_load((CONFIGS / name).read_text(encoding="utf-8"))


@pytest.mark.parametrize(
    "preset", ["afire_published.yaml", *sorted(path.name for path in CONFIGS.glob("preset_*.yaml"))]
)
def test_presets_change_only_settings_that_are_there(preset):
    known = load("pretrain.yaml").keys() | load("method_afire.yaml").keys()
    assert load(preset).keys() <= known


def test_methods_override_the_base_and_do_not_repeat_it():
    base, method = load("pretrain.yaml"), load("method_afire.yaml")
    assert {key for key in method if key in base} == {"run_name", "annotate", "stem"}
    assert not {"method", "canvas"} & base.keys()


def test_paper_preset_is_the_papers_plan():
    from monai.bundle import ConfigParser

    parser = ConfigParser(ConfigParser.load_config_files([*PRETRAIN, str(CONFIGS / "preset_paper.yaml")]))
    parser["device"] = "cpu"
    plan = parser.get_parsed_content("plan")
    assert (plan.lr, plan.final_lr, plan.clip, plan.freeze_last_layer_epochs) == (5e-4, 1e-6, 3.0, 1)
    assert plan.warmup * parser["epochs"] == pytest.approx(10)
    assert (plan.weight_decay, plan.final_weight_decay, plan.momentum) == (0.04, 0.4, 0.996)
    assert (parser["encoder_preset"], parser["image_size"], parser["patch_size"], parser["shift"]) == (
        "vit_b",
        224,
        16,
        0,
    )
    assert (parser["decoder_dim"], parser["decoder_depth"], parser["decoder_heads"]) == (512, 8, 16)
    assert (parser["prototype_dim"], parser["prototype_momentum"], parser["head_hidden"]) == (256, 0.75, 1024)


def test_paper_preset_has_the_published_form():
    published = load("afire_published.yaml")
    assert published.items() <= load("preset_paper.yaml").items()


def test_lesions_of_the_published_form_are_the_published_ones():
    from monai.bundle import ConfigParser

    from afire_monai.transforms import LesionSettings

    config = ConfigParser.load_config_files(PUBLISHED)
    assert ConfigParser(dict(config)).get_parsed_content("lesion_def").settings == LesionSettings()
    fainter = {**config, "max_lesions": 7, "lesion_peak": 0.25, "lesion_dark": 0.5, "lesion_elsewhere": 0.1}
    expected = LesionSettings(lesion_count=(1, 7), peak=0.25, dark_probability=0.5, elsewhere_probability=0.1)
    assert ConfigParser(fainter).get_parsed_content("lesion_def").settings == expected


@pytest.mark.parametrize(("name", "end"), [("pretrain.yaml", "# --- what is built"), ("method_afire.yaml", "canvas:")])
def test_every_constant_that_users_set_has_a_reason_beside_it(name, end):
    text = (CONFIGS / name).read_text(encoding="utf-8")
    settings = [line for line in text[: text.index(end)].splitlines() if re.match(r"[a-z_]+: (?!\"\$)", line)]
    assert len(settings) > 10
    assert [line for line in settings if not re.search(r"\S\s+# \S", line)] == []


def test_time_budget_decides_the_epochs_of_a_run_that_is_otherwise_the_same(phantoms, foreign, tmp_path, monkeypatch):
    from afire_monai.training import budget
    from afire_monai.training.budget import Costs

    monkeypatch.setattr(budget, "TIMED_SECONDS", 0.1)
    monkeypatch.setattr(Costs, "epochs", lambda *_: 2)
    given = {**SMALL, "datalist": str(phantoms)}
    run_bundle(foreign, PRETRAIN, **{**given, "output_dir": str(tmp_path / "budget"), "minutes": 30, "epochs": 50})
    run_bundle(foreign, PRETRAIN, **{**given, "output_dir": str(tmp_path / "plain"), "epochs": 2})
    assert weights(tmp_path / "budget") == weights(tmp_path / "plain")
    assert [row["epoch"] for row in read_csv_log(tmp_path / "budget" / "log.csv")] == [1, 2]
    assert yaml.safe_load((tmp_path / "budget" / "settings.yaml").read_text(encoding="utf-8"))["epochs"] == 2
    page = (tmp_path / "budget" / "report.html").read_text(encoding="utf-8")
    assert "30 minutes: 2 epochs of 7 steps" in page
    assert "minutes: " not in (tmp_path / "plain" / "report.html").read_text(encoding="utf-8")
    # a resumed run keeps what was decided on
    monkeypatch.setattr(Costs, "epochs", lambda *_: 5)
    run_bundle(
        foreign,
        PRETRAIN,
        **{**given, "output_dir": str(tmp_path / "budget"), "minutes": 30, "epochs": 50, "resume": True},
    )
    assert len(read_csv_log(tmp_path / "budget" / "log.csv")) == 2


@pytest.mark.parametrize("path", sorted(CONFIGS.glob("*.yaml")), ids=lambda path: path.name)
def test_expressions_use_only_modules_that_the_configs_import(path):
    base = "finetune_segmentation" if "segmentation" in path.name else "finetune_classification"
    behind = {"continue": base, "method": "pretrain", "preset": "pretrain", "multi": "pretrain"}.get(
        path.stem.split("_")[0]
    )
    text = path.read_text(encoding="utf-8") + (
        (CONFIGS / f"{behind}.yaml").read_text(encoding="utf-8") if behind else ""
    )
    imported = set(re.findall(r"\$from [\w.]+ import (\w+)|\$import (\w+)", text))
    known = {name for pair in imported for name in pair if name}
    expressions = re.findall(r"\"\$(?!from |import )([^\"]*)\"", path.read_text(encoding="utf-8"))
    used = {name for e in expressions for name in re.findall(r"(?<![\w@.#])([a-z_]+)\.[a-z_]+\(", e)}
    assert used <= known, used - known
