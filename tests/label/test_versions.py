"""Going back to an earlier model, and what the page is told of saved labels."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch
from label_phantoms import FolderStore, phantom, write_models, write_pngs
from PIL import Image

from afire_monai.core.errors import AfireError
from afire_monai.label.inference_service import ModelShelf
from afire_monai.label.messages import NotFoundError
from afire_monai.label.training import Trainable, Workshop
from afire_monai.label.versions import use_version, versions

TASK = "segmentation"


@pytest.fixture(scope="module")
def origin(tmp_path_factory) -> Path:
    """Folder with models and with one training, whose model was better and is in use."""
    tmp_path = tmp_path_factory.mktemp("versions")
    models, pngs = write_models(tmp_path / "models"), write_pngs(tmp_path / "pngs", 10)
    work, store = tmp_path / "work", FolderStore(pngs)
    work.mkdir()
    (work / "key").write_bytes(b"k" * 32)
    (work / "key").chmod(0o600)
    for number in range(10):
        Image.fromarray(phantom(number)[1]).save(tmp_path / f"{number}.png")
        store.labels[f"chest{number:02d}", "final"] = tmp_path / f"{number}.png"
    workshop = Workshop(work, ModelShelf(work / "models", [models], torch.device("cpu")))
    what = Trainable(TASK, ("right_lung",))
    assert workshop.train(what, store, {"max_epochs": 8, "lr": 0.05})["model"] == "replaced"
    return tmp_path


@pytest.fixture
def trained(origin, tmp_path) -> Workshop:
    for name in ("models", "work"):
        shutil.copytree(origin / name, tmp_path / name)
    return Workshop(
        tmp_path / "work", ModelShelf(tmp_path / "work" / "models", [tmp_path / "models"], torch.device("cpu"))
    )


def in_use(workshop: Workshop) -> list[str]:
    return [entry["run"] for entry in versions(workshop, TASK) if entry["in_use"]]


def test_the_model_of_the_start_can_be_used_again_and_left_again(trained, tmp_path):
    second = trained.shelf.get(TASK).version
    new, given = versions(trained, TASK)
    assert (new["run"], new["in_use"], new["model"]) == ("0001", True, "replaced")
    assert (new["training"] + new["validation"], new["made"][:2]) == (10, "20")
    assert given == {"run": "", "made": "", "in_use": False}
    use_version(trained, TASK, "")
    assert in_use(trained) == [""]
    at_start = ModelShelf(tmp_path / "none", [tmp_path / "models"], torch.device("cpu")).get(TASK).version
    assert trained.shelf.get(TASK).version == at_start != second
    use_version(trained, TASK, "0001")
    assert in_use(trained) == ["0001"]
    assert trained.shelf.get(TASK).version == second


def test_warnings_and_origin_of_a_model_come_back_with_it(trained):
    path = trained.shelf.trained / "segmenter.json"
    before = json.loads(path.read_text(encoding="utf-8"))
    use_version(trained, TASK, "")
    assert not path.exists()
    use_version(trained, TASK, "0001")
    assert json.loads(path.read_text(encoding="utf-8")) == before
    assert "warnings" in before


def test_an_unknown_run_changes_nothing(trained):
    for task, run in ((TASK, "0002"), (TASK, "../0001"), ("classification", "0001"), ("nonsense", "")):
        with pytest.raises(NotFoundError, match="there "):
            use_version(trained, task, run)
    assert in_use(trained) == ["0001"]


def test_models_are_not_changed_while_one_is_trained(trained):
    with trained.alone(), pytest.raises(AfireError, match="a training is under way"):
        use_version(trained, TASK, "")
    assert in_use(trained) == ["0001"]


def test_without_a_given_model_there_is_none_to_go_back_to(trained, tmp_path):
    for path in (tmp_path / "models").glob("segmenter.*"):
        path.unlink()
    assert [entry["run"] for entry in versions(trained, TASK)] == ["0001"]
    with pytest.raises(NotFoundError, match="no model of this run"):
        use_version(trained, TASK, "")
    assert Path(trained.shelf.trained / "segmenter.safetensors").is_file()


@pytest.mark.parametrize("harm", ["cut", "other network"])
def test_a_damaged_model_is_not_put_in_use(trained, tmp_path, harm):
    use_version(trained, TASK, "")
    before = trained.shelf.get(TASK).version
    weights = tmp_path / "work" / "runs" / "0001" / "models" / "segmenter.safetensors"
    if harm == "cut":
        weights.write_bytes(weights.read_bytes()[:2000])
    else:
        about = json.loads(weights.with_suffix(".json").read_text())
        about["segmenter"]["encoder"]["depth"] += 1
        weights.with_suffix(".json").write_text(json.dumps(about))
    with pytest.raises(AfireError, match="the present one stays in use") as refusal:
        use_version(trained, TASK, "0001")
    assert str(tmp_path) not in str(refusal.value)
    assert in_use(trained) == [""]
    fresh = ModelShelf(trained.shelf.trained, trained.shelf.given, torch.device("cpu"))
    assert fresh.get(TASK).version == before
