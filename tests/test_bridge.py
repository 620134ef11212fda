"""core="noise" is the VAE: term by term equal to its own negative ELBO for the same noise (DESIGN 6.5)."""

import copy
import math
from typing import NamedTuple

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st
from strategies import EVENTS, LATENTS, seeds
from torch import Tensor
from torch.distributions import Independent, Normal
from zoo_core import ExampleVAE, FlowPosteriorVAE, LinearGaussianVAE, SmallVAE, shake

import vae2aef
from vae2aef.tensors import numel

pytestmark = pytest.mark.usefixtures("float64")


def record(aef: vae2aef.AEF) -> list[Tensor]:
    """The noise that the core variables are drawn with, in order."""
    seen: list[Tensor] = []
    perturb = aef.core.perturb

    def remember(core: Tensor) -> Tensor:
        w = perturb(core)
        seen.append((w - core) / aef.noise)
        return w

    aef.core.perturb = remember
    return seen


def close(got: Tensor, expected: Tensor) -> None:
    torch.testing.assert_close(got, expected, rtol=1e-10, atol=1e-10)


def check_terms(aef: vae2aef.AEF, x: Tensor, loc: Tensor, scale: Tensor, decode) -> None:
    """Compare with a VAE of that posterior, standard normal prior and Gaussian decoder, by torch.distributions."""
    aef.kl = "sampled"
    seen = record(aef)
    terms = aef(x, terms=True)
    epsilon = seen[0]
    z = loc + scale * epsilon
    batch, d = x.shape[0], numel(aef.latent_shape)
    mean = decode(z).reshape(x.shape)
    std = aef.residual.scale().expand(x.shape)
    prior = Normal(0.0, 1.0).log_prob(z).reshape(batch, d).sum(1)
    likelihood = Normal(mean, std).log_prob(x).reshape(batch, numel(x.shape[1:])).sum(1)
    entropy = Normal(loc, scale).entropy().reshape(batch, d).sum(1)
    close(terms.z, z)
    close(terms.reconstruction, mean)
    close(terms.prior, prior)
    close(terms.residual, likelihood)
    close(terms.log_det + terms.entropy, entropy)
    close(terms.loss, -(prior + likelihood + entropy).sum() / max(batch, 1))
    # The entropy constant stands for the mean of -log q of the noise itself.
    single = terms.log_det + 0.5 * (epsilon.square() + math.log(2 * math.pi)).reshape(batch, d).sum(1)
    close(single, -Normal(loc, scale).log_prob(z).reshape(batch, d).sum(1))


@given(st.sampled_from(EVENTS), st.sampled_from(LATENTS), st.integers(0, 3), seeds)
def test_noise_core_is_the_vae(event, latent, batch, seed):
    torch.manual_seed(seed)
    vae = SmallVAE(event, latent)
    aef = vae2aef.wrap(vae, example=torch.randn(2, *event), encoder_scale="log_std", core="noise", core_flow="none")
    shake(aef)
    x = torch.randn(batch, *event)
    loc, log_std = vae.encoder(x)
    check_terms(aef, x, loc, log_std.exp(), vae.decoder)


@pytest.mark.parametrize("kind", ["std", "log_std", "var", "log_var"])
def test_every_meaning_of_the_second_output(kind):
    """A swapped log variance and standard deviation would fail here."""
    vae = ExampleVAE(treats_as=kind)
    x = torch.rand(4, 12)
    second = {"std": F.softplus, "var": F.softplus}.get(kind, lambda t: t)
    encode = vae.encode
    vae.encode = lambda x: (encode(x)[0], second(encode(x)[1]))
    aef = vae2aef.wrap(vae, example=x, core="noise", core_flow="none")
    loc, raw = vae.encode(x)
    torch.manual_seed(4)
    z = vae.reparameterize(torch.zeros_like(loc), raw)
    torch.manual_seed(4)
    check_terms(aef, x, loc, z / torch.randn_like(loc), vae.decode)


def test_h_zero_and_sigma_one_start_a_pretrained_vae():
    """The linear core with zero output and sigma = 1 is the VAE too, whatever the noise goes down to later."""
    vae, x = SmallVAE((5,), (2,)), torch.randn(4, 5)
    aef = vae2aef.wrap(vae, example=x, encoder_scale="log_std", core_flow="none", noise=1.0)
    torch.nn.init.zeros_(aef.core.features.linear.weight)
    torch.nn.init.zeros_(aef.core.features.linear.bias)
    loc, log_std = vae.encoder(x)
    check_terms(aef, x, loc, log_std.exp(), vae.decoder)
    aef.noise = 0.0
    close(aef(x, terms=True).z, loc)


@pytest.mark.parametrize("kind", ["analytic", "sampled"])
def test_gradients_are_the_vaes(kind):
    """Of every parameter of the VAE, for the same noise: the textbook's loss with either KL."""
    vae, x = SmallVAE((5,), (2,)), torch.randn(4, 5)
    own = copy.deepcopy(vae)
    aef = vae2aef.wrap(vae, example=x, encoder_scale="log_std", core="noise", core_flow="none", residual=1.0, kl=kind)
    torch.manual_seed(2)
    aef(x).backward()
    torch.manual_seed(2)
    loc, log_std = own.encoder(x)
    z = loc + log_std.exp() * torch.randn_like(loc)
    kl = 0.5 * (loc.square() + (2 * log_std).exp() - 1).sum(1) - log_std.sum(1)
    likelihood = Independent(Normal(own.decoder(z), 1.0), 1).log_prob(x)
    prior = Independent(Normal(torch.zeros_like(z), 1.0), 1).log_prob(z)
    rate = kl if kind == "analytic" else -(prior + log_std.sum(1))
    (rate - likelihood).mean().backward()
    for (name, got), expected in zip(vae.named_parameters(), own.parameters(), strict=True):
        torch.testing.assert_close(got.grad, expected.grad, msg=name)


def test_the_mean_over_draws_is_the_elbo_with_the_analytic_kl():
    vae, x = LinearGaussianVAE(4, 2), torch.randn(3, 4)
    aef = vae2aef.wrap(vae, example=x, encoder_scale="std", core="noise", core_flow="none", residual=1.0)
    with torch.no_grad():
        losses = torch.stack([aef(x) for _ in range(3000)])
        loc, scale = vae.encoder(x)
        kl = torch.distributions.kl_divergence(Normal(loc, scale), Normal(0.0, 1.0)).sum(1)
        z = loc + scale * torch.randn(20_000, *loc.shape)
        likelihood = Normal(vae.decoder(z), 1.0).log_prob(x).sum(2)
        elbo = likelihood.mean(0) - kl
    error = (losses.var() / 3000 + likelihood.var(0).mean() / 3 / 20_000).sqrt()
    assert abs(losses.mean() + elbo.mean()) < 4 * error < 0.5


def test_a_posterior_flow_is_a_flow_posterior():
    """z = T(loc + scale e): the loss is the negative ELBO of a VAE with a normalizing-flow posterior."""
    vae, x = FlowPosteriorVAE((2, 3), (2,)), torch.randn(3, 2, 3)
    aef = vae2aef.wrap(vae, example=x, core="noise", core_flow="none", residual=1.0)
    shake(aef)
    seen = record(aef)
    terms = aef(x, terms=True)
    loc, log_std = vae.encoder(x)
    z0 = loc + log_std.exp() * seen[0]
    z, log_det = vae.flow(z0)
    close(terms.z, z)
    close(terms.log_det + terms.entropy, Normal(loc, log_std.exp()).entropy().sum(1) + log_det)
    close(terms.residual, Normal(vae.decoder(z), 1.0).log_prob(x).flatten(1).sum(1))


@pytest.mark.parametrize("noise", [0.3, 1.0])
def test_the_analytic_kl_is_that_of_torch(noise):
    """By default log p0(z) is averaged over the noise: what remains is log p(x | z) at one draw, as VAEs have it."""
    vae, x = SmallVAE((5,), (2,)), torch.randn(4, 5)
    aef = vae2aef.wrap(vae, example=x, encoder_scale="log_std", core_flow="none", noise=noise)
    shake(aef)
    torch.manual_seed(0)
    terms = aef(x, terms=True)
    loc, log_std = vae.encoder(x)
    posterior = Normal(loc + log_std.exp() * aef.core.features(x), noise * log_std.exp())
    kl = torch.distributions.kl_divergence(posterior, Normal(0.0, 1.0)).sum(1)
    close(terms.prior + terms.log_det + terms.entropy, -kl)
    close(terms.loss, (kl - terms.residual).mean())
    aef.kl = "sampled"
    torch.manual_seed(0)
    sampled = aef(x, terms=True)
    close(sampled.z, terms.z)
    close(sampled.residual, terms.residual)
    close(sampled.prior, Normal(0.0, 1.0).log_prob(terms.z).sum(1))


def test_the_analytic_kl_takes_noise_out_of_the_gradients():
    vae, x = SmallVAE((5,), (2,)), torch.randn(4, 5)
    aef = vae2aef.wrap(vae, example=x, encoder_scale="log_std", core="noise", core_flow="none")
    spread = {}
    for kl in ("analytic", "sampled"):
        aef.kl = kl
        prior = [aef(x, terms=True).prior.detach() for _ in range(20)]
        spread[kl] = float(torch.stack(prior).std(0).max())
    assert spread["analytic"] < 1e-12 < 0.1 < spread["sampled"]


@pytest.mark.parametrize(
    "option", [{"core_flow": "coupling"}, {"prior": "coupling"}, {"noise": 0.0}, {"core": "center"}]
)
def test_where_nothing_is_gaussian_the_kl_is_sampled(option):
    """A core flow, a flow prior, no noise: log p0 at the z that was drawn."""
    options = {"core": "linear", "core_flow": "none", "noise": 0.0 if "core" in option else 0.5} | option
    vae, x = SmallVAE((5,), (2,)), torch.randn(4, 5)
    aef = vae2aef.wrap(vae, example=x, encoder_scale="log_std", **options)
    shake(aef)
    losses = []
    for kl in ("analytic", "sampled"):
        aef.kl = kl
        torch.manual_seed(0)
        losses.append(aef(x))
    assert torch.equal(*losses)
    with pytest.raises(ValueError, match='kl "analytic" or "sampled", got "exact"'.replace('"exact"', "'exact'")):
        vae2aef.wrap(vae, example=x, encoder_scale="log_std", kl="exact")


class LaplaceNoise(NamedTuple):
    """A posterior of another family: u is drawn from the Laplace density."""

    loc: Tensor
    scale: Tensor
    transform = mask = None
    free = True

    @property
    def standard(self) -> torch.distributions.Distribution:
        return torch.distributions.Laplace(torch.zeros_like(self.loc), torch.ones_like(self.loc))

    def push(self, u: Tensor) -> tuple[Tensor, Tensor]:
        return self.loc + self.scale * u, self.scale.log().sum(1)


class LaplaceParts(vae2aef.VAEParts):
    def __init__(self, vae: SmallVAE) -> None:
        self.vae = vae

    def encode(self, x: Tensor) -> LaplaceNoise:
        loc, log_std = self.vae.encoder(x)
        return LaplaceNoise(loc, log_std.exp())

    def decode(self, z: Tensor) -> vae2aef.Decoded:
        return vae2aef.Decoded(self.vae.decoder(z))


def test_a_posterior_that_is_not_gaussian_keeps_its_kl_sampled():
    vae, x = SmallVAE((5,), (2,)), torch.randn(4, 5)
    aef = vae2aef.wrap(vae, example=x, encoder_scale="log_std", core="noise", core_flow="none")
    aef.parts = LaplaceParts(vae)
    terms = aef(x, terms=True)
    close(terms.prior, Normal(0.0, 1.0).log_prob(terms.z).sum(1))


def test_only_the_loss_averages_over_the_noise():
    """The density in the expanded space is that of h(x) itself, whatever sigma is."""
    vae, x = SmallVAE((5,), (2,)), torch.randn(4, 5)
    aef = vae2aef.wrap(vae, example=x, encoder_scale="log_std", core_flow="none", noise=0.5)
    before = aef.expanded_log_prob(x)
    aef.noise = 0.0
    close(aef.expanded_log_prob(x), before)


class Laplace(vae2aef.StandardNormal):
    """Another density under the same roof."""

    def log_prob(self, z: Tensor) -> Tensor:
        return torch.distributions.Laplace(0.0, 1.0).log_prob(z).sum(1)


def test_a_prior_of_ones_own_does_not_inherit_an_expectation():
    vae, x = SmallVAE((5,), (2,)), torch.randn(4, 5)
    options = {"encoder_scale": "log_std", "core": "noise", "core_flow": "none"}
    aef = vae2aef.wrap(vae, example=x, prior=Laplace((2,)), **options)
    terms = aef(x, terms=True)
    close(terms.prior, aef.prior.log_prob(terms.z))


def test_a_posterior_flow_keeps_its_kl_sampled():
    vae, x = FlowPosteriorVAE((5,), (2,)), torch.randn(4, 5)
    aef = vae2aef.wrap(vae, example=x, core="noise", core_flow="none")
    terms = aef(x, terms=True)
    close(terms.prior, Normal(0.0, 1.0).log_prob(terms.z).sum(1))
