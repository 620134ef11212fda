"""On linear-Gaussian models the marginal, the bound and the partition likelihood are known (DESIGN 6.3)."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from strategies import seeds
from torch import Tensor
from torch.distributions import MultivariateNormal, Normal
from zoo_core import LinearGaussianVAE

import vae2aef
from vae2aef.marginal import Proposal

pytestmark = pytest.mark.usefixtures("float64")

SCALE = 0.6
sizes = st.tuples(st.integers(1, 5), st.integers(1, 3))


def make(n: int = 4, d: int = 2, orthogonal: bool = False, **options) -> tuple[vae2aef.AEF, LinearGaussianVAE, Tensor]:
    vae = LinearGaussianVAE(n, d, orthogonal)
    x = 1.5 * torch.randn(6, n)
    options = {"residual": SCALE, "core_flow": "none", "encoder_scale": "std", "noise": 0.0, **options}
    return vae2aef.wrap(vae, example=x, **options), vae, x


def many_like(x: Tensor) -> Tensor:
    """Rows enough to tune a proposal on."""
    return x.repeat(11, 1)


def with_noise(aef: vae2aef.AEF, noise: Tensor) -> None:
    """Let the core be perturbed by sigma times the given noise, `(batch, D)`."""
    aef.core.perturb = lambda core: core + aef.noise * noise


def known_elbo(aef: vae2aef.AEF, vae: LinearGaussianVAE, x: Tensor) -> Tensor:
    """E_q[log p0 + log r] + H(q) for q(z | x) = N(g_m + g_s h, (sigma g_s)^2), `(batch,)`, by hand."""
    loc, scale = vae.encoder(x)
    mean, std = loc + scale * aef.core(x)[0], aef.noise * scale
    prior = -0.5 * (mean.square() + std.square() + math.log(2 * math.pi)).sum(1)
    spread = (std.square() @ vae.a.square().t()) / SCALE**2
    delta = (x - vae.decoder(mean)) / SCALE
    residual = -0.5 * (delta.square() + spread + math.log(2 * math.pi) + 2 * math.log(SCALE)).sum(1)
    return prior + residual + Normal(mean, std).entropy().sum(1)


def expected_loss(aef: vae2aef.AEF, x: Tensor) -> Tensor:
    """The exact mean of the loss over its noise: it is quadratic in it, so 2 D symmetric points are enough."""
    d = aef.latent_shape[0]
    points = math.sqrt(d) * torch.cat([torch.eye(d), -torch.eye(d)])
    rows = []
    for row in x:
        with_noise(aef, points)
        rows.append(aef(row.expand(2 * d, -1)))
    return torch.stack(rows)


@given(sizes, st.floats(0.05, 2.0), st.sampled_from(["linear", "noise"]), seeds)
def test_the_loss_with_noise_is_the_negative_elbo(size, sigma, core, seed):
    torch.manual_seed(seed)
    aef, vae, x = make(*size, core=core)
    if core == "linear":
        aef.noise = sigma
    losses = expected_loss(aef, x)
    torch.testing.assert_close(-losses, known_elbo(aef, vae, x))
    assert (losses > -vae.log_marginal(x, SCALE)).all()


@pytest.mark.parametrize("sigma", [0.1, 1.0])
def test_the_bound_is_tight_at_the_exact_posterior(sigma):
    """With q(z | x) = p(z | x) the bound is -log p(x); sigma g_s is what counts, not either alone."""
    aef, vae, x = make(orthogonal=True, core="linear", noise=sigma)
    vae.use_exact_posterior(SCALE)
    with torch.no_grad():
        vae.std.div_(sigma)
        aef.core.features.linear.weight.zero_()
        aef.core.features.linear.bias.zero_()
    torch.testing.assert_close(-expected_loss(aef, x), vae.log_marginal(x, SCALE))


def test_the_noise_that_is_drawn_is_standard_normal():
    """The mean of the loss over real draws is the known bound."""
    aef, vae, x = make(noise=0.7)
    x = x[:1]
    terms = aef(x.expand(40_000, -1), terms=True)
    samples = terms.prior + terms.residual + terms.log_det + terms.entropy
    error = samples.std() / 200
    assert abs(samples.mean() - known_elbo(aef, vae, x)[0]) < 4 * error
    loc, scale = vae.encoder(x)
    noise = ((terms.z - loc) / scale - aef.core(x)[0]) / 0.7
    torch.testing.assert_close(noise.T.cov(), torch.eye(2), rtol=0, atol=0.03)
    assert noise.mean(0).abs().max() < 0.02
    assert abs(noise.pow(4).mean() - 3) < 0.15


@pytest.mark.parametrize(("core", "sigma"), [("linear", 0.0), ("linear", 0.5), ("noise", 1.0)])
def test_the_marginal_is_the_known_one(core, sigma):
    """For any encoder, features, noise, and flow: they only place the samples."""
    aef, vae, x = make(core=core, noise=sigma, core_flow="coupling")
    vae.centre_on_posterior(SCALE)
    got = aef.log_prob(x, num_samples=4000, proposal=aef.tune_proposal(many_like(x)))
    assert not got.exact
    z = (got.value - vae.log_marginal(x, SCALE)) / got.std_error
    assert z.abs().max() < 4
    assert got.std_error.max() < 0.2


def test_the_tuned_proposal_finds_the_posterior():
    """Its shape is the posterior's, correlations included: without a core flow it fits exactly."""
    torch.manual_seed(1)
    aef, vae, x = make(n=4, d=3)
    vae.centre_on_posterior(SCALE)
    torch.nn.init.zeros_(aef.core.features.linear.weight)
    torch.nn.init.zeros_(aef.core.features.linear.bias)
    got = aef.log_prob(x, num_samples=100, proposal=aef.tune_proposal(many_like(x)))
    assert got.effective_sample_size.min() > 85
    torch.testing.assert_close(got.value, vae.log_marginal(x, SCALE), rtol=0, atol=0.1)


def test_the_standard_error_is_honest():
    """Over many repetitions (value - truth) / std_error has a spread of one, and p(x) is unbiased."""
    aef, vae, x = make(n=3, d=2)
    x = x[:1].expand(2000, -1)
    truth = vae.log_marginal(x[:1], SCALE)
    # A proposal wider than the posterior: the weights are bounded, but far from equal.
    tuned = aef.tune_proposal(x[:8])
    proposal = Proposal(tuned.log_scale + 0.8, tuned.lower)
    got = aef.log_prob(x, num_samples=200, proposal=proposal)
    assert got.effective_sample_size.mean() < 120
    z = (got.value - truth) / got.std_error
    assert abs(z.mean()) < 0.15
    assert 0.9 < z.std() < 1.12
    ratio = (got.value - truth).exp()
    assert abs(ratio.mean() - 1) < 4 * ratio.std() / math.sqrt(len(x))
    assert ratio.std() / math.sqrt(len(x)) < 0.006


@pytest.mark.parametrize("num_samples", [1, 2, 5])
def test_the_estimate_of_p_is_unbiased_for_small_k(num_samples):
    """The mean of exp(value) is p(x) for every K: no log K is missing, and none is too many."""
    aef, vae, x = make(n=3, d=2)
    x = x[:1].expand(20_000, -1)
    proposal = aef.tune_proposal(x[:8])
    got = aef.log_prob(x, num_samples=num_samples, proposal=Proposal(proposal.log_scale + 0.3, proposal.lower))
    ratio = (got.value - vae.log_marginal(x[:1], SCALE)).exp()
    error = ratio.std() / math.sqrt(len(x))
    assert abs(ratio.mean() - 1) < 4 * error
    assert error < 0.02
    assert bool(got.std_error.isinf().all())  # so few samples say nothing of their error


def test_preprocessing_is_counted_in_every_density():
    """y = (x - m) / s: the density of x is that of y minus log s for each value."""
    shift, scale = torch.tensor([1.0, -2.0, 0.5]), torch.tensor([0.3, 2.0, 5.0])
    aef, vae, _ = make(n=3, d=2, preprocess=vae2aef.Standardize(shift, scale), core="noise")
    x = shift + scale * torch.randn(5, 3)
    known = MultivariateNormal(
        shift + scale * vae.b, scale[:, None] * vae.covariance(SCALE) * scale
    ).log_prob(x).detach()  # fmt: skip
    got = aef.log_prob(x, num_samples=4000)
    assert ((got.value - known) / got.std_error).abs().max() < 4
    torch.testing.assert_close(-expected_loss(aef, x), known_elbo(aef, vae, (x - shift) / scale) - scale.log().sum())


def test_decoder_scale_and_other_families_integrate_to_the_marginal():
    """One latent: the marginal by a fine grid over z, for Laplace and Student-t residuals."""
    for family in ("laplace", "student_t"):
        residual = vae2aef.Residual((3,), 0.5, family)
        aef, vae, x = make(n=3, d=1, residual=residual, core_flow="maf")
        vae.centre_on_posterior(0.8)
        grid = torch.linspace(-12, 12, 20_001)[:, None]
        log_joint = residual.log_prob(x[:, None] - vae.decoder(grid)).sum(2) + Normal(0.0, 1.0).log_prob(grid)[:, 0]
        known = (log_joint.logsumexp(1) + math.log(24 / 20_000)).detach()
        got = aef.log_prob(x, num_samples=4000)
        assert ((got.value - known) / got.std_error).abs().max() < 4
        assert got.std_error.max() < 0.2


@given(st.integers(1, 5), st.integers(1, 3), seeds)
def test_the_partition_likelihood_is_the_known_gaussian(n, d, seed):
    """Affine encoder and decoder: x is an affine map of (z, delta), so it is normal; the loss is exact."""
    torch.manual_seed(seed)
    d = min(n, d)
    aef, vae, x = make(n, d, core="random")
    core = aef.core.mask
    shell = ~core
    # core = (z - W x_shell - c) / std, shell = (A z + b)_shell + delta, linear in (z, delta).
    noise = torch.cat([torch.eye(d), torch.zeros(d, n - d)], 1), torch.cat([torch.zeros(n - d, d), torch.eye(n - d)], 1)
    to_shell = vae.a[shell] @ noise[0] + SCALE * noise[1]
    to_core = (noise[0] - vae.w[:, shell] @ to_shell) / vae.std[:, None]
    matrix, mean = torch.zeros(n, n), torch.zeros(n)
    matrix[shell], matrix[core] = to_shell, to_core
    mean[shell] = vae.b[shell]
    mean[core] = (-vae.c - vae.w[:, shell] @ vae.b[shell]) / vae.std
    unit = torch.linalg.solve(matrix, (x - mean).T)
    known = -0.5 * (unit.square() + math.log(2 * math.pi)).sum(0) - torch.linalg.slogdet(matrix)[1]
    torch.testing.assert_close(aef.expanded_log_prob(x), known, rtol=1e-8, atol=1e-8)
    torch.testing.assert_close(aef(x), -known.mean(), rtol=1e-8, atol=1e-8)
    got = aef.log_prob(x)
    torch.testing.assert_close(got.value, known.detach(), rtol=1e-8, atol=1e-8)
    assert got.exact and not got.std_error.any() and got.effective_sample_size.isinf().all()


@pytest.mark.parametrize("core", ["center", "linear"])
def test_samples_follow_the_model(core):
    """Mean and covariance of residual samples are those of the linear-Gaussian density."""
    aef, vae, _ = make(n=3, d=1, core=core)
    x = aef.sample(100_000, residual=True)
    if core == "linear":
        torch.testing.assert_close(x.mean(0), vae.b.detach(), rtol=0, atol=0.05)
        torch.testing.assert_close(x.T.cov(), vae.covariance(SCALE).detach(), rtol=0.03, atol=0.05)
    else:
        # E_p[q / p] = 1 for a narrower normal q: the sampler and the exact density agree.
        q = MultivariateNormal(x.mean(0), 0.5 * x.T.cov())
        ratio = (q.log_prob(x) - aef.expanded_log_prob(x)).exp().detach()
        error = ratio.std() / math.sqrt(len(x))
        assert abs(ratio.mean() - 1) < 4 * error < 0.05
