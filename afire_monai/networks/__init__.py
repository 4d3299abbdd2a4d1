"""Networks: encoder, token head, restoration decoder, prototype bank; classifier and segmenter on an encoder."""

from afire_monai.networks.classifier import ViTClassifier
from afire_monai.networks.decoder import AnomalyRestorationDecoder
from afire_monai.networks.encoder import ENCODER_PRESETS, ViTEncoder, build_encoder, sincos_positions
from afire_monai.networks.heads import TokenHead
from afire_monai.networks.prototypes import PrototypeBank, sinkhorn
from afire_monai.networks.segmenter import ViTSegmenter

__all__ = [
    "ENCODER_PRESETS",
    "AnomalyRestorationDecoder",
    "PrototypeBank",
    "TokenHead",
    "ViTClassifier",
    "ViTEncoder",
    "ViTSegmenter",
    "build_encoder",
    "sincos_positions",
    "sinkhorn",
]
