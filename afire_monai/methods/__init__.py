"""Pre-training methods: each turns a batch of images into a dictionary of named losses."""

from afire_monai.methods.afire import AFiRe
from afire_monai.methods.base import Method

__all__ = ["AFiRe", "Method"]
