"""The name of 0.1 for `vae2aef.wrapping.optimizer_warning`; every use of it warns."""

from vae2aef.renamed import warns

__getattr__ = warns(__name__, "vae2aef.wrapping.optimizer_warning")
