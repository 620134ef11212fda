"""MONAI: what is special of its two autoencoders."""

import warnings

import pytest
import torch
from adapter_cases import CASES
from adapter_images import images

import vae2aef

pytest.importorskip("monai")
with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    from monai.networks import nets


def build(**options: object) -> torch.nn.Module:
    return nets.VarAutoEncoder(
        spatial_dims=2, in_shape=(1, 8, 8), out_channels=1, latent_size=3, channels=(4, 8), strides=(1, 2), **options
    )


@pytest.mark.parametrize("sigmoid", [True, False])
def test_var_autoencoder_decodes_as_its_own_forward(sigmoid: bool) -> None:
    vae = build(use_sigmoid=sigmoid)
    aef = vae2aef.wrap(vae, example=images((1, 8, 8)))
    z = 3 * torch.randn(5, 3)
    expected = vae.decode_forward(z, use_sigmoid=sigmoid)
    assert torch.equal(aef.parts.decode(z).mean, expected)
    assert torch.equal(aef.decode(z), expected)
    assert ("sigmoid" in repr(aef)) is sigmoid


def test_var_autoencoder_encodes_without_its_eval_mode_shift() -> None:
    """In eval mode its `reparameterize` returns mu + std; the AEF's location is mu."""
    vae = build().eval()
    x = images((1, 8, 8))[:4]
    aef = vae2aef.wrap(vae, example=x)
    posterior = aef.parts.encode(x)
    mu, logvar = vae.encode_forward(x)
    assert torch.equal(posterior.loc, mu)
    torch.testing.assert_close(posterior.scale, (0.5 * logvar).exp())


def test_vqvae_is_refused() -> None:
    vae = nets.VQVAE(
        spatial_dims=2, in_channels=1, out_channels=1, channels=(4,), num_res_channels=(4,), num_res_layers=1,
        downsample_parameters=((2, 4, 1, 1),), upsample_parameters=((2, 4, 1, 1, 0),), num_embeddings=4,
        embedding_dim=4,
    )  # fmt: skip
    with pytest.raises(vae2aef.WrapError, match="latents are discrete"):
        vae2aef.wrap(vae, example=images((1, 8, 8)))


def test_a_subclass_is_known() -> None:
    case = next(case for case in CASES if case.name == "monai-AutoencoderKL-2d")

    class Own(nets.AutoencoderKL):
        pass

    vae = case.make()
    vae.__class__ = Own
    assert "second output std" in repr(vae2aef.wrap(vae, example=case.data()))
