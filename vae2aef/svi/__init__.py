"""Pyro: `AEF_ELBO` for `pyro.infer.SVI`, and `from_pyro`. Imports Pyro."""

from vae2aef.svi.convert import from_pyro
from vae2aef.svi.elbo import AEF_ELBO

__all__ = ["AEF_ELBO", "from_pyro"]
