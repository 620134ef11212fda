"""CompVis latent-diffusion: AutoencoderKL, whose `encode` returns the posterior itself. Also copies of the class."""

from typing import Any

from torch import Tensor

from vae2aef.adapters._common import QUANTISED, USE_GAUSSIAN, refusal
from vae2aef.parts import Decoded, Posterior, VAEParts, to_decoded, to_scale
from vae2aef.registry import register_adapter
from vae2aef.tensors import at_least_float32
from vae2aef.wrapping.trial import trial

CONVOLUTIONS = ("quant_conv", "post_quant_conv", "encode", "decode")


def is_copy(vae: Any) -> bool:
    """Whether an object is named and built like the AutoencoderKL of latent-diffusion, in whatever module."""
    named = any(cls.__name__ == "AutoencoderKL" for cls in type(vae).__mro__)
    return named and all(hasattr(vae, name) for name in CONVOLUTIONS)


class CompVisParts(VAEParts):
    """Encoder and decoder of such an autoencoder.

    Args:
        vae: the Lightning module; its `loss` with the discriminator stays unused.
    """

    def __init__(self, vae: Any) -> None:
        self.vae = vae
        name = type(vae).__name__
        self.taken = (
            f"encoder: {name}.encode(x), a diagonal Gaussian, its mean and std",
            f"decoder: {name}.decode(z), taken as the mean of the data",
        )
        self.assumed = (
            "data as the model takes it, usually in [-1, 1]: density and bits are those of this range",
            "its perceptual and adversarial losses are not used; scale_factor is to be fitted anew after training",
        )

    def encode(self, x: Tensor) -> Posterior:
        """See `VAEParts.encode`."""
        posterior = self.vae.encode(x)
        return Posterior(at_least_float32(posterior.mean), to_scale(posterior.std, "std"))

    def decode(self, z: Tensor) -> Decoded:
        """See `VAEParts.decode`."""
        return to_decoded(self.vae.decode(z))


@register_adapter("ldm.models.autoencoder.AutoencoderKL", matches=is_copy)
def adapt(vae: Any, x: Tensor, *cond: Any, **kwargs: Any) -> VAEParts | None:
    """Read the AutoencoderKL of latent-diffusion; one whose `encode` returns anything else is left to others."""
    with trial(x.device, vae):
        try:
            posterior = vae.encode(x, *cond, **kwargs)
        except Exception:  # a namesake, perhaps; the next adapter meets the error too
            return None
    if not all(isinstance(getattr(posterior, name, None), Tensor) for name in ("mean", "logvar", "std")):
        return None
    return CompVisParts(vae)


@register_adapter("ldm.models.autoencoder.VQModel", "taming.models.vqgan.VQModel")
def refuse_quantised(vae: Any, x: Tensor) -> VAEParts:
    """Say why vector-quantised autoencoders are not taken."""
    raise refusal(vae, QUANTISED, USE_GAUSSIAN)
