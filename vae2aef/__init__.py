"""Train an existing VAE as an AutoEncoder within Flows (AEF), and compare the two honestly.

`wrap(vae, example=x)` returns a module whose forward is the loss. Silvestri, Roos, Ambrogioni, *Deterministic
training of generative autoencoders using invertible layers*, ICLR 2023.
"""

from typing import Any

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


def __getattr__(name: str) -> Any:
    """Load what needs Pyro, or is seldom needed, when it is asked for: `import vae2aef` imports only torch."""
    if name == "check":
        from vae2aef.diagnostics import check

        return check
    if name == "as_vae":
        from vae2aef.wrapping.as_vae import as_vae

        return as_vae
    if name == "log_prob":
        from vae2aef.wrapping.score import log_prob

        return log_prob
    if name == "AEF_ELBO":
        from vae2aef.svi import AEF_ELBO

        return AEF_ELBO
    if name == "aef_guide":
        from vae2aef.svi import aef_guide

        return aef_guide
    if name == "from_pyro":
        from vae2aef.svi import from_pyro

        return from_pyro
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted([*globals(), "AEF_ELBO", "aef_guide", "as_vae", "check", "from_pyro", "log_prob"])
