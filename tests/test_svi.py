"""AEF_ELBO equals wrap for one Normal site, and Trace_ELBO at h = 0, sigma = 1; log-dets against autograd."""

import math

import pytest
import torch
from torch import nn

pyro = pytest.importorskip("pyro")
import pyro.distributions as dist  # noqa: E402
import pyro.poutine as poutine  # noqa: E402
from hypothesis import given  # noqa: E402
from hypothesis import strategies as st  # noqa: E402
from pyro.infer import SVI, Trace_ELBO  # noqa: E402

import vae2aef  # noqa: E402
from vae2aef.svi import AEF_ELBO  # noqa: E402
from vae2aef.svi.sites import read_site  # noqa: E402

pytestmark = pytest.mark.usefixtures("core_flows")

D, N = 3, 6


@pytest.fixture(autouse=True)
def fresh():
    pyro.clear_param_store()
    torch.manual_seed(0)
    pyro.enable_validation(True)
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(torch.float32)


class Pair:
    """A VAE as model and guide, with choices."""

    def __init__(self, family="normal", full=None, subsample=None, scale=1.0, mask=None, plate=True):
        self.enc, self.dec = nn.Linear(N, 2 * D), nn.Sequential(nn.Linear(D, 8), nn.Tanh(), nn.Linear(8, N))
        self.family, self.full, self.subsample, self.scale, self.mask = family, full, subsample, scale, mask

    def plate(self, x):
        return pyro.plate("data", self.full or len(x), subsample_size=self.subsample or len(x))

    def rows(self, x, index):
        return x if self.subsample is None or self.subsample == len(x) else x[index]

    def q(self, x):
        loc, raw = self.enc(x).chunk(2, -1)
        scale = (0.3 * raw).exp()
        if self.family == "normal":
            return dist.Normal(loc, scale).to_event(1)
        if self.family == "laplace":
            return dist.Laplace(loc, scale).to_event(1)
        if self.family == "student":
            return dist.StudentT(5.0, loc, scale).to_event(1)
        if self.family == "mvn":
            lower = torch.diag_embed(scale) + 0.3 * torch.ones(D, D).tril(-1) * loc.unsqueeze(-1)
            return dist.MultivariateNormal(loc, scale_tril=lower)
        if self.family == "transformed":
            base = dist.Normal(loc, scale).to_event(1)
            return dist.TransformedDistribution(base, [dist.transforms.AffineTransform(0.3, 2.0)])
        return dist.LogNormal(loc, scale).to_event(1)

    def model(self, x):
        pyro.module("dec", self.dec)
        with poutine.scale(scale=self.scale), self.plate(x) as index:
            x = self.rows(x, index)
            with poutine.mask(mask=torch.ones(len(x), dtype=bool) if self.mask is None else self.mask):
                z = pyro.sample("z", dist.Normal(torch.zeros(D), 1.0).to_event(1))
                pyro.sample("x", dist.Normal(self.dec(z), 0.7).to_event(1), obs=x)

    def guide(self, x):
        pyro.module("enc", self.enc)
        with poutine.scale(scale=self.scale), self.plate(x) as index:
            x = self.rows(x, index)
            with poutine.mask(mask=torch.ones(len(x), dtype=bool) if self.mask is None else self.mask):
                pyro.sample("z", self.q(x))


def grads(named):
    return {name: p.grad.clone() for name, p in named if p.grad is not None}


@pytest.mark.parametrize("core_flow", ["none", "coupling", "maf"])
@pytest.mark.parametrize("noise", [0.0, 0.3])
def test_one_normal_site_equals_wrap(core_flow, noise, monkeypatch):
    """Loss and every gradient, on the same networks and the same noise, to 1e-6 (here 1e-10)."""
    pair, x = Pair(), torch.randn(8, N)

    def encoder(x):
        loc, raw = pair.enc(x).chunk(2, -1)
        return loc, 0.3 * raw

    aef = vae2aef.wrap(
        nn.ModuleDict({"enc": pair.enc, "dec": pair.dec}), example=x, encoder=encoder, decoder=pair.dec,
        encoder_scale="log_std", core_flow=core_flow, residual=0.7, noise=noise, kl="sampled",
    )  # fmt: skip
    elbo = AEF_ELBO(core=aef.core.features, core_flow=aef.core_flow, noise=noise)
    if noise:  # the two draw their noise by different calls: hand the one that Pyro will draw to the other
        torch.manual_seed(1)
        epsilon = dist.Normal(torch.zeros(8, D), torch.ones(8, D)).rsample()
        monkeypatch.setattr(aef.core, "perturb", lambda core: core + noise * epsilon)
    loss = aef(x)
    loss.backward()
    expected = grads(aef.named_parameters())
    aef.zero_grad()
    torch.manual_seed(1)
    total = elbo.differentiable_loss(pair.model, pair.guide, x)
    (total / 8).backward()
    torch.testing.assert_close(total / 8, loss, rtol=1e-10, atol=1e-10)
    got = grads(aef.named_parameters())
    assert expected.keys() == got.keys() and expected
    for name, value in expected.items():
        torch.testing.assert_close(got[name], value, rtol=1e-9, atol=1e-9, msg=name)


CASES = {
    "plain": {},
    "full data size": {"full": 50},
    "subsampled inside": {"full": 8, "subsample": 5},
    "scaled": {"scale": 0.25},
    "masked": {"mask": torch.tensor([True, False, True, True, False, True, True, True])},
}


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("family", ["normal", "laplace", "student", "mvn", "transformed"])
def test_bridge_to_trace_elbo_term_by_term(case, family):
    """h = 0, sigma = 1: every value and term is Trace_ELBO's; -log q is log g_s + the noise's own -log density."""
    pair, x = Pair(family, **CASES[case]), torch.randn(8, N)
    theirs, ours = Trace_ELBO(), AEF_ELBO(core="noise", core_flow="none")
    torch.manual_seed(1)
    model_a, guide_a = theirs._get_trace(pair.model, pair.guide, (x,), {})
    torch.manual_seed(1)
    model_b, guide_b = ours._get_trace(pair.model, pair.guide, (x,), {})
    torch.testing.assert_close(guide_b.nodes["z"]["value"], guide_a.nodes["z"]["value"])
    for name in ("z", "x"):
        torch.testing.assert_close(model_b.nodes[name]["log_prob"], model_a.nodes[name]["log_prob"])
    site, expected = guide_b.nodes["z"], guide_a.nodes["z"]
    read = read_site(expected["fn"])
    z = expected["value"]
    for transform in reversed(read.transforms):
        z = transform.inv(z)
    epsilon = (z - read.loc) / read.scale if not read.triangular else torch.linalg.solve_triangular(
        read.scale, (z - read.loc).unsqueeze(-1), upper=False
    ).squeeze(-1)  # fmt: skip
    excess = (read.standard.log_prob(epsilon) + read.standard.entropy()).sum(-1)  # mean zero: log N(e) + entropy
    scale, mask = expected["scale"], expected["mask"]
    assert scale == site["scale"]
    mask = torch.ones(len(excess)) if mask is None else mask
    torch.testing.assert_close(site["log_prob"], expected["log_prob"] - scale * mask * excess)
    loss = model_a.log_prob_sum() - guide_a.log_prob_sum() + (scale * mask * excess).sum()
    torch.testing.assert_close(model_b.log_prob_sum() - guide_b.log_prob_sum(), loss)


def test_bridge_gradients():
    """h = 0, sigma = 1: encoder and decoder gradients are those of Trace_ELBO with the same noise."""
    pair, x = Pair(), torch.randn(8, N)
    results = []
    for loss in (Trace_ELBO(), AEF_ELBO(core="noise", core_flow="none")):
        torch.manual_seed(1)
        loss.loss_and_grads(pair.model, pair.guide, x)
        parameters = [*pair.enc.named_parameters("enc"), *pair.dec.named_parameters("dec")]
        results.append(grads(parameters))
        for _, p in parameters:
            p.grad = None
    assert len(results[0]) == 6
    for name, value in results[0].items():
        torch.testing.assert_close(results[1][name], value, msg=name)


@pytest.mark.slow
def test_subsampling_is_unbiased():
    """At sigma = 0 the mean over all pairs of rows is the loss of all rows."""
    x = torch.randn(4, N)
    pair = Pair(full=4, subsample=2)
    elbo = AEF_ELBO(noise=0)
    elbo.loss(pair.model, pair.guide, x)
    whole = Pair(full=4)
    whole.enc, whole.dec = pair.enc, pair.dec
    expected = elbo.loss(whole.model, whole.guide, x)
    seen = [elbo.loss(pair.model, pair.guide, x) for _ in range(400)]
    values = torch.tensor(seen)
    assert len(values.mul(1e8).round().unique()) == 6  # four choose two: h read the rows that were drawn
    assert abs(values.unique(dim=0).mean() - expected) < 3 * values.std() / math.sqrt(6) + 1e-6
    torch.testing.assert_close(
        torch.tensor(sorted({round(v, 6) for v in seen})).mean(), torch.tensor(expected), rtol=1e-6, atol=1e-6
    )


@pytest.mark.slow
def test_particles():
    pair, x = Pair(), torch.randn(8, N)
    elbo = AEF_ELBO(noise=0.5, core_flow="none")
    elbo.loss(pair.model, pair.guide, x)
    single = torch.tensor([elbo.loss(pair.model, pair.guide, x) for _ in range(200)])
    for vectorize in (False, True):
        many = AEF_ELBO(
            core=elbo.maps["z"].features, core_flow="none", noise=0.5, num_particles=200,
            vectorize_particles=vectorize, max_plate_nesting=1,
        )  # fmt: skip
        value = many.loss(pair.model, pair.guide, x)
        assert abs(value - single.mean()) < 5 * single.std() / math.sqrt(100)
        loss = many.loss_and_grads(pair.model, pair.guide, x)
        assert math.isfinite(loss) and pair.enc.weight.grad is not None


def test_loss_differentiable_loss_and_callable_agree():
    pair, x = Pair(), torch.randn(8, N)
    elbo = AEF_ELBO(noise=0)
    value = elbo.loss(pair.model, pair.guide, x)
    assert isinstance(value, float)
    assert elbo.differentiable_loss(pair.model, pair.guide, x).item() == pytest.approx(value)
    assert elbo.loss_and_grads(pair.model, pair.guide, x) == pytest.approx(value)
    assert elbo(pair.model, pair.guide, x).item() == pytest.approx(value)
    svi = SVI(pair.model, pair.guide, pyro.optim.Adam({"lr": 0.0}), loss=AEF_ELBO(core=elbo.core, noise=0))
    assert math.isfinite(svi.step(x)) and math.isfinite(svi.evaluate_loss(x))
    plain = SVI(pair.model, pair.guide, pyro.optim.Adam({"lr": 1e-2}), loss=elbo)
    assert plain.step(x) == pytest.approx(value)


@pytest.mark.slow
def test_svi_trains_every_parameter():
    pair, x = Pair(), torch.randn(64, N)
    elbo = AEF_ELBO(noise=0.1)
    svi = SVI(pair.model, pair.guide, pyro.optim.Adam({"lr": 1e-2}), loss=elbo)
    svi.step(x)
    before = {name: value.detach().clone() for name, value in pyro.get_param_store().items()}
    losses = [svi.step(x) for _ in range(200)]
    for name, value in pyro.get_param_store().items():
        assert not torch.equal(before[name], value), name
    assert sum(losses[-20:]) < sum(losses[:20])


# ---------------------------------------------------------------- several sites


class Hierarchy:
    """z1 and z2, in either order, the later conditioned on the earlier; x from both."""

    def __init__(self, n, sizes, first):
        self.sizes, self.first, self.n = sizes, first, n
        names = list(sizes)
        self.order = names if first == names[0] else names[::-1]
        self.q = {}
        known = n
        for name in self.order:
            self.q[name] = nn.Sequential(nn.Linear(known, 7), nn.Tanh(), nn.Linear(7, 2 * sizes[name]))
            known += sizes[name]
        self.p = nn.Sequential(nn.Linear(sizes["z1"], 7), nn.Tanh(), nn.Linear(7, sizes["z2"]))
        self.dec = nn.Sequential(nn.Linear(sum(sizes.values()), 7), nn.Tanh(), nn.Linear(7, n))

    def guide(self, x):
        known = x
        with pyro.plate("data", len(x)):
            for name in self.order:
                loc, raw = self.q[name](known).chunk(2, -1)
                z = pyro.sample(name, dist.Normal(loc, raw.exp()).to_event(1))
                known = torch.cat([known, z], -1)

    def model(self, x):
        with pyro.plate("data", len(x)):
            z1 = pyro.sample("z1", dist.Normal(torch.zeros(self.sizes["z1"]), 1.0).to_event(1))
            z2 = pyro.sample("z2", dist.Normal(self.p(z1), 0.8).to_event(1))
            pyro.sample("x", dist.Normal(self.dec(torch.cat([z1, z2], -1)), 0.6).to_event(1), obs=x)


@given(n=st.integers(1, 4), d1=st.integers(1, 3), d2=st.integers(1, 3), first=st.sampled_from(["z1", "z2"]),
       flow=st.sampled_from(["none", "coupling", "maf"]), seed=st.integers(0, 99))  # fmt: skip
def test_two_levels_whole_map_against_slogdet(n, d1, d2, first, flow, seed):
    """(x, w1, w2) -> (z1, z2, delta): the sum of the sites' log-dets is log|det| of autograd's Jacobian."""
    pyro.clear_param_store()
    torch.manual_seed(seed)
    sizes = {"z1": d1, "z2": d2}
    pair = Hierarchy(n, sizes, first)
    elbo = AEF_ELBO(core_flow=flow, noise=0)
    x = torch.randn(2, n)
    elbo.loss(pair.model, pair.guide, x)

    def whole(v):
        x, w = v[:n], dict(zip(sizes, v[n:].split(list(sizes.values())), strict=True))
        for name in sizes:
            elbo.maps[name].features.forward = lambda x, w=w[name]: w.expand(2, -1)
        _, guide = elbo._get_trace(pair.model, pair.guide, (torch.stack([x, x]),), {})
        z = [guide.nodes[name]["value"][0] for name in sizes]
        delta = x - pair.dec(torch.cat(z))
        whole.log_det = -sum(guide.nodes[name]["log_prob"][0] for name in sizes)
        return torch.cat([*z, delta])

    v = torch.randn(n + d1 + d2)
    jacobian = torch.autograd.functional.jacobian(whole, v)
    torch.testing.assert_close(torch.linalg.slogdet(jacobian)[1], whole.log_det, rtol=1e-8, atol=1e-8)


def test_two_levels_loss_is_the_sum_of_eq_10():
    """Written out by hand from the same networks: priors, residual, log-determinants."""
    pair, x = Hierarchy(4, {"z1": 2, "z2": 3}, "z1"), torch.randn(5, 4)
    elbo = AEF_ELBO(noise=0)
    loss = elbo.loss(pair.model, pair.guide, x)
    known, total, z = x, torch.zeros(5), {}
    for name in pair.order:
        loc, raw = pair.q[name](known).chunk(2, -1)
        u, log_det = elbo.maps[name].flow(elbo.maps[name].features(x))
        z[name] = loc + raw.exp() * u
        total = total + log_det + raw.sum(-1)
        known = torch.cat([known, z[name]], -1)
    normal = torch.distributions.Normal
    total = total + normal(0.0, 1.0).log_prob(z["z1"]).sum(-1)
    total = total + normal(pair.p(z["z1"]), 0.8).log_prob(z["z2"]).sum(-1)
    total = total + normal(pair.dec(torch.cat([z["z1"], z["z2"]], -1)), 0.6).log_prob(x).sum(-1)
    assert loss == pytest.approx(-total.sum().item(), rel=1e-9)
