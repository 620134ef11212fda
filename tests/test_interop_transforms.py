"""Transforms of torch, Pyro, zuko and nflows as core, prior and posterior flows; each trap sprung and avoided."""

import copy
import pickle
import subprocess
import sys

import pytest
import torch
import torch.distributions as td
from torch import nn

import vae2aef
from vae2aef.interop import as_bijection, as_prior, posterior_flow

D = 4


def pyro_transform(name, *args, **kwargs):
    pytest.importorskip("pyro")
    import pyro.distributions.transforms as T

    return getattr(T, name)(*args, **kwargs)


def zuko_flow(name, **kwargs):
    validate = td.Distribution._validate_args
    zuko = pytest.importorskip("zuko")
    td.Distribution.set_default_validate_args(validate)  # zuko switches it off: not for the tests after this one
    return getattr(zuko.flows, name)(features=D, transforms=2, hidden_features=(8,), **kwargs)


def nflows_maf():
    pytest.importorskip("nflows")
    from nflows import transforms

    return transforms.CompositeTransform([
        transforms.MaskedAffineAutoregressiveTransform(D, 8), transforms.ReversePermutation(D),
        transforms.MaskedAffineAutoregressiveTransform(D, 8),
    ])  # fmt: skip


ZOO = {
    "torch-affine": lambda: td.AffineTransform(torch.randn(D), torch.rand(D) + 0.5),
    "torch-compose": lambda: td.ComposeTransform(
        [td.AffineTransform(0.1, 0.5), td.TanhTransform(), td.AffineTransform(0.0, 2.0)]
    ),
    "torch-inverse": lambda: td.AffineTransform(torch.randn(D), torch.rand(D) + 0.5).inv,
    "torch-independent": lambda: td.IndependentTransform(td.AffineTransform(1.0, torch.rand(D) + 0.5), 1),
    "pyro-iaf": lambda: pyro_transform("affine_autoregressive", D, hidden_dims=[8]),
    "pyro-stable-iaf": lambda: pyro_transform("affine_autoregressive", D, hidden_dims=[8], stable=True),
    "pyro-maf": lambda: pyro_transform("affine_autoregressive", D, hidden_dims=[8]).inv,
    "pyro-coupling": lambda: pyro_transform("affine_coupling", D, hidden_dims=[8]),
    "pyro-spline": lambda: pyro_transform("spline_coupling", D, hidden_dims=[8]),
    "pyro-permute": lambda: pyro_transform("Permute", torch.tensor([2, 0, 3, 1])),
    "pyro-compose": lambda: td.ComposeTransform(
        [pyro_transform("affine_coupling", D, hidden_dims=[8]), pyro_transform("permute", D)]
    ),
    "zuko-maf": lambda: zuko_flow("MAF"),
    "zuko-maf-transform": lambda: zuko_flow("MAF").transform,
    "zuko-spline": lambda: zuko_flow("NSF", bins=4),
    "nflows-maf": nflows_maf,
}
NO_PICKLE = {"pyro-stable-iaf"}  # Pyro binds methods of the original object to it


@pytest.fixture(params=ZOO)
def case(request):
    torch.manual_seed(0)
    transform = ZOO[request.param]()
    return request.param, transform, as_bijection(transform)


@pytest.mark.parametrize("shape", [(D,), (2, 2), (D, 1, 1)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_inverse_and_log_det(case, shape, dtype):
    _name, _, bijection = case
    bijection.to(dtype)
    x = 0.5 * torch.randn(3, *shape, dtype=dtype)
    y, log_det = bijection(x)
    assert y.shape == x.shape and log_det.shape == (3,)
    tolerance = 1e-4 if dtype is torch.float32 else 1e-8
    back, log_det_back = bijection.inverse(y)
    assert back.dtype == dtype
    torch.testing.assert_close(back, x, atol=tolerance, rtol=tolerance)
    torch.testing.assert_close(log_det_back, -log_det, atol=10 * tolerance, rtol=tolerance)
    for i in range(3):
        jacobian = torch.autograd.functional.jacobian(lambda v: bijection(v[None])[0][0], x[i]).reshape(D, D)
        torch.testing.assert_close(log_det[i], torch.linalg.slogdet(jacobian)[1], atol=10 * tolerance, rtol=tolerance)


def test_copies_state_and_gradients(case):
    name, _, bijection = case
    x = 0.5 * torch.randn(3, D)
    y, log_det = bijection(x)
    if list(bijection.parameters()):
        (y.square().sum() + log_det.sum()).backward()
    for key, parameter in bijection.named_parameters():
        assert parameter.grad is not None, key
    copies = [copy.deepcopy(bijection)]
    if name not in NO_PICKLE:
        copies.append(pickle.loads(pickle.dumps(bijection)))
    for other in copies:
        torch.testing.assert_close(other(x)[0], y)
    assert all(t.is_meta for t in copy.deepcopy(bijection).to("meta").state_dict().values())
    other = as_bijection(ZOO[name]())
    other.load_state_dict(bijection.state_dict())
    if "permute" not in name and "compose" not in name:
        torch.testing.assert_close(other(x)[0], y)


def test_as_prior_is_a_density_in_its_library_s_direction(case):
    name, transform, _ = case
    prior = as_prior(transform, (2, 2))
    z = 0.3 * torch.randn(5, 2, 2)
    if name == "torch-compose":  # its values are bounded: no density on all reals, but fine where it has one
        z = z.clamp(-0.5, 0.5)
    value = prior.log_prob(z)
    flat = z.flatten(1)
    base = td.Independent(td.Normal(torch.zeros(D), torch.ones(D)), 1)
    if name.startswith(("torch", "pyro")):
        expected = td.TransformedDistribution(base, [transform]).log_prob(flat)
    elif name == "nflows-maf":
        noise, log_det = transform(flat)
        expected = base.log_prob(noise) + log_det
    else:
        noise, log_det = (transform.transform if hasattr(transform, "base") else transform)().call_and_ladj(flat)
        expected = base.log_prob(noise) + log_det
    torch.testing.assert_close(value, expected, atol=1e-4, rtol=1e-4)
    assert prior.sample(3).shape == (3, 2, 2)


def test_nflows_and_zuko_densities_as_priors():
    pytest.importorskip("nflows")
    from nflows.distributions import StandardNormal
    from nflows.flows import Flow

    flow, lazy = Flow(nflows_maf(), StandardNormal([D])), zuko_flow("MAF")
    z = torch.randn(5, 2, 2)
    for given, expected in ((flow, flow.log_prob(z.flatten(1))), (lazy, lazy().log_prob(z.flatten(1)))):
        prior = as_prior(given, (2, 2))
        torch.testing.assert_close(prior.log_prob(z), expected)
        assert prior.sample(3).shape == (3, 2, 2)
        assert len(list(prior.parameters())) == len(list(given.parameters())) > 0
    with pytest.raises(vae2aef.WrapError, match=r"prior=flow, not prior=flow\(\)"):
        as_prior(lazy(), (D,))


class Vae(nn.Module):
    def __init__(self, flow=None):
        super().__init__()
        self.enc, self.dec = nn.Linear(6, 2 * D), nn.Linear(D, 6)
        self.flow = flow

    def encoder(self, x):
        return self.enc(x).chunk(2, 1)

    def decoder(self, z):
        return self.dec(z)


@pytest.mark.parametrize("name", ["torch-affine", "pyro-coupling", "zuko-maf", "nflows-maf"])
def test_inside_wrap(name):
    """The loss with an outside core flow and prior is Eq. 10 with that flow, and all of it is trained and counted."""
    torch.manual_seed(0)
    vae, flow, prior = Vae(), ZOO[name](), ZOO[name]()
    x = torch.randn(8, 6)
    aef = vae2aef.wrap(vae, example=x, encoder_scale="log_std", core_flow=flow, prior=prior, residual=1.0, noise=0.0)
    terms = aef(x, terms=True)
    loc, log_std = vae.encoder(x)
    u, log_det = as_bijection(flow)(aef.core(x)[0])
    torch.testing.assert_close(terms.z, loc + log_std.exp() * u)
    torch.testing.assert_close(terms.log_det, log_det + log_std.sum(1))
    torch.testing.assert_close(terms.prior, as_prior(prior, (D,)).log_prob(terms.z))
    terms.loss.backward()
    for part in (flow, prior):
        for key, parameter in part.named_parameters() if isinstance(part, nn.Module) else ():
            if key.startswith("base"):
                continue
            assert parameter.grad is not None, key
            assert any(p is parameter for p in aef.added_parameters())
    assert aef.sample(3).shape == (3, 6)
    assert aef.log_prob(x, num_samples=4, proposal="tuned").value.isfinite().all()


class FlowVae(Vae):
    """A VAE with a flow after its affine posterior."""


class FlowParts(vae2aef.VAEParts):
    def __init__(self, vae, *_):
        self.vae, self.flow = vae, posterior_flow(vae.flow)
        self.encoder = self.flow  # a module of the parts: trained with them

    def encode(self, x):
        loc, log_std = self.vae.encoder(x)
        return vae2aef.Posterior(loc, log_std.exp(), self.flow)

    def decode(self, z):
        return vae2aef.Decoded(self.vae.decoder(z))


vae2aef.register_adapter(f"{__name__}.FlowVae")(FlowParts)


@pytest.mark.parametrize("name", ["torch-affine", "pyro-iaf", "pyro-spline", "zuko-maf", "nflows-maf"])
def test_posterior_flow(name):
    """z = T(loc + scale u), and T's log-det is in the loss."""
    torch.manual_seed(0)
    flow, x = ZOO[name](), torch.randn(8, 6)
    vae = FlowVae(flow)
    aef = vae2aef.wrap(vae, example=x, residual=1.0, noise=0.0)
    terms = aef(x, terms=True)
    loc, log_std = vae.encoder(x)
    u, log_det = aef.core_flow(aef.core(x)[0])
    z, change = as_bijection(flow)(loc + log_std.exp() * u)
    torch.testing.assert_close(terms.z, z)
    torch.testing.assert_close(terms.log_det, log_det + log_std.sum(1) + change)
    terms.loss.backward()
    for key, parameter in flow.named_parameters() if isinstance(flow, nn.Module) else ():
        assert parameter.grad is not None or key.startswith("base"), key


def test_no_inverse_is_said_when_it_is_needed():
    planar = as_bijection(pyro_transform("planar", D))
    x = torch.randn(3, D)
    assert planar(x)[1].shape == (3,)
    with pytest.raises(vae2aef.WrapError, match="Planar has no inverse"):
        planar.inverse(x)


def test_not_bijective_and_not_a_transform():
    with pytest.raises(vae2aef.WrapError, match="AbsTransform is not bijective"):
        as_bijection(td.AbsTransform())
    with pytest.raises(TypeError, match="Pyro, zuko or nflows; got Linear"):
        as_bijection(nn.Linear(2, 2))


# ---------------------------------------------------------------- the traps (DESIGN, section 4)


def _train(module):
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.add_(0.3)


def test_trap_pyro_stale_cache():
    """Pyro: the same tensor after a parameter change gets the old value and the old log-determinant."""
    transform = ZOO["pyro-iaf"]()
    x = torch.randn(3, D)
    y = transform(x)
    before = transform.log_abs_det_jacobian(x, y).detach()
    _train(transform)
    assert transform(x) is y  # sprung
    assert torch.equal(transform.log_abs_det_jacobian(x, y), before)
    bijection = as_bijection(transform)
    value, log_det = bijection(x)
    assert not torch.allclose(log_det, before)  # avoided
    jacobian = torch.autograd.functional.jacobian(lambda v: bijection(v[None])[0][0], x[0])
    torch.testing.assert_close(log_det[0], torch.linalg.slogdet(jacobian)[1])
    _train(transform)
    assert not torch.allclose(bijection(x)[0], value)


def test_trap_pyro_cache_cannot_be_copied():
    transform = ZOO["pyro-iaf"]()
    transform(torch.randn(3, D))
    with pytest.raises(RuntimeError, match="deepcopy"):
        copy.deepcopy(transform)  # sprung
    bijection = as_bijection(transform)
    bijection(torch.randn(3, D))
    copy.deepcopy(bijection)  # avoided


def test_trap_pyro_maf_inverse_in_float64():
    transform = ZOO["pyro-iaf"]().double()
    y = torch.randn(3, D, dtype=torch.float64)
    with pytest.raises(RuntimeError, match=r"dtype|Double"):
        transform.inv(y)  # sprung
    x, _ = as_bijection(transform).inverse(y)
    torch.testing.assert_close(as_bijection(transform)(x)[0], y)  # avoided


@pytest.mark.slow
def test_trap_zuko_switches_validation_off():
    pytest.importorskip("zuko")
    code = (
        "import torch, vae2aef, vae2aef.interop\n"
        "from torch.distributions import Distribution as D\n"
        "import sys; assert 'zuko' not in sys.modules and 'pyro' not in sys.modules\n"
        "print(D._validate_args)\n"
        "vae2aef.interop.as_bijection(torch.distributions.ExpTransform())\n"
        "print(D._validate_args)\n"
        "import zuko\n"
        "print(D._validate_args)\n"
    )
    out = subprocess.run([sys.executable, "-W", "ignore", "-c", code], capture_output=True, text=True, check=True)
    assert out.stdout.split() == ["True", "True", "False"]  # avoided, avoided, sprung


def _count_calls(module):
    calls = []
    for part in module.modules():
        if isinstance(part, nn.Linear) and part.in_features == D:
            part.register_forward_hook(lambda *_: calls.append(1))
    return calls


def test_trap_zuko_composed_inverse_recomputes():
    """zuko: as a torch TransformedDistribution a MAF needs many network passes a density; here one a layer."""
    lazy = zuko_flow("MAF")
    calls = _count_calls(lazy)
    assert calls == []
    z = torch.randn(3, D)
    base = td.Independent(td.Normal(torch.zeros(D), torch.ones(D)), 1)
    expected = td.TransformedDistribution(base, [lazy.transform().inv]).log_prob(z)
    many = len(calls)
    calls.clear()
    torch.testing.assert_close(as_prior(lazy.transform, (D,)).log_prob(z), expected)
    few = len(calls)
    calls.clear()
    as_bijection(lazy)(z)
    assert few == len(calls) == 2  # two layers; avoided
    assert many > few  # sprung


@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf:UserWarning")  # torch dynamo's
@pytest.mark.slow
def test_trap_zuko_breaks_fullgraph():
    """zuko: no `fullgraph=True`. Ours hold it; a core flow of zuko is compiled with graph breaks, to the same value."""
    x = torch.randn(3, D)
    zuko, ours = as_bijection(zuko_flow("MAF")), vae2aef.AffineCoupling(D)
    torch._dynamo.reset()
    with pytest.raises(torch._dynamo.exc.TorchDynamoException):
        torch.compile(zuko, backend="eager", fullgraph=True)(x)  # sprung
    torch._dynamo.reset()
    torch.testing.assert_close(torch.compile(ours, backend="eager", fullgraph=True)(x), ours(x))
    torch._dynamo.reset()
    torch.testing.assert_close(torch.compile(zuko, backend="eager")(x), zuko(x))  # avoided
    torch._dynamo.reset()


def test_trap_nflows_needs_flat_vectors():
    flow = nflows_maf()
    x = torch.randn(3, 2, 2)
    with pytest.raises(Exception):  # noqa: B017  sprung: whatever it is, it fails or sums wrongly
        y, log_det = flow(x)
        assert y.shape == x.shape and log_det.shape == (3,)
        raise ValueError if not torch.allclose(log_det, flow(x.flatten(1))[1]) else AssertionError
    torch.testing.assert_close(as_bijection(flow)(x)[1], flow(x.flatten(1))[1])  # avoided
