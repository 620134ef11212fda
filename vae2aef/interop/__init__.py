"""Transforms and distributions of torch, Pyro, zuko and nflows as parts of an AEF."""

from vae2aef.interop.convert import as_bijection, as_prior, posterior_flow
from vae2aef.interop.distributions import DistributionPrior

__all__ = ["DistributionPrior", "as_bijection", "as_prior", "posterior_flow"]
