"""Every step as a GPU would run it, without one: no wait of the host, one device, one precision, one graph."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from fake_gpu import DEVICE, empty_like, fake_gpu
from tiny_steps import COUNT, STEPS, batch_for, build, optimizer_for, tiny_swin

from afire_monai.methods import Method
from afire_monai.models.restorer import AnomalyNetwork
from afire_monai.networks import ViTClassifier, ViTSegmenter
from afire_monai.predictions.anomaly.detector import AnomalyDetector
from afire_monai.training.trainer import clip_each

WITH_TEACHER = ("afire_published", "afire_shifted", "afire_full", "peac_vit", "peac_swin", "dino")


@pytest.fixture(autouse=True)
def _no_graphs_of_other_tests():
    torch.compiler.reset()


def step(method: Method, batch: dict[str, torch.Tensor], uniforms: torch.Tensor) -> None:
    """What the trainer does between reading a batch and the next one."""
    optimizer = optimizer_for(method)
    losses = method.batch_losses(batch, uniforms, first_epoch=False)
    torch.stack([losses[name] * weight for name, weight in method.loss_weights.items()]).sum().backward()
    clip_each(optimizer, 3.0)
    assert all(p.grad is not None and p.grad.device.type == DEVICE for _, p in method.trainable())
    if not (DEVICE == "meta" and isinstance(optimizer, torch.optim.AdamW)):  # fused kernels are for real devices
        optimizer.step()
    optimizer.zero_grad(set_to_none=True)
    method.update_teacher(0.99)


@pytest.mark.parametrize("name", STEPS)
def test_training_step_never_waits_for_the_device(name):
    method = build(name).train()
    batch = batch_for(method)
    with fake_gpu(method):
        fakes = {key: empty_like(value) for key, value in batch.items()}
        step(method, fakes, torch.empty(COUNT, method.draws, device=DEVICE))


@pytest.mark.parametrize("shift", [0, 2])
def test_anomaly_detector_never_waits_for_the_device(shift):
    student, bank = (method := build("afire_shifted" if shift else "afire_published")).student, method.prototypes
    restorer = AnomalyNetwork(student.encoder, student.decoder)
    detector = AnomalyDetector(student.encoder, shift, restorer, student.head, bank.assignment()).eval()
    with fake_gpu(detector), torch.no_grad():
        found = detector.features(torch.empty(COUNT, 1, *detector.canvas_size, device=DEVICE))
        assert set(found.cells) == {"residual", "difference", "prototypes"}


@pytest.mark.parametrize(("name", "part"), [(n, "student") for n in STEPS] + [(n, "teacher") for n in WITH_TEACHER])
def test_networks_compile_to_one_graph(name, part):
    method = build(name).train()
    network = getattr(method, part)
    calls: list[tuple[tuple[torch.Tensor, ...], Any]] = []
    network.register_forward_hook(lambda _, given, result: calls.append((given, result)))
    with torch.no_grad():
        method.batch_losses(batch_for(method), torch.rand(COUNT, method.draws), first_epoch=False)
    given, expected = calls[0]
    network._forward_hooks.clear()
    compiled = torch.compile(network, backend="eager", fullgraph=True)
    torch.testing.assert_close(compiled(*given), expected)


@pytest.mark.parametrize("network", [ViTClassifier, ViTSegmenter])
def test_classifier_and_segmenter_of_a_swin_compile_to_one_graph(network):
    torch.manual_seed(0)
    model = network(tiny_swin(), ["a"]).eval()
    images, scale = torch.rand(2, 1, 64, 64), torch.tensor([[0.0, 1.5]] * 2).repeat(1, 4)
    compiled = torch.compile(model, backend="eager", fullgraph=True)
    torch.testing.assert_close(compiled(images, scale), model(images, scale))


@pytest.mark.parametrize(
    ("fault", "words"),
    [
        (lambda x: x.sum().item(), "_local_scalar_dense"),
        (lambda x: bool((x > 0).any()), "_local_scalar_dense|is_nonzero"),
        (lambda x: x.nonzero(), "nonzero"),
        (lambda x: x[x > 0], "nonzero|index"),
        (lambda x: x.cpu(), "on cpu"),
        (lambda x: x + torch.ones(3), "on cpu"),
        (lambda x: x * torch.tensor(2.0), "on cpu"),
        (lambda x: x + torch.tensor([1.0], device=x.device), "on cpu|convert all Tensors"),
        (lambda x: x.double(), "float64"),
        (lambda x: x.cumsum(0), "no fixed order"),
    ],
)
def test_the_watch_sees_what_it_is_for(fault, words):
    with fake_gpu():
        x = torch.empty(3, device=DEVICE)
        with pytest.raises((AssertionError, RuntimeError), match=words):
            fault(x)
