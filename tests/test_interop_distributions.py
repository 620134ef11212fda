"""Torch distributions as priors: same density, tensors that move, save, copy and train."""

import copy
import pickle

import pytest
import torch
import torch.distributions as td
from torch import nn

import vae2aef
from vae2aef.interop import DistributionPrior

D = 4


def normal():
    return td.Normal(torch.randn(D), torch.rand(D) + 0.5)


def _tril():
    return (torch.eye(D) + 0.3 * torch.randn(D, D).tril(-1)).contiguous()


ZOO = {
    "scalar-normal": lambda: td.Normal(0.5, 2.0),
    "normal": normal,
    "laplace": lambda: td.Laplace(torch.randn(D), torch.rand(D) + 0.5),
    "student": lambda: td.StudentT(5.0, torch.randn(D), torch.rand(D) + 0.5),
    "cauchy": lambda: td.Cauchy(torch.zeros(D), torch.ones(D)),
    "gumbel": lambda: td.Gumbel(torch.zeros(D), torch.ones(D)),
    "independent": lambda: td.Independent(normal(), 1),
    "mvn-tril": lambda: td.MultivariateNormal(torch.randn(D), scale_tril=_tril()),
    "mvn-covariance": lambda: td.MultivariateNormal(torch.randn(D), 2 * torch.eye(D) + 0.5),
    "mvn-precision": lambda: td.MultivariateNormal(torch.randn(D), precision_matrix=3 * torch.eye(D)),
    "lowrank": lambda: td.LowRankMultivariateNormal(torch.randn(D), torch.randn(D, 2), torch.rand(D) + 0.5),
    "mixture": lambda: td.MixtureSameFamily(
        td.Categorical(probs=torch.tensor([0.2, 0.3, 0.5])),
        td.Independent(td.Normal(torch.randn(3, D), torch.rand(3, D) + 0.5), 1),
    ),
    "elementwise-mixture": lambda: td.MixtureSameFamily(
        td.Categorical(logits=torch.randn(D, 2)), td.Normal(torch.randn(D, 2), torch.rand(D, 2) + 0.5)
    ),
    "reshaped": lambda: td.TransformedDistribution(
        td.Independent(td.Normal(torch.randn(2, D // 2), 0.7), 2),
        [td.ExpTransform(), td.ReshapeTransform((D // 2,), (1, D // 2)), td.ExpTransform().inv,
         td.ReshapeTransform((2, 1, D // 2), (D,))],
    ),
    "transformed": lambda: td.TransformedDistribution(
        td.Independent(normal(), 1),
        [td.ComposeTransform([td.TanhTransform(cache_size=1), td.TanhTransform().inv]),
         td.AffineTransform(torch.randn(D), torch.rand(D) + 0.5)],
    ),
}  # fmt: skip


def _pyro(make):
    def build():
        pytest.importorskip("pyro")
        import pyro.distributions

        return make(pyro.distributions)

    return build


ZOO |= {
    "pyro-normal": _pyro(lambda d: d.Normal(torch.randn(D), 1.0).to_event(1)),
    "pyro-student": _pyro(lambda d: d.StudentT(4.0, torch.zeros(D), torch.ones(D))),
    "pyro-mixture": _pyro(
        lambda d: d.MixtureSameFamily(d.Categorical(torch.ones(2)), d.Normal(torch.randn(2, D), 1.0).to_event(1))
    ),
    "pyro-flow": _pyro(
        lambda d: d.TransformedDistribution(
            d.Normal(torch.zeros(D), 1.0).to_event(1), [d.transforms.affine_coupling(D, hidden_dims=[8])]
        )
    ),
}
FIXED_TEMPERATURE = {"pyro-mixture"} | {"mixture", "elementwise-mixture"}


@pytest.fixture(params=ZOO)
def case(request):
    torch.manual_seed(0)
    distribution = ZOO[request.param]()
    return request.param, distribution, DistributionPrior(distribution, (D,))


def expected(distribution, z):
    return distribution.log_prob(z).reshape(len(z), -1).sum(1)


def test_same_density_and_shapes(case):
    _, distribution, prior = case
    z = 0.3 * torch.randn(5, D)
    torch.testing.assert_close(prior.log_prob(z), expected(distribution, z))
    assert prior.log_prob(z[:0]).shape == (0,)
    assert prior.sample(7).shape == (7, D)


def test_samples_follow_the_distribution(case):
    _name, distribution, prior = case
    torch.manual_seed(1)
    mine = prior.sample(4000).median(0).values
    torch.manual_seed(2)
    theirs = distribution.expand((D,) if not distribution.event_shape else ()).sample((4000,)).median(0).values
    torch.testing.assert_close(mine, theirs, atol=0.2, rtol=0)


def test_double_copies_pickles_and_state(case):
    name, _distribution, prior = case
    z = 0.3 * torch.randn(5, D)
    value = prior.log_prob(z)
    double = copy.deepcopy(prior).double()
    assert double.log_prob(z.double()).dtype == torch.float64
    torch.testing.assert_close(double.log_prob(z.double()).float(), value)
    torch.testing.assert_close(pickle.loads(pickle.dumps(prior)).log_prob(z), value)
    other = DistributionPrior(ZOO[name](), (D,))
    other.load_state_dict(prior.state_dict())
    torch.testing.assert_close(other.log_prob(z), value)
    assert all(tensor.is_meta for tensor in copy.deepcopy(prior).to("meta").state_dict().values())
    assert prior.state_dict()


def test_temperature(case):
    name, _, prior = case
    if name in FIXED_TEMPERATURE:
        with pytest.raises(ValueError, match="MixtureSameFamily is none"):
            prior.sample(3, temperature=0.5)
        return
    cold = prior.sample(100, temperature=1e-6)
    assert cold.isfinite().all()
    assert (cold - cold.median(0).values).abs().median() < 1e-4


@pytest.mark.parametrize("latent", [(), (1,), (3,), (2, 3), (2, 2, 2)])
def test_scalars_broadcast_over_any_latent(latent):
    prior = DistributionPrior(td.Laplace(0.0, 1.0), latent)
    z = torch.randn(3, *latent)
    torch.testing.assert_close(prior.log_prob(z), expected(td.Laplace(0.0, 1.0), z))
    assert prior.sample(4).shape == (4, *latent)


def test_vector_event_serves_a_latent_of_another_shape():
    distribution = ZOO["mvn-tril"]()
    prior = DistributionPrior(distribution, (2, 2))
    z = torch.randn(3, 2, 2)
    torch.testing.assert_close(prior.log_prob(z), distribution.log_prob(z.flatten(1)))
    assert prior.sample(5).shape == (5, 2, 2)


def test_parameters_are_trained_and_kept_themselves():
    loc, raw = nn.Parameter(torch.zeros(())), torch.ones(D, requires_grad=True)
    prior = DistributionPrior(td.Normal(loc, raw), (D,))
    assert any(p is loc for p in prior.parameters())
    assert len(list(prior.parameters())) == 2
    z = torch.randn(5, D)
    for _ in range(2):  # a distribution made once would fail on the second backward
        prior.log_prob(z).sum().backward()
    with torch.no_grad():
        loc.fill_(3.0)
    torch.testing.assert_close(prior.log_prob(z), expected(td.Normal(3.0, torch.ones(D)), z))


def test_learned_mixture_weights_and_covariance():
    logits, covariance = nn.Parameter(torch.randn(3)), nn.Parameter(2 * torch.eye(D))
    mixture = td.MixtureSameFamily(td.Categorical(logits=logits), td.Independent(td.Normal(torch.randn(3, D), 1.0), 1))
    z = torch.randn(5, D)
    for distribution, leaf in ((mixture, logits), (td.MultivariateNormal(torch.zeros(D), covariance), covariance)):
        prior = DistributionPrior(distribution, (D,))
        assert [id(p) for p in prior.parameters()] == [id(leaf)]
        torch.testing.assert_close(prior.log_prob(z), distribution.log_prob(z))
        prior.log_prob(z).sum().backward()
        assert leaf.grad.abs().sum() > 0


def test_computed_from_parameters_is_refused_with_the_fix():
    raw = nn.Parameter(torch.zeros(D))
    with pytest.raises(vae2aef.WrapError, match=r"`scale` of Normal was computed.*Pass a module"):
        DistributionPrior(td.Normal(torch.zeros(D), nn.functional.softplus(raw)), (D,))


@pytest.mark.parametrize(
    "distribution, message",
    [
        (td.LogNormal(0.0, 1.0), "support"),
        (td.Uniform(0.0, 1.0), "support"),
        (td.Bernoulli(0.5), "support"),
        (td.Normal(torch.zeros(3), 1.0), r"latents of shape \(4,\).*batch shape \(3,\)"),
        (td.MultivariateNormal(torch.zeros(5), torch.eye(5)), r"event shape \(5,\)"),
    ],
)
def test_what_cannot_be_a_prior_is_refused(distribution, message):
    with pytest.raises(vae2aef.WrapError, match=message):
        DistributionPrior(distribution, (D,))


def test_no_validation_inside():
    prior = DistributionPrior(td.Normal(0.0, 1.0, validate_args=True), (D,))
    assert prior.log_prob(torch.full((1, D), torch.nan)).isnan().all()
