from __future__ import annotations

import pytest

from afire_monai.core.errors import DataListError
from afire_monai.loading import sampler
from afire_monai.loading.sampler import EpochSampler


def order(monkeypatch, length: int, batch: int, rank: int = 0, world: int = 1, epoch: int = 0, **options) -> list[int]:
    monkeypatch.setattr(sampler, "rank", lambda: rank)
    monkeypatch.setattr(sampler, "world_size", lambda: world)
    s = EpochSampler(range(length), batch, **options)
    s.start_at(epoch)
    return list(s)


@pytest.mark.parametrize("length", [24, 29])
@pytest.mark.parametrize("world", [2, 3])
def test_processes_together_take_in_each_step_the_images_of_one_process_with_their_batches_together(
    monkeypatch, length, world
):
    for epoch in range(3):
        alone = order(monkeypatch, length, 4 * world, epoch=epoch)
        shares = [order(monkeypatch, length, 4, rank, world, epoch) for rank in range(world)]
        steps = len(alone) // (4 * world)
        assert steps == length // (4 * world)
        for step in range(steps):
            together = [i for share in shares for i in share[4 * step : 4 * (step + 1)]]
            assert sorted(together) == sorted(alone[4 * world * step : 4 * world * (step + 1)])
        assert all(len(share) == 4 * steps for share in shares)


def test_images_are_dealt_in_turn_so_that_random_numbers_fit_their_images(monkeypatch):
    alone = order(monkeypatch, 24, 8)
    assert order(monkeypatch, 24, 4, 0, 2) == alone[0::2]
    assert order(monkeypatch, 24, 4, 1, 2) == alone[1::2]


@pytest.mark.parametrize("options", [{"least_batches": 0}, {"seed": 20261128120000}])
def test_no_least_number_of_batches_and_a_seed_of_any_length_are_taken(monkeypatch, options):
    assert sorted(order(monkeypatch, 8, 4, **options)) == list(range(8))


def test_no_image_comes_twice_and_all_come_where_batches_fit(monkeypatch):
    assert sorted(order(monkeypatch, 24, 4)) == list(range(24))
    assert len(set(order(monkeypatch, 27, 4))) == 24


def test_images_left_out_are_others_in_each_epoch(monkeypatch):
    left = [frozenset(range(27)) - set(order(monkeypatch, 27, 4, epoch=epoch)) for epoch in range(6)]
    assert len(set(left)) > 1


def test_order_depends_on_seed_and_epoch_alone(monkeypatch):
    first = order(monkeypatch, 24, 4, epoch=2, seed=1)
    assert first == order(monkeypatch, 24, 4, epoch=2, seed=1)
    assert first != order(monkeypatch, 24, 4, epoch=3, seed=1)
    assert first != order(monkeypatch, 24, 4, epoch=2, seed=2)


def test_start_in_the_middle_leaves_out_the_batches_before_it_in_that_pass_only(monkeypatch):
    whole = order(monkeypatch, 24, 4, epoch=5)
    s = EpochSampler(range(24), 4)
    s.start_at(5, batch=2)
    assert list(s) == whole[8:]
    assert list(s) == whole
    assert len(s) == 24


def test_one_pass_may_go_on_through_several_epochs(monkeypatch):
    epochs = [order(monkeypatch, 27, 4, epoch=epoch) for epoch in (5, 6, 7)]
    s = EpochSampler(range(27), 4)
    s.start_at(5, batch=2, epochs=3)
    passing = iter(s)
    s.start_at(6, epochs=2)  # what is set for the next pass does not touch the one that is under way
    assert list(passing) == epochs[0][8:] + epochs[1] + epochs[2]
    assert list(s) == epochs[1] + epochs[2]
    assert list(s) == epochs[1]


def test_fewer_images_than_one_step_takes_are_refused_with_the_numbers(monkeypatch):
    with pytest.raises(DataListError, match=r"7 training images .* \(2 process\(es\) of batch 4\).*smaller batch_size"):
        order(monkeypatch, 7, 4, 0, 2)


def test_few_images_are_shown_several_times_in_an_epoch_each_time_in_another_order(monkeypatch):
    often = order(monkeypatch, 9, 4, least_batches=5)
    assert len(often) == 3 * 8
    passes = [often[start : start + 8] for start in (0, 8, 16)]
    assert all(len(set(some)) == 8 for some in passes)
    assert len({tuple(some) for some in passes}) == 3
    assert passes[0] == order(monkeypatch, 9, 4)
    assert order(monkeypatch, 24, 4, least_batches=6) == order(monkeypatch, 24, 4)
    shares = [order(monkeypatch, 9, 2, rank, 2, least_batches=5) for rank in range(2)]
    assert [shares[k % 2][k // 2] for k in range(24)] == often
