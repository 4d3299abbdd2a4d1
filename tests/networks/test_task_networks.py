"""Classifier and segmenter: shapes, pooling, calibration, stochastic depth, and that a description rebuilds them."""

from __future__ import annotations

import pytest
import torch
from helpers import smooth_images

from afire_monai.core.errors import AfireError
from afire_monai.networks import ViTClassifier, ViTEncoder, ViTSegmenter


def encoder(patch: int = 8, depth: int = 3, side: int = 32) -> ViTEncoder:
    torch.manual_seed(0)
    return ViTEncoder(side, patch, embed_dim=32, depth=depth, num_heads=2)


def test_hidden_states_begin_before_the_first_block_and_end_before_the_norm():
    net, images = encoder(), smooth_images(2, (32, 32))
    states = net.hidden_states(images)
    assert [tuple(s.shape) for s in states] == [(2, 17, 32)] * 4
    torch.testing.assert_close(net.norm(states[-1]), net(images))
    torch.testing.assert_close(net.blocks[0](states[0]), states[1])


def test_residual_scale_leaves_out_blocks_image_by_image():
    net, images = encoder(), smooth_images(2, (32, 32))
    scale = torch.tensor([[1.0, 1.0, 1.0], [1.0, 0.0, 1.0]])
    both = net.hidden_states(images, scale)
    plain = net.hidden_states(images)
    torch.testing.assert_close(both[-1][0], plain[-1][0])
    torch.testing.assert_close(both[2][1], both[1][1])
    doubled = net.hidden_states(images, torch.tensor([[2.0, 1, 1]] * 2))
    torch.testing.assert_close(doubled[1] - doubled[0], 2 * (plain[1] - plain[0]), atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("pooling", ["mean", "class", "class_mean", "summary"])
@pytest.mark.parametrize("normality", [False, True])
def test_classifier_pools_what_it_says(pooling, normality):
    net = ViTClassifier(encoder(), ["a", "b", "c"], pooling, normality).eval()
    images = smooth_images(2, (32, 32))
    tokens = net.encoder(images)
    first, mean = tokens[:, 0], tokens[:, 1:].mean(1)
    ways = {
        "mean": mean,
        "class": first,
        "class_mean": torch.cat([first, mean], 1),
        "summary": net.encoder.summary(images),
    }
    pooled = ways[pooling]
    if normality:
        pooled = torch.cat([pooled, net.normality(mean)], 1)
    torch.testing.assert_close(net(images), net.head(pooled))
    assert net(images).shape == (2, 3)


def test_probabilities_are_calibrated():
    net = ViTClassifier(encoder(), ["a", "b"]).eval()
    net.calibration_scale.copy_(torch.tensor([2.0, 0.5]))
    net.calibration_bias.copy_(torch.tensor([0.0, -1.0]))
    images = smooth_images(3, (32, 32))
    logits = net(images)
    expected = torch.stack([(2 * logits[:, 0]).sigmoid(), (0.5 * logits[:, 1] - 1).sigmoid()], 1)
    torch.testing.assert_close(net.probabilities(images), expected)


@pytest.mark.parametrize("labels", [[], ["a", "a"]])
def test_labels_must_be_there_and_different(labels):
    with pytest.raises(AfireError, match="each named once"):
        ViTClassifier(encoder(), labels)
    with pytest.raises(AfireError, match="each named once"):
        ViTSegmenter(encoder(), labels)


@pytest.mark.parametrize(("patch", "side"), [(4, 16), (8, 32), (16, 64), (32, 64)])
def test_segmenter_gives_the_size_of_the_image_and_every_part_learns(patch, side):
    net = ViTSegmenter(encoder(patch, side=side), ["lung", "heart"], width=4)
    images = smooth_images(2, (side, side))
    logits = net(images)
    assert logits.shape == (2, 2, side, side)
    logits.square().mean().backward()
    untouched = [name for name, p in net.named_parameters() if p.grad is None]
    assert not untouched


def test_transformer_offers_tokens_of_evenly_spaced_depths():
    assert encoder(16, 12, 64).taps == [3, 6, 9]
    assert encoder(16, 6, 64).taps == [2, 3, 4]


def test_segmenter_keeps_left_and_right():
    """The decoder's map is laid out like the picture: a change in one corner acts most in that corner."""
    net = ViTSegmenter(encoder(8, 1, 64), ["lung"], width=4).eval()
    images = smooth_images(1, (64, 64))
    changed = images.clone()
    changed[..., :8, 48:] = 1 - changed[..., :8, 48:]
    with torch.no_grad():
        effect = (net(changed) - net(images)).abs()[0, 0]
    corners = {"here": effect[:16, 40:].mean(), "left": effect[:16, :24].mean(), "below": effect[48:, 40:].mean()}
    assert max(corners, key=lambda name: corners[name]) == "here"


def test_segmenter_refuses_a_patch_size_that_is_no_power_of_two():
    with pytest.raises(AfireError, match="the encoder has 12"):
        ViTSegmenter(encoder(12, side=48), ["lung"])


@pytest.mark.parametrize("kind", [ViTClassifier, ViTSegmenter])
def test_description_rebuilds_the_network(kind):
    net = kind(encoder(), ["a", "b"]).eval()
    again = kind.from_config(net.config).eval()
    again.load_state_dict(net.state_dict())
    images = smooth_images(2, (32, 32))
    torch.testing.assert_close(again(images), net(images))
