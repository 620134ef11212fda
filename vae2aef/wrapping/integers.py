"""Whole numbers among the data: grey levels to dequantise, or classes, such as tokens, that have no density."""

from typing import Any

import torch
from torch import Tensor, nn

from vae2aef.errors import DataTypeError, WrapError
from vae2aef.flows import Bijection
from vae2aef.modes import modules
from vae2aef.preprocess import Dequantize
from vae2aef.wrapping.trial import modules_of


def require_no_tokens(vae: Any, x: Tensor) -> None:
    """Refuse whole numbers that are looked up in a table of the VAE's: they are no grey levels to dequantise.

    Args:
        vae: the user's VAE.
        x: data as the user gives it, `(batch, *event)`, for which a density was asked.

    Raises:
        DataTypeError: gives the likelihood to pass.
    """
    if x.dtype not in (torch.int32, torch.int64) or not x.numel():
        return
    tables = [m for outer in modules_of(vae) for m in modules(outer) if isinstance(m, nn.Embedding)]
    if any(table.num_embeddings > x.max() for table in tables):
        raise DataTypeError(
            f"x is of {x.dtype}, and {type(vae).__name__} has an nn.Embedding for it: these are classes, such as "
            "tokens, which have no density. ",
            'Pass likelihood="categorical"',
        )


def require_integers(preprocess: Bijection, x: Tensor) -> None:
    """Refuse grey levels as floating point data where dequantising was asked for: it would do nothing to them.

    Args:
        preprocess: with a `Dequantize` among its steps, or not.
        x: data as the user gives it, `(batch, *event)`.

    Raises:
        WrapError: gives the line that makes integers of `x`.
    """
    bins = next((step.bins for step in preprocess.modules() if isinstance(step, Dequantize)), None)
    if bins is None or not x.is_floating_point() or not x.numel() or bool((x == x.flatten()[0]).all()):
        return
    for top in (1, bins - 1, bins):
        levels = (x * top).round()
        # The very division by which grey levels become floats, so that equality is exact.
        if bool((levels / top == x).all()):
            small = top > 1 and bool(x.max() <= 1)
            line = f"(x * {top}).round().to(torch.uint8)" if small else "x.to(torch.uint8)"
            grid = f"multiples of 1/{top}" if small else "whole numbers"
            raise WrapError(
                f"preprocess has `dequantize`, which leaves floating point data as they are, but the example is of "
                f"{grid}: grey levels. ",
                f"Pass integers: {line}"
                + (", with vae2aef.Dequantize(2) if they are bits" if bool(x.max() <= 1) and top == 1 else ""),
            )
