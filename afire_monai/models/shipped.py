"""Weights included in the package: research only, not a medical device (docs/model_card.md)."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from afire_monai.core.errors import CheckpointError, require_path

WEIGHTS = Path(__file__).resolve().parents[1] / "weights"
DEFAULT = "chest-s16-1"
POPULATIONS = ("adults", "children")
MODEL = "a run writes its model folder as models/ below its output folder"


def shipped_names() -> list[str]:
    """Return the names of the models that come with the package."""
    return sorted(path.parent.name for path in WEIGHTS.glob("*/encoder.safetensors"))


def shipped_folder(name: str = DEFAULT) -> Path:
    """Return the model folder of a model that comes with the package; CheckpointError if there is no such model."""
    if name not in shipped_names():
        raise CheckpointError(
            f"no model {name!r} comes with this package; it has {', '.join(shipped_names()) or 'none'}. Give the path "
            "of a model folder for one of your own"
        )
    return WEIGHTS / name


def is_shipped(model: str | Path) -> bool:
    """Whether this is the name of a model that comes with the package; a path of that name that is there is meant."""
    return str(model) in shipped_names() and not Path(model).exists()


def model_folder(model: str | Path | None = None) -> Path:
    """Return the folder that the name of a model that comes with the package stands for; another path as it is.

    None is the model that is used unless another one is requested.
    """
    return shipped_folder(str(model or DEFAULT)) if model is None or is_shipped(model) else Path(model)


def require_model(option: str, model: str | None) -> None:
    """Refuse a model folder that is not there and is not the name of a model that comes with the package."""
    if model not in (names := shipped_names()):
        require_path(option, model, f"{MODEL}; {' and '.join(names)} come with the package")


def with_shipped(models: Sequence[str], population: str = POPULATIONS[0]) -> list[str | Path]:
    """Return model folders; a name stands for the folder of that model, with its reference of a population."""
    named = (shipped_models(population, model) if is_shipped(model) else [model] for model in models)
    return [folder for folders in named for folder in folders]


def shipped_models(population: str = POPULATIONS[0], name: str = DEFAULT) -> list[Path]:
    """Return the model folders to predict with: the reference of a population's normals, then the model.

    Args:
        population: ``adults`` or ``children`` (1 to 5 years): the group whose normal radiographs are the reference
            for anomalies.
        name: name of the model.

    Raises:
        CheckpointError: for another population or model.
    """
    if population not in POPULATIONS:
        raise CheckpointError(f"population must be {' or '.join(POPULATIONS)}, got {population!r}")
    return [shipped_folder(name) / population, shipped_folder(name)]
