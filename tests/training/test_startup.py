from __future__ import annotations

import json
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from PIL import Image

from afire_monai.core.errors import AfireError, CheckpointError, DataListError
from afire_monai.datalists.file import datalist_hash, load_datalist, save_datalist
from afire_monai.loading.dataset import RadiographDataset
from afire_monai.training import startup
from afire_monai.training.finetuning import statistics_of
from afire_monai.training.task_data import TaskData

CONFIGS = Path(__file__).resolve().parents[2] / "bundle" / "configs"
FILES = [str(CONFIGS / name) for name in ("pretrain.yaml", "method_afire.yaml")]


@pytest.fixture(autouse=True)
def hook(monkeypatch):
    """Give the interpreter its exception hook back: preparing a run replaces it."""
    monkeypatch.setattr(sys, "excepthook", sys.excepthook)


def prepare(folder: Path, *words: str) -> dict:
    """Prepare a run as its command line would, and give the settings that it wrote."""
    startup.prepare_run(folder, ["scripts.py", "run", "--config_file", str(FILES), *words])
    return yaml.safe_load((folder / "settings.yaml").read_text(encoding="utf-8"))


# the command line -----------------------------------------------------------------------------------------------------


def test_unknown_key_on_the_command_line_stops_the_run_before_it_starts(tmp_path):
    with pytest.raises(AfireError, match=r"unknown setting --imagesize.*nearest: image_size"):
        prepare(tmp_path, "--imagesize", "64")
    assert not (tmp_path / "settings.yaml").exists()


@pytest.mark.parametrize("word", ["true", "false"])
def test_switches_in_words_that_would_always_count_as_true_are_refused(tmp_path, word):
    with pytest.raises(AfireError, match=f"--cache {word}: write --cache {word.capitalize()}"):
        prepare(tmp_path, "--cache", word)
    assert prepare(tmp_path, "--cache", word.capitalize())["cache"] is (word == "true")
    assert prepare(tmp_path, "--resume", word)["resume"] is (word == "true")


def test_settings_are_the_configs_with_the_overrides(tmp_path):
    settings = prepare(tmp_path / "new", "--epochs", "3", "--train#sampler#seed", "9", "--run_name", "mine")
    assert (settings["epochs"], settings["train"]["sampler"]["seed"], settings["run_name"]) == (3, 9, "mine")
    assert settings["shift"] == 2  # of the method's config
    assert settings["clip"] == 3.0


def test_settings_hold_no_folder_of_the_machine(tmp_path):
    private = tmp_path / "private"
    settings = prepare(
        private / "out",
        *("--dataset_dir", str(private), "--output_dir", str(private / "out"), "--bundle_root", str(private)),
        *("--datalist", str(private / "list.json"), "--resume", str(private / "old.pt")),
    )
    assert not {"dataset_dir", "output_dir", "bundle_root"} & settings.keys()
    assert str(private) not in (private / "out" / "settings.yaml").read_text(encoding="utf-8")
    assert (settings["datalist"], settings["resume"]) == ("list.json", "old.pt")


def test_exception_hook_of_a_caller_from_python_is_left_alone(tmp_path, monkeypatch):
    own = sys.excepthook
    prepare(tmp_path / "by_words")
    monkeypatch.setattr(sys, "argv", ["notebook.py"])
    startup.prepare_run(tmp_path / "from_python")
    assert sys.excepthook is own
    monkeypatch.setattr(sys, "argv", ["monai.bundle", "run", "--config_file", str(FILES)])
    startup.prepare_run(tmp_path / "runner")
    assert sys.excepthook is not own


def test_anything_but_a_bundle_run_on_the_command_line_is_left_alone(tmp_path):
    startup.prepare_run(tmp_path / "out", ["pytest", "-q", "--unknown", "1"])
    assert list((tmp_path / "out").iterdir()) == []


def test_user_sees_the_cause_and_not_the_runners_chain(tmp_path, capsys, monkeypatch):
    sys.excepthook = startup._say_the_cause
    try:
        try:
            raise CheckpointError("what to do")
        except CheckpointError as cause:
            raise RuntimeError("runner") from cause
    except RuntimeError as error:
        chain = error
    monkeypatch.delenv("AFIRE_TRACEBACK", raising=False)
    sys.excepthook(type(chain), chain, chain.__traceback__)
    assert capsys.readouterr().err == "\nerror: what to do\n"
    monkeypatch.setenv("AFIRE_TRACEBACK", "1")
    sys.excepthook(type(chain), chain, chain.__traceback__)
    shown = capsys.readouterr().err
    assert "RuntimeError: runner" in shown
    assert shown.endswith("error: what to do\n")


def test_errors_that_are_nobodys_fault_keep_their_traceback(tmp_path, capsys):
    sys.excepthook = startup._say_the_cause
    error = ZeroDivisionError("bug")
    sys.excepthook(type(error), error, None)
    assert "ZeroDivisionError: bug" in capsys.readouterr().err


def test_interruption_ends_in_a_sentence_with_the_way_to_go_on(tmp_path, capsys, monkeypatch):
    monkeypatch.delenv("AFIRE_TRACEBACK", raising=False)
    sys.excepthook = startup._say_the_cause
    sys.excepthook(KeyboardInterrupt, KeyboardInterrupt(), None)
    shown = capsys.readouterr().err
    assert "--resume true" in shown
    assert "Traceback" not in shown


def test_folder_that_cannot_be_written_to_is_named(tmp_path):
    (tmp_path / "file").write_text("x")
    with pytest.raises(AfireError, match=r"output_dir .*file/out: Not a directory"):
        startup.prepare_run(tmp_path / "file" / "out", [])


# data -----------------------------------------------------------------------------------------------------------------


def datalist(path: Path, **sections: list[dict]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps({"name": "x", **sections}))
    return path


def test_data_list_is_found_by_itself_or_in_the_folder_of_the_data_set(tmp_path, monkeypatch):
    path = datalist(tmp_path / "data" / "list.json", training=[{"image": "a.png"}])
    monkeypatch.chdir(tmp_path)
    assert startup.find_datalist(str(path), "", "out") == path
    assert startup.find_datalist("data/list.json", "", "out") == Path("data/list.json")
    assert startup.find_datalist("list.json", str(path.parent), "out") == path


@pytest.mark.parametrize(
    ("folder", "text"),
    [("", r"no data list at 'list.json'; make one"), ("/data", r"at 'list.json' nor in dataset_dir '/data'; make one")],
)
def test_missing_data_list_is_refused_with_where_it_was_looked_for_and_the_way_out(folder, text, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(DataListError, match=text + ".*afire datalist.*--datalist PATH"):
        startup.find_datalist("list.json", folder, "out")


@pytest.mark.parametrize(
    ("lists", "kind"),
    [
        ({"training": [{"image": "a.png", "group": "Doe"}], "validation": [{"image": "b.png", "group": "Doe"}]}, "two"),
        ({"labels": ["Normal"], "training": [{"image": "a.png", "label": [1, 0]}]}, "label length"),
        ({"training": [{"image": "Doe.png"}, {"image": "Doe.png"}]}, "duplicate file"),
    ],
)
def test_list_with_errors_is_refused_by_kind_without_naming_patients(lists, kind, tmp_path):
    path = datalist(tmp_path / "list.json", **lists)
    with pytest.raises(DataListError, match=rf"list.json: .*{kind}.* \(1\)|{kind}.*afire check") as caught:
        startup.find_datalist(str(path), "", tmp_path)
    assert "Doe" not in str(caught.value)


def test_list_with_a_misspelt_key_is_taken_and_the_key_counted(tmp_path, caplog):
    path = datalist(tmp_path / "list.json", training=[{"image": "a.png", "grup": "1"}])
    assert startup.find_datalist(str(path), "", tmp_path) == path
    assert "unknown key (1)" in caplog.text


def test_missing_folder_of_the_data_set_is_named_before_any_image_is_read(tmp_path):
    path = datalist(tmp_path / "list.json", training=[{"image": "a.png"}])
    with pytest.raises(DataListError, match=r"no folder .*absent.*--dataset_dir"):
        startup.find_datalist(str(path), str(tmp_path / "absent"), tmp_path)


def test_phantoms_stand_in_where_no_data_list_is_given_and_are_written_once(tmp_path, monkeypatch):
    real, calls = startup.write_phantom_dataset, []
    monkeypatch.setattr(
        startup, "write_phantom_dataset", lambda folder, **_: (calls.append(folder), real(folder, 10, 2, 32))[1]
    )
    path = startup.find_datalist("phantom", "", tmp_path)
    assert path.parent == tmp_path / "phantoms"
    assert len(startup.normal_items(path, "training")) == 7
    assert startup.find_datalist("phantom", "", tmp_path) == path
    assert len(calls) == 1


def test_only_normal_images_are_trained_on(tmp_path):
    items = [{"image": f"{i}.png", "label": [i % 2]} for i in range(6)]
    path = datalist(tmp_path / "list.json", labels=["Mass"], training=items, validation=items[:3])
    names = [Path(item["image"]).name for item in startup.normal_items(path, "training")]
    assert names == ["0.png", "2.png", "4.png"]
    moved = startup.normal_items(path, "validation", str(tmp_path / "elsewhere"))
    assert moved[0]["image"] == str(tmp_path / "elsewhere" / "0.png")


def test_prototypes_by_a_fact_that_the_list_does_not_state_are_refused_by_the_settings_name(tmp_path):
    path = datalist(tmp_path / "list.json", training=[{"image": f"{i}.png"} for i in range(7)])
    images = RadiographDataset(startup.normal_items(path, "training"), lambda item: item)
    with pytest.raises(DataListError, match="prototypes_by 'view': all 7 images are of one kind by view"):
        startup.populations(images, path, "view")
    with pytest.raises(DataListError, match="prototypes_by 'hat': 'hat' does not tell people apart"):
        startup.populations(images, path, "hat")


def test_without_validation_images_health_takes_training_images_and_says_so(tmp_path, caplog):
    path = datalist(tmp_path / "list.json", training=[{"image": f"{i:03d}.png"} for i in range(100)])
    items = startup.normal_items(path, "validation")
    assert [Path(item["image"]).name for item in items] == [f"{i:03d}.png" for i in range(36, 100)]
    assert "no validation images" in caplog.text


def test_hash_is_the_one_that_the_list_was_saved_with_wherever_it_lies(tmp_path):
    built = {"name": "x", "training": [{"image": str(tmp_path / "one" / "a.png")}]}
    path = save_datalist(built, tmp_path / "one" / "list.json")
    first = startup.data_hash(path)
    assert first == load_datalist(path)["meta"]["sha256"]
    assert first == datalist_hash({"training": [{"image": "a.png"}]})
    assert len(first) == 64
    assert startup.data_hash(datalist(tmp_path / "two" / "list.json", training=[{"image": "a.png"}])) == first
    assert startup.data_hash(datalist(path, training=[{"image": "b.png"}])) != first


def test_folder_items_are_all_radiographs_below_it_by_path(tmp_path):
    for name in ("b.png", "a/z.JPG", "a/x.nii.gz", "notes.txt", ".hidden.png"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(b"x")
    items = startup.folder_items(tmp_path)
    names = ("a/x.nii.gz", "a/z.JPG", "b.png")
    assert items == [{"image": str(tmp_path / name), "place": place} for place, name in enumerate(names)]


def test_folder_without_radiographs_and_no_folder_are_refused(tmp_path):
    with pytest.raises(DataListError, match=r"no radiograph .*DICOM"):
        startup.folder_items(tmp_path)
    with pytest.raises(DataListError, match=r"no folder .*--dataset_dir"):
        startup.folder_items(tmp_path / "absent")


def test_reading_averages_over_areas_and_keeps_the_grey_range(tmp_path):
    pixels = np.zeros((8, 12), dtype=np.uint8)
    pixels[::2, ::2] = 200  # a quarter of the pixels: what is not averaged would alias
    pixels[0, 0] = 100
    Image.fromarray(pixels).save(tmp_path / "p.png")
    item = startup.reading((4, 6))({"image": str(tmp_path / "p.png"), "index": 3})
    image = item["image"]
    assert type(image) is torch.Tensor
    assert image.dtype == torch.float32
    expected = torch.full((1, 4, 6), 50 / 255)
    expected[0, 0, 0] = 25 / 255
    torch.testing.assert_close(image, expected, atol=1e-6, rtol=0)


def test_batch_of_an_evaluator_is_its_images_and_no_target():
    images = torch.rand(2, 1, 4, 4)
    assert startup.image_batch({"image": images}, torch.device("cpu"), extra=1)[0] is images
    assert startup.image_batch({"image": images}, torch.device("cpu"))[1] is None


# processes ------------------------------------------------------------------------------------------------------------


def test_many_processes_without_torchrun_are_refused_with_the_command(monkeypatch):
    monkeypatch.delenv("RANK", raising=False)
    with pytest.raises(AfireError, match=r"torchrun --nproc_per_node=N -m monai.bundle run"):
        startup.start_processes()
    startup.stop_processes()  # nothing to leave


def test_reader_options_of_the_list_are_those_of_training_and_prediction(tmp_path):
    from afire_monai.loading.dataset import RadiographDataset
    from afire_monai.predictions.predict import find_source
    from afire_monai.predictions.reading import read_radiograph

    grey = np.random.default_rng(0).integers(0, 4096, (16, 16)).astype(np.uint16)
    grey[0, 0] = 4095
    Image.fromarray(grey).save(tmp_path / "a.png")
    items = [{"image": str(tmp_path / "a.png")}]
    content = {"meta": {"reader": {"png16_max": 4095}}, "training": items, "test": items}
    path = save_datalist(content, tmp_path / "l.json")
    transform = startup.reading((16, 16), datalist=path)
    trained = transform(items[0])["image"]
    assert float(trained.max()) == 1.0
    source = find_source([path])
    predicted = read_radiograph(0, source.files[0], [(16, 16)], options=source.reader)
    torch.testing.assert_close(predicted.images[(16, 16)], trained)
    assert float(startup.reading((16, 16))(items[0])["image"].max()) < 0.07
    mean, _ = statistics_of(TaskData([], items, [], []), path)()  # of fresh weights, at 64 px
    assert mean == pytest.approx(float(trained.mean()), abs=0.01)
    cached = RadiographDataset(items, transform, cache="disk", cache_dir=tmp_path / "c")
    torch.testing.assert_close(cached[0]["image"], trained, atol=0.5 / 255, rtol=0)
    with pytest.raises(DataListError, match=r"built with options \{'png16_max': 4095\}, but \{\} is requested"):
        RadiographDataset(items, startup.reading((16, 16)), cache="disk", cache_dir=tmp_path / "c")
