"""The numbers hold in float32, under autocast and compiled (DESIGN 5, 6.7)."""

import copy

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from marks import needs_dynamo
from strategies import aefs
from torch import Tensor
from zoo_core import SmallVAE

import vae2aef

FIRST = {"encoder_scale": "log_std", "noise": 0.0, "core_flow": "coupling"}


@pytest.fixture
def x() -> Tensor:
    return 0.02 + 0.96 * torch.rand(16, 2, 3)


def make(x: Tensor, **options) -> vae2aef.AEF:
    return vae2aef.wrap(SmallVAE((2, 3), (3,)), example=x, **{**FIRST, **options})


@given(aefs(batches=st.integers(1, 3)))
def test_float32_agrees_with_float64(case):
    aef, x = case.aef, case.x.clamp(0.05, 0.95)
    noise = torch.randn(x.shape[0], *aef.latent_shape)
    if not aef.core.exact:
        aef.core.perturb = lambda core: core + aef.noise * noise.to(core)
    single = aef(x, terms=True)
    aef.double()
    double = aef(x.double(), terms=True)
    assert single.loss.dtype == torch.float32
    assert double.loss.dtype == torch.float64
    for name in ("prior", "residual", "log_det", "entropy", "z", "reconstruction"):
        got, expected = getattr(single, name), getattr(double, name)
        size = 1 + expected.abs().max().item() if expected.numel() else 1
        torch.testing.assert_close(got.double(), expected.double(), rtol=1e-3, atol=1e-4 * size, msg=name)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_to_a_dtype_moves_everything(x, dtype):
    aef = make(x, core_flow="maf", prior="coupling", preprocess="standardize", noise=0.2).to(dtype)
    y = x.to(dtype)
    assert aef(y).dtype == dtype
    assert aef.sample(2).dtype == dtype
    assert aef.log_prob(y, num_samples=3, proposal="tuned").value.dtype == dtype
    kinds = {t.dtype for t in aef.state_dict().values() if t.is_floating_point()}
    assert kinds == {dtype}


@pytest.mark.parametrize("core", ["linear", "center"])
@pytest.mark.parametrize("flow", ["coupling", "maf"])
def test_autocast_stays_near_float32(x, core, flow):
    """Networks of the VAE run in bfloat16; densities and log-determinants stay float32."""
    aef = make(x, core=core, core_flow=flow, prior=flow, preprocess="logit")
    expected = aef(x, terms=True)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert aef.vae.encoder(x)[0].dtype == torch.bfloat16
        got = aef(x, terms=True)
    assert {t.dtype for t in got} == {torch.float32}
    torch.testing.assert_close(got.loss, expected.loss, rtol=0.02, atol=0.3)
    got.loss.backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in aef.parameters())


@needs_dynamo
@pytest.mark.parametrize(
    ("core", "flow"), [("linear", "coupling"), pytest.param("center", "maf", marks=pytest.mark.slow)]
)
def test_compiled_equals_eager(x, core, flow):
    """One graph, no break; the same loss and the same gradients."""
    eager = make(x, core=core, core_flow=flow, prior=flow, preprocess="logit")
    twin = copy.deepcopy(eager)
    torch._dynamo.reset()
    compiled = torch.compile(twin, fullgraph=True, backend="aot_eager")
    eager(x).backward()
    loss = compiled(x)
    loss.backward()
    torch.testing.assert_close(loss, eager(x))
    for (name, got), expected in zip(twin.named_parameters(), eager.parameters(), strict=True):
        torch.testing.assert_close(got.grad, expected.grad, msg=name)


@needs_dynamo
@pytest.mark.slow
def test_compiled_with_noise(x):
    """Sigma may change between steps, and the compiled loss follows; Dynamo alone is enough to see it."""
    aef = make(x, noise=0.3, core_flow="none")
    torch._dynamo.reset()
    compiled = torch.compile(aef, fullgraph=True, backend="eager")
    terms = compiled(x, terms=True)
    expected = -(terms.prior + terms.residual + terms.log_det + terms.entropy).mean()
    torch.testing.assert_close(terms.loss, expected)
    torch.testing.assert_close(terms.entropy, aef.core.entropy())
    assert not torch.equal(compiled(x), compiled(x))
    aef.noise = 0.5
    torch.testing.assert_close(compiled(x, terms=True).entropy, aef.core.entropy())
    aef.noise = 0.0
    torch.testing.assert_close(compiled(x), aef(x))
