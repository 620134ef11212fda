"""Rows of an array that stays on the disk: memory is asked for those that are read, and for nothing else."""

from __future__ import annotations

import math
import mmap
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import torch
from torch import Tensor

CHUNK = 2**23  # bytes of the file that are looked at together
SHUFFLED = 2**32  # bytes of a file up to which all rows are read in another order than its own


@dataclass(frozen=True)
class Mapped:
    """An array on the disk, and what makes data of what it holds.

    Attributes:
        array: memory-mapped, (n, *event), channels first.
        convert: takes rows of `array` to levels or `float32`, value by value.
        kept: which channels or columns are data, as a mask; None for all.
    """

    array: np.ndarray
    convert: Callable[[np.ndarray], np.ndarray]
    kept: np.ndarray | None = None

    def read(self, rows: np.ndarray | slice) -> np.ndarray:
        """Return a copy of these rows, (rows, *event)."""
        found = self.convert(self.array[rows])
        return np.ascontiguousarray(found if self.kept is None else found[:, self.kept])

    def chunks(self) -> Iterator[np.ndarray]:
        """Yield all rows in the order of the file, some MB at a time."""
        with forwards(self.array):
            for part in spans(len(self.array), self.array[:1].nbytes):
                yield self.read(part)


@contextmanager
def forwards(array: np.ndarray) -> Iterator[None]:
    """Let the system read ahead in a mapped file, and from then on not any more.

    Reading ahead, a batch of rows from all over the file costs hundreds of times what it holds; not doing so, reading
    from beginning to end takes twenty times as long.
    """
    _advise(array, "MADV_NORMAL")
    try:
        yield
    finally:
        _advise(array, "MADV_RANDOM")


def _advise(array: np.ndarray, advice: str) -> None:
    mapping = getattr(array, "_mmap", None)  # of a `np.memmap` and its views; not every system takes advice
    if mapping is not None and hasattr(mmap, advice):
        mapping.madvise(getattr(mmap, advice))


def spans(rows: int, row_bytes: int) -> Iterator[slice]:
    """Yield slices of so many rows that each is about `CHUNK` bytes."""
    step = max(1, CHUNK // max(1, row_bytes))
    for start in range(0, rows, step):
        yield slice(start, start + step)


class Rows:
    """A selection of the rows of a mapped array, in an order of its own. Indexing reads, and gives a tensor.

    Args:
        data: where the rows are.
        order: numbers of the rows, (n,).
        then: is done to each tensor that is read, value by value.
    """

    def __init__(self, data: Mapped, order: np.ndarray, then: Callable[[Tensor], Tensor] | None = None) -> None:
        self.data, self.order, self.then = data, order, then
        one = self[:1]
        self.shape, self.dtype = torch.Size([len(order), *one.shape[1:]]), one.dtype

    def __len__(self) -> int:
        return len(self.order)

    def __getitem__(self, index: slice | Tensor) -> Tensor:
        """Read rows, (rows, *event): a slice of the selection, or those of these numbers."""
        wanted = self.order[index if isinstance(index, slice) else index.numpy()]
        by_place = np.argsort(wanted)  # the disk is read forwards
        back = np.empty_like(by_place)
        back[by_place] = np.arange(len(by_place))
        found = torch.from_numpy(self.data.read(wanted[by_place])[back])
        return found if self.then is None else self.then(found)

    def select(self, index: Tensor) -> Rows:
        """Return a selection of these rows, of which nothing is read."""
        return Rows(self.data, self.order[index.numpy()], self.then)

    def map(self, then: Callable[[Tensor], Tensor]) -> Rows:
        """Return the same rows, to which `then` is done when they are read; it must go value by value."""
        before = self.then
        return Rows(self.data, self.order, then if before is None else lambda x: then(before(x)))

    def chunks(self) -> Iterator[Tensor]:
        """Yield all rows in their order, some MB at a time."""
        for part in spans(len(self), math.prod(self.shape[1:]) * self.dtype.itemsize):
            yield self[part]

    @cached_property
    def _range(self) -> tuple[Tensor, Tensor]:
        ordered = Rows(self.data, np.sort(self.order), self.then)
        with forwards(self.data.array):
            ends = [torch.stack(torch.aminmax(part)) for part in ordered.chunks()]
        return torch.stack(ends)[:, 0].min(), torch.stack(ends)[:, 1].max()

    def min(self) -> Tensor:
        """Return the smallest value."""
        return self._range[0]

    def max(self) -> Tensor:
        """Return the largest value."""
        return self._range[1]


def select(x: Tensor | Rows, index: Tensor) -> Tensor | Rows:
    """Return some rows: of a tensor a copy, of rows on the disk a selection."""
    return x.select(index) if isinstance(x, Rows) else x[index]


def pieces(*parts: Tensor | Rows) -> Iterator[Tensor]:
    """Yield what is all of these, one after the other; of a file that is too large for that, in its own order."""
    large = [x.data for x in parts if isinstance(x, Rows) and x.data.array.nbytes > SHUFFLED]
    if large:
        yield from map(torch.from_numpy, large[0].chunks())
        return
    for x in parts:
        yield from x.chunks() if isinstance(x, Rows) else (x,)
