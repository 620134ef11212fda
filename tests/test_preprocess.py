"""Preprocessing: dequantisation, the logit of Eq. 19, stored statistics, and bits per dimension."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from strategies import PREPROCESSINGS, make_preprocess, seeds
from torch import nn

import vae2aef
from vae2aef import Chain, Dequantize, Logit, Standardize, bits_per_dim, dequantize
from vae2aef.testing import check_invertible
from vae2aef.wrapping.options import build_preprocess

pytestmark = pytest.mark.usefixtures("float64")


@given(st.sampled_from(PREPROCESSINGS), st.sampled_from([(), (1,), (2, 3), (2, 2, 1)]), st.integers(0, 3), seeds)
def test_every_preprocessing_undoes_itself(kind, shape, batch, seed):
    torch.manual_seed(seed)
    example = 0.02 + 0.96 * torch.rand(4, *shape)
    bijection = build_preprocess(make_preprocess(kind, example), example)
    x = torch.rand(batch, *shape)
    y, log_det = bijection(x)
    back, log_det_back = bijection.inverse(y)
    torch.testing.assert_close(back, x)
    torch.testing.assert_close(log_det_back, -log_det)
    assert log_det.shape == (batch,)
    if batch:
        check_invertible(bijection, x)


# ---------------------------------------------------------------------- logit


@pytest.mark.parametrize("lam", [1e-6, 0.05, 0.3])
def test_logit_is_equation_19(lam):
    x = torch.tensor([[0.0, 1e-9, 0.3, 0.5, 1 - 1e-9, 1.0]])
    y, _ = Logit(lam)(x)
    torch.testing.assert_close(y, torch.logit(lam + (1 - 2 * lam) * x))
    torch.testing.assert_close(Logit(lam).inverse(y)[0], x)


def test_logit_keeps_its_digits_at_both_ends():
    """In float32 with lambda = 1e-6, x and 1 - x are mirror images: y(1 - x) = -y(x)."""
    x = torch.tensor([[0.0, 2**-20, 2**-10]], dtype=torch.float32)
    left, log_det_left = Logit(1e-6)(x)
    right, log_det_right = Logit(1e-6)(1 - x)
    torch.testing.assert_close(right, -left, rtol=1e-6, atol=0)
    torch.testing.assert_close(log_det_right, log_det_left, rtol=1e-6, atol=0)
    torch.testing.assert_close(left.double(), Logit(1e-6)(x.double())[0], rtol=1e-6, atol=0)


def test_logit_outside_is_nan_and_never_passes():
    y, _ = Logit()(torch.tensor([[-1e-9, 0.5, 1 + 1e-9, 255.0]]))
    assert torch.equal(y.isnan(), torch.tensor([[True, False, True, True]]))


def test_logit_of_means_far_out_stays_near_the_unit_interval():
    x, log_det = Logit(0.05).inverse(torch.tensor([[-1e4, -50.0, 0.0, 50.0, 1e4]]))
    assert x.min() >= -0.06 and x.max() <= 1.06
    assert log_det.isfinite().all()


@pytest.mark.parametrize("lam", [0, -0.1, 0.5, 1])
def test_logit_needs_room(lam):
    with pytest.raises(ValueError, match=r"expected lam in \(0, 0.5\)"):
        Logit(lam)


# ---------------------------------------------------------------------- dequantise


@given(st.integers(1, 300), seeds)
def test_dequantised_data_keep_their_level(bins, seed):
    torch.manual_seed(seed)
    x = torch.randint(0, bins, (50,))
    for levels in (x, x.double(), x.float()):
        y = dequantize(levels, bins)
        assert y.min() >= 0 and y.max() < 1
        assert y.dtype == (levels.dtype if levels.is_floating_point() else torch.get_default_dtype())
        if y.dtype == torch.float64:
            assert torch.equal((y * bins).floor().long(), x)


def test_dequantised_data_stay_below_one():
    """In float32 255 + u rounds to 256 now and then; the logit would accept it, and a bin would be off."""
    x = torch.full((4_000_000,), 255, dtype=torch.uint8)
    y = dequantize(x.float())
    assert y.max() < 1


def test_the_noise_is_uniform():
    y = dequantize(torch.full((100_000,), 3), 8) * 8 - 3
    assert abs(y.mean() - 0.5) < 0.005
    assert abs(y.var() - 1 / 12) < 0.001


def test_the_noise_can_be_repeated():
    x = torch.randint(0, 256, (20,))
    one, two = (dequantize(x, generator=torch.Generator().manual_seed(4)) for _ in range(2))
    assert torch.equal(one, two)
    assert not torch.equal(dequantize(x), dequantize(x))


@pytest.mark.parametrize("bad", [-1, 16])
def test_levels_that_are_none(bad):
    with pytest.raises(ValueError, match=rf"expected whole numbers in 0 .. 15, got values from .*{bad}.*`bins`"):
        dequantize(torch.tensor([3, bad]), 16)


def test_dequantize_layer_leaves_continuous_data():
    layer, x = Dequantize(16), torch.rand(3, 2)
    assert torch.equal(layer(x)[0], x)
    y, log_det = layer(torch.randint(0, 16, (3, 2)))
    assert y.is_floating_point() and not log_det.any()
    assert layer(torch.zeros(0, 2, dtype=torch.int64))[0].shape == (0, 2)


# ---------------------------------------------------------------------- standardise


@pytest.mark.parametrize(("per", "shape"), [("all", (1, 1, 1)), ("channel", (2, 1, 1)), ("feature", (2, 3, 4))])
def test_statistics(per, shape):
    x = torch.randn(500, 2, 3, 4) * torch.rand(2, 3, 4) * 5 + torch.randn(2, 3, 4)
    layer = Standardize.fit(x, per=per)
    assert layer.shift.shape == layer.scale.shape == shape
    dims = {"all": (0, 1, 2, 3), "channel": (0, 2, 3), "feature": (0,)}[per]
    y = layer(x)[0]
    assert y.mean(dims).abs().max() < 1e-10
    torch.testing.assert_close(y.std(dims, correction=0), torch.ones_like(y.std(dims)))


def test_a_feature_that_does_not_vary_is_not_blown_up():
    layer = Standardize.fit(torch.ones(10, 3), per="feature")
    assert torch.equal(layer.scale, torch.full((3,), 1e-3))


def test_statistics_are_buffers_and_copies():
    scale = torch.ones(3)
    layer = Standardize(torch.zeros(3), scale)
    scale.zero_()
    assert torch.equal(layer.scale, torch.ones(3))
    assert set(layer.state_dict()) == {"shift", "scale"}
    assert layer.float().shift.dtype == torch.float32


def test_wrong_statistics():
    for scale in (0.0, -1.0, math.nan, math.inf):
        with pytest.raises(ValueError, match="positive, finite scales"):
            Standardize(torch.zeros(()), torch.tensor(scale))
    with pytest.raises(ValueError, match="""expected per="all", "channel" or "feature", got 'pixel'"""):
        Standardize.fit(torch.rand(3, 2), per="pixel")
    with pytest.raises(ValueError, match=r"data of shape \(0, 2\) is empty or not finite"):
        Standardize.fit(torch.rand(0, 2))
    with pytest.raises(ValueError, match="not finite"):
        Standardize.fit(torch.tensor([[math.nan]]))


@pytest.mark.parametrize("layer", [Logit(), Standardize(torch.zeros(()), torch.ones(()))])
def test_integers_are_refused(layer):
    """Binary images as integers would pass the logit's range, and be no density at all."""
    with pytest.raises(TypeError, match=r"torch.int64, and a density needs continuous data.*dequantize"):
        layer(torch.randint(0, 2, (3, 2)))
    with pytest.raises(TypeError, match="dequantize"):
        Standardize.fit(torch.randint(0, 2, (3, 2)))


# ---------------------------------------------------------------------- names, bits


def test_names():
    x = torch.rand(10, 3)
    chain = build_preprocess(["dequantize", "logit", "standardize"], x)
    assert [type(b) for b in chain.bijections] == [Dequantize, Logit, Standardize]
    y = chain(x)[0]
    assert abs(y.mean()) < 1e-10 and abs(y.std(correction=0) - 1) < 1e-10
    assert isinstance(build_preprocess(["logit", Logit()], None), Chain)
    assert torch.equal(build_preprocess(None, None)(x)[0], x)
    with pytest.raises(ValueError, match="takes its statistics from data: pass example=x"):
        build_preprocess("standardize", None)
    with pytest.raises(ValueError, match='expected preprocess "dequantize", "logit" or "standardize", got "sigmoid"'):
        build_preprocess("sigmoid", None)
    with pytest.raises(TypeError, match=r"vae2aef.Bijection, got Sigmoid"):
        build_preprocess(nn.Sigmoid(), None)


def test_bits_per_dim_of_known_densities():
    """Uniform data on [0, 1): 8 bits for 256 levels, 0 for one, by definition."""
    zero = torch.zeros(3)
    assert torch.equal(bits_per_dim(zero, (2, 5)), torch.full((3,), 8.0))
    assert torch.equal(bits_per_dim(zero, (2, 5), bins=1), zero)
    torch.testing.assert_close(bits_per_dim(torch.tensor(-10 * math.log(2.0)), (10,), 16), torch.tensor(5.0))
    # Half of the interval, with twice the density, saves one bit for each value.
    torch.testing.assert_close(bits_per_dim(torch.tensor(6 * math.log(2.0)), (6,)), torch.tensor(7.0))
    # Uniform data on [-1, 1] as well, each value with half the density.
    torch.testing.assert_close(bits_per_dim(torch.tensor(-6 * math.log(2.0)), (6,), width=2), torch.tensor(8.0))
    for shape, bins in (((0,), 256), ((3,), 0)):
        with pytest.raises(ValueError, match="expected an event with values, bins >= 1"):
            bits_per_dim(zero, shape, bins)


def test_bits_per_dim_is_the_same_in_every_space():
    """A density of y = g(x) and the log-determinant of g, or the density of x: the same bits."""
    x = torch.rand(5, 4)
    for g in (Logit(), Chain(Logit(1e-3), Standardize(torch.tensor(1.0), torch.tensor(3.0)))):
        y, log_det = g(x)
        # Under g, uniform data on the unit interval have the density exp(log_det of the inverse).
        density_of_y = g.inverse(y)[1]
        torch.testing.assert_close(bits_per_dim(density_of_y + log_det, (4,)), torch.full((5,), 8.0))
    aef = vae2aef.wrap(
        None,
        example=x,
        encoder=lambda y: (y[:, :1], torch.ones_like(y[:, :1])),
        decoder=lambda z: z.expand(-1, 4),
        encoder_scale="std",
        preprocess="logit",
        core="corner",
    )
    plain = vae2aef.wrap(
        None, example=x, encoder=aef.parts.encoder, decoder=aef.parts.decoder, encoder_scale="std", core="corner",
        core_flow=aef.core_flow, residual=aef.residual,
    )  # fmt: skip
    y, log_det = Logit()(x)
    torch.testing.assert_close(aef.log_prob(x).value, plain.log_prob(y).value + log_det)
