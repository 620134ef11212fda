"""A torch distribution as a prior: its tensors are buffers and parameters, and it is rebuilt at each call."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributions import Distribution

from vae2aef.errors import WrapError
from vae2aef.interop.densities import density, draw
from vae2aef.interop.distribution_state import distribution_state
from vae2aef.modes import own_random_state
from vae2aef.tensors import at_least_float32, numel, sum_event


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
        self.state = distribution_state(distribution)
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
                f"the distribution {type(distribution).__name__} cannot be rebuilt from its attributes; ",
                "pass a module with log_prob(z) and sample(n) that makes it",
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
