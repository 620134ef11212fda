"""diffusers: AutoencoderKL and every other autoencoder whose `encode` returns a diagonal Gaussian `latent_dist`."""

import inspect
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from vae2aef.adapters._common import GIVE_SCALE, NO_POSTERIOR, QUANTISED, USE_GAUSSIAN, refusal
from vae2aef.parts import Decoded, Posterior, VAEParts, to_decoded, to_scale
from vae2aef.registry import register_adapter
from vae2aef.tensors import at_least_float32
from vae2aef.wrapping.trial import trial


class DiffusersParts(VAEParts):
    """Encoder and decoder of a diffusers autoencoder.

    Conditions by name go to whichever of `encode` and `decode` takes them (such as `num_frames`).

    Args:
        vae: the diffusers model.
    """

    def __init__(self, vae: Any) -> None:
        self.vae = vae
        name = type(vae).__name__
        self.taken = (
            f"encoder: {name}.encode(x).latent_dist, its mean and std",
            f"decoder: {name}.decode(z).sample, taken as the mean of the data",
        )
        self.assumed = (
            "data as the model takes it, usually in [-1, 1]: density and bits are those of this range",
            "scaling_factor is not applied: encode and decode do not use it. Fit it anew after training",
        )

    def encode(self, x: Tensor, **kwargs: Any) -> Posterior:
        """See `VAEParts.encode`."""
        posterior = self.vae.encode(x, **accepted(self.vae.encode, kwargs)).latent_dist
        return Posterior(at_least_float32(posterior.mean), to_scale(posterior.std, "std"))

    def decode(self, z: Tensor, **kwargs: Any) -> Decoded:
        """See `VAEParts.decode`."""
        return to_decoded(self.vae.decode(z, **accepted(self.vae.decode, kwargs)).sample)


def accepted(function: Callable[..., Any], kwargs: dict[str, Any]) -> dict[str, Any]:
    """Keep the arguments that a function takes by name."""
    if not kwargs:
        return kwargs
    # Up to 0.41, diffusers' hook for accelerate hides the method in its closure, under this name.
    outer = inspect.unwrap(getattr(function, "__func__", function))
    hidden = inspect.getclosurevars(outer).nonlocals.get("method") if inspect.isfunction(outer) else None
    known = inspect.signature(hidden or function).parameters
    return {name: value for name, value in kwargs.items() if name in known}


@register_adapter("diffusers.models.modeling_utils.ModelMixin")
def adapt(vae: Any, x: Tensor, **kwargs: Any) -> VAEParts | None:
    """Read a diffusers autoencoder, if it is one.

    Raises:
        WrapError: if its latent has no Gaussian posterior (vector-quantised and deterministic autoencoders).
    """
    if not callable(getattr(vae, "encode", None)) or not callable(getattr(vae, "decode", None)):
        raise refusal(vae, "it has no `encode` and `decode`", "Wrap the autoencoder, such as pipeline.vae")
    if vae.dtype in (torch.float16, torch.bfloat16) and not torch.is_autocast_enabled(x.device.type):
        raise refusal(
            vae,
            f"its weights are in {vae.dtype}, and densities need the digits of float32",
            "Load it with torch_dtype=torch.float32 (or vae.float()), and train under torch.autocast for speed",
        )
    with trial(x.device, vae):
        out = vae.encode(x, **accepted(vae.encode, kwargs))
    posterior = getattr(out, "latent_dist", None)
    if posterior is None:
        raise refusal(vae, f"`encode` returns {type(out).__name__} without latent_dist: {NO_POSTERIOR}", GIVE_SCALE)
    if not all(isinstance(getattr(posterior, name, None), Tensor) for name in ("mean", "std")):
        raise refusal(vae, f"its latent_dist is a {type(posterior).__name__} without mean and std", USE_GAUSSIAN)
    return DiffusersParts(vae)


@register_adapter("diffusers.models.autoencoders.vq_model.VQModel")
def refuse_quantised(vae: Any, x: Tensor, **kwargs: Any) -> VAEParts:
    """Say why VQModel is not taken."""
    raise refusal(vae, QUANTISED, USE_GAUSSIAN)


@register_adapter("diffusers.models.autoencoders.consistency_decoder_vae.ConsistencyDecoderVAE")
def refuse_random_decoder(vae: Any, x: Tensor, **kwargs: Any) -> VAEParts:
    """Say why a decoder that draws noise is not taken."""
    raise refusal(
        vae,
        "its decoder is a diffusion model that draws noise, and an AEF needs a mean f(z)",
        "Wrap the AutoencoderKL that it was made from",
    )
