"""The example that `wrap` reads shapes from: taken apart, cut to a few rows, preprocessed."""

from typing import Any

import torch
from torch import Tensor

from vae2aef.errors import WrapError
from vae2aef.flows import Bijection
from vae2aef.modes import own_random_state
from vae2aef.parts import describe
from vae2aef.preprocess import require_continuous
from vae2aef.tensors import at_least_float32

PROBE_ROWS = 128


def read_example(example: Any) -> tuple[Tensor, tuple, dict[str, Any]]:
    """Take `wrap(example=)` apart: data, conditions, conditions by name."""
    if isinstance(example, Tensor):
        return example, (), {}
    if isinstance(example, (tuple, list)) and example and isinstance(example[0], Tensor):
        x, *cond = example
        kwargs = cond.pop() if cond and isinstance(cond[-1], dict) else {}
        return x, tuple(cond), kwargs
    raise WrapError(
        "expected example=x, a batch of data of shape (batch, *event), or (x, *conditions): shapes are read from it "
        f"and the parts are checked on it; got {'nothing' if example is None else describe(example)}"
    )


def example_rows(x: Tensor, cond: tuple, kwargs: dict, preprocess: Bijection) -> tuple[Tensor, tuple, dict]:
    """Return the first rows of the example as the VAE will see them, preprocessed, with their conditions."""
    if x.dim() < 1 or not x.shape[0]:
        raise WrapError(f"expected an example of at least one row, got shape {tuple(x.shape)}")
    full, x = x.shape[0], x[:PROBE_ROWS]
    with torch.no_grad(), own_random_state(x.device):
        y, log_det = preprocess(at_least_float32(x))
    require_continuous(y)
    if y.shape != x.shape or log_det.shape != x.shape[:1]:
        raise WrapError(
            f"`preprocess`: expected data of shape {tuple(x.shape)} and log|det J|, summed over each row, of shape "
            f"{tuple(x.shape[:1])}; got {tuple(y.shape)} and {tuple(log_det.shape)}"
        )
    if not bool(y.isfinite().all()):
        raise WrapError(
            f"the example, ranging from {x.min().item():.4g} to {x.max().item():.4g}, is not finite after "
            "preprocessing: it holds NaN or lies outside [0, 1], where the logit is defined"
        )
    batch = x.shape[0]
    return y, tuple(_head(c, full, batch) for c in cond), {name: _head(c, full, batch) for name, c in kwargs.items()}


def _head(value: Any, full: int, batch: int) -> Any:
    has_batch = isinstance(value, Tensor) and value.dim() > 0 and value.shape[0] == full
    return value[:batch] if has_batch else value
