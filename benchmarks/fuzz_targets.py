"""What `fuzz.py` reads: sound files to begin with, words to put in, and what takes a file up."""

from __future__ import annotations

import json
import random
import struct
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import torch
from damaged_inputs import dicom, make_list
from safetensors.torch import save

UNCOMPRESSED = ("1.2.840.10008.1.2.1", "1.2.840.10008.1.2")
CODECS = {"JPEG": "1.2.840.10008.1.2.4.50", "JPEG lossless": "1.2.840.10008.1.2.4.70",
          "JPEG-LS": "1.2.840.10008.1.2.4.80", "JPEG 2000": "1.2.840.10008.1.2.4.90"}  # fmt: skip
RLE, DEFLATED = "1.2.840.10008.1.2.5", "1.2.840.10008.1.2.1.99"


@dataclass(frozen=True)
class Target:
    """What is read.

    Attributes:
        package: modules besides this project's whose branches are counted.
        seeds: makes sound inputs.
        read: is given the input and an empty folder, which it may fill.
        words: that are put into inputs.
        change: another way of changing an input, used as often as that of the fuzzer; None for none.
        longest: input in bytes.
    """

    seeds: Callable[[Path], list[bytes]]
    read: Callable[[bytes, Path], object]
    words: Sequence[bytes] = ()
    packages: Sequence[str] = ()
    change: Callable[[bytes, random.Random], bytes] | None = None
    longest: int = 16_384
    files: Callable[[Path], object] = field(default=lambda _: None)


def dicom_seeds(_: Path) -> list[bytes]:
    import pydicom
    from pydicom.filebase import DicomBytesIO

    def written(change: Callable[[Any], object]) -> bytes:
        dataset = pydicom.dcmread(DicomBytesIO(dicom(UNCOMPRESSED[0])))
        change(dataset)
        buffer = DicomBytesIO()
        dataset.save_as(buffer, enforce_file_format=True)
        return buffer.getvalue()

    def wide(dataset: Any) -> None:
        dataset.BitsAllocated, dataset.BitsStored, dataset.HighBit = 16, 12, 11
        dataset.PixelData = bytes(range(256)) * 15
        dataset.PhotometricInterpretation, dataset.PixelPaddingValue = "MONOCHROME1", 0
        dataset["PixelPaddingValue"].VR = "US"

    def odd(dataset: Any) -> None:
        dataset.WindowCenter, dataset.WindowWidth, dataset.VOILUTFunction = [100, 50], [200, 20], "SIGMOID"
        dataset.RescaleSlope, dataset.RescaleIntercept, dataset.RescaleType = "2", "-10", "US"
        dataset.PatientAge, dataset.PatientSex, dataset.PixelSpacing = "061Y", "F", [0.2, 0.3]
        dataset.SpecificCharacterSet, dataset.SeriesDescription = "ISO_IR 192", "Thorax ü"

    def table(dataset: Any) -> None:
        item = pydicom.Dataset()
        item.LUTDescriptor, item.LUTData = [256, 0, 8], list(range(256))
        dataset.VOILUTSequence = [item]
        item["LUTDescriptor"].VR = item["LUTData"].VR = "US"

    found = [dicom(UNCOMPRESSED[0]), dicom(CODECS["JPEG"]), *map(written, (wide, odd, table))]
    return [*found, written(lambda dataset: dataset.compress(RLE)), dicom(UNCOMPRESSED[0])[132:]]


def read_dicom(data: bytes, folder: Path) -> object:
    from afire_monai.radiographs.decode import picture_size, read_picture
    from afire_monai.radiographs.header import read_header

    path = folder / "a.dcm"
    path.write_bytes(data)
    return attempts(
        partial(read_header, path), partial(picture_size, path), partial(read_picture, path, modalities=None)
    )


def attempts(*calls: Callable[[], object]) -> object:
    """Make all calls, also where one refuses the file; the first refusal is raised at the end."""
    from afire_monai.core.errors import AfireError

    refusals = []
    for call in calls:
        try:
            call()
        except AfireError as error:
            refusals.append(error)
    if refusals:
        raise refusals[0]
    return None


TABLE = b"""path,group,labels,sex,age,mask,Mass,source
0.png,p0,Normal,F,50,m.png,0,a
1.png,p0,Mass|Edema,M,51,m.png,1,b
2.png,p1,"Mass",F,52,,-1,a
3.png,p2,nan,,060Y,,,b
4.png,p3,Normal,f,53.5,,1.0,b
"""


def table_seeds(_: Path) -> list[bytes]:
    """Tables; the first byte says how each is read."""
    text = TABLE.decode()
    forms = [TABLE, text.replace(",", ";").encode("utf-16"), b"sep=;\r\n" + TABLE.replace(b",", b";"),
             text.replace(",", "\t").replace("Edema", "Ödem").encode("cp1252")]  # fmt: skip
    return [bytes([way]) + form for way in range(5) for form in forms]


def read_a_table(data: bytes, folder: Path) -> object:
    from afire_monai.datalists.from_csv import datalist_from_csv

    path = folder / "table.csv"
    path.write_bytes(data[1:])
    ways: tuple[dict[str, Any], ...] = (
        {},
        {"label_columns": ["Mass"], "keep": ["sex", "age"]},
        {"by_source": True, "mask_column": "mask"},
        {"source": "a", "boxes_csv": path},
        {"delimiter": ";", "encoding": "utf-8", "group_column": None},
    )
    return datalist_from_csv(path, **ways[data[0] % len(ways) if data else 0])


def layout(form: str) -> dict[str, tuple[int, ...]]:
    """Return a small vision transformer's names and shapes: as timm, DINOv2, DINOv3, Hugging Face or EVA name them."""
    block: dict[str, tuple[int, ...]] = {f"norm{n}.{kind}": (8,) for n in (1, 2) for kind in ("weight", "bias")}
    qkv, out = (
        {"attn.qkv.weight": (24, 8), "attn.qkv.bias": (24,)},
        {"attn.proj.weight": (8, 8), "attn.proj.bias": (8,)},
    )
    mlp: dict[str, tuple[int, ...]] = {"mlp.fc1.weight": (16, 8), "mlp.fc1.bias": (16,), "mlp.fc2.weight": (8, 16),
                                       "mlp.fc2.bias": (8,)}  # fmt: skip
    whole: dict[str, tuple[int, ...]] = {"cls_token": (1, 1, 8), "pos_embed": (1, 5, 8), "norm.weight": (8,),
                                         "norm.bias": (8,), "patch_embed.proj.weight": (8, 3, 2, 2),
                                         "patch_embed.proj.bias": (8,)}  # fmt: skip
    if form in ("dinov2", "dinov3"):
        mlp = {"mlp.w12.weight": (32, 8), "mlp.w12.bias": (32,), "mlp.w3.weight": (8, 16), "mlp.w3.bias": (8,)}
        block |= {"ls1.gamma": (8,), "ls2.gamma": (8,)}
        whole["register_tokens"] = (1, 2, 8)
    if form == "dinov3":
        del whole["pos_embed"]
        whole |= {"rope_embed.periods": (2,), "mask_token": (1, 8)}
        qkv["attn.qkv.bias_mask"] = (24,)
    if form == "eva":
        qkv = {"attn.qkv.weight": (24, 8), "attn.q_bias": (8,), "attn.v_bias": (8,), "attn.inner_attn_ln.weight": (8,),
               "attn.inner_attn_ln.bias": (8,)}  # fmt: skip
        mlp = {"mlp.w1.weight": (16, 8), "mlp.w1.bias": (16,), "mlp.w2.weight": (16, 8), "mlp.w2.bias": (16,),
               "mlp.w3.weight": (8, 16), "mlp.w3.bias": (8,), "mlp.ffn_ln.weight": (16,),
               "mlp.ffn_ln.bias": (16,)}  # fmt: skip
    return whole | {f"blocks.{n}.{name}": shape for n in range(2) for name, shape in (block | qkv | out | mlp).items()}


CONFIG = {"num_attention_heads": 2, "layer_norm_eps": 1e-6, "hidden_act": "gelu", "rope_theta": 100.0}


def weights_seeds(_: Path) -> list[bytes]:
    """JSON settings, a zero byte, and weights as safetensors."""
    generator = torch.Generator().manual_seed(0)
    found = []
    for form in ("timm", "dinov2", "dinov3", "eva"):
        tensors = {name: torch.randn(shape, generator=generator).half() for name, shape in layout(form).items()}
        config = {**CONFIG, "hidden_act": "silu" if form != "timm" else "gelu"}
        found.append(json.dumps(config).encode() + b"\0" + save(tensors))
    return found


def read_weights(data: bytes, folder: Path) -> object:
    from afire_monai.models.foreign import load_foreign

    config, _, weights = data.partition(b"\0")
    (folder / "config.json").write_bytes(config)
    path = folder / "vit.safetensors"
    path.write_bytes(weights)
    encoder = load_foreign(path, 8).encoder
    if not encoder(torch.zeros(1, 1, 8, 8)).isfinite().all():
        return None  # large numbers may overflow; they are refused where predictions are made
    return encoder


NAMES = ("cls_token", "pos_embed", "register_tokens", "rope_embed.periods", "rope.freqs_cos", "norm.weight",
         "fc_norm.weight", "patch_embed.proj.weight", "mask_token", "blocks.0.attn.qkv.bias_mask", "blocks.x.y",
         "blocks.1.1.norm1.weight", "blocks.7.norm1.weight", "blocks.99999999.norm1.weight", "blocks.", "blocks.0",
         "blocks.0.mlp.up_proj.weight", "blocks.0.mlp.gate_proj.weight", "blocks.0.mlp.fc1.weight",
         "blocks.0.attn.q_proj.weight", "blocks.0.attn.q_proj.bias", "blocks.0.attention.attention.key.weight",
         "blocks.0.ls1.gamma", "head.weight", "positions", "teacher.backbone.patch_embed.proj.weight")  # fmt: skip
SHAPES: tuple[list[int], ...] = (
    *([], [0], [1], [8], [24], [8, 8], [1, 8], [3, 8], [16, 8], [8, 16]),
    *([1, 4, 8], [1, 10, 8], [1, 1, 8], [1, 1, 4], [2, 5, 8], [1, 0, 8], [8, 1, 2, 2], [8, 3, 2, 3], [0, 3, 2, 2]),
)
BYTES = {"F16": 2, "F32": 4, "F64": 8, "BF16": 2, "I64": 8, "U8": 1, "BOOL": 1}


def change_weights(data: bytes, draw: random.Random) -> bytes:
    """Rename, drop, reshape or retype a tensor in such a way that the file stays one."""
    config, _, weights = data.partition(b"\0")
    try:
        (length,) = struct.unpack("<Q", weights[:8])
        head = json.loads(weights[8 : 8 + length])
        tensors = {n: dict(e, data=weights[8 + length :][slice(*e["data_offsets"])]) for n, e in head.items()}
        name = draw.choice(sorted(tensors))
        entry = tensors.pop(name)
        entry["shape"], entry["dtype"] = list(entry["shape"]), str(entry["dtype"])
    except (ValueError, KeyError, TypeError, IndexError, AttributeError, RecursionError, struct.error):
        return data  # no such file any more
    way = draw.randrange(5)
    if way == 0:
        name = draw.choice(NAMES)
    elif way == 1:
        name = name.replace("blocks.0", draw.choice(("blocks.2", "layers.0", "blocks.0.0", "blocks.-1", "blocks.x")))
    elif way in (2, 3):
        entry["shape"] = draw.choice(SHAPES)
        entry["dtype"] = draw.choice(list(BYTES)) if way == 3 else entry["dtype"]
        count = BYTES.get(entry["dtype"], 4)
        for side in entry["shape"]:
            count *= side
        entry["data"] = (entry["data"] * (count // max(len(entry["data"]), 1) + 1) + bytes(count))[:count]
    if way < 4:
        tensors[name] = entry
    at, body = 0, b""
    for one in tensors.values():
        content = one.pop("data")
        one["data_offsets"], at, body = [at, at + len(content)], at + len(content), body + content
    text = json.dumps(tensors).encode()
    return config + b"\0" + struct.pack("<Q", len(text)) + text + body


TARGETS: dict[str, Target] = {
    "dicom": Target(
        dicom_seeds,
        read_dicom,
        [uid.encode() for uid in (*UNCOMPRESSED, *CODECS.values(), RLE, DEFLATED)]
        + [b"MONOCHROME1", b"PALETTE COLOR", b"RGB", b"\xe0\x7f\x10\x00", b"\xfe\xff\x00\xe0", b"\xfe\xff\xdd\xe0",
           b"\xff\xff\xff\xff", b"SQ\0\0", b"OW\0\0", b"UN\0\0", b"DS\x04\0", b"IS\x04\0", b"1e400", b"ISO 2022 IR 87"],
        ("pydicom",),
    ),
    "weights": Target(weights_seeds, read_weights, [name.encode() for name in NAMES], change=change_weights,
                      longest=32_768),
    "tables": Target(
        table_seeds,
        read_a_table,
        [b'"', b";", b"\t", b"\r\n", b"sep=;\n", b"\xff\xfe", b"\xfe\xff", b"\x1f\x8b", b"nan", b"-1", b"1e999",
         b"../", b"labels", b"path", b"x,y,width,height", b"label", b"No Finding", b"\xe2\x80\xa8"],
        longest=4096,
        files=make_list,
    ),
}  # fmt: skip
