"""Preparation of a bundle run: check settings, find data, and set up the run's folder."""

from __future__ import annotations

import logging
import os
import sys
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any

import torch
import torch.distributed as dist
import yaml
from monai.bundle import ConfigParser
from monai.utils import set_determinism

from afire_monai.core.distributed import join_group, leave_group, rank, wait_for_all
from afire_monai.core.errors import AfireError, DataListError, user_error
from afire_monai.core.files import close_to_others
from afire_monai.core.precision import set_precision
from afire_monai.core.quiet import show_any_text
from afire_monai.datalists.file import (
    datalist_hash,
    normal_of,
    present_sections,
    read_raw,
    reader_options,
    training_items,
)
from afire_monai.datalists.paths import ImagePaths
from afire_monai.datalists.populations import number_populations
from afire_monai.datalists.validate import DataListReport, open_datalist
from afire_monai.loading.dataset import RadiographDataset
from afire_monai.phantom import write_phantom_dataset
from afire_monai.radiographs.decode import list_images
from afire_monai.radiographs.reader import RadiographReader, Unfit
from afire_monai.training import budget, run_folder
from afire_monai.training.checkpoint import list_checkpoints
from afire_monai.training.settings import (
    checked_settings,
    command_line,
    parse_value,
    refuse_changed_names,
    refuse_unknown_keys,
    refuse_wrong_values,
    running_workflow,
)

logger = logging.getLogger(__name__)


def prepare_run(output_dir: str | Path, arguments: Sequence[str] | None = None) -> None:
    """Check the settings, claim the run's folder and write the resolved settings to its ``settings.yaml``.

    If the folder holds checkpoints, the settings are kept back until the run is resumed, because that may be refused.

    From here on, a GPU also computes with float32 numbers as float32, until a trainer sets something else.

    Args:
        output_dir: the run's folder; made if absent.
        arguments: defaults to ``sys.argv``. If that is not a bundle run, the settings are those of the calling workflow
            that Python started; without one, nothing is checked or written.

    Raises:
        AfireError: for a setting that does not exist, a value that it cannot have, or another run in the folder.
    """
    show_any_text()
    budget.begin()
    set_precision("float32")
    folder = Path(output_dir)
    if arguments is None and command_line(sys.argv)[0]:
        close_to_others()
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise AfireError(f"output_dir {folder}: {error.strerror}; give a folder that can be written to") from error
    files, overrides = _bundle_run(sys.argv if arguments is None else arguments)
    if files:
        if arguments is None:  # on the runner's own command line; elsewhere the hook belongs to the caller
            sys.excepthook = _say_the_cause
        settings = _checked_words(files, overrides)
    elif arguments is None and (workflow := running_workflow()) is not None:
        settings = checked_settings(workflow)
    else:
        return
    if rank() == 0 and os.environ.get("RANK", "0") == "0":  # also before the processes have joined their group
        run_folder.claim(folder)
        # a log that is passed on must not reveal folders of the machine
        shown = {
            key: Path(value).name if isinstance(value, str) and Path(value).is_absolute() else value
            for key, value in settings.items()
            if key not in ("dataset_dir", "output_dir", "bundle_root")
        }
        text = yaml.safe_dump(shown, sort_keys=False)
        run_folder.offer_settings(folder, text, going_on=bool(list_checkpoints(folder / "checkpoints")))


def _bundle_run(arguments: Sequence[str]) -> tuple[list[str], dict[str, str]]:
    """Return config files and overrides of a bundle run's command line; of any other command line, none."""
    if not {"run", "run_workflow"} & set(arguments[:2]):
        return [], {}
    files, overrides = command_line(arguments)
    return (files, overrides) if all(Path(file).exists() for file in files) else ([], {})


def _checked_words(files: Sequence[str], overrides: dict[str, str]) -> dict[str, Any]:
    """Return the config of a command line with its overrides, once these have been checked."""
    config = ConfigParser.load_config_files(files)
    refuse_unknown_keys(config, list(overrides))
    refuse_wrong_values(config, overrides)
    refuse_changed_names(overrides)
    parser = ConfigParser(config)
    parser.update({key: parse_value(value) for key, value in overrides.items()})
    return dict(parser.get())


def _say_the_cause(kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
    """Print the error that a user can act on instead of the runner's chain; AFIRE_TRACEBACK=1 shows that as well."""
    if issubclass(kind, KeyboardInterrupt) and not os.environ.get("AFIRE_TRACEBACK"):
        print("\nstopped; --resume true continues a training from its newest checkpoint", file=sys.stderr)
        return
    cause = user_error(error)
    if cause is None or os.environ.get("AFIRE_TRACEBACK"):
        sys.__excepthook__(kind, error, trace)
    if cause is not None:
        print(f"\nerror: {cause}", file=sys.stderr)


def fix_seeds(seed: int, deterministic: bool = False) -> None:
    """Seed all random number generators, and on request choose kernels that add up in a fixed order.

    Args:
        seed: seed for Python, NumPy and PyTorch.
        deterministic: refuse kernels whose result depends on chance. On a GPU, call this before anything is computed.
    """
    if deterministic:
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # read when the library is first used
    set_determinism(seed, use_deterministic_algorithms=deterministic or None)


def find_datalist(datalist: str, dataset_dir: str, output_dir: str | Path) -> Path:
    """Find the data list of a run, or make the embedded default.

    Args:
        datalist: path of a data list, absolute or relative to ``dataset_dir``; ``phantom`` for the embedded default, a
            few hundred synthetic radiographs written once into ``output_dir``.
        dataset_dir: folder of the data set; may be empty if ``datalist`` is a path by itself.
        output_dir: the run's folder.

    Raises:
        DataListError: if there is no such file or folder, or the list has errors that would spoil the training.
    """
    if datalist == "phantom":
        path = Path(output_dir) / "phantoms" / "datalist.json"
        if rank() == 0 and not path.exists():
            logger.info("no data list given: using synthetic phantoms; --datalist takes your own")
            write_phantom_dataset(path.parent, normal=320, abnormal=64, size=192)
        wait_for_all()
        return path
    for path in (Path(datalist), Path(dataset_dir) / datalist):
        if path.is_file():
            _refuse_wrong_list(path, dataset_dir)
            return path
    raise DataListError(
        f"no data list at {datalist!r}" + (f" nor in dataset_dir {dataset_dir!r}" if dataset_dir else "") + "; "
        "make one with `afire datalist`, then give --datalist PATH (and --dataset_dir FOLDER if it is there)"
    )


def _refuse_wrong_list(path: Path, dataset_dir: str) -> None:
    """Refuse a list with errors; numbers and kinds only, as its names and groups can identify patients."""
    if dataset_dir and not Path(dataset_dir).is_dir():
        raise DataListError(f"no folder {dataset_dir!r}: --dataset_dir is where the list's relative paths start")
    report = _read_list(path, dataset_dir).report
    kinds = Counter(problem.kind for problem in report.problems if problem.severity == "error")
    if kinds:
        found = ", ".join(f"{kind} ({count})" for kind, count in kinds.items())
        raise DataListError(f"{path}: {found}. `afire check {path}` says where; correct the list, or build it again")
    for kind, count in Counter(problem.kind for problem in report.problems).items():
        logger.warning("data list: %s (%d); `afire check` says where", kind, count)


def normal_items(datalist: Path, section: str, dataset_dir: str = "") -> ImagePaths:
    """Return a section's normal images; for validation, the last training images if the list has no such section.

    Raises DataListError if there is no such section, or no normal image in it.
    """
    read = _read_list(datalist, dataset_dir)
    if section == "validation" and not read.counts.get("validation"):
        logger.warning("the data list has no validation images: health is measured on training images")
        return normal_items(datalist, "training", dataset_dir)[-64:]
    if not len(read.normal.get(section, [])):
        training_items(datalist, section, base_dir=dataset_dir or None)  # raises the specific error
    return read.normal[section]


def populations(dataset: RadiographDataset, datalist: Path, facts: str, dataset_dir: str = "") -> list[int]:
    """Number the kinds of people among a run's images, 0…M − 1 (`datalists.populations`).

    Args:
        dataset: the training images that can be used.
        datalist: their list, which states the facts.
        facts: names of facts, with commas between them.
        dataset_dir: base of relative paths.

    Raises:
        DataListError: for an unknown fact, or if all images are of one kind.
    """
    items = {item["image"]: item for item in training_items(datalist, base_dir=dataset_dir or None)}
    try:
        kinds = number_populations([items[item["image"]] for item in dataset.items], facts.replace(" ", "").split(","))
    except DataListError as error:
        raise DataListError(f"prototypes_by {facts!r}: {error}; empty: prototypes for all") from error
    logger.info("prototypes by %s: %d kinds of people", facts, max(kinds) + 1)
    return kinds


@dataclass(frozen=True)
class _ReadList:
    """The facts that a run needs of its data list, without the list, which can take a gigabyte."""

    report: DataListReport
    sha256: str
    counts: dict[str, int]
    normal: dict[str, ImagePaths]
    reader: dict[str, Any]


_read_lists: dict[tuple[str, int, int, str], _ReadList] = {}


def _read_list(path: Path, dataset_dir: str) -> _ReadList:
    """Read a list once, however many parts of the run ask for it; again if the file has changed."""
    key = (*_stamp(path), dataset_dir)
    if key not in _read_lists:
        opened = open_datalist(path, dataset_dir or None)
        sections = present_sections(opened.datalist)
        counts = {section: len(opened.datalist[section]) for section in sections}
        normal = {section: ImagePaths.of(normal_of(opened.datalist, section)) for section in sections}
        _read_lists.clear()
        _read_lists[key] = _ReadList(opened.report, opened.sha256, counts, normal, reader_options(opened.datalist))
    return _read_lists[key]


def _stamp(path: Path) -> tuple[str, int, int]:
    try:
        found = os.stat(path)
    except OSError:
        return str(path), -1, -1
    return str(Path(path).absolute()), found.st_size, found.st_mtime_ns


def folder_items(folder: str | Path) -> list[dict[str, Any]]:
    """Return a data-list item, with its ``place``, for each radiograph in a folder and its subfolders, sorted by path.

    Raises DataListError if the folder is not there or holds none.
    """
    if not Path(folder).is_dir():
        raise DataListError(f"no folder {str(folder)!r}: give --dataset_dir a folder of radiographs")
    items = [{"image": str(path), "place": place} for place, path in enumerate(list_images(folder))]
    if not items:
        raise DataListError(f"no radiograph (PNG, JPEG, NIfTI, DICOM) in {str(folder)!r} or below")
    return items


def image_batch(
    batch: dict[str, Any], device: torch.device | None = None, non_blocking: bool = False, **_: Any
) -> tuple[torch.Tensor, None]:
    """Return a batch for an evaluator without labels: images (B, C, H, W) on the device, and no target."""
    return batch["image"].to(device, non_blocking=non_blocking), None


def data_hash(datalist: Path) -> str:
    """Return the SHA-256 of a data list's content, which identifies an encoder's training data."""
    if read := _known(datalist):
        return read.sha256
    return datalist_hash(read_raw(datalist))  # with unchanged paths, so that the folder makes no difference


def _known(datalist: Path) -> _ReadList | None:
    return next((read for key, read in _read_lists.items() if key[:3] == _stamp(datalist)), None)


def reading(
    size: Sequence[int], datalist: Path | None = None, reader: Mapping[str, Any] | None = None, unfit: Unfit = "read"
) -> Callable[[Any], Any]:
    """Build the reading of one radiograph: any supported file to (1, H, W) float32 in 0…1 at a size.

    Pictures are scaled to the size without keeping their aspect ratio, so that no lung is cut off (this project's
    choice), and averaged over areas, so that nothing aliases.

    Args:
        size: height and width in pixels.
        datalist: a list that may say how its images are to be read (see `reader_options`).
        reader: reader options that override those of the list.
        unfit: treatment of DICOM files that are not frontal chest radiographs, see `RadiographReader`.
    """
    from monai.transforms import Compose, EnsureTyped, LoadImaged, Resized

    options: dict[str, Any] = {}
    if datalist is not None:
        read = _known(datalist)
        options = dict(read.reader) if read else reader_options(read_raw(datalist))
    options |= reader or {}
    composed = Compose(
        [
            LoadImaged(keys="image", reader=RadiographReader(**options, unfit=unfit), image_only=True),
            Resized(keys="image", spatial_size=list(size), mode="area"),
            EnsureTyped(keys="image", dtype=torch.float32, track_meta=False),
        ]
    )
    vars(composed).update(size=tuple(size), options=options)  # a cache on disk depends on these
    return composed


def cache_folder(datalist: Path, cache_dir: str, output_dir: str | Path) -> Path:
    """Choose where a cache on disk lies: ``cache_dir``, else beside the data list, where the next run finds it.

    Args:
        datalist: the data list; the folder beside it is ``list.cache`` for ``list.json``.
        cache_dir: folder of the cache; empty to choose one.
        output_dir: folder that takes the cache if the list's folder cannot be written to and holds no cache.
    """
    if cache_dir:
        return Path(cache_dir)
    beside = Path(datalist).with_suffix(".cache")
    return beside if beside.is_dir() or os.access(beside.parent, os.W_OK) else Path(output_dir) / "cache"


def start_processes() -> torch.device:
    """Join the process group that ``torchrun`` set up, and give this process's device.

    They talk through NCCL if there is a GPU, else through Gloo.

    Raises:
        AfireError: if the processes were not started by ``torchrun``, or cannot be restarted on several nodes.
    """
    if "RANK" not in os.environ:
        raise AfireError("multi_gpu.yaml needs torchrun: torchrun --nproc_per_node=N -m monai.bundle run …")
    gpu = torch.cuda.is_available()
    local = int(os.environ.get("LOCAL_RANK", "0"))
    if gpu:
        torch.cuda.set_device(local)
    if not dist.is_initialized():
        join_group("nccl" if gpu else "gloo")
    if rank():
        logging.getLogger().setLevel(logging.ERROR)
    return torch.device("cuda", local) if gpu else torch.device("cpu")


def stop_processes() -> None:
    """Leave the process group, once all processes have come this far, however long process 0 exports or predicts."""
    leave_group()
