"""Small helpers for tensors of shape `(batch, *event)`."""

import contextlib
from collections.abc import Callable, Sequence
from functools import wraps
from typing import Any, ParamSpec, TypeVar

import torch
from torch import Tensor
from torch.nn.utils.rnn import PackedSequence

P = ParamSpec("P")
R = TypeVar("R")

GPU_NUMBERS, GPU_ROWS = 2**22, 2**16
"""Numbers, and rows, that are decoded at once on a GPU, at most."""


def sum_event(values: Tensor) -> Tensor:
    """Sum over everything but the batch: `(batch, *event)` gives `(batch,)`."""
    return values.flatten(1).sum(1) if values.dim() > 1 else values


def at_least_float32(values: Tensor) -> Tensor:
    """Return half precision values as float32 and all others unchanged: densities need the digits."""
    return values.float() if values.dtype in (torch.float16, torch.bfloat16) else values


def full_precision(values: Tensor) -> contextlib.AbstractContextManager[Any]:
    """Return a context in which autocast is off for the device of `values`."""
    if not torch.compiler.is_compiling() and not torch.is_autocast_enabled(values.device.type):
        return contextlib.nullcontext()  # to enter and leave torch's takes as long as two small operations
    return torch.autocast(values.device.type, enabled=False)


def on_gpu(x: Tensor) -> bool:
    """Return whether a tensor lies on a CUDA device."""
    return x.is_cuda


def rows_on_gpu(x: Tensor, at_once: int, per_value: int | None) -> int:
    """Return how many rows to decode at once, with `per_value` numbers for each value of x, if that is known.

    On a GPU more than `at_once`: what a kernel takes there hardly depends on fewer numbers.
    """
    numbers = numel(x.shape[1:]) * (per_value or 0)
    return max(at_once, min(GPU_NUMBERS // numbers, GPU_ROWS)) if numbers and on_gpu(x) else at_once


def numel(shape: Sequence[int]) -> int:
    """Return how many values an event of this shape holds (1 for the empty shape)."""
    return torch.Size(shape).numel()


def with_older_buffers(state: dict[str, Any], marker: str, prefix: str, **values: Any) -> dict[str, Any]:
    """Add to a checkpoint of release 0.1 the buffers that a module did not have then, with which its map is the same.

    Args:
        state: from a checkpoint.
        marker: an entry that the module has had ever since; without it nothing of the module is there.
        prefix: of the module's entries.
        **values: by the buffer's name.
    """
    if marker not in state:
        return state
    return {**{prefix + name: torch.as_tensor(value) for name, value in values.items()}, **state}


def map_tensors(value: Any, change: Callable[[Tensor], Tensor], other: Callable[[Any], Any] = lambda one: one) -> Any:
    """Change every tensor in nested tuples, lists and dicts; named tuples stay such, kinds of dicts become dicts.

    Args:
        value: anything.
        change: what becomes of a tensor.
        other: what becomes of all else that is found there, a `PackedSequence` among it.
    """
    if isinstance(value, Tensor):
        return change(value)
    if isinstance(value, (tuple, list)) and not isinstance(value, PackedSequence):
        items = [map_tensors(item, change, other) for item in value]
        return type(value)(*items) if hasattr(value, "_fields") else type(value)(items)
    if isinstance(value, dict):
        return {key: map_tensors(item, change, other) for key, item in value.items()}
    return other(value)


def mean_of(distribution: Any) -> Tensor | None:
    """Return the mean of a distribution, or of one that has none its mode; None if it knows neither."""
    kind = distribution.base_dist if isinstance(distribution, torch.distributions.Independent) else distribution
    name = "mode" if isinstance(kind, (torch.distributions.Categorical, torch.distributions.Cauchy)) else "mean"
    try:
        return at_least_float32(getattr(distribution, name))
    except NotImplementedError:
        return None


def without_gradients(function: Callable[P, R]) -> Callable[P, R]:
    """Run a function without gradients, and outside inference mode: fits need gradients with respect to latents."""

    @wraps(function)
    def run(*args: P.args, **kwargs: P.kwargs) -> R:
        if torch.compiler.is_compiling():  # which knows no inference mode
            return torch.no_grad()(function)(*args, **kwargs)
        with torch.inference_mode(False), torch.no_grad():
            return function(*map_tensors(args, _plain), **map_tensors(kwargs, _plain))

    return run


def _plain(value: Tensor) -> Tensor:
    """Copy a tensor that was made in inference mode, which autograd does not take."""
    return value.clone() if value.is_inference() else value
