"""``afire export``: models for other runtimes and libraries."""

from __future__ import annotations

from pathlib import Path

from afire_monai.core.quiet import silence


def export(
    model: str,
    *,
    format: str,
    out: str,
    kind: str | None = None,
    images: tuple[str, ...] = (),
    section: str = "test",
    compared: int = 8,
) -> int:
    """Export a model to ONNX, TorchScript, an exported program of PyTorch, timm or Hugging Face.

    What is written is compared with PyTorch, and kept only if nothing differs by more than 1e-4. Nothing is uploaded.

    Example: afire export runs/mine/models --format onnx --out encoder.onnx

    Example: afire export runs/tuned/models --format onnx --kind classifier --images radiographs --out exports

    Args:
        model: model folder of a run.
        format: onnx, torchscript, torch_export (files, for batches of any size), timm or hf (folders).
        out: file or folder to write; a file has the format's suffix (.onnx, .pt, .pt2).
        kind: classifier, segmenter, encoder or detector; the first of them that the folder holds unless given.
        images: folders, files or one data list to compare on, with commas between them; phantoms unless given.
        section: of the data list.
        compared: number of images to compare on, at least 3.
    """
    silence()
    from afire_monai.core.errors import AfireError
    from afire_monai.models.export import OPSET, SUFFIXES, export_graph
    from afire_monai.models.layouts import LAYOUTS, export_layout
    from afire_monai.predictions.exportable import comparison_images, load_exportable

    if format not in (*SUFFIXES, *LAYOUTS):
        raise AfireError(f"--format must be one of {', '.join((*SUFFIXES, *LAYOUTS))}, got {format!r}")
    exportable = load_exportable(model, kind)
    pictures = comparison_images(exportable.size, images, section, compared)
    if format in LAYOUTS:
        report = export_layout(exportable, pictures, Path(out), format)
    else:
        path = Path(out)
        path = path if path.suffix == SUFFIXES[format] else path / f"{exportable.kind}{SUFFIXES[format]}"
        report = export_graph(exportable, pictures, path, format)
    opset = f", opset {OPSET}" if format == "onnx" else ""
    print(f"written:  {report.path} ({exportable.kind}, {format}{opset})")
    print(f"compared: {report.images} images with PyTorch, one alone and the others as a batch")
    for name, difference in report.differences.items():
        print(f"          {name}: largest difference {difference:.2g}")
    print("note:     research software, not a medical device")
    return 0
