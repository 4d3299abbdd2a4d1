"""The one transformer block that encoder and decoder share: MONAI's, set up as AFiRe needs it."""

from __future__ import annotations

import torch.nn as nn
from monai.networks.blocks import TransformerBlock


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
    block.norm_cross_attn = nn.Identity()
    block.norm1.eps = layer_norm_eps
    block.norm2.eps = layer_norm_eps
    return block


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
