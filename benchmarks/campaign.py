"""All that a GPU has to show, in a given number of minutes, from one pack of radiographs and without a network.

    scripts/gpu_campaign.sh --pack pack.zip --out campaign --minutes 9      # calls this file
    scripts/gpu_campaign.sh --pack pack.zip --out campaign --minutes 6 --device cpu

Phases, each within its share of the minutes and with its results in OUT before the next begins:

- devices: is a step on the GPU the step on the CPU (`benchmarks/devices.py`); decides the exit status;
- speed: ViT-S/16 and ViT-B/16, compiled and not (`benchmarks/step.py`);
- training: pre-training with the configs and settings given, in what time is left; the encoder is written to OUT as
  float16 safetensors, in parts of at most 15 MiB;
- figures: probes and anomaly scores on the validation patients of the pack (`benchmarks/judge.py`).

The pack is a zip of pictures with manifest.csv (docs/data.md has its columns); `benchmarks/lists.py` makes lists of it.
What comes out is small: OUT/summary.json and .txt, figures, logs, the encoder. What is large stays in --work.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import math
import os
import shutil
import subprocess
import sys
import time
import zipfile
from pathlib import Path
from typing import Any

import torch

HERE = Path(__file__).resolve().parent
CONFIGS = HERE.parent / "bundle" / "configs"
PART_BYTES = 15 * 2**20
PHASES = ("devices", "speed", "training", "figures")
# shares of the minutes, and no more seconds than this; training takes what is left
SHARES = {
    "cuda": {"devices": (0.18, 100.0), "speed": (0.22, 130.0), "figures": (0.12, 60.0)},
    "cpu": {"devices": (0.4, 150.0), "speed": (0.14, 60.0), "figures": (0.14, 60.0)},
}


class Campaign:
    """Runs phases against the clock, and writes what each one gave.

    Args:
        args: of the command line.
    """

    def __init__(self, args: argparse.Namespace) -> None:
        self.args = args
        self.out: Path = args.out.resolve()
        self.work: Path = (args.work or args.out / "work").resolve()
        self.begin = time.monotonic()
        self.summary: dict[str, Any] = {"device": device_name(args.device), "torch": torch.__version__, "phases": {}}
        for folder in (self.out, self.work):
            folder.mkdir(parents=True, exist_ok=True)

    def left(self) -> float:
        """Seconds that remain of all minutes."""
        return 60 * self.args.minutes - (time.monotonic() - self.begin)

    def seconds_for(self, phase: str) -> float:
        """Seconds that a phase may take: its share, or what is left of the minutes before the phases after it."""
        if phase in (shares := SHARES[self.args.device]):
            share, most = shares[phase]
            return max(5.0, min(share * 60 * self.args.minutes, most, self.left()))
        after = self.seconds_for("figures") if "figures" in self.args.phases else 0.0
        return max(5.0, self.left() - after - 5)

    def call(self, phase: str, command: list[str], seconds: float) -> int:
        """Run a script of this folder, its output into OUT/PHASE.txt.

        Returns:
            Its exit status, or 124 if it did not end in time: it then got SIGTERM, upon which a pre-training writes a
            checkpoint, and ten seconds for that.
        """
        print(f"== {phase} ({seconds:.0f} s): {' '.join(command)[:200]}", flush=True)
        with (self.out / f"{phase}.txt").open("ab") as log, subprocess.Popen(command, stdout=log, stderr=log) as script:
            try:
                return script.wait(seconds)
            except subprocess.TimeoutExpired:
                log.write(b"\nout of time\n")
                script.terminate()
                with contextlib.suppress(subprocess.TimeoutExpired):
                    script.wait(10)
                script.kill()
                return 124

    def run(self) -> int:
        """Run all phases; the exit status is that of the comparison of devices and of the training."""
        lists = self.unpack()
        status = 0
        for phase in self.args.phases:
            begin = time.monotonic()
            code = getattr(self, phase)(lists)
            seconds = round(time.monotonic() - begin, 1)
            self.summary["phases"][phase] = {"status": code, "seconds": seconds}
            print(f"   {phase}: exit status {code}, {seconds} s", flush=True)
            print("\n".join((self.out / f"{phase}.txt").read_text(errors="replace").splitlines()[-8:]), flush=True)
            if phase in ("devices", "training"):
                status = status or code
            self.summary["seconds"] = round(time.monotonic() - self.begin, 1)
            (self.out / "summary.json").write_text(json.dumps(self.summary, indent=1), encoding="utf-8")
        return int(status)

    def unpack(self) -> Path:
        """Unpack the pictures once, and make the lists."""
        pictures, lists = self.work / "pictures", self.work / "lists"
        if not (lists / "pretrain.json").exists():
            with zipfile.ZipFile(self.args.pack) as pack:
                pack.extractall(pictures)
            subprocess.run([sys.executable, str(HERE / "lists.py"), str(pictures), str(lists)], check=True)
        return lists

    def devices(self, _: Path) -> int:
        command = [sys.executable, str(HERE / "devices.py"), "--device", self.args.device]
        command += ["--steps", *self.args.steps] if self.args.steps else []
        command += ["--no-runs"] if self.args.no_runs else []
        return self.call("devices", [*command, "--json", str(self.out / "devices.json")], self.seconds_for("devices"))

    def speed(self, _: Path) -> int:
        """Time the step in several forms, the most telling first, until the time is over."""
        until = time.monotonic() + self.seconds_for("speed")
        gpu = self.args.device == "cuda"
        common = ["--device", self.args.device, "--precision", "bfloat16" if gpu else "float32", "--repeats", "8"]
        common += ["--warmup", "3", "--json", str(self.out / "speed.jsonl")]
        small = ["--decoder", "256,2,4"]
        forms = [
            ["--preset", "vit_b", "--batch", "256", "--compile", "--no-loop"],
            ["--preset", "vit_s", "--batch", "512", "--compile", "--no-loop", *small],
            ["--preset", "vit_b", "--batch", "256", "--no-loop"],
            ["--preset", "vit_s", "--batch", "256", "--compile", "--no-loop", "--shift", "2", *small],
            ["--preset", "vit_b", "--batch", "64", "--loop-repeats", "1"],
            ["--preset", "vit_s", "--batch", "512", "--no-loop", *small],
            ["--preset", "vit_b", "--batch", "512", "--compile", "--no-loop"],
        ]
        if not gpu:  # two of the calls at a size that a CPU can do; compiling alone would take a minute
            plain = [[word for word in form[4:] if word != "--compile"] for form in forms[3:5]]
            forms = [["--preset", "vit_ti6", "--size", "64", "--batch", "8", *words] for words in plain]
        status = 0
        for form in forms:
            if until - time.monotonic() < 5:
                print("   no time for all forms", flush=True)
                break
            command = [sys.executable, str(HERE / "step.py"), *common, *form]
            status = self.call("speed", command, until - time.monotonic()) or status
        return status

    def training(self, lists: Path) -> int:
        """Pre-train in the time that is left, and write the encoder."""
        run = self.work / "run"
        files = [str(CONFIGS / "pretrain.yaml"), *(str(CONFIGS / name) for name in self.args.config)]
        files += [str(CONFIGS / "preset_gpu.yaml")] if self.args.device == "cuda" else []
        settings = {
            **{"datalist": lists / f"{self.args.images}.json", "output_dir": run, "use_mlflow": False, "resume": False},
            **{
                "minutes": round((self.seconds_for("training") - self.args.rescue - 15) / 60, 3),
                "health_every": 1000,
                "panel_every": 1000,
            },
            **{"device": f"$torch.device('{self.args.device}')", "checkpoint_every": self.args.checkpoint_every},
            **dict(pair.split("=", 1) for pair in self.args.set),
        }
        shutil.rmtree(run, ignore_errors=True)
        words = [word for key, value in settings.items() for word in (f"--{key}", str(value))]
        command = [sys.executable, "-m", "monai.bundle", "run", "--config_file", str(files), *words]
        code = self.call("training", command, max(5.0, self.seconds_for("training") - self.args.rescue))
        newest = sorted((run / "checkpoints").glob("checkpoint_*.pt"))[-1:]
        if code == 124 and newest:  # the machine got slower: keep what was trained until then
            done = torch.load(newest[0], map_location="cpu", weights_only=True)["progress"]
            epochs = math.ceil(done["iteration"] / done["epoch_length"])
            again = [*command, "--resume", "True", "--minutes", "0", "--epochs", str(epochs)]
            self.call("training", again, max(5.0, self.args.rescue))
        for name in ("log.csv", "report.html", "settings.yaml"):
            if (run / name).exists():
                shutil.copy(run / name, self.out / name)
        self.keep_weights(run / "models")
        return code

    def keep_weights(self, models: Path) -> None:
        """Write the exported weights as float16, in parts of at most 15 MiB."""
        from safetensors.torch import load_file, save_file

        for path in sorted(models.glob("*.safetensors")):
            if path.stem not in self.args.keep:
                continue
            half = {k: v.half() if v.is_floating_point() else v for k, v in load_file(path).items()}
            part, size, number = {}, 0, 0
            for place, (name, tensor) in enumerate(half.items()):
                part[name], size = tensor, size + tensor.nbytes
                following = list(half.values())[place + 1 : place + 2]
                if not following or size + following[0].nbytes > PART_BYTES:
                    save_file(part, self.out / f"{path.stem}_{number}.safetensors")
                    part, size, number = {}, 0, number + 1
            shutil.copy(path.with_suffix(".json"), self.out / f"{path.stem}.json")

    def figures(self, lists: Path) -> int:
        """Judge the encoder on validation patients."""
        command = [sys.executable, str(HERE / "judge.py"), "run", "--out", str(self.work / "judged")]
        command += ["--encoder", f"campaign={self.work / 'run' / 'models'}", "--device", self.args.device]
        command += [f"--data={name}={lists / name}.json" for name in ("adults", "children")]
        code = self.call("figures", command, self.seconds_for("figures"))
        log = self.work / "judged" / "judged.jsonl"
        if log.exists():
            shutil.copy(log, self.out / "judged.jsonl")
        return code


def device_name(device: str) -> str:
    """Return what the results are of."""
    if device == "cuda":
        return torch.cuda.get_device_name()
    return f"CPU, {os.cpu_count()} cores, {torch.get_num_threads()} threads"


def join_weights(folder: Path, stem: str) -> dict[str, torch.Tensor]:
    """Return the tensors of the parts that a campaign wrote, as float32."""
    from safetensors.torch import load_file

    parts = [load_file(path) for path in sorted(folder.glob(f"{stem}_*.safetensors"))]
    return {k: v.float() if v.is_floating_point() else v for part in parts for k, v in part.items()}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pack", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--work", type=Path, help="folder for what is large; OUT/work if not given")
    parser.add_argument("--minutes", type=float, default=9.0)
    parser.add_argument("--device", default="cuda", choices=("cuda", "cpu"))
    parser.add_argument("--phases", nargs="+", default=list(PHASES), choices=PHASES)
    parser.add_argument("--steps", nargs="*", default=[], help="methods and tasks whose step is compared; all if none")
    parser.add_argument("--no-runs", action="store_true", help="leave out trainings in the comparison of devices")
    parser.add_argument("--images", default="pretrain_all", help="list of `benchmarks/lists.py` to train on")
    parser.add_argument(
        "--config", nargs="+", default=["method_afire.yaml"], help="of the training; on a GPU preset_gpu.yaml follows"
    )
    parser.add_argument("--checkpoint-every", type=int, default=50, help="epochs")
    parser.add_argument(
        "--rescue", type=float, default=20.0, help="seconds for exporting what was trained if it is late"
    )
    parser.add_argument("--set", nargs="*", default=[], help="key=value of the training")
    parser.add_argument("--keep", nargs="*", default=["encoder"], help="weights to keep: encoder, detector, restorer")
    args = parser.parse_args()
    if args.device == "cuda" and not torch.cuda.is_available():
        raise SystemExit("no CUDA GPU is visible to torch; --device cpu tries the script itself")
    return Campaign(args).run()


if __name__ == "__main__":
    sys.exit(main())
