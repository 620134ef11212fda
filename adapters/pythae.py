"""pythae: VAE and the models derived from it, VAMP with its prior, IAF and LinNF with their posterior flow.

`PythaeModel`, from `vae2aef.adapters.pythae_model`, makes an AEF a pythae model again.
"""

import math
from typing import Any

import torch
from torch import Tensor, nn

from vae2aef.adapters._common import (
    GIVE_SCALE,
    NO_POSTERIOR,
    QUANTISED,
    USE_GAUSSIAN,
    refusal,
)
from vae2aef.adapters.pythae_model import PythaeModel
from vae2aef.parts import Decoded, Posterior, VAEParts, to_decoded, to_scale
from vae2aef.registry import register_adapter
from vae2aef.tensors import at_least_float32

__all__ = ["IAFParts", "LinNFParts", "PythaeModel", "PythaeParts", "VampPrior"]

DETERMINISTIC = (
    "ae.ae_model.AE",
    "rae_l2.rae_l2_model.RAE_L2",
    "rae_gp.rae_gp_model.RAE_GP",
    "wae_mmd.wae_mmd_model.WAE_MMD",
)
NOT_GAUSSIAN = {
    "svae.svae_model.SVAE": "its posterior is von Mises-Fisher, on a sphere",
    "pvae.pvae_model.PoincareVAE": "its latent space is the Poincare disk",
    "hvae.hvae_model.HVAE": "its posterior goes through Hamiltonian steps with random momenta",
    "rhvae.rhvae_model.RHVAE": "its posterior goes through Riemannian Hamiltonian steps with random momenta",
}


def _names(*models: str) -> tuple[str, ...]:
    return tuple(f"pythae.models.{model}" for model in models)


class PythaeParts(VAEParts):
    """Encoder and decoder of a pythae VAE.

    Args:
        vae: the pythae model.
    """

    def __init__(self, vae: Any) -> None:
        self.vae = vae
        name = type(vae).__name__
        self.taken = (
            f"encoder: {name}.encoder, second output log_covariance = log_var",
            f"decoder: {name}.decoder, its reconstruction taken as the mean of the data",
        )
        self.assumed = (f"the objective is the AEF's; that of {name}, with its weights and extra terms, is not used",)
        if getattr(vae.model_config, "reconstruction_loss", None) == "bce":
            self.likelihood = "bernoulli"

    def encode(self, x: Tensor) -> Posterior:
        """See `VAEParts.encode`."""
        out = self.vae.encoder(x)
        return Posterior(at_least_float32(out.embedding), to_scale(out.log_covariance, "log_var"))

    def decode(self, z: Tensor) -> Decoded:
        """See `VAEParts.decode`."""
        return to_decoded(self.vae.decoder(z)["reconstruction"])


class IAFParts(PythaeParts):
    """VAE_IAF: an inverse autoregressive flow after the affine map."""

    def encode(self, x: Tensor) -> Posterior:
        """See `VAEParts.encode`."""
        return super().encode(x)._replace(transform=self.flow)

    def flow(self, z: Tensor) -> tuple[Tensor, Tensor]:
        """Apply the posterior flow: `(batch, latent)` to the same and `(batch,)`."""
        out = self.vae.iaf_flow.inverse(z)
        return out.out, out.log_abs_det_jac


class LinNFParts(IAFParts):
    """VAE_LinNF: planar and radial flows after the affine map."""

    def flow(self, z: Tensor) -> tuple[Tensor, Tensor]:
        """Apply the posterior flows: `(batch, latent)` to the same and `(batch,)`."""
        log_det = z.new_zeros(z.shape[0])
        for layer in self.vae.net:
            out = layer(z)
            z, log_det = out.out, log_det + out.log_abs_det_jac
        return z, log_det


class VampPrior(nn.Module):
    """The mixture of the posteriors of learned pseudo-inputs, equally weighted (VAMP).

    Args:
        vae: pythae's VAMP model; its pseudo-inputs and encoder are used and stay its own.

    References:
        Tomczak, Welling, *VAE with a VampPrior*, AISTATS 2018.
    """

    def __init__(self, vae: Any) -> None:
        super().__init__()
        self._vae = (vae,)  # in a tuple: not a submodule of the prior, it is the VAE's

    def components(self) -> tuple[Tensor, Tensor]:
        """Return means and log variances of the components, `(components, latent)` each."""
        (vae,) = self._vae
        weight = vae.pseudo_inputs[0].weight
        one_hot = torch.eye(vae.number_components, dtype=weight.dtype, device=weight.device)
        inputs = vae.pseudo_inputs(one_hot).reshape(vae.number_components, *vae.model_config.input_dim)
        out = vae.encoder(inputs)
        return at_least_float32(out.embedding), at_least_float32(out.log_covariance)

    def log_prob(self, z: Tensor) -> Tensor:
        """Log density in nats: `z` of shape `(batch, latent)` gives `(batch,)`."""
        mean, log_var = self.components()
        squares = (z.unsqueeze(1) - mean).square() * (-log_var).exp()
        each = -0.5 * (squares + log_var + math.log(2 * math.pi)).sum(-1)
        return each.logsumexp(1) - math.log(mean.shape[0])

    def sample(self, n: int, temperature: float = 1.0) -> Tensor:
        """Draw `n` latents, shape `(n, latent)`; `temperature` scales the spread of each component."""
        mean, log_var = self.components()
        chosen = torch.randint(mean.shape[0], (n,), device=mean.device)
        return mean[chosen] + temperature * (0.5 * log_var[chosen]).exp() * torch.randn_like(mean[chosen])


@register_adapter(*_names("vae.vae_model.VAE"))
def adapt(vae: Any, x: Tensor) -> VAEParts:
    """Read a pythae VAE: BetaVAE, IWAE and the others derived from it."""
    if getattr(vae, "deterministic_posterior", 0):
        raise refusal(vae, f"with deterministic_posterior=True {NO_POSTERIOR}", GIVE_SCALE)
    return PythaeParts(vae)


@register_adapter(*_names("vamp.vamp_model.VAMP"))
def adapt_vamp(vae: Any, x: Tensor) -> VAEParts:
    """Read VAMP, with its prior."""
    parts = PythaeParts(vae)
    parts.prior = VampPrior(vae)
    return parts


@register_adapter(*_names("vae_iaf.vae_iaf_model.VAE_IAF"))
def adapt_iaf(vae: Any, x: Tensor) -> VAEParts:
    """Read VAE_IAF, with its posterior flow."""
    parts = IAFParts(vae)
    parts.taken += ("posterior flow: iaf_flow, after the affine map",)
    return parts


@register_adapter(*_names("vae_lin_nf.vae_lin_nf_model.VAE_LinNF"))
def adapt_lin_nf(vae: Any, x: Tensor) -> VAEParts:
    """Read VAE_LinNF, with its posterior flows."""
    parts = LinNFParts(vae)
    parts.taken += (f"posterior flow: {len(vae.net)} planar or radial layers, after the affine map",)
    return parts


@register_adapter(*_names(*DETERMINISTIC))
def refuse_deterministic(vae: Any, x: Tensor) -> VAEParts:
    """Say why an autoencoder without a posterior is not taken."""
    raise refusal(vae, NO_POSTERIOR, GIVE_SCALE)


@register_adapter(*_names("vq_vae.vq_vae_model.VQVAE"))
def refuse_quantised(vae: Any, x: Tensor) -> VAEParts:
    """Say why VQ-VAE is not taken."""
    raise refusal(vae, QUANTISED, USE_GAUSSIAN)


@register_adapter(*_names(*NOT_GAUSSIAN))
def refuse_other(vae: Any, x: Tensor) -> VAEParts:
    """Say why models whose posterior is not Gaussian are not taken."""
    reasons = {f"pythae.models.{name}": reason for name, reason in NOT_GAUSSIAN.items()}
    found = (reasons.get(f"{cls.__module__}.{cls.__qualname__}") for cls in type(vae).__mro__)
    raise refusal(vae, next(filter(None, found)), USE_GAUSSIAN)
