"""CompVis latent-diffusion: what is special of it. The class is a stand-in of ours (see lookalikes/README.md)."""

import importlib
import math

import pytest
import torch
from adapter_cases import CASES
from adapter_images import images
from torch import Tensor, nn

import vae2aef

CASE = next(case for case in CASES if case.name == "compvis")


def test_a_copy_in_another_module_is_known() -> None:
    original = importlib.import_module("ldm.models.autoencoder").AutoencoderKL
    copy = type(
        "AutoencoderKL", (nn.Module,), {**vars(original), "__module__": "my.fork", "__qualname__": "AutoencoderKL"}
    )
    copy.__init__ = lambda self: nn.Module.__init__(self)
    vae = copy()
    vae.__dict__.update(CASE.make().__dict__)
    aef = vae2aef.wrap(vae, example=images(CASE.shape, 4, symmetric=True))
    assert "a diagonal Gaussian" in repr(aef)


def test_a_namesake_with_other_outputs_is_left_to_others() -> None:
    class AutoencoderKL(nn.Module):
        quant_conv = post_quant_conv = None

        def encode(self, x: Tensor) -> tuple[Tensor, Tensor]:
            return x[:, :2], x[:, 2:4]

        def decode(self, z: Tensor) -> Tensor:
            return torch.cat([z, z], dim=1)

    aef = vae2aef.wrap(AutoencoderKL(), example=torch.rand(3, 4), encoder_scale="log_var")
    assert "as you said" in repr(aef)


def test_clamped_log_variance_keeps_its_floor() -> None:
    vae = CASE.make()
    x = images(CASE.shape, 4, symmetric=True)
    aef = vae2aef.wrap(vae, example=x)
    with torch.no_grad():
        vae.quant_conv.bias[2:] = -100.0
        scale = aef.parts.encode(x).scale
    assert scale.max().item() == pytest.approx(1e-6)  # exp(-15) = 3e-7 is below the floor of every encoder's scale
    assert math.isfinite(aef(x).item())


def test_vq_model_is_refused() -> None:
    vae = importlib.import_module("ldm.models.autoencoder").VQModel()
    with pytest.raises(vae2aef.WrapError, match="latents are discrete"):
        vae2aef.wrap(vae, example=images(CASE.shape, 4, symmetric=True))
