"""What commands write is closed to other users of the machine."""

import stat

from afire_monai.cli.main import run
from afire_monai.phantom.chest import write_phantom_dataset


def open_to_others(folder):
    paths = [folder, *folder.rglob("*")]
    return [str(path) for path in paths if not path.is_symlink() and stat.S_IMODE(path.stat().st_mode) & 0o007]


def test_nothing_of_a_run_a_list_or_predictions_is_open_to_others(tmp_path, monkeypatch):
    monkeypatch.delenv("AFIRE_UMASK", raising=False)
    data = str(write_phantom_dataset(tmp_path / "data", normal=12, abnormal=4, size=48))
    monkeypatch.chdir(tmp_path)
    tiny = ["image_size=32", "epochs=1", "batch_size=4", "encoder_preset=vit_ti6", "head_hidden=16", "panel_every=1"]
    assert run(["pretrain", data, "--out", "mine", *tiny, "prototype_dim=16", "decoder_dim=16"]) == 0
    assert run(["datalist", "from-folder", str(tmp_path / "data/images"), "--out", "list.json"]) == 0
    assert run(["predict", data, "--model", "mine/models", "--out", "predicted", "--overlays"]) == 0
    assert any(path.suffix == ".png" for path in (tmp_path / "predicted").rglob("*"))
    assert open_to_others(tmp_path / "mine") == open_to_others(tmp_path / "predicted") == []
    assert open_to_others(tmp_path / "list.json") == []
