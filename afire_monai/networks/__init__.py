"""Networks: encoder, token head, restoration decoder, prototype bank; classifier and segmenter on an encoder."""

from afire_monai.networks.adapted_vit import AdaptedViTEncoder, resample_positions
from afire_monai.networks.blocks import SyncedBatchNorm
from afire_monai.networks.build import ENCODER_PRESETS, build_encoder, encoder_from_config
from afire_monai.networks.decoder import AnomalyRestorationDecoder
from afire_monai.networks.encoder import ViTEncoder, sincos_positions
from afire_monai.networks.encoder_base import Encoder, FeatureMap
from afire_monai.networks.heads import DenseBranch, TokenHead
from afire_monai.networks.prototypes import PrototypeBank, sinkhorn
from afire_monai.networks.resnet import ContextBottleneck, ResNetEncoder
from afire_monai.networks.task_networks import ViTClassifier, ViTSegmenter

__all__ = [
    "ENCODER_PRESETS",
    "AdaptedViTEncoder",
    "AnomalyRestorationDecoder",
    "ContextBottleneck",
    "DenseBranch",
    "Encoder",
    "FeatureMap",
    "PrototypeBank",
    "ResNetEncoder",
    "SyncedBatchNorm",
    "TokenHead",
    "ViTClassifier",
    "ViTEncoder",
    "ViTSegmenter",
    "build_encoder",
    "encoder_from_config",
    "resample_positions",
    "sincos_positions",
    "sinkhorn",
]
