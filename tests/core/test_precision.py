"""What a step computes in: networks as asked for, views and losses always in float32."""

from __future__ import annotations

import sys
from typing import Any

import pytest
import torch
from tiny_steps import STEPS, build, trainer_for

from afire_monai.core.errors import AfireError, CheckpointError
from afire_monai.core.precision import bfloat16_is_slow, set_precision
from afire_monai.losses import SelfDistillationLoss
from afire_monai.predictions.scoring import Scorer
from afire_monai.training.startup import prepare_run


@pytest.fixture(autouse=True)
def _as_it_was():
    yield
    set_precision("float32")


def tensors_of(value: Any) -> list[torch.Tensor]:
    return [value] if isinstance(value, torch.Tensor) else [t for part in value for t in tensors_of(part)]


class Played:
    """In place of a network's forward: gives what was recorded, whatever it is called with."""

    def __init__(self, outputs: list[Any], trained: bool) -> None:
        self.outputs, self.trained = list(outputs), trained

    def __call__(self, *inputs: torch.Tensor) -> Any:
        output = self.outputs.pop(0)
        if isinstance(output, torch.Tensor):
            return output.detach().clone().requires_grad_(self.trained)
        parts = [part.detach().clone().requires_grad_(self.trained) for part in output]
        return type(output)(*parts) if hasattr(output, "_fields") else tuple(parts)


def step(name: str, precision: str, recorded: dict[str, list[Any]] | None = None):
    """Losses of one step, and what student and teacher were given and gave, or give if it is `recorded`."""
    method = build(name)
    trainer = trainer_for(method, precision=precision)
    inputs: list[torch.Tensor] = []
    outputs: dict[str, list[Any]] = {"student": [], "teacher": []}

    def keep(part: str, given: tuple[torch.Tensor, ...], result: Any) -> None:
        inputs.extend(given)
        outputs[part].append(result)

    for part in outputs:
        network = getattr(method, part)
        if network is not None:
            if recorded is not None:
                network.forward = Played(recorded[part], part == "student")
            network.register_forward_hook(lambda _, given, result, part=part: keep(part, given, result))
    trainer.run()
    return trainer.state.output, inputs, outputs


@pytest.mark.parametrize("name", STEPS)
def test_views_and_losses_of_the_same_outputs_are_those_of_float32_when_networks_run_in_bfloat16(name):
    expected, images, outputs = step(name, "float32")
    losses, seen, _ = step(name, "bfloat16", outputs)
    for image, other in zip(images, seen, strict=True):
        assert torch.equal(image, other)
    assert losses.keys() == expected.keys()
    for key, value in expected.items():
        assert losses[key].dtype == torch.float32
        assert torch.equal(losses[key], value), key


@pytest.mark.parametrize("name", STEPS)
def test_networks_run_in_bfloat16_when_asked_to(name):
    _, _, outputs = step(name, "bfloat16")
    kinds = {part: {t.dtype for result in results for t in tensors_of(result)} for part, results in outputs.items()}
    # token heads give float32, of products that were rounded
    if "afire" not in name and name != "dino":
        assert kinds["student"] == {torch.bfloat16}
    exact = step(name, "float32")[2]
    pairs = zip(tensors_of(outputs["student"]), tensors_of(exact["student"]), strict=True)
    assert all(not torch.equal(rounded.float(), value) for rounded, value in pairs)


def test_distillation_loss_is_not_rounded_by_autocast():
    generator = torch.Generator().manual_seed(0)
    loss = SelfDistillationLoss(64)
    pairs = [
        (torch.randn(4, 8, 64, generator=generator), torch.randn(2, 8, 64, generator=generator)) for _ in range(40)
    ]
    expected = [loss(student, teacher) for student, teacher in pairs]
    with torch.autocast("cpu", torch.bfloat16):
        values = [loss(student, teacher) for student, teacher in pairs]
    assert len({value.item() for value in values}) == 40
    assert torch.equal(torch.stack(values), torch.stack(expected))


@pytest.mark.parametrize(("precision", "tf32"), [("float32", False), ("tf32", True), ("bfloat16", False)])
def test_precision_says_what_products_and_convolutions_of_float32_are_computed_in(precision, tf32):
    set_precision("float32" if tf32 else "tf32")
    method = build("mae")
    trainer_for(method, precision=precision)
    backends = torch.backends
    assert backends.cuda.matmul.allow_tf32 == backends.cudnn.allow_tf32 == tf32
    assert (backends.cuda.matmul.fp32_precision == "tf32") == (backends.cudnn.conv.fp32_precision == "tf32") == tf32
    assert method.network_dtype == (torch.bfloat16 if precision == "bfloat16" else torch.float32)
    # reading both ways is what the compiler does
    compiled = torch.compile(lambda x: x @ x, backend="eager", fullgraph=True)
    assert compiled(torch.eye(3)).equal(torch.eye(3))


def test_runs_and_predictions_begin_in_float32(tmp_path, monkeypatch):
    monkeypatch.setattr(sys, "excepthook", sys.excepthook)
    set_precision("tf32")
    prepare_run(tmp_path, [])
    assert not torch.backends.cudnn.allow_tf32
    set_precision("tf32")
    with pytest.raises(CheckpointError, match="nothing there that predicts"):
        Scorer([tmp_path])
    assert not torch.backends.cudnn.allow_tf32


def test_unknown_precision_is_refused_with_the_known_ones():
    with pytest.raises(AfireError, match="one of float32, tf32, bfloat16, got 'float16'"):
        set_precision("float16")


@pytest.mark.parametrize(
    ("able", "slow"),
    [
        ({"architecture": "x86_64", "avx512_bf16": False, "amx_bf16": False}, True),
        ({"architecture": "x86_64", "avx512_bf16": True, "amx_bf16": False}, False),
        ({"architecture": "x86_64", "amx_bf16": True}, False),
        ({"architecture": "arm64", "bf16": True}, False),
        ({}, False),
    ],
)
def test_bfloat16_on_a_cpu_that_has_no_instructions_for_it_is_warned_of(monkeypatch, caplog, able, slow):
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: able)
    for precision in ("bfloat16", "float32"):
        trainer_for(build("afire_published"), precision=precision)
    assert caplog.text.count("bfloat16 is slower") == slow
    assert not bfloat16_is_slow(torch.device("cuda"))
