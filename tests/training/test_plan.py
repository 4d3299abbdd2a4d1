from __future__ import annotations

import math
from itertools import pairwise

import pytest
import torch
from helpers import tiny_afire

from afire_monai.core.errors import AfireError
from afire_monai.training.plan import TrainingPlan, parameter_groups

PLAN = TrainingPlan(lr=1.0, final_lr=0.1, warmup=0.2, weight_decay=0.04, final_weight_decay=0.4, momentum=0.9, clip=3.0)


@pytest.mark.parametrize(
    ("fraction", "lr", "weight_decay", "momentum"),
    [
        (0.0, 0.0, 0.04, 0.9),
        (0.1, 0.5, None, None),  # half-way up the warm-up
        (0.2, 1.0, None, None),  # its end: the peak
        (0.5, None, 0.22, 0.95),  # half-way down both cosines: the mean of their ends
        (0.6, 0.55, None, None),  # half-way from the warm-up's end to the end of training
        (1.0, 0.1, 0.4, 1.0),
    ],
)
def test_schedules_equal_hand_computed_values(fraction, lr, weight_decay, momentum):
    values = PLAN.at(fraction, 256)
    for name, expected in (("lr", lr), ("weight_decay", weight_decay), ("momentum", momentum)):
        if expected is not None:
            assert values[name] == pytest.approx(expected), name


def test_a_quarter_of_the_way_down_the_cosine_equals_the_formula():
    # cos 45° of the half-difference above the mean
    assert PLAN.at(0.4, 256)["lr"] == pytest.approx(0.55 + 0.45 * math.sqrt(0.5))
    assert PLAN.at(0.25, 256)["weight_decay"] == pytest.approx(0.22 - 0.18 * math.sqrt(0.5))


def test_peak_learning_rate_follows_the_global_batch_and_the_end_does_not():
    assert PLAN.at(0.2, 64)["lr"] == pytest.approx(0.25)
    assert PLAN.at(0.1, 512)["lr"] == pytest.approx(1.0)
    assert PLAN.at(1.0, 512)["lr"] == pytest.approx(0.1)


def test_learning_rate_is_not_scaled_below_the_least_batch():
    plan = TrainingPlan(lr=1.0, warmup=0.0, least_batch=16)
    assert plan.at(0, 4)["lr"] == plan.at(0, 16)["lr"] == pytest.approx(1 / 16)
    assert plan.at(0, 32)["lr"] == pytest.approx(1 / 8)


def test_schedules_only_go_one_way_after_the_warm_up():
    points = [PLAN.at(f / 100, 256) for f in range(101)]
    for name in ("weight_decay", "momentum"):
        assert all(b[name] >= a[name] for a, b in pairwise(points))
    rates = [p["lr"] for p in points]
    assert all(b > a for a, b in pairwise(rates[:21]))
    assert all(b < a for a, b in pairwise(rates[20:]))


def test_without_warm_up_training_starts_at_the_peak():
    assert TrainingPlan(lr=1.0, warmup=0.0).at(0.0, 256)["lr"] == pytest.approx(1.0)


def test_a_run_of_other_length_has_the_same_values_at_the_same_fraction():
    from helpers import smooth_images, tiny_trainer

    def values(epochs: int) -> list[dict[str, float]]:
        trainer = tiny_trainer(tiny_afire(), smooth_images(8, (32, 32)), epochs)  # two steps an epoch
        trainer.state.epoch_length = 2
        seen = []
        for iteration in range(1, 2 * epochs + 1):
            trainer.state.iteration = iteration
            seen.append(trainer.values_now())
        return seen

    short, long = values(10), values(40)
    for name in ("lr", "weight_decay", "momentum"):
        assert [v[name] for v in short] == pytest.approx([v[name] for v in long[::4]])


def test_defaults_are_the_papers():
    plan = TrainingPlan()
    assert (plan.lr, plan.final_lr, plan.weight_decay, plan.final_weight_decay) == (5e-4, 1e-6, 0.04, 0.4)
    assert (plan.momentum, plan.clip, plan.freeze_last_layer_epochs) == (0.996, 3.0, 1)


@pytest.mark.parametrize(
    ("options", "text"),
    [
        ({"warmup": 10}, r"warmup is a fraction .* got 10"),
        ({"warmup": 1.0}, r"warmup is a fraction .* got 1.0"),
        ({"momentum": 1.1}, r"teacher momentum must be in 0…1, got 1.1"),
        ({"lr": -1e-4}, "must not be negative"),
        ({"clip": -1.0}, "must not be negative"),
    ],
)
def test_values_that_cannot_be_meant_are_refused(options, text):
    with pytest.raises(AfireError, match=text):
        TrainingPlan(**options)


@pytest.mark.parametrize("shift", [0, 2])
def test_every_trainable_parameter_is_in_exactly_one_group(shift):
    method = tiny_afire(shift)
    groups = parameter_groups(method)
    listed = [id(p) for group in groups for p in group["params"]]
    assert sorted(listed) == sorted(id(p) for p in method.student.parameters())
    assert len(set(listed)) == len(listed)


def test_biases_norms_and_nothing_else_go_without_weight_decay():
    method = tiny_afire()
    with_decay, without = parameter_groups(method)
    names = {id(p): name for name, p in method.student.named_parameters()}
    for name in (names[id(p)] for p in without["params"]):
        assert name.endswith(".bias") or "norm" in name, name
    kept = {names[id(p)] for p in with_decay["params"]}
    assert {"encoder.patch_embed.weight", "encoder.cls_token", "head.weight", "decoder.mask_token"} <= kept
    assert not any(name.endswith(".bias") or "norm" in name for name in kept)
    assert (with_decay["decay"], without["decay"], without["weight_decay"]) == (True, False, 0.0)


def test_optimiser_leaves_biases_undecayed():
    method = tiny_afire()
    optimizer = torch.optim.AdamW(parameter_groups(method), lr=0.1, weight_decay=0.5)
    assert [group["weight_decay"] for group in optimizer.param_groups] == [0.5, 0.0]
