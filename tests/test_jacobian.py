"""Log-determinants of each piece and of the whole map against slogdet of autograd's Jacobian (DESIGN 6.2)."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from strategies import EXPANDED, PARTITIONS, PREPROCESSINGS, aefs, make_preprocess, seeds
from test_bijections import KINDS, SHAPES, build
from torch import Tensor
from zoo_core import FlowPosteriorVAE, SmallVAE, shake

import vae2aef
from vae2aef.flows import Bijection
from vae2aef.tensors import numel
from vae2aef.testing import check_jacobian
from vae2aef.wrapping.options import build_preprocess

pytestmark = pytest.mark.usefixtures("float64")


def slogdet(bijection: Bijection, x: Tensor, inverse: bool = False) -> Tensor:
    """log|det| of the Jacobian of each row by torch.func, `(batch,)`."""

    def one(v: Tensor) -> Tensor:
        x = v.reshape(1, *shape)
        return (bijection.inverse(x) if inverse else bijection(x))[0].reshape(-1)

    shape = x.shape[1:]
    rows = [torch.linalg.slogdet(torch.func.jacrev(one)(row.reshape(-1)))[1] for row in x]
    return torch.stack(rows).detach() if rows else x.new_zeros(0)


@given(st.sampled_from(KINDS), st.sampled_from(SHAPES), st.integers(0, 3), seeds, st.booleans())
def test_flows(kind, shape, batch, seed, inverse):
    torch.manual_seed(seed)
    flow = build(kind, numel(shape))
    shake(flow)
    x = torch.randn(batch, *shape)
    log_det = (flow.inverse(x) if inverse else flow(x))[1]
    torch.testing.assert_close(log_det.detach(), slogdet(flow, x, inverse) if numel(shape) else x.new_zeros(batch))


@given(
    st.sampled_from([*PREPROCESSINGS, "dequantize"]),
    st.sampled_from([(), (1,), (3,), (2, 2), (2, 1, 3)]),
    st.integers(0, 3),
    seeds,
    st.booleans(),
)
def test_preprocessing(kind, shape, batch, seed, inverse):
    torch.manual_seed(seed)
    example = 0.02 + 0.96 * torch.rand(5, *shape)
    bijection = build_preprocess(kind if kind == "dequantize" else make_preprocess(kind, example), example)
    x = 0.02 + 0.96 * torch.rand(batch, *shape)
    x = bijection(x)[0] if inverse else x
    log_det = (bijection.inverse(x) if inverse else bijection(x))[1]
    torch.testing.assert_close(log_det, slogdet(bijection, x, inverse))


@given(aefs(cores=EXPANDED, batches=st.integers(1, 2)))
def test_whole_expanded_map(case):
    """(x, w) -> (z, delta), preprocessing included."""
    check_jacobian(case.aef, case.x)


@given(aefs(cores=PARTITIONS, batches=st.integers(1, 2)))
def test_whole_partition_map(case):
    """x -> (z, delta), preprocessing included."""
    check_jacobian(case.aef, case.x)


@pytest.mark.parametrize("core", ["linear", "noise"])
@pytest.mark.parametrize("latent", [(1,), (3,), (2, 2)])
def test_whole_map_with_a_posterior_flow(core, latent):
    """z = T(g_m + g_s u): the log-determinant of T is counted."""
    x = 0.02 + 0.96 * torch.rand(2, 2, 3)
    aef = vae2aef.wrap(FlowPosteriorVAE((2, 3), latent), example=x, core=core, core_flow="coupling", preprocess="logit")
    shake(aef)
    check_jacobian(aef, x)


@given(aefs(batches=st.integers(1, 3)))
def test_the_loss_counts_this_determinant(case):
    """`LossTerms.log_det` is the log-determinant of the map at the w of that pass, for every sigma."""
    aef, x = case.aef, case.x
    seen = {}
    original = type(aef.core).perturb

    def remember(core: Tensor) -> Tensor:
        seen["w"] = original(aef.core, core)
        return seen["w"]

    aef.core.perturb = remember
    terms = aef(x, terms=True)
    size, batch = numel(aef.event_shape), x.shape[0]
    partition = aef.core.exact

    def whole(v: Tensor) -> Tensor:
        y = aef.preprocess(v[None, :size].reshape(1, *aef.event_shape))[0]
        core, shell = aef.core(y)
        w = core if partition else v[None, size:].reshape(core.shape)
        loc, scale, _ = aef.parts.encode(shell)
        z = loc + scale * aef.core_flow(w)[0]
        delta = (shell - aef.parts.decode(z).mean.reshape(shell.shape)).reshape(-1)
        if partition:
            delta = delta[~aef.core.mask.reshape(-1)]
        return torch.cat([z.reshape(-1), delta])

    for i in range(batch):
        v = x[i].reshape(-1) if partition else torch.cat([x[i].reshape(-1), seen["w"][i].reshape(-1)])
        expected = torch.linalg.slogdet(torch.func.jacrev(whole)(v))[1]
        torch.testing.assert_close(terms.log_det[i], expected, rtol=1e-8, atol=1e-8)


def test_conditions_are_in_the_map():
    x, label = torch.rand(3, 4), torch.rand(3, 2)
    options = {"encoder_scale": "log_std", "core_flow": "coupling"}
    aef = vae2aef.wrap(SmallVAE((4,), (2,), classes=2), example=(x, {"label": label}), **options)
    check_jacobian(aef, (x, {"label": label}))
