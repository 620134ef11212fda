"""The style of torch.distributions: full covariances, posterior transforms, decoders, and what is refused."""

import math
from collections.abc import Callable

import pytest
import torch
from adapter_cases import DistributionVAE
from torch import Tensor, nn
from torch import distributions as dist

import vae2aef
from vae2aef.adapters.torch_distributions import read_posterior

BATCH, LATENT = 3, 2


class Pair(nn.Module):
    def __init__(self, posterior: Callable, likelihood: Callable = lambda mean: mean) -> None:
        super().__init__()
        self.a, self.b = nn.Linear(6, 2 * LATENT), nn.Linear(LATENT, 6)
        self.posterior, self.likelihood = posterior, likelihood

    def encoder(self, x: Tensor) -> dist.Distribution:
        loc, raw = self.a(x).chunk(2, dim=1)
        return self.posterior(loc, nn.functional.softplus(raw))

    def decoder(self, z: Tensor) -> dist.Distribution:
        return self.likelihood(self.b(z))


def normal(loc: Tensor, scale: Tensor) -> dist.Distribution:
    return dist.Normal(loc, scale)


def lower(batch: int = BATCH) -> Tensor:
    return (
        torch.randn(batch, LATENT, LATENT, dtype=torch.float64).tril(-1)
        + torch.rand(batch, LATENT, dtype=torch.float64).add(0.5).diag_embed()
    )


LOC = torch.zeros(BATCH, LATENT, dtype=torch.float64)
POSTERIORS = {
    "Normal": lambda: dist.Normal(LOC, 1 + torch.rand_like(LOC)),
    "Independent": lambda: dist.Independent(dist.Normal(LOC + 1, 1 + torch.rand_like(LOC)), 1),
    "MultivariateNormal": lambda: dist.MultivariateNormal(LOC - 1, scale_tril=lower()),
    "LowRank": lambda: dist.LowRankMultivariateNormal(LOC, torch.randn(BATCH, LATENT, 1).double(), 1 + LOC),
    "Transformed": lambda: dist.TransformedDistribution(
        dist.Independent(dist.Normal(LOC, 1 + LOC), 1),
        [dist.TanhTransform(), dist.AffineTransform(LOC + 1, torch.rand_like(LOC) + 1)],
    ),
    "Transformed MultivariateNormal": lambda: dist.TransformedDistribution(
        dist.MultivariateNormal(LOC, scale_tril=lower()),
        [dist.AffineTransform(LOC, 2 + LOC, event_dim=1)],
    ),
    "LogNormal": lambda: dist.LogNormal(LOC, 1 + torch.rand_like(LOC)),
}


@pytest.mark.parametrize("name", POSTERIORS)
@pytest.mark.parametrize("draws", [1, 4])
def test_density_of_z_is_that_of_the_distribution(name: str, draws: int) -> None:
    """Push u through loc, scale, transform: log q(z) must be log N(u) minus the log-determinants."""
    q = POSTERIORS[name]()
    loc, scale, transform = read_posterior(q)
    u = torch.randn(draws, BATCH, LATENT, dtype=torch.float64)
    z = (loc + scale * u).reshape(-1, LATENT)
    log_det = scale.log().sum(1).repeat(draws)
    if transform is not None:
        z, more = transform(z)
        log_det = log_det + more
    log_q = q.log_prob(z.reshape(draws, BATCH, LATENT))
    log_q = log_q.sum(-1) if log_q.dim() == 3 else log_q
    expected = -0.5 * (u.square() + math.log(2 * math.pi)).sum(-1).reshape(-1) - log_det
    torch.testing.assert_close(log_q.reshape(-1), expected)


@pytest.mark.slow
def test_marginal_through_a_posterior_that_depends_on_the_datum() -> None:
    """Importance sampling repeats the batch; the covariance of each datum must stay with it."""
    vae = DistributionVAE("full").double()
    x = torch.rand(5, 1, 8, 8, dtype=torch.float64)
    aef = vae2aef.wrap(vae, example=x, noise=0.5).double().eval()
    together = aef.log_prob(x, num_samples=4000)
    alone = torch.cat([aef.log_prob(row, num_samples=4000).value for row in x.split(1)])
    error = 6 * together.std_error + 0.02
    assert ((together.value - alone).abs() < error).all(), (together, alone)


REFUSED = {
    "Laplace": (lambda loc, scale: dist.Laplace(loc, scale), r'encoder=lambda x: \(q\.loc, q\.scale\)'),
    "Categorical": (lambda loc, scale: dist.Categorical(logits=loc), "discrete or bounded latent"),
    "Gamma": (lambda loc, scale: dist.Gamma(scale, scale), "Gamma"),
    "HalfNormal": (lambda loc, scale: dist.HalfNormal(scale), "HalfNormal"),
    "shape": (lambda loc, scale: dist.LogisticNormal(loc, scale), "keep the shape"),
}  # fmt: skip


@pytest.mark.parametrize("name", REFUSED)
def test_refused_posteriors(name: str) -> None:
    posterior, reason = REFUSED[name]
    with pytest.raises(vae2aef.WrapError, match=reason):
        vae2aef.wrap(Pair(posterior), example=torch.rand(4, 6))


@pytest.mark.parametrize(
    "likelihood",
    [lambda m: dist.Bernoulli(logits=m), lambda m: dist.Independent(dist.Poisson(m.exp()), 1)],
    ids=["Bernoulli", "Poisson"],
)
def test_a_decoders_distribution_is_the_likelihood(likelihood: Callable) -> None:
    vae = Pair(normal, likelihood)
    x = torch.randint(0, 2, (4, 6)).float()
    aef = vae2aef.wrap(vae, example=x)
    assert aef.discrete and aef.likelihood is None
    terms = aef(x, terms=True)
    own = vae.decoder(terms.z)
    torch.testing.assert_close(terms.residual, own.log_prob(x).reshape(4, -1).sum(1))
    torch.testing.assert_close(terms.reconstruction, own.mean)
    assert set(aef.sample(5, residual=True).round().unique().tolist()) <= set(range(100))
    aef = vae2aef.wrap(vae, example=torch.rand(4, 6), decoder=lambda z: vae.decoder(z).mean)
    assert not aef.discrete and aef(torch.rand(4, 6)).isfinite()


@pytest.mark.parametrize(
    "likelihood",
    [lambda m: dist.Normal(m, 0.5), lambda m: dist.Independent(dist.Laplace(m, 2.0), 1),
     lambda m: dist.StudentT(3.0, m), lambda m: m, lambda m: (m, torch.full_like(m, 0.5))],
    ids=["Normal", "Laplace", "StudentT", "tensor", "pair"],
)  # fmt: skip
def test_decoders(likelihood: Callable) -> None:
    vae = Pair(normal, likelihood)
    aef = vae2aef.wrap(vae, example=torch.rand(4, 6))
    z = torch.randn(4, LATENT)
    torch.testing.assert_close(aef.decode(z), vae.b(z))


def test_the_decoders_own_scale() -> None:
    x = torch.rand(4, 6)
    aef = vae2aef.wrap(Pair(normal, lambda m: dist.Normal(m, 0.5)), example=x, residual="decoder", core_flow="none")
    terms = aef(x, terms=True)
    expected = dist.Normal(terms.reconstruction, 0.5).log_prob(x).sum(1)
    torch.testing.assert_close(terms.residual, expected)


def test_callables_of_the_user_may_return_distributions() -> None:
    vae = Pair(normal, lambda m: dist.Normal(m, 0.5))
    x = torch.rand(4, 6)
    aef = vae2aef.wrap(vae, example=x, encoder=lambda x: vae.encoder(x), decoder=lambda z: vae.decoder(z))
    torch.testing.assert_close(aef.parts.encode(x).scale, vae.encoder(x).scale)


def test_batch_statistics_stay_when_callables_close_over_the_vae() -> None:
    vae = Pair(normal)
    vae.a = nn.Sequential(nn.BatchNorm1d(6), vae.a)
    x = torch.rand(4, 6)
    vae2aef.wrap(vae, example=x, encoder=lambda x: vae.encoder(x), decoder=lambda z: vae.decoder(z))
    assert vae.a[0].num_batches_tracked == 0 and vae.training and vae.a[0].training


def test_an_own_prior_is_named_but_not_read() -> None:
    vae = Pair(normal)
    vae.prior = dist.Normal(torch.zeros(LATENT), torch.ones(LATENT))
    assert "its own prior, Normal, is not read: pass prior=vae.prior" in repr(
        vae2aef.wrap(vae, example=torch.rand(4, 6))
    )
