"""The example that `wrap` reads shapes from: taken apart, cut to a few rows, preprocessed."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor
from torch.nn.utils.rnn import PackedSequence

from vae2aef.batch import Batch
from vae2aef.errors import WrapError, describe
from vae2aef.flows import Bijection
from vae2aef.modes import own_random_state
from vae2aef.preprocess import require_continuous
from vae2aef.tensors import at_least_float32

EXAMPLE_ROWS = 128


def read_example(example: Any) -> Batch:
    """Take `wrap(example=)` apart: data, conditions, conditions by name.

    Raises:
        WrapError: if it is no tensor, nor a tuple that begins with one; or the data are sparse.
    """
    if isinstance(example, PackedSequence):
        raise WrapError(
            "the example is a PackedSequence, and a VAE is wrapped on padded data; ",
            "pass example=(x, lengths), which torch.nn.utils.rnn.pad_packed_sequence(example, batch_first=True) gives; "
            "a Pyro model and guide of packed data are converted by vae2aef.from_pyro(model, guide, example)",
        )
    if isinstance(example, Tensor):
        return Batch(_dense(example))
    if isinstance(example, (tuple, list)) and example and isinstance(example[0], Tensor):
        x, *cond = example
        kwargs = cond.pop() if cond and isinstance(cond[-1], dict) else {}
        return Batch(_dense(x), tuple(cond), kwargs)
    raise WrapError(
        "expected example=x, a batch of data of shape (batch, *event), or (x, *conditions): shapes are read from it "
        f"and the parts are checked on it; got {'nothing' if example is None else describe(example)}"
    )


def _dense(x: Tensor) -> Tensor:
    if x.layout is not torch.strided:
        raise WrapError(f"the data of the example are a tensor of layout {x.layout}: ", "pass x.to_dense()")
    return x


@contextmanager
def naming_labels(batch: Batch) -> Iterator[None]:
    """Say, where a batch of a loader is more than a VAE takes, that what stands beside x is taken for a condition."""
    try:
        yield
    except (WrapError, TypeError) as error:
        y = batch.cond[0] if len(batch.cond) == 1 else None
        if not isinstance(y, Tensor) or y.dim() != 1 or "positional argument" not in str(error):
            raise
        raise WrapError(
            f"{error} -- the example is (x, y), so that y, {describe(y)}, is a condition of the VAE; if it is a label "
            "that the VAE does not take, ",
            "pass example=x",
        ) from error


def example_rows(example: Batch, preprocess: Bijection, discrete: bool = False) -> Batch:
    """Return the first rows of the example as the VAE will see them, preprocessed, with their conditions.

    Args:
        example: with conditions.
        preprocess: of the AEF.
        discrete: whether the likelihood is one of discrete data.

    Raises:
        WrapError: if there are none, or preprocessing makes of them what is not finite or of another shape.
    """
    if example.x.dim() < 1 or not example.size:
        raise WrapError(f"expected an example of at least one row, got shape {tuple(example.x.shape)}")
    example = example.rows(slice(0, EXAMPLE_ROWS))
    x = example.x
    with torch.no_grad(), own_random_state(x.device):
        y, log_det = preprocess(at_least_float32(x))
    if not discrete:
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
    return example._replace(x=y)
