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
    over = torch.where(logs[:-1] > cutoff, logs[:-1].exp() - cutoff.exp(), torch.nan)
    nothing_known = logs.new_tensor([math.inf, math.inf])
    values = [logs.new_zeros(0, 2)]
    for one in over.T:
        one = one[~one.isnan()].flip(0)  # in rising order
        values.append((_fitted(one) if len(one) >= FEWEST else nothing_known)[None])
    k, excess = torch.cat(values).unbind(1)
    # Equal weights, up to rounding, have no tail at all: the best there is.
    equal = logs[-1] > -1e-10
    k, excess = torch.where(equal, -math.inf, k), torch.where(equal, 0.0, excess)
    return Tail(k.to(largest.dtype), (excess.log() + largest[0]).to(largest.dtype))


def _fitted(excess: Tensor) -> Tensor:
    """Fit a generalised Pareto distribution to sorted excesses `(n,)`: a mean over a grid of the posterior.

    Returns:
        The shape, and the sum of the excesses, drawn or expected, whichever is more: `(2,)`.
    """
    n = len(excess)
    points = 30 + int(math.sqrt(n))
    grid = torch.arange(1, points + 1, dtype=excess.dtype, device=excess.device)
    quarter = excess[int(n / 4 + 0.5) - 1]
    b = (1 - (points / (grid - 0.5)).sqrt()) / (3 * quarter) + 1 / excess[-1]
    k = torch.log1p(-b[:, None] * excess).mean(1)
    likelihood = n * ((-b / k).log() - k - 1)
    weight = likelihood.softmax(0)
    weight = torch.where(weight >= 10 * torch.finfo(weight.dtype).eps, weight, 0.0)
    b_mean = (b * weight).sum() / weight.sum()
    shape = torch.log1p(-b_mean * excess).mean()
    k = (n * shape + 10 * 0.5) / (n + 10)  # a weak prior around 0.5 steadies short tails
    above = 1 - (torch.arange(1, n + 1).to(excess) - 0.5) / n
    expected = -shape / b_mean * torch.expm1(-k * above.log()) / k  # quantiles, of scale -shape / b
    return torch.stack([k, torch.maximum(expected.sum(), excess.sum())])
