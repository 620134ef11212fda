"""What a forward returns: list it, name its items as in Python, take one out again."""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from vae2aef.errors import WrapError


def leaves(out: Any, path: tuple = ()) -> list[tuple[tuple, Any, Tensor]]:
    """List all tensors and distributions in nested tuples, lists, dicts and simple objects.

    Returns:
        For each its path (see `pick`), itself, and its value: the tensor, or the distribution's mean. A
        distribution without a mean is left out.
    """
    if isinstance(out, Tensor):
        return [(path, out, out)]
    if isinstance(out, torch.distributions.Distribution):
        try:
            return [(path, out, out.mean)]
        except NotImplementedError:
            return []
    items: list[tuple[tuple, Any]]
    if isinstance(out, Mapping):
        items = [((key,), value) for key, value in out.items()]
    elif isinstance(out, (tuple, list)):
        items = [((index,), value) for index, value in enumerate(out)]
    elif dataclasses.is_dataclass(out) or type(out).__name__ == "SimpleNamespace":
        items = [((f".{name}",), value) for name, value in vars(out).items()]
    else:
        return []
    return [leaf for step, value in items for leaf in leaves(value, path + step)]


def candidates(found: list[tuple[tuple, Any, Tensor]], shape: Sequence[int]) -> list[tuple[tuple, Any, Tensor]]:
    """Keep what could be the mean of data of this shape, `(batch, *event)`, or flattened."""
    return [
        item
        for item in found
        if item[2].is_floating_point()
        and item[2].numel() == torch.Size(shape).numel()
        and item[2].shape[:1] == tuple(shape[:1])
    ]


def pick(out: Any, path: tuple) -> Any:
    """Take one item out of what forward returned.

    Args:
        out: nested tuples, lists, dicts and objects.
        path: from outside to inside; numbers and keys, or attribute names, which begin with a dot.

    Raises:
        WrapError: if it is not there.
    """
    try:
        for step in path:
            by_name = isinstance(step, str) and step.startswith(".")
            out = getattr(out, step[1:]) if by_name else out[step]
    except (AttributeError, IndexError, KeyError, TypeError) as error:
        raise WrapError(f"forward returns no {say_path(path)}, as it did when it was wrapped") from error
    return out


def say_path(path: tuple, whole: str = "forward(x)") -> str:
    """Write a path as one would in Python: `forward(x)[0].mean`."""
    return whole + "".join(s if isinstance(s, str) and s.startswith(".") else f"[{s!r}]" for s in path)


def which_output(fit: list[tuple[tuple, Any, Tensor]], found: list[tuple[tuple, Any, Tensor]]) -> str:
    """Return the line that says what the mean is: the first that forward returns, where several may be."""
    if not fit:
        return "Pass output=lambda out: ... that makes the mean of the data of what forward returns"
    path = min((item[0] for item in fit), key=[item[0] for item in found].index)
    return f"Pass output=lambda out: {say_path(path, 'out')}"
