"""MONAI: VarAutoEncoder and AutoencoderKL, in any number of dimensions."""

from typing import Any

from torch import Tensor

from vae2aef.adapters._common import QUANTISED, USE_GAUSSIAN, refusal
from vae2aef.parts import CallableParts, Decoded, VAEParts, to_decoded
from vae2aef.registry import register_adapter


class VarAutoEncoderParts(CallableParts):
    """VarAutoEncoder: `encode` and `decode` are inner networks; the parts are `encode_forward`, `decode_forward`.

    Args:
        vae: the MONAI network.
    """

    def __init__(self, vae: Any) -> None:
        super().__init__(vae.encode_forward, vae.decode_forward, "log_var")
        self.vae = vae
        end = "sigmoid" if vae.use_sigmoid else "no activation"
        self.taken = (
            "encoder: VarAutoEncoder.encode_forward, second output log_var",
            f"decoder: VarAutoEncoder.decode_forward with {end}, taken as the mean of the data",
        )

    def decode(self, z: Tensor) -> Decoded:
        """See `VAEParts.decode`."""
        return to_decoded(self.vae.decode_forward(z, self.vae.use_sigmoid))


@register_adapter("monai.networks.nets.varautoencoder.VarAutoEncoder")
def adapt_var_autoencoder(vae: Any, x: Tensor) -> VAEParts:
    """Read VarAutoEncoder."""
    return VarAutoEncoderParts(vae)


@register_adapter(
    "monai.networks.nets.autoencoderkl.AutoencoderKL",
    "generative.networks.nets.autoencoderkl.AutoencoderKL",  # MONAI Generative Models, since merged into MONAI
)
def adapt_autoencoder_kl(vae: Any, x: Tensor) -> VAEParts:
    """Read AutoencoderKL, whose `encode` returns a mean and a standard deviation."""
    parts = CallableParts(vae.encode, vae.decode, "std")
    parts.taken = (
        "encoder: AutoencoderKL.encode, second output std",
        "decoder: AutoencoderKL.decode, taken as the mean of the data",
    )
    parts.assumed = ("scale_factor of a latent diffusion model is to be fitted anew after training",)
    return parts


@register_adapter("monai.networks.nets.vqvae.VQVAE", "generative.networks.nets.vqvae.VQVAE")
def refuse_quantised(vae: Any, x: Tensor) -> VAEParts:
    """Say why VQVAE is not taken."""
    raise refusal(vae, QUANTISED, USE_GAUSSIAN)
