"""Damage thousands of files, and see that each ends in a result or a named error, in bounded time and memory.

python benchmarks/damaged.py --files 5000
"""

from __future__ import annotations

import argparse
import io
import json
import logging
import random
import re
import resource
import tempfile
import time
import warnings
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import numpy as np
from PIL import Image

from afire_monai.core.errors import AfireError
from afire_monai.datalists.file import normal_of
from afire_monai.datalists.from_csv import datalist_from_csv
from afire_monai.datalists.validate import validate_datalist
from afire_monai.radiographs.decode import read_picture
from afire_monai.radiographs.masks import read_mask

SECONDS = 10.0
"""Longest that one small file may take."""
MEBIBYTES = 1024
"""Most that all of it may take."""


def sound_files(folder: Path) -> dict[str, tuple[str, bytes, Callable[[Path], object]]]:
    """Return a sound file of each kind: its suffix, its bytes, and what reads it."""
    import nibabel
    from pydicom.dataset import Dataset, FileMetaDataset
    from pydicom.encaps import encapsulate
    from pydicom.uid import ComputedRadiographyImageStorage, ExplicitVRLittleEndian, JPEGBaseline8Bit, generate_uid

    grey = np.random.default_rng(0).integers(0, 255, (48, 40), dtype=np.uint8)

    def saved(values: np.ndarray, kind: str) -> bytes:
        buffer = io.BytesIO()
        Image.fromarray(values).save(buffer, format=kind)
        return buffer.getvalue()

    def dicom(syntax: str) -> bytes:
        data = Dataset()
        data.file_meta = FileMetaDataset()
        data.SOPClassUID = ComputedRadiographyImageStorage
        data.SOPInstanceUID = generate_uid(entropy_srcs=["damaged"])
        data.file_meta.TransferSyntaxUID = syntax
        data.Modality, data.PhotometricInterpretation, data.SamplesPerPixel = "CR", "MONOCHROME2", 1
        data.Rows, data.Columns, data.BitsAllocated, data.BitsStored, data.HighBit = 48, 40, 8, 8, 7
        data.PixelRepresentation, data.WindowCenter, data.WindowWidth = 0, 120, 200
        data.PixelData = grey.tobytes() if syntax == ExplicitVRLittleEndian else encapsulate([saved(grey, "JPEG")])
        data["PixelData"].VR = "OB"
        buffer = io.BytesIO()
        data.save_as(buffer, enforce_file_format=True)
        return buffer.getvalue()

    table = "path,group,labels,sex,age,mask\n" + "".join(
        f"{n}.png,p{n // 2},{'Normal' if n % 2 else 'Mass|Edema'},F,5{n},m.png\n" for n in range(8)
    )
    items = [{"image": f"{n}.png", "group": f"p{n}", "label": [n % 2, 0], "mask": "m.png"} for n in range(6)]
    for name in [*(f"{n}.png" for n in range(8)), "m.png"]:
        (folder / name).write_bytes(saved(grey, "PNG"))
    return {
        "PNG": (".png", saved(grey, "PNG"), read_picture),
        "16-bit PNG": (".png", saved(grey.astype(np.uint16) * 200, "PNG"), read_picture),
        "JPEG": (".jpg", saved(grey, "JPEG"), read_picture),
        "NIfTI": (".nii", nibabel.Nifti1Image(grey, np.eye(4)).to_bytes(), read_picture),
        "DICOM": (".dcm", dicom(ExplicitVRLittleEndian), read_picture),
        "DICOM JPEG": (".dcm", dicom(JPEGBaseline8Bit), read_picture),
        "mask": (".png", saved((grey > 99).astype(np.uint8), "PNG"), read_mask),
        "table": (".csv", table.encode(), datalist_from_csv),
        "list": (".json", json.dumps({"labels": ["Normal", "Mass"], "training": items}).encode(), _read_list),
    }


def _read_list(path: Path) -> object:
    report = validate_datalist(path)
    from afire_monai.datalists.file import load_datalist

    load_datalist(path, section="training")
    return report, normal_of(load_datalist(path), "training")


def damaged(data: bytes, draw: random.Random) -> bytes:
    """Return a file cut off, with changed, doubled, lost or inserted bytes, or with large numbers in its head."""
    changed = bytearray(data)
    for _ in range(draw.choice((1, 1, 2, 8, 40))):
        at = draw.randrange(len(changed)) if draw.random() < 0.5 else draw.randrange(min(len(changed), 300))
        way = draw.randrange(6)
        if way == 0:
            changed[at] = draw.randrange(256)
        elif way == 1:
            changed[at : at + 4] = draw.choice((b"\xff\xff\xff\x7f", b"\0\0\0\0", b"\xff\xff\xff\xff", b"\0\0\xea\x60"))
        elif way == 2:
            del changed[at : at + draw.randrange(1, 30)]
        elif way == 3:
            changed[at:at] = changed[at : at + draw.randrange(1, 60)]
        elif way == 4:
            changed[at:at] = draw.choice((b'"', b",", b"\n", b"null", b"\xff", b"\xed\xa0\x80", b"{", b"1e999"))
        elif draw.random() < 0.3:
            del changed[at:]
        if not changed:
            break
    return bytes(changed)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--files", type=int, default=5000)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    warnings.simplefilter("ignore")
    logging.disable(logging.CRITICAL)
    counts: dict[str, Counter[str]] = {}
    slowest = 0.0
    unnamed: list[str] = []
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        kinds = sound_files(folder)
        for number in range(options.files):
            kind, (suffix, data, read) = list(kinds.items())[number % len(kinds)]
            path = folder / f"damaged{suffix}"
            path.write_bytes(damaged(data, random.Random(options.seed * 1_000_003 + number)))
            begin = time.perf_counter()
            try:
                read(path)
                outcome = "read"
            except AfireError as error:
                outcome = "refused"
                if "damaged" not in str(error) and "item " not in str(error):
                    unnamed.append(f"{kind} {number}: {error}")
            except Exception as error:
                outcome = "unnamed"
                unnamed.append(f"{kind} {number}: {type(error).__name__}: {error}")
            slowest = max(slowest, time.perf_counter() - begin)
            counts.setdefault(kind, Counter())[outcome] += 1
    for kind, outcomes in counts.items():
        print(f"{kind}: " + ", ".join(f"{outcome} {count}" for outcome, count in sorted(outcomes.items())))
    # getrusage would count what the process that started this one had
    status = Path("/proc/self/status")
    peak = re.search(r"VmHWM:\s+(\d+)", status.read_text()) if status.exists() else None
    memory = (int(peak[1]) if peak else resource.getrusage(resource.RUSAGE_SELF).ru_maxrss) // 1024
    print(f"{options.files} files, {len(unnamed)} unnamed; slowest {slowest:.2f} s; at most {memory} MiB")
    print(*unnamed[:20], sep="\n")
    return int(bool(unnamed) or slowest > SECONDS or memory > MEBIBYTES)


if __name__ == "__main__":
    raise SystemExit(main())
