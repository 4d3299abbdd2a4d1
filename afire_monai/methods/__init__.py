"""Pre-training methods: each turns a batch of images into a dictionary of named losses."""

from afire_monai.methods.afire import AFiRe
from afire_monai.methods.base import Method
from afire_monai.methods.dino import DINO
from afire_monai.methods.mae import MAE
from afire_monai.methods.mlvicx import MLVICX, MLVICXNetwork

__all__ = ["DINO", "MAE", "MLVICX", "AFiRe", "MLVICXNetwork", "Method"]
