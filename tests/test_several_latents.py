"""A VAE of two latents: every attribute and method of `AEF`, in torch and in Pyro, and the oracles of one latent."""

import copy
import functools
import inspect
import io
import pickle
import tempfile
from pathlib import Path

import pytest
import torch
from torch import nn
from zoo_hierarchy import ENTROPY, LOWER, SCALE_X, UPPER, N, Parts, TwoLevels, pyro_aef, torch_aef

import vae2aef
from vae2aef import testing
from vae2aef.batch import Batch
from vae2aef.case import Case
from vae2aef.chain import Generate
from vae2aef.svi.program import PyroProgram

B, D = 6, UPPER + LOWER
MAKERS = {"torch": torch_aef, "pyro": pyro_aef}
both = pytest.mark.parametrize("make", MAKERS.values(), ids=MAKERS)
pytestmark = pytest.mark.usefixtures("float64")


@pytest.fixture
def x():
    return torch.randn(B, N)


@functools.cache
def _wrapped(make, noise):
    torch.manual_seed(1)
    return make(torch.randn(B, N), noise=noise)


def made(make, noise):
    """An AEF of its own, for a test that is not of wrapping."""
    return copy.deepcopy(_wrapped(make, noise))


def randomised(aef):
    """Features and flows away from their starting points, so that an error in them shows."""
    with torch.no_grad():
        for p in aef.added_parameters():
            p.add_(0.1 * torch.randn_like(p))
    return aef


# ---------------------------------------------------------------- everything works


def is_dict(value, like):
    assert {name: tuple(v.shape) for name, v in value.items()} == like
    return value


Z = {"z2": (B, UPPER), "z1": (B, LOWER)}


def finite(value, rows=B):
    """Of so many rows; of none, if that is None."""
    assert value.isfinite().all() and value.shape[:1] == (() if rows is None else (rows,))


def equal(value, expected):
    assert value is expected or value == expected


def gauged(value):
    assert value.keys() == Z.keys() and all(meter.core_std > 0 and meter.core_share > 0 for meter in value.values())


def sampled(aef):
    for options in ({}, {"temperature": 0.1}, {"temperature": {"z1": 0.0}}, {"residual": True}):
        assert aef.sample(7, **options).shape == (7, N)


def _saved_and_loaded(aef, x):
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "added"
        before = {name: value.clone() for name, value in aef.state_dict().items()}
        aef.save_added(path)
        with torch.no_grad():
            for p in aef.added_parameters():
                p.add_(1)
        aef.load_added(path)
    assert all(torch.equal(value, before[name]) for name, value in aef.state_dict().items())


def made_again(aef, x):
    """A Pyro pair is read by `from_pyro`, which says what to pass; a VAE program is loaded whole."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "aef.pt"
        aef.save(path)
        twin = vae2aef.load(path, TwoLevels(), example=x) if not isinstance(aef.parts, PyroProgram) else None
    if twin is None:
        return
    z, again = aef.encode(x), twin.encode(x)
    assert all(torch.equal(z[name], again[name]) for name in Z)


def imputed(aef, x):
    """Known values come back; several observed sites have no density of each value."""
    there = torch.ones_like(x, dtype=torch.bool)
    if isinstance(aef.parts, PyroProgram):
        with pytest.raises(ValueError, match="the density of each value of x by itself"):
            aef.impute(x, there, num_samples=1)
    else:
        torch.testing.assert_close(aef.impute(x, there, num_samples=1), x)


USES = {
    "forward": lambda aef, x: aef(x).backward(),
    "encode": lambda aef, x: is_dict(aef.encode(x), Z),
    "decode": lambda aef, x: torch.testing.assert_close(aef.decode(aef.encode(x)), aef.reconstruct(x)),
    "reconstruct": lambda aef, x: torch.testing.assert_close(aef.reconstruct(x), aef(x, terms=True).reconstruction),
    "generate": lambda aef, x: finite(aef.generate(Generate(B, aef.encode(x)), Batch(x), residual=False)),
    "denoise": lambda aef, x: torch.testing.assert_close(aef.denoise(x), aef.reconstruct(x)),
    "sample": lambda aef, x: sampled(aef),
    "expanded_log_prob": lambda aef, x: torch.testing.assert_close(-aef.expanded_log_prob(x).mean(), aef(x)),
    "log_prob": lambda aef, x: [finite(aef.log_prob(x, num_samples=8, proposal=p).value) for p in (None, "laplace")],
    "check_log_prob": lambda aef, x: finite(aef.check_log_prob(3, num_samples=30).upper, 3),
    "impute": lambda aef, x: imputed(aef, x),
    "require_scored": lambda aef, x: aef.require_scored(x),
    "require_mask": lambda aef, x: torch.testing.assert_close(aef.require_mask(x > 0, x), x > 0),
    "read": lambda aef, x: torch.testing.assert_close(aef.read(x), x),
    "fill_in": lambda aef, x: torch.testing.assert_close(aef.fill_in(x, x > 0)[0], x.clamp(min=0)),
    "tune_proposal": lambda aef, x: finite(aef.log_prob(x, num_samples=8, proposal=aef.tune_proposal(x)).value),
    "noise": lambda aef, x: setattr(aef, "noise", {"z1": 0.5}) or equal(aef.noise["z1"], 0.5) or finite(aef(x), None),
    "kl": lambda aef, x: setattr(aef, "kl", "sampled") or equal(aef.kl, "sampled") or finite(aef(x), None),
    "averaged": lambda aef, x: equal(aef.averaged(aef.noisy), {}),
    "core": lambda aef, x: is_dict({name: core(x)[0] for name, core in aef.core.items()}, Z),
    "core_flow": lambda aef, x: is_dict({n: flow(torch.randn(Z[n]))[0] for n, flow in aef.core_flow.items()}, Z),
    "latent_shape": lambda aef, x: is_dict({n: torch.empty(B, *s) for n, s in aef.latent_shape.items()}, Z),
    "partition": lambda aef, x: aef.partition is None or pytest.fail("a partition"),
    "flows": lambda aef, x: is_dict({n: flow(torch.randn(Z[n]))[0] for n, flow in aef.flows.items()}, Z),
    "site": lambda aef, x: equal(aef.site("z1"), aef.sites["z1"]),
    "by_latent": lambda aef, x: is_dict({n: site.core(x)[0] for n, site in aef.by_latent().items()}, Z),
    "added": lambda aef, x: equal(aef.added["core of z2"], (N + 1) * UPPER),
    "added_parameters": lambda aef, x: equal(sum(p.numel() for p in aef.added_parameters()), sum(aef.added.values())),
    "save_added": lambda aef, x: _saved_and_loaded(aef, x),
    "load_added": lambda aef, x: _saved_and_loaded(aef, x),
    "save": lambda aef, x: made_again(aef, x),
    "content": lambda aef, x: equal(aef.content(state=False).keys(), {"format", "options", "example"}),
    "remember": lambda aef, x: aef.remember(Batch(x), {"core": len}) or equal(aef._made_with["example"].size, B),
    "summary": lambda aef, x: equal(
        [line.split("  ")[0] for line in aef.summary().splitlines()][4:8],
        ["core of z2", "core_flow of z2", "core of z1", "core_flow of z1"],
    ),
    "added_by_part": lambda aef, x: equal(
        aef.added_by_part()["core_flow of z1"], list(aef.sites["z1"].flow.parameters())
    ),
    "gauge": lambda aef, x: gauged(aef.gauge(x)),
    "log_joint": lambda aef, x: is_dict(aef.log_joint(Batch(x)).z, Z),
    "chain": lambda aef, x: is_dict(aef.chain(Batch(x), aef.split(x)[0]).z, Z),
    "noisy": lambda aef, x: is_dict(aef.log_joint(Batch(x), aef.noisy).z, Z),
    "still": lambda aef, x: is_dict(aef.log_joint(Batch(x), aef.still).z, Z),
    "to_latent_side": lambda aef, x: torch.testing.assert_close(aef.to_latent_side(x)[0], x),
    "to_data": lambda aef, x: torch.testing.assert_close(aef.to_data(x), x),
    "split": lambda aef, x: is_dict(aef.split(x)[0], Z),
    "priors": lambda aef, x: aef.priors(Batch(x)) == {} or pytest.fail("a prior beside the program's own"),
    "log_residual": lambda aef, x: torch.testing.assert_close(
        aef.log_residual(x, aef.log_joint(Batch(x)).decoded), aef(x, terms=True).residual
    ),
    "mean": lambda aef, x: torch.testing.assert_close(
        aef.mean(aef.log_joint(Batch(x)).decoded, B), aef.log_joint(Batch(x)).decoded.mean.reshape(B, N)
    ),
    "observed": lambda aef, x: torch.testing.assert_close(
        aef.observed(aef.log_joint(Batch(x), aef.still).decoded, B).log_prob(x).reshape(B, -1).sum(1),
        aef.log_residual(x, aef.log_joint(Batch(x), aef.still).decoded),
    ),
    "residual": lambda aef, x: equal(aef.residual, aef.likelihood),
    "with_core": lambda aef, x: torch.testing.assert_close(
        aef.with_core(aef.log_joint(Batch(x)).decoded, aef.split(x)[0]), aef.reconstruct(x)
    ),
    # What an AEF holds.
    "vae": lambda aef, x: equal(any(isinstance(m, TwoLevels) for m in aef.vae.modules()), True),
    "parts": lambda aef, x: finite(aef.parts.run(Watch(aef.encode(x), B), aef.parts.infer(x)).mean, B),
    "sites": lambda aef, x: equal(list(aef.sites), list(Z)),
    "prior": lambda aef, x: equal(aef.prior, None),  # a program places its priors itself
    "likelihood": lambda aef, x: equal(aef.likelihood is None, isinstance(aef.parts, PyroProgram)),
    "preprocess": lambda aef, x: torch.testing.assert_close(aef.preprocess(x)[0], x),
    "event_shape": lambda aef, x: equal(tuple(aef.event_shape), (N,)),
    "discrete": lambda aef, x: equal(aef.discrete, False),
    "grids": lambda aef, x: equal(aef.grids, {}),  # its latents are rows of numbers
    "say": lambda aef, x: equal(aef.say("one line more") or "one line more" in repr(aef), True),
    "outside": lambda aef, x: equal(set(map(type, aef.outside.values())) - {TwoLevels}, set()),
}


def public(thing):
    return {name for name in dir(thing) if not name.startswith("_")}


@both
def test_the_table_of_uses_is_whole(make, x):
    """A method or attribute added to AEF must be tried on several latents."""
    assert public(make(x)) - public(nn.Module()) | {"forward"} == set(USES)


@both
@pytest.mark.parametrize("name", USES)
@pytest.mark.parametrize("noise", [0.0, 1.0])
@pytest.mark.usefixtures("quick_tuning")
def test_every_attribute_and_method(make, name, noise, x):
    if name in ("reconstruct", "expanded_log_prob", "log_residual") and noise:
        noise = 0.0  # what they are compared with is the loss, which draws
    aef = made(make, noise)
    torch.manual_seed(1)
    USES[name](aef, x)


@both
def test_manners(make, x):
    """Print, copy, pickle, save and load, other dtypes, an empty batch, a wrong shape."""
    aef = randomised(make(x, noise=0.3))
    assert "core of z2" in repr(aef) and "sigma = 0.3" in repr(aef)
    z = {name: value.detach() for name, value in aef.encode(x).items()}
    for twin in (copy.deepcopy(aef), pickle.loads(pickle.dumps(aef))):
        assert all(torch.equal(twin.encode(x)[name], z[name]) for name in z)
    file = io.BytesIO()
    aef.noise = {"z2": 0.7}
    torch.save(aef.state_dict(), file)
    file.seek(0)
    other = make(x)
    other.load_state_dict(torch.load(file))
    assert other.noise == {"z2": 0.7, "z1": 0.3}  # sigma is saved too
    assert all(torch.equal(other.encode(x)[name], z[name]) for name in z)
    single = copy.deepcopy(aef).float()
    assert single(x.float()).dtype == single.sample(2).dtype == torch.float32
    assert aef(x[:0]).item() == 0 and aef.log_prob(x[:0]).value.shape == (0,)
    assert aef.encode(x[:0])["z1"].shape == (0, LOWER)
    with pytest.raises(ValueError, match=r"shape \(batch, 4\), got \(6, 3\)"):
        aef(x[:, :3])
    with pytest.raises(TypeError, match=r"dict by name \(z2, z1\), got Tensor"):
        aef.decode(x)
    with pytest.raises(ValueError, match="latents z2, z1; got z9"):
        aef.noise = {"z9": 0.1}


@both
@pytest.mark.parametrize("name", ["core", "encoder_location", "z", "decoder"])
def test_what_is_not_finite_is_named_with_its_latent(make, name, x):
    vae = TwoLevels()
    aef = make(x, vae)
    broken = {
        "core": aef.core["z1"].features.linear.bias, "encoder_location": vae.lower.bias,
        "z": next(aef.core_flow["z1"].parameters()), "decoder": vae.mean.bias,
    }[name]  # fmt: skip
    with torch.no_grad():
        broken.fill_(torch.nan)
    expected = "decoder" if name == "decoder" else rf"{name}\[z1\]"
    with pytest.raises(vae2aef.NonFiniteError, match=f"term `{expected}` is not finite"):
        aef(x)


# ---------------------------------------------------------------- oracles


@both
@pytest.mark.parametrize("core_flow", ["none", "coupling", "maf"])
def test_whole_map_against_autograd(make, core_flow, x):
    aef = randomised(make(x, core_flow=core_flow))
    testing.check_jacobian(aef, x)
    testing.check_invertible(aef, x)
    testing.check_gradients(aef, x)


@both
def test_a_wrong_log_determinant_is_seen(make, x):
    """The check above can fail: the log-determinant of one latent, left out."""
    aef = randomised(make(x))
    flow = aef.site("z1").flow.bijections[0]
    forward = flow.forward
    flow.forward = lambda w: (forward(w)[0], torch.zeros(len(w)))
    with pytest.raises((AssertionError, ValueError), match="log-determinant"):
        testing.check_jacobian(aef, x)


@both
def test_noise_core_is_the_vae(make, x):
    """h = 0, sigma = 1: the VAE's negative ELBO with the same noise, level by level."""
    vae = TwoLevels()
    aef = make(x, vae, core="noise", core_flow="none")
    aef.kl = "sampled"
    torch.manual_seed(3)
    terms = aef(x, terms=True)
    torch.manual_seed(3)
    noise = {"z2": torch.randn(B, UPPER), "z1": torch.randn(B, LOWER)}
    # -log q(z) with its own noise is a one-sample estimate of the entropy, of which the AEF has the mean.
    sampled = -sum(torch.distributions.Normal(0.0, 1.0).log_prob(e).sum(1) for e in noise.values())
    expected = vae.negative_elbo(x, noise, SCALE_X) + sampled - D * ENTROPY
    torch.testing.assert_close(-(terms.prior + terms.residual + terms.log_det + terms.entropy), expected)
    loc, raw = vae.upper(x).chunk(2, 1)
    torch.testing.assert_close(terms.z["z2"], loc + raw.exp() * noise["z2"])


@both
def test_a_dict_of_latents_that_are_all_the_vaes_own(make, x):
    """Fault: refused, since equal words count as one for all, beside which sigma must be 1."""
    for word, noise in (("noise", 1.0), ("linear", {"z2": 1.0, "z1": 0.3})):
        aef = make(x, core={"z2": "noise", "z1": word}, noise=0.3)
        assert aef.noise == noise and aef(x).isfinite() and f"core z2: noise, z1: {word}" in repr(aef)


@both
def test_no_core_flow_of_one_latent_is_that_of_all(make, x):
    """Fault: None in a dict is no flow, though it is the default."""
    aef = make(x, core_flow={"z2": None, "z1": "coupling"})
    assert isinstance(aef.core_flow["z2"], vae2aef.flows.Identity) and "core flow z2: none, z1: coupling" in repr(aef)


def test_the_analytic_kl_of_each_level_given_those_above(x):
    """The KL of z1 is averaged over z1 alone: it still depends on the z2 that was drawn."""
    vae = TwoLevels()
    aef = torch_aef(x, vae, core_flow="none", noise=0.4)
    torch.manual_seed(3)
    terms = aef(x, terms=True)
    aef.parts.run(watch := Watch(terms.z, B), aef.parts.infer(x))
    kl = 0
    for name, (prior, posterior) in watch.seen.items():
        prior = torch.distributions.Normal(0.0, 1.0) if name == "z2" else torch.distributions.Normal(*prior)
        h = aef.site(name).core.features(x)
        q = torch.distributions.Normal(posterior.loc + posterior.scale * h, 0.4 * posterior.scale)
        kl = kl + torch.distributions.kl_divergence(q, prior).sum(1)
    torch.testing.assert_close(terms.prior + terms.log_det + terms.entropy, -kl)


class Watch:
    """Keeps what each latent is placed with."""

    def __init__(self, z, size):
        self.z, self.size, self.seen = z, size, {}

    def __call__(self, name, prior, posterior):
        self.seen[name] = (prior, posterior)
        return self.z[name]


@pytest.mark.slow
def test_torch_and_pyro_are_one(x):
    """The same networks, features and flows: the same loss, encodings, samples and importance weights."""
    vae = TwoLevels()
    one = randomised(torch_aef(x, vae, noise=0.4))
    core = {name: core.features for name, core in one.core.items()}
    two = pyro_aef(x, vae, core=core, core_flow=one.core_flow, noise=0.4)
    numbers = []
    for aef in (one, two):
        torch.manual_seed(5)
        loss = aef(x)
        grads = torch.autograd.grad(loss, list(vae.parameters()))
        torch.manual_seed(5)
        estimates = [aef.log_prob(x, num_samples=20, proposal=p) for p in (None, "laplace")]
        numbers.append([loss, *grads, *aef.encode(x).values(), aef.sample(5, temperature=0.5), *estimates[0][:3]])
    for a, b in zip(*numbers, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-9, atol=1e-9)


@both
@pytest.mark.parametrize("noise", [0.0, 0.5])
def test_marginal_is_the_closed_form(make, noise, x):
    vae = TwoLevels().with_exact_posterior()
    aef = make(x, vae, noise=noise)
    for proposal, least in ((None, 100), ("laplace", 800)):
        result = aef.log_prob(x, num_samples=1000, proposal=proposal)
        assert not result.exact and result.effective_sample_size.min() > least
        assert ((result.value - vae.exact(x)).abs() < 5 * result.std_error + 1e-9).all()
    if noise:  # minus the loss is a lower bound
        bound = torch.stack([-aef(x).detach() for _ in range(50)]).mean()
        assert bound < vae.exact(x).mean()


@both
def test_gauge(make, x):
    """h -> h/c with n(c .) at one latent moves nothing but what the log-determinant of c says."""
    aef = make(x, core_flow="none")
    before, marginal = aef.expanded_log_prob(x), aef.log_prob(x, num_samples=500, proposal="laplace").value
    c, features = 3.0, aef.core["z2"].features.linear

    class Times(vae2aef.Bijection):
        def forward(self, w):
            return c * w, w.new_full(w.shape[:1], UPPER * torch.log(torch.tensor(c)).item())

        def inverse(self, u):
            return u / c, u.new_full(u.shape[:1], -UPPER * torch.log(torch.tensor(c)).item())

    with torch.no_grad():
        features.weight.div_(c)
        features.bias.div_(c)
    aef.site("z2").flow = Times()
    gain = UPPER * torch.log(torch.tensor(c))
    torch.testing.assert_close(aef.expanded_log_prob(x), before + gain)
    error = (aef.log_prob(x, num_samples=500, proposal="laplace").value - marginal).abs()
    assert (error < 0.05).all()


# ---------------------------------------------------------------- the estimator


def test_the_bottom_up_pass_is_made_once_a_datum(x):
    aef = torch_aef(x)
    aef.parts.passes = 0
    proposal = aef.tune_proposal(x)
    aef.parts.passes = 0
    aef.log_prob(x, num_samples=100, proposal=proposal)
    assert aef.parts.passes == 1


@both
def test_chunks_change_nothing_but_memory(make, x):
    aef = randomised(make(x))
    rows = []
    proposal = vae2aef.Proposal(torch.full((D,), -1.0))
    inner = aef.parts.run
    aef.parts.run = lambda place, *a, **k: rows.append(place.size) or inner(place, *a, **k)
    case = Case(aef, Batch(x), at_once=2 * B)
    torch.manual_seed(0)
    pieces = case.log_weights(proposal, 8)
    assert max(rows) == 2 * B
    torch.manual_seed(0)
    torch.testing.assert_close(pieces, Case(aef, Batch(x)).log_weights(proposal, 8))


def test_conditions_go_with_their_rows():
    """Of every draw: the same condition as its datum. One row alone gives what it gives in the batch."""
    x, label = torch.randn(B, N), torch.randn(B, 2)
    vae = TwoLevels(conditional=True)
    aef = vae2aef.wrap(vae, example=(x, label), residual=SCALE_X)
    shifted = x - vae.shift(label)
    result = aef.log_prob(x, label, num_samples=2000, proposal="laplace")
    assert ((result.value - vae.exact(shifted)).abs() < 5 * result.std_error + 1e-6).all()
    torch.testing.assert_close(aef.reconstruct(x, label)[2:3], aef.reconstruct(x[2:3], label[2:3]))
    assert aef.sample(B, label).shape == (B, N)


def test_given_latents_and_temperatures(x):
    """What is given stays, what is not is drawn from its prior at its own temperature."""
    vae = TwoLevels()
    aef = torch_aef(x, vae)
    z2 = torch.randn(9, UPPER)
    aef.eval()
    cold = aef.sample(3, temperature={"z2": 0.0, "z1": 0.0})
    torch.testing.assert_close(cold, vae.mean(vae.prior_lower(torch.zeros(3, UPPER))))
    drawn = torch.stack([aef.decode({"z2": z2}) for _ in range(2000)])
    torch.testing.assert_close(drawn.mean(0), vae.mean(vae.prior_lower(z2)), atol=0.1, rtol=0)
    assert drawn.std(0).min() > 0.01


# ---------------------------------------------------------------- options and refusals


def test_options_by_latent(x):
    own = nn.Linear(N, UPPER)
    aef = torch_aef(x, core={"z2": own, "z1": "linear"}, core_flow={"z2": "none", "z1": "maf"})
    assert aef.core["z2"].features is own
    assert isinstance(aef.core_flow["z1"].bijections[0], vae2aef.MaskedAutoregressive)
    for options, match in (
        ({"core": {"z2": own}}, 'latent "z1": core= is a dict without it'),
        ({"core_flow": {"z1": "none"}}, 'latent "z2": core_flow= is a dict without it'),
        ({"core": "center"}, "the partition family takes its one latent out of the data"),
        ({"prior": "maf"}, "prior= needs a VAE with one latent"),
    ):
        with pytest.raises(vae2aef.WrapError, match=match):
            torch_aef(x, **options)


class Twice(Parts):
    def run(self, place, state, *label):
        super().run(place, state)
        return super().run(place, state)


class WrongShape(Parts):
    def run(self, place, state, *label):
        place("z2", None, None if state is None else vae2aef.Posterior(state["x"], state["x"][:, :1].exp()))
        return super().run(place, state)


class Nothing(Parts):
    def run(self, place, state, *label):
        return vae2aef.Decoded(state["x"])


@pytest.mark.parametrize(
    ("parts", "match"),
    [(Twice, '"z2" is placed twice'), (WrongShape, 'latent "z2": expected location and scale of one shape'),
     (Nothing, "places no latent")],
)  # fmt: skip
def test_programs_that_are_none(parts, match, x):
    class Wild(TwoLevels):
        pass

    Wild.__qualname__ = f"Wild{parts.__name__}"
    vae2aef.register_adapter(f"{Wild.__module__}.{Wild.__qualname__}")(lambda vae, x, **k: parts(vae))
    with pytest.raises(vae2aef.WrapError, match=match):
        vae2aef.wrap(Wild(), example=x)


def test_one_latent_has_no_encode_or_decode_of_a_program(x):
    with pytest.raises(TypeError, match="several latents: use infer and run"):
        torch_aef(x).parts.encode(x)
    assert "encode" in inspect.getsource(vae2aef.VAEProgram)
