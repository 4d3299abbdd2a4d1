"""Networks: encoder, token head, restoration decoder, prototype bank."""

from afire_monai.networks.decoder import AnomalyRestorationDecoder
from afire_monai.networks.encoder import ENCODER_PRESETS, ViTEncoder, build_encoder, sincos_positions
from afire_monai.networks.heads import TokenHead
from afire_monai.networks.prototypes import PrototypeBank, sinkhorn

__all__ = [
    "ENCODER_PRESETS",
    "AnomalyRestorationDecoder",
    "PrototypeBank",
    "TokenHead",
    "ViTEncoder",
    "build_encoder",
    "sincos_positions",
    "sinkhorn",
]
