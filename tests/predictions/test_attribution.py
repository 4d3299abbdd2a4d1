from __future__ import annotations

import copy

import pytest
import torch
from helpers import PATCH, smooth_images

from afire_monai.core.errors import AfireError
from afire_monai.networks import ViTEncoder
from afire_monai.networks.task_networks import ViTClassifier
from afire_monai.predictions.attribution import attention_maps, attention_rollout, grad_cam


def classifier(pooling="mean", depth=3) -> ViTClassifier:
    torch.manual_seed(1)
    model = ViTClassifier(ViTEncoder((24, 32), PATCH, embed_dim=16, depth=depth, num_heads=2), ["A", "B"], pooling)
    torch.nn.init.normal_(model.head.weight)
    torch.nn.init.normal_(model.encoder.cls_token)
    return model.eval()


IMAGES = smooth_images(3, (24, 32))


def cam_by_hand(model: ViTClassifier, image: torch.Tensor, label: int, block: int | None) -> torch.Tensor:
    """One image, step by step: tokens after a block, the rest of the network on them, gradient, weighted sum."""
    encoder = model.encoder
    tokens = encoder.patch_embed(encoder.normalise(image)).flatten(2).transpose(1, 2) + encoder.positions
    tokens = torch.cat([encoder.cls_token, tokens], 1)
    blocks = list(encoder.blocks)
    rest = [] if block is None else blocks[block + 1 :]
    for step in blocks if block is None else blocks[: block + 1]:
        tokens = step(tokens)
    tokens = encoder.norm(tokens) if block is None else tokens
    leaf = tokens.detach().requires_grad_()
    after = leaf
    for step in rest:
        after = step(after)
    after = after if block is None else encoder.norm(after)
    pooled = after[0, 0] if model.pooling == "class" else after[0, 1:].mean(0)
    (model.head.weight[label] @ pooled + model.head.bias[label]).backward()
    channels = [leaf.grad[0, 1:, d].mean() for d in range(16)]
    cam = torch.zeros(3, 4)
    for row in range(3):
        for column in range(4):
            token = leaf[0, 1 + row * 4 + column]
            cam[row, column] = max(sum((w * t).item() for w, t in zip(channels, token, strict=True)), 0.0)
    return cam


@pytest.mark.parametrize(
    ("pooling", "block", "by_hand"), [("mean", None, None), ("mean", 0, 0), ("mean", -2, 1), ("class", None, 1)]
)
def test_grad_cam_is_what_gradients_by_hand_give(pooling, block, by_hand):
    model = classifier(pooling)
    cams = grad_cam(model, IMAGES, 1, block)
    assert cams.shape == (3, 3, 4)
    assert cams.max() > 0
    for cam, image in zip(cams, IMAGES, strict=True):
        torch.testing.assert_close(
            cam, cam_by_hand(copy.deepcopy(model), image[None], 1, by_hand), atol=1e-5, rtol=1e-4
        )


def test_grad_cam_leaves_the_model_as_it_was():
    model = classifier()
    with torch.no_grad():
        before = model(IMAGES)
        grad_cam(model, IMAGES, 0)
        assert torch.equal(model(IMAGES), before)
    assert all(parameter.grad is None for parameter in model.parameters())
    frozen = classifier().requires_grad_(False)
    assert torch.equal(grad_cam(frozen, IMAGES, 0), grad_cam(model, IMAGES, 0))


def test_grad_cam_finds_the_place_that_the_label_depends_on():
    """A label that counts bright patches, on a picture with one bright patch off the diagonal."""
    model = classifier(depth=1)
    with torch.no_grad():
        for name, parameter in model.encoder.named_parameters():
            if "blocks" in name:
                parameter.zero_()
        model.encoder.patch_embed.weight.zero_()
        model.encoder.patch_embed.weight[0] = 1.0
        model.encoder.positions.zero_()
        model.head.weight.zero_()
        model.head.weight[1, 0] = 1.0
    image = torch.full((1, 1, 24, 32), 0.2)
    image[..., 0:8, 24:32] = 0.9
    assert grad_cam(model, image, 1)[0].argmax() == 3


@pytest.mark.parametrize(("label", "block", "said"), [(2, None, "label 2"), (0, 3, r"-3…2, got 3")])
def test_grad_cam_refuses_what_is_not_there(label, block, said):
    with pytest.raises(AfireError, match=said):
        grad_cam(classifier(), IMAGES, label, block)


def attention_by_hand(encoder: ViTEncoder, image: torch.Tensor) -> list[torch.Tensor]:
    tokens = encoder.patch_embed(encoder.normalise(image)).flatten(2).transpose(1, 2) + encoder.positions
    tokens = torch.cat([encoder.cls_token, tokens], 1)
    maps = []
    for block in encoder.blocks:
        x = block.norm1(tokens)[0]
        q, k, _ = (x @ block.attn.qkv.weight.T + block.attn.qkv.bias).split(16, dim=1)
        heads = [torch.softmax(q[:, s] @ k[:, s].T / 8**0.5, 1) for s in (slice(0, 8), slice(8, 16))]
        maps.append((heads[0] + heads[1]) / 2)
        tokens = block(tokens)
    return maps


@pytest.mark.parametrize("pooling", ["mean", "class"])
@torch.no_grad()
def test_rollout_is_the_product_of_explicit_matrices(pooling):
    model = classifier(pooling)
    found = attention_rollout(model, IMAGES)
    for answer, image in zip(found, IMAGES, strict=True):
        product = torch.eye(13)
        for attention in attention_by_hand(model.encoder, image[None]):
            product = (attention / 2 + torch.eye(13) / 2) @ product
        row = product[0] if pooling == "class" else product[1:].mean(0)
        torch.testing.assert_close(answer, row[1:].view(3, 4), atol=1e-6, rtol=1e-5)


def test_attention_rows_sum_to_one_and_hooks_are_gone_afterwards():
    encoder = classifier().encoder
    for attention in attention_maps(encoder, IMAGES):
        torch.testing.assert_close(attention.sum(-1), torch.ones(3, 13))
    assert not any(block.attn._forward_pre_hooks for block in encoder.blocks)
    with pytest.raises(AfireError, match="multiple of the patch size"):
        attention_maps(encoder, IMAGES[:, :, :9])
    assert not any(block.attn._forward_pre_hooks for block in encoder.blocks)
