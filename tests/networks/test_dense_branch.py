"""The dense branch equals its written-out form: convolve each map, resize, add, pool."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from afire_monai.core.errors import AfireError
from afire_monai.networks import DenseBranch, ResNetEncoder, ViTEncoder
from afire_monai.networks.heads import resize_then_pool


def literal(branch: DenseBranch, maps: list[torch.Tensor], side: int, cells: int) -> torch.Tensor:
    total = sum(
        F.interpolate(convolution(x), (side, side), mode="bilinear", align_corners=False)
        for x, convolution in zip(maps, branch.convolutions, strict=True)
    )
    return F.adaptive_avg_pool2d(total, cells).flatten(1)


@pytest.mark.parametrize("size", [(64, 64), (64, 96), (160, 160)])  # maps both smaller and larger than the side
@pytest.mark.parametrize("side", [64, 12])
def test_values_and_gradients_equal_the_literal_form(size, side):
    torch.manual_seed(0)
    encoder = ResNetEncoder(size).double()
    branch = DenseBranch(encoder, width=6, side=side).double()
    maps = [
        torch.randn(2, m.channels, size[0] // m.stride, size[1] // m.stride, dtype=torch.double, requires_grad=True)
        for m in encoder.feature_maps
    ]
    for axis, pixels in enumerate(size):  # kept as float32; here as exact as they are made
        for level, m in enumerate(encoder.feature_maps):
            matrix = resize_then_pool(pixels // m.stride, side, 4)
            kept = branch.get_buffer(f"pool_{level}_{axis}")
            torch.testing.assert_close(kept, matrix, atol=1e-7, rtol=0)
            kept.copy_(matrix)
    ours, expected = branch(maps), literal(branch, maps, side, 4)
    torch.testing.assert_close(ours, expected)
    weights = torch.randn_like(ours)
    inputs = [*maps, *branch.parameters()]
    for a, b in zip(
        torch.autograd.grad((ours * weights).sum(), inputs),
        torch.autograd.grad((expected * weights).sum(), inputs),
        strict=True,
    ):
        torch.testing.assert_close(a, b)


def test_it_takes_the_maps_of_a_transformer_as_well():
    encoder = ViTEncoder(32, 8, embed_dim=16, depth=3, num_heads=2)
    branch = DenseBranch(encoder, width=6, side=8, cells=2)
    assert branch(encoder.pyramid(torch.rand(2, 1, 32, 32))).shape == (2, 24)


def test_cells_must_divide_the_side():
    with pytest.raises(AfireError, match="dense_side must be a multiple of dense_cells"):
        DenseBranch(ResNetEncoder(32), side=64, cells=5)
