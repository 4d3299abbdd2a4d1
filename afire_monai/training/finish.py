"""Save the results of a finished pre-training run for later tasks."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import TYPE_CHECKING, Any

from afire_monai.core.distributed import rank
from afire_monai.core.errors import AfireError, user_error
from afire_monai.loading.dataset import reader_facts
from afire_monai.methods import AFiRe, Method
from afire_monai.models.folder import INPUT, export_encoder, save_module_files

if TYPE_CHECKING:
    from afire_monai.loading.dataset import RadiographDataset
    from afire_monai.training.trainer import PretrainTrainer

logger = logging.getLogger(__name__)


def export_run(trainer: PretrainTrainer, folder: str | Path, data_hash: str) -> None:
    """Write the encoder for later tasks and, if there is one, the restorer; process 0 only.

    Args:
        trainer: the trainer, at the end of training.
        folder: gets ``encoder.safetensors`` (the teacher's if there is one, as the papers fine-tune it),
            ``restorer.safetensors`` (the student's encoder and decoder) if a decoder gives grey levels and, for
            AFiRe, ``detector.safetensors`` (the student's token head and the prototypes), each with a JSON.
        data_hash: SHA-256 of the data list.
    """
    if rank():
        return
    method, folder = trainer.method, Path(folder)
    facts: dict[str, Any] = {
        "method_name": type(method).__name__,
        "losses": list(method.loss_weights),
        "epochs": trainer.state.epoch,
        "data_sha256": data_hash,
        **reader_facts(trainer.data_loader.dataset),
    }
    if isinstance(method, AFiRe):
        facts["shift"] = method.grid_shift.shift
    export_encoder(method.export_encoder, folder, **facts)
    if method.export_decoder is not None:
        export_restorer(method, folder, **facts)
    if isinstance(method, AFiRe):
        export_detector(method, folder, **facts)
    logger.info("encoder written to %s", (folder / "encoder.safetensors").name)


def write_worth(run_dir: str | Path, datalist: str | Path, dataset_dir: str, images: int) -> None:
    """Compare the encoder with others on the list's labels, for the run's page; process 0 only.

    Nothing is written if the list has too few labels on validation patients. As with the page, a failure only gives a
    warning in the log.

    Args:
        run_dir: the run's output_dir, with ``models/``; gets ``worth.json``.
        datalist: the data list.
        dataset_dir: base of its relative paths; empty for its own folder.
        images: largest number of images to judge; 0 compares nothing.
    """
    if rank() or not images:
        return
    from afire_monai.training import worth

    try:
        if isinstance(worth.labelled_images(datalist, dataset_dir, most=images), str):
            return
        logger.info("comparing the encoder with others on the labels of validation patients")
        done = worth.compare_encoders(datalist, Path(run_dir) / "models", dataset_dir=dataset_dir, images=images)
        done.write(Path(run_dir) / worth.WORTH_FILE)
    except Exception:
        logger.warning("the encoder could not be compared with others; `afire worth` tries again", exc_info=True)
        return
    logger.info("%s %s", done.sentence(), done.advice())


def write_run_report(run_dir: str | Path, dataset: RadiographDataset) -> None:
    """Write the run's report page and the mean picture behind its prototype map; process 0 only.

    If the page cannot be drawn, the trained run must not be lost: any failure except a full disk only gives a warning
    in the log.

    Args:
        run_dir: the run's output_dir.
        dataset: the training images; 64 of them, evenly spaced, make the mean picture.

    Raises:
        AfireError: if the folder is full or may not be written to; the run itself is complete.
    """
    if rank():
        return
    # imported here, because other users of this module do not need drawing
    from afire_monai.training.report.page import write_mean_image, write_report

    try:
        write_mean_image(dataset, run_dir, 64)
        page = write_report(run_dir)
    except Exception as error:
        if isinstance(error, OSError) and user_error(error) is not None:
            raise AfireError(
                f"the run is trained and exported, but its report could not be written to {run_dir} "
                f"({error.strerror}). Make room, then `afire report {run_dir}` writes it"
            ) from error
        logger.warning("the report could not be written; `afire report` tries again", exc_info=True)
        return
    logger.info("report written to %s", page.name)


def log_run(trainer: PretrainTrainer, run_dir: str | Path) -> None:
    """Keep report, comparison and encoder with the run in MLflow, and the comparison's figures; process 0 only."""
    if rank():
        return
    from afire_monai.training.tracking import log_results
    from afire_monai.training.worth import WORTH_FILE, Comparison

    run, figures = Path(run_dir), {}
    if (run / WORTH_FILE).is_file():
        compared = Comparison.read(run / WORTH_FILE)
        figures = {f"worth/{name.replace(' ', '_')}": value.value for name, value in compared.figures.items()}
    models = [run / "models" / f"encoder.{kind}" for kind in ("json", "safetensors")]
    log_results(trainer, figures, [run / "report.html", run / WORTH_FILE, *models])


def export_restorer(method: Method, folder: Path, **facts: Any) -> Path:
    """Write the student's encoder and decoder, which restore pictures, as ``restorer.safetensors``.

    ``shift`` in its JSON is the number of cells by which its input radiograph is larger than its grid. Raises
    AfireError if the method has no such decoder.
    """
    decoder = method.export_decoder
    if decoder is None:
        raise AfireError(f"{type(method).__name__} has no decoder that gives grey levels, so there is no restorer")
    parts = ("encoder.", "decoder.")
    tensors = {k: v for k, v in method.student.state_dict().items() if k.startswith(parts)}
    description = {
        "format": "afire-monai restorer 1",
        "encoder": method.export_encoder.config,
        "decoder": decoder.config,
        "input": INPUT,
        **{"shift": method.grid_shift.shift if isinstance(method, AFiRe) else 0, **facts},
    }
    return save_module_files(tensors, description, folder / "restorer.safetensors")


def export_detector(method: AFiRe, folder: Path, **facts: Any) -> Path:
    """Write ``detector.safetensors``: what judges the tokens of the restorer's encoder.

    Tensors: ``head.*`` (the student's token head), ``prototypes`` and ``assignment``, both (N, K) for N canvas cells,
    or (N, M, K) with M > 1 prototypes a cell; with the lesion term its ``lesion_head.*``.
    """
    head, bank = method.student.head, method.prototypes
    tensors = {f"head.{name}": tensor for name, tensor in head.state_dict().items()}
    if method.student.lesion_head is not None:
        lesions = method.student.lesion_head.state_dict()
        tensors |= {f"lesion_head.{name}": tensor for name, tensor in lesions.items()}
    tensors |= {"prototypes": bank.prototypes, "assignment": bank.assignment()}
    description = {
        "format": "afire-monai detector 1",
        "head": head.config,
        "canvas": list(method.grid_shift.canvas_grid),
        "temperature": method.token_loss.student_temperature,
        **{"shift": method.grid_shift.shift, **facts},
    }
    return save_module_files(tensors, description, folder / "detector.safetensors")
