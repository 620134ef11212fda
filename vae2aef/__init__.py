"""Train an existing VAE as an AutoEncoder within Flows (AEF), and compare the two honestly.

`wrap(vae, example=x)` returns a module whose forward is the loss. Silvestri, Roos, Ambrogioni, *Deterministic
training of generative autoencoders using invertible layers*, ICLR 2023.
"""

import importlib
import importlib.util
from typing import TYPE_CHECKING, Any

__version__ = "0.2.0"

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
    from vae2aef.aef import AEF as AEF
    from vae2aef.certificate import Certificate as Certificate
    from vae2aef.comparing import compare as compare
    from vae2aef.diagnostics import check as check
    from vae2aef.errors import NonFiniteError as NonFiniteError
    from vae2aef.errors import WrapError as WrapError
    from vae2aef.errors import WrapWarning as WrapWarning
    from vae2aef.estimator import AEFEstimator as AEFEstimator
    from vae2aef.evidence import EstimateWarning as EstimateWarning
    from vae2aef.flows import AffineCoupling as AffineCoupling
    from vae2aef.flows import Bijection as Bijection
    from vae2aef.flows import Chain as Chain
    from vae2aef.flows import Inverse as Inverse
    from vae2aef.hub import AEFHub as AEFHub
    from vae2aef.likelihood import Likelihood as Likelihood
    from vae2aef.marginal import LogProb as LogProb
    from vae2aef.marginal import Proposal as Proposal
    from vae2aef.masked import MaskedAutoregressive as MaskedAutoregressive
    from vae2aef.parts import Decoded as Decoded
    from vae2aef.parts import Posterior as Posterior
    from vae2aef.parts import VAEParts as VAEParts
    from vae2aef.preprocess import Dequantize as Dequantize
    from vae2aef.preprocess import Logit as Logit
    from vae2aef.preprocess import Standardize as Standardize
    from vae2aef.preprocess import bits_per_dim as bits_per_dim
    from vae2aef.preprocess import dequantize as dequantize
    from vae2aef.priors import FlowPrior as FlowPrior
    from vae2aef.priors import StandardNormal as StandardNormal
    from vae2aef.program import Gaussian as Gaussian
    from vae2aef.program import VAEProgram as VAEProgram
    from vae2aef.registry import register_adapter as register_adapter
    from vae2aef.residual import Residual as Residual
    from vae2aef.svi import AEF_ELBO as AEF_ELBO
    from vae2aef.svi import aef_guide as aef_guide
    from vae2aef.svi import from_pyro as from_pyro
    from vae2aef.terms import LossTerms as LossTerms
    from vae2aef.wrapping.as_vae import as_vae as as_vae
    from vae2aef.wrapping.load import load as load
    from vae2aef.wrapping.optimizer_warning import watch_optimizers as watch_optimizers
    from vae2aef.wrapping.score import log_prob as log_prob
    from vae2aef.wrapping.wrap import wrap as wrap

PLACES = {
    "AEF": "vae2aef.aef",
    "AEFEstimator": "vae2aef.estimator",
    "AEFHub": "vae2aef.hub",
    "AEF_ELBO": "vae2aef.svi",
    "AffineCoupling": "vae2aef.flows",
    "Bijection": "vae2aef.flows",
    "Certificate": "vae2aef.certificate",
    "Chain": "vae2aef.flows",
    "Decoded": "vae2aef.parts",
    "Dequantize": "vae2aef.preprocess",
    "EstimateWarning": "vae2aef.evidence",
    "FlowPrior": "vae2aef.priors",
    "Gaussian": "vae2aef.program",
    "Inverse": "vae2aef.flows",
    "Likelihood": "vae2aef.likelihood",
    "LogProb": "vae2aef.marginal",
    "Logit": "vae2aef.preprocess",
    "LossTerms": "vae2aef.terms",
    "MaskedAutoregressive": "vae2aef.masked",
    "NonFiniteError": "vae2aef.errors",
    "Posterior": "vae2aef.parts",
    "Proposal": "vae2aef.marginal",
    "Residual": "vae2aef.residual",
    "StandardNormal": "vae2aef.priors",
    "Standardize": "vae2aef.preprocess",
    "VAEParts": "vae2aef.parts",
    "VAEProgram": "vae2aef.program",
    "WrapError": "vae2aef.errors",
    "WrapWarning": "vae2aef.errors",
    "aef_guide": "vae2aef.svi",
    "as_vae": "vae2aef.wrapping.as_vae",
    "bits_per_dim": "vae2aef.preprocess",
    "check": "vae2aef.diagnostics",
    "compare": "vae2aef.comparing",
    "dequantize": "vae2aef.preprocess",
    "from_pyro": "vae2aef.svi",
    "load": "vae2aef.wrapping.load",
    "log_prob": "vae2aef.wrapping.score",
    "register_adapter": "vae2aef.registry",
    "watch_optimizers": "vae2aef.wrapping.optimizer_warning",
    "wrap": "vae2aef.wrapping",
}
"""Where each name is. Nothing is loaded before it is asked for: torch takes seconds, and a command says so first."""


if not TYPE_CHECKING:  # a type checker would take any name for one of these

    def __getattr__(name: str) -> Any:
        """Load a name of `PLACES`, or a module of the package."""
        if name in PLACES:
            globals()[name] = found = getattr(importlib.import_module(PLACES[name]), name)
            return found
        if name.isidentifier() and not name.startswith("_") and importlib.util.find_spec(f"{__name__}.{name}"):
            return importlib.import_module(f"{__name__}.{name}")
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *PLACES})
