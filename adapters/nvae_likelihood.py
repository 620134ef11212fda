"""p(x | z) of NVAE: Bernoulli, a mixture of discretised logistics or a normal density, of data in [0, 1]."""

import math
from typing import Any

import torch
from torch import Tensor

from vae2aef.adapters._common import on_grid
from vae2aef.tensors import sum_event

CROP = slice(2, 30)
"""Rows and columns of a padded image that the loss counts, where `crop_output` is set."""


class Likelihood:
    """The codebase's own p(x | z), of data in [0, 1].

    Args:
        output: what `decoder_output` has returned.
        levels: data are multiples of 1 / this; None for a density on the reals.
        crop: whether a border is padding, which is zero.
    """

    def __init__(self, output: Any, levels: int | None, crop: bool) -> None:
        self.output, self.levels, self.crop = output, levels, crop

    def log_prob(self, x: Tensor) -> Tensor:
        """Log density, or probability, `(batch,)`, in nats; minus infinity for data that have no probability."""
        if not len(x):
            return x.new_zeros(0)
        counted = pixels(x, self.crop)
        if self.levels is None:  # theirs is of 2 x - 1
            return sum_event(torch.where(counted, self.output.dist.log_p(2 * x - 1) + math.log(2), 0.0))
        fits = has_probability(x, self.levels, self.crop)
        on_levels = (x * self.levels).round().clamp(0, self.levels) / self.levels  # theirs raises for what is not
        value = sum_event(torch.where(counted, self.output.log_prob(on_levels), 0.0))
        return torch.where(fits, value, -torch.inf)

    def sample(self) -> Tensor:
        """Draw data, `(batch, *event)`, by the codebase's own sampler, which does not round to grey levels."""
        return self.padded(self.output.sample())

    def mean(self) -> Tensor:
        """Return the mean of the data, `(batch, *event)`, by the codebase's own formula."""
        if self.levels is None:
            return self.padded((self.output.dist.mu + 1) / 2)
        mean = self.output.mean
        return self.padded(mean if isinstance(mean, Tensor) else mean())

    def padded(self, x: Tensor) -> Tensor:
        """Make a border zero that is padding."""
        return torch.where(pixels(x, self.crop), x, 0.0)


def pixels(x: Tensor, crop: bool) -> Tensor:
    """Which pixels are data rather than padding, `(height, width)`."""
    inside = torch.full(x.shape[-2:], not crop, device=x.device)
    inside[CROP, CROP] = True
    return inside


def has_probability(x: Tensor, levels: int, crop: bool) -> Tensor:
    """Which images have a probability, `(batch,)`: on the grey levels, a border of padding zero."""
    return torch.where(pixels(x, crop), on_grid(x, levels), x == 0).flatten(1).all(1)
