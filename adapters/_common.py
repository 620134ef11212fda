"""What adapters share: saying why a VAE cannot be taken."""

from typing import Any

from vae2aef.errors import WrapError


def refusal(vae: Any, reason: str, remedy: str) -> WrapError:
    """Return the error for a VAE that has no AEF: what it is, why, and what to do instead."""
    return WrapError(f"{type(vae).__module__}.{type(vae).__qualname__} cannot be wrapped: {reason}. {remedy}")


NO_POSTERIOR = "its encoder is deterministic: there is no posterior scale for z = g_m(x) + g_s(x) * u"
QUANTISED = "its latents are discrete (vector-quantised), and an AEF needs a continuous latent"
SEVERAL_LATENTS = "it has several latents, one conditioned on another, and this adapter reads one"
GIVE_SCALE = (
    "Give it one: vae2aef.wrap(vae, example=x, encoder=lambda x: (vae.encoder(x), log_scale.expand(...)), "
    'decoder=..., encoder_scale="log_std")'
)
USE_GAUSSIAN = "Use a model with a Gaussian posterior"
