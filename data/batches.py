"""The batches of a training run: in which order the videos come, and how they reach the device.

The order of an epoch is [steps, B] positions in the dataset; the last short batch is dropped. `ORDERS` has them all:

    shuffled    drawn anew each epoch from the seed and the epoch alone
    in-order    the same each epoch, as the order file has them (AVEL as published)
    released    as the released fully supervised code draws them: one list, shuffled again and again
    fixed       as the released weakly supervised code has them: only the first batch of an epoch is drawn
"""
import random
from concurrent.futures import ThreadPoolExecutor
from itertools import count, cycle

import numpy as np
import torch

from data.files import UserError


# ---------------------------------------------------------------------------------------------- orders

def in_batches(order, batch_size):
    """[videos] -> [steps, B]; the last short batch is dropped."""
    return order[:len(order) // batch_size * batch_size].view(-1, batch_size)


def shuffled_batches(videos, batch_size, seed, epoch):
    """Positions of an epoch's batches, int64 [steps, B]; depends on nothing but these arguments."""
    return in_batches(torch.from_numpy(np.random.default_rng([seed, epoch]).permutation(videos)), batch_size)


def shuffled(videos, batch_size, seed):
    for epoch in count():
        yield shuffled_batches(videos, batch_size, seed, epoch)


def in_order(videos, batch_size, seed):
    while True:
        yield in_batches(torch.arange(videos), batch_size)


def released(videos, batch_size, seed):
    generator, order = random.Random(seed), list(range(videos))
    while True:
        generator.shuffle(order)
        yield in_batches(torch.tensor(order), batch_size)


def fixed(videos, batch_size, seed):
    generator = random.Random(seed)
    while True:
        order = list(range(videos))
        generator.shuffle(order)
        batches = in_batches(torch.arange(videos), batch_size)
        batches[0] = torch.tensor(order[:batch_size])
        yield batches


ORDERS = {"shuffled": shuffled, "in-order": in_order, "released": released, "fixed": fixed}


def stale_targets(epochs, labels, background):
    """Yields the targets of L_avps of each epoch, [steps, B, T], as the released code has them.

    It writes 1/n into a buffer at the n event segments of each video and never clears it, so that each row keeps what
    videos of earlier batches left there. A video without an event writes 1/T into all its segments.
    """
    buffer = 0
    for batches in epochs:
        targets = []
        for positions in batches:
            of_batch = labels[positions]
            written = (of_batch != background) | (of_batch == background).all(dim=1, keepdim=True)
            value = (1 / written.sum(dim=1, keepdim=True)).expand(of_batch.shape)
            buffer = torch.where(written, value, buffer)
            targets.append(buffer)
        yield torch.stack(targets)


# --------------------------------------------------------------------------------------------- batches

class TrainingBatches:
    """The batches of every epoch, on the device.

    order: of `ORDERS`. stale: adds avps_target [B, T] to each batch, see `stale_targets`.
    rank, world_size: of several processes, each gets its share of every batch.
    Raises UserError for a batch size over the number of videos, or that does not divide among the processes.
    """

    def __init__(self, dataset, batch_size, order, seed, device, stale=False, rank=0, world_size=1):
        if batch_size > len(dataset):
            raise UserError(f"--batch_size {batch_size} is larger than the training set ({len(dataset)} videos)")
        if batch_size % world_size:
            raise UserError(f"--batch_size {batch_size} is not divisible by the number of processes, {world_size}")
        self.dataset, self.device = dataset, device
        self.rank, self.world_size = rank, world_size
        self.steps = len(dataset) // batch_size
        self._orders, self._drawn = ORDERS[order](len(dataset), batch_size, seed), 0      # epochs so far
        self._targets = None
        if stale:
            epochs = ORDERS[order](len(dataset), batch_size, seed)
            self._targets = stale_targets(epochs, dataset.values["labels"].cpu(), dataset.sizes.background)

    def __len__(self):
        """Steps of an epoch."""
        return self.steps

    def epoch(self, epoch):
        """Yields the batches of an epoch, a dict of tensors each; the next one OVERWRITES the features of a batch.

        Epochs are drawn in rising order; ValueError for one that was drawn before.
        """
        if epoch < self._drawn:
            raise ValueError(f"epoch {epoch} was drawn already")
        while self._drawn <= epoch:      # a resumed run passes over the epochs before
            self._drawn += 1
            positions = next(self._orders)
            targets = self._share(next(self._targets)) if self._targets else None
        positions = self._share(positions).to(self.dataset.device)
        for step, batch in enumerate(read_ahead(self.dataset, positions, self.device)):
            if targets is not None:
                batch["avps_target"] = targets[step].to(self.device)
            yield batch

    def _share(self, values):
        """This process's part of [steps, B, ...]."""
        return values.tensor_split(self.world_size, dim=1)[self.rank]


def read_ahead(dataset, batches, device):
    """Yields dataset[positions] on the device for each batch of positions; the next one OVERWRITES its features.

    What is not in the device's memory is read one batch ahead, while the caller computes.
    """
    if dataset.device.type != "cpu":
        yield from map(dataset.__getitem__, batches)
        return
    batch_size = max(map(len, batches), default=0)
    if dataset.in_memory and device.type == "cpu":
        buffers = dataset.buffers(batch_size)
        for positions in batches:
            yield dataset.batch(positions, buffers)
        return

    def read(positions, buffers):
        return {name: value.to(device) for name, value in dataset.batch(positions, buffers).items()}

    two_buffers = [dataset.buffers(batch_size, pin_memory=device.type == "cuda") for _ in range(2)]
    with ThreadPoolExecutor(1) as reader:
        upcoming = None
        for positions, buffers in zip(batches, cycle(two_buffers)):
            read_now, upcoming = upcoming, reader.submit(read, positions, buffers)
            if read_now:
                yield read_now.result()
        if upcoming:
            yield upcoming.result()
