"""Small files whose pictures would be huge: each command ends, names them, and stays below a limit of memory.

    python benchmarks/bombs.py

Made for the run: DICOM whose JPEG or JPEG 2000 codestream says 60,000 x 60,000 inside a header of 48 x 40 and inside
one that says the same, a PNG and a JPEG of that size, a PNG mask of it, and a deflated DICOM file of a gigabyte. They
lie beside sound pictures. Exit status 1 if a command
needs more memory than the limit, is killed, or ends in a traceback.
"""

from __future__ import annotations

import argparse
import json
import os
import struct
import subprocess
import sys
import tempfile
import zlib
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

import numpy as np
from PIL import Image

SIDE = 60_000
LIMIT = 1024  # MiB, the interpreter and its libraries included
SOUND = 12


def png(side: int) -> bytes:
    """Return a PNG of black pixels whose data is cut after a megabyte of rows."""

    def chunk(kind: bytes, body: bytes) -> bytes:
        return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))

    rows = zlib.compress(bytes(side + 1) * 1000, 9)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", struct.pack(">IIBBBBB", side, side, 8, 0, 0, 0, 0)) + chunk(
        b"IDAT", rows
    ) + chunk(b"IEND", b"")  # fmt: skip


def jpeg(side: int) -> bytes:
    """Return a sound JPEG whose frame header says another size."""
    path = Path(tempfile.mkstemp(suffix=".jpg")[1])
    Image.fromarray(np.zeros((48, 40), np.uint8)).save(path)
    content = bytearray(path.read_bytes())
    path.unlink()
    place = content.index(b"\xff\xc0") + 5
    content[place : place + 4] = struct.pack(">HH", side, side)
    return bytes(content)


def jpeg2000(side: int) -> bytes:
    """Return a sound JPEG 2000 codestream whose size marker says another size, in one tile."""
    path = Path(tempfile.mkstemp(suffix=".j2k")[1])
    Image.fromarray(np.zeros((48, 40), np.uint8)).save(path, format="JPEG2000", no_jp2=True)
    content = bytearray(path.read_bytes())
    path.unlink()
    place = content.index(b"\xff\x51") + 6
    content[place : place + 8] = struct.pack(">II", side, side)
    content[place + 16 : place + 24] = struct.pack(">II", side, side)
    return bytes(content)


def write_bombs(folder: Path) -> list[str]:
    """Write all of them and a sound DICOM file; return their names."""
    from pydicom.dataset import Dataset, FileMetaDataset
    from pydicom.encaps import encapsulate
    from pydicom.uid import (
        ComputedRadiographyImageStorage,
        DeflatedExplicitVRLittleEndian,
        ExplicitVRLittleEndian,
        JPEG2000Lossless,
        JPEGBaseline8Bit,
        generate_uid,
    )

    folder.mkdir()
    (folder / "bomb.png").write_bytes(png(SIDE))
    (folder / "bomb.jpg").write_bytes(jpeg(SIDE))
    streams = {"jpeg": (JPEGBaseline8Bit, jpeg(SIDE)), "jpeg2000": (JPEG2000Lossless, jpeg2000(SIDE))}
    cases = [(f"{name}_{rows}", syntax, encapsulate([data]), rows, columns)
             for name, (syntax, data) in streams.items() for rows, columns in ((48, 40), (SIDE, SIDE))]  # fmt: skip
    grey = np.random.default_rng(1).integers(0, 255, (48, 40), dtype=np.uint8)
    cases.append(("sound", ExplicitVRLittleEndian, grey.tobytes(), 48, 40))
    cases.append(("deflated", DeflatedExplicitVRLittleEndian, bytes(1_000_000_000), 48, 40))
    for name, syntax, pixels, rows, columns in cases:
        data = Dataset()
        data.file_meta = FileMetaDataset()
        data.SOPClassUID, data.SOPInstanceUID = ComputedRadiographyImageStorage, generate_uid()
        data.StudyInstanceUID = data.SeriesInstanceUID = generate_uid()
        data.file_meta.TransferSyntaxUID = syntax
        data.Modality, data.PhotometricInterpretation, data.SamplesPerPixel = "CR", "MONOCHROME2", 1
        data.BodyPartExamined, data.ViewPosition, data.PatientID = "CHEST", "PA", name
        data.Rows, data.Columns, data.BitsAllocated, data.BitsStored, data.HighBit = rows, columns, 8, 8, 7
        data.PixelRepresentation = 0
        data.PixelData = pixels
        data.save_as(folder / f"{name}.dcm", enforce_file_format=True)
    return sorted(path.name for path in folder.iterdir())


def peak_of(command: list[str], log: Path) -> tuple[int, float]:
    """Run a command; return its exit status and the peak memory of its largest process in MiB."""
    with log.open("wb") as file:
        process = subprocess.Popen(command, stdout=file, stderr=file, env={**os.environ, "OMP_NUM_THREADS": "1"})
        _, status, usage = os.wait4(process.pid, 0)
    return os.waitstatus_to_exitcode(status), usage.ru_maxrss / 1024


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--limit", type=int, default=LIMIT, help="MiB")
    parser.add_argument("--only", nargs="+", default=[], help="commands; all if none")
    args = parser.parse_args()
    failed = 0
    with tempfile.TemporaryDirectory() as temporary:
        root = Path(temporary)
        # in a process of its own: a child's peak begins with what its parent held
        with ProcessPoolExecutor(1) as pool:
            names = pool.submit(write_bombs, root / "bombs").result()
        generator = np.random.default_rng(0)
        for number in range(SOUND):
            coarse = Image.fromarray(generator.integers(0, 255, (8, 8), dtype=np.uint8))
            coarse.resize((96, 96), Image.Resampling.BICUBIC).save(root / "bombs" / f"sound_{number}.png")
        (root / "mask.png").write_bytes(png(SIDE))
        items = [{"image": f"bombs/{p.name}", "label": [1]} for p in sorted((root / "bombs").iterdir())]
        masked = [{**item, "mask": "mask.png"} for item in items[:-6]]
        content = {"name": "bombs", "labels": ["Normal"], "training": items[:-6], "validation": items[-6:], "test": []}
        (root / "list.json").write_text(json.dumps(content))
        (root / "masks.json").write_text(json.dumps({**content, "training": masked}))
        afire = [sys.executable, "-m", "afire_monai"]
        small = ["epochs=1", "image_size=32", "batch_size=4", "use_mlflow=False", "health_images=4"]
        commands = {
            "check": [*afire, "check", str(root / "bombs")],
            "check of a list with masks": [*afire, "check", str(root / "masks.json")],
            "predict": [*afire, "predict", str(root / "bombs"), "--out", str(root / "predicted")],
            "ingest": [*afire, "ingest", str(root / "bombs"), "--out", str(root / "ingested")],
            "pretrain": [*afire, "pretrain", str(root / "list.json"), "--out", str(root / "run"), *small],
            "segment": [*afire, "segment", str(root / "masks.json"), "--out", str(root / "segmented"), *small[:-1]],
        }
        print(f"{', '.join(names)}; {SOUND} sound PNG pictures")
        for name, command in commands.items():
            if args.only and name not in args.only:
                continue
            log = root / "log.txt"
            status, peak = peak_of(command, log)
            text = log.read_text(errors="replace")
            bad = peak > args.limit or status < 0 or "Traceback" in text
            failed += bad
            print(f"{'FAILED' if bad else 'ok':6} {name}: exit status {status}, {peak:.0f} MiB", flush=True)
            if bad:
                print(text[-1500:])
    return int(failed > 0)


if __name__ == "__main__":
    sys.exit(main())
