"""AEFs with likelihoods of every kind: the loss term by term, the marginal against quadrature, what wrap takes."""

import copy
import math
import warnings

import pytest
import torch
import zoo
from marks import needs_dynamo
from torch import Tensor, nn
from torch.distributions import Normal, Poisson

import vae2aef
from vae2aef import testing
from vae2aef.likelihood import Bernoulli, DiscretizedLogistic, NegativeBinomial

pytestmark = pytest.mark.usefixtures("float64")

B, N = 6, 5
DECODERS = {
    "bernoulli": lambda a: a.sigmoid(),
    "bernoulli_logits": lambda a: a,
    "continuous_bernoulli": lambda a: a.sigmoid(),
    "categorical": lambda a: torch.stack([a, -a, a.square()], 1),
    "poisson": lambda a: a.exp(),
    "poisson_log": lambda a: a,
    "negative_binomial": lambda a: a.exp(),
    "zero_inflated_negative_binomial": lambda a: a.exp(),
    "discretized_logistic": lambda a: a.sigmoid(),
    "discretized_gaussian": lambda a: 1.2 * a.sigmoid() - 0.1,
    "gaussian": lambda a: a.sin(),
    "laplace": lambda a: a.sin(),
    "student_t": lambda a: a.sin(),
}


DISCRETE = [name for name in DECODERS if name not in ("continuous_bernoulli", "gaussian", "laplace", "student_t")]


def data(name: str) -> Tensor:
    torch.manual_seed(1)
    if name.startswith("bernoulli"):
        return torch.randint(0, 2, (B, N)).double()
    if name == "categorical":
        return torch.randint(0, 3, (B, N))
    if "poisson" in name or "binomial" in name:
        return torch.randint(0, 6, (B, N)).double()
    return torch.randint(0, 256, (B, N)) / 255.0


class VAE(nn.Module):
    """A nonlinear decoder; the encoder knows little of it."""

    def __init__(self, name: str, latent: int) -> None:
        super().__init__()
        self.enter = nn.Linear(N, 2 * latent)
        self.leave = nn.Sequential(nn.Linear(latent, 16), nn.Tanh(), nn.Linear(16, N))
        self.name = name
        nn.init.normal_(self.leave[2].weight, std=0.5)

    def encode(self, x: Tensor) -> tuple[Tensor, ...]:
        return self.enter(x.double()).chunk(2, dim=1)

    def decode(self, z: Tensor) -> Tensor:
        return DECODERS[self.name](self.leave(z))


def make(name: str, latent: int = 1, **options) -> tuple[vae2aef.AEF, Tensor]:
    torch.manual_seed(0)
    x = data(name)
    vae = VAE(name, latent)
    options = {"encoder_scale": "log_std", "noise": 0.0, "core_flow": "coupling", **options}
    return vae2aef.wrap(vae, example=x, likelihood=name, **options).eval(), x


def quadrature(aef: vae2aef.AEF, x: Tensor, latent: int) -> Tensor:
    """log of the integral of p0(z) p(x | z), by the trapezoid rule."""
    line = torch.linspace(-9, 9, 8001 if latent == 1 else 361)
    z = torch.cartesian_prod(*[line] * latent).reshape(-1, latent)
    decoded = aef.parts.decode(z)
    prior = Normal(0.0, 1.0).log_prob(z).sum(1)
    y = aef.to_latent_side(x)[0]
    rows = [prior + aef.observed(decoded, len(z)).log_prob(row.expand(len(z), N)).sum(1) for row in y]
    return torch.stack(rows).logsumexp(1) + latent * (line[1] - line[0]).log()


class TwoModes(VAE):
    """Its decoder sees z squared alone: the posterior of every datum has two modes, z and -z."""

    def decode(self, z: Tensor) -> Tensor:
        return super().decode(z.square())


def train(aef: vae2aef.AEF, x: Tensor, steps: int = 100) -> None:
    """Some steps on the data that are scored then: the posterior becomes narrow, and the encoder points at it."""
    optimizer = torch.optim.Adam(aef.parameters(), lr=1e-2)
    for _ in range(steps):
        optimizer.zero_grad()
        aef(x).backward()
        optimizer.step()


SHAPES = [(VAE, 1), (VAE, 2), (TwoModes, 1)]
EVERY = [(name, *shape) for name in DECODERS for shape in SHAPES]
QUICK = [*((name, VAE, 1) for name in DECODERS), ("poisson", VAE, 2), ("bernoulli_logits", TwoModes, 1)]


CASES = [case if case in QUICK else pytest.param(*case, marks=pytest.mark.slow) for case in EVERY]


@pytest.mark.parametrize(("name", "kind", "latent"), CASES)
def test_the_marginal_against_quadrature(name, kind, latent):
    x = data(name)
    torch.manual_seed(0)
    aef = vae2aef.wrap(kind(name, latent), example=x, likelihood=name, encoder_scale="log_std", noise=0.5)
    before = aef(x).item()
    train(aef, x)
    with torch.no_grad():
        assert aef.eval()(x).item() < before
        check_marginal(aef, x[:4], latent)


def check_marginal(aef: vae2aef.AEF, x: Tensor, latent: int) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", vae2aef.EstimateWarning)  # that errors are infinite where they are not known
        found = aef.log_prob(x, num_samples=500, seed=0)
    error = (found.value - quadrature(aef, x, latent)).abs()
    assert (error < 5 * found.std_error + 1e-3).all(), (error, found)
    assert found.std_error.isfinite().sum() > len(x) / 2 and (error < 0.1).all()


@pytest.mark.parametrize("name", DECODERS)
def test_the_loss_is_an_elbo_of_the_likelihood(name):
    """At h = 0 and sigma = 1, with the same noise, term by term; and the whole map's log-determinant by autograd."""
    aef, x = make(name, 2, core="noise", core_flow="none", kl="sampled")
    torch.manual_seed(3)
    terms = aef(x, terms=True)
    torch.manual_seed(3)
    loc, log_std = aef.vae.encode(x)
    z = loc + log_std.exp() * torch.randn_like(loc)
    torch.testing.assert_close(terms.z, z)
    torch.testing.assert_close(terms.prior, Normal(0.0, 1.0).log_prob(z).sum(1))
    torch.testing.assert_close(terms.log_det, log_std.sum(1))
    decoded = aef.vae.decode(z)
    log_p = {
        "bernoulli": lambda: torch.distributions.Bernoulli(decoded).log_prob(x),
        "bernoulli_logits": lambda: torch.distributions.Bernoulli(logits=decoded).log_prob(x),
        "categorical": lambda: decoded.log_softmax(1).gather(1, x.unsqueeze(1)).squeeze(1),
        "poisson": lambda: Poisson(decoded).log_prob(x),
        "poisson_log": lambda: Poisson(decoded.exp()).log_prob(x),
    }.get(name, lambda: aef.likelihood.given(x.shape, decoded).log_prob(x))()
    torch.testing.assert_close(terms.residual, log_p.sum(1))
    testing.check_jacobian(make(name, 2)[0], x[:2])
    testing.check_gradients(make(name, 2)[0], x)


@pytest.mark.parametrize("name", DECODERS)
def test_draws_reconstructions_and_copies(name):
    aef, x = make(name, 2)
    drawn = aef.sample(300, residual=True)
    assert drawn.shape == (300, N) and aef.reconstruct(x).shape == (B, N)
    if aef.discrete:
        aef.likelihood.check(drawn, exact=True)
    again = make(name, 2)[0]
    with torch.no_grad():
        for p in aef.parameters():
            p.add_(0.05)
    again.load_state_dict(aef.state_dict())
    for copied in (again, copy.deepcopy(aef)):
        torch.testing.assert_close(copied(x), aef(x))
    assert aef(x[:0]).item() == 0.0


COMPILED = ["bernoulli", "continuous_bernoulli", "negative_binomial", "discretized_logistic"]


@needs_dynamo
@pytest.mark.parametrize(
    ("name", "backend"),
    [
        ("negative_binomial", "eager"), ("discretized_logistic", "eager"),
        *(pytest.param(name, "aot_eager", marks=pytest.mark.slow) for name in COMPILED),
    ],
)  # fmt: skip
def test_the_loss_compiles_as_one_graph(name, backend):
    """Dynamo alone is enough to see a break of the graph."""
    aef, x = make(name, 2)
    torch._dynamo.reset()
    assert torch.compile(aef, fullgraph=True, backend=backend)(x).allclose(aef(x))


@pytest.mark.parametrize("name", DISCRETE)
def test_what_is_for_densities_alone(name):
    x = data(name)
    for options, match in (
        ({"core": "center"}, "needs continuous data"),
        ({"preprocess": "standardize"}, "Pass preprocess=None"),
    ):
        with pytest.raises(vae2aef.WrapError, match=match):
            vae2aef.wrap(VAE(name, 1), example=x, likelihood=name, encoder_scale="log_std", **options)


def test_integers_are_read_as_what_they_are():
    torch.manual_seed(0)
    grey = torch.randint(0, 256, (B, N), dtype=torch.uint8)
    for name, x, same in (
        ("discretized_logistic", grey, grey / 255.0),
        ("bernoulli", grey % 2, (grey % 2).double()),
        ("poisson", grey % 9, (grey % 9).double()),
    ):
        aef = vae2aef.wrap(VAE(name, 2), example=x, likelihood=name, encoder_scale="log_std", noise=0.0)
        torch.testing.assert_close(aef(x), aef(same))
        torch.testing.assert_close(aef.log_prob(x, num_samples=4).value.shape, x.shape[:1])


def test_bits_are_taken_for_bits_and_the_rest_for_what_it_was():
    vae, x = VAE("bernoulli", 2), data("bernoulli")
    taken = vae2aef.wrap(vae, example=x, encoder_scale="log_std")
    assert isinstance(taken.likelihood, Bernoulli) and "the example holds bits" in repr(taken)
    grey = vae2aef.wrap(vae, example=torch.rand(B, N), encoder_scale="log_std")
    assert isinstance(grey.likelihood, vae2aef.Residual)
    linear = vae2aef.wrap(VAE("gaussian", 2), example=x, encoder_scale="log_std")  # a mean below 0 is no probability
    assert isinstance(linear.likelihood, vae2aef.Residual)
    parted = vae2aef.wrap(vae, example=x, encoder_scale="log_std", core="center")
    assert isinstance(parted.likelihood, vae2aef.Residual) and "instead of bernoulli" in repr(parted)


def test_the_range_of_grey_levels_is_read_off_the_example():
    x = torch.randint(0, 256, (B, N)) / 127.5 - 1
    aef = vae2aef.wrap(VAE("gaussian", 2), example=x, likelihood="discretized_logistic", encoder_scale="log_std")
    assert (aef.likelihood.low, aef.likelihood.high) == (-1.0, 1.0) and "low=-1" in repr(aef)
    with pytest.raises(vae2aef.WrapError, match="Data must not be dequantised"):
        vae2aef.wrap(
            VAE("gaussian", 2), example=torch.rand(B, N), likelihood="discretized_logistic", encoder_scale="log_std"
        )


def test_what_the_decoder_returns_must_fit():
    x = data("bernoulli")
    for name, likelihood, match in (
        ("bernoulli_logits", "bernoulli", 'If these are logits: Pass likelihood="bernoulli_logits"'),
        ("gaussian", "continuous_bernoulli", 'Pass likelihood="continuous_bernoulli_logits"'),
        ("gaussian", DiscretizedLogistic((N,), "decoder"), "needs a decoder that returns"),
        ("gaussian", "categorical", "C classes for each value"),
        ("categorical", "gaussian", "shaped like the data"),
    ):
        with pytest.raises(vae2aef.WrapError, match=match):
            vae2aef.wrap(VAE(name, 2), example=x, likelihood=likelihood, encoder_scale="log_std")


def test_a_callable_and_all_outputs_of_a_decoder():
    x = data("poisson")
    vae = VAE("poisson_log", 2)
    aef = vae2aef.wrap(vae, example=x, likelihood=lambda log_rate: Poisson(log_rate.exp()), encoder_scale="log_std")
    named = vae2aef.wrap(
        vae, example=x, likelihood="poisson_log", encoder_scale="log_std", core="noise", core_flow="none"
    )
    z = torch.randn(B, 2)
    expected = Poisson(vae.decode(z).exp()).log_prob(x).sum(1)
    assert aef.discrete
    for one in (aef, named):
        torch.testing.assert_close(one.log_residual(x, one.parts.decode(z)), expected)
    three = NegativeBinomial((N,), "decoder", log=True, zeros="decoder")
    decoder = lambda z: (vae.decode(z), 1 + vae.decode(z).square(), vae.decode(z))  # noqa: E731
    given = {"encoder": vae.encode, "encoder_scale": "log_std", "example": x}
    assert vae2aef.wrap(vae, decoder=decoder, likelihood=three, **given)(x).isfinite()
    with pytest.raises(vae2aef.WrapError, match=r"ranges from -.* takes it as its dispersion, which is positive"):
        negative = lambda z: (vae.decode(z), -vae.decode(z).exp())  # noqa: E731
        vae2aef.wrap(vae, decoder=negative, likelihood=NegativeBinomial((N,), "decoder", log=True), **given)
    with pytest.raises(vae2aef.WrapError, match=r"got a tuple of 3.*likelihood= that takes all"):
        vae2aef.wrap(vae, decoder=decoder, **given)


@pytest.mark.parametrize("cls", zoo.DISCRETE, ids=lambda cls: cls.__name__)
def test_a_forward_brings_its_likelihood(cls):
    torch.manual_seed(0)
    vae = cls().double()
    x = (torch.rand_like(zoo.example(vae)[0]) > 0.5).double()
    aef = vae2aef.wrap(vae, example=x, core="noise", core_flow="none")
    assert aef.discrete and type(aef.likelihood).__name__ == {"own density": "NoneType"}.get(
        zoo.DISCRETE[cls], zoo.DISCRETE[cls]
    )
    terms = aef(x, terms=True)
    a = vae.data(terms.z).reshape(x.shape)
    own = Poisson(a.exp()) if cls is zoo.Counts else torch.distributions.Bernoulli(logits=a)
    torch.testing.assert_close(terms.residual, own.log_prob(x).flatten(1).sum(1))
    torch.testing.assert_close(terms.reconstruction, own.mean)


def test_a_scale_of_the_decoder_and_wide_grids_of_0_1_names():
    """`residual=` is the older name, and checkpoints that know it load."""
    aef, x = make("laplace", 2)
    old = {k.replace("likelihood.", "residual."): v for k, v in aef.state_dict().items()}
    aef.load_state_dict(old)
    assert aef.residual is aef.likelihood
    by_old_name = vae2aef.wrap(aef.vae, example=x, residual="laplace", encoder_scale="log_std")
    assert by_old_name.likelihood.family == "laplace"
    aef.residual = by_old_name.likelihood
    assert aef.likelihood is by_old_name.likelihood and "residual" not in dict(aef.named_children())


def test_bits_per_dimension_of_a_discrete_likelihood_are_exact():
    """A decoder that knows nothing, and one level: log2 of the levels."""
    likelihood = DiscretizedLogistic((N,), 1e4)
    x = torch.arange(1, 255).double().reshape(-1, 1).expand(-1, N) / 255
    log_p = likelihood.given(x.shape, torch.full_like(x, 0.5)).log_prob(x).sum(1)
    bits = vae2aef.bits_per_dim(log_p, (N,), bins=1)
    expected = -math.log2(0.25 / 255 / 1e4)  # the logistic density is 1/4 in its middle
    torch.testing.assert_close(bits, torch.full_like(bits, expected), rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("name", DISCRETE)
def test_check_has_nothing_against_discrete_data(name):
    """Few values, and large ones, are no fault then; nor does any look fail on integers."""
    report = vae2aef.check(VAE(name, 2), example=data(name).repeat(20, 1), likelihood=name, encoder_scale="log_std")
    said = [f.message for f in report.findings if f.severity != "note"]
    assert report.ok and not [line for line in said if "different ones" in line or "could not be looked at" in line], (
        said
    )
    assert any(f.topic == "discrete data" for f in report.findings)
    assert "likelihood=" in str(vae2aef.check(VAE("gaussian", 2), example=data("bernoulli").repeat(20, 1) * 3))
