"""Which of the arguments are the data that h reads: what the observed sites score, or what the user says."""

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor

from vae2aef.errors import WrapError
from vae2aef.svi.reading import Path, Unit, at, units, written

__all__ = ["Source", "as_data", "chosen", "depends", "score_of"]

Chosen = str | Callable[..., Any] | None
"""What the user says: the name of an argument, a callable of the arguments, or nothing."""


class Source(NamedTuple):
    """Where h's data come from.

    Attributes:
        path: the argument, and the keys inside it; empty where a callable gives them.
        make: that callable.
        why: why they are the data.
        ragged: whether there is a list of sequences, one a row, whatever their length.
    """

    path: Path
    make: Callable[..., Any] | None
    why: str
    ragged: bool = False

    def read(self, args: tuple, kwargs: dict[str, Any], named: dict[str, Any]) -> Unit | None:
        """Return the data of a call; None if the call has none."""
        found: Any = at(named, self.path) if self.make is None else self.make(*args, **kwargs)
        return next(units(found, self.path, self.path if self.ragged else None), None)

    @property
    def list_at(self) -> Path | None:
        """Where a list of sequences is among the arguments; None if there is none."""
        return self.path if self.ragged and self.make is None else None

    def __str__(self) -> str:
        return f"{written(self.path) if self.path else 'what data= makes of the arguments'}: {self.why}"


def chosen(data: Chosen, named: dict[str, Any]) -> Source | None:
    """Return the user's choice; None if there is none.

    Raises:
        WrapError: if no argument has that name.
    """
    if callable(data):
        return Source((), data, "data= says so")
    if data is None:
        return None
    if data not in named:
        raise WrapError(f'data="{data}" is no argument of the guide; it has {sorted(named)}')
    return Source((data,), None, "data= says so")


def as_data(unit: Unit | None, given: bool, discrete: bool = False) -> Tensor:
    """Return the data of a call as floating point numbers, `(rows, *event)`.

    Args:
        unit: as found; None for nothing.
        given: whether the user has said what the data are.
        discrete: whether an observed site scores whole numbers, which h reads as numbers then.

    Raises:
        WrapError: if there is nothing, or what there is has no rows or no floating point numbers.
    """
    found = None if unit is None else unit.padded()
    if found is None or found.dim() < 1:
        raise WrapError(
            "an AEF needs to see the data, and the guide gets "
            + ("no tensor to encode" if given or found is None else "a tensor without rows")
            + "; ",
            "pass it to model and guide, or name it with data= (an argument's name, or a callable of the arguments)",
        )
    if found.is_floating_point():
        return found
    if not discrete:
        raise WrapError(
            f"expected floating point data, got {found.dtype}: a density needs continuous data. ",
            "For integers use vae2aef.dequantize(x); if another argument is the data, name it with data=",
        )
    return found.to(torch.get_default_dtype())


def score_of(unit: Unit, leaves: list[Tensor], observed: dict[str, Any]) -> list[str]:
    """Return the observed sites that score a unit, by name.

    Args:
        unit: a tensor among the arguments.
        leaves: the tensors that autograd follows in its place; empty where it cannot.
        observed: the observed sites by name.
    """
    return [name for name, site in observed.items() if _scores(unit, leaves, site["value"])]


def _scores(unit: Unit, leaves: list[Tensor], value: Any) -> bool:
    if not isinstance(value, Tensor):
        return False
    if leaves and value.requires_grad:
        return depends([value], leaves)
    for tensor in unit.tensors:
        if tensor.numel() == value.numel() and torch.equal(
            tensor.detach().reshape(-1).to(value), value.detach().reshape(-1)
        ):
            return True
    return False


def depends(outputs: list[Tensor], inputs: list[Tensor]) -> bool:
    """Whether autograd finds a path from any input to any output."""
    outputs = [o for o in outputs if o.requires_grad]
    if not outputs or not inputs:
        return False
    total = torch.stack([o.sum().to(torch.float64) for o in outputs]).sum()
    grads = torch.autograd.grad(total, inputs, allow_unused=True, retain_graph=True)
    return any(g is not None for g in grads)
