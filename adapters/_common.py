"""What adapters share: saying why a VAE cannot be taken, Gaussians given by a log variance, and grey levels."""

from typing import Any

import torch
from torch import Tensor

from vae2aef.errors import WrapError
from vae2aef.parts import Posterior, to_scale
from vae2aef.program import Gaussian
from vae2aef.tensors import at_least_float32


def refusal(vae: Any, reason: str, remedy: str) -> WrapError:
    """Return the error for a VAE that has no AEF: what it is, why, and what to do instead."""
    return WrapError(f"{type(vae).__module__}.{type(vae).__qualname__} cannot be wrapped: {reason}. ", remedy)


NO_POSTERIOR = "its encoder is deterministic: there is no posterior scale for z = g_m(x) + g_s(x) * u"
QUANTISED = "its latents are discrete (vector-quantised), and an AEF needs a continuous latent"
GIVE_SCALE = (
    "Give it one: vae2aef.wrap(vae, example=x, encoder=lambda x: (vae.encoder(x), log_scale.expand(...)), "
    'decoder=..., encoder_scale="log_std")'
)
USE_GAUSSIAN = "Use a model with a Gaussian posterior"


def posterior(loc: Tensor, log_var: Tensor) -> Posterior:
    """Return N(loc, exp(log_var)) of one latent, its scale floored; shapes `(batch, *latent)`."""
    return Posterior(at_least_float32(loc), to_scale(log_var, "log_var"))


def prior(loc: Tensor, log_var: Tensor) -> Gaussian:
    """Return N(loc, exp(log_var)), row by row, its scale floored; shapes `(batch, *latent)`."""
    return Gaussian(at_least_float32(loc), to_scale(log_var, "log_var"))


def standard_normal(rows: int, shape: tuple[int, ...], like: Tensor) -> Gaussian:
    """Return N(0, 1) on latents of a shape, where `like` is and as precise."""
    zeros = at_least_float32(like.new_zeros(rows, *shape))
    return Gaussian(zeros, torch.ones_like(zeros))


def on_grid(x: Tensor, levels: int) -> Tensor:
    """Which values are multiples of 1 / levels in [0, 1], up to rounding."""
    return ((x * levels - (x * levels).round()).abs() < 1e-3) & (x >= 0) & (x <= 1)
