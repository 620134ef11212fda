"""Sequences of different length: as one tensor and their lengths, on which an AEF computes, and back."""

import functools
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import PackedSequence, pack_padded_sequence, pad_packed_sequence, pad_sequence

from vae2aef.aef import AEF
from vae2aef.chain import Site
from vae2aef.core import LinearFeatures
from vae2aef.errors import WrapError, describe, some_rows
from vae2aef.svi.batch_axis import BatchAxis
from vae2aef.svi.time_steps import AllSteps, TimeStep, time_steps


class Sequences(NamedTuple):
    """What sequences are handed to a model and guide as.

    Attributes:
        packed: a `PackedSequence`; else a list, a tensor a row.
        indexed: whether a packed one says how its rows were sorted; else they come sorted, longest first.
        steps: the most time steps that the example has.
    """

    packed: bool
    indexed: bool
    steps: int

    @classmethod
    def like(cls, value: Any, steps: int) -> "Sequences":
        """Return that of an example."""
        packed = isinstance(value, PackedSequence)
        return cls(packed, packed and value.sorted_indices is not None, steps)

    def apart(self, value: Any) -> tuple[Tensor, Tensor]:
        """Return sequences as `(rows, steps, *event)`, filled up with zeros, and their lengths, `(rows,)`.

        Rows are in the order that `pad_packed_sequence` gives: that in which they were packed, before any sorting.

        Raises:
            ValueError: for an empty list, or a sequence of no time steps.
        """
        if isinstance(value, PackedSequence):
            x, lengths = pad_packed_sequence(value, batch_first=True)
        else:
            lengths = lengths_of(value)
            x = pad_sequence(value, batch_first=True)
        return longer(x, self.steps), lengths

    def together(self, x: Tensor, lengths: Tensor) -> Any:
        """Undo `apart`."""
        if len(lengths) == 1:  # the row that stands for an empty batch; of data none is of no length
            lengths = lengths.clamp(min=1)
        x, lengths = longer(x, int(lengths.max()) if len(lengths) else 0), lengths.cpu()
        if not self.packed:
            return [row[:length] for row, length in zip(x, lengths.tolist(), strict=True)]
        in_order = not self.indexed and bool((lengths.diff() <= 0).all())
        return pack_padded_sequence(x, lengths, batch_first=True, enforce_sorted=in_order)


def lengths_of(rows: list[Tensor]) -> Tensor:
    """Return how many time steps each sequence of a list has; a `ValueError` if there is none, or one has none."""
    if not rows:
        raise ValueError("expected a list of one sequence at least, got an empty list")
    return with_steps(torch.tensor([len(row) for row in rows]))


def with_steps(lengths: Tensor) -> Tensor:
    """Return lengths of sequences; a `ValueError` that names the rows if some have no time step."""
    short = (lengths < 1).nonzero().flatten().tolist()
    if short:
        got = f"{int(lengths.min())} in rows {some_rows(short)}"
        raise ValueError(f"expected sequences of one time step at least, got lengths of {got}: leave these out")
    return lengths


def longer(x: Tensor, steps: int) -> Tensor:
    """Fill up `(rows, steps, *event)` with zeros to so many time steps at least."""
    more = steps - x.shape[1]
    return x if more <= 0 else torch.cat([x, x.new_zeros(len(x), more, *x.shape[2:])], dim=1)


def fitted(x: Tensor, shape: torch.Size, lengths: Tensor) -> Tensor:
    """Bring what a model says of sequences to the shape of the data, zeros past their ends."""
    x = longer(x.reshape(shape[0], -1, *shape[2:]), shape[1])[:, : shape[1]]
    return torch.where(within(x, lengths), x, 0)


def within(x: Tensor, lengths: Tensor) -> Tensor:
    """Where `(rows, steps, *event)` holds values of sequences."""
    there = torch.arange(x.shape[1], device=x.device) < lengths.to(x.device).unsqueeze(1)
    return there.reshape(*there.shape, *(1 for _ in x.shape[2:]))


@dataclass(frozen=True)
class Absent:
    """The posterior of a latent that no row of a batch has: sites of time steps past the end of all its sequences.

    Attributes:
        loc: zeros, `(rows, *latent)`.
        batch: where the rows are in the site.
    """

    loc: Tensor
    batch: BatchAxis
    standard: ClassVar[Any] = None
    transform: ClassVar[Any] = None
    free: ClassVar[bool] = True

    @property
    def scale(self) -> Tensor:
        """One."""
        return torch.ones_like(self.loc)

    @property
    def mask(self) -> Tensor:
        """No row has it."""
        return torch.zeros(len(self.loc), dtype=torch.bool, device=self.loc.device)

    def push(self, u: Tensor) -> tuple[Tensor, Tensor]:
        """Return u in the shape of the site, and no change of volume."""
        return self.batch.back(u), u.new_zeros(len(u))


def core_of_sequences(core: Any, axes: Mapping[str, BatchAxis], x: Tensor) -> Any:
    """Return h of each site for sequences `(rows, steps, *event)`: of its time step, or of the sum over time steps.

    Raises:
        WrapError: for an option that reads data of one shape; names the site.
    """
    if isinstance(core, nn.Module) or (isinstance(core, str) and core == "noise"):
        return core
    steps = time_steps(axes, x.shape[1])
    found: dict[str, Any] = {}
    for name, batch in axes.items():
        own = core.get(name) if isinstance(core, Mapping) else core
        if own is not None and not isinstance(own, nn.Module) and own not in ("linear", "noise"):
            raise WrapError(
                f'site "{name}": core={own!r} reads data of one shape, and sequences differ in length; ',
                'use core="linear", or a module from (rows, steps, *event) to (rows, *latent)',
            )
        if own is None or own == "linear":
            inner = LinearFeatures(x.shape[2:], batch.latent_shape)
            own = (TimeStep(inner, steps[name]) if name in steps else AllSteps(inner)).to(x)
        found[name] = own
    return found


def reads(sites: Mapping[str, Site]) -> str:
    """Say what h of each site reads of sequences."""
    read: dict[str, list[str]] = {"its time step": [], "the sum over time steps": []}
    for name, site in sites.items():
        features = getattr(site.core, "features", None)
        for kind, what in ((TimeStep, "its time step"), (AllSteps, "the sum over time steps")):
            if isinstance(features, kind):
                read[what].append(f'"{name}"')
    said = "; ".join(f"h of {', '.join(names)} reads {what}" for what, names in read.items() if names)
    return f"sequences, padded: (x, lengths), a row each in the order they were packed or listed{said and f'; {said}'}"


class SequenceAEF(AEF):
    """An AEF of sequences of different length: a `PackedSequence`, a list with a tensor a row, or `(x, lengths)`.

    Inside, and in what it returns, data are padded, `(rows, steps, *event)`, with zeros past the end of each sequence,
    and lengths `(rows,)` are the first condition; results have a row a sequence, in the order in which they were packed
    or listed, before any sorting. To draw is to say how long: `sample(n, lengths)`, `decode(z, lengths)`.
    """

    def apart(self, x: Any, cond: tuple) -> tuple[Any, ...]:
        """Return padded data, their lengths, and the conditions.

        Raises:
            TypeError: if the lengths of padded data are missing.
            ValueError: if they do not fit.
        """
        pair: Any = self.vae
        if isinstance(x, (PackedSequence, list)):
            return (*pair.sequences.apart(x), *cond)
        if not isinstance(x, Tensor) or x.dim() < 2:
            raise TypeError(f"expected data as a PackedSequence, a list of sequences, or x, lengths; got {describe(x)}")
        lengths = self._lengths(cond, len(x), "aef(x, lengths)")
        x = longer(x, pair.sequences.steps)
        if len(x) and int(lengths.max()) > x.shape[1]:
            raise ValueError(f"expected lengths up to {x.shape[1]}, the time steps of x, got {int(lengths.max())}")
        return (torch.where(within(x, lengths), x, 0), *cond)

    def _lengths(self, cond: tuple, rows: int, how: str) -> Tensor:
        lengths = cond[0] if cond else None
        if not isinstance(lengths, Tensor) or lengths.shape != (rows,) or lengths.is_floating_point():
            got = "nothing" if lengths is None else describe(lengths)
            raise TypeError(
                f"expected the lengths of the {rows} sequences as the first condition, a tensor of integers, as in "
                f"{how}; got {got}"
            )
        return with_steps(lengths)

    def sample(self, n: int, *cond: Any, **kwargs: Any) -> Tensor:
        """Draw `n` sequences, padded; see `AEF.sample`. Their lengths `(n,)` are the first condition."""
        if hasattr(n, "__index__"):
            self._lengths(cond, n.__index__(), "aef.sample(n, lengths)")
        return super().sample(n, *cond, **kwargs)

    def check_log_prob(self, n: int, *cond: Any, **kwargs: Any) -> Any:
        """See `AEF.check_log_prob`; lengths as in `sample`."""
        self._lengths(cond, n, "aef.check_log_prob(n, lengths)")
        return super().check_log_prob(n, *cond, **kwargs)

    def decode(self, z: Any, *cond: Any, **kwargs: Any) -> Any:
        """Return padded data for latents as `encode` returns them; lengths are the first condition."""
        if isinstance(z, Mapping) and z:
            first = next(iter(z))
            self._lengths(cond, len(self.parts.rows_first(first, z[first])), "aef.decode(z, lengths)")
        return super().decode(z, *cond, **kwargs)

    def impute(self, x: Any, *rest: Any, **kwargs: Any) -> Any:
        """Refuse: the density of a sequence is not known value by value."""
        raise ValueError(
            "missing values need the density of each value of x by itself, and a model of sequences gives one for each "
            "sequence"
        )

    def _event(self, decoded: Any) -> torch.Size:
        return decoded.mean.shape[1:] if isinstance(decoded.mean, Tensor) else self.event_shape

    def _require_shape(self, x: Any) -> None:
        event = self.event_shape
        if x.dim() != 1 + len(event) or x.shape[2:] != event[1:] or x.shape[1] < event[0]:
            wanted = ", ".join(map(str, ("batch", "steps", *event[1:])))
            raise ValueError(f"expected sequences, padded to ({wanted}), got {tuple(x.shape)}")


def _of_sequences(method: Callable[..., Any]) -> Callable[..., Any]:
    """Make a method of padded data and lengths one that takes sequences, too."""

    @functools.wraps(method)
    def taking(self: SequenceAEF, x: Any, *cond: Any, **kwargs: Any) -> Any:
        return method(self, *self.apart(x, cond), **kwargs)

    return taking


for _name in ("forward", "encode", "reconstruct", "denoise", "expanded_log_prob", "log_prob", "tune_proposal", "gauge"):
    setattr(SequenceAEF, _name, _of_sequences(getattr(AEF, _name)))
