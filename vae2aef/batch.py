"""Data with its conditions: the one place that knows what has a row a datum."""

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn.utils.rnn import PackedSequence, pack_padded_sequence, pad_packed_sequence

from vae2aef.tensors import map_tensors


class Batch(NamedTuple):
    """What a VAE is run on.

    Attributes:
        x: data, shape `(batch, *event)`.
        cond: conditions in order; tensors with the leading size of the batch have a row a datum, also inside tuples,
            lists and dicts. All else is the same for every datum.
        kwargs: conditions by name, likewise.
    """

    x: Tensor
    cond: tuple = ()
    kwargs: dict[str, Any] = {}  # noqa: RUF012 -- never written to

    @property
    def size(self) -> int:
        """How many data there are."""
        return self.x.shape[0]

    def map(self, change: Callable[[Tensor], Tensor]) -> "Batch":
        """Change every tensor with a row a datum."""
        return Batch(*map_rows(tuple(self), self.size, change))

    def rows(self, take: "slice | Tensor") -> "Batch":
        """Return some of the rows."""
        return self.map(lambda value: value[take if isinstance(take, slice) else take.to(value.device)])

    def head(self, n: int) -> "Batch":
        """Return `n` rows, repeated if there are fewer."""
        return self.rows(torch.arange(n) % max(self.size, 1))

    def repeat(self, times: int) -> "Batch":
        """Return `times` copies, whole batch after whole batch."""
        return Batch(*repeat_rows(tuple(self), times, self.size))

    def detach(self) -> "Batch":
        """Cut all tensors from their graph."""

        def other(one: Any) -> Any:
            return one._replace(data=one.data.detach()) if isinstance(one, PackedSequence) else one

        return Batch(*map_tensors(tuple(self), Tensor.detach, other))


def batch_of_loader(made: Any, apart: "Callable[[Any, tuple], tuple] | None" = None) -> Batch:
    """Return a batch of a loader: `x`, or `(x, *conditions)` whose last item may be a dict of conditions by name.

    Args:
        made: the batch. x is a tensor, or a `PackedSequence` or list of sequences.
        apart: of x and conditions makes padded data, lengths and conditions; None where sequences are not taken.

    Raises:
        TypeError: for anything else.
    """
    kinds = Tensor if apart is None else (Tensor, PackedSequence, list)
    got = type(made).__name__
    if isinstance(made, (Tensor, PackedSequence)):
        made = (made,)
    if not isinstance(made, (tuple, list)) or not made or not isinstance(made[0], kinds):
        raise TypeError(
            "expected a batch, or what split makes of it, to be a tensor x or (x, *conditions); got "
            f"{got}. Pass AEFTask(aef, split=lambda batch: (x, *conditions))"
        )
    x, *cond = made
    kwargs = cond.pop() if cond and isinstance(cond[-1], dict) else {}
    x, *cond = (x, *cond) if apart is None else apart(x, tuple(cond))
    return Batch(x, tuple(cond), kwargs)


def map_rows(value: Any, size: int, change: Callable[[Tensor], Tensor]) -> Any:
    """Apply `change` to every tensor of leading size `size` in nested tuples, lists and dicts.

    Args:
        value: anything; an object of another kind is asked for its `map_rows(size, change)`, or left as it is.
        size: how many rows the batch has.
        change: maps a tensor `(size, ...)` to one with other rows.
    """

    def of_rows(one: Tensor) -> Tensor:
        return change(one) if one.dim() > 0 and one.shape[0] == size else one

    def other(one: Any) -> Any:
        if isinstance(one, PackedSequence):
            padded, lengths = pad_packed_sequence(one, batch_first=True)
            return pack_padded_sequence(change(padded), change(lengths), batch_first=True, enforce_sorted=False)
        return one.map_rows(size, change) if hasattr(one, "map_rows") else one

    return map_tensors(value, of_rows, other)


def repeat_rows(value: Any, times: int, size: int) -> Any:
    """Repeat every tensor of leading size `size` to `times * size` rows, whole batch after whole batch."""
    if times == 1:
        return value
    return map_rows(value, size, lambda rows: rows.repeat(times, *(1 for _ in rows.shape[1:])))
