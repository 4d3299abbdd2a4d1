"""The order in which training sees its images: seeded, shared out over processes, and able to start anywhere."""

from __future__ import annotations

from collections.abc import Iterator, Sized
from itertools import chain

import torch
from torch.utils.data import Sampler

from afire_monai.core.distributed import rank, world_size
from afire_monai.core.errors import DataListError


class EpochSampler(Sampler[int]):
    """Shuffle once an epoch by (seed, epoch) and deal the images to the processes in turn.

    With ``world`` processes of batch n, the images of one step are those that one process of batch n · ``world`` would
    take, whatever the number of processes. Every epoch has the same number of whole batches; the images that do not
    fill a batch are left out, others in each epoch. With few images an epoch can show them several times, each time in
    another order.

    Args:
        dataset: anything with a length.
        batch_size: images that a process takes in one step.
        seed: seed of the order.
        least_batches: smallest number of batches of a process in one epoch; all images are shown once more until there
            are as many.

    Raises:
        DataListError: if there are fewer images than one step of all processes needs.

    Example:
        >>> sampler = EpochSampler(range(10), batch_size=4, seed=0)
        >>> order = list(sampler)
        >>> len(order), len(set(order))  # two whole batches; two images wait for another epoch
        (8, 8)
    """

    def __init__(self, dataset: Sized, batch_size: int, seed: int = 0, least_batches: int = 1) -> None:
        self.length = len(dataset)
        self.batch_size = batch_size
        self.seed = seed
        self.rank, self.world = rank(), world_size()
        once = self.length // (batch_size * self.world)
        if once == 0:
            raise DataListError(
                f"{self.length} training images are fewer than one step needs ({self.world} process(es) of batch "
                f"{batch_size}); add images or set a smaller batch_size"
            )
        self.passes = max(1, -(-least_batches // once))
        self.batches = self.passes * once
        self.epoch = 0
        self.start_batch = 0
        self.epochs = 1

    def start_at(self, epoch: int, batch: int = 0, epochs: int = 1) -> None:
        """Set where the next pass starts.

        Args:
            epoch: counted from 0; decides the order.
            batch: batches to leave out at the start of that pass only, when a run resumes in the middle of an epoch.
            epochs: number of epochs that follow one another in that pass only, so that the processes of a loader read
                ahead past the end of an epoch.
        """
        self.epoch = epoch
        self.start_batch = batch
        self.epochs = epochs

    def __len__(self) -> int:
        return self.batches * self.batch_size

    def __iter__(self) -> Iterator[int]:
        start, epochs = self.start_batch * self.batch_size, range(self.epoch, self.epoch + self.epochs)
        self.start_batch, self.epochs = 0, 1
        return chain.from_iterable(self._order(epoch)[start if epoch == epochs.start else 0 :] for epoch in epochs)

    def _order(self, epoch: int) -> list[int]:
        """Return this process's images of one epoch."""
        generator = torch.Generator().manual_seed((self.seed * 1_000_003 + epoch) % 2**64)  # its largest
        taken = len(self) // self.passes
        orders = [torch.randperm(self.length, generator=generator) for _ in range(self.passes)]
        return [image for order in orders for image in order[self.rank :: self.world][:taken].tolist()]
