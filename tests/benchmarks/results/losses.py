"""The losses of the arms of the results page."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

import vae2aef
from vae2aef.batch import Batch

Loss = Callable[[vae2aef.AEF, Tensor], Tensor]


def loss_of(name: str, decoder_noise: float = 0.0) -> Loss:
    """Return the function that is minimised; the names are those of `arms.Arm`."""
    if name in ("decoder noise", "jacobian"):
        return functools.partial(smooth_decoder if name == "jacobian" else noisy_decoder, share=decoder_noise)
    return {
        "aef": plain,
        "weighted": plain,
        "iwae": iwae,
        "draws": several_draws,
        "textbook": textbook,
        "path": path_derivative,
    }[name]


def _parts(aef: vae2aef.AEF, x: Tensor) -> tuple[Tensor, Any, Tensor, Tensor]:
    """Eq. 9 at sigma = 0: y, the posterior, z, and log p0(z) with all log-determinants."""
    y, log_det = aef.to_latent_side(x)
    core, shell = aef.split(y)
    posterior = aef.parts.encode(shell)
    u, of_flow = aef.core_flow(core["z"])
    z, of_affine = posterior.push(u)
    assert isinstance(aef.prior, nn.Module)
    return shell, posterior, z, aef.prior.log_prob(z) + log_det + of_flow + of_affine


def noisy_decoder(aef: vae2aef.AEF, x: Tensor, share: float) -> Tensor:
    """Eq. 10, but the decoder sees z with noise of a share of the encoder's scale; prior and determinants do not."""
    y, posterior, z, density = _parts(aef, x)
    seen = z + share * posterior.scale * torch.randn_like(z)
    return -(density + aef.log_residual(y, aef.parts.decode(seen))).mean()


def smooth_decoder(aef: vae2aef.AEF, x: Tensor, share: float) -> Tensor:
    """Eq. 10 and 1/2 I |J v|^2, v of a share of the encoder's scale: the cost of such noise to first order.

    I is the information of r about its mean: 1/s^2 of a Gaussian, 1/(3 s^2) of a logistic. J v by a difference of two
    decodings; the scale of r is not trained by it.
    """
    y, posterior, z, density = _parts(aef, x)
    decoded = aef.parts.decode(z)
    moved = aef.parts.decode(z + share * posterior.scale * torch.randn_like(z)).mean - decoded.mean
    scale = (nn.functional.softplus(10 * aef.likelihood.raw_scale) + 1e-5).detach()
    penalty = 0.5 * (moved / scale).square().flatten(1).sum(1) / (3 if aef.likelihood.discrete else 1)
    return -(density + aef.log_residual(y, decoded) - penalty).mean()


def weighted(aef: vae2aef.AEF, x: Tensor, weight: Tensor) -> Tensor:
    """Eq. 10 with a weight on prior and log-determinants: how a beta-VAE warms up."""
    y, _, z, density = _parts(aef, x)
    return -(weight * density + aef.log_residual(y, aef.parts.decode(z))).mean()


def plain(aef: vae2aef.AEF, x: Tensor) -> Tensor:
    """The AEF's own loss, without its look at whether it is finite, which a captured graph cannot take."""
    joint = aef.log_joint(Batch(x, (), {}), aef.noisy)
    return -(joint.prior + joint.residual + joint.log_det + joint.entropy).mean()


def several_draws(aef: vae2aef.AEF, x: Tensor, draws: int = 4) -> Tensor:
    """The mean of the loss over several draws a datum."""
    return plain(aef, x.repeat_interleave(draws, 0))


def iwae(aef: vae2aef.AEF, x: Tensor, draws: int = 5) -> Tensor:
    """The bound of Burda et al. (2016): the log of the mean of importance weights."""
    sigma = aef.core.sigma

    def drawn(name: str, core: Tensor, posterior: Any) -> tuple[Tensor, Tensor]:
        epsilon = torch.randn_like(core)
        density = -0.5 * epsilon.square() - 0.5 * math.log(2 * math.pi) - sigma.log()
        return core + sigma * epsilon, -density.flatten(1).sum(1)

    joint = aef.log_joint(Batch(x.repeat_interleave(draws, 0), (), {}), drawn)
    weights = (joint.prior + joint.residual + joint.log_det + joint.entropy).reshape(len(x), draws)
    return -(weights.logsumexp(1) - math.log(draws)).mean()


def path_derivative(aef: vae2aef.AEF, x: Tensor) -> Tensor:
    """Sticking the landing (Roeder et al., 2017): the loss less the score of q(z | x), whose mean gradient is zero."""
    joint = aef.log_joint(Batch(x, (), {}), aef.noisy)
    loss = -(joint.prior + joint.residual + joint.log_det + joint.entropy).mean()
    y, _ = aef.to_latent_side(x)
    core, shell = aef.split(y)
    posterior = aef.parts.encode(shell)
    z = joint.z["z"].detach()
    w, log_det = aef.core_flow.inverse((z - posterior.loc) / posterior.scale)
    density = (-0.5 * ((w - core["z"]) / aef.core.sigma).square()).sum(1) + log_det - posterior.scale.log().sum(1)
    return loss - (density - density.detach()).mean()


def textbook(aef: vae2aef.AEF, x: Tensor) -> Tensor:
    """The ELBO as a textbook writes it, with the KL in closed form; of our code, only preprocessing and parameters."""
    y = aef.preprocess(x)[0]
    log_det = aef.preprocess(x)[1].mean() if y is not x else 0.0
    mean, log_var = aef.vae.encode(y)
    z = mean + (0.5 * log_var).exp() * torch.randn_like(mean)
    out = aef.vae.decode(z)
    kl = -0.5 * (1 + log_var - mean**2 - log_var.exp()).sum(1).mean()
    return kl - _written_out(aef.likelihood, y, out).flatten(1).sum(1).mean() - log_det


def _written_out(likelihood: nn.Module, x: Tensor, out: Tensor) -> Tensor:
    """Return log p(x | z) of each value."""
    if not hasattr(likelihood, "raw_scale"):
        return -nn.functional.binary_cross_entropy_with_logits(out, x, reduction="none")
    scale = nn.functional.softplus(10 * likelihood.raw_scale) + 1e-5
    if not likelihood.discrete:
        return -0.5 * ((x - out) / scale) ** 2 - scale.log() - 0.5 * math.log(2 * math.pi)
    step = 1 / (likelihood.bins - 1)
    upper, lower = (x - out + step / 2) / scale, (x - out - step / 2) / scale
    # sigmoid(a) - sigmoid(b) = sigmoid(a) sigmoid(-b) (1 - exp(b - a))
    inside = -nn.functional.softplus(-upper) - nn.functional.softplus(lower) + (-torch.expm1(lower - upper)).log()
    ends = torch.where(x > 1 - step / 2, -nn.functional.softplus(lower), inside)
    return torch.where(x < step / 2, -nn.functional.softplus(-upper), ends)
