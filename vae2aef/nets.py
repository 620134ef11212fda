"""The name of 0.1 for `vae2aef.comparison.nets`."""

import warnings

from vae2aef.comparison.nets import MLPVAE, ConvVAE

warnings.warn("vae2aef.nets is now vae2aef.comparison.nets", DeprecationWarning, stacklevel=2)

__all__ = ["MLPVAE", "ConvVAE"]
