"""Building blocks: the transformer block that encoder and decoder share, and batch norm over all processes."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
import torch.nn.functional as F
from monai.networks.blocks import SABlock, TransformerBlock
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.utils.checkpoint import checkpoint

from afire_monai.core.distributed import sum_over_processes_with_gradient, world_size


class FusedSelfAttention(SABlock):
    """MONAI's self-attention with the same weights and values, and fewer copies of queries, keys and values.

    MONAI picks the three out of one rearranged tensor by index, whose backward pass fills a tensor of zeros for each
    and adds them up; here they are views of one tensor, and gradients are stacked once (`benchmarks/attention.py`).
    """

    def heads(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Return queries, keys and values, each (B, heads, T, d), of tokens (B, T, D)."""
        batch, tokens, _ = x.shape
        split = self.qkv(x).view(batch, tokens, 3, self.num_heads, self.dim_head).permute(2, 0, 3, 1, 4)
        query, key, value = split.unbind(0)
        return query, key, value

    def forward(self, x: Tensor, attn_mask: Tensor | None = None) -> Tensor:
        """Attend.

        Args:
            x: (B, T, D).
            attn_mask: as for ``torch.nn.functional.scaled_dot_product_attention``.
        """
        batch, tokens, _ = x.shape
        query, key, value = self.heads(x)
        mixed = F.scaled_dot_product_attention(query, key, value, attn_mask=attn_mask, scale=self.scale)
        return self.out_proj(mixed.transpose(1, 2).reshape(batch, tokens, self.inner_dim))


def transformer_block(dim: int, num_heads: int, mlp_ratio: float, layer_norm_eps: float) -> TransformerBlock:
    """Build a pre-norm block with biased qkv, no dropout and the fused attention of PyTorch.

    MONAI's fused attention ignores ``eval()`` when dropout is above zero, so dropout stays at zero. The layer norm that
    MONAI keeps for cross-attention is dropped: it would be a parameter that never gets a gradient, which
    ``DistributedDataParallel`` refuses.

    Args:
        dim: token width D.
        num_heads: attention heads; must divide ``dim``.
        mlp_ratio: hidden width of the MLP as a multiple of ``dim``.
        layer_norm_eps: ε of both layer norms (1e-6 in the encoder of the paper's release, 1e-5 in its decoder).

    Returns:
        A block that maps (B, T, D) to (B, T, D).
    """
    block = TransformerBlock(
        hidden_size=dim,
        mlp_dim=int(dim * mlp_ratio),
        num_heads=num_heads,
        dropout_rate=0.0,
        qkv_bias=True,
        use_flash_attention=True,
    )
    # the class is changed because a new layer would draw weights again: a seed gives the same with either attention
    block.attn.__class__ = FusedSelfAttention
    block.norm_cross_attn = nn.Identity()
    block.norm1.eps = layer_norm_eps
    block.norm2.eps = layer_norm_eps
    return block


class RecomputedBlock:
    """A mixin for networks of blocks that can forget activations in between and compute them again when needed."""

    #: keep only the blocks' inputs and repeat each block in the backward pass: this takes a fraction of the memory and
    #: a third more arithmetic, and gives the same values
    recompute: bool = False
    blocks: nn.ModuleList

    def call_block(self, block: nn.Module, tokens: Tensor, *more: object) -> Tensor:
        """Return ``block(tokens, *more)``."""
        if self.recompute and torch.is_grad_enabled():
            return checkpoint(block, tokens, *more, use_reentrant=False, preserve_rng_state=False)
        return block(tokens, *more)


def recompute_blocks(modules: Iterable[nn.Module]) -> int:
    """Switch recomputation on wherever it is offered; return the number of networks that offer it."""
    able = [module for module in modules if isinstance(module, RecomputedBlock)]
    for module in able:
        module.recompute = True
    return len(able)


def compile_networks(*networks: nn.Module | None) -> None:
    """Compile networks in place: their transformer blocks, one compilation for all that are alike, else the whole.

    Nearly all that a compiler can fuse lies inside a block, and compiling one takes seconds where a network takes
    minutes. State dicts keep their names.
    """
    for network in networks:
        if network is not None:
            blocks = [block for part in network.modules() if isinstance(part, RecomputedBlock) for block in part.blocks]
            for module in blocks or [network]:
                if module._compiled_call_impl is None:
                    module.compile()


def init_transformer(module: nn.Module) -> None:
    """Initialise linears Xavier-uniform with zero biases, layer norms with ones and zeros (as released).

    Meant for ``nn.Module.apply``.
    """
    if isinstance(module, nn.Linear):
        nn.init.xavier_uniform_(module.weight)
        if module.bias is not None:
            nn.init.zeros_(module.bias)
    elif isinstance(module, nn.LayerNorm):
        nn.init.ones_(module.weight)
        nn.init.zeros_(module.bias)


class SyncedBatchNorm(_BatchNorm):
    """Batch norm whose statistics are those of the global batch; for (B, C) and (B, C, H, W).

    In a single process and in evaluation it is PyTorch's. With several, count, sums and sums of squares are added over
    processes in one collective, with gradient; about the running mean, so that little is lost to rounding. Statistics
    are float32 under mixed precision, too. The batch may differ in size between processes.
    """

    def _check_input_dim(self, input: Tensor) -> None:
        if input.ndim < 2:
            raise ValueError(f"expected (B, C) or (B, C, H, W), got {input.ndim} dimensions")

    def forward(self, input: Tensor) -> Tensor:
        """Normalise (B, C) or (B, C, H, W); the running statistics move in training."""
        if not self.training or world_size() == 1:
            return super().forward(input)
        with torch.autocast(input.device.type, enabled=False):
            return self._over_processes(input.float()).to(input.dtype)

    def _over_processes(self, values: Tensor) -> Tensor:
        state: Any = self  # buffers and affine parameters are optional in PyTorch's class, not in this one
        shape = [1, -1, *[1] * (values.ndim - 2)]
        others = [0, *range(2, values.ndim)]
        origin = state.running_mean.clone()
        values = values - origin.view(shape)
        count = values.new_tensor([values.numel() / values.shape[1]])
        sums = torch.cat([values.sum(others), values.square().sum(others), count])
        first, second, number = sum_over_processes_with_gradient(sums).split([len(origin), len(origin), 1])
        mean = first / number
        variance = (second / number - mean.square()).clamp(min=0)
        with torch.no_grad():
            state.running_mean.lerp_(mean + origin, state.momentum)
            state.running_var.lerp_(variance * number / (number - 1).clamp(min=1), state.momentum)
            state.num_batches_tracked += 1
        scale = state.weight * torch.rsqrt(variance + self.eps)
        return values * scale.view(shape) + (state.bias - mean * scale).view(shape)


def synced_batch_norm(module: nn.Module) -> nn.Module:
    """Put :class:`SyncedBatchNorm` in place of each batch norm of a module; names and values stay.

    Args:
        module: module to change in place.
    """
    for name, child in module.named_children():
        if isinstance(child, (nn.BatchNorm1d, nn.BatchNorm2d)):
            synced = SyncedBatchNorm(child.num_features, child.eps, child.momentum)
            synced.load_state_dict(child.state_dict())
            setattr(module, name, synced)
        else:
            synced_batch_norm(child)
    return module
