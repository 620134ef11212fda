"""Every bijection undoes itself in both directions; the whole map of an AEF does too (Algorithms 1-3)."""

import copy

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st
from strategies import EXPANDED, PARTITIONS, aefs, make_flow, seeds
from torch import Tensor, nn
from zoo_core import FlowPosteriorVAE, shake

import vae2aef
from vae2aef.flows import MAX_LOG_SCALE, Bijection, Each, Identity, bounded
from vae2aef.testing import check_invertible, check_jacobian
from vae2aef.wrapping.options import build_flow

pytestmark = pytest.mark.usefixtures("float64")

SHAPES = [(0,), (1,), (2,), (3,), (7,), (), (1, 1), (2, 3), (2, 1, 2)]
KINDS = ["none", "coupling", "maf", "iaf", "iaf of couplings", "empty chain"]


def build(kind: str, features: int) -> Bijection:
    if kind == "iaf of couplings":
        return vae2aef.Inverse(vae2aef.Chain(vae2aef.AffineCoupling(features, 5), vae2aef.AffineCoupling(features, 4)))
    return vae2aef.Chain() if kind == "empty chain" else make_flow(kind, features)


@given(st.sampled_from(KINDS), st.sampled_from(SHAPES), st.integers(0, 3), seeds)
def test_flows_undo_themselves(kind, shape, batch, seed):
    torch.manual_seed(seed)
    flow = build(kind, torch.Size(shape).numel())
    shake(flow)
    x = 2 * torch.randn(batch, *shape)
    y, log_det = flow(x)
    assert y.shape == x.shape
    back, log_det_back = flow.inverse(y)
    torch.testing.assert_close(back, x)
    torch.testing.assert_close(log_det_back, -log_det)
    # The other direction, from points that are no images: the map is onto.
    back, log_det_back = flow.inverse(x)
    forth, log_det = flow(back)
    torch.testing.assert_close(forth, x)
    torch.testing.assert_close(log_det, -log_det_back)
    assert log_det.shape == log_det_back.shape == (batch,)


@pytest.mark.parametrize("outer", [1, 2])
def test_each_element_has_a_share_in_the_log_determinant(outer):
    flow = Each(vae2aef.AffineCoupling(6 if outer == 1 else 3, 5), outer)
    shake(flow)
    x = torch.randn(2, 3, 2, 3)
    check_jacobian(flow, x)
    check_invertible(flow, x)


def sequential_inverse(layer: vae2aef.MaskedAutoregressive, y: Tensor) -> tuple[Tensor, Tensor]:
    """The textbook inverse: the whole network once a feature."""
    ordered = torch.zeros_like(y)
    for i in range(layer.features):
        log_scale, shift = layer._affine(ordered)
        ordered = torch.cat([ordered[:, :i], (y * log_scale.exp() + shift)[:, i : i + 1], ordered[:, i + 1 :]], dim=1)
    log_scale, _ = layer._affine(ordered)
    return ordered[:, layer.permutation.argsort()], log_scale.sum(1)


@given(st.integers(1, 9), st.integers(1, 11), st.integers(0, 3), seeds, st.booleans())
def test_incremental_inverse_is_the_sequential_one(features, hidden, batch, seed, grad):
    """For more and for fewer hidden units than features; both with the buffer (no_grad) and without."""
    torch.manual_seed(seed)
    layer = vae2aef.MaskedAutoregressive(features, hidden=hidden)
    shake(layer)
    y = torch.randn(batch, features)
    with torch.set_grad_enabled(grad):
        got = layer.inverse(y)
    for value, expected in zip(got, sequential_inverse(layer, y), strict=True):
        torch.testing.assert_close(value, expected)


@pytest.mark.parametrize("kind", ["coupling", "maf"])
def test_gradients_flow_through_the_inverse(kind):
    """By the parameters and by the input, and they are those of the sequential inverse."""
    layer = make_flow(kind, 5).bijections[0]
    shake(layer)
    y = torch.randn(4, 5, requires_grad=True)
    x, log_det = layer.inverse(y)
    leaves = [y, *layer.parameters()]
    grads = torch.autograd.grad((x.sin().sum() + log_det.sum()), leaves)
    assert all(g.abs().sum() > 0 for g in grads)
    if kind == "maf":
        x, log_det = sequential_inverse(layer, y)
        for got, expected in zip(grads, torch.autograd.grad(x.sin().sum() + log_det.sum(), leaves), strict=True):
            torch.testing.assert_close(got, expected)


@given(st.integers(2, 8), st.integers(1, 9), seeds)
def test_maf_is_autoregressive(features, hidden, seed):
    """In its own order, an output never sees a later input."""
    torch.manual_seed(seed)
    layer = vae2aef.MaskedAutoregressive(features, hidden=hidden)
    shake(layer)
    x = torch.randn(features)
    jacobian = torch.func.jacrev(lambda v: layer(v[None])[0][0])(x)[:, layer.permutation]
    assert torch.equal(jacobian.triu(1), torch.zeros_like(jacobian))


def test_maf_uses_every_earlier_feature():
    layer = vae2aef.MaskedAutoregressive(6, hidden=40)
    shake(layer)
    jacobian = torch.func.jacrev(lambda v: layer(v[None])[0][0])(torch.randn(6))[:, layer.permutation]
    below = torch.ones(6, 6).tril().bool()
    assert (jacobian[below] != 0).all()


@pytest.mark.parametrize("kind", ["coupling", "maf"])
def test_scales_are_bounded(kind):
    """A literal softplus or exp scale explodes when sampled; |log s| <= 3 a layer does not."""
    raw = torch.tensor([-1e9, -1.0, 0.0, 1.0, 1e9])
    assert bounded(raw).abs().max() <= MAX_LOG_SCALE
    layer = make_flow(kind, 4).bijections[0]
    shake(layer, 30.0)
    _, log_det = layer(torch.randn(50, 4))
    assert log_det.abs().max() <= 4 * MAX_LOG_SCALE
    assert torch.isfinite(layer.inverse(torch.randn(50, 4))[0]).all()


def test_default_maf_has_the_hidden_units_it_says():
    for features in (1, 2, 3, 300):
        layer = vae2aef.MaskedAutoregressive(features)
        x = torch.randn(2, features)
        torch.testing.assert_close(layer.inverse(layer(x)[0])[0], x)


@given(aefs(cores=EXPANDED))
def test_whole_expanded_map_undoes_itself(case):
    if case.x.shape[0]:
        check_invertible(case.aef, case.x, tolerance=1e-7)


@given(aefs(cores=PARTITIONS))
def test_whole_partition_map_undoes_itself(case):
    """x -> (z, delta) -> x through `AEF.decode` (Algorithm 2)."""
    if case.x.shape[0]:
        check_invertible(case.aef, case.x, tolerance=1e-7)


@given(aefs(cores=PARTITIONS, preprocessings=["none", "standardize", "per feature"]))
def test_whole_partition_map_is_onto(case):
    """(z, delta) -> x -> (z, delta), from any z and delta: the map is a bijection of all of the data space."""
    aef = copy.deepcopy(case.aef)
    batch = case.x.shape[0]
    z = torch.randn(batch, *aef.latent_shape)
    delta = aef.core.shell(torch.randn_like(case.x))

    class Given(nn.Module):
        def sample(self, mean: Tensor, scale: Tensor | None) -> Tensor:
            return delta

    mean = aef.parts.decode(z).mean.reshape(case.x.shape)
    aef.residual = Given()
    x = aef.decode(z, residual=True)
    torch.testing.assert_close(aef.encode(x), z, rtol=1e-6, atol=1e-6)
    shell = aef.core(aef.preprocess(x)[0])[1]
    torch.testing.assert_close(shell - aef.core.shell(mean), delta, rtol=1e-6, atol=1e-6)


def test_expanded_map_with_a_posterior_flow():
    """decode(z, delta) gives x back whatever stands between u and z."""
    x = torch.rand(3, 2, 3)
    aef = vae2aef.wrap(FlowPosteriorVAE((2, 3), (2,)), example=x, core_flow="coupling", preprocess="logit")
    check_invertible(aef, x)


def test_partition_with_a_posterior_flow_cannot_be_sampled():
    x = torch.rand(3, 2, 3)
    with pytest.raises(vae2aef.WrapError, match=r'posterior flow.*core="linear"'):
        vae2aef.wrap(FlowPosteriorVAE((2, 3), (2,)), example=x, core="center")


def test_prior_samples_have_the_density_they_claim():
    """E_p[q / p] = 1 for samples of p, a flow prior, and q a narrower normal: density and sampler agree."""
    prior = vae2aef.FlowPrior(make_flow("coupling", 2), (2,))
    shake(prior, 0.1)
    z = prior.sample(100_000)
    q = torch.distributions.Normal(z.mean(0), 0.7 * z.std(0))
    with torch.no_grad():
        ratio = (q.log_prob(z).sum(1) - prior.log_prob(z)).exp()
    assert abs(ratio.mean() - 1) < 5 * ratio.std() / len(z) ** 0.5
    assert ratio.std() / len(z) ** 0.5 < 0.02


def test_temperature_scales_the_base_noise():
    torch.manual_seed(3)
    prior = vae2aef.FlowPrior(make_flow("maf", 3), (3,))
    shake(prior)
    torch.manual_seed(0)
    cold = prior.flow(prior.sample(5, temperature=0.25))[0]
    torch.manual_seed(0)
    torch.testing.assert_close(cold, 0.25 * prior.flow(prior.sample(5))[0])


def test_names_of_flows():
    assert isinstance(build_flow("none", 3), Identity)
    assert len(build_flow("coupling", 3).bijections) == 4
    assert all(isinstance(b, vae2aef.MaskedAutoregressive) for b in build_flow("maf", 3).bijections)
    own = vae2aef.AffineCoupling(3)
    assert build_flow(own, 3) is own
    with pytest.raises(ValueError, match=r'expected a flow "none", "coupling", "maf".*got "spline"'):
        build_flow("spline", 3)
    with pytest.raises(TypeError, match=r"Bijection.*got Linear"):
        build_flow(nn.Linear(3, 3), 3)


def test_a_wrong_number_of_features_is_an_error():
    for layer in (vae2aef.AffineCoupling(4), vae2aef.MaskedAutoregressive(4)):
        with pytest.raises(RuntimeError):
            layer(torch.randn(2, 5))
        with pytest.raises(RuntimeError):
            layer.inverse(torch.randn(2, 5))


def test_coupling_normalises_what_it_can_learn():
    """A few steps of maximum likelihood on correlated data come near its entropy: the layers are expressive."""
    torch.manual_seed(0)
    a = torch.tensor([[1.0, 0.0], [0.95, 0.3]])
    data = torch.randn(512, 2) @ a.t()
    entropy = 1 + torch.log(torch.tensor(2 * torch.pi)) + torch.linalg.slogdet(a)[1]
    for kind in ("coupling", "maf"):
        prior = vae2aef.FlowPrior(make_flow(kind, 2), (2,))
        optimizer = torch.optim.Adam(prior.parameters(), 0.02)
        for _ in range(150):
            optimizer.zero_grad()
            loss = -prior.log_prob(data).mean()
            loss.backward()
            optimizer.step()
        assert loss < entropy + 0.1, kind
        assert F.mse_loss(prior.sample(4000).T.cov(), data.T.cov()) < 0.05
