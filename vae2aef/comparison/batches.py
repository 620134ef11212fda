"""Training batches that depend on nothing but the seed and their number, so that a run can be resumed."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

from vae2aef.comparison.rows import Rows
from vae2aef.preprocess import dequantize


def stream(*names: object) -> int:
    """Return a seed for the random stream of that name: `stream("noise", seed, step)`."""
    digest = hashlib.sha256("/".join(map(str, names)).encode()).digest()
    return int.from_bytes(digest[:7], "big")


def continuous(x: Tensor, bins: int, *names: object) -> Tensor:
    """Dequantise integer data with noise from the stream of that name; floats, and one level, pass unchanged.

    Args:
        x: integers in 0..bins-1, or floats, (batch, *event).
        bins: number of levels; 1 for data that are taken as they are.
        *names: as `stream` takes them.

    Returns:
        Floats of the same shape, in [0, 1) if `x` held integers.
    """
    if x.is_floating_point() or bins == 1:
        return x
    return dequantize(x, bins, generator=torch.Generator().manual_seed(stream(*names)))


class Batches:
    """Iterate over dequantised batches `start` to `steps`, shuffled anew each epoch.

    Args:
        x: training data, (n, *event); of rows on the disk, those of a batch are read for it.
        bins: number of levels.
        batch_size: samples of a batch; all of `x` if it holds fewer. A rest of an epoch is left out.
        steps: number of batches in all.
        seed: fixes order and dequantisation noise.
        start: number of the first batch.
        cond: conditions, each with a row a datum; batches are then `(x, *conditions)`.
    """

    def __init__(
        self,
        x: Tensor | Rows,
        bins: int,
        batch_size: int,
        steps: int,
        seed: int,
        start: int = 0,
        cond: tuple[Tensor, ...] = (),
    ) -> None:
        self.cond = cond
        self.x, self.bins, self.steps, self.seed, self.start = x, bins, steps, seed, start
        self.batch_size = min(batch_size, len(x))

    def __iter__(self) -> Iterator[Any]:
        """Yield batches (batch, *event), or tuples that begin with one."""
        per_epoch = len(self.x) // self.batch_size
        epoch = -1
        for step in range(self.start, self.steps):
            if step // per_epoch != epoch:
                epoch = step // per_epoch
                shuffle = torch.Generator().manual_seed(stream("order", self.seed, epoch))
                order = torch.randperm(len(self.x), generator=shuffle)
            first = step % per_epoch * self.batch_size
            rows = order[first : first + self.batch_size]
            x = continuous(self.x[rows], self.bins, "dequantize", self.seed, step)
            yield (x, *(one[rows] for one in self.cond)) if self.cond else x
