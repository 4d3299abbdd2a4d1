from __future__ import annotations

import pytest
import torch
from torch.nn import functional as F
from torch.nn.utils.parametrizations import weight_norm

from afire_monai.core.errors import AfireError
from afire_monai.networks import TokenHead

CELLS, DIM = 5, 12


def head_of(cells: int | None) -> TokenHead:
    torch.manual_seed(0)
    return TokenHead(DIM, cells, out_dim=7, hidden_dim=16, bottleneck_dim=6)


def slow(head: TokenHead, tokens: torch.Tensor) -> tuple[torch.Tensor, list[torch.Tensor]]:
    """One weight-normalised linear layer per cell, called token by token; also gives the layers' directions."""
    layers = []
    for weight in head.weight.detach():
        layer = weight_norm(torch.nn.Linear(weight.shape[1], weight.shape[0], bias=False), dim=0)
        layer.parametrizations.weight.original0.data.fill_(1)
        layer.parametrizations.weight.original0.requires_grad_(False)
        layer.parametrizations.weight.original1.data.copy_(weight)
        layers.append(layer)
    bottleneck = F.normalize(head.mlp(tokens), dim=-1)
    rows = [
        torch.stack([layers[j % len(layers)](bottleneck[i, j]) for j in range(tokens.shape[1])])
        for i in range(len(tokens))
    ]
    return torch.stack(rows), [layer.parametrizations.weight.original1 for layer in layers]


@pytest.mark.parametrize("cells", [CELLS, None], ids=["a layer per cell", "a shared layer"])
def test_output_and_gradients_equal_one_weight_normalised_layer_per_token(cells):
    head = head_of(cells)
    tokens = torch.randn(3, CELLS, DIM, requires_grad=True)
    direction = torch.randn(3, CELLS, 7)
    expected, weights = slow(head, tokens)
    reference = torch.autograd.grad((expected * direction).sum(), [tokens, *head.mlp.parameters(), *weights])
    logits = head(tokens)
    torch.testing.assert_close(logits, expected, atol=1e-6, rtol=0)
    ours = torch.autograd.grad((logits * direction).sum(), [tokens, *head.mlp.parameters(), head.weight])
    for a, b in zip(ours[:-1], reference[: len(ours) - 1], strict=True):
        torch.testing.assert_close(a, b, atol=5e-6, rtol=1e-5)
    torch.testing.assert_close(ours[-1], torch.stack(reference[len(ours) - 1 :]), atol=1e-6, rtol=1e-5)
    assert ours[-1].abs().max() > 0.01


@pytest.mark.parametrize("cells", [CELLS, None])
def test_outputs_are_cosines_of_normalised_features_and_rows(cells):
    head = head_of(cells)
    with torch.no_grad():
        head.weight.mul_(37)  # the length of a row must not matter
    tokens = torch.randn(4, CELLS, DIM) * 100
    logits = head(tokens)
    assert logits.abs().max() <= 1 + 1e-5
    rows = head.weight.expand(CELLS, -1, -1)
    cosine = F.cosine_similarity(head.mlp(tokens)[:, :, None], rows[None], dim=-1)
    torch.testing.assert_close(logits, cosine, atol=1e-6, rtol=1e-5)


def test_a_shared_layer_treats_all_cells_alike_and_one_per_cell_does_not():
    token = torch.randn(1, 1, DIM).expand(1, CELLS, DIM)
    shared, own = head_of(None)(token)[0], head_of(CELLS)(token)[0]
    torch.testing.assert_close(shared, shared[:1].expand_as(shared))
    assert (own[0] - own[1]).abs().max() > 0.1


def test_a_shared_layer_takes_any_number_of_tokens():
    assert head_of(None)(torch.randn(2, 11, DIM)).shape == (2, 11, 7)


def test_published_widths_are_the_defaults():
    head = TokenHead(64, 4)
    assert [tuple(layer.weight.shape) for layer in head.mlp if isinstance(layer, torch.nn.Linear)] == [
        (1024, 64),
        (1024, 1024),
        (256, 1024),
    ]
    assert head.weight.shape == (4, 256, 256)


def test_logits_stay_float32_under_bfloat16():
    head = head_of(CELLS)
    with torch.autocast("cpu", torch.bfloat16):
        assert head(torch.randn(2, CELLS, DIM)).dtype == torch.float32


def test_wrong_number_of_tokens_is_refused_with_both_numbers():
    with pytest.raises(AfireError, match="each of 5 cells, got 6"):
        head_of(CELLS)(torch.randn(1, 6, DIM))
