"""Pyro: `aef_guide` for any of its losses, `AEF_ELBO` for `pyro.infer.SVI`, and `from_pyro`. Imports Pyro."""

from vae2aef.svi.convert import from_pyro
from vae2aef.svi.elbo import AEF_ELBO
from vae2aef.svi.guide import AEFGuide, aef_guide

__all__ = ["AEF_ELBO", "AEFGuide", "aef_guide", "from_pyro"]
