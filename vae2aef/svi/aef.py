"""Where 0.1 had `PyroAEF`: an `AEF` does all that it did; every use of it warns."""

from vae2aef.renamed import warns

__getattr__ = warns(__name__, "vae2aef.aef", {"PyroAEF": "AEF"})
