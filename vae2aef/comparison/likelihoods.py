"""`--likelihood`: p(x | z) of all arms, and the values of x that it scores."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from vae2aef.wrapping.likelihoods import GRID_START, GRIDS, NAMES, read_likelihood

CHOICES = ("vae", *NAMES)
"""`"vae"` is the VAE's own, or a Gaussian of learned scale."""


def is_discrete(name: str) -> bool:
    """Whether data are scored as they are: not dequantised, not preprocessed, in exact bits."""
    return name != "vae" and read_likelihood(name, torch.zeros(1, 1)).discrete


def values(x: Tensor, bins: int, name: str) -> Tensor:
    """Return data (batch, *event), integers in 0..bins-1 or floats, as a discrete likelihood scores them."""
    if x.is_floating_point() or name == "categorical":
        return x
    on_grid = name in GRIDS or name == "logistic_mixture"
    return x / (bins - 1) if on_grid else x.to(torch.get_default_dtype())


def option(name: str, example: Tensor, bins: int) -> Any:
    """Return what `wrap(likelihood=)` takes.

    Args:
        name: as `--likelihood`.
        example: data as `values` returns them.
        bins: number of levels of the data.
    """
    if name == "vae":
        return None
    if name in GRIDS:
        return GRIDS[name](example.shape[1:], bins=bins, initial_scale=grid_start(example))
    return name


def grid_start(example: Tensor) -> float:
    """Return where the learned scale of a grid starts, for data as `values` returns them."""
    return GRID_START * float(example.std(correction=0).clamp(1e-2, 1.0))
