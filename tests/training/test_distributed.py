"""Two processes of batch n train as one process of batch 2n: weights, gradients, prototypes and losses."""

from __future__ import annotations

import pytest
import torch
from helpers import full_afire, guided_afire, smooth_images, tiny_afire, tiny_trainer
from training_runs import assert_same_gradients, assert_same_weights, recorded_by_processes, train_and_record


@pytest.mark.slow
@pytest.mark.parametrize("shift", [0, 2])
def test_two_processes_equal_one_of_twice_the_batch(tmp_path, shift):
    made = f"""
from helpers import smooth_images, tiny_afire, tiny_trainer
trainer = tiny_trainer(tiny_afire(shift={shift}), smooth_images(24, (32 + 8 * {shift},) * 2), 2, 3)
"""
    two = recorded_by_processes(made, tmp_path)[0]
    one = train_and_record(tiny_trainer(tiny_afire(shift=shift), smooth_images(24, (32 + 8 * shift,) * 2), 2, 6))
    assert len(one["losses"]) == 8
    torch.testing.assert_close(torch.tensor(two["losses"]), torch.tensor(one["losses"]), atol=1e-5, rtol=1e-5)
    assert_same_gradients(two["gradients"], one["gradients"])
    assert_same_weights(two["state"], one["state"])


@pytest.mark.slow
@pytest.mark.parametrize("method", [full_afire, guided_afire])
def test_two_processes_with_every_optional_term_equal_one_of_twice_the_batch(tmp_path, method):
    made = f"""
from helpers import {method.__name__}, smooth_images, tiny_trainer
trainer = tiny_trainer({method.__name__}(), smooth_images(24, (48, 48)), 1, 3)
"""
    two = recorded_by_processes(made, tmp_path)[0]
    one = train_and_record(tiny_trainer(method(), smooth_images(24, (48, 48)), 1, 6))
    torch.testing.assert_close(torch.tensor(two["losses"]), torch.tensor(one["losses"]), atol=1e-4, rtol=1e-4)
    assert_same_gradients(two["gradients"], one["gradients"], relative=1e-4)
