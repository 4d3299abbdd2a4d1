"""MONAI's two-dimensional Swin transformer as an encoder."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from monai.networks.nets.swin_unetr import SwinTransformer, compute_mask, get_window_size
from torch import Tensor, nn

from afire_monai.core.errors import AfireError
from afire_monai.networks.encoder_base import Encoder, FeatureMap

STRIDE = 32
_FIRST = 4


class SwinEncoder(Encoder):
    """Swin transformer (Liu et al., ICCV 2021), the larger encoder of PEAC (arXiv 2312.00335).

    Built on MONAI's ``SwinTransformer``: patches of 4 pixels, four stages of attention within windows, shifted in every
    second block, and merging of 2 x 2 patches between stages, none after the last (MONAI has one there). Positions are
    relative, within a window.

    The token for the whole image is the mean of the last map, the patch tokens are its cells.

    Args:
        image_size: side in pixels, or (height, width); multiples of 32.
        patch_size: the total stride, 32.
        embed_dim: width of the first stage; each further one is twice as wide, so tokens are 8 times as wide.
        depths: number of blocks of each of the four stages.
        heads: attention heads of each stage.
        window: side of a window in patches. A window that does not divide the maps' sides is padded, which costs time.
        options: as for :class:`Encoder`.

    Raises:
        AfireError: for another patch size, depths or heads that are not four, or a window larger than the last map.

    Example:
        >>> import torch
        >>> encoder = SwinEncoder(image_size=64, embed_dim=12, depths=(1, 1, 1, 1), heads=(1, 2, 4, 8), window=2)
        >>> encoder(torch.rand(2, 1, 64, 64)).shape
        torch.Size([2, 5, 96])
    """

    def __init__(
        self,
        image_size: int | Sequence[int] = 448,
        patch_size: int = STRIDE,
        embed_dim: int = 128,
        depths: Sequence[int] = (2, 2, 18, 2),
        heads: Sequence[int] = (4, 8, 16, 32),
        window: int = 7,
        **options: Any,
    ) -> None:
        if patch_size != STRIDE:
            raise AfireError(f"a Swin transformer sees cells of {STRIDE} pixels: set patch_size to {STRIDE}")
        if len(depths) != 4 or len(heads) != 4 or min(*depths, *heads, window) < 1:
            raise AfireError(
                f"depths and heads must name a number for each of four stages, and window one above 0; got "
                f"{list(depths)}, {list(heads)} and {window}"
            )
        self.window = window
        super().__init__(image_size, patch_size, embed_dim * 8, sum(depths), **options)
        self.config |= {
            "kind": "swin", "embed_dim": embed_dim, "depths": list(depths), "heads": list(heads), "window": window,
        }  # fmt: skip
        widths = [embed_dim * 2**stage for stage in range(4)]
        self.feature_maps = (
            FeatureMap(embed_dim, _FIRST),
            *(FeatureMap(c, _FIRST << stage) for stage, c in enumerate(widths)),
        )
        swin = SwinTransformer(
            in_chans=self.in_channels,
            embed_dim=embed_dim,
            window_size=(window, window),
            patch_size=(_FIRST, _FIRST),
            depths=list(depths),
            num_heads=list(heads),
            patch_norm=True,
            spatial_dims=2,
        )
        self.patch_embed = swin.patch_embed
        stages = [swin.layers1[0], swin.layers2[0], swin.layers3[0], swin.layers4[0]]
        self.stages = nn.ModuleList(stage.blocks for stage in stages)
        self.merging = nn.ModuleList(stage.downsample for stage in stages[:-1])
        self.norm = nn.LayerNorm(self.embed_dim)
        # returns the last map; a layer of its own, so that its output can be requested
        self.last_map = nn.Identity()
        self._first = [sum(depths[:stage]) for stage in range(5)]

    def grid_of(self, height: int, width: int) -> tuple[int, int]:
        """Return the token grid (h, w) of an image size (see :meth:`Encoder.grid_of`).

        Raises AfireError for a size that is not a multiple of 32, or whose last map is smaller than a window.
        """
        grid = super().grid_of(height, width)
        if min(grid) < self.window:
            raise AfireError(
                f"an image of {height} x {width} pixels has {grid[0]} x {grid[1]} cells in the last stage, fewer than "
                f"a window of {self.window}: give at least {self.window * STRIDE} pixels, or a smaller window"
            )
        return grid

    def pyramid(self, images: Tensor, residual_scale: Tensor | None = None) -> list[Tensor]:
        """Return the embedded patches and the map after each stage: strides 4, 4, 8, 16 and 32."""
        self.checked(images)
        x = self.patch_embed(self.normalise(images))
        maps = [x]
        x = x.movedim(1, -1)
        for number, blocks in enumerate(self.stages):
            mask = self._mask(x)
            stage: Any = blocks
            for place, block in enumerate(stage, start=self._first[number]):
                after = block(x, mask)
                if residual_scale is not None:
                    after = torch.lerp(x, after, residual_scale[:, place, None, None, None].to(after.dtype))
                x = after
            if number == 3:
                x = self.norm(x)
            maps.append(x.movedim(-1, 1))
            if number < 3:
                x = self.merging[number](x)
        maps[-1] = self.last_map(maps[-1])
        return maps

    def _mask(self, x: Tensor) -> Tensor:
        """Return which patches of a shifted window belong together, for a map (B, h, w, C)."""
        size = (self.window, self.window)
        window, shift = get_window_size(x.shape[1:3], size, tuple(side // 2 for side in size))
        padded = [-(-side // step) * step for side, step in zip(x.shape[1:3], window, strict=True)]
        return compute_mask(padded, window, shift, x.device)

    def block_of(self, parameter: str) -> int:
        """Return how deep a parameter lies (:meth:`Encoder.block_of`); merging counts with the block before it."""
        part, *rest = parameter.split(".")
        if part == "stages":
            return self._first[int(rest[0])] + int(rest[1]) + 1
        if part == "merging":
            return self._first[int(rest[0]) + 1]
        return self.depth + 1 if part == "norm" else 0

    def attribution_layer(self, block: int | None, class_token: bool) -> nn.Module:
        """Return the module whose output is the last map, from which all tokens are made.

        Raises AfireError for any block but the last: the others give maps with channels last.
        """
        if block is not None and self._number_of(block) != self.depth - 1:
            raise AfireError(f"only the last map of a Swin transformer can be asked for, not block {block}")
        return self.last_map
