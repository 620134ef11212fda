"""The default log_prob against quadrature: posteriors with several modes, heavy tails, plateaus, bad encoders."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from zoo_core import LinearGaussianVAE

import vae2aef

pytestmark = pytest.mark.usefixtures("float64")

REACH, POINTS = 7.0, {1: 20_001, 2: 501}


class ToyVAE(nn.Module):
    """A decoder given as a function; the encoder says N(guess(x), 0.3^2), whatever the posterior is."""

    def __init__(self, decode: Callable[[Tensor], Tensor], guess: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.decode, self.guess = decode, guess

    def encode(self, x: Tensor) -> tuple[Tensor, Tensor]:
        loc = self.guess(x)
        return loc, torch.full_like(loc, 0.3)


def quadrature(aef: vae2aef.AEF, x: Tensor, dim: int) -> Tensor:
    """Log p(x) as a sum of p0(z) p(x | z) over a grid, `(batch,)`."""
    axis = torch.linspace(-REACH, REACH, POINTS[dim])
    grid = torch.cartesian_prod(*[axis] * dim).reshape(-1, dim)
    with torch.no_grad():
        decoded, log_prior = aef.parts.decode(grid), aef.prior.log_prob(grid)
        rows = [(log_prior + aef.log_residual(row.expand(len(grid), -1), decoded)).logsumexp(0) for row in x]
    return torch.stack(rows) + dim * (axis[1] - axis[0]).log()


def made(decode: Callable, guess: Callable, dim: int, rows: int = 12, **residual) -> tuple[vae2aef.AEF, Tensor]:
    """A model and data drawn from it."""
    n = decode(torch.zeros(1, dim)).shape[1]
    vae = ToyVAE(decode, guess)
    aef = vae2aef.wrap(
        vae, example=torch.randn(8, n), encoder_scale="std", core="noise", core_flow="none",
        residual=vae2aef.Residual((n,), **residual),
    )  # fmt: skip
    return aef, aef.sample(rows, residual=True)


def mlp(dim: int, features: int) -> nn.Sequential:
    torch.manual_seed(3)
    return nn.Sequential(nn.Linear(dim, 32), nn.Tanh(), nn.Linear(32, features))


def waves(z: Tensor) -> Tensor:
    return torch.sin(4 * z) @ torch.ones(1, 3) + 0.1 * z


def squares(z: Tensor) -> Tensor:
    """Two modes for D = 1, four for D = 2."""
    return torch.cat([z.square(), 0.5 * z.square() + 0.02 * z], 1)


def bumps(z: Tensor) -> Tensor:
    """Two far places that look nearly alike, and nothing between them."""
    near, far = torch.exp(-4 * (z - 2).square()), torch.exp(-4 * (z + 2).square())
    return torch.cat([near + far, near + 0.9 * far], 1)


WEIGHTS = mlp(2, 6).double().requires_grad_(False)
CASES = {
    "two modes": (squares, lambda x: x[:, :1].clamp(min=0).sqrt(), 1, 0.1),
    "four modes": (squares, lambda x: x[:, :2].clamp(min=0).sqrt(), 2, 0.2),
    "sin(4z)": (waves, lambda x: 0.3 * x[:, :1], 1, 0.3),
    "plateau": (lambda z: 5 * torch.relu(z - 1) @ torch.ones(1, 4), lambda x: 0 * x[:, :1] - 3, 1, 0.1),
    "untrained": (lambda z: 2 * torch.tanh(WEIGHTS(3 * z)), lambda x: 3 * torch.cos(9 * x[:, :2]), 2, 0.05),
    "wrong mode": (bumps, lambda x: 0 * x[:, :1] - 2 + 4 * (x[:, :1] > x[:, 1:] + 0.05).logical_not(), 1, 0.02),
}


SLOW = [
    pytest.param(name, family, marks=pytest.mark.slow)
    for name in CASES
    for family in ("gaussian", "laplace", "student_t")
    if (name, family) not in (("two modes", "gaussian"), ("plateau", "laplace"))
]


@pytest.mark.parametrize(("name", "family"), [("two modes", "gaussian"), ("plateau", "laplace"), *SLOW])
def test_the_value_is_right_or_said_to_be_uncertain(name, family):
    """Today's proposals were 0.6 to 455 nats low here, with small errors."""
    decode, guess, dim, scale = CASES[name]
    aef, x = made(decode, guess, dim, scale=scale, family=family)
    got = aef.log_prob(x, num_samples=512, seed=0)
    z = (got.value - quadrature(aef, x, dim)) / got.std_error
    assert z.abs().max() < 4
    assert got.std_error[got.uncertain].isinf().all()
    assert got.uncertain.double().mean() <= 0.2


class TrainedVAE(nn.Module):
    """A small net whose decoder sees z^2 alone, so that every posterior has two modes at least."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.inner = nn.Sequential(nn.Linear(5, 16), nn.Tanh(), nn.Linear(16, 2 * dim))
        self.outer = nn.Sequential(nn.Linear(dim, 16), nn.Tanh(), nn.Linear(16, 5))

    def encode(self, x: Tensor) -> tuple[Tensor, Tensor]:
        loc, log_std = self.inner(x).chunk(2, 1)
        return loc, log_std

    def decode(self, z: Tensor) -> Tensor:
        return self.outer(z.square())


def trained(dim: int, family: str) -> tuple[vae2aef.AEF, Tensor]:
    """A model after 200 steps on data of a curve, and new data."""
    angle = 6.28 * torch.rand(1000, 1)
    data = torch.cat([angle.cos(), angle.sin(), (2 * angle).cos(), angle.cos() ** 3, 0 * angle], 1)
    data = data + 0.15 * torch.randn(1000, 5)
    aef = vae2aef.wrap(
        TrainedVAE(dim), example=data[:8], encoder_scale="log_std", core="noise", core_flow="none",
        residual=vae2aef.Residual((5,), "shared", family, initial_scale=0.5),
    )  # fmt: skip
    optimizer = torch.optim.Adam(aef.parameters(), 1e-2)
    for step in range(200):
        optimizer.zero_grad()
        aef(data[64 * step % 900 :][:64]).backward()
        optimizer.step()
    return aef, data[900:]


@pytest.mark.slow
@pytest.mark.parametrize(("dim", "family"), [(1, "gaussian"), (1, "student_t"), (2, "gaussian"), (2, "laplace")])
def test_intervals_cover_the_truth_of_trained_models(dim, family):
    """Nominal 95 % intervals, where k-hat is below 0.7, hold log p(x) in 90 to 98 % of cases; spreads agree."""
    aef, x = trained(dim, family)
    truth = quadrature(aef, x[:25], dim)
    z = []
    for seed in range(8):
        got = aef.log_prob(x[:25], num_samples=128, seed=seed)
        z.append(((got.value - truth) / got.std_error)[got.pareto_k < 0.7])
    z = torch.cat(z)
    assert len(z) > 150
    assert 0.9 < (z.abs() < 1.96).double().mean() < 0.98
    assert 0.8 < z.std() < 1.25


def test_more_latents_than_are_fitted_in_full():
    """Above 256 a Gaussian of low rank is fitted to each datum (test_low_rank.py): far better than one for all.

    The encoder is off by another vector for each datum, which no common proposal can mend.
    """
    torch.manual_seed(0)
    vae = LinearGaussianVAE(300, 300, orthogonal=True)
    x = vae.decoder(torch.randn(12, 300)).detach() + 0.6 * torch.randn(12, 300)
    vae.centre_on_posterior(0.6)
    with torch.no_grad():
        vae.w.add_(0.02 * torch.randn(300, 300))
    aef = vae2aef.wrap(vae, example=x, encoder_scale="std", core="noise", core_flow="none", residual=0.6)
    truth = vae.log_marginal(x, 0.6)
    found = aef.log_prob(x, num_samples=1024, seed=0)
    tuned = aef.log_prob(x, num_samples=1024, proposal="tuned")
    error = (found.value - truth).abs()  # of single data it is another with other rounding, by machine and threads
    assert not found.bound and error.mean() < 0.7 and (found.uncertain | (error < 1)).all()
    assert (found.value - tuned.value).mean() > 80 and (tuned.value < found.value - 50).all()
