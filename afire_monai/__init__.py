"""AFiRe self-supervised pre-training on normal chest radiographs, as a MONAI bundle and a small package."""

from __future__ import annotations

import os
import sys
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from afire_monai.models.folder import load_encoder

__version__ = "0.1.0"
__all__ = ["__version__", "load_encoder"]

# MLflow reports its use to its makers unless told not to, in this process and those that it starts
os.environ.update(MLFLOW_DISABLE_TELEMETRY="true", DO_NOT_TRACK="true")
if "mlflow.telemetry" in sys.modules:  # MONAI's bundle runner imports it before this package
    sys.modules["mlflow.telemetry"].set_telemetry_client()


def __getattr__(name: str) -> Any:
    """Import the heavy parts (torch, MONAI) only when they are asked for, so that ``afire --help`` is quick."""
    if name == "load_encoder":
        from afire_monai.models.folder import load_encoder

        return load_encoder
    raise AttributeError(f"module 'afire_monai' has no attribute {name!r}")
