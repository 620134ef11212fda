"""A float64 copy of the model and its data, to check on, and the comparison of two results."""

import copy
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from vae2aef.batch import Batch
from vae2aef.modes import own_random_state
from vae2aef.preprocess import bins_of, dequantize
from vae2aef.wrapping.example import read_example


class DoubleRun(NamedTuple):
    """A model in float64 with the data to run it on."""

    model: Any
    batch: Batch

    def row(self, i: int) -> "DoubleRun":
        """Return the run of one row alone."""
        return DoubleRun(self.model, self.batch.rows(slice(i, i + 1)))


class DoubleCopy:
    """Context: a float64 copy of the model in eval mode, with its data; errors of dtype are explained."""

    def __init__(self, model: nn.Module, example: Any, rows: int | None = None) -> None:
        batch = read_example(example).rows(slice(0, rows))
        self._random = own_random_state(batch.x.device)
        self._run = DoubleRun(
            copy.deepcopy(model).double().eval(),
            Batch(
                _continuous(model, batch.x).double(),
                tuple(map(_double, batch.cond)),
                {name: _double(value) for name, value in batch.kwargs.items()},
            ),
        )

    def __enter__(self) -> DoubleRun:
        self._random.__enter__()
        torch.manual_seed(0)
        return self._run

    def __exit__(self, kind: Any, error: Any, trace: Any) -> None:
        self._random.__exit__(kind, error, trace)
        if isinstance(error, RuntimeError) and "dtype" in str(error):
            raise ValueError(
                "the model does not run in float64 (is a dtype fixed in its code?), and the check needs its digits. "
                f"Torch said: {error}"
            ) from error


def compare(got: Tensor, expected: Tensor, tolerance: float, what: str) -> float:
    """Return the largest error relative to 1 + |expected|; raise if it is too large or not a number."""
    if got.shape != expected.shape:
        raise AssertionError(f"{what}: expected shape {tuple(expected.shape)}, got {tuple(got.shape)}")
    if not got.numel():
        return 0.0
    errors = ((got - expected).abs() / (1 + expected.abs())).nan_to_num(nan=float("inf"))
    worst = int(errors.argmax())
    error = float(errors.flatten()[worst])
    if not error <= tolerance:
        raise AssertionError(
            f"{what} is wrong: {got.flatten()[worst].item():.6g} where {expected.flatten()[worst].item():.6g} is "
            f"right (relative error {error:.3g}, tolerance {tolerance:g})"
        )
    return error


def _double(value: Any) -> Any:
    return value.double() if isinstance(value, Tensor) and value.is_floating_point() else value


def _continuous(model: nn.Module, x: Tensor) -> Tensor:
    """Grey levels dequantised once, so that every call sees the same data."""
    if x.is_floating_point():
        return x
    return dequantize(x.double(), bins_of(model) or 256)
