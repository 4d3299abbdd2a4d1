"""Coverage-guided fuzzing: what takes up files of others gives a result or a named error, however they look.

    python -m venv --system-site-packages .fuzz && .fuzz/bin/pip install atheris     # beside this package, once
    nice -n 5 .fuzz/bin/python benchmarks/fuzz.py dicom --minutes 10 --seed 0

Targets are ``dicom`` (header, size and pixels of a file), ``weights`` (vision transformers of other projects, with the
settings beside them) and ``tables`` (CSV lists). The seed corpus is made by this script; inputs that reached new
branches and inputs at fault are kept in ``--keep``, and ``--again FILE`` reads one once more. A fault is an error that
is none of the package's, one input that takes 30 s or 2 GiB, or the end of the process. Exit status 1 if there is one.
"""

from __future__ import annotations

import argparse
import hashlib
import logging
import random
import re
import subprocess
import sys
import tempfile
import time
import traceback
import warnings
from pathlib import Path

SECONDS, MEGABYTES = 30, 2048


def place_of(error: BaseException) -> str:
    """Name an error by its kind and where in the package it came through last."""
    frames = [frame for frame in traceback.extract_tb(error.__traceback__) if "afire_monai/" in frame.filename]
    return f"{type(error).__name__} {Path(frames[-1].filename).name}:{frames[-1].lineno}" if frames else repr(error)


def child(name: str, keep: Path, options: list[str], seed: int) -> None:
    """Fuzz in this process, which libFuzzer ends; faults are noted and do not end it."""
    import atheris

    packages = ["afire_monai", *(["pydicom"] if name == "dicom" else [])]
    with atheris.instrument_imports(include=packages, exclude=["pydicom._dicom_dict", "pydicom._uid_dict"]):
        from fuzz_targets import TARGETS

        import afire_monai.datalists.from_csv
        import afire_monai.models.foreign
        import afire_monai.radiographs.decode
        import afire_monai.radiographs.header  # noqa: F401
        from afire_monai.core.errors import AfireError
    target, draw, counts = TARGETS[name], random.Random(seed), {"result": 0, "refused": 0}
    work = Path(tempfile.mkdtemp(prefix="fuzz_", dir=keep))
    target.files(work)

    def one(data: bytes) -> None:
        try:
            target.read(data, work)
            counts["result"] += 1
        except AfireError:
            counts["refused"] += 1
        except Exception as error:
            place = place_of(error)
            path = keep / f"fault_{hashlib.sha256(place.encode()).hexdigest()[:12]}"
            if not path.exists():
                path.write_bytes(data)
                print(f"FAULT {path.name}: {place}: {str(error)[:200]!r}", file=sys.stderr, flush=True)
        if sum(counts.values()) % 50 == 0:
            (keep / "counts.txt").write_text(" ".join(map(str, counts.values())))

    def mutate(data: bytes, most: int, _: int) -> bytes:
        if target.change is not None and draw.random() < 0.5:
            return target.change(data, draw)[:most]
        return bytes(atheris.Mutate(data, most))

    changer = {"custom_mutator": mutate} if target.change is not None else {}
    atheris.Setup([sys.argv[0], *options], one, **changer)
    atheris.Fuzz()


def fuzz(name: str, minutes: float, seed: int, keep: Path) -> list[str]:
    """Start the fuzzer until the time is over, anew where an input ended it; return the faults."""
    from fuzz_targets import TARGETS

    target = TARGETS[name]
    (keep / "corpus").mkdir(parents=True, exist_ok=True)
    for number, content in enumerate(target.seeds(keep)):
        (keep / "corpus" / f"seed_{number}").write_bytes(content)
    words = "".join('"' + "".join(f"\\x{byte:02x}" for byte in word) + '"\n' for word in target.words)
    (keep / "words.dict").write_text(words)
    faults, runs, coverage, corpus, results, refused = [], 0, 0, 0, 0, 0
    end, attempt = time.monotonic() + 60 * minutes, 0
    while (left := int(end - time.monotonic())) > 0 and attempt < 20:
        options = [f"-max_total_time={left}", f"-seed={seed + attempt + 1}", f"-timeout={SECONDS}",
                   f"-rss_limit_mb={MEGABYTES}", f"-max_len={target.longest}", f"-dict={keep / 'words.dict'}",
                   f"-artifact_prefix={keep}/ended_", "-print_final_stats=1", str(keep / "corpus")]  # fmt: skip
        command = [sys.executable, __file__, name, "--child", f"--seed={seed}", "--keep", str(keep), *options]
        said = subprocess.run(command, capture_output=True, text=True, errors="replace").stderr
        (keep / f"said_{attempt}.txt").write_text(said)
        faults += re.findall(r"^FAULT (.*)", said, re.M)
        faults += [f"{how} (ended_*)" for how in re.findall(r"libFuzzer: ([a-z -]+)", said)]
        if "Uncaught Python exception" in said or "Traceback" in said:
            raise SystemExit(said[-2000:])  # of this script
        seen = re.findall(r"#(\d+)\s.*cov: (\d+) .*corp: (\d+)", said)
        if not seen:
            raise SystemExit(said[-2000:])
        runs, coverage, corpus = runs + int(seen[-1][0]), int(seen[-1][1]), int(seen[-1][2])
        counted = (keep / "counts.txt").read_text().split() if (keep / "counts.txt").exists() else ["0", "0"]
        results, refused = results + int(counted[0]), refused + int(counted[1])
        attempt += 1
    print(f"| {name} | seed {seed}, {minutes:g} minutes | {runs} inputs | {coverage} branches | {corpus} inputs kept | "
          f"{results} read, {refused} refused | {len(faults)} faults |")  # fmt: skip
    return faults


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("target", choices=["dicom", "weights", "tables"])
    parser.add_argument("--minutes", type=float, default=10.0)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--keep", type=Path, default=None, help="folder; runs/fuzz/TARGET unless given")
    parser.add_argument("--again", type=Path, default=None, help="read this input alone")
    parser.add_argument("--child", action="store_true", help=argparse.SUPPRESS)
    options, fuzzer = parser.parse_known_args()
    if fuzzer and not options.child:
        parser.error(f"{' '.join(fuzzer)}: no such option")
    warnings.simplefilter("ignore")
    logging.disable(logging.CRITICAL)
    keep = options.keep or Path("runs") / "fuzz" / options.target
    if options.again is not None:
        from fuzz_targets import TARGETS

        with tempfile.TemporaryDirectory() as folder:
            TARGETS[options.target].files(Path(folder))
            print(TARGETS[options.target].read(options.again.read_bytes(), Path(folder)))
        return 0
    if options.child:
        child(options.target, keep, fuzzer, options.seed)
    faults = fuzz(options.target, options.minutes, options.seed, keep)
    for fault in faults:
        print(f"FAULT {fault}")
    return int(bool(faults))


if __name__ == "__main__":
    raise SystemExit(main())
