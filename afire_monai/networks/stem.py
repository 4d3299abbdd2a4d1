"""The stem of a vision transformer, from pixels to tokens: one linear layer a patch, or a few convolutions."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from afire_monai.core.errors import AfireError

STEMS = ("patches", "convolutions")


class Convolution(nn.Conv2d):
    """A convolution that computes with channels last on a CPU, which takes less time; weights are stored as usual."""

    def forward(self, maps: Tensor) -> Tensor:
        """Return the maps (B, D, h, w) of maps (B, C, H, W)."""
        if maps.device.type != "cpu":
            return super().forward(maps)
        maps, weight = (tensor.to(memory_format=torch.channels_last) for tensor in (maps, self.weight))
        return F.conv2d(maps, weight, self.bias, self.stride, self.padding)


def build_stem(stem: str, in_channels: int, embed_dim: int, patch_size: int) -> nn.Module:
    """Return a module from images (B, C, H, W) to maps (B, D, H / P, W / P).

    ``convolutions``: one of 3 x 3 and stride 2 for each halving, whose channels double up to D, each with a norm and a
    ReLU, then one of 1 x 1 (Xiao et al., NeurIPS 2021, arXiv 2106.14881). Their batch norm is a group norm of one group
    here, so that an image's tokens do not depend on the batch or on the number of processes (this project's reading).

    Args:
        stem: ``patches`` or ``convolutions``.
        in_channels: C.
        embed_dim: D.
        patch_size: P; a power of 2 for convolutions.

    Raises:
        AfireError: for an unknown stem, or a size that convolutions cannot have.
    """
    if stem not in STEMS:
        raise AfireError(f"stem must be one of {', '.join(STEMS)}; got {stem!r}")
    if stem == "patches":
        return nn.Conv2d(in_channels, embed_dim, kernel_size=patch_size, stride=patch_size)
    halvings = patch_size.bit_length() - 1
    if patch_size < 2 or patch_size != 1 << halvings or embed_dim % (1 << halvings - 1):
        raise AfireError(
            f"a stem of convolutions halves the picture until a patch is one token: patch_size must be a power of 2, "
            f"and half of it divide the token width; got {patch_size} and a width of {embed_dim}: change them, or set "
            "stem to patches"
        )
    layers: list[nn.Module] = []
    before = in_channels
    for place in range(halvings):
        width = embed_dim >> halvings - 1 - place
        convolution = Convolution(before, width, kernel_size=3, stride=2, padding=1, bias=False)
        layers += [convolution, nn.GroupNorm(1, width), nn.ReLU()]
        before = width
    return nn.Sequential(*layers, Convolution(before, embed_dim, kernel_size=1))


def init_stem(stem: nn.Module) -> None:
    """Initialise the layer that makes tokens as a linear one, Xavier-uniform, and convolutions before it for ReLUs."""
    *convolutions, last = (layer for layer in stem.modules() if isinstance(layer, nn.Conv2d))
    for convolution in convolutions:
        nn.init.kaiming_normal_(convolution.weight, mode="fan_out", nonlinearity="relu")
    nn.init.xavier_uniform_(last.weight.view(len(last.weight), -1))
    nn.init.zeros_(last.bias)  # type: ignore[arg-type]  # the convolution has a bias
