"""Pareto k-hat of importance weights: how heavy their tail is (Vehtari et al., 2024).

A generalised Pareto distribution is fitted to the largest weights. At a shape k below 0.5 their variance is finite,
up to 0.7 a mean of a few hundred of them can be trusted, and above it neither the mean nor its error can.

References:
    Zhang, Stephens, *A new and efficient estimation method for the generalized Pareto distribution*, Technometrics
    2009.
    Vehtari, Simpson, Gelman, Yao, Gabry, *Pareto smoothed importance sampling*, JMLR 2024.
"""

import math
from typing import NamedTuple

import torch
from torch import Tensor

FEWEST = 5
"""Weights in a tail that is fitted: none with 20 draws or fewer."""


def tail_length(draws: int) -> int:
    """Return how many of the largest weights are the tail: min(K / 5, 3 sqrt(K))."""
    return math.ceil(min(draws / 5, 3 * math.sqrt(draws)))


class Tail(NamedTuple):
    """What is known of the tail of the weights.

    Attributes:
        k: Pareto k-hat, `(batch,)`; NaN where there are too few draws to tell, infinity where fewer than five weights
            stand out of the others.
        log_excess: log of how much the weights of the tail exceed its cutoff together, `(batch,)`: as they were drawn
            or as the fitted distribution expects it, whichever is more.
    """

    k: Tensor
    log_excess: Tensor


def pareto_tail(largest: Tensor, draws: int) -> Tail:
    """Fit the tail.

    Args:
        largest: log weights in falling order, at least `tail_length(draws) + 1` of them (or all), `(n, batch)`.
        draws: K, how many weights there were.
    """
    length = tail_length(draws)
    if length < FEWEST or largest.shape[0] <= length:
        unknown = largest.new_full((largest.shape[1],), math.nan)
        return Tail(unknown, unknown)
    logs = (largest[: length + 1] - largest[0]).double()
    cutoff = logs[-1].clamp(min=math.log(torch.finfo(torch.float64).tiny))
    stands_out = logs[:-1] > cutoff
    k, excess = _fitted(torch.where(stands_out, logs[:-1].exp() - cutoff.exp(), 0.0), stands_out.sum(0))
    # Equal weights, up to rounding, have no tail at all: the best there is.
    equal = logs[-1] > -1e-10
    k, excess = torch.where(equal, -math.inf, k), torch.where(equal, 0.0, excess)
    return Tail(k.to(largest.dtype), (excess.log() + largest[0]).to(largest.dtype))


def _fitted(excess: Tensor, n: Tensor) -> tuple[Tensor, Tensor]:
    """Fit a generalised Pareto distribution to the excesses of each datum: a mean over a grid of the posterior.

    No value is read into Python, so that it can be compiled.

    Args:
        excess: in falling order, `(length, batch)`, zeros after the first n of a datum.
        n: how many there are, `(batch,)`.

    Returns:
        The shape, and the sum of the excesses, drawn or expected, whichever is more: `(batch,)` each; infinite where
        fewer than five are there.
    """
    rank = torch.arange(len(excess), dtype=excess.dtype, device=excess.device)[:, None]
    there, size = rank < n, n.to(excess)
    points = 30 + size.sqrt().floor()  # of the grid
    quarter = excess.gather(0, (n - (size / 4 + 0.5).floor().long()).clamp(0, len(excess) - 1)[None])[0]
    grid = torch.arange(1, 31 + math.isqrt(len(excess)), dtype=excess.dtype, device=excess.device)[:, None]
    b = (1 - (points / (grid - 0.5)).sqrt()) / (3 * quarter) + 1 / excess[0]
    k = _log_of_rest(b, excess) / size
    likelihood = torch.where(grid <= points, size * ((-b / k).log() - k - 1), -math.inf)
    weight = likelihood.softmax(0)
    weight = torch.where(weight >= 10 * torch.finfo(weight.dtype).eps, weight, 0.0)
    b_mean = (b * weight).sum(0) / weight.sum(0)
    shape = torch.log1p(-b_mean * excess).sum(0) / size
    k = (size * shape + 10 * 0.5) / (size + 10)  # a weak prior around 0.5 steadies short tails
    above = torch.where(there, (rank + 0.5) / size, 1.0)
    expected = -shape / b_mean * torch.expm1(-k * above.log()) / k  # quantiles, of scale -shape / b
    total = torch.maximum(expected.sum(0), excess.sum(0))
    return torch.where(n >= FEWEST, k, math.inf), torch.where(n >= FEWEST, total, math.inf)


def _log_of_rest(b: Tensor, excess: Tensor) -> Tensor:
    """Return the sum of log(1 - b y) over the excesses y `(length, batch)`, for each b `(points, batch)`."""
    if torch.compiler.is_compiling():  # a loop would be one large program
        return torch.log1p(-b[:, None] * excess).sum(1)
    return torch.stack([torch.log1p(-one * excess).sum(0) for one in b])  # together they would take much memory
