"""aef_guide under every loss of Pyro: the guide itself at h = 0, sigma = 1; AEF_ELBO's own value; gradients."""

import copy
import math

import pytest
import torch
from torch import nn

pyro = pytest.importorskip("pyro")
import pyro.distributions as dist  # noqa: E402
import pyro.poutine as poutine  # noqa: E402
from pyro.infer import (  # noqa: E402
    SVI,
    Importance,
    JitTrace_ELBO,
    JitTraceEnum_ELBO,
    JitTraceGraph_ELBO,
    JitTraceMeanField_ELBO,
    Predictive,
    RenyiELBO,
    Trace_ELBO,
    TraceEnum_ELBO,
    TraceGraph_ELBO,
    TraceMeanField_ELBO,
    config_enumerate,
)

import vae2aef  # noqa: E402

# Pyro's Jit losses call torch.jit.trace, which torch has deprecated.
pytestmark = [
    pytest.mark.usefixtures("core_flows"), pytest.mark.filterwarnings("ignore:.torch.jit:DeprecationWarning")
]  # fmt: skip

B, N, D, K = 5, 4, 2, 3


@pytest.fixture(autouse=True)
def fresh():
    pyro.clear_param_store()
    torch.manual_seed(0)
    pyro.enable_validation(True)
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(torch.float32)


class Pair:
    """A VAE whose families may be chosen, with a label if asked for."""

    def __init__(self, family="normal", label=False, plate=True):
        extra = K * label
        self.enc, self.dec = nn.Linear(N + extra, 2 * D), nn.Linear(D + extra, N)
        self.classify, self.family, self.label = nn.Linear(N, K), family, label
        self.sized = plate

    def plate(self, x):
        return pyro.plate("data", len(x)) if self.sized else pyro.plate("data")

    def model(self, x, y=None):
        pyro.module("dec", self.dec)
        with self.plate(x):
            z = pyro.sample("z", dist.Normal(torch.zeros(len(x), D), 1.0).to_event(1))
            if self.label:
                y = pyro.sample("y", dist.OneHotCategorical(torch.ones(len(x), K) / K), obs=y)
                z, y = (v.expand(*torch.broadcast_shapes(z.shape[:-1], y.shape[:-1]), -1) for v in (z, y))
                z = torch.cat([z, y], -1)
            pyro.sample("x", dist.Normal(self.dec(z), 0.7).to_event(1), obs=x)

    def guide(self, x, y=None):
        pyro.module("enc", self.enc)
        pyro.module("classify", self.classify)
        with self.plate(x):
            seen = x
            if self.label:
                if y is None:
                    y = pyro.sample("y", dist.OneHotCategorical(logits=self.classify(x)))
                seen = torch.cat([x.expand(*y.shape[:-1], N), y], -1)
            loc, raw = self.enc(seen).chunk(2, -1)
            scale = (0.3 * raw).exp()
            if self.family == "mvn":
                lower = torch.diag_embed(scale) + 0.3 * torch.ones(D, D).tril(-1)
                fn = dist.MultivariateNormal(loc, scale_tril=lower)
            elif self.family == "lognormal":
                fn = dist.TransformedDistribution(dist.Normal(loc, scale).to_event(1), [dist.transforms.ExpTransform()])
            else:
                fn = {"normal": dist.Normal, "laplace": dist.Laplace}[self.family](loc, scale).to_event(1)
            pyro.sample("z", fn)


def losses(**options):
    jit = {"ignore_jit_warnings": True, **options}
    many = {"num_particles": 3, "vectorize_particles": True, "max_plate_nesting": 1}
    return {
        "Trace": Trace_ELBO(**options),
        "TraceGraph": TraceGraph_ELBO(**options),
        "TraceEnum": TraceEnum_ELBO(max_plate_nesting=1, strict_enumeration_warning=False, **options),
        "TraceMeanField": TraceMeanField_ELBO(**options),
        "Renyi": RenyiELBO(alpha=0.5, num_particles=3, **options),
        "JitTrace": JitTrace_ELBO(**jit),
        "JitTraceGraph": JitTraceGraph_ELBO(**jit),
        "JitTraceEnum": JitTraceEnum_ELBO(max_plate_nesting=1, strict_enumeration_warning=False, **jit),
        "JitTraceMeanField": JitTraceMeanField_ELBO(**jit),
        "Trace, particles": Trace_ELBO(**many, **options),
        "TraceGraph, particles": TraceGraph_ELBO(**many, **options),
        "TraceEnum, particles": TraceEnum_ELBO(strict_enumeration_warning=False, **many, **options),
        "Renyi, particles": RenyiELBO(alpha=0.5, **many, **options),
    }


def parameters(pair):
    return {f"{n}.{k}": p for n in ("enc", "dec", "classify") for k, p in getattr(pair, n).named_parameters()}


def run(loss, pair, guide, *args, seed=1):
    """The loss and the gradients of the pair's parameters, with a given seed."""
    for p in parameters(pair).values():
        p.grad = None
    torch.manual_seed(seed)
    value = loss.loss_and_grads(pair.model, guide, *args)
    return float(value), {name: p.grad.clone() for name, p in parameters(pair).items() if p.grad is not None}


def equal(first, second, gradients=1e-10):
    assert first[0] == pytest.approx(second[0], rel=1e-10, abs=1e-10)
    assert first[1].keys() == second[1].keys() and first[1]
    for name, value in first[1].items():
        torch.testing.assert_close(second[1][name], value, rtol=gradients, atol=gradients, msg=name)


@pytest.mark.parametrize("family", ["normal", "laplace", "mvn", "lognormal"])
@pytest.mark.parametrize("kind", losses())
def test_bridge_to_every_loss(kind, family):
    """h = 0, sigma = 1, the same noise: value and gradients are those of the guide itself."""
    if family != "normal" and ("Jit" in kind or "particles" in kind):
        pytest.skip("the family makes no difference there")
    pair, x = Pair(family), torch.randn(B, N)
    aef = vae2aef.aef_guide(pair.model, pair.guide, core="noise", core_flow="none")
    equal(run(losses()[kind], pair, pair.guide, x), run(losses()[kind], pair, aef, x))


@pytest.mark.parametrize("family", ["normal", "laplace", "mvn", "lognormal"])
def test_bridge_term_by_term(family):
    """Every site's log density in every trace, to 1e-10."""
    pair, x = Pair(family), torch.randn(B, N)
    aef = vae2aef.aef_guide(pair.model, pair.guide, core="noise", core_flow="none")
    loss = Trace_ELBO()
    traces = []
    for guide in (pair.guide, aef):
        torch.manual_seed(1)
        traces.append(loss._get_trace(pair.model, guide, (x,), {}))
    for theirs, ours in zip(*traces, strict=True):
        for name in ("z", "x"):
            if name in theirs.nodes:
                torch.testing.assert_close(
                    ours.nodes[name]["log_prob"], theirs.nodes[name]["log_prob"], rtol=1e-10, atol=1e-10
                )


DETERMINISTIC = [kind for kind in losses() if "MeanField" not in kind]


@pytest.mark.parametrize("kind", DETERMINISTIC)
def test_every_loss_gives_the_value_and_gradients_of_aef_elbo(kind):
    """At sigma = 0 nothing is drawn, and all are one number; RenyiELBO too, whose particles are all the same."""
    pair, x = Pair(), torch.randn(B, N)
    elbo = vae2aef.AEF_ELBO(noise=0)
    expected = run(elbo, pair, pair.guide, x)
    added = {name: p.grad.clone() for name, p in elbo.added.named_parameters()}
    for p in elbo.added.parameters():
        p.grad = None
    loss = losses()[kind]
    equal(expected, run(loss, pair, elbo.guide(pair.model, pair.guide), x))
    for name, p in elbo.added.named_parameters():
        torch.testing.assert_close(p.grad, added[name], rtol=1e-9, atol=1e-9, msg=name)


@pytest.mark.parametrize("kind", ["TraceMeanField", "JitTraceMeanField"])
def test_mean_field_without_a_closed_form_is_aef_elbo_too(kind):
    pair, x = Pair(), torch.randn(B, N)
    elbo = vae2aef.AEF_ELBO(noise=0)
    expected = run(elbo, pair, pair.guide, x)
    equal(expected, run(losses()[kind], pair, elbo.guide(pair.model, pair.guide), x))


def test_mean_field_takes_the_rate_in_closed_form():
    """Without a flow z given x is Gaussian at any sigma > 0: no spread but of the likelihood."""
    pair, x = Pair(), torch.randn(B, N)
    aef = vae2aef.aef_guide(pair.model, pair.guide, core_flow="none", noise=0.3)
    TraceMeanField_ELBO().loss(pair.model, aef, x)
    site = aef.maps.maps["z"]
    loc, raw = pair.enc(x).chunk(2, -1)
    scale = (0.3 * raw).exp()
    q = torch.distributions.Normal(loc + scale * site.features(x), 0.3 * scale)
    rate = torch.distributions.kl_divergence(q, torch.distributions.Normal(0.0, 1.0)).sum()
    torch.manual_seed(3)
    value = TraceMeanField_ELBO().loss(pair.model, aef, x)
    torch.manual_seed(3)
    trace = poutine.trace(aef).get_trace(x)
    fit = poutine.trace(poutine.replay(pair.model, trace=trace)).get_trace(x)
    fit.compute_log_prob()
    assert value == pytest.approx((rate - fit.nodes["x"]["log_prob_sum"]).item(), rel=1e-10)


@pytest.mark.parametrize("flow", ["none", "coupling", "maf"])
@pytest.mark.parametrize("family", ["normal", "laplace", "mvn", "lognormal"])
def test_the_density_is_that_of_the_map(flow, family):
    """sigma > 0: log q(z | x) against autograd's Jacobian of epsilon -> z; and of values from elsewhere."""
    pair, x = Pair(family), torch.randn(B, N)
    aef = vae2aef.aef_guide(pair.model, pair.guide, core_flow=flow, noise=0.4)
    aef(x)
    trace = poutine.trace(aef).get_trace(x)
    fn, z = trace.nodes["z"]["fn"], trace.nodes["z"]["value"]
    log_q = fn.log_prob(z)

    def place(epsilon):
        w = fn.site_map.core(fn.data, fn.site.loc.shape) + 0.4 * epsilon
        return fn.site_map(fn.site, w, 1)[0]

    w, _ = fn.site_map.back(fn.site, z, 1)
    epsilon = ((w - fn.site_map.core(fn.data, fn.site.loc.shape)) / 0.4).detach()
    torch.testing.assert_close(place(epsilon), z, rtol=1e-9, atol=1e-9)
    jacobian = torch.autograd.functional.jacobian(place, epsilon)
    per_row = torch.stack([torch.linalg.slogdet(jacobian[i, :, i])[1] for i in range(B)])
    expected = fn.site.standard.log_prob(epsilon).sum(-1) - per_row
    torch.testing.assert_close(log_q, expected, rtol=1e-8, atol=1e-8)
    torch.testing.assert_close(fn.log_prob(z.clone()), expected, rtol=1e-8, atol=1e-8)


@pytest.mark.slow
def test_entropy_closed_is_the_mean_of_sampled_with_the_same_gradients():
    pair, x = Pair(), torch.randn(B, N)
    sampled = vae2aef.aef_guide(pair.model, pair.guide, noise=0.5)
    value = run(Trace_ELBO(), pair, sampled, x)
    maps = sampled.trained()
    closed = vae2aef.aef_guide(
        pair.model, pair.guide, noise=0.5, entropy="closed", core=maps["core"], core_flow=maps["core_flow"]
    )
    other = run(Trace_ELBO(), pair, closed, x)
    for name, grad in value[1].items():
        torch.testing.assert_close(other[1][name], grad, rtol=1e-9, atol=1e-9, msg=name)
    elbo = vae2aef.AEF_ELBO(noise=0.5, core=maps["core"], core_flow=maps["core_flow"])
    equal(run(elbo, pair, pair.guide, x), other)
    torch.manual_seed(2)
    pairs = [run(Trace_ELBO(), pair, g, x, seed=s)[0] for s in range(300) for g in (sampled, closed)]
    gap = torch.tensor(pairs).reshape(-1, 2).diff()
    assert gap.abs().min() > 1e-6 and abs(gap.mean()) < 4 * gap.std() / math.sqrt(300)


def test_values_from_elsewhere_have_no_density_at_noise_0():
    pair, x = Pair(), torch.randn(B, N)
    aef = vae2aef.aef_guide(pair.model, pair.guide, noise=0)
    fn = poutine.trace(aef).get_trace(x).nodes["z"]["fn"]
    placed = fn()
    torch.testing.assert_close(fn.log_prob(placed.detach()), fn.log_prob(placed))
    with pytest.raises(vae2aef.WrapError, match=r'site "z": at noise=0 the guide places one value.*noise > 0'):
        fn.log_prob(placed + 1)
    given = poutine.condition(aef, data={"z": torch.zeros(B, D)})
    assert (poutine.trace(given).get_trace(x).nodes["z"]["value"] == 0).all()


def test_options_are_checked():
    pair = Pair()
    with pytest.raises(ValueError, match='entropy "sampled" or "closed"'):
        vae2aef.aef_guide(pair.model, pair.guide, entropy="mean", noise=0)
    with pytest.raises(ValueError, match="noise >= 0"):
        vae2aef.aef_guide(pair.model, pair.guide, noise=0).noise = -1.0
    with pytest.raises(vae2aef.WrapError, match=r"AEF guide already.*\.guide"):
        vae2aef.AEF_ELBO(noise=0).loss(
            pair.model, vae2aef.aef_guide(pair.model, pair.guide, noise=0), torch.randn(B, N)
        )


class Two:
    """Two latents, the second given the first."""

    def __init__(self):
        self.first, self.second, self.dec = nn.Linear(N, 2 * D), nn.Linear(N + D, 2 * D), nn.Linear(2 * D, N)

    def model(self, x):
        pyro.module("dec", self.dec)
        with pyro.plate("data", len(x)):
            z = [pyro.sample(name, dist.Normal(torch.zeros(D), 1.0).to_event(1)) for name in ("z", "w")]
            pyro.sample("x", dist.Normal(self.dec(torch.cat(z, -1)), 0.7).to_event(1), obs=x)

    def guide(self, x):
        pyro.module("first", self.first)
        pyro.module("second", self.second)
        with pyro.plate("data", len(x)):
            loc, raw = self.first(x).chunk(2, -1)
            z = pyro.sample("z", dist.Normal(loc, (0.3 * raw).exp()).to_event(1))
            loc, raw = self.second(torch.cat([x, z], -1)).chunk(2, -1)
            pyro.sample("w", dist.Normal(loc, (0.3 * raw).exp()).to_event(1))


@pytest.mark.parametrize("make", ["elbo", "guide"])
@pytest.mark.parametrize("noise", [0.0, 0.5])
def test_a_site_with_core_noise_is_the_guides_own_at_any_sigma(make, noise):
    """Fault: sigma of the other sites is that of a site without h too, which is then no site of the VAE's."""
    pair, x = Two(), torch.randn(B, N)
    options = {"core": {"z": "noise", "w": "linear"}, "core_flow": {"z": "none", "w": "coupling"}}
    elbo = vae2aef.AEF_ELBO(noise=noise, **options)
    aef = vae2aef.aef_guide(pair.model, pair.guide, noise=noise, **options) if make == "guide" else None
    aef = aef or elbo.guide(pair.model, pair.guide)
    for change in (None, 0.0, 0.2):
        aef.noise = noise if change is None else change
        found = []
        for guide in (aef, pair.guide):
            torch.manual_seed(1)
            trace = poutine.trace(guide).get_trace(x)
            trace.compute_log_prob()
            found.append((trace.nodes["z"]["value"], trace.nodes["z"]["log_prob"]))
        torch.testing.assert_close(*found)
    assert "the guide's own, sigma = 1" in repr(aef) and aef.trained()["core"]["z"] == "noise"
    for sigma in (0.0, 0.5):
        whole = vae2aef.from_pyro(pair.model, pair.guide, x, noise=sigma, **aef.trained())
        assert whole.noise == {"z": 1.0, "w": sigma}


@pytest.mark.parametrize("make", ["elbo", "guide"])
def test_the_guide_itself_keeps_its_sigma(make):
    pair = Pair()
    aef = vae2aef.AEF_ELBO(core="noise") if make == "elbo" else vae2aef.aef_guide(pair.model, pair.guide, core="noise")
    for value in (0.0, 0.3):
        with pytest.raises(ValueError, match='core="noise" is the guide itself, whose noise is 1'):
            aef.noise = value
    aef.noise = 1.0
    assert aef.noise == 1.0


# ---------------------------------------------------------------- enumeration


def by_hand(pair, aef, x):
    """The sum over labels of q(y | x) (log p(x, y, z) - log q(y | x) + log|det|), from the same networks."""
    site, probs = aef.maps.maps["z"], pair.classify(x).softmax(-1)
    total = torch.zeros(len(x))
    for k in range(K):
        y = nn.functional.one_hot(torch.full((len(x),), k), K).to(x)
        loc, raw = pair.enc(torch.cat([x, y], -1)).chunk(2, -1)
        u, log_det = site.flow(site.features(x))
        z = loc + (0.3 * raw).exp() * u
        normal = torch.distributions.Normal
        joint = normal(0.0, 1.0).log_prob(z).sum(-1) - math.log(K)
        joint = joint + normal(pair.dec(torch.cat([z, y], -1)), 0.7).log_prob(x).sum(-1)
        total = total + probs[:, k] * (joint - probs[:, k].log() + log_det + 0.3 * raw.sum(-1))
    return -total.sum()


@pytest.mark.parametrize("how", ["parallel", "sequential"])
@pytest.mark.parametrize("outside", [False, True])
@pytest.mark.parametrize("sized", [True, False])
@pytest.mark.parametrize("jit", [False, True])
def test_enumerated_labels_are_the_sum_by_hand(how, outside, sized, jit):
    """Value and every gradient; `config_enumerate` around the guide or the AEF guide; plates without a size."""
    if jit and how == "sequential":
        pytest.skip("a queue of traces is not for the jit")
    pair, x = Pair(label=True, plate=sized), torch.randn(B, N)
    if outside:
        aef = vae2aef.aef_guide(pair.model, pair.guide, noise=0)
        guide = config_enumerate(aef, how, expand=True)
    else:
        guide = aef = vae2aef.aef_guide(pair.model, config_enumerate(pair.guide, how, expand=True), noise=0)
    kind = JitTraceEnum_ELBO if jit else TraceEnum_ELBO
    value = run(kind(max_plate_nesting=1, ignore_jit_warnings=True), pair, guide, x)
    for p in (*parameters(pair).values(), *aef.added.parameters()):
        p.grad = None
    loss = by_hand(pair, aef, x)
    loss.backward()
    equal(value, (loss.item(), {name: p.grad for name, p in parameters(pair).items() if p.grad is not None}))


def test_enumerated_bridge():
    pair, x = Pair(label=True), torch.randn(B, N)
    guide = config_enumerate(pair.guide, "parallel", expand=True)
    aef = vae2aef.aef_guide(pair.model, guide, core="noise", core_flow="none")
    loss = TraceEnum_ELBO(max_plate_nesting=1)
    equal(run(loss, pair, guide, x), run(loss, pair, aef, x))
    graph = vae2aef.aef_guide(pair.model, pair.guide, core="noise", core_flow="none")
    equal(run(TraceGraph_ELBO(), pair, pair.guide, x), run(TraceGraph_ELBO(), pair, graph, x))


def test_particles_and_enumeration_together():
    pair, x = Pair(label=True), torch.randn(B, N)
    aef = vae2aef.aef_guide(pair.model, config_enumerate(pair.guide, "parallel", expand=True), noise=0)
    many = TraceEnum_ELBO(max_plate_nesting=1, num_particles=3, vectorize_particles=True)
    equal(run(TraceEnum_ELBO(max_plate_nesting=1), pair, aef, x), run(many, pair, aef, x))


@pytest.mark.parametrize("noise", [0.0, 1.0])
def test_sites_drawn_many_times_by_traceenum(noise):
    """`config_enumerate(guide, num_samples=...)`: each of many values has its density, as without an AEF."""
    pair, x = Pair(), torch.randn(B, N)
    options = {"core": "noise", "core_flow": "none"} if noise else {"noise": 0}
    aef = vae2aef.aef_guide(pair.model, pair.guide, **options)
    loss = TraceEnum_ELBO(max_plate_nesting=1)
    many = [config_enumerate(g, num_samples=7, expand=False) for g in (aef, pair.guide)]
    if noise:
        equal(run(loss, pair, many[1], x), run(loss, pair, many[0], x))
    else:
        equal(run(loss, pair, many[0], x), run(Trace_ELBO(), pair, aef, x))


@pytest.mark.parametrize("first", ["supervised", "unsupervised"])
def test_labels_given_or_not_in_any_order(first):
    """h reads x alike, z is mapped alike, and y is left to Pyro, whichever call comes first."""
    pair, x = Pair(label=True), torch.randn(B, N)
    y = nn.functional.one_hot(torch.arange(B) % K, K).to(x)
    aef = vae2aef.aef_guide(pair.model, config_enumerate(pair.guide, "parallel", expand=True), noise=0)
    loss = TraceEnum_ELBO(max_plate_nesting=1, strict_enumeration_warning=False)
    calls = [(x, y), (x,)] if first == "supervised" else [(x,), (x, y)]
    values = {len(args): loss.loss(pair.model, aef, *args) for args in calls}
    assert aef.maps.source.path == ("x",) and set(aef.trained()["core"]) == {"z"} and aef.maps.maps["y"] is None
    assert values[1] == pytest.approx(by_hand(pair, aef, x).item(), rel=1e-10)
    assert loss.loss(pair.model, aef, *calls[0]) == pytest.approx(values[len(calls[0])], rel=1e-10)
    text = repr(aef)
    assert "h reads x: what the observed site" in text and '"y"' in text


# ---------------------------------------------------------------- predictions and importance


def test_predictive_uses_the_trained_guide():
    pair, x = Pair(), torch.randn(B, N)
    aef = vae2aef.aef_guide(pair.model, pair.guide, noise=0)
    svi = SVI(pair.model, aef, pyro.optim.Adam({"lr": 1e-2}), loss=Trace_ELBO())
    losses = [svi.step(x) for _ in range(20)]
    assert losses[-1] < losses[0]
    for parallel in (False, True):
        got = Predictive(pair.model, guide=aef, num_samples=3, parallel=parallel, return_sites=("z",))(x)["z"]
        expected = poutine.trace(aef).get_trace(x).nodes["z"]["value"]
        torch.testing.assert_close(got.reshape(3, B, D), expected.expand(3, B, D))
    plain = Predictive(pair.model, guide=pair.guide, num_samples=3, return_sites=("z",))(x)["z"]
    assert not torch.allclose(plain.reshape(3, B, D)[0], plain.reshape(3, B, D)[1])


def test_the_guide_of_aef_elbo_has_the_density_of_z():
    """Fault: it has AEF_ELBO's own mean over epsilon, with which the weights of Importance and RenyiELBO are wrong."""
    pair, x = Pair(), torch.randn(B, N)
    elbo = vae2aef.AEF_ELBO(noise=0.5)
    elbo.loss(pair.model, pair.guide, x)
    aef = vae2aef.aef_guide(pair.model, pair.guide, noise=0.5, **elbo.trained())
    loss = RenyiELBO(alpha=0.0, num_particles=4)
    expected = run(loss, pair, aef, x)
    equal(expected, run(loss, pair, elbo.guide(pair.model, pair.guide), x))
    weights = [Importance(pair.model, guide, num_samples=4) for guide in (aef, elbo.guide(pair.model, pair.guide))]
    found = []
    for importance in weights:
        torch.manual_seed(1)
        found.append(importance.run(x).get_log_normalizer())
    torch.testing.assert_close(*found)
    torch.manual_seed(1)
    sampled = Trace_ELBO().loss(pair.model, elbo.guide(pair.model, pair.guide), x)
    torch.manual_seed(1)
    assert abs(elbo.loss(pair.model, pair.guide, x) - sampled) > 1e-3  # whose own convention is the closed one


@pytest.mark.slow
def test_importance_finds_the_marginal():
    """Linear and Gaussian: log p(x) is known; the weights of noise > 0 find it, with a flow too."""
    pair, x = Pair(), 0.5 * torch.randn(1, N)
    w = pair.dec.weight.detach()
    covariance = w @ w.T + 0.49 * torch.eye(N)
    exact = torch.distributions.MultivariateNormal(pair.dec.bias.detach(), covariance).log_prob(x).sum()
    aef = vae2aef.aef_guide(pair.model, pair.guide, noise=1.0)
    found = Importance(pair.model, aef, num_samples=3000).run(x)
    assert found.get_log_normalizer().item() == pytest.approx(exact.item(), abs=0.15)
    bound = RenyiELBO(alpha=0.0, num_particles=2000, vectorize_particles=True, max_plate_nesting=1)
    assert -bound.loss(pair.model, aef, x) == pytest.approx(exact.item(), abs=0.15)
    closed = vae2aef.aef_guide(pair.model, pair.guide, noise=1.0, entropy="closed", **aef.trained())
    assert abs(Importance(pair.model, closed, num_samples=3000).run(x).get_log_normalizer().item() - exact.item()) > 0.2


def test_a_module_with_copies_and_parameters():
    pair, x = Pair(), torch.randn(B, N)
    aef = vae2aef.aef_guide(pair.model, pair.guide, noise=0)
    module = Trace_ELBO()(nn.Identity(), aef)
    assert not list(aef.parameters())
    aef(x)
    names = {name for name, _ in module.named_parameters()}
    assert any(name.startswith("guide.added.site_z") for name in names)
    twin = copy.deepcopy(aef.added)
    assert {k: v.shape for k, v in twin.state_dict().items()} == {k: v.shape for k, v in aef.added.state_dict().items()}
