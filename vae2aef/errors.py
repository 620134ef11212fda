"""Errors with names, so that a training loop can tell them apart."""

import math
from typing import Any

import torch
from torch import Tensor


class Remedied(Exception):
    """An error with the line that helps, for code: nobody need read it out of the message.

    Args:
        reason: what was expected and what came, up to the remedy, if there is one.
        fix: what to do. The message is the two joined.

    Attributes:
        reason: as given, without the punctuation that leads to the remedy.
        fix: as given.
    """

    def __init__(self, reason: str, fix: str = "") -> None:
        super().__init__(reason + fix)
        self.reason, self.fix = reason.rstrip(" \n:;,") if fix else reason, fix


class NonFiniteError(ValueError):
    """The loss, or a log-likelihood, is NaN or infinite; the message names the first term that is."""


class WrapError(Remedied, ValueError):
    """A VAE cannot be wrapped as asked; the message says what was expected, what came, and what to do."""


class WrapWarning(Remedied, UserWarning):
    """A VAE was wrapped, but something of it seems to be left out or misread; the message ends in the line to write."""


class DataTypeError(Remedied, TypeError):
    """The data are not of a type that has a density."""


def describe(out: Any) -> str:
    """Say in a few words what an object is, with shapes of tensors."""
    if isinstance(out, Tensor):
        return f"a tensor of shape {tuple(out.shape)}"
    if isinstance(out, (tuple, list)):
        return f"a {type(out).__name__} of {len(out)}: [{', '.join(describe(item) for item in out)}]"
    if isinstance(out, dict):
        return f"a {type(out).__name__} with the keys {list(out)}"
    if isinstance(out, torch.distributions.Distribution):
        return f"a torch distribution {type(out).__name__}"
    return f"an object of type {type(out).__qualname__}"


def require_finite_data(x: Tensor) -> None:
    """Raise if data, `(batch, *event)`, hold NaN or infinite values.

    Raises:
        NonFiniteError: names the rows.
    """
    # A fraction of the time that a look at each value takes; and a number is looked at in less than a tensor.
    if not x.is_floating_point() or math.isfinite(x.sum().item()):
        return
    if not bool(x.isfinite().all()):  # and the sum has not overflowed
        bad = (~x.isfinite()).reshape(x.shape[0], -1).any(1).nonzero().flatten().tolist()
        raise NonFiniteError(f"the data x holds NaN or infinite values in rows {some_rows(bad)} of the batch")


def not_data(x: Any) -> str:
    """Say what to write where something else than a tensor came for data."""
    said = f"expected data x as a tensor (batch, *event), got {describe(x)}"
    if isinstance(x, (tuple, list)) and x and isinstance(x[0], Tensor):
        return (
            f"{said}, as a DataLoader yields it: write `for x, y in loader: loss = aef(x)` if y is a label that the "
            "VAE does not take, or aef(x, y) if it is a condition of the VAE"
        )
    if isinstance(x, dict):
        return f"{said}: pass its data, as in aef(batch[{next(iter(x), 'x')!r}])"
    return said


def how_many(n: Any, kwargs: dict[str, Any]) -> int:
    """Return the number of draws that `sample` is asked for.

    Raises:
        TypeError: for a shape, as torch's distributions take it, or a generator, which nothing here would read.
        ValueError: for a negative number.
    """
    if "generator" in kwargs:
        raise TypeError(
            "sample takes no generator: priors and likelihoods draw from torch's own random state. Write "
            "torch.manual_seed(0) before it, inside torch.random.fork_rng() if nothing else is to change"
        )
    if isinstance(n, bool) or not hasattr(n, "__index__") or (isinstance(n, Tensor) and n.dim()):
        hint = f"; sample({math.prod(n)}) draws as many" if isinstance(n, (tuple, list, torch.Size)) else ""
        raise TypeError(f"expected n, how many events to draw, as a whole number, got {n!r}{hint}")
    if n.__index__() < 0:
        raise ValueError(f"expected n, how many events to draw, of at least 0, got {n}")
    return n.__index__()


def require_finite(loss: Tensor, x: Tensor, **terms: Tensor) -> None:
    """Raise if `loss` is not finite, naming the cause. One look at a scalar when all is well.

    Args:
        loss: a scalar.
        x: the data as the user gave it, shape `(batch, *event)`.
        **terms: what the loss was made of, in the order of computation.

    Raises:
        NonFiniteError: names the data or the first term that is not finite, and the rows concerned.
    """
    if math.isfinite(loss.item()):
        return
    require_finite_data(x)
    for name, term in terms.items():
        finite = term.isfinite()
        if bool(finite.all()):
            continue
        bad = (~finite).reshape(finite.shape[0], -1).any(1).nonzero().flatten().tolist() if finite.dim() else []
        where = f" in rows {some_rows(bad)} of the batch" if bad else ""
        hint = ""
        if name == "preprocess":
            low, high = x.min().item(), x.max().item()
            hint = (
                f"; x ranges from {low:.4g} to {high:.4g}, and the logit takes data in [0, 1]: scale it, or "
                "dequantise integers with vae2aef.dequantize"
            )
        elif name == "encoder_scale":
            hint = (
                '; a scale must be positive: is `encoder_scale` right ("std", "log_std", "var", "log_var"), '
                "or has training diverged?"
            )
        raise NonFiniteError(f"the term `{name}` is not finite{where}{hint}")
    raise NonFiniteError("the loss is not finite, though each of its terms is: it overflowed when summed")


def some_rows(rows: list[int]) -> str:
    """Write the first few numbers of rows."""
    return ", ".join(map(str, rows[:5])) + (f", ... ({len(rows)} in all)" if len(rows) > 5 else "")
