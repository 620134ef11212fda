"""Missing values: log p of the observed part against closed forms and quadrature, and what is filled in."""

import math
import warnings

import pytest
import torch
from test_likelihood_aef import DECODERS, VAE, B, N, data
from torch import Tensor, nn
from torch.distributions import MultivariateNormal, Normal

import vae2aef

pytestmark = [pytest.mark.usefixtures("float64"), pytest.mark.filterwarnings("ignore::vae2aef.EstimateWarning")]


class Linear(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.enter, self.leave = nn.Linear(N, 4), nn.Linear(2, N)

    def encode(self, x: Tensor) -> tuple[Tensor, ...]:
        return self.enter(x).chunk(2, dim=1)

    def decode(self, z: Tensor) -> Tensor:
        return self.leave(z)


def linear(**options) -> tuple[vae2aef.AEF, MultivariateNormal]:
    torch.manual_seed(0)
    vae = Linear()
    aef = vae2aef.wrap(vae, example=torch.randn(B, N), likelihood=0.4, encoder_scale="log_std", **options)
    w = vae.leave.weight.detach()
    return aef, MultivariateNormal(vae.leave.bias.detach(), w @ w.T + 0.16 * torch.eye(N))


def conditional(joint: MultivariateNormal, x: Tensor, there: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and covariance of the missing part given the observed one."""
    s, m = joint.covariance_matrix, joint.loc
    gain = s[~there][:, there] @ s[there][:, there].inverse()
    return m[~there] + gain @ (x[there] - m[there]), s[~there][:, ~there] - gain @ s[there][:, ~there]


def test_against_the_closed_form():
    aef, joint = linear()
    x, there = torch.randn(B, N), torch.rand(B, N) > 0.4
    there[0], there[1] = True, False
    found = aef.log_prob(torch.where(there, x, math.nan), observed=there, num_samples=2000, seed=0)
    filled = aef.impute(torch.where(there, x, math.nan), there, num_samples=2000, seed=0)
    for row in range(B):
        t = there[row]
        own = MultivariateNormal(joint.loc[t], joint.covariance_matrix[t][:, t]) if t.any() else None
        expected = torch.tensor(0.0) if own is None else own.log_prob(x[row][t])
        assert (found.value[row] - expected).abs() < 5 * found.std_error[row] + 1e-6
        assert torch.equal(filled[row][t], x[row][t])
        if not t.all():
            mean, covariance = conditional(joint, x[row], t)
            assert ((filled[row][~t] - mean).abs() < 0.15 * covariance.diagonal().sqrt() + 1e-6).all()
    torch.testing.assert_close(
        found.value[0], aef.log_prob(x[:1], num_samples=2000, seed=0).value[0], atol=0.02, rtol=0
    )


def test_draws_have_the_conditional_distribution():
    aef, joint = linear()
    one = torch.randn(N)
    x, there = one.expand(800, N), torch.tensor([True, False, True, True, False])
    drawn = aef.impute(x, there, num_samples=256, draw=True)
    mean, covariance = conditional(joint, one, there)
    error = covariance.diagonal().sqrt() / math.sqrt(800)
    assert ((drawn[:, ~there].mean(0) - mean).abs() < 5 * error).all()
    torch.testing.assert_close(drawn[:, ~there].T.cov(), covariance, rtol=0.25, atol=0.02)


# Of the others the density of one value is held against torch in test_likelihood.py.
QUICK = ("gaussian", "bernoulli", "categorical", "poisson", "negative_binomial", "discretized_logistic")


@pytest.mark.parametrize(
    "name", [name if name in QUICK else pytest.param(name, marks=pytest.mark.slow) for name in DECODERS]
)
@torch.no_grad()
def test_every_likelihood_against_quadrature(name):
    torch.manual_seed(0)
    x, there = data(name), torch.rand(B, N) > 0.5
    aef = vae2aef.wrap(VAE(name, 1), example=x, likelihood=name, encoder_scale="log_std")
    x, there = x[:3], there[:3]
    line = torch.linspace(-9, 9, 4001).unsqueeze(1)
    decoded = aef.parts.decode(line)
    prior = Normal(0.0, 1.0).log_prob(line).sum(1)
    y = aef.to_latent_side(x)[0]
    rows = [
        prior + torch.where(there[i], aef.observed(decoded, 4001).log_prob(y[i].expand(4001, N)), 0.0).sum(1)
        for i in range(3)
    ]
    expected = torch.stack(rows).logsumexp(1) + math.log(18 / 4000)
    found = aef.log_prob(x, observed=there, num_samples=500, seed=0)
    assert ((found.value - expected).abs() < 5 * found.std_error + 0.02).all()
    filled = aef.impute(x, there, num_samples=64, seed=0)
    assert torch.equal(filled[there], aef.read(x)[there].to(filled.dtype)) and filled.isfinite().all()
    if aef.discrete:
        aef.likelihood.check(aef.impute(x, there, num_samples=64, draw=True).to(x.dtype), exact=True)


@pytest.mark.slow
def test_preprocessing_counts_for_what_is_there():
    """Under a logit, all observed is the plain number; and parts of an independent model add up."""
    torch.manual_seed(0)
    x = 0.1 + 0.8 * torch.rand(B, N)
    vae = Linear()
    nn.init.zeros_(vae.leave.weight)  # z says nothing: values are independent
    aef = vae2aef.wrap(vae, example=x, preprocess=["logit", "standardize"], encoder_scale="log_std")
    x = x[:3]
    whole = aef.log_prob(x, seed=0).value
    torch.testing.assert_close(aef.log_prob(x, observed=torch.ones(N, dtype=torch.bool), seed=0).value, whole)
    first = torch.arange(N) < 2
    parts = [aef.log_prob(x, observed=there, num_samples=2000, seed=0).value for there in (first, ~first)]
    torch.testing.assert_close(sum(parts), aef.log_prob(x, num_samples=2000, seed=0).value, rtol=0, atol=0.05)


def test_a_seed_makes_it_the_datums_own():
    aef, _ = linear()
    x, there = torch.randn(B, N), torch.rand(B, N) > 0.4
    x, there = x[:4], there[:4]
    for draw in (False, True):
        whole = aef.impute(x, there, num_samples=64, draw=draw, seed=1)
        turned = aef.impute(x.flip(0), there.flip(0), num_samples=64, draw=draw, seed=1).flip(0)
        torch.testing.assert_close(whole, turned)
    value = aef.log_prob(x, observed=there, seed=1).value
    torch.testing.assert_close(aef.log_prob(x[2:3], observed=there[2:3], seed=1).value, value[2:3])


def test_what_is_not_observed_is_not_looked_at():
    """Fault: draws made from the data as they came, with whatever stands where nothing was observed."""
    aef, _ = linear()
    x, there = torch.randn(4, N), torch.rand(4, N) > 0.4
    results = [
        (aef.impute(seen, there, num_samples=64, seed=1), aef.log_prob(seen, observed=there, seed=1).value)
        for seen in (torch.where(there, x, math.nan), torch.where(there, x, 7.0))
    ]
    for one, other in zip(*results, strict=True):
        assert torch.equal(one, other)


def test_what_cannot_be_done_is_said():
    aef, _ = linear()
    x, there = torch.randn(B, N), torch.ones(B, N, dtype=torch.bool)
    for bad, match in ((there.double(), "expected observed as a bool tensor"), (there[:, :2], "of shape")):
        with pytest.raises(ValueError, match=match):
            aef.impute(x, bad)
        with pytest.raises(ValueError, match=match):
            aef.log_prob(x, observed=bad)
    with pytest.raises(ValueError, match="a partition core needs all of the data"):
        linear(core="center")[0].log_prob(x, observed=there)
    coupled = vae2aef.wrap(
        Linear(), example=x, encoder_scale="log_std",
        likelihood=lambda m: MultivariateNormal(m, torch.eye(N)),
    )  # fmt: skip
    with pytest.raises(ValueError, match="the density of each value of x by itself"):
        coupled.log_prob(x, observed=there)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert linear()[0].impute(x[:0], there[:0]).shape == (0, N)
