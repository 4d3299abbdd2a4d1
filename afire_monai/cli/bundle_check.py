"""Check a bundle against the requirements of MONAI's model zoo, without a network."""

from __future__ import annotations

import contextlib
import io
import json
import logging
import shutil
import sys
import tempfile
import warnings
from collections.abc import Callable, Iterator
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from afire_monai.core.quiet import only_above

Check = Callable[[Path], str]
"""Function that takes the bundle's folder and returns the fault; "" if there is none."""

FILES = (
    *("configs/metadata.json", "configs/inference.json", "models/model.pt"),
    *("docs/README.md", "docs/data_license.txt", "LICENSE"),
)


def _reported(check: Callable[[Path], Any]) -> Check:
    """Turn any exception of MONAI's into a message, since reporting it is the purpose of a check."""

    def checked(bundle: Path) -> str:
        # MONAI's bundle functions log their arguments
        with only_above(logging.CRITICAL), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            try:
                return str(check(bundle) or "")
            except Exception as caught:
                error: BaseException = caught
                while error.__cause__ is not None:  # MONAI wraps the error of a config's expression
                    error = error.__cause__
                return f"{type(error).__name__}: {' '.join(str(error).split())[:300]}"

    return checked


def _directory(bundle: Path) -> str:
    missing = [name for name in FILES if not (bundle / name).is_file()]
    return f"{', '.join(missing)} missing" if missing else ""


def _metadata(bundle: Path) -> dict[str, Any]:
    return json.loads((bundle / "configs/metadata.json").read_text(encoding="utf-8"))


def _changelog(bundle: Path) -> str:
    metadata = _metadata(bundle)
    known = metadata["version"] in metadata["changelog"]
    return "" if known else f"version {metadata['version']} is not in the changelog"


def _packages(bundle: Path) -> str:
    """Compare required packages with the installed ones: a missing one is a fault, another version is not."""
    missing = []
    for name in _metadata(bundle)["required_packages_version"]:
        try:
            version(name)
        except PackageNotFoundError:
            missing.append(name)
    if "afire-monai" in missing and "afire_monai" in sys.modules:  # runs from a source folder
        missing.remove("afire-monai")
    return f"{', '.join(missing)} not installed" if missing else ""


def _schema(bundle: Path) -> None:
    from monai.bundle import verify_metadata

    # MONAI downloads the schema only if there is no such file
    schema = bundle / "configs/metadata_schema.json"
    verify_metadata(meta_file=str(bundle / "configs/metadata.json"), filepath=str(schema))


def _common(bundle: Path) -> dict[str, str]:
    metadata, config = bundle / "configs/metadata.json", bundle / "configs/inference.json"
    return {"meta_file": str(metadata), "config_file": str(config), "bundle_root": str(bundle)}


def _shape(bundle: Path) -> None:
    from monai.bundle import verify_net_in_out

    verify_net_in_out("network_def", device="cpu", **_common(bundle))


@contextlib.contextmanager
def _workflow(bundle: Path, kind: str) -> Iterator[Any]:
    """Open a workflow of the bundle on phantoms, in a folder that is removed afterwards."""
    from monai.bundle import create_workflow

    from afire_monai.phantom import write_phantom_dataset

    with tempfile.TemporaryDirectory() as folder:
        datalist = write_phantom_dataset(Path(folder) / "data", normal=12, abnormal=12, size=64)
        settings = {
            "bundle_root": str(bundle),
            "output_dir": str(Path(folder) / "out"),
            "dataset_dir": str(datalist.parent if kind == "train" else datalist.parent / "images"),
        }
        if kind == "train":
            settings |= {"datalist": str(datalist), **_relabelled(bundle, datalist)}
        yield create_workflow(
            config_file=str(bundle / "configs" / f"{kind}.json"),
            workflow_type=kind,
            meta_file=str(bundle / "configs/metadata.json"),
            logging_file=False,
            **settings,
        )


def _relabelled(bundle: Path, datalist: Path) -> dict[str, Any]:
    """Label the phantoms with the labels of the bundle's network; return the settings for its classes."""
    network = json.loads((bundle / "configs/train.json").read_text(encoding="utf-8"))["network_def"]
    if "classes" in network:
        return {"classes": {name: [] for name in network["classes"]}}
    content = json.loads(datalist.read_text(encoding="utf-8"))
    names = network["labels"]
    for section in ("training", "validation", "test"):
        for number, item in enumerate(content[section]):
            item["label"] = [int((number + place) % 2) for place in range(len(names))]
    content["labels"] = names
    datalist.write_text(json.dumps(content), encoding="utf-8")
    return {}


def _properties(kind: str) -> Callable[[Path], str]:
    def check(bundle: Path) -> str:
        if not (bundle / "configs" / f"{kind}.json").is_file():
            return ""
        with _workflow(bundle, kind) as workflow:
            missing = workflow.check_properties()
        return f"{', '.join(missing)} missing" if missing else ""

    return check


def _export(function: str) -> Callable[[Path], None]:
    def check(bundle: Path) -> None:
        import monai.bundle

        # PyTorch prints each step to ONNX
        with tempfile.TemporaryDirectory() as folder, contextlib.redirect_stdout(io.StringIO()):
            file, weights = str(Path(folder) / "model"), str(bundle / "models/model.pt")
            getattr(monai.bundle, function)("network_def", file, weights, use_trace=True, **_common(bundle))

    return check


def _load(bundle: Path) -> str:
    """Load from the folder and from a zip of it, and compare every weight with the file's."""
    import torch
    from monai.bundle import download, load

    expected = torch.load(bundle / "models/model.pt", map_location="cpu", weights_only=True)
    kinds = [kind for kind in ("inference", "train") if (bundle / "configs" / f"{kind}.json").is_file()]
    with tempfile.TemporaryDirectory() as folder:
        archive = shutil.make_archive(str(Path(folder) / bundle.name), "zip", bundle.parent, bundle.name)
        unpacked = Path(folder) / "unpacked"
        unpacked.mkdir()
        shutil.copy(archive, unpacked)
        # MONAI looks for the archive where it would download it to
        download(bundle.name, bundle_dir=str(unpacked), url=Path(archive).as_uri())
        for root in (bundle.parent, unpacked):
            for kind in kinds:
                network = load(bundle.name, bundle_dir=str(root), workflow_type=kind, device="cpu")
                found = network.state_dict()
                if found.keys() != expected.keys() or any(not torch.equal(found[k], expected[k]) for k in expected):
                    return f"what is loaded for {kind} is not what model.pt holds"
    return ""


CHECKS: dict[str, Check] = {
    name: _reported(check)
    for name, check in {
        "directory": _directory,
        "version and changelog": _changelog,
        "required packages": _packages,
        "metadata": _schema,
        "shape of the answer": _shape,
        "properties of inference": _properties("inference"),
        "properties of training": _properties("train"),
        "monai.bundle.load, folder and zip": _load,
        "export to TorchScript": _export("ckpt_export"),
        "export to ONNX": _export("onnx_export"),
    }.items()
}
