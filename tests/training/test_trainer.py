from __future__ import annotations

import copy
import math

import pytest
import torch
from helpers import dataset_of, smooth_images, tiny_afire, tiny_trainer
from ignite.engine import Events
from torch.utils.data import DataLoader

from afire_monai.core.errors import AfireError, TrainingHaltedError
from afire_monai.training.checkpoint import find_checkpoint, list_checkpoints
from afire_monai.training.checkpoint_keeper import CheckpointKeeper
from afire_monai.training.handlers import HealthMonitor
from afire_monai.training.plan import TrainingPlan, parameter_groups
from afire_monai.training.trainer import PretrainTrainer, clip_each

IMAGES = smooth_images(16, (32, 32))


def weights_after(seed: int, shift: int = 2) -> dict[str, torch.Tensor]:
    method = tiny_afire(shift)
    trainer = tiny_trainer(method, smooth_images(16, method.canvas_size), seed=seed)
    trainer.run()
    return method.student.state_dict()


# one seed, one result -------------------------------------------------------------------------------------------------


def test_same_seed_gives_the_same_weights_and_another_seed_others():
    first, again, other = weights_after(0), weights_after(0), weights_after(1)
    for name, tensor in first.items():
        assert torch.equal(tensor, again[name]), name
    assert not torch.equal(first["encoder.cls_token"], other["encoder.cls_token"])


def test_random_numbers_depend_on_seed_and_iteration_and_nothing_else():
    trainer, other = tiny_trainer(tiny_afire(), IMAGES, seed=5), tiny_trainer(tiny_afire(), IMAGES, seed=6)
    draws = trainer.uniforms(7, 4, 11)
    torch.manual_seed(99)
    assert torch.equal(draws, trainer.uniforms(7, 4, 11))
    assert draws.shape == (4, 11)
    assert 0 <= draws.min() <= draws.max() < 1
    for different in (trainer.uniforms(8, 4, 11), other.uniforms(7, 4, 11)):
        assert not torch.equal(draws, different)


def test_training_lowers_the_restoration_loss():
    seen = []
    trainer = tiny_trainer(tiny_afire(), IMAGES, epochs=8, lr=0.2)
    trainer.add_event_handler(Events.EPOCH_COMPLETED, lambda: seen.append(trainer.state.metrics["restoration"]))
    trainer.run()
    assert seen[-1] < 0.8 * seen[0]
    assert {"structure", "category", "restoration", "loss", "images_per_second"} <= set(trainer.state.metrics)


def test_metrics_of_an_epoch_are_the_means_over_its_batches():
    outputs = []
    trainer = tiny_trainer(tiny_afire(), IMAGES, epochs=1)
    trainer.add_event_handler(Events.ITERATION_COMPLETED, lambda: outputs.append(trainer.state.output))
    trainer.run()
    for name in ("structure", "category", "restoration", "loss"):
        mean = sum(output[name].item() for output in outputs) / len(outputs)
        assert trainer.state.metrics[name] == pytest.approx(mean, rel=1e-5)


# a loss that is not finite --------------------------------------------------------------------------------------------


def train_until_broken(folder, files=None, interval: int = 0) -> TrainingHaltedError:
    """Two good epochs with checkpoints, then the third image is spoilt."""
    method = tiny_afire()
    trainer = tiny_trainer(method, IMAGES, 4, handlers=[CheckpointKeeper(folder)], finite_check_interval=interval)
    dataset = trainer.data_loader.dataset
    for item, name in zip(dataset.items, files or [], strict=False):
        item["image"] = name

    @trainer.on(Events.EPOCH_STARTED(once=3))
    def spoil():
        dataset.items[2]["tensor"] = torch.full((1, 32, 32), 1e30)  # its square overflows

    with pytest.raises(TrainingHaltedError) as caught:
        trainer.run()
    return caught.value


@pytest.mark.parametrize("interval", [0, 3])
def test_loss_that_is_not_finite_stops_the_run_names_the_batch_and_keeps_the_last_good_checkpoint(tmp_path, interval):
    message = str(train_until_broken(tmp_path, interval=interval))
    assert "picture2.png" in message
    assert message.count(".png") == 4  # the batch, and not the whole data set
    assert "--resume true" in message
    assert [path.name for path in list_checkpoints(tmp_path)] == ["checkpoint_00000004.pt", "checkpoint_00000008.pt"]
    found = find_checkpoint(tmp_path)
    assert found is not None
    assert all(tensor.isfinite().all() for tensor in found[1]["method"].values())
    assert found[1]["progress"]["iteration"] == 8


def test_loss_that_is_not_finite_is_told_before_health_is_measured():
    images = torch.full_like(IMAGES, 1e30)
    health = HealthMonitor(dataset_of(IMAGES), 4)
    with pytest.raises(TrainingHaltedError, match="loss is not finite"):
        tiny_trainer(tiny_afire(), images, handlers=[health], finite_check_interval=1000).run()


def test_names_of_dicom_files_stay_out_of_the_message(tmp_path):
    message = str(train_until_broken(tmp_path, [f"/scans/DOE^JOHN_{i}.dcm" for i in range(16)]))
    assert "DOE" not in message
    assert "scans" not in message
    assert "no. 2" in message


def test_weights_are_not_updated_with_a_loss_that_is_not_finite():
    method = tiny_afire()
    images = IMAGES.clone()
    images[:] = 1e30
    before = copy.deepcopy(method.student.state_dict())
    with pytest.raises(TrainingHaltedError):
        tiny_trainer(method, images).run()
    for name, tensor in method.student.state_dict().items():
        assert torch.equal(tensor, before[name])


# the update -----------------------------------------------------------------------------------------------------------


def test_last_layer_is_frozen_in_the_first_epoch_and_trains_afterwards():
    method = tiny_afire()
    start = method.student.head.weight.detach().clone()
    others = method.student.head.mlp[0].weight.detach().clone()
    trainer = tiny_trainer(method, IMAGES, 2)
    after = {}

    @trainer.on(Events.EPOCH_COMPLETED)
    def keep():
        after[trainer.state.epoch] = method.student.head.weight.detach().clone()
        if trainer.state.epoch == 1:
            assert not torch.equal(method.student.head.mlp[0].weight, others)

    trainer.run()
    assert torch.equal(after[1], start)
    assert not torch.equal(after[2], start)


def test_clipping_equals_a_loop_over_the_parameter_tensors():
    method = tiny_afire()
    optimizer = torch.optim.SGD(parameter_groups(method), lr=1.0)
    parameters = list(method.student.parameters())
    for i, parameter in enumerate(parameters[1:]):  # the first has no gradient, as a frozen one
        parameter.grad = torch.randn_like(parameter) * (10.0 if i % 2 else 1e-4)
    twins = [torch.nn.Parameter(parameter.detach().clone()) for parameter in parameters]
    for parameter, twin in zip(parameters[1:], twins[1:], strict=True):
        twin.grad = parameter.grad.clone()
        torch.nn.utils.clip_grad_norm_([twin], 3.0)
    clip_each(optimizer, 3.0)
    assert parameters[0].grad is None
    for parameter, twin in zip(parameters[1:], twins[1:], strict=True):
        torch.testing.assert_close(parameter.grad, twin.grad)
    norms = [parameter.grad.norm().item() for parameter in parameters[1:]]
    assert 2.99 < max(norms) <= 3.0001
    assert min(norms) < 0.1


def gradients_of_first_update(batch_size: int, accumulation: int, **form) -> tuple[dict[str, torch.Tensor], list]:
    method = tiny_afire(**form)
    trainer = tiny_trainer(method, IMAGES, 1, batch_size=batch_size, accumulation_steps=accumulation)
    seen: list = []
    batches: list = []

    class Enough(Exception):  # noqa: N818  # ends the run, no error
        pass

    def look(momentum: float) -> None:
        seen.append({n: p.grad.clone() for n, p in method.student.named_parameters()})
        raise Enough

    trainer._update = look  # type: ignore[method-assign]
    trainer.add_event_handler(Events.ITERATION_STARTED, lambda: batches.append(trainer.state.batch["image"]))
    with pytest.raises(Enough):
        trainer.run()
    return seen[0], batches


def test_accumulated_gradient_is_the_mean_of_the_gradients_of_its_batches():
    accumulated, batches = gradients_of_first_update(4, 2)
    assert len(batches) == 2
    method = tiny_afire()
    trainer = tiny_trainer(method, IMAGES, 1)
    expected: dict[str, torch.Tensor] = {}
    for step, images in enumerate(batches):
        method.zero_grad()
        losses = method.losses(images, trainer.uniforms(step + 1, 4, method.draws), first_epoch=True)
        sum(losses.values()).backward()
        for name, parameter in method.student.named_parameters():
            expected[name] = expected.get(name, 0) + parameter.grad / 2
    for name, gradient in accumulated.items():
        torch.testing.assert_close(gradient, expected[name], atol=1e-6, rtol=1e-4, msg=name)


def test_last_update_of_an_epoch_averages_the_batches_that_are_left():
    method, twin = tiny_afire(), tiny_afire()
    # 5 batches an epoch: groups of 2, 2 and 1, or of 3 and 2
    images = smooth_images(20, (32, 32))
    for accumulation, left in ((2, 1), (3, 2)):
        trainer = tiny_trainer(method, images, 1, accumulation_steps=accumulation)
        batches, last = [], {}
        trainer.add_event_handler(
            Events.ITERATION_STARTED, lambda t=trainer, b=batches: b.append(t.state.batch["image"])
        )

        def keep(momentum: float, last: dict = last) -> None:  # and no update, so that all gradients are of one network
            last.update({n: p.grad.clone() for n, p in method.student.named_parameters()})
            method.zero_grad()

        trainer._update = keep  # type: ignore[method-assign]
        trainer.run()
        expected: dict[str, torch.Tensor] = {}
        for step, batch in enumerate(batches, start=1):
            twin.zero_grad()
            losses = twin.losses(batch, trainer.uniforms(step, 4, twin.draws), first_epoch=True)
            sum(losses.values()).backward()
            if step > 5 - left:
                for name, parameter in twin.student.named_parameters():
                    expected[name] = expected.get(name, 0) + parameter.grad / left
        for name, gradient in last.items():
            torch.testing.assert_close(gradient, expected[name], atol=1e-6, rtol=1e-4, msg=name)


def test_updates_come_at_the_end_of_each_group_of_batches_and_of_the_epoch():
    trainer = tiny_trainer(tiny_afire(), smooth_images(20, (32, 32)), 2, accumulation_steps=2)  # 5 batches an epoch
    updates = []
    original = trainer.optimizer.step
    trainer.optimizer.step = lambda *a, **k: (updates.append(trainer.state.iteration), original(*a, **k))[1]
    trainer.run()
    assert updates == [2, 4, 5, 7, 9, 10]
    assert trainer.steps_per_epoch == 3


def test_teacher_moves_at_each_update_by_the_plans_momentum():
    method = tiny_afire()
    trainer = tiny_trainer(method, IMAGES, 1)
    momenta = []
    original = method.update_teacher
    method.update_teacher = lambda m: (momenta.append(m), original(m))[1]  # type: ignore[method-assign]
    trainer.run()
    plan = TrainingPlan()
    assert momenta == pytest.approx([plan.at(step / 4, 4)["momentum"] for step in range(4)])


def test_schedules_reach_the_optimiser_and_biases_never_decay():
    trainer = tiny_trainer(tiny_afire(), IMAGES, 2)
    seen = []
    trainer.add_event_handler(
        Events.ITERATION_COMPLETED,
        lambda: seen.append([(g["lr"], g["weight_decay"]) for g in trainer.optimizer.param_groups]),
    )
    trainer.run()
    for step, ((lr, decay), (lr_without, none)) in enumerate(seen):
        expected = trainer.plan.at(step / 8, 4)
        assert lr == lr_without == pytest.approx(expected["lr"])
        assert decay == pytest.approx(expected["weight_decay"])
        assert none == 0


@pytest.mark.parametrize("shift", [0, 2])
def test_bfloat16_runs_finite_on_a_cpu(shift):
    method = tiny_afire(shift)
    trainer = tiny_trainer(method, smooth_images(8, method.canvas_size), 1, precision="bfloat16")
    trainer.run()
    assert all(math.isfinite(value) for value in trainer.state.metrics.values())
    for tensor in method.state_dict().values():
        assert tensor.dtype == torch.float32
        assert tensor.isfinite().all()


# settings -------------------------------------------------------------------------------------------------------------


def test_loader_with_another_sampler_is_refused():
    method = tiny_afire()
    loader = DataLoader(dataset_of(IMAGES), 4, shuffle=True)
    optimizer = torch.optim.AdamW(parameter_groups(method))
    with pytest.raises(AfireError, match="EpochSampler"):
        PretrainTrainer("cpu", 1, loader, method, optimizer, TrainingPlan())


def test_recomputed_activations_give_the_same_training_with_less_kept():
    from afire_monai.training.planning import count_step

    ends, kept = [], []
    for recompute in (False, True):
        method = tiny_afire(shift=0)
        trainer = tiny_trainer(method, smooth_images(8, (32, 32)), 1, recompute=recompute)
        kept.append(count_step(method, torch.device("cpu")).activation_bytes)
        trainer.run()
        ends.append(method.state_dict())
    assert kept[1] < 0.7 * kept[0]
    for name, value in ends[0].items():
        assert torch.equal(value, ends[1][name]), name


def test_recomputing_without_blocks_is_refused():
    from tiny_mlvicx import tiny_mlvicx

    with pytest.raises(AfireError, match="no blocks to recompute"):
        tiny_trainer(tiny_mlvicx(), smooth_images(8, (64, 64)), 1, recompute=True)  # type: ignore[arg-type]
