"""The expanded loss can be lowered for nothing, by a known amount; the marginal cannot (DESIGN 1.1, 6.4)."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from strategies import OwnFeatures, make_flow, seeds
from torch import Tensor, nn
from zoo_core import SmallVAE, shake

import vae2aef
from vae2aef.marginal import Proposal

pytestmark = pytest.mark.usefixtures("float64")

EVENT, LATENT, D = (2, 3), (3,), 3


class Scaled(nn.Module):
    """h / c."""

    def __init__(self, features: nn.Module, c: float) -> None:
        super().__init__()
        self.features, self.c = features, c

    def forward(self, x: Tensor) -> Tensor:
        return self.features(x) / self.c


def build(vae: SmallVAE, features: nn.Module, encoder=None, flow=None, residual=0.8, **options) -> vae2aef.AEF:
    example = 0.02 + 0.96 * torch.rand(4, *EVENT)
    defaults = {"encoder_scale": "log_std", "core": features, "preprocess": "logit", "residual": residual}
    options = {**defaults, "noise": 0.0, **options}
    return vae2aef.wrap(vae, example=example, encoder=encoder, core_flow=flow or "none", **options)


def draw(seed: int) -> tuple[SmallVAE, OwnFeatures, Tensor, Proposal]:
    torch.manual_seed(seed)
    vae, features = SmallVAE(EVENT, LATENT), OwnFeatures(EVENT, LATENT)
    shake(vae)
    x = 0.02 + 0.96 * torch.rand(3, *EVENT)
    return vae, features, x, Proposal(torch.randn(D) - 1, torch.randn(D, D).tril(-1))


def draw_with_flow(seed: int, kind: str, amount: float = 0.3) -> tuple:
    """The same, and a core flow of random weights."""
    drawn, flow = draw(seed), make_flow(kind, D)
    shake(flow, amount)
    return *drawn, flow


def times(c: float) -> vae2aef.Bijection:
    """w -> c w."""
    return vae2aef.Standardize(torch.zeros(()), torch.tensor(1 / c))


def same_seed(aef: vae2aef.AEF, x: Tensor, proposal: Proposal) -> Tensor:
    torch.manual_seed(1)
    return aef.log_prob(x, num_samples=7, proposal=proposal)


def scaled(proposal: Proposal, c: float) -> Proposal:
    return Proposal(proposal.log_scale - math.log(c), proposal.lower)


@given(st.floats(0.05, 20.0), seeds)
def test_shrinking_h_and_growing_g_s(c, seed):
    """h -> h / c, g_s -> c g_s: the loss falls by D log c, and log p(x) is the same, sample by sample."""
    vae, features, x, proposal = draw(seed)
    before = build(vae, features)

    def encoder(x: Tensor) -> tuple[Tensor, Tensor]:
        loc, log_std = vae.encoder(x)
        return loc, log_std + math.log(c)

    after = build(vae, Scaled(features, c), encoder)
    torch.testing.assert_close(after(x), before(x) - D * math.log(c))
    torch.testing.assert_close(after.expanded_log_prob(x), before.expanded_log_prob(x) + D * math.log(c))
    torch.testing.assert_close(after.encode(x), before.encode(x))
    torch.testing.assert_close(after.reconstruct(x), before.reconstruct(x))
    first, second = same_seed(before, x, proposal), same_seed(after, x, scaled(proposal, c))
    torch.testing.assert_close(second.value, first.value)
    torch.testing.assert_close(second.effective_sample_size, first.effective_sample_size)


@given(st.floats(0.05, 20.0), st.sampled_from(["coupling", "maf"]), seeds)
def test_shrinking_h_and_growing_the_flow(c, kind, seed):
    """The same through the core flow: h -> h / c, n^-1(w) -> n^-1(c w)."""
    vae, features, x, proposal, flow = draw_with_flow(seed, kind)
    before = build(vae, features, flow=flow)
    after = build(vae, Scaled(features, c), flow=vae2aef.Chain(times(c), flow))
    torch.testing.assert_close(after(x), before(x) - D * math.log(c))
    torch.testing.assert_close(same_seed(after, x, scaled(proposal, c)).value, same_seed(before, x, proposal).value)


@given(st.floats(0.1, 10.0), st.sampled_from(["none", "coupling", "maf"]), seeds)
def test_the_cancellation_direction(t, kind, seed):
    """With h frozen, g_m = z* - t n^-1(h), g_s = t lowers the loss by D log t; z is z* for every t."""
    vae, features, x, proposal, flow = draw_with_flow(seed, kind)

    def at(t: float) -> vae2aef.AEF:
        def encoder(y: Tensor) -> tuple[Tensor, Tensor]:
            target = vae.encoder(y)[0]
            return target - t * flow(features(y))[0], torch.full_like(target, t)

        return build(vae, features, encoder, flow, encoder_scale="std")

    one, other = at(1.0), at(t)
    torch.testing.assert_close(other(x), one(x) - D * math.log(t))
    torch.testing.assert_close(other.encode(x), one.encode(x))
    torch.testing.assert_close(other.encode(x), vae.encoder(one.preprocess(x)[0])[0])
    if kind == "none":
        torch.testing.assert_close(same_seed(other, x, scaled(proposal, t)).value, same_seed(one, x, proposal).value)


def test_the_marginal_does_not_follow_the_cancellation():
    """Through a curved flow the samples differ, but the tuned estimates agree within their errors."""
    vae, features, x, _, flow = draw_with_flow(5, "coupling", 0.1)
    values = []
    for t in (1.0, 5.0):

        def encoder(y: Tensor, t: float = t) -> tuple[Tensor, Tensor]:
            target = vae.encoder(y)[0]
            return target - t * flow(features(y))[0], torch.full_like(target, t)

        aef = build(vae, features, encoder, flow, residual=3.0, encoder_scale="std")
        values.append(aef.log_prob(x, num_samples=12_000, proposal=aef.tune_proposal(x.repeat(21, 1, 1))))
        assert values[-1].effective_sample_size.min() > 1000
    difference = (values[0].value - values[1].value).abs()
    error = (values[0].std_error.square() + values[1].std_error.square()).sqrt()
    assert (difference < 4 * error).all()
    assert error.max() < 0.05  # where the expanded losses of the two differ by D log 5 = 4.8


@given(st.floats(0.05, 20.0), st.sampled_from(["none", "coupling", "maf"]), seeds)
def test_any_sigma_above_zero_is_one_in_other_units(sigma, kind, seed):
    """(sigma, h, n) and (1, h / sigma, n o sigma) are one model: loss, gradients and marginal, draw by draw."""
    vae, features, x, proposal, flow = draw_with_flow(seed, kind)
    some = build(vae, features, flow=flow, noise=sigma, kl="sampled")
    unit = build(vae, Scaled(features, sigma), flow=vae2aef.Chain(times(sigma), flow), noise=1.0, kl="sampled")
    found = []
    for aef in (some, unit):
        torch.manual_seed(3)
        vae.zero_grad()
        loss = aef(x)
        loss.backward()
        found.append((loss, *(p.grad.clone() for p in vae.parameters())))
    for one, other in zip(*found, strict=True):
        torch.testing.assert_close(one, other)
    torch.testing.assert_close(
        same_seed(some, x, scaled(proposal, 1 / sigma)).value, same_seed(unit, x, proposal).value
    )


def test_with_noise_the_gauge_is_closed():
    """At sigma > 0 the loss is a bound on -log p(x): shrinking h no longer lowers it without end."""
    vae, features, x, _ = draw(3)
    floor = -build(vae, features).log_prob(x, num_samples=3000).value.mean()
    losses = []
    for c in (1.0, 1e2, 1e4, 1e6):

        def encoder(x: Tensor, c: float = c) -> tuple[Tensor, Tensor]:
            loc, log_std = vae.encoder(x)
            return loc, log_std + math.log(c)

        aef = build(vae, Scaled(features, c), encoder, noise=0.3)
        losses.append(torch.stack([aef(x) for _ in range(50)]).mean())
    assert all(loss > floor for loss in losses)
    assert losses[-1] > losses[0] + 100
