"""Transforms and distributions of torch, Pyro, zuko and nflows as parts of an AEF.

- `core_flow=` takes a transform (torch, Pyro), a lazy transform (zuko), a transform (nflows), or a flow of the last
  two. It is applied in its own forward direction: u = T(w).
- `prior=` takes a torch distribution, a flow of zuko or nflows, or a transform, which then acts on the standard
  normal in the direction of its library: torch and Pyro map noise to z, zuko and nflows z to noise.
- A posterior flow is `Posterior(loc, scale, transform=posterior_flow(T))`: z = T(loc + scale u).
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from vae2aef.errors import WrapError
from vae2aef.flows import Bijection, Inverse
from vae2aef.interop.distributions import DistributionPrior
from vae2aef.interop.transforms import TorchTransform, library_class, outside_bijection
from vae2aef.priors import FlowPrior
from vae2aef.tensors import numel

__all__ = ["DistributionPrior", "as_bijection", "as_prior", "posterior_flow"]


def as_bijection(transform: Any) -> Bijection:
    """Make a `vae2aef.Bijection` of a transform; its `forward` is the transform's own forward.

    Args:
        transform: a Bijection; a transform of torch.distributions or Pyro; a lazy transform or flow of zuko; a
            transform or flow of nflows. Learnable ones are kept, not copied.

    Raises:
        TypeError: for anything else, saying what is taken.
        WrapError: for a transform that is not bijective.
    """
    if isinstance(transform, Bijection):
        return transform
    bijection = outside_bijection(transform)
    if bijection is None:
        raise TypeError(
            f"expected the name of a flow, a vae2aef.Bijection, or a transform of torch, Pyro, zuko or nflows; got "
            f"{type(transform).__name__}. A flow of your own: derive it from vae2aef.Bijection, with `forward` and "
            "`inverse` that return (value, log_det)"
        )
    return bijection


def posterior_flow(transform: Any) -> Bijection:
    """Make a posterior flow z = T(loc + scale u) for `vae2aef.Posterior(transform=...)`; see `as_bijection`."""
    return as_bijection(transform)


def as_prior(prior: Any, latent_shape: Sequence[int]) -> nn.Module | None:
    """Make a prior of an object from another library.

    Args:
        prior: a torch distribution; a flow of zuko (not `flow()`, the flow itself) or nflows; a transform, which
            then acts on standard normal noise in the direction its library uses for densities.
        latent_shape: shape of one latent.

    Returns:
        A module with `log_prob` and `sample`; None if the object is of no known kind.

    Raises:
        WrapError: if it is known but cannot serve as a prior, saying why.
    """
    if library_class(prior, "zuko.distributions.NormalizingFlow"):
        raise WrapError(
            "this zuko distribution holds tensors computed when it was built, which would not follow training: ",
            "pass the lazy flow itself, prior=flow, not prior=flow()",
        )
    if isinstance(prior, torch.distributions.Distribution):
        return DistributionPrior(prior, latent_shape)
    if library_class(prior, "zuko.lazy.LazyDistribution"):
        return ZukoPrior(prior, latent_shape)
    if library_class(prior, "nflows.distributions.base.Distribution"):
        return NflowsPrior(prior, latent_shape)
    bijection = outside_bijection(prior)
    if bijection is None:
        return None
    # torch and Pyro build densities with a transform from noise to z; zuko and nflows with its inverse.
    return FlowPrior(Inverse(bijection) if isinstance(bijection, TorchTransform) else bijection, latent_shape)


class _FlatPrior(nn.Module):
    """A density of flat vectors `(batch, D)`, for latents of any shape."""

    flow: Any

    def __init__(self, flow: Any, latent_shape: Sequence[int]) -> None:
        super().__init__()
        self.flow = flow
        self.latent_shape = torch.Size(latent_shape)

    def log_prob(self, z: Tensor) -> Tensor:
        """Log density in nats: `z` of shape `(batch, *latent)` gives `(batch,)`."""
        return self._log_prob(z.reshape(z.shape[0], numel(self.latent_shape)))

    def sample(self, n: int) -> Tensor:
        """Draw `n` latents, shape `(n, *latent)`."""
        return self._sample(n).reshape(n, *self.latent_shape)

    def _log_prob(self, flat: Tensor) -> Tensor:
        raise NotImplementedError

    def _sample(self, n: int) -> Tensor:
        raise NotImplementedError


class ZukoPrior(_FlatPrior):
    """A lazy distribution of zuko, such as `zuko.flows.MAF(D)`, without context; built at each call."""

    def _log_prob(self, flat: Tensor) -> Tensor:
        return self.flow().log_prob(flat)

    def _sample(self, n: int) -> Tensor:
        return self.flow().sample((n,))


class NflowsPrior(_FlatPrior):
    """A flow or distribution of nflows over vectors, without context."""

    def _log_prob(self, flat: Tensor) -> Tensor:
        return self.flow.log_prob(flat)

    def _sample(self, n: int) -> Tensor:
        return self.flow.sample(n)
