"""Encoders and classifiers as folders that timm and Hugging Face's transformers read."""

from __future__ import annotations

import re
import tempfile
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from safetensors.torch import load_file, save_file
from torch import Tensor

from afire_monai.core.errors import AfireError
from afire_monai.core.files import whole_file, write_text
from afire_monai.models.export import Exportable, ExportReport, compare
from afire_monai.models.foreign_names import to_own_names
from afire_monai.models.layout_files import hf_files, timm_files
from afire_monai.networks import ViTClassifier, ViTEncoder

LAYOUTS = ("timm", "hf")
_TO_TIMM = (
    (re.compile(r"^positions$"), "pos_embed"),
    (re.compile(r"^patch_embed\."), "patch_embed.proj."),
    (re.compile(r"\.attn\.out_proj\."), ".attn.proj."),
    (re.compile(r"\.mlp\.linear1\."), ".mlp.fc1."),
    (re.compile(r"\.mlp\.linear2\."), ".mlp.fc2."),
)
_TO_HF = (
    (re.compile(r"^cls_token$"), "embeddings.cls_token"),
    (re.compile(r"^pos_embed$"), "embeddings.position_embeddings"),
    (re.compile(r"^patch_embed\.proj\."), "embeddings.patch_embeddings.projection."),
    (re.compile(r"^norm\."), "layernorm."),
    (re.compile(r"^blocks\."), "encoder.layer."),
    (re.compile(r"\.attn\.proj\."), ".attention.output.dense."),
    (re.compile(r"\.norm1\."), ".layernorm_before."),
    (re.compile(r"\.norm2\."), ".layernorm_after."),
    (re.compile(r"\.mlp\.fc1\."), ".intermediate.dense."),
    (re.compile(r"\.mlp\.fc2\."), ".output.dense."),
)


def export_layout(exportable: Exportable, images: Tensor, folder: Path, form: str) -> ExportReport:
    """Write a folder in another library's layout, and keep it only if its outputs are the same as here.

    ``timm``: ``config.json`` and ``model.safetensors`` for ``timm.create_model("local-dir:FOLDER")``. ``hf``: the same
    two, ``preprocessor_config.json`` and ``README.md`` for ``transformers.AutoModel.from_pretrained("FOLDER")``. Both
    want images that are normalised outside, by the mean and standard deviation in the JSON. The weights are read back
    and run by a plain transformer of the other layout's names.

    Arguments are as for `export_graph`; ``form`` is timm or hf. Raises AfireError if the layout has no such network, or
    the weights give something else; then nothing is written.
    """
    if form not in LAYOUTS:
        raise AfireError(f"the format is {form!r}; {', '.join(LAYOUTS)} are folders")
    classifier: Any = exportable.network.network if exportable.kind == "classifier" else None
    encoder: Any = classifier.encoder if classifier is not None else exportable.network
    _refuse(exportable, encoder, classifier, form)
    head = dict(classifier.head.named_parameters()) if classifier is not None else {}
    state = to_timm(encoder, {f"head.{name}": value for name, value in head.items()})
    state = state if form == "timm" else to_hf(state, encoder.embed_dim)
    with tempfile.TemporaryDirectory() as scratch:
        file = Path(scratch) / "model.safetensors"
        save_file(state, file, metadata={"format": "pt"})
        written = load_file(file)
        content = file.read_bytes()
    plain = written if form == "timm" else from_hf(written)

    def run(some: Tensor) -> list[Tensor]:
        config = encoder.config
        tokens = plain_vit(plain, encoder.normalise(some), config["num_heads"], config["layer_norm_eps"])
        if classifier is None:
            return [tokens]
        pooled = tokens[:, 0] if classifier.pooling == "class" else tokens[:, 1:].mean(1)
        return [F.linear(pooled, plain["head.weight"], plain["head.bias"])]

    differences = compare(_first_output(exportable), images, run)
    texts = timm_files(encoder, classifier) if form == "timm" else hf_files(exportable, encoder, classifier)
    folder.mkdir(parents=True, exist_ok=True)
    with whole_file(folder / "model.safetensors") as part:
        part.write_bytes(content)
    for name, text in texts.items():
        write_text(folder / name, text)
    return ExportReport(folder, len(images), differences)


def to_timm(encoder: ViTEncoder, head: dict[str, Tensor]) -> dict[str, Tensor]:
    """Return an encoder's weights under timm's names: four renames, and the sine positions as a table."""
    weights = encoder.state_dict() | head
    state = {_timm_name(name): value.detach().cpu().clone() for name, value in weights.items()}
    positions = encoder.positions_of(encoder.grid)
    state["pos_embed"] = F.pad(positions, (0, 0, 1, 0))[None].cpu().clone()
    return state


def _timm_name(name: str) -> str:
    for pattern, replacement in _TO_TIMM:
        name = pattern.sub(replacement, name)
    return name


def to_hf(state: dict[str, Tensor], width: int) -> dict[str, Tensor]:
    """Return weights under the names of transformers' ``ViTModel``, from timm's.

    Args:
        state: tensors by timm's names; with ``head`` they become those of ``ViTForImageClassification``.
        width: D.
    """
    prefix = "vit." if "head.weight" in state else ""
    renamed = {}
    for name, value in state.items():
        if name.startswith("head."):
            renamed[name.replace("head.", "classifier.")] = value
            continue
        for pattern, replacement in _TO_HF:
            name = pattern.sub(replacement, name)
        if ".attn.qkv." in name:
            for part, piece in zip(("query", "key", "value"), value.split(width), strict=True):
                renamed[prefix + name.replace(".attn.qkv.", f".attention.attention.{part}.")] = piece.clone()
        else:
            renamed[prefix + name] = value
    return renamed


def from_hf(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """Undo :func:`to_hf`, by the names that foreign encoders are read by."""
    own, _, rest = to_own_names({name.removeprefix("vit."): value for name, value in state.items()})
    head = {name.replace("classifier.", "head."): state[name] for name in rest}
    return {_timm_name(name): value for name, value in own.items()} | head


@torch.no_grad()
def plain_vit(state: dict[str, Tensor], images: Tensor, heads: int, eps: float) -> Tensor:
    """Run a plain vision transformer of timm's names, written without this package's networks.

    Args:
        state: weights by timm's names.
        images: (B, C, H, W), normalised.
        heads: number of attention heads.
        eps: ε of the layer norms.
    """

    def norm(x: Tensor, name: str) -> Tensor:
        return F.layer_norm(x, x.shape[-1:], state[f"{name}.weight"], state[f"{name}.bias"], eps)

    def linear(x: Tensor, name: str) -> Tensor:
        return F.linear(x, state[f"{name}.weight"], state[f"{name}.bias"])

    patch = state["patch_embed.proj.weight"]
    x = F.conv2d(images, patch, state["patch_embed.proj.bias"], stride=patch.shape[-1]).flatten(2).transpose(1, 2)
    x = torch.cat([state["cls_token"].expand(len(x), -1, -1), x], 1) + state["pos_embed"]
    depth = 1 + max(int(name.split(".")[1]) for name in state if name.startswith("blocks."))
    for block in (f"blocks.{number}" for number in range(depth)):
        qkv = linear(norm(x, f"{block}.norm1"), f"{block}.attn.qkv")
        q, k, v = qkv.unflatten(-1, (3, heads, -1)).permute(2, 0, 3, 1, 4)
        shares = (q @ k.transpose(-1, -2) / q.shape[-1] ** 0.5).softmax(-1)
        x = x + linear((shares @ v).transpose(1, 2).flatten(2), f"{block}.attn.proj")
        x = x + linear(F.gelu(linear(norm(x, f"{block}.norm2"), f"{block}.mlp.fc1")), f"{block}.mlp.fc2")
    return norm(x, "norm")


def _refuse(exportable: Exportable, encoder: Any, classifier: ViTClassifier | None, form: str) -> None:
    """Raise an error for a network that the other library does not have."""
    instead = "; use onnx, torchscript or torch_export"
    if exportable.kind not in ("encoder", "classifier"):
        raise AfireError(f"{form} has no network like this {exportable.kind}{instead}")
    if type(encoder) is not ViTEncoder:
        raise AfireError(f"{form} takes plain vision transformers, this is a {type(encoder).__name__}{instead}")
    if encoder.config["stem"] != "patches" or encoder.registers is not None:
        raise AfireError(f"{form} takes vision transformers without registers or a stem of convolutions{instead}")
    readable = {"hf": ("class",), "timm": ("class", "mean")}[form]
    if classifier is not None and (classifier.pooling not in readable or classifier.normality is not None):
        distance = " and the distance from normal radiographs" if classifier.normality is not None else ""
        raise AfireError(
            f"a classifier of {form} reads the last block's tokens by pooling: {' or '.join(readable)}; this one has "
            f"pooling: {classifier.pooling}{distance}{instead}"
        )
    if form == "timm" and encoder.config["layer_norm_eps"] != 1e-6:
        raise AfireError(f"timm has ε = 1e-6 in layer norms, this encoder {encoder.config['layer_norm_eps']}{instead}")


def _first_output(exportable: Exportable) -> Exportable:
    """Return tokens or logits alone: calibration has no place in the other libraries."""

    class First(torch.nn.Module):
        def forward(self, images: Tensor) -> Tensor:
            given: Any = exportable.network(images)
            return given if isinstance(given, Tensor) else given[0]

    return Exportable(exportable.kind, First(), exportable.size, exportable.outputs[:1])
