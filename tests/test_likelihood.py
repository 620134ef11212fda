"""Likelihoods: normalised, sampled as they are scored, equal to torch's where torch has them, and honest about data."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

import vae2aef
from vae2aef.likelihood import (
    Bernoulli,
    Categorical,
    ContinuousBernoulli,
    DiscretizedGaussian,
    DiscretizedLogistic,
    Likelihood,
    LogisticMixture,
    NegativeBinomial,
    OfDistribution,
    Poisson,
)
from vae2aef.likelihood.base import information

pytestmark = pytest.mark.usefixtures("float64")

N = 4000
COUNTS = torch.arange(N).double().reshape(N, 1)
BITS = torch.tensor([[0.0], [1.0]])
LEVELS = torch.arange(8).reshape(8, 1)


def bits(logits: bool) -> tuple[Likelihood, Tensor, tuple[Tensor, ...]]:
    return Bernoulli(logits), BITS, ((torch.tensor([[1.3]]) if logits else torch.tensor([[0.3]])),)


def grid(kind: type, scale: "float | str", mean: float, *more: Tensor) -> tuple[Likelihood, Tensor, tuple[Tensor, ...]]:
    likelihood = kind((1,), scale, bins=8, low=-1.0, high=1.0)
    return likelihood, likelihood.read(LEVELS), (torch.tensor([[mean]]), *more)


# Of each: the likelihood, all values that x can take, and what the decoder returns.
FINITE = {
    "bernoulli": lambda: bits(False),
    "bernoulli_logits": lambda: bits(True),
    "categorical": lambda: (Categorical((1,), 3), torch.arange(3).reshape(3, 1), (torch.tensor([[0.1, -2.0, 1.0]]),)),
    "categorical_last": lambda: (
        Categorical((1,), 3, last=True), torch.arange(3).reshape(3, 1), (torch.tensor([[[0.1, -2.0, 1.0]]]),)
    ),
    "poisson": lambda: (Poisson((1,)), COUNTS, (torch.tensor([[3.7]]),)),
    "poisson_log": lambda: (Poisson((1,), log=True), COUNTS, (torch.tensor([[-0.4]]),)),
    "zero_inflated_poisson": lambda: (Poisson((1,), zeros="learned"), COUNTS, (torch.tensor([[3.7]]),)),
    "negative_binomial": lambda: (NegativeBinomial((1,)), COUNTS, (torch.tensor([[5.0]]),)),
    "negative_binomial_decoder": lambda: (
        NegativeBinomial((1,), "decoder", zeros="decoder"), COUNTS,
        (torch.tensor([[5.0]]), torch.tensor([[2.0]]), torch.tensor([[0.4]])),
    ),
    "logistic": lambda: grid(DiscretizedLogistic, 0.2, 0.35),
    "logistic_narrow": lambda: grid(DiscretizedLogistic, 1e-3, -0.15),
    "logistic_far": lambda: grid(DiscretizedLogistic, 0.05, 3.0),
    "logistic_decoder": lambda: grid(DiscretizedLogistic, "decoder", 0.35, torch.tensor([[0.4]])),
    "gaussian": lambda: grid(DiscretizedGaussian, 0.3, -0.4),
    "gaussian_narrow": lambda: grid(DiscretizedGaussian, 1e-3, 0.15),
    "gaussian_far": lambda: grid(DiscretizedGaussian, 0.1, -2.5),
}  # fmt: skip


@pytest.mark.parametrize("name", FINITE)
def test_probabilities_add_up_to_one(name):
    likelihood, values, outputs = FINITE[name]()
    assert likelihood.discrete
    likelihood.check(likelihood.read(values))
    rows = len(values)
    density = likelihood.given((rows, 1), *(output.expand(rows, *output.shape[1:]) for output in outputs))
    log_p = density.log_prob(likelihood.read(values).double() if "bern" in name else values)
    assert log_p.shape == (rows, 1)
    torch.testing.assert_close(log_p.double().exp().sum(), torch.tensor(1.0).double(), rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("name", FINITE)
def test_draws_have_the_probabilities(name):
    torch.manual_seed(0)
    likelihood, values, outputs = FINITE[name]()
    draws = likelihood.given((40_000, 1), *(o.expand(40_000, *o.shape[1:]) for o in outputs)).sample().flatten()
    values = values[:30]
    density = likelihood.given((len(values), 1), *(o.expand(len(values), *o.shape[1:]) for o in outputs))
    for value, p in zip(values.flatten(), density.log_prob(values).detach().exp().flatten(), strict=True):
        found = (draws - value).abs().lt(1e-9).double().mean()
        assert abs(found - p) < 4.5 * math.sqrt(p * (1 - p) / 40_000) + 1e-4, (value, p, found)


@pytest.mark.parametrize("name", FINITE)
def test_the_mean_and_the_information(name):
    """The mean by summing; J^T S^-2 J at most the Fisher information, whose expectation is summed too."""
    likelihood, values, outputs = FINITE[name]()
    rows = len(values)
    first = outputs[0].clone().requires_grad_()
    density = likelihood.given(
        (rows, 1), first.expand(rows, *first.shape[1:]), *(o.expand(rows, 1) for o in outputs[1:])
    )
    log_p = density.log_prob(values).flatten()
    p = log_p.detach().exp()
    if "categorical" not in name:
        mean = (p * values.flatten()).sum()
        assert abs(mean - density.mean.flatten()[0]) < 0.5 * getattr(likelihood, "width", 0.0) + 1e-6
    scores = torch.stack([torch.autograd.grad(v, first, retain_graph=True)[0].flatten() for v in log_p[:60]])
    fisher = (p[:60, None, None] * scores[:, :, None] * scores[:, None, :]).sum(0)
    parameter, scale = information(density)
    standard = (parameter / scale.expand_as(parameter).detach())[:1].flatten()
    jacobian = torch.stack([torch.autograd.grad(s, first, retain_graph=True)[0].flatten() for s in standard])
    excess = torch.linalg.eigvalsh(fisher - jacobian.T @ jacobian)
    if "narrow" not in name:  # bins far wider than the scale: all or nothing, and no information is near
        assert excess.min() > -0.02 * max(1.0, float(fisher.diagonal().max())), (fisher, jacobian)
        assert "inflated" in name or excess.max() < 0.5 * fisher.diagonal().max() + 1e-6, (fisher, jacobian)


@given(st.floats(-3, 4), st.floats(-4, 1), st.sampled_from([DiscretizedLogistic, DiscretizedGaussian]))
def test_the_mean_of_grey_levels_is_that_of_their_probabilities(location, log_scale, kind):
    """Far beyond both ends too, where decoders put what is surely black or white."""
    likelihood = kind((1,), math.exp(log_scale))
    levels = torch.linspace(0, 1, 256).unsqueeze(1)
    density = likelihood.given((256, 1), torch.full((256, 1), location))
    mean = (density.log_prob(levels).exp() * levels).sum()
    assert abs(mean - density.mean[0, 0]) < 1e-4


@given(st.floats(-6, 6), st.booleans())
def test_the_continuous_bernoulli_is_a_density(parameter, logits):
    output = torch.tensor([[parameter if logits else torch.sigmoid(torch.tensor(parameter)).item()]])
    grid = torch.linspace(0, 1, 4001).unsqueeze(1)
    density = ContinuousBernoulli(logits).given((4001, 1), output.expand(4001, 1))
    p = density.log_prob(grid).exp().flatten()
    x = grid.flatten()
    assert abs(torch.trapezoid(p, x) - 1) < 1e-4
    oracle = torch.distributions.ContinuousBernoulli(**{"logits" if logits else "probs": output})
    torch.testing.assert_close(density.log_prob(grid), oracle.log_prob(grid), rtol=1e-3, atol=1e-3)
    mean = torch.trapezoid(p * x, x)
    torch.testing.assert_close(density.mean[0, 0], mean, rtol=1e-3, atol=1e-3)
    variance = torch.trapezoid(p * (x - mean).square(), x)
    torch.testing.assert_close(density.information()[1][0, 0] ** -2, variance, rtol=1e-3, atol=1e-3)
    draws = ContinuousBernoulli(logits).given((20_000, 1), output.expand(20_000, 1)).sample()
    assert abs(draws.mean() - mean) < 5 * (variance / 20_000).sqrt() and draws.min() >= 0 and draws.max() <= 1


@given(st.floats(-1.5, 1.5), st.floats(-4, 1), st.sampled_from([DiscretizedLogistic, DiscretizedGaussian]))
def test_a_bin_holds_the_mass_of_its_density(mean, log_scale, kind):
    """Against torch's cumulative functions, in the middle and at both ends."""
    scale = math.exp(log_scale)
    likelihood = kind((1,), scale, bins=16, low=-1.0, high=1.0)
    x = likelihood.read(torch.arange(16).reshape(16, 1))
    found = likelihood.given((16, 1), torch.full((16, 1), mean)).log_prob(x).exp().flatten()
    edges = torch.cat([torch.tensor([-math.inf]), x.flatten()[:-1] + 1 / 15, torch.tensor([math.inf])])
    unit = (edges - mean) / (scale + 0.0)
    cdf = torch.sigmoid(unit) if kind is DiscretizedLogistic else torch.special.ndtr(unit)
    torch.testing.assert_close(found, cdf.diff(), rtol=1e-6, atol=1e-12)


@pytest.mark.parametrize("kind", [DiscretizedLogistic, DiscretizedGaussian])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_far_out_a_bin_keeps_its_digits_and_its_gradient(kind, dtype):
    """A mean a hundred scales away: finite, and the gradient pulls it back."""
    likelihood = kind((1,), 1e-2).to(dtype)
    for x, mean in ((0.0, 1.0), (1.0, 0.0), (128 / 255, 1.5), (128 / 255, -0.5)):
        at = torch.full((1, 1), mean, dtype=dtype, requires_grad=True)
        value = likelihood.given((1, 1), at).log_prob(torch.full((1, 1), x, dtype=dtype))
        (gradient,) = torch.autograd.grad(value.sum(), at)
        assert value.isfinite() and gradient.isfinite() and gradient.sign() == math.copysign(1, x - mean)


def mixture(channels: int) -> tuple[LogisticMixture, Tensor]:
    torch.manual_seed(3)
    likelihood = LogisticMixture((channels, 1, 1), mixtures=2, bins=4)
    output = torch.randn(1, 2 * (3 if channels == 1 else 10), 1, 1)
    return likelihood, output


@pytest.mark.parametrize("channels", [1, 3])
def test_the_mixture_of_logistics_adds_up_to_one_over_all_channels(channels):
    likelihood, output = mixture(channels)
    axes = [torch.arange(4)] * channels
    colours = torch.stack(torch.meshgrid(*axes, indexing="ij"), -1).reshape(-1, channels, 1, 1)
    x = likelihood.read(colours)
    log_p = likelihood.given(x.shape, output.expand(len(x), -1, 1, 1)).log_prob(x)
    assert log_p.shape == (len(x), 1, 1)
    torch.testing.assert_close(log_p.exp().sum(), torch.tensor(1.0), rtol=1e-9, atol=1e-9)
    draws = likelihood.given((20_000, channels, 1, 1), output.expand(20_000, -1, 1, 1)).sample()
    for colour, p in zip(x, log_p.exp().flatten(), strict=True):
        found = (draws - colour).abs().amax((1, 2, 3)).lt(1e-9).double().mean()
        assert abs(found - p) < 4.5 * math.sqrt(p * (1 - p) / 20_000) + 1e-4


def test_the_mixture_of_one_component_is_the_discretised_logistic():
    """With coefficients, each channel around a mean that the channels before it have moved."""
    torch.manual_seed(0)
    likelihood = LogisticMixture((3, 2, 2), mixtures=1)
    output = torch.randn(5, 10, 2, 2)
    x = likelihood.read(torch.randint(0, 256, (5, 3, 2, 2)))
    mean, log_scale, k = (output[:, 1:].reshape(5, 3, 3, 2, 2)[:, :, i] for i in range(3))
    k = k.tanh()
    means = torch.stack(
        [mean[:, 0], mean[:, 1] + k[:, 0] * x[:, 0], mean[:, 2] + k[:, 1] * x[:, 0] + k[:, 2] * x[:, 1]], 1
    )
    each = DiscretizedLogistic((3, 2, 2), "decoder", low=-1.0).given(x.shape, means, log_scale.clamp(min=-7).exp())
    torch.testing.assert_close(
        likelihood.given(x.shape, output).log_prob(x), each.log_prob(x).sum(1), rtol=1e-5, atol=0
    )


REFUSED = {
    "bits": (Bernoulli(), torch.tensor([[2.0]]), "expected values from 0 to 1"),
    "unit": (ContinuousBernoulli(), torch.tensor([[-0.1]]), "expected values from 0 to 1"),
    "classes": (Categorical((1,), 3), torch.tensor([[3]]), "expected integers 0 .. 2"),
    "whole": (Categorical((1,), 3), torch.tensor([[1.0]]), "expected integers"),
    "counts": (Poisson((1,)), torch.tensor([[1.5]]), "whole numbers 0, 1, 2"),
    "negative": (NegativeBinomial((1,)), torch.tensor([[-1.0]]), "whole numbers"),
    "off": (DiscretizedLogistic((1,)), torch.tensor([[0.5001]]), "Data must not be dequantised"),
    "outside": (DiscretizedLogistic((1,)), torch.tensor([[1 + 1 / 255]]), "256 levels from 0 to 1"),
    "mixed": (LogisticMixture((1, 1, 1)), torch.tensor([[[[0.0]]]]), "256 levels from -1 to 1"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_data_that_have_no_probability(name):
    likelihood, x, match = REFUSED[name]
    with pytest.raises(ValueError, match=match):
        likelihood.check(x)


def test_grey_values_have_a_cross_entropy_and_no_probability():
    x = torch.tensor([[0.3]])
    Bernoulli().check(x)
    with pytest.raises(ValueError, match=r"x\.bernoulli\(\).*continuous_bernoulli"):
        Bernoulli().check(x, exact=True)
    p = torch.tensor([[0.8]])
    expected = -torch.nn.functional.binary_cross_entropy(p, x)
    torch.testing.assert_close(Bernoulli().given((1, 1), p).log_prob(x).squeeze(), expected)


def test_options_that_make_no_sense():
    for make, match in (
        (lambda: DiscretizedLogistic((1,), bins=1), "at least 2 bins"),
        (lambda: DiscretizedGaussian((1,), low=1.0, high=0.0), "high > low"),
        (lambda: Poisson((1,), zeros="some"), 'zeros None, "learned" or "decoder"'),
        (lambda: LogisticMixture((2, 4, 4)), "channels first"),
        (lambda: LogisticMixture.of((3, 4, 4), torch.zeros(2, 9, 4, 4), -1, 1), r"\(batch, 10 M, 4, 4\)"),
        (lambda: Categorical.of((4,), torch.zeros(2, 9)), "C classes for each value"),
        (lambda: OfDistribution(lambda m: m, (torch.zeros(1, 1),)), "must make a torch.distributions object"),
        (lambda: NegativeBinomial((1,), "decoder").given((1, 1), torch.ones(1, 1)), "returned the mean alone"),
        (lambda: Poisson((1,), zeros="decoder").given((1, 1), torch.ones(1, 1)), 'Pass zeros="learned"'),
    ):
        with pytest.raises((ValueError, vae2aef.WrapError), match=match):
            make()


@pytest.mark.parametrize("scale", ["learned", "channel", "shared", 0.2])
def test_the_scale_of_a_grid_is_a_residuals(scale):
    shapes = {"learned": (3, 2, 2), "channel": (3, 1, 1), "shared": (1, 1, 1), 0.2: ()}
    assert DiscretizedLogistic((3, 2, 2), scale).scale().shape == shapes[scale]
    assert vae2aef.Residual((3, 2, 2), scale).scale().shape == shapes[scale]


@given(st.floats(0.1, 50.0), st.floats(0.1, 20.0))
def test_counts_have_the_mean_that_the_decoder_returns(mean, theta):
    """And the variance m + m^2 / theta: a logit of the wrong sign is a distribution too."""
    m = torch.tensor([[mean]])
    counts = NegativeBinomial((1,), theta).given((1, 1), m)
    torch.testing.assert_close(counts.mean, m, rtol=1e-5, atol=0)
    torch.testing.assert_close(counts.variance, m + m.square() / theta, rtol=1e-4, atol=0)
    by_log = NegativeBinomial((1,), theta, log=True).given((1, 1), m.log())
    torch.testing.assert_close(by_log.mean, counts.mean, rtol=1e-5, atol=0)
    more_zeros = Poisson((1,), zeros="decoder").given((1, 1), m, torch.zeros(1, 1))
    torch.testing.assert_close(more_zeros.mean, 0.5 * m)
