from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from torch import nn

from afire_monai.core.errors import AfireError
from afire_monai.models import export
from afire_monai.models.export import Exportable, compare, export_graph, open_graph, prepare
from afire_monai.networks import ViTEncoder, build_encoder

FORMS = [
    pytest.param("onnx", ".onnx", id="onnx"),
    pytest.param("torchscript", ".pt", id="torchscript"),
    pytest.param("torch_export", ".pt2", id="torch_export"),
]


@pytest.fixture
def exportable() -> Exportable:
    torch.manual_seed(0)
    encoder = ViTEncoder((16, 24), 8, embed_dim=16, depth=2, num_heads=2, mean=0.4, std=0.3, check_range=True)
    return Exportable("encoder", encoder, (1, 16, 24), ("tokens",), {"encoder_sha256": "0" * 64})


@pytest.mark.parametrize(("form", "suffix"), FORMS)
def test_graph_gives_the_encoders_tokens_for_batches_of_any_size(exportable, tmp_path, form, suffix):
    if form == "onnx":
        pytest.importorskip("onnxruntime")
    images = torch.rand(5, 1, 16, 24)
    path = tmp_path / "new" / f"encoder{suffix}"
    report = export_graph(exportable, images, path, form)
    assert report.differences["tokens"] < 1e-5
    run = open_graph(path, form)
    for count in (1, 2, 7):
        some = torch.rand(count, 1, 16, 24)
        (tokens,) = run(some)
        assert tokens.shape == (count, 7, 16)
        assert torch.allclose(tokens, exportable.network(some), atol=1e-5)
    assert sorted(p.name for p in path.parent.iterdir()) == sorted(["encoder.json", path.name])
    description = json.loads(path.with_suffix(".json").read_text(encoding="utf-8"))
    assert description["input"]["images"] == ["batch", 1, 16, 24]
    assert description["encoder_sha256"] == "0" * 64
    assert description.get("opset") == (20 if form == "onnx" else None)


def test_onnx_file_states_its_opset_and_a_free_batch(exportable, tmp_path):
    pytest.importorskip("onnxruntime")
    onnx = pytest.importorskip("onnx")
    export_graph(exportable, torch.rand(3, 1, 16, 24), tmp_path / "e.onnx", "onnx")
    model = onnx.load(tmp_path / "e.onnx")
    assert {o.domain: o.version for o in model.opset_import}[""] == 20
    dimensions = model.graph.input[0].type.tensor_type.shape.dim
    assert dimensions[0].dim_param
    assert [d.dim_value for d in dimensions[1:]] == [1, 16, 24]


@pytest.mark.parametrize("preset", ["resnet18", "swin_t"])
def test_other_kinds_of_encoders_leave_as_well(preset, tmp_path):
    options = {"window": 2} if preset == "swin_t" else {}
    encoder = build_encoder(preset, image_size=64, **options)
    exportable = Exportable("encoder", prepare(encoder), (1, 64, 64), ("tokens",))
    report = export_graph(exportable, torch.rand(3, 1, 64, 64), tmp_path / "e.pt2", "torch_export")
    assert report.differences["tokens"] < 1e-4


class Frozen(nn.Module):
    """A network whose trace is wrong for other images than those that it was traced with."""

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return images.flatten(1).sum(1) * float(images.mean())


def test_graph_that_gives_something_else_is_refused_and_not_written(tmp_path):
    exportable = Exportable("encoder", Frozen(), (1, 8, 8), ("sum",))
    with pytest.raises(AfireError, match=r"sum: the export differs from PyTorch by .*nothing was written"):
        export_graph(exportable, torch.rand(4, 1, 8, 8), tmp_path / "e.pt", "torchscript")
    assert not list(tmp_path.iterdir())


def test_output_that_is_not_finite_is_refused(exportable):
    with pytest.raises(AfireError, match="differs from PyTorch by nan"):
        compare(exportable, torch.rand(3, 1, 16, 24), lambda images: [exportable.network(images) * torch.nan])


def test_output_of_another_shape_is_refused(exportable):
    with pytest.raises(AfireError, match=r"the export gives \(1, 6, 16\), PyTorch \(1, 7, 16\)"):
        compare(exportable, torch.rand(3, 1, 16, 24), lambda images: [exportable.network(images)[:, 1:]])


def test_unknown_format_and_too_few_images_are_refused(exportable, tmp_path):
    with pytest.raises(AfireError, match="'tflite'; onnx, torchscript, torch_export"):
        export_graph(exportable, torch.rand(3, 1, 16, 24), tmp_path / "e", "tflite")
    with pytest.raises(AfireError, match="at least 3 images"):
        export_graph(exportable, torch.rand(2, 1, 16, 24), tmp_path / "e.pt", "torchscript")


def test_missing_library_is_named_with_the_extra_that_has_it(exportable, tmp_path, monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(AfireError, match=r"onnxruntime is missing; install the extra: .*afire-monai\[export\]"):
        export_graph(exportable, torch.rand(3, 1, 16, 24), tmp_path / "e.onnx", "onnx")


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="no file that is always full")
@pytest.mark.parametrize("form", ["torchscript", "torch_export"])
def test_a_full_disk_is_an_error_and_not_the_end_of_the_process(form):
    with pytest.raises(OSError, match="No space left"):
        export._write(nn.Linear(2, 3).eval(), torch.ones(4, 2), Path("/dev/full"), form, ["out"])
