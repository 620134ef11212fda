"""One case for each codebase: how to build a small VAE of it, and what its own code says of a batch.

`own` must use the codebase's own functions alone. A case that needs a library which is not installed is skipped.
"""

import importlib
import sys
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch
from torch import Tensor, nn
from torch import distributions as dist

sys.path.insert(0, str(Path(__file__).parent / "lookalikes"))


class Own(NamedTuple):
    """What the codebase computes for one batch and one draw of noise.

    `kl` is its own KL term, a mean over the batch, of one draw if `sampled`, otherwise exact.
    """

    z: Tensor
    reconstruction: Tensor
    kl: Tensor
    sampled: bool = False


class Case(NamedTuple):
    name: str
    build: Callable[[], nn.Module]
    own: Callable[..., Own]
    shape: tuple[int, ...]
    library: str | None = None
    symmetric: bool = False
    """Data in [-1, 1] rather than [0, 1]."""
    classes: int = 0
    posterior_flow: bool = False
    unused: tuple[str, ...] = ()
    """Names of parameters that have no part in any AEF, or in the default one."""

    def make(self) -> nn.Module:
        if self.library:
            pytest.importorskip(self.library)
        torch.manual_seed(0)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # third-party constructors and imports; none of ours run here
            return self.build()

    def data(self, batch: int = 4) -> Tensor:
        x = torch.rand(batch, *self.shape)
        return 2 * x - 1 if self.symmetric else x

    def conditions(self, batch: int = 4) -> dict[str, Tensor]:
        if not self.classes:
            return {}
        return {"labels": torch.eye(self.classes)[torch.arange(batch) % self.classes]}

    def example(self, batch: int = 4) -> Any:
        cond = self.conditions(batch)
        return (self.data(batch), cond) if cond else self.data(batch)


def exact_kl(loc: Tensor, std: Tensor) -> Tensor:
    return dist.kl_divergence(dist.Normal(loc, std), dist.Normal(0.0, 1.0)).flatten(1).sum(1).mean()


# ------------------------------------------------------------------ pythae


def pythae(model: str, config: str, sampled: bool = False, **options: Any) -> tuple[Callable, Callable]:
    def build() -> nn.Module:
        models = importlib.import_module("pythae.models")
        options_now = {"input_dim": (1, 8, 8), "latent_dim": 3, **options}
        return getattr(models, model)(getattr(models, config)(**options_now)).to(torch.get_default_dtype())

    def own(vae: Any, x: Tensor) -> Own:
        out = vae({"data": x}, epoch=100)
        return Own(out.z, out.recon_x, out.reg_loss, sampled)

    return build, own


# ------------------------------------------------------------------ PyTorch-VAE


def pytorch_vae(module: str, model: str) -> tuple[Callable, Callable]:
    def build() -> nn.Module:
        return getattr(importlib.import_module(f"models.{module}"), model)()

    def own(vae: Any, x: Tensor, **labels: Tensor) -> Own:
        state = torch.random.get_rng_state()
        results = vae(x, **labels)
        torch.random.set_rng_state(state)
        z = vae.reparameterize(results[2], results[3])
        loss = vae.loss_function(*results, M_N=0.5)
        one = results[0].reshape(x.shape)
        return Own(z.reshape(x.shape[0], -1), one, loss["KLD"].abs())  # its models differ in the sign they log

    return build, own


# ------------------------------------------------------------------ pytorch/examples


def example_vae() -> nn.Module:
    return importlib.import_module("vae_example").VAE()


def example_own(vae: Any, x: Tensor) -> Own:
    state = torch.random.get_rng_state()
    reconstruction, mu, logvar = vae(x)
    torch.random.set_rng_state(state)
    loss = importlib.import_module("vae_example").loss_function(reconstruction, x, mu, logvar)
    cross_entropy = nn.functional.binary_cross_entropy(reconstruction, x.view(-1, 784), reduction="sum")
    return Own(vae.reparameterize(mu, logvar), reconstruction, (loss - cross_entropy) / x.shape[0])


# ------------------------------------------------------------------ diffusers and CompVis


def autoencoder_kl() -> nn.Module:
    return importlib.import_module("diffusers").AutoencoderKL(
        in_channels=1, out_channels=1, block_out_channels=(8, 8), norm_num_groups=4, latent_channels=2,
        down_block_types=("DownEncoderBlock2D",) * 2, up_block_types=("UpDecoderBlock2D",) * 2,
    )  # fmt: skip


def oobleck() -> nn.Module:
    return importlib.import_module("diffusers").AutoencoderOobleck(
        encoder_hidden_size=8, downsampling_ratios=[2, 4], channel_multiples=[1, 2], decoder_channels=8,
        decoder_input_channels=4, audio_channels=1,
    )  # fmt: skip


def wan() -> nn.Module:
    return importlib.import_module("diffusers").AutoencoderKLWan(
        base_dim=4, z_dim=2, dim_mult=[1, 1], num_res_blocks=1, temperal_downsample=[False], scale_factor_spatial=2,
    )  # fmt: skip


def diffusers_own(vae: Any, x: Tensor) -> Own:
    state = torch.random.get_rng_state()
    reconstruction = vae(x, sample_posterior=True).sample
    torch.random.set_rng_state(state)
    posterior = vae.encode(x).latent_dist
    z = posterior.sample()
    # Its `kl` is written for images, and Oobleck's is twice the KL and averaged over time: use it where it is one.
    kl = posterior.kl().mean() if x.dim() == 4 else exact_kl(posterior.mean, posterior.std)
    return Own(z, reconstruction, kl)


def compvis() -> nn.Module:
    return importlib.import_module("ldm.models.autoencoder").AutoencoderKL()


def compvis_own(vae: Any, x: Tensor) -> Own:
    state = torch.random.get_rng_state()
    reconstruction, posterior = vae(x)
    torch.random.set_rng_state(state)
    return Own(posterior.sample(), reconstruction, posterior.kl().mean())


# ------------------------------------------------------------------ MONAI


def var_autoencoder(dims: int) -> Callable[[], nn.Module]:
    return lambda: importlib.import_module("monai.networks.nets").VarAutoEncoder(
        spatial_dims=dims, in_shape=(1, *(8,) * dims), out_channels=1, latent_size=3, channels=(4, 8), strides=(1, 2)
    )


def var_autoencoder_own(vae: Any, x: Tensor) -> Own:
    vae.train()  # in eval mode it adds the standard deviation itself, not noise
    reconstruction, mu, logvar, z = vae(x)
    return Own(z, reconstruction, exact_kl(mu, (0.5 * logvar).exp()))


def monai_kl(dims: int) -> Callable[[], nn.Module]:
    return lambda: importlib.import_module("monai.networks.nets").AutoencoderKL(
        spatial_dims=dims, in_channels=1, out_channels=1, channels=(4, 4), latent_channels=2,
        attention_levels=(False, False), num_res_blocks=1, norm_num_groups=4,
    )  # fmt: skip


def monai_kl_own(vae: Any, x: Tensor) -> Own:
    mu, sigma = vae.encode(x)
    # `sampling` draws in the order of sigma's memory, which may be channels last: the same noise needs one order.
    z = vae.sampling(mu.contiguous(), sigma.contiguous())
    return Own(z, vae.decode(z), exact_kl(mu, sigma))


# ------------------------------------------------------------------ torch.distributions


class DistributionVAE(nn.Module):
    """Encoder and decoder return distributions; the posterior is Normal, full-covariance, or transformed."""

    def __init__(self, kind: str) -> None:
        super().__init__()
        self.kind = kind
        self.trunk = nn.Sequential(nn.Flatten(), nn.Linear(64, 20), nn.Tanh(), nn.Linear(20, 3 + 3 + 9))
        self.out = nn.Sequential(nn.Linear(3, 20), nn.Tanh(), nn.Linear(20, 64))
        self.log_scale = nn.Parameter(torch.zeros(()))

    def encoder(self, x: Tensor) -> dist.Distribution:
        loc, raw, lower = self.trunk(x).split([3, 3, 9], dim=1)
        scale = nn.functional.softplus(raw)
        if self.kind == "full":
            return dist.MultivariateNormal(loc, scale_tril=lower.view(-1, 3, 3).tril(-1) + scale.diag_embed())
        if self.kind == "transformed":
            base = dist.Independent(dist.Normal(loc, scale), 1)
            bend = [dist.SigmoidTransform(), dist.AffineTransform(-1, 1 + lower[:, :3].exp(), event_dim=0)]
            return dist.TransformedDistribution(base, bend)
        return dist.Independent(dist.Normal(loc, scale), 1)

    def decoder(self, z: Tensor) -> dist.Distribution:
        mean = self.out(z).view(-1, 1, 8, 8)
        return dist.Independent(dist.Normal(mean, self.log_scale.exp().expand_as(mean)), 3)


def distribution_own(vae: DistributionVAE, x: Tensor) -> Own:
    q = vae.encoder(x)
    z = q.rsample()
    if vae.kind == "transformed":
        p = dist.Independent(dist.Normal(torch.zeros(3), torch.ones(3)), 1)
        return Own(z, vae.decoder(z).mean, (q.log_prob(z) - p.log_prob(z)).mean(), sampled=True)
    p = dist.MultivariateNormal(torch.zeros(3), torch.eye(3))
    q = q if vae.kind == "full" else dist.MultivariateNormal(q.base_dist.loc, scale_tril=q.base_dist.scale.diag_embed())
    return Own(z, vae.decoder(z).mean, dist.kl_divergence(q, p).mean())


def distributions(kind: str) -> tuple[Callable, Callable]:
    return lambda: DistributionVAE(kind), distribution_own


P = {"shape": (1, 8, 8), "library": "pythae"}
CASES = [
    Case("pytorch_examples", example_vae, example_own, (1, 28, 28)),
    Case("pythae-VAE", *pythae("VAE", "VAEConfig"), **P),
    Case("pythae-BetaVAE", *pythae("BetaVAE", "BetaVAEConfig", beta=4.0), **P),
    Case("pythae-VAMP", *pythae("VAMP", "VAMPConfig", sampled=True, number_components=5), **P),
    Case("pythae-IAF", *pythae("VAE_IAF", "VAE_IAF_Config", sampled=True), **P, posterior_flow=True),
    Case(
        "pythae-LinNF",
        *pythae("VAE_LinNF", "VAE_LinNF_Config", sampled=True, flows=["Planar", "Radial", "Planar"]),
        **P,
        posterior_flow=True,
    ),
    Case("pythae-IWAE", *pythae("IWAE", "IWAEConfig", sampled=True, number_samples=1), **P),
    Case("diffusers-AutoencoderKL", autoencoder_kl, diffusers_own, (1, 16, 16), "diffusers", symmetric=True),
    Case("diffusers-Oobleck", oobleck, diffusers_own, (1, 64), "diffusers", symmetric=True),
    Case("diffusers-Wan", wan, diffusers_own, (3, 1, 8, 8), "diffusers", symmetric=True),
    Case("compvis", compvis, compvis_own, (1, 16, 16), symmetric=True),
    Case("monai-VarAutoEncoder-2d", var_autoencoder(2), var_autoencoder_own, (1, 8, 8), "monai"),
    Case("monai-VarAutoEncoder-3d", var_autoencoder(3), var_autoencoder_own, (1, 8, 8, 8), "monai"),
    Case("monai-AutoencoderKL-2d", monai_kl(2), monai_kl_own, (1, 8, 8), "monai"),
    Case("monai-AutoencoderKL-3d", monai_kl(3), monai_kl_own, (1, 8, 8, 8), "monai"),
    Case("pytorch_vae-Vanilla", *pytorch_vae("vanilla_vae", "VanillaVAE"), (1, 16, 16), symmetric=True),
    Case("pytorch_vae-Beta", *pytorch_vae("beta_vae", "BetaVAE"), (1, 16, 16), symmetric=True),
    Case("pytorch_vae-Conditional", *pytorch_vae("cvae", "ConditionalVAE"), (1, 16, 16), symmetric=True, classes=3),
    Case("pytorch_vae-IWAE", *pytorch_vae("iwae", "IWAE"), (1, 16, 16), symmetric=True),
    Case("distributions-Normal", *distributions("normal"), (1, 8, 8), unused=("vae.log_scale",)),
    Case("distributions-MultivariateNormal", *distributions("full"), (1, 8, 8), unused=("vae.log_scale",)),
    Case(
        "distributions-Transformed",
        *distributions("transformed"),
        (1, 8, 8),
        unused=("vae.log_scale",),
        posterior_flow=True,
    ),
]
every_case = pytest.mark.parametrize("case", CASES, ids=[case.name for case in CASES])
