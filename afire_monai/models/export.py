"""Networks as graphs that run without this package: ONNX, TorchScript, and PyTorch's own exported programs."""

from __future__ import annotations

import contextlib
import io
import json
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from afire_monai import __version__
from afire_monai.core.errors import AfireError, require
from afire_monai.core.files import whole_file, write_text
from afire_monai.networks.encoder_base import Encoder

SUFFIXES = {"onnx": ".onnx", "torchscript": ".pt", "torch_export": ".pt2"}
OPSET = 20
TOLERANCE = 1e-4
Run = Callable[[Tensor], list[Tensor]]


@dataclass(frozen=True)
class Exportable:
    """A network, and the facts about it that users outside of this package need."""

    kind: str  #: encoder, detector, classifier or segmenter
    network: nn.Module  #: maps images (B, C, H, W) in 0…1 to one tensor or a tuple of tensors, each with B first
    size: tuple[int, int, int]  #: (C, H, W) of the images
    outputs: tuple[str, ...]  #: names of the network's outputs
    #: plain values that are written beside the graph: labels, thresholds, hashes of the weights
    description: dict[str, Any] = field(default_factory=dict)
    #: for outputs that move in steps, the height of one step, which is added to the tolerance
    steps: dict[str, float] = field(default_factory=dict)


@dataclass(frozen=True)
class ExportReport:
    """The written files, and their largest difference from PyTorch."""

    path: Path
    images: int
    differences: dict[str, float]


def prepare(network: nn.Module) -> nn.Module:
    """Put a network into evaluation mode and drop the range check of its encoders, which depends on values.

    A graph cannot stop with a message, so the caller must give images in 0…1.
    """
    for module in network.modules():
        if isinstance(module, Encoder):
            module.check_range = False
    return network.eval().requires_grad_(False)


def export_graph(exportable: Exportable, images: Tensor, path: Path, form: str) -> ExportReport:
    """Write a network as a graph for batches of any size, and keep it only if its results are PyTorch's.

    ONNX has opset 20. TorchScript is traced; PyTorch 2.13 marks tracing as deprecated and still does it. Beside the
    graph lies a JSON of the same name that describes input and outputs.

    Args:
        exportable: the network to write.
        images: (n, C, H, W) in 0…1, n at least 3, for the comparison of graph and PyTorch: one alone, then the
            others together.
        path: file to write; its folder is made if absent.
        form: onnx, torchscript or torch_export.

    Raises:
        AfireError: for an unknown form, too few images, a missing library, or a difference above 1e-4 (of the largest
            value if that is above 1); then nothing is written.
    """
    if form not in SUFFIXES:
        raise AfireError(f"the format is {form!r}; {', '.join(SUFFIXES)} are graphs")
    if len(images) < 3:
        raise AfireError(f"at least 3 images are needed to check batches of different sizes, got {len(images)}")
    if form == "onnx":
        require("onnx", "onnxscript", "onnxruntime", extra="export")
    network = prepare(exportable.network)
    path.parent.mkdir(parents=True, exist_ok=True)
    with whole_file(path) as part:
        _write(network, images[:2], part, form, exportable.outputs)
        differences = compare(exportable, images, open_graph(part, form))
    write_text(
        path.with_suffix(".json"), json.dumps(_description(exportable, form, differences, len(images)), indent=2)
    )
    return ExportReport(path, len(images), differences)


def open_graph(path: str | Path, form: str) -> Run:
    """Open an exported graph on the CPU; return a function from images (B, C, H, W) in 0…1 to the outputs in order."""
    if form == "onnx":
        require("onnxruntime", extra="export")
        import onnxruntime

        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = torch.get_num_threads()
        session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
        return lambda images: [torch.from_numpy(a) for a in session.run(None, {"images": images.numpy()})]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        loaded = (
            torch.jit.load(str(path))
            if form == "torchscript"
            else torch.export.load(io.BytesIO(Path(path).read_bytes())).module()
        )
    return lambda images: listed(loaded(images))


def compare(exportable: Exportable, images: Tensor, run: Run) -> dict[str, float]:
    """Return the largest absolute difference of each output to PyTorch, for one image alone and the others together.

    Raises AfireError if a difference is above 1e-4, or above 1e-4 of the largest value if that is above 1.
    """
    differences = dict.fromkeys(exportable.outputs, 0.0)
    for some in (images[:1], images[1:]):
        with torch.inference_mode():
            expected, found = listed(exportable.network(some)), run(some)
        for name, one, other in zip(exportable.outputs, expected, found, strict=True):
            if one.shape != other.shape:
                raise AfireError(f"{name}: the export gives {tuple(other.shape)}, PyTorch {tuple(one.shape)}")
            difference = (one.double() - other.double()).abs().max().item()
            limit = TOLERANCE * max(1.0, one.abs().max().item()) + exportable.steps.get(name, 0.0)
            if not difference <= limit:  # NaN is refused as well
                raise AfireError(
                    f"{name}: the export differs from PyTorch by {difference:.3g} on a batch of {len(some)}, at most "
                    f"{limit:.3g} is allowed; nothing was written. Use another format, and report this model"
                )
            differences[name] = max(differences[name], difference)
    return differences


def listed(outputs: Tensor | Sequence[Tensor]) -> list[Tensor]:
    """Return a network's outputs as a list."""
    return [outputs] if isinstance(outputs, Tensor) else list(outputs)


def _write(network: nn.Module, example: Tensor, path: Path, form: str, outputs: Sequence[str]) -> None:
    """Write one graph. The exporters talk much on standard output, and PyTorch warns of tracing; neither is shown."""
    with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()), torch.inference_mode():
        warnings.simplefilter("ignore")
        shapes = ({0: torch.export.Dim("batch")},)
        if form == "onnx":
            torch.onnx.export(
                network,
                (example,),
                path,
                dynamo=True,
                dynamic_shapes=shapes,
                opset_version=OPSET,
                input_names=["images"],
                output_names=list(outputs),
                external_data=False,
                verbose=False,
            )
            return
        # PyTorch's own writing of TorchScript to a path ends the whole process if the disk is full, and of an exported
        # program asks for the ending .pt2
        buffer = io.BytesIO()
        if form == "torchscript":
            torch.jit.save(torch.jit.freeze(torch.jit.trace(network, example, check_trace=False)), buffer)
        else:
            torch.export.save(torch.export.export(network, (example,), dynamic_shapes=shapes), buffer)
        path.write_bytes(buffer.getvalue())


def _description(exportable: Exportable, form: str, differences: dict[str, float], images: int) -> dict[str, Any]:
    return {
        "format": f"afire-monai export 1, {form}",
        "version": __version__,
        "torch": torch.__version__,
        **({"opset": OPSET} if form == "onnx" else {}),
        "kind": exportable.kind,
        "input": {
            "images": ["batch", *exportable.size],
            "values": "float32 in 0…1, bright = dense, row 0 at the top; not checked; normalised inside",
        },
        "outputs": list(exportable.outputs),
        **exportable.description,
        "difference_to_pytorch": differences,
        "images_compared": images,
        "note": "Research software: not a medical device, not for diagnosis.",
    }
