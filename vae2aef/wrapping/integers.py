"""Whole numbers among the data: grey levels to dequantise, or classes, such as tokens, that have no density."""

import warnings
from typing import Any

import torch
from torch import Tensor, nn

from vae2aef.errors import DataTypeError, WrapError, WrapWarning
from vae2aef.flows import Bijection
from vae2aef.modes import modules
from vae2aef.preprocess import bins_of
from vae2aef.wrapping.trial import modules_of

MANY = 256
"""So many values of an example are on a grid by no chance."""


def require_no_tokens(vae: Any, x: Tensor, said: bool) -> None:
    """Refuse whole numbers that are looked up in a table of the VAE's: they are no grey levels to dequantise.

    Args:
        vae: the user's VAE.
        x: data as the user gives it, `(batch, *event)`.
        said: whether the user has said what they are, by a likelihood of whole numbers or by a preprocessing.

    Raises:
        DataTypeError: gives the likelihood to pass.
    """
    if said or x.dtype not in (torch.int32, torch.int64) or not x.numel():
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
    bins = bins_of(preprocess)
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


TOPS = (255, 16, 127, 63, 31)
"""The greatest level of 8 bits (and of 1, 2 and 4), of scikit-learn's digits, and of 7, 6 and 5 bits."""


def warn_of_grey_levels(discrete: bool, bits: str | None, preprocess: Bijection, x: Tensor) -> None:
    """Warn of grey levels or bits that get a density as they are: it grows without bound on them, and says nothing.

    Args:
        discrete: whether p(x | z) is a probability of levels, or the VAE's own density, which may be.
        bits: the likelihood that bits could have; None where only a density will do.
        preprocess: of the AEF.
        x: data as the user gives it, `(batch, *event)`.

    Warns:
        WrapWarning: gives the lines that help.
    """
    if (
        discrete
        or bins_of(preprocess) is not None
        or not x.is_floating_point()
        or x.numel() < MANY
        or not bool(x.isfinite().all())
    ):
        return
    for top in TOPS if bool((x >= 0).all() and (x <= 1).all()) else (1,):
        levels = (x * top).round()
        if not bool((levels / top == x).all()) or bool(levels.min() < 0):
            continue
        found = levels.unique().tolist()
        if found == [0, top] and top > 1:
            warnings.warn(_of_bits(bits), stacklevel=4)
        elif len(found) > 2:
            warnings.warn(_of_grey_levels(top, bits is not None), stacklevel=4)
        return


def _of_bits(likelihood: str | None) -> WrapWarning:
    line = "Dequantise them, x = vae2aef.dequantize(x, bins=2)"
    return WrapWarning(
        "the example holds bits (0 and 1), and the likelihood is a density of continuous data, which can grow without "
        "bound on them: its numbers mean nothing. ",
        f'Score them as they are, likelihood="{likelihood}"' if likelihood else line,
    )


def _of_grey_levels(top: int, discrete: bool) -> WrapWarning:
    line = "x.to(torch.uint8)" if top == 1 else f"({top} * x).round().to(torch.uint8)"
    line += "" if top in (1, 255) else f", bins={top + 1}"
    scaled = ", of x / 255" if top == 1 else ""
    scored = '"discretized_logistic"'
    if top not in (1, 255):
        scored = f"vae2aef.likelihood.DiscretizedLogistic(x.shape[1:], bins={top + 1})"
    as_they_are = f", or score them as they are: likelihood={scored}{scaled}"
    return WrapWarning(
        f"the example holds grey levels ({'whole numbers' if top == 1 else f'multiples of 1/{top}'}) as floating "
        "point data: a density of continuous data can grow without bound on them, and its bits per dimension mean "
        "nothing. ",
        f"Dequantise them, x = vae2aef.dequantize({line})" + (as_they_are if discrete else ""),
    )
