"""Fits, search and annealing need densities alone (`protocols.Target`): here known ones, with no VAE behind them."""

import math

import pytest
import torch
from torch import Tensor

from vae2aef import ais
from vae2aef.draws import Draws
from vae2aef.finding import find_mass, laplace_mixture
from vae2aef.laplace import fit
from vae2aef.protocols import Target

D, ROWS = 2, 5


class TwoModes:
    """log p(x) times a mixture of two Gaussians, of each datum its own, under a standard normal prior.

    Args:
        log_evidence: log p(x), `(batch,)`.
        means: `(2, batch, D)`.
        precision: of both, `(batch, D, D)`.
        share: of the first.
        draws: the random numbers.
    """

    draws_decoded, prior_apart, dim = None, False, D

    def __init__(self, log_evidence: Tensor, means: Tensor, precision: Tensor, share: float, draws: Draws) -> None:
        self.log_evidence, self.means, self.precision, self.share = log_evidence, means, precision, share
        self.size, self.random, self.log_det = len(log_evidence), draws, torch.full_like(log_evidence, 0.7)

    def start(self) -> Tensor:
        return 0.5 * self.means[0]

    def log_joint(self, v: Tensor, draws: int = 1) -> Tensor:
        offset = v.reshape(draws, self.size, D) - self.means.unsqueeze(1)
        squared = torch.einsum("mndi,dij,mndj->mnd", offset, self.precision, offset)
        shares = torch.tensor([self.share, 1 - self.share]).log()[:, None, None]
        constant = 0.5 * torch.logdet(self.precision) - 0.5 * D * math.log(2 * math.pi)
        return (torch.logsumexp(shares - 0.5 * squared, 0) + constant + self.log_evidence).flatten()

    def log_prior(self, v: Tensor, draws: int = 1) -> Tensor:
        return -0.5 * (v.square() + math.log(2 * math.pi)).sum(1)

    def joint_and_prior(self, v: Tensor, draws: int = 1) -> tuple[Tensor, Tensor]:
        return self.log_joint(v, draws), self.log_prior(v)

    def mean_and_scale(self, v: Tensor, draws: int = 1) -> None:
        return None

    def prior_draws(self, count: int, stream: int) -> Tensor:
        return self.random.normal(stream, 0, count, D)

    def rows(self, take: Tensor) -> "TwoModes":
        one = self.log_evidence[take], self.means[:, take], self.precision[take]
        return TwoModes(*one, self.share, self.random.rows(take))


@pytest.fixture(autouse=True)
def double():
    torch.set_default_dtype(torch.float64)
    torch.manual_seed(0)
    yield
    torch.set_default_dtype(torch.float32)


def target(share: float) -> TwoModes:
    root = 0.5 * torch.randn(ROWS, D, D) + 3 * torch.eye(D)
    first = 0.3 * torch.randn(ROWS, D) + torch.tensor([1.5, 0.0])
    found = TwoModes(
        10 * torch.randn(ROWS), torch.stack([first, -first]), root @ root.mT, share, Draws(torch.arange(ROWS), True)
    )
    as_target: Target = found  # for a type checker
    assert as_target is found
    return found


def test_a_laplace_fit_of_a_gaussian_is_it():
    known = target(1.0)
    with torch.no_grad():
        found = fit(known, known.start(), torch.ones(ROWS, D))
    torch.testing.assert_close(found.mode, known.means[0], atol=2e-3, rtol=0)  # a climb ends 1e-6 nats short
    torch.testing.assert_close(found.factor @ found.factor.mT, known.precision, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(found.log_mass, known.log_evidence, rtol=0, atol=1e-5)


def test_the_search_finds_both_modes_and_their_shares():
    known = target(0.3)
    with torch.no_grad():
        one, both = laplace_mixture(known), find_mass(known)
        estimates = []
        for mixture in (one, both):
            v = mixture.draw(known, 1 << 20, 0, 2000)
            joint, prior = (each.reshape(2000, ROWS) for each in known.joint_and_prior(v.flatten(0, 1), 2000))
            log_w = joint - mixture.log_density(v, prior)
            estimates.append(log_w.logsumexp(0) - math.log(2000))
            effective = 1 / log_w.softmax(0).square().sum(0)
    torch.testing.assert_close(estimates[1], known.log_evidence, rtol=0, atol=0.03)
    assert (effective > 1500).all()  # of both
    assert (known.log_evidence - estimates[0] > 0.3).all()  # the fit that the encoder leads to has 0.3 of the mass


def test_annealing_adds_what_the_target_says_is_to_be_added(monkeypatch):
    monkeypatch.setattr(ais, "TEMPERATURES", 60)
    known = target(0.3)
    with torch.no_grad():
        log_w = ais.log_weights(known, 200)
    expected = known.log_evidence + known.log_det
    torch.testing.assert_close(log_w.logsumexp(0) - math.log(200), expected, rtol=0, atol=0.15)
