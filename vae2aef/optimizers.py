"""The name of 0.1 for `vae2aef.wrapping.optimizer_warning`."""

import warnings

from vae2aef.wrapping.optimizer_warning import OptimizerWarning

warnings.warn("vae2aef.optimizers is now vae2aef.wrapping.optimizer_warning", DeprecationWarning, stacklevel=2)

__all__ = ["OptimizerWarning"]
