"""A torch distribution as a prior: its tensors are buffers and parameters, and it is rebuilt at each call."""

import inspect
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributions import (
    Cauchy,
    Distribution,
    Gumbel,
    Independent,
    Laplace,
    LowRankMultivariateNormal,
    MixtureSameFamily,
    MultivariateNormal,
    Normal,
    StudentT,
    TransformedDistribution,
)

from vae2aef.errors import WrapError
from vae2aef.interop.held import Held
from vae2aef.interop.transforms import TransformState, apply
from vae2aef.modes import own_random_state
from vae2aef.tensors import at_least_float32, numel, sum_event

LOCATION_SCALE = (Normal, Laplace, StudentT, Cauchy, Gumbel, MultivariateNormal, LowRankMultivariateNormal)


class DistributionPrior(nn.Module):
    """A `torch.distributions` object as the prior of an AEF.

    Its tensors become buffers, those that require gradients parameters, so that `.to()`, `state_dict`, optimizers,
    `deepcopy` and pickle work. The distribution is rebuilt from them at each call, without argument validation.

    Args:
        distribution: a density on the reals. Its batch shape and event shape together broadcast to the latent
            shape (so `Normal(0., 1.)` serves any latent), or its event is the flattened latent.
        latent_shape: shape of one latent.

    Raises:
        WrapError: if the distribution is discrete or bounded, does not fit the latent shape, was computed from
            parameters, or is of a kind that cannot be rebuilt; the message says what to pass.
    """

    def __init__(self, distribution: Distribution, latent_shape: Sequence[int]) -> None:
        super().__init__()
        self.latent_shape = torch.Size(latent_shape)
        _require_real(distribution)
        self._flat = _must_flatten(distribution, self.latent_shape)
        self.state = _state(distribution)
        self._check(distribution)

    def _check(self, distribution: Distribution) -> None:
        """Compare densities of the original and of the rebuilt distribution on a draw."""
        with torch.no_grad():
            device = next((t.device for t in self.state.state_dict().values()), torch.device("cpu"))
            with own_random_state(device):
                value = distribution.sample((4,))
            expected, got = distribution.log_prob(value), density(self.state.build(), value)
        if not torch.allclose(expected, got, rtol=1e-4, atol=1e-4, equal_nan=True):
            raise WrapError(
                f"the distribution {type(distribution).__name__} cannot be rebuilt from its attributes; pass a "
                "module with log_prob(z) and sample(n) that makes it"
            )

    def log_prob(self, z: Tensor) -> Tensor:
        """Log density in nats: `z` of shape `(batch, *latent)` gives `(batch,)`."""
        z = at_least_float32(z)
        if not z.shape[0]:  # torch's mixtures fail on an empty batch
            return z.new_zeros(0)
        distribution = self.state.build()
        if self._flat:
            z = z.flatten(1) if z.dim() > 1 else z.unsqueeze(1)
        return sum_event(density(distribution, z))

    def sample(self, n: int, temperature: float = 1.0) -> Tensor:
        """Draw `n` latents, shape `(n, *latent)`.

        Args:
            n: how many.
            temperature: factor on the scale, for location-scale families and transforms of them.

        Raises:
            ValueError: if `temperature` is not 1 and the family has no location and scale, as a mixture.
        """
        distribution = self.state.build()
        if not self._flat:
            kept = len(self.latent_shape) - len(distribution.event_shape)
            distribution = distribution.expand(self.latent_shape[:kept])
        return draw(distribution, torch.Size((n,)), temperature).reshape(n, *self.latent_shape)


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
        return distribution.sample(shape)
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


def is_transformed(distribution: Any) -> bool:
    """Whether it is a TransformedDistribution as such, and not a named family derived from it."""
    return isinstance(distribution, TransformedDistribution) and not type(distribution).arg_constraints


class _Family(Held):
    """A distribution with tensors as arguments: Normal, StudentT, MultivariateNormal, Categorical, ..."""

    def __init__(self, distribution: Distribution) -> None:
        super().__init__()
        self.kind = type(distribution)
        self.constants: dict[str, Any] = {}
        given = vars(distribution)
        for name, parameter in inspect.signature(self.kind.__init__).parameters.items():
            optional = parameter.default is not inspect.Parameter.empty
            if name in ("self", "validate_args") or (name not in given and optional):
                continue
            value = given.get(name, getattr(distribution, name, None))
            if value is None or parameter.kind in (parameter.VAR_POSITIONAL, parameter.VAR_KEYWORD):
                raise _unknown(distribution)
            # covariance, precision and scale_tril (probs and logits) say the same: one of them is taken
            if optional and parameter.default is None and any(n in self.shapes for n in _ALTERNATIVES.get(name, ())):
                continue
            if isinstance(value, Tensor):
                self.hold(name, value, self.kind.__name__)
            elif isinstance(value, (bool, int, float)):
                self.constants[name] = value
            else:
                raise _unknown(distribution)

    def build(self) -> Distribution:
        tensors = {name: self.held(name) for name in self.shapes}
        kind: Any = self.kind
        return kind(**tensors, **self.constants, validate_args=False)


_MATRICES = ("covariance_matrix", "precision_matrix", "scale_tril")
_ALTERNATIVES = {**dict.fromkeys(_MATRICES, _MATRICES), **dict.fromkeys(("probs", "logits"), ("probs", "logits"))}


class _Compound(nn.Module):
    """Independent, MixtureSameFamily and TransformedDistribution: made of distributions and transforms."""

    def __init__(self, distribution: Distribution) -> None:
        super().__init__()
        self.kind: type[Distribution] = type(distribution)
        self.dims = 0
        self.parts = nn.ModuleList()
        self.transforms = nn.ModuleList()
        if isinstance(distribution, Independent):
            self.parts.append(_state(distribution.base_dist))
            self.dims = distribution.reinterpreted_batch_ndims
        elif isinstance(distribution, MixtureSameFamily):
            self.parts.append(_state(distribution.mixture_distribution))
            self.parts.append(_state(distribution.component_distribution))
        elif isinstance(distribution, TransformedDistribution):
            self.parts.append(_state(distribution.base_dist))
            self.transforms.extend(TransformState(t) for t in distribution.transforms)

    def build(self) -> Distribution:
        kind: Any = self.kind
        arguments: list[Any] = [part.build() for part in self.parts]  # type: ignore[operator]
        if len(self.transforms):
            arguments.append([t.build() for t in self.transforms])  # type: ignore[operator]
        elif self.dims:
            arguments.append(self.dims)
        return kind(*arguments, validate_args=False)


def _state(distribution: Distribution) -> Any:
    if isinstance(distribution, (Independent, MixtureSameFamily)) or is_transformed(distribution):
        if isinstance(distribution, Independent) and not distribution.reinterpreted_batch_ndims:
            return _state(distribution.base_dist)
        return _Compound(distribution)
    return _Family(distribution)


def _require_real(distribution: Distribution) -> None:
    try:
        support: Any = distribution.support
    except NotImplementedError:
        return
    while hasattr(support, "base_constraint"):
        support = support.base_constraint
    real = torch.distributions.constraints.real
    if support is not None and support is not real and str(support) not in ("Real()", "RealVector()"):
        raise WrapError(
            f"a prior is a density on all real numbers, but {type(distribution).__name__} has the support {support}: "
            "latents outside of it would have no density"
        )


def _must_flatten(distribution: Distribution, latent: torch.Size) -> bool:
    batch, event = distribution.batch_shape, distribution.event_shape
    kept = len(latent) - len(event)
    if kept >= 0 and latent[kept:] == event and _broadcasts(batch, latent[:kept]):
        return False
    if not batch and event == (numel(latent),):
        return True
    raise WrapError(
        f"expected a prior over latents of shape {tuple(latent)}, got a {type(distribution).__name__} with batch shape "
        f"{tuple(batch)} and event shape {tuple(event)}: together they must broadcast to {tuple(latent)}, or the event "
        f"must be ({numel(latent)},)"
    )


def _broadcasts(shape: torch.Size, target: torch.Size) -> bool:
    try:
        return torch.broadcast_shapes(shape, target) == target
    except RuntimeError:
        return False


def _sum_last(values: Tensor, dims: int) -> Tensor:
    return values.flatten(values.dim() - dims).sum(-1) if dims > 0 else values


def _unknown(distribution: Distribution) -> WrapError:
    return WrapError(
        f"do not know how to rebuild a {type(distribution).__name__}; pass a module with log_prob(z) -> (batch,) and "
        "sample(n) that makes it"
    )
