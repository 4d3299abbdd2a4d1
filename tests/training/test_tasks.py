"""Tasks as methods of the trainer: what is trained, how fast, what is left out, what is kept."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from helpers import smooth_images
from ignite.engine import Events
from sklearn.metrics import roc_auc_score
from torch.utils.data import DataLoader

from afire_monai.core.errors import AfireError, RadiographError, TrainingHaltedError
from afire_monai.loading.dataset import RadiographDataset
from afire_monai.loading.sampler import EpochSampler
from afire_monai.networks import ViTClassifier, ViTEncoder, ViTSegmenter
from afire_monai.predictions.format import load_predictions
from afire_monai.training.checkpoint import load_checkpoint
from afire_monai.training.checkpoint_keeper import CheckpointKeeper
from afire_monai.training.finetuning import finish_classification
from afire_monai.training.plan import TrainingPlan
from afire_monai.training.tasks import Classification, Segmentation, task_parameter_groups
from afire_monai.training.trainer import PretrainTrainer
from afire_monai.training.validation import ValidationMonitor, predict_dataset
from afire_monai.transforms import RadiographAugment

DEPTH = 4


def classifier(**options) -> Classification:
    torch.manual_seed(0)
    encoder = ViTEncoder(32, 8, embed_dim=32, depth=DEPTH, num_heads=2, check_range=True)
    return Classification(ViTClassifier(encoder, ["bright", "left"]), **options)


def segmenter(**options) -> Segmentation:
    torch.manual_seed(0)
    encoder = ViTEncoder(32, 8, embed_dim=32, depth=DEPTH, num_heads=2)
    return Segmentation(ViTSegmenter(encoder, ["bright"], width=4), **options)


def labelled(count: int = 32, seed: int = 0) -> RadiographDataset:
    """Pictures with two labels that can be seen, and masks of their bright part."""
    images = smooth_images(count, (32, 32), seed)
    mean = images.mean((1, 2, 3))
    side = images[..., :16].mean((1, 2, 3)) > images[..., 16:].mean((1, 2, 3))
    target = torch.stack([(mean > mean.median()).float(), side.float()], 1)
    target[0, 1] = math.nan
    items = [
        {"image": f"{i}.png", "place": i, "tensor": x, "target": t, "mask": (x > x.mean()).float()}
        for i, (x, t) in enumerate(zip(images, target, strict=True))
    ]
    return RadiographDataset(items, lambda i: {**i, "image": i["tensor"]}, cache=True, extras=("target", "mask"))


def trainer(task, dataset, epochs=2, handlers=(), layer_decay=1.0, lr=0.05, **options) -> PretrainTrainer:
    sampler = EpochSampler(dataset, 8, seed=1)
    groups = task_parameter_groups(task, layer_decay)
    return PretrainTrainer(
        "cpu",
        epochs,
        DataLoader(dataset, 8, sampler=sampler),
        task,
        torch.optim.AdamW(groups, lr=1e-3),
        TrainingPlan(lr=lr, freeze_last_layer_epochs=0, momentum=0.5),
        train_handlers=handlers,
        **options,
    )


# what is trained ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("make", [classifier, segmenter])
def test_every_parameter_is_in_exactly_one_group(make):
    task = make()
    groups = task_parameter_groups(task, 0.5)
    found = [id(p) for group in groups for p in group["params"]]
    assert sorted(found) == sorted(id(p) for p in task.student.parameters())
    assert all(p.ndim > 1 for g in groups if g["decay"] for p in g["params"])


def test_each_layer_learns_more_slowly_than_the_one_behind_it():
    task = classifier()
    scale = {id(p): g["lr_scale"] for g in task_parameter_groups(task, 0.5) for p in g["params"]}
    network = task.student
    assert scale[id(network.head.weight)] == 1
    assert scale[id(network.encoder.norm.weight)] == 1
    for level in range(DEPTH):
        assert scale[id(network.encoder.blocks[level].norm1.weight)] == 0.5 ** (DEPTH - level)
    assert scale[id(network.encoder.patch_embed.weight)] == 0.5 ** (DEPTH + 1)
    assert scale[id(network.encoder.cls_token)] == 0.5 ** (DEPTH + 1)


def test_the_trainer_heeds_the_scale_of_a_group():
    run = trainer(classifier(), labelled(), epochs=1, layer_decay=0.5)
    run.run()
    rates = {group["lr_scale"]: group["lr"] for group in run.optimizer.param_groups}
    assert rates[0.5] == pytest.approx(rates[1.0] / 2)
    assert rates[1.0] > 0


def test_a_linear_probe_trains_the_head_alone():
    task = classifier(frozen_encoder=True)
    before = {name: p.clone() for name, p in task.student.named_parameters()}
    trainer(task, labelled()).run()
    changed = {name for name, p in task.student.named_parameters() if not torch.equal(p, before[name])}
    assert changed == {"head.weight", "head.bias"}


def test_nothing_to_train_is_refused():
    task = classifier(frozen_encoder=True)
    task.student.requires_grad_(False)
    with pytest.raises(AfireError, match="every parameter is frozen"):
        task_parameter_groups(task)


@pytest.mark.parametrize("wrong", [0.0, 1.5])
def test_impossible_layer_decay_is_refused(wrong):
    with pytest.raises(AfireError, match="layer_decay"):
        task_parameter_groups(classifier(), wrong)
    with pytest.raises(AfireError, match="drop_path"):
        classifier(drop_path=wrong or 1.0)


def test_labels_that_can_be_seen_are_learned():
    task = classifier()
    trainer(task, labelled(64), epochs=25, lr=0.1).run()
    unseen = labelled(64, seed=5)
    logits, batch = predict_dataset(task, unseen, 16)
    figures = task.figures(logits, batch)
    assert figures["validation_macro_auroc"] > 0.9


def test_masks_are_learned():
    task = segmenter()
    trainer(task, labelled(32), epochs=12, lr=0.1).run()
    logits, batch = predict_dataset(task, labelled(16, seed=5), 8)
    assert task.figures(logits, batch)["validation_dice_positive/bright"] > 0.8


# stochastic depth, average of the weights -----------------------------------------------------------------------------


def test_drop_path_rises_to_its_rate_and_keeps_the_mean():
    task = classifier(drop_path=0.4)
    assert task.draws == DEPTH
    uniforms = torch.rand(20_000, task.draws, generator=torch.Generator().manual_seed(0))
    _, _, scale = task.prepare(torch.zeros(20_000, 1, 1, 1), uniforms, None)
    expected = torch.linspace(0, 0.4, DEPTH)
    torch.testing.assert_close((scale == 0).float().mean(0), expected, atol=0.02, rtol=0)
    torch.testing.assert_close(scale.mean(0), torch.ones(DEPTH), atol=0.03, rtol=0)


def test_validation_leaves_nothing_out():
    task = classifier(drop_path=0.9, augment=RadiographAugment())
    images = smooth_images(3, (32, 32))
    torch.testing.assert_close(task.predict(images), task.predict(images), rtol=0, atol=0)
    torch.testing.assert_close(task.predict(images), task.student(images), rtol=0, atol=0)


def test_augmentation_and_drop_path_take_different_numbers():
    task = classifier(drop_path=0.5, augment=RadiographAugment())
    assert task.draws == RadiographAugment.draws + DEPTH
    images, uniforms = smooth_images(2, (32, 32)), torch.rand(2, task.draws)
    other = uniforms.clone()
    other[:, RadiographAugment.draws :] = torch.rand(2, DEPTH)
    assert torch.equal(task.prepare(images, uniforms, None)[0], task.prepare(images, other, None)[0])


def test_the_average_is_what_is_validated_and_is_between_start_and_end():
    task = classifier(average=True)
    start = task.student.head.weight.detach().clone()
    trainer(task, labelled(), epochs=1).run()
    assert task.network is task.teacher
    assert not torch.equal(task.teacher.head.weight, task.student.head.weight)
    assert not torch.equal(task.teacher.head.weight, start)
    assert not any(p.requires_grad for p in task.teacher.parameters())


def test_a_task_refuses_images_without_targets():
    with pytest.raises(AfireError, match="extras"):
        classifier().losses(torch.zeros(1, 1, 32, 32), torch.zeros(1, 0), False)


# figures --------------------------------------------------------------------------------------------------------------


def test_auroc_of_each_label_is_scikit_learns_over_what_is_known():
    task = classifier()
    torch.manual_seed(3)
    logits, target = torch.randn(40, 2), torch.randint(0, 2, (40, 2)).float()
    target[:10, 0] = math.nan
    figures = task.figures(logits, {"target": target})
    expected = [roc_auc_score(target[10:, 0], logits[10:, 0]), roc_auc_score(target[:, 1], logits[:, 1])]
    assert [figures["validation_auroc/bright"], figures["validation_auroc/left"]] == pytest.approx(expected)
    assert figures["validation_score"] == pytest.approx(sum(expected) / 2)


def test_a_label_with_one_class_is_not_in_the_mean():
    logits, target = torch.randn(10, 2), torch.zeros(10, 2)
    target[:5, 1] = 1
    figures = classifier().figures(logits, {"target": target})
    assert "validation_auroc/bright" not in figures
    assert figures["validation_macro_auroc"] == figures["validation_auroc/left"]


def test_without_any_auroc_the_loss_is_the_score():
    figures = classifier().figures(torch.zeros(4, 2), {"target": torch.zeros(4, 2)})
    assert figures["validation_score"] == pytest.approx(-math.log(2))
    assert "validation_macro_auroc" not in figures


def test_dice_by_hand_with_empty_and_ignored():
    logits = torch.full((3, 1, 2, 2), -1.0)
    truth = torch.zeros(3, 1, 2, 2)
    truth[0, 0, 0] = 1  # two pixels, of which one is found, and one marked beside
    logits[0, 0, 0, 0] = logits[0, 0, 1, 0] = 1.0
    truth[1, 0, 1, 1] = math.nan  # empty but for an ignored pixel, which is marked
    logits[1, 0, 1, 1] = 1.0
    logits[2, 0, 0, 0] = 1.0  # empty, but marked
    figures = segmenter().figures(logits, {"mask": truth})
    assert figures["validation_dice/bright"] == pytest.approx((0.5 + 1 + 0) / 3)
    assert figures["validation_dice_positive/bright"] == figures["validation_score"] == pytest.approx(0.5)


# early stopping, resuming ---------------------------------------------------------------------------------------------


class Scripted(Classification):
    """A classification whose validation score follows a script."""

    script = (0.5, 0.7, 0.6, 0.6, 0.9, 0.9)

    def figures(self, logits, batch):
        self.epoch = getattr(self, "epoch", -1) + 1
        return {"validation_score": self.script[self.epoch]}


def scripted() -> Scripted:
    torch.manual_seed(0)
    encoder = ViTEncoder(32, 8, embed_dim=32, depth=1, num_heads=2)
    return Scripted(ViTClassifier(encoder, ["bright", "left"]))


def keeper(folder) -> CheckpointKeeper:
    return CheckpointKeeper(folder, best_key="validation_error")


def test_training_stops_when_it_gets_no_better_and_the_best_is_kept(tmp_path):
    run = trainer(scripted(), labelled(), 6, [ValidationMonitor(labelled(8), patience=2), keeper(tmp_path)])
    run.run()
    assert (run.state.epoch, run.best_epoch, run.best_value) == (4, 2, -0.7)
    assert load_checkpoint(tmp_path / "best.pt")["progress"]["iteration"] == 2 * 4


def test_weights_that_the_last_update_spoiled_are_told_before_they_are_scored():
    run = trainer(classifier(), labelled(), 1, [ValidationMonitor(labelled(8))])
    run.add_event_handler(
        Events.ITERATION_COMPLETED(once=4), lambda: run.method.network.head.weight.data.fill_(math.inf)
    )
    with pytest.raises(TrainingHaltedError, match="after epoch 1, the network's output"):
        run.run()


def test_validation_file_that_cannot_be_read_has_no_prediction_and_lends_its_place_to_no_other(tmp_path):
    items = labelled(8).items

    def read(item):
        if item["place"] in (2, 7):
            raise RadiographError("broken")
        return {**item, "image": item["tensor"]}

    run = trainer(classifier(), labelled())
    broken = RadiographDataset(items, read, extras=("target",))
    logits, batch = predict_dataset(run.method, broken, 3)
    assert batch["index"].tolist() == [0, 1, 3, 4, 5, 6]
    finish_classification(run, {"validation": broken, "test": None}, tmp_path, "sha")
    predictions = load_predictions(tmp_path / "predictions" / "validation")
    assert predictions.index.tolist() == [0, 1, 3, 4, 5, 6]
    probabilities = run.method.network.calibrated(logits)[:, 0].detach().numpy()
    np.testing.assert_allclose(predictions.scores["bright"], probabilities, rtol=1e-5)


def test_a_run_that_stopped_early_is_not_taken_up_again(tmp_path, caplog):
    handlers = [ValidationMonitor(labelled(8), patience=2), keeper(tmp_path)]
    trainer(scripted(), labelled(), 6, handlers).run()
    again = trainer(scripted(), labelled(), 6, [ValidationMonitor(labelled(8), patience=2), keeper(tmp_path)])
    again.resume(tmp_path, True)
    again.run()
    assert again.state.epoch == 4
    assert "stopped early" in caplog.text


def test_figures_of_an_epoch_without_validation_are_not_those_of_an_earlier_one(tmp_path):
    run = trainer(classifier(), labelled(), 3, [ValidationMonitor(labelled(8), every_epochs=2), keeper(tmp_path)])
    seen = []
    run.add_event_handler(Events.EPOCH_COMPLETED, lambda e: seen.append("validation_error" in e.state.metrics))
    run.run()
    assert seen == [False, True, True]  # and the last epoch is always validated


@pytest.mark.parametrize("make", [classifier, segmenter])
def test_two_epochs_and_two_more_are_four(make, tmp_path):
    options = {"drop_path": 0.3, "augment": RadiographAugment(), "average": True}
    whole = trainer(make(**options), labelled(), 4)
    whole.run()
    first = trainer(make(**options), labelled(), 4, [keeper(tmp_path)])
    first.add_event_handler(Events.EPOCH_COMPLETED(once=2), lambda e: e.terminate())
    first.run()
    second = trainer(make(**options), labelled(), 4)
    second.resume(tmp_path, True)
    assert second.state.epoch == 2
    second.run()
    for (name, a), b in zip(whole.method.state_dict().items(), second.method.state_dict().values(), strict=True):
        assert torch.equal(a, b), name
