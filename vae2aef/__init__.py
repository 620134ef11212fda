"""Train an existing VAE as an AutoEncoder within Flows (AEF), and compare the two honestly.

`wrap(vae, example=x)` returns a module whose forward is the loss. Silvestri, Roos, Ambrogioni, *Deterministic
training of generative autoencoders using invertible layers*, ICLR 2023.
"""

import importlib
from typing import TYPE_CHECKING, Any

from vae2aef.aef import AEF
from vae2aef.certificate import Certificate
from vae2aef.errors import NonFiniteError, WrapError, WrapWarning
from vae2aef.evidence import EstimateWarning
from vae2aef.flows import AffineCoupling, Bijection, Chain, Inverse
from vae2aef.likelihood import Likelihood
from vae2aef.marginal import LogProb, Proposal
from vae2aef.masked import MaskedAutoregressive
from vae2aef.parts import Decoded, Posterior, VAEParts
from vae2aef.preprocess import Dequantize, Logit, Standardize, bits_per_dim, dequantize
from vae2aef.priors import FlowPrior, StandardNormal
from vae2aef.program import Gaussian, VAEProgram
from vae2aef.registry import register_adapter
from vae2aef.residual import Residual
from vae2aef.terms import LossTerms
from vae2aef.wrapping import wrap

__version__ = "0.1.0"

__all__ = [
    "AEF",
    "AffineCoupling",
    "Bijection",
    "Certificate",
    "Chain",
    "Decoded",
    "Dequantize",
    "EstimateWarning",
    "FlowPrior",
    "Gaussian",
    "Inverse",
    "Likelihood",
    "LogProb",
    "Logit",
    "LossTerms",
    "MaskedAutoregressive",
    "NonFiniteError",
    "Posterior",
    "Proposal",
    "Residual",
    "StandardNormal",
    "Standardize",
    "VAEParts",
    "VAEProgram",
    "WrapError",
    "WrapWarning",
    "bits_per_dim",
    "dequantize",
    "register_adapter",
    "wrap",
]


if TYPE_CHECKING:
    from vae2aef.comparing import compare as compare
    from vae2aef.diagnostics import check as check
    from vae2aef.estimator import AEFEstimator as AEFEstimator
    from vae2aef.hub import AEFHub as AEFHub
    from vae2aef.svi import AEF_ELBO as AEF_ELBO
    from vae2aef.svi import aef_guide as aef_guide
    from vae2aef.svi import from_pyro as from_pyro
    from vae2aef.wrapping.as_vae import as_vae as as_vae
    from vae2aef.wrapping.load import load as load
    from vae2aef.wrapping.optimizer_warning import watch_optimizers as watch_optimizers
    from vae2aef.wrapping.score import log_prob as log_prob

LATE = {
    "AEF_ELBO": "vae2aef.svi",
    "AEFEstimator": "vae2aef.estimator",
    "AEFHub": "vae2aef.hub",
    "aef_guide": "vae2aef.svi",
    "as_vae": "vae2aef.wrapping.as_vae",
    "check": "vae2aef.diagnostics",
    "compare": "vae2aef.comparing",
    "from_pyro": "vae2aef.svi",
    "load": "vae2aef.wrapping.load",
    "log_prob": "vae2aef.wrapping.score",
    "watch_optimizers": "vae2aef.wrapping.optimizer_warning",
}
"""What needs Pyro or another package, or is seldom needed: loaded when it is asked for. Else torch alone is."""


if not TYPE_CHECKING:  # a type checker would take any name for one of these

    def __getattr__(name: str) -> Any:
        """Load a name of `LATE`."""
        if name in LATE:
            return getattr(importlib.import_module(LATE[name]), name)
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted([*globals(), *LATE])
