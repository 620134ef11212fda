"""Residual densities: normalised, sampled as they are scored, and their scale learned, shared, fixed or given."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from strategies import FAMILIES, SCALES
from torch import Tensor, nn
from torch.distributions import Laplace, Normal, StudentT

import vae2aef
from vae2aef.residual import MIN_SCALE
from vae2aef.wrapping.likelihoods import read_likelihood
from vae2aef.wrapping.look import Seen

pytestmark = pytest.mark.usefixtures("float64")

TORCH = {"gaussian": Normal, "laplace": Laplace, "student_t": lambda loc, scale: StudentT(4.0, loc, scale)}


def build_residual(option, event_shape: tuple[int, ...]) -> nn.Module:
    seen = Seen(torch.Size(event_shape), {}, 1.0, False, None)
    return read_likelihood(option, torch.zeros(1, *event_shape)).build(seen)


def build(kind: str, family: str, event: tuple[int, ...] = (2, 3)) -> vae2aef.Residual:
    residual = vae2aef.Residual(event, 0.7 if kind == "fixed" else kind, family)
    for p in residual.parameters():
        torch.nn.init.normal_(p)
    return residual


@given(st.sampled_from(SCALES), st.sampled_from(FAMILIES), st.integers(0, 3), st.sampled_from([(), (1,), (2, 3)]))
def test_densities_are_torchs(kind, family, batch, event):
    residual = build(kind, family, event)
    delta, given_scale = 3 * torch.randn(batch, *event), 0.1 + torch.rand(batch, *event)
    scale = residual.scale(given_scale).expand(delta.shape)
    expected = TORCH[family](torch.zeros_like(delta), scale).log_prob(delta)
    torch.testing.assert_close(residual.log_prob(delta, given_scale), expected)


@pytest.mark.parametrize("family", FAMILIES)
def test_densities_integrate_to_one(family):
    residual = vae2aef.Residual((), 0.3, family)
    grid = torch.linspace(-400, 400, 2_000_001)
    total = torch.trapezoid(residual.log_prob(grid).exp(), grid)
    assert abs(total - 1) < 1e-5


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("kind", SCALES)
def test_samples_have_the_density(family, kind):
    """The cumulative distribution of samples at three points, against torch's."""
    residual = build(kind, family)
    scale = torch.rand(2, 3) + 0.5
    draws = residual.sample(torch.zeros(50_000, 2, 3), scale.expand(50_000, 2, 3))
    used = residual.scale(scale).expand(2, 3).detach()
    for point in (-1.0, 0.0, 0.5):
        # Student-t has no cdf in torch: integrate its density.
        grid = torch.linspace(-200, point, 200_001)
        unit = vae2aef.Residual((), 1.0, family)
        expected = torch.trapezoid(unit.log_prob(grid).exp(), grid)
        found = (draws <= point * used).double().mean(0)
        assert (found - expected).abs().max() < 4 * 0.5 / math.sqrt(50_000) + 1e-4


def test_shapes_of_the_scale():
    assert vae2aef.Residual((2, 3), "learned").scale().shape == (2, 3)
    assert vae2aef.Residual((2, 3), "shared").scale().shape == (1, 1)
    assert vae2aef.Residual((2, 3), 0.5).scale() == 0.5
    assert list(vae2aef.Residual((2, 3), 0.5).parameters()) == []
    assert list(vae2aef.Residual((2, 3), "decoder").parameters()) == []


@pytest.mark.parametrize("initial", [1e-3, 0.3, 1.0, 40.0])
def test_where_a_learned_scale_starts(initial):
    for kind in ("learned", "shared"):
        scale = vae2aef.Residual((3,), kind, initial_scale=initial).scale()
        torch.testing.assert_close(scale, torch.full_like(scale, initial + MIN_SCALE))


def test_scales_have_a_floor():
    residual = vae2aef.Residual((3,), "learned")
    torch.nn.init.constant_(residual.raw_scale, -1e4)
    assert (residual.scale() >= MIN_SCALE).all()
    assert residual.log_prob(torch.zeros(1, 3)).isfinite().all()
    given_scale = torch.tensor([[-1.0, 0.0, 1e-9]])
    scale = vae2aef.Residual((3,), "decoder").scale(given_scale)
    assert scale[0, 0].isnan() and torch.equal(scale[0, 1:], torch.full((2,), MIN_SCALE))  # the loss names the NaN


def test_a_learned_scale_keeps_up_with_adam():
    """A hundred steps of 1e-3 shrink a scale of 1 by more than half; at the speed of a plain parameter, by a tenth."""
    residual = vae2aef.Residual((1,))
    optimizer = torch.optim.Adam(residual.parameters(), lr=1e-3)
    for _ in range(100):
        optimizer.zero_grad()
        (-residual.log_prob(torch.zeros(1, 1))).sum().backward()
        optimizer.step()
    assert float(residual.scale().detach()) < 0.5


def test_the_best_scale_is_learned():
    """Maximum likelihood finds the standard deviation, feature by feature or for all."""
    delta = torch.randn(4000, 2) * torch.tensor([0.2, 3.0])
    for kind, expected in (("learned", delta.std(0)), ("shared", delta.square().mean().sqrt())):
        residual = vae2aef.Residual((2,), kind)
        optimizer = torch.optim.Adam(residual.parameters(), 0.1)
        for _ in range(300):
            optimizer.zero_grad()
            (-residual.log_prob(delta).mean()).backward()
            optimizer.step()
        torch.testing.assert_close(residual.scale().detach().squeeze(), expected, rtol=0.02, atol=0.01)


def test_names():
    assert build_residual("laplace", (2,)).family == "laplace"
    assert build_residual("student_t", (2,)).kind == "learned"
    assert build_residual("shared", (2,)).kind == "shared"
    assert build_residual(2, (2,)).kind == "fixed"
    own = vae2aef.Residual((2,), 0.1, "laplace")
    assert build_residual(own, (2,)) is own


@pytest.mark.parametrize("bad", ["Gauss", "gauss", ""])
def test_unknown_names(bad):
    with pytest.raises(
        ValueError, match=r'expected a likelihood "gaussian", "laplace".*a number, a module or a callable'
    ):
        build_residual(bad, (2,))
    with pytest.raises(ValueError, match="expected a residual family gaussian, laplace, student_t"):
        vae2aef.Residual((2,), family=bad)
    with pytest.raises(ValueError, match="expected a scale"):
        vae2aef.Residual((2,), bad)


@pytest.mark.parametrize("bad", [0.0, -1.0, math.inf, math.nan])
def test_scales_that_are_none(bad):
    with pytest.raises(ValueError, match="expected a positive residual scale"):
        vae2aef.Residual((2,), bad)


def test_objects_that_are_no_residual():
    for bad in (nn.Linear(2, 2), [1]):
        with pytest.raises(TypeError, match=r"log_prob\(delta, decoder_scale\)"):
            build_residual(bad, (2,))


def test_decoder_scale_that_is_missing():
    with pytest.raises(ValueError, match=r"needs a decoder that returns \(mean, scale\)"):
        vae2aef.Residual((2,), "decoder").log_prob(torch.zeros(1, 2))


def test_a_density_of_the_users_own():
    """Anything with elementwise `log_prob` and `sample` stands in."""

    class Cauchy(nn.Module):
        def log_prob(self, delta: Tensor, decoder_scale: Tensor | None = None) -> Tensor:
            return -math.log(math.pi) - torch.log1p(delta.square())

        def sample(self, mean: Tensor, decoder_scale: Tensor | None = None) -> Tensor:
            return torch.full_like(mean, 7.0)

    aef = vae2aef.wrap(
        None,
        example=torch.zeros(2, 3),
        encoder=lambda x: (x[:, :1], torch.ones_like(x[:, :1])),
        decoder=lambda z: z.expand(-1, 3),
        encoder_scale="std",
        residual=Cauchy(),
    )
    x = torch.randn(4, 3)
    terms = aef(x, terms=True)
    expected = torch.distributions.Cauchy(terms.z.expand(-1, 3), 1.0).log_prob(x).sum(1)
    torch.testing.assert_close(terms.residual, expected)
    z = torch.zeros(2, 1)
    assert torch.equal(aef.decode(z, residual=True), aef.decode(z) + 7)
