from __future__ import annotations

import pytest
import torch

from afire_monai.core.errors import AfireError
from afire_monai.networks import AnomalyRestorationDecoder, sincos_positions

GRID, PATCH = (2, 3), 4


def decoder_of(**options) -> AnomalyRestorationDecoder:
    torch.manual_seed(0)
    return AnomalyRestorationDecoder(
        **{"in_dim": 8, "grid": GRID, "patch_size": PATCH, "dim": 16, "depth": 1, "num_heads": 2, **options}
    )


def nothing() -> torch.Tensor:
    return torch.zeros(1, 6, dtype=torch.bool)


def test_a_masked_token_does_not_reach_the_picture():
    decoder = decoder_of()
    tokens = torch.randn(1, 7, 8)
    changed = tokens.clone()
    changed[:, 1 + 4] += 10
    abnormal = nothing()
    assert not torch.allclose(decoder(tokens, abnormal), decoder(changed, abnormal))
    abnormal[0, 4] = True
    assert torch.equal(decoder(tokens, abnormal), decoder(changed, abnormal))


def test_a_mask_token_stands_in_the_place_of_its_own_cell():
    decoder = decoder_of()
    seen = []
    decoder.blocks[0].register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0].detach()))
    tokens = torch.randn(2, 7, 8)
    abnormal = torch.tensor([[False, True, False, False, False, True], [True, False, False, False, False, False]])
    decoder(tokens, abnormal)
    expected = torch.nn.functional.linear(tokens, decoder.embedding.weight, decoder.embedding.bias)
    for image, cell in abnormal.nonzero().tolist():
        expected[image, 1 + cell] = decoder.mask_token[0, cell]
    expected[:, 1:] += sincos_positions(GRID, 16)
    torch.testing.assert_close(seen[0], expected)


def test_gradient_reaches_mask_tokens_of_masked_cells_only():
    decoder = decoder_of()
    abnormal = nothing()
    abnormal[0, 2] = True
    output = decoder(torch.randn(1, 7, 8), abnormal)
    (output * torch.randn_like(output)).sum().backward()
    assert decoder.mask_token.grad is not None
    touched = decoder.mask_token.grad[0].abs().amax(-1) > 0
    assert touched.nonzero().flatten().tolist() == [2]
    silent = [name for name, p in decoder.named_parameters() if p.grad is None or p.grad.abs().max() == 0]
    assert silent == []


@pytest.mark.parametrize("channels", [1, 2])
def test_pixels_of_a_patch_are_laid_out_row_by_row_with_the_channel_last(channels):
    decoder = decoder_of(channels=channels)
    # the last layer is made to answer, for each token, cell · 1000 + place within its P · P · C values
    answer = torch.arange(6)[:, None] * 1000.0 + torch.arange(PATCH * PATCH * channels)
    decoder.image_pred.register_forward_hook(lambda *_: answer[None])
    picture = decoder(torch.randn(1, 7, 8), nothing())
    assert picture.shape == (1, channels, 8, 12)
    for row in range(8):
        for column in range(12):
            for channel in range(channels):
                cell = row // PATCH * GRID[1] + column // PATCH
                place = (row % PATCH * PATCH + column % PATCH) * channels + channel
                assert picture[0, channel, row, column] == cell * 1000 + place


def test_description_builds_the_same_decoder():
    decoder = decoder_of(layer_norm_eps=1e-5, channels=2, mlp_ratio=2.0)
    again = AnomalyRestorationDecoder(**decoder.config)
    again.load_state_dict(decoder.state_dict())
    tokens = torch.randn(1, 7, 8)
    assert torch.equal(decoder(tokens, nothing()), again(tokens, nothing()))
    assert {m.eps for m in again.modules() if isinstance(m, torch.nn.LayerNorm)} == {1e-5}


@pytest.mark.parametrize(("tokens", "cells"), [(6, 6), (7, 5)])
def test_tokens_of_another_grid_are_refused_with_what_was_expected(tokens, cells):
    with pytest.raises(AfireError, match=r"grid of 2 x 3 cells: tokens must be \(B, 7, D\) and abnormal \(B, 6\)"):
        decoder_of()(torch.randn(1, tokens, 8), torch.zeros(1, cells, dtype=torch.bool))
