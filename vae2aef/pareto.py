"""Pareto k-hat of importance weights: how heavy their tail is (Vehtari et al., 2024).

A generalised Pareto distribution is fitted to the largest weights. At a shape k below 0.5 their variance is finite,
up to 0.7 a mean of a few hundred of them can be trusted, and above it neither the mean nor its error can.

References:
    Zhang, Stephens, *A new and efficient estimation method for the generalized Pareto distribution*, Technometrics
    2009.
    Vehtari, Simpson, Gelman, Yao, Gabry, *Pareto smoothed importance sampling*, JMLR 2024.
"""

import math

import torch
from torch import Tensor

FEWEST = 5
"""Weights in a tail that is fitted: none with 20 draws or fewer."""


def tail_length(draws: int) -> int:
    """Return how many of the largest weights are the tail: min(K / 5, 3 sqrt(K))."""
    return math.ceil(min(draws / 5, 3 * math.sqrt(draws)))


def pareto_k(largest: Tensor, draws: int) -> Tensor:
    """Estimate k, `(batch,)`.

    Args:
        largest: log weights in falling order, at least `tail_length(draws) + 1` of them (or all), `(n, batch)`.
        draws: K, how many weights there were.

    Returns:
        NaN where there are too few draws to tell, infinity where fewer than five weights stand out of the others.
    """
    length = tail_length(draws)
    if length < FEWEST or largest.shape[0] <= length:
        return torch.full_like(largest[0], math.nan) if largest.shape[0] else largest.new_zeros(0)
    logs = (largest[: length + 1] - largest[0]).double()
    cutoff = logs[-1].clamp(min=math.log(torch.finfo(torch.float64).tiny))
    over = torch.where(logs[:-1] > cutoff, logs[:-1].exp() - cutoff.exp(), torch.nan)
    values = []
    for one in over.T:
        one = one[~one.isnan()].flip(0)  # in rising order
        values.append(_shape(one) if len(one) >= FEWEST else logs.new_tensor(math.inf))
    k = torch.stack(values) if values else logs.new_zeros(0)
    # Equal weights, up to rounding, have no tail at all: the best there is.
    equal = logs[-1] > -1e-10
    return torch.where(equal, -math.inf, k).to(largest.dtype)


def _shape(excess: Tensor) -> Tensor:
    """Fit the shape of a generalised Pareto distribution to sorted excesses `(n,)`: a mean over a posterior grid."""
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
    return (n * shape + 10 * 0.5) / (n + 10)  # a weak prior around 0.5 steadies short tails
