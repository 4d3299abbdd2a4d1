"""Results that leave a training run: encoders, detectors, reports, and released weights that come in."""

from afire_monai.export import run
from afire_monai.export.encoder import export_encoder, load_encoder

__all__ = ["export_encoder", "load_encoder", "run"]
