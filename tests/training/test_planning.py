from __future__ import annotations

import pytest
import torch
from helpers import tiny_afire
from torch import nn

from afire_monai.cli.main import run
from afire_monai.core.errors import AfireError
from afire_monai.methods import Method
from afire_monai.training.planning import StepCost, count_step, hours, speed_of_run

CPU = torch.device("cpu")


class TwoLayers(Method):
    """A method whose cost can be counted by hand: two linear layers without bias on 16 pixels."""

    draws = 1
    canvas_size = (4, 4)  # type: ignore[assignment]
    export_encoder = None  # type: ignore[assignment]

    def __init__(self) -> None:
        super().__init__()
        self.loss_weights = {"loss": 1.0}
        self.student = nn.Sequential(nn.Linear(16, 32, bias=False), nn.ReLU(), nn.Linear(32, 8, bias=False))

    def losses(self, images, uniforms, first_epoch):
        return {"loss": self.student_forward(images.flatten(1)).sum()}

    def health(self, images, uniforms):
        return {}

    def panels(self, images, uniforms):
        return {}


def test_cost_of_two_layers_is_that_counted_by_hand():
    cost = count_step(TwoLayers(), CPU)
    # forward of both layers, gradients of both weights, gradient of the second layer's input
    assert cost.flops_per_image == 2 * (16 * 32 + 32 * 8) * 2 + 2 * 32 * 8
    assert cost.trained == 16 * 32 + 32 * 8
    assert cost.state_bytes == 16 * cost.trained
    # the input, and the activation, which the rectifier and the second layer share
    assert cost.activation_bytes == 4 * (16 + 32)
    assert cost.fixed_activation_bytes == 0
    assert cost.memory(10) == 16 * cost.trained + 10 * 4 * 48


def test_counting_leaves_no_gradient_behind():
    method = tiny_afire()
    cost = count_step(method, CPU)
    assert all(parameter.grad is None for parameter in method.parameters())
    assert cost.flops_per_image > 0
    assert cost.gradient_bytes == 4 * sum(p.numel() for _, p in method.trainable())


def test_hours_are_images_over_speed():
    assert hours(3600, 10, 2.0) == 5
    assert StepCost(1, 1, 100, 10.0, 5.0).memory(3) == 135


def test_speed_of_a_run_is_the_median_of_its_epochs(tmp_path):
    (tmp_path / "log.csv").write_text("epoch,images_per_second\n1,10\n2,40\n3,30\n")
    assert speed_of_run(tmp_path) == 30
    with pytest.raises(AfireError, match="output_dir of a pre-training run"):
        speed_of_run(tmp_path / "none")


@pytest.mark.parametrize("method", ["afire", "peac", "mlvicx", "mae", "dino"])
def test_every_method_can_be_planned(method, capsys):
    words = ["--images", "1000", "--epochs", "3", "--method", method, "--tflops", "0.001", "--gpus", "2"]
    assert run(["plan", *words, "--share", "1.0", "--memory", "8"]) == 0
    said = capsys.readouterr().out
    rate = float(said.split("speed:")[1].split()[0])
    per_image = float(said.split("arithmetic:")[1].split()[0])
    assert rate == pytest.approx(2 / per_image, rel=0.01)
    assert "MiB of gradients a step" in said
    assert "fits into 90 % of 8 GiB" in said


def test_time_of_a_run_is_scaled_to_the_images(tmp_path, capsys):
    (tmp_path / "log.csv").write_text("epoch,images_per_second\n1,10\n")
    assert run(["plan", "--images", "7200", "--epochs", "5", "--from-run", str(tmp_path)]) == 0
    assert "time:        1.0 hours" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ([], "give either --images N or --datalist FILE"),
        (["--images", "0"], "--images is 0"),
        (["--images", "10", "--method", "simclr"], "--method 'simclr' is not known; there are afire, dino"),
        (["--images", "10", "--config", "metadata"], "there are preset_gpu, preset_paper"),
        (["--images", "10", "--epochs", "0"], "--epochs is 0"),
        (["--images", "10", "--share", "2"], "--share"),
        (["--images", "10"], "10 images are fewer than one step needs (1 process(es) of batch 16)"),
        (["--images", "100", "--preset", "vit_x"], "vit_x"),
        (["--images", "100", "--memory", "nan"], "--memory is nan; a number above 0"),
        (["--images", "100", "--tflops", "nan"], "--tflops is nan; a number above 0"),
        (["--images", "100", "--method", "mae", "--preset", "resnet18"], "choose an encoder_preset that begins"),
        (["--images", "100", "--method", "dino", "--image-size", "64"], "set local_size below image_size"),
    ],
)
def test_what_cannot_be_planned_is_said(words, said, capsys):
    assert run(["plan", *words]) == 2
    assert said in capsys.readouterr().err


def test_preset_leaves_a_method_its_own_encoder(capsys):
    words = ["plan", "--images", "1000", "--config", "preset_gpu", "--tflops", "10", "--image-size", "64"]
    for method, encoder in (("mlvicx", "resnet18"), ("mae", "vit_s")):
        assert run([*words, "--method", method]) == 0
        assert capsys.readouterr().out.startswith(f"{method}, {encoder}, 64 px, bfloat16")
