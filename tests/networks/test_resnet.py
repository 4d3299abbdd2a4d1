"""The ResNet encoder: maps, tokens and bottlenecks against plain code, and every drop-in place an encoder has."""

from __future__ import annotations

import pytest
import torch
from helpers import smooth_images
from torch.nn import functional as F

from afire_monai.core.errors import AfireError, CheckpointError
from afire_monai.evaluation.probes import extract_features
from afire_monai.models.folder import export_encoder, export_task, load_classifier, load_encoder, load_segmenter
from afire_monai.models.initial import initial_encoder
from afire_monai.networks import (
    ContextBottleneck,
    ResNetEncoder,
    ViTClassifier,
    ViTSegmenter,
    build_encoder,
    encoder_from_config,
)
from afire_monai.predictions.anomaly.detector import AnomalyDetector
from afire_monai.predictions.attribution import attention_rollout, grad_cam
from afire_monai.training.tasks import Classification, Segmentation, task_parameter_groups


@pytest.fixture
def encoder() -> ResNetEncoder:
    torch.manual_seed(0)
    return ResNetEncoder((64, 96), mean=0.4, std=0.3).eval()


# the network ---------------------------------------------------------------------------------------------------------


def test_resnet18_has_the_published_number_of_weights():
    plain = ResNetEncoder(64, in_channels=3, context=False)
    # 11,689,512 of ResNet-18 for ImageNet, less its 513,000 of the classification layer
    assert sum(p.numel() for p in plain.parameters()) == 11_689_512 - 513_000


def test_maps_have_the_sizes_that_are_declared(encoder):
    maps = encoder.pyramid(smooth_images(2, (64, 96)))
    expected = [(2, m.channels, 64 // m.stride, 96 // m.stride) for m in encoder.feature_maps]
    assert [tuple(m.shape) for m in maps] == expected
    assert [m.stride for m in encoder.feature_maps] == [2, 4, 8, 16, 32]


def test_tokens_are_the_cells_of_the_last_map_and_their_mean_stands_for_the_whole(encoder):
    images = smooth_images(2, (64, 96))
    tokens, last = encoder(images), encoder.pyramid(images)[-1]
    assert tokens.shape == (2, 1 + 2 * 3, 512)
    for row in range(2):
        for column in range(3):
            torch.testing.assert_close(tokens[:, 1 + row * 3 + column], last[:, :, row, column])
    torch.testing.assert_close(tokens[:, 0], last.mean((2, 3)))


def test_pyramid_equals_the_layers_one_by_one(encoder):
    images = smooth_images(2, (64, 96))
    x = encoder.contexts[0](F.relu(encoder.stem[1](encoder.stem[0]((images - 0.4) / 0.3))))
    maps = [x]
    x = F.max_pool2d(x, 3, 2, 1)
    for stage, context in zip(encoder.stages, encoder.contexts[1:], strict=True):
        for block in stage:
            shortcut = x if block.downsample is None else block.downsample(x)
            x = F.relu(block.bn2(block.conv2(F.relu(block.bn1(block.conv1(x))))) + shortcut)
        x = context(x)
        maps.append(x)
    torch.testing.assert_close(encoder.pyramid(images), maps)


def test_bottleneck_equals_a_slow_one():
    torch.manual_seed(1)
    bottleneck, x = ContextBottleneck(4), torch.rand(2, 4, 5, 6)
    mlp, kernel = bottleneck.channel, bottleneck.spatial.weight[0]
    for image, ours in zip(x, bottleneck(x), strict=True):
        mean, largest = (torch.stack([f(plane) for plane in image]) for f in (torch.mean, torch.max))
        weighed = image * torch.sigmoid(mlp(mean) + mlp(largest))[:, None, None]
        planes = F.pad(torch.stack([weighed.mean(0), weighed.max(0).values]), (3, 3, 3, 3))
        for i in range(5):
            for j in range(6):
                attention = torch.sigmoid((planes[:, i : i + 7, j : j + 7] * kernel).sum())
                torch.testing.assert_close(ours[:, i, j], weighed[:, i, j] * attention)
    assert mlp[0].weight.shape == (2, 4)


def test_every_parameter_gets_a_gradient(encoder):
    encoder.train()
    encoder(smooth_images(2, (64, 96))).square().sum().backward()
    assert [name for name, p in encoder.named_parameters() if p.grad is None or not p.grad.any()] == []


def test_residual_scale_leaves_out_blocks_image_by_image(encoder):
    images, scale = smooth_images(2, (64, 96)), torch.ones(2, 8)
    torch.testing.assert_close(encoder(images, scale), encoder(images))
    scale[1, 7] = 0
    both = encoder.pyramid(images, scale)
    plain = encoder.pyramid(images)
    torch.testing.assert_close(both[-1][0], plain[-1][0])
    x = encoder.stages[3][0](plain[3][1:])  # without its second block the stage ends after the first
    torch.testing.assert_close(both[-1][1:], encoder.contexts[4](x))


def test_wrong_sizes_are_refused_with_the_way_out(encoder):
    with pytest.raises(AfireError, match="set patch_size to 32, not 16"):
        build_encoder("resnet18", image_size=64, patch_size=16)
    with pytest.raises(AfireError, match="resize or pad to 64 x 96"):
        encoder(torch.rand(1, 1, 60, 90))
    with pytest.raises(AfireError, match=r"\(B, 1, H, W\)"):
        encoder(torch.rand(1, 3, 64, 96))
    with pytest.raises(AfireError, match="four stages"):
        ResNetEncoder(64, blocks=(2, 2))
    with pytest.raises(AfireError, match="unknown kind of encoder 'gru'"):
        encoder_from_config({"kind": "gru"})


# where encoders are used ---------------------------------------------------------------------------------------------


def test_export_and_load_keep_weights_and_running_statistics(encoder, tmp_path):
    encoder.train()
    encoder(smooth_images(4, (64, 96)))
    loaded = load_encoder(export_encoder(encoder.eval(), tmp_path, method_name="MLVICX"))
    images = smooth_images(2, (64, 96))
    assert torch.equal(loaded(images), encoder(images))
    assert loaded.config == encoder.config
    assert encoder.state_dict()["stem.1.running_mean"].any()
    for name, value in encoder.state_dict().items():
        assert torch.equal(loaded.state_dict()[name], value), name
    with pytest.raises(AfireError, match="must be in 0…1"):
        loaded(images * 255)


def test_another_size_is_read_from_the_same_files(encoder, tmp_path):
    export_encoder(encoder, tmp_path)
    larger = load_encoder(tmp_path, image_size=128)
    assert larger(smooth_images(1, (128, 128))).shape == (1, 17, 512)
    with pytest.raises((AfireError, CheckpointError), match="multiple of the patch size 32"):
        load_encoder(tmp_path, image_size=100)


def test_random_encoder_starts_fine_tuning():
    net = initial_encoder("random", "resnet18", 64, 32, lambda: (0.5, 0.2))
    assert (net.grid, net.embed_dim, net.config["std"]) == ((2, 2), 512, [0.2])


@pytest.mark.parametrize("pooling", ["mean", "class", "regions"])
def test_probes_take_it(encoder, pooling):
    features = extract_features(encoder, smooth_images(3, (64, 96)), pooling)
    assert features.shape == (3, 16 * 512 if pooling == "regions" else 512)


@pytest.mark.parametrize("pooling", ["mean", "class"])
def test_classifier_goes_through_a_file_and_shows_where_it_looked(encoder, pooling, tmp_path):
    images = smooth_images(2, (64, 96))
    net = ViTClassifier(encoder, ["a", "b"], pooling).eval()
    export_task(net, tmp_path, thresholds={"a": 0.5, "b": 0.5})
    loaded, _ = load_classifier(tmp_path)
    assert torch.equal(loaded(images), net(images))
    heat = grad_cam(net, images, label=1)
    # with one linear layer on the mean, the channels' weights are the layer's, over the number of cells
    expected = (encoder.pyramid(images)[-1] * net.head.weight[1][:, None, None]).sum(1).relu() / 6
    torch.testing.assert_close(heat, expected, atol=1e-6, rtol=1e-4)
    assert grad_cam(net, images, label=0, block=0).shape == (2, 16, 24)
    with pytest.raises(AfireError, match="block must be in -8…7"):
        grad_cam(net, images, label=0, block=8)
    with pytest.raises(AfireError, match="needs a transformer"):
        attention_rollout(net, images)


def test_segmenter_uses_the_whole_pyramid_and_goes_through_a_file(encoder, tmp_path):
    net = ViTSegmenter(encoder, ["lung"], width=4)
    images = smooth_images(2, (64, 96))
    logits = net(images)
    assert logits.shape == (2, 1, 64, 96)
    logits.square().mean().backward()
    assert [name for name, p in net.named_parameters() if p.grad is None] == []
    export_task(net.eval(), tmp_path)
    assert torch.equal(load_segmenter(tmp_path)[0](images), net(images))


def test_learning_rates_fall_towards_the_stem(encoder):
    task = Classification(ViTClassifier(encoder, ["a"]))
    groups = task_parameter_groups(task, 0.5)
    scale = {id(p): group["lr_scale"] for group in groups for p in group["params"]}
    named = dict(task.student.named_parameters())
    assert len(scale) == len(named)
    levels = {"encoder.stem.0.weight": 0, "encoder.contexts.0.spatial.weight": 0, "encoder.stages.0.0.conv1.weight": 1}
    levels |= {"encoder.stages.3.1.conv2.weight": 8, "encoder.contexts.4.channel.0.weight": 8, "head.weight": 9}
    for name, level in levels.items():
        assert scale[id(named[name])] == 0.5 ** (9 - level), name


def test_tasks_train_with_stochastic_depth_and_average_the_running_statistics_too(encoder):
    task = Classification(ViTClassifier(encoder, ["a"]), drop_path=0.5, average=True).train()
    batch = {"image": smooth_images(4, (64, 96)), "target": torch.tensor([[0.0], [1.0], [0.0], [1.0]])}
    before = task.teacher.state_dict()["encoder.stem.1.running_mean"].clone()
    task.batch_losses(batch, torch.rand(4, task.draws), False)["classification"].backward()
    task.update_teacher(0.75)
    after, student = (n.state_dict()["encoder.stem.1.running_mean"] for n in (task.teacher, task.student))
    torch.testing.assert_close(after, 0.75 * before + 0.25 * student)
    assert task.predict(batch["image"]).shape == (4, 1)
    segmentation = Segmentation(ViTSegmenter(encoder, ["lung"], 4), drop_path=0.5).train()
    batch = {"image": batch["image"], "mask": (batch["image"] > 0.5).float()}
    losses = segmentation.batch_losses(batch, torch.rand(4, segmentation.draws), False)
    assert all(loss.isfinite() for loss in losses.values())


def test_frozen_encoder_keeps_its_running_statistics(encoder):
    task = Classification(ViTClassifier(encoder, ["a"]), frozen_encoder=True).train()
    before = {name: value.clone() for name, value in encoder.state_dict().items()}
    batch = {"image": smooth_images(4, (64, 96)), "target": torch.tensor([[0.0], [1.0], [0.0], [1.0]])}
    task.batch_losses(batch, torch.rand(4, task.draws), False)["classification"].backward()
    assert all(torch.equal(value, before[name]) for name, value in encoder.state_dict().items())


def test_anomaly_detector_takes_its_tokens(encoder):
    features = AnomalyDetector(encoder).eval().features(smooth_images(2, (64, 96)))
    torch.testing.assert_close(features.tokens, encoder(smooth_images(2, (64, 96)))[:, 1:])
