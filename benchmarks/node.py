"""`afire node` against prediction alone, and its memory as objects become more.

Synthetic radiographs (16 bits) are written to a temporary folder, then

- ``predict``: `afire predict` and `afire dicom-results` on these files, each a command with its start;
- ``node``: `afire node`, started before the clock; files are sent to it one after the other over one connection, and
  it sends its results to an archive in this process that throws them away. Its resident memory is sampled when a
  quarter, a half, three quarters and all of the results are sent.

Images a second are by the clock, and mean little on a machine that does other work.

    python benchmarks/node.py                                  # 1,000 files of 128 x 128, the model of the package
    python benchmarks/node.py --files 200 --side 1024 --model runs/classifier/models
    python benchmarks/node.py --kinds sr                       # reports alone
"""

from __future__ import annotations

import argparse
import os
import re
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from pathlib import Path

import pydicom
from ingest import write_archive
from pynetdicom import AE, AllStoragePresentationContexts, evt

from afire_monai.hospital.node.queue import REFUSED, SENT
from afire_monai.hospital.node.run import node_status
from afire_monai.hospital.pacs.client import Pacs


def free_port() -> int:
    """A port of loopback that nobody uses now."""
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        return int(taken.getsockname()[1])


def afire(*words: str) -> list[str]:
    return [sys.executable, "-m", "afire_monai", *words]


def resident(process: int) -> float:
    """MiB."""
    found = re.search(r"VmRSS:\s+(\d+) kB", Path(f"/proc/{process}/status").read_text())
    return int(found[1]) / 1024 if found else 0.0


def throwing_away(port: int) -> tuple[AE, Counter[str]]:
    """An archive that counts how often it gets each UID and keeps nothing else."""
    archive, count = AE("SINK"), Counter[str]()
    for context in AllStoragePresentationContexts:
        archive.add_supported_context(context.abstract_syntax)

    def store(event: evt.Event) -> int:
        count[str(event.request.AffectedSOPInstanceUID)] += 1
        return 0x0000

    archive.start_server(("127.0.0.1", port), block=False, evt_handlers=[(evt.EVT_C_STORE, store)])
    return archive, count


def predict(files: Path, work: Path, options: list[str], kinds: list[str], count: int) -> None:
    begin = time.perf_counter()
    subprocess.run(afire("predict", str(files), "--out", str(work / "p"), "--quiet", *options), check=True)
    middle = time.perf_counter()
    subprocess.run(afire("dicom-results", str(work / "p"), "--out", str(work / "d"), "--quiet", *kinds), check=True)
    end = time.perf_counter()
    print(f"predict: {count / (middle - begin):.1f} images/s, then DICOM objects {count / (end - middle):.1f} images/s")


def node(files: Path, work: Path, options: list[str], kinds: list[str], count: int) -> None:
    theirs, ours = free_port(), free_port()
    archive, received = throwing_away(theirs)
    state = work / "state"
    command = afire("node", "--state", str(state), "--port", str(ours), "--send-to", f"SINK@127.0.0.1:{theirs}")
    process = subprocess.Popen([*command, *options, *kinds], stdout=subprocess.PIPE)
    try:
        assert process.stdout is not None
        process.stdout.readline()
        print(f"node:    {resident(process.pid):.0f} MiB at its start")
        begin = time.perf_counter()
        sending = threading.Thread(target=send, args=(files, ours, begin))
        sending.start()
        marks = [count * quarter // 4 for quarter in (1, 2, 3, 4)]
        while marks:
            counts = node_status(state).counts
            while marks and counts[SENT] + counts[REFUSED] >= marks[0]:
                print(f"  {marks.pop(0)} done: {resident(process.pid):.0f} MiB, {time.perf_counter() - begin:.0f} s")
            time.sleep(0.5)
        seconds = time.perf_counter() - begin
        sending.join()
        counts = node_status(state).counts
        print(f"node:    {count / seconds:.1f} images/s; sent {counts[SENT]}, refused {counts[REFUSED]}, ", end="")
        print(f"objects at the archive {len(received)}, sent to it again {received.total() - len(received)}")
    finally:
        process.terminate()
        process.wait()
        archive.shutdown()


def send(files: Path, port: int, begin: float) -> None:
    paths = sorted(path for path in files.rglob("*") if path.is_file())
    with Pacs(f"AFIRE@127.0.0.1:{port}") as router:
        for path in paths:
            router.store(pydicom.dcmread(path))
    print(f"  all received after {time.perf_counter() - begin:.0f} s")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--files", type=int, default=1000)
    parser.add_argument("--side", type=int, default=128)
    parser.add_argument("--model", help="model folder; that of the package unless given")
    parser.add_argument("--kinds", help="of results: sr,seg,sc")
    parser.add_argument("--node-alone", action="store_true", help="leave out prediction without the node")
    arguments = parser.parse_args()
    options = ["--model", arguments.model] if arguments.model else []
    kinds = ["--kinds", arguments.kinds] if arguments.kinds else []
    print(f"{arguments.files} files of {arguments.side} x {arguments.side}, {os.cpu_count()} cores")
    with tempfile.TemporaryDirectory() as folder:
        files = Path(folder) / "files"
        files.mkdir()
        write_archive(files, arguments.files, arguments.side)
        if not arguments.node_alone:
            predict(files, Path(folder), options, kinds, arguments.files)
        node(files, Path(folder), options, kinds, arguments.files)


if __name__ == "__main__":
    main()
