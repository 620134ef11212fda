"""The density of a torch distribution, and draws from it at a temperature: compounds taken apart."""

from typing import Any

import torch
from torch import Tensor
from torch.distributions import (
    Cauchy,
    Gumbel,
    Independent,
    Laplace,
    LowRankMultivariateNormal,
    MultivariateNormal,
    Normal,
    StudentT,
    TransformedDistribution,
)

from vae2aef.interop.torch_transforms import apply

LOCATION_SCALE = (Normal, Laplace, StudentT, Cauchy, Gumbel, MultivariateNormal, LowRankMultivariateNormal)


def density(distribution: Any, value: Tensor) -> Tensor:
    """Return `distribution.log_prob(value)` in nats, transforms in one pass and past their caches.

    Args:
        distribution: any.
        value: shape `(*sample, *batch, *event)`.

    Returns:
        Shape `(*sample, *batch)`.
    """
    if isinstance(distribution, Independent):
        return _sum_last(density(distribution.base_dist, value), distribution.reinterpreted_batch_ndims)
    if not is_transformed(distribution):
        return distribution.log_prob(value)
    event_dim, total = len(distribution.event_shape), torch.zeros((), dtype=value.dtype, device=value.device)
    for transform in reversed(distribution.transforms):
        value, log_det = apply(transform, value, inverse=True)
        event_dim += transform.domain.event_dim - transform.codomain.event_dim
        total = total + _sum_last(log_det, event_dim - transform.domain.event_dim)
    base = density(distribution.base_dist, value)
    return total + _sum_last(base, event_dim - len(distribution.base_dist.event_shape))


def draw(distribution: Any, shape: torch.Size, temperature: float = 1.0) -> Tensor:
    """Draw samples, with the scale multiplied by `temperature`; see `DistributionPrior.sample`."""
    if temperature == 1.0:
        return _sample(distribution, shape)
    if isinstance(distribution, Independent):
        return draw(distribution.base_dist, shape, temperature)
    if is_transformed(distribution):
        value = draw(distribution.base_dist, shape, temperature)
        for transform in distribution.transforms:
            value = apply(transform, value)[0]
        return value.detach()
    if isinstance(distribution, LOCATION_SCALE):
        location: Any = distribution.loc
        return location + temperature * (distribution.sample(shape) - location)
    raise ValueError(
        f"temperature={temperature:g} scales a location-scale distribution, and {type(distribution).__name__} is "
        "none: sample with temperature=1"
    )


def _sample(distribution: Any, shape: torch.Size) -> Tensor:
    """Sample; some of Pyro's distributions, such as `ZukoToPyro`, only draw when they are called."""
    try:
        return distribution.sample(shape)
    except NotImplementedError:
        if not callable(distribution):
            raise
        with torch.no_grad():
            return distribution(shape)


def is_transformed(distribution: Any) -> bool:
    """Whether it is a TransformedDistribution as such, and not a named family derived from it."""
    return isinstance(distribution, TransformedDistribution) and not type(distribution).arg_constraints


def _sum_last(values: Tensor, dims: int) -> Tensor:
    return values.flatten(values.dim() - dims).sum(-1) if dims > 0 else values
