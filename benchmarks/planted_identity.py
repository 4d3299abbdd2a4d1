"""Planted identities: 32 kinds of DICOM elements turn up in `private/` and in objects for the archive alone.

    nice -n 5 python benchmarks/planted_identity.py

Each kind has a word of its own. Every command that handles DICOM files is run on such radiographs; then all files that
it left (also in ZIP archives, MLflow's store and the temporary folder), and all that it said, also in a crash, are
searched. The names of files, which users choose, may also be in the lists that users keep, in what `afire check` says
of them, and in the table of predictions that only its owner reads. Exit status 1 if a word is elsewhere.

A test archive in a process of its own holds the radiographs, gives them to `afire ingest --pacs`, routes them to
`afire node`, and takes what that and `afire send` send. Needs the extra ``pacs``.
"""

from __future__ import annotations

import argparse
import contextlib
import csv
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import zipfile
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import faults
from long_run import small_encoder

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "tests"))

WORDS = ("PatientName", "PatientID", "OtherPatientNames", "PatientBirthName", "PatientMotherBirthName",
         "PatientAddress", "MilitaryRank", "MedicalRecordLocator", "AccessionNumber", "InstitutionName",
         "InstitutionAddress",
         "InstitutionalDepartmentName", "ReferringPhysicianName", "PerformingPhysicianName", "OperatorsName",
         "RequestingPhysician", "StationName", "DeviceSerialNumber", "StudyID", "PatientComments",
         "AdditionalPatientHistory", "ImageComments", "ProtocolName", "RequestedProcedureDescription",
         "CurrentPatientLocation")  # fmt: skip
DATES = {"PatientBirthDate": "19431107", "StudyDate": "20210304", "PatientBirthTime": "131719"}
OWN = {  # where a kind may be
    "file name": ("list.json", "labelled.json", "index.csv", "objects.csv", "said by check", "said by datalist")
}
DAMAGED = ("check", "predict", "predict maps")  # exit status 1: one of the files is damaged
ALL_KINDS = "sr,seg,sc,gsps"
TINY = ("epochs=1", "image_size=32", "batch_size=4", "use_mlflow=True")


def word(kind: str) -> str:
    return DATES.get(kind, f"Zq{kind[:9]}{sum(map(ord, kind))}")[:16]


def make_archive(folder: Path, count: int) -> dict[str, list[str]]:
    """Write radiographs; return the planted words by kind."""
    from hospital.planted import small, write  # type: ignore[import-not-found]
    from pydicom.dataset import Dataset

    planted: dict[str, list[str]] = {kind: [word(kind)] for kind in (*WORDS, *DATES, "file name", "nested", "private")}
    planted["UIDs"] = []
    for number in range(count):
        elements: dict[str, Any] = {kind: word(kind) for kind in WORDS} | DATES
        elements |= {kind: f"{word(kind)}{number}"[:16] for kind in ("PatientID", "AccessionNumber")}
        item = small(number, **elements)
        inner = Dataset()
        inner.ScheduledProcedureStepDescription = word("nested")
        item.RequestAttributesSequence = [inner]
        item.private_block(0x0011, "ACME", create=True).add_new(1, "LO", word("private"))
        planted["UIDs"] += [item.StudyInstanceUID, item.SeriesInstanceUID, item.SOPInstanceUID]
        write(item, folder / f"{word('file name')}_{number:02}.dcm")
    whole = (folder / f"{word('file name')}_00.dcm").read_bytes()
    (folder / f"{word('file name')}_98.dcm").write_bytes(whole[:-300])
    return planted


@contextlib.contextmanager
def running_archive(folder: Path) -> Iterator[str]:
    """Serve some radiographs of a folder over DIMSE in a process of its own; give its address."""
    from hospital.fake_pacs import fake_pacs  # type: ignore[import-not-found]
    from pydicom import dcmread

    ready, tell = os.pipe()
    process = os.fork()
    if process == 0:
        with fake_pacs() as pacs:
            pacs.hold(*(dcmread(path) for path in sorted(folder.glob("*.dcm"))[:6]))
            os.write(tell, pacs.address.encode())
            signal.pause()
        os._exit(0)
    try:
        yield os.read(ready, 100).decode()
    finally:
        os.kill(process, signal.SIGKILL)
        os.waitpid(process, 0)


def node(root: Path, address: str, count: int = 3) -> faults.Ended:
    """Run `afire node`, route radiographs to it, wait until their results are in the archive, and end it."""
    from pydicom import dcmread

    from afire_monai.hospital.node.run import node_status
    from afire_monai.hospital.pacs.client import Pacs

    state, log, begin = root / "out" / "node", root / "out" / "node.log", time.monotonic()
    words = ["node", "--state", str(state), "--model", str(root / "out" / "classifier" / "models"), "--port", "0",
             "--send-to", address, "--workers", "0", "--kinds", ALL_KINDS]  # fmt: skip
    environment = {**os.environ, "TMPDIR": str(root / "out" / "tmp")}
    with log.open("w+") as file:
        process = subprocess.Popen(
            [sys.executable, "-m", "afire_monai", *words], stdout=file, stderr=subprocess.STDOUT, env=environment
        )
        try:
            while "listening: port" not in log.read_text() and process.poll() is None:
                time.sleep(0.2)
            port = log.read_text().partition("listening: port ")[2].partition(";")[0]
            with Pacs(f"AFIRE@127.0.0.1:{port}", aet="ROUTER", timeout=30) as router:
                for path in sorted((root / "archive").glob("*.dcm"))[:count]:
                    router.store(dcmread(path))
            while node_status(state).counts["sent"] < count and time.monotonic() - begin < 120:
                time.sleep(0.5)
            done = node_status(state).counts["sent"]
        finally:
            process.terminate()
            status = process.wait(60)
    text = log.read_text()
    log.unlink()
    return faults.Ended(status if done == count else 99, text, 0, time.monotonic() - begin)


def commands(root: Path, address: str) -> dict[str, list[str]]:
    archive, out = str(root / "archive"), root / "out"
    listed, private = str(out / "ingested" / "datalist.json"), str(out / "ingested" / "private" / "index.csv")
    model = str(out / "classifier" / "models")
    return {
        "ingest": ["ingest", archive, "--out", str(out / "ingested"), "--labels", str(root / "findings.csv"), "--join",
                   "accession", "--label-columns", "Normal,Effusion", "--allow", "age,sex,view",
                   "--split", "0.5,0.25,0.25"],
        "datalist": ["datalist", "from-folder", archive, "--out", str(out / "list.json"), "--fractions", "0.7,0.2,0.1"],
        "check": ["check", archive],
        "check of a list": ["check", listed],
        "pretrain": ["pretrain", str(out / "list.json"), *TINY, f"init={root / 'encoder'}", "cache=disk",
                     f"cache_dir={out / 'cache'}", "health_images=4", "panel_every=1", "--out", str(out / "run")],
        "finetune": ["finetune", listed, *TINY, "--init", str(root / "encoder"), "--out", str(out / "classifier")],
        "reference": ["reference", "--model", str(out / "run" / "models"), "--datalist", str(out / "list.json")],
        "predict": ["predict", archive, "--model", model, "--heatmap", "gradcam", "--out", str(out / "predicted")],
        "predict maps": ["predict", archive, "--model", str(out / "run" / "models"), "--out", str(out / "maps")],
        "predict of a list": ["predict", listed, "--section", "test", "--model", model, "--heatmap", "gradcam",
                              "--out", str(out / "found")],
        "evaluate": ["evaluate", str(out / "found"), "--datalist", listed, "--out", str(out / "evaluation")],
        "figures": ["figures", "--encoder", str(out / "run" / "models"), "--datalist", listed, "--shift", "1",
                    "--out", str(out / "figures")],
        "dicom-results": ["dicom-results", str(out / "found"), "--index", private, "--kinds", ALL_KINDS,
                          "--out", str(out / "results_dicom")],
        "ingest of a PACS": ["ingest", "--pacs", address, "--out", str(out / "from_pacs")],
        "send": ["send", str(out / "results_dicom"), "--pacs", address],
        "node": [],
        "forget": ["forget", f"{word('PatientID')}0"[:16], "--folder", str(out / "ingested"), "--model", model],
        "crash of predict": ["predict", str(root / "broken"), "--model", model, "--out", str(out / "broken")],
        "crash of pretrain": ["pretrain", str(out / "list.json"), *TINY, f"init={root / 'encoder'}", "--out",
                              str(out / "crashed"), "lr=1e30", "epochs=30"],
    }  # fmt: skip


def parts(path: Path) -> list[bytes]:
    """Return a file's bytes and those of what it holds if it is a ZIP archive, as checkpoints are."""
    found = [path.read_bytes()]
    if zipfile.is_zipfile(path):
        with zipfile.ZipFile(path) as archive:
            found += [archive.read(name) for name in archive.namelist()]
    return found


def search(texts: dict[str, str], root: Path, planted: dict[str, list[str]]) -> tuple[list[str], Counter[str]]:
    """Return where words are that should not be there, and how often they are where they may be."""
    wrong, allowed = [], Counter[str]()
    places = {f"said by {name.split()[0]}": [text.encode()] for name, text in texts.items()}
    texts_of = list(places.items())
    for path in (root / "out").rglob("*"):
        if path.is_file():
            texts_of.append((str(path.relative_to(root)), [str(path.relative_to(root)).encode(), *parts(path)]))
    for place, content in texts_of:
        for kind, words in planted.items():
            if not any(one.encode() in part for one in words for part in content):
                continue
            private = "/private/" in place or place.startswith("out/results_dicom/")
            if private or place.rpartition("/")[2] in OWN.get(kind, ()):
                allowed[kind] += 1
            else:
                wrong.append(f"{kind} in {place}")
    return wrong, allowed


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, default=48)
    options = parser.parse_args()
    os.environ["OMP_NUM_THREADS"] = "1"
    faults.preload()
    root = Path(tempfile.mkdtemp(prefix="planted_"))
    (root / "out").mkdir()
    (root / "broken").mkdir()
    texts, failures, stack = {}, 0, contextlib.ExitStack()
    try:
        planted = make_archive(root / "archive", options.images)
        shutil.copy(root / "archive" / f"{word('file name')}_98.dcm", root / "broken")
        with (root / "findings.csv").open("w", newline="") as file:
            rows = [
                [f"{word('AccessionNumber')}{n}"[:16], int(n % 3 > 0), int(n % 3 == 0)] for n in range(options.images)
            ]
            csv.writer(file).writerows([["AccessionNumber", "Normal", "Effusion"], *rows])
        small_encoder(root / "encoder")
        archive = stack.enter_context(running_archive(root / "archive"))
        for name, line in commands(root, archive).items():
            if name.startswith("crash"):
                os.environ["AFIRE_TRACEBACK"] = "1"
            ended = faults.run(line, root / "out") if line else node(root, archive)
            texts[name] = ended.text
            crash = name.startswith("crash")
            ok = ended.status > 0 if crash else ended.status == int(name in DAMAGED)
            failures += not ok
            print(f"{name}: exit status {ended.status}{'' if ok else f' UNEXPECTED: {ended.text[-1500:]}'}", flush=True)
        wrong, allowed = search(texts, root, planted)
    finally:
        stack.close()
        shutil.rmtree(root)
    for row in sorted(set(wrong)):
        print(f"FOUND {row}")
    files = sum(allowed.values())
    print(f"| {len(planted)} kinds, {len(texts)} commands | {len(set(wrong))} places where none may be; "
          f"{files} in private/, the archive's own objects and users' lists |")  # fmt: skip
    return int(bool(wrong) or failures > 0)


if __name__ == "__main__":
    raise SystemExit(main())
