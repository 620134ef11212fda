"""Models of the same structure as Pyro's examples, ours and short; what a survey finds, and leaves as it was."""

import dataclasses
import math
import random
import warnings
from typing import Any

import pytest
import torch
from torch import nn
from torch.nn.utils.rnn import pack_sequence, pad_sequence

pyro = pytest.importorskip("pyro")
import pyro.distributions as dist  # noqa: E402
import pyro.poutine as poutine  # noqa: E402
from pyro.infer import SVI, Predictive, Trace_ELBO, TraceEnum_ELBO, TraceGraph_ELBO, config_enumerate  # noqa: E402

import vae2aef  # noqa: E402

pytestmark = pytest.mark.usefixtures("core_flows")

B, N, D = 6, 4, 2


@pytest.fixture(autouse=True)
def fresh():
    pyro.clear_param_store()
    torch.manual_seed(0)
    yield


class Simple:
    """A VAE with batch normalisation, attributes that it writes, and lists in closures."""

    def __init__(self, norm=False, event=N):
        self.enc = nn.Sequential(nn.Linear(event, 8), nn.BatchNorm1d(8), nn.Linear(8, 2 * D)) if norm else None
        self.enc = self.enc or nn.Linear(event, 2 * D)
        self.dec = (
            nn.Sequential(nn.Linear(D, 8), nn.BatchNorm1d(8), nn.Linear(8, event)) if norm else nn.Linear(D, event)
        )
        self.calls = 0

    def density(self, z):
        return dist.Normal(self.dec(z), 0.5).to_event(1)

    def model(self, x):
        pyro.module("dec", self.dec)
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(x.new_zeros(len(x), D), 1.0).to_event(1))
            pyro.sample("x", self.density(z), obs=x)

    def guide(self, x):
        self.calls += 1
        pyro.module("enc", self.enc)
        with pyro.plate("data", len(x)):
            loc, raw = self.enc(x).chunk(2, -1)
            pyro.sample("z", dist.Normal(loc, (0.1 * raw).exp()).to_event(1))


# ---------------------------------------------------------------- state


def test_a_survey_leaves_everything_as_it_was():
    """Fault: batch statistics, attributes, closures, random states, or the store's parameters changed by a survey."""
    pair, counter, seen = Simple(norm=True), 0, []

    def guide(x):
        nonlocal counter
        counter += 1
        seen.append(len(x))
        pyro.param("beside", lambda: torch.randn(3))
        pair.guide(x)

    x = torch.randn(B, N)
    state = {k: v.clone() for net in (pair.enc, pair.dec) for k, v in net.state_dict(prefix=str(id(net))).items()}
    torch.manual_seed(7)
    randoms = random.getstate(), torch.get_rng_state()
    maps = vae2aef.aef_guide(pair.model, guide, noise=0).maps
    from vae2aef.svi.survey import survey

    survey(maps, pair.model, guide, (x,), {})
    assert maps.maps["z"] is not None
    assert counter == 0 and seen == [] and pair.calls == 0
    for net in (pair.enc, pair.dec):
        for k, v in net.state_dict(prefix=str(id(net))).items():
            assert torch.equal(v, state[k]), k
    assert random.getstate() == randoms[0] and torch.equal(torch.get_rng_state(), randoms[1])
    assert not list(pyro.get_param_store().keys())
    assert all(p.grad is None for net in (pair.enc, pair.dec) for p in net.parameters())


def test_one_survey_for_each_structure_and_one_run_a_call(monkeypatch):
    """The user's guide runs once a call; a new size of the batch is no new structure."""
    import vae2aef.svi.guide as module

    pair, looks = Simple(norm=True), []
    real = module.survey
    monkeypatch.setattr(module, "survey", lambda *args: looks.append(1) or real(*args))
    elbo = vae2aef.AEF_ELBO(noise=0)
    for rows in (B, 3, 8, B):
        elbo.loss(pair.model, pair.guide, torch.randn(rows, N))
    assert len(looks) == 1 and pair.calls == 4
    assert pair.enc[1].num_batches_tracked == 4


def test_the_first_call_draws_the_random_numbers_of_a_plain_guide():
    """Parameters that are made at the first call are what they are without us, and so are the draws."""

    def pair():
        enc, dec = nn.Linear(N, 2 * D), nn.Linear(D, N)

        def model(x):
            with pyro.plate("data", len(x)):
                z = pyro.sample("z", dist.Normal(torch.zeros(D), 1.0).to_event(1))
                pyro.sample("x", dist.Normal(dec(z) + pyro.param("b", lambda: torch.randn(N)), 1.0).to_event(1), obs=x)

        def guide(x):
            with pyro.plate("data", len(x)):
                loc, raw = enc(x).chunk(2, -1)
                pyro.sample("z", dist.Normal(loc, raw.exp()).to_event(1))

        return model, guide

    values, x = [], torch.randn(B, N)
    for wrapped in (False, True):
        pyro.clear_param_store()
        torch.manual_seed(5)
        model, guide = pair()
        options = {"core": "noise", "core_flow": "none"}
        guide = vae2aef.aef_guide(model, guide, **options) if wrapped else guide
        values.append([Trace_ELBO().loss(model, guide, x) for _ in range(2)])
    assert values[0] == pytest.approx(values[1], rel=1e-5)


@pytest.mark.parametrize("make", ["elbo", "guide"])
def test_evaluate_loss_first(make):
    """Fault: a survey that needs gradients, which `evaluate_loss` switches off."""
    pair, x = Simple(), torch.randn(B, N)
    elbo = vae2aef.AEF_ELBO(noise=0)
    guide = pair.guide if make == "elbo" else vae2aef.aef_guide(pair.model, pair.guide, noise=0)
    svi = SVI(pair.model, guide, pyro.optim.Adam({"lr": 1e-3}), loss=elbo if make == "elbo" else Trace_ELBO())
    value = svi.evaluate_loss(x)
    assert value == pytest.approx(svi.evaluate_loss(x)) and svi.step(x) == pytest.approx(value)
    assert svi.evaluate_loss(x) < value
    with torch.inference_mode():
        again = Trace_ELBO().loss(pair.model, vae2aef.aef_guide(pair.model, pair.guide, noise=0), x)
    assert math.isfinite(again)


def saved(tmp_path, pair, x, steps=3, **options):
    elbo = vae2aef.AEF_ELBO(noise=0, **options)
    svi = SVI(pair.model, pair.guide, pyro.optim.Adam({"lr": 1e-2}), loss=elbo)
    for _ in range(steps):
        svi.step(x)
    path = str(tmp_path / "store.pt")
    pyro.get_param_store().save(path)
    return path, svi.evaluate_loss(x), elbo, svi


def load(path):
    pyro.clear_param_store()
    pyro.get_param_store().load(path, map_location="cpu")


@pytest.mark.parametrize("before", [True, False])
def test_a_store_loaded_beside_a_living_loss(tmp_path, before):
    """Fault: the new loss takes another prefix, and its own fresh values, because an older loss still lives."""
    pair, x = Simple(), torch.randn(B, N)
    path, value, older, svi = saved(tmp_path, pair, x)
    newer = vae2aef.AEF_ELBO(noise=0)
    svi.step(x)
    older.added["site_z"].features.linear.weight.data.add_(1.0)  # whatever the older loss did since
    load(path)
    newer = vae2aef.AEF_ELBO(noise=0) if before else newer
    for name, net in (("enc", pair.enc), ("dec", pair.dec)):
        pyro.module(name, net, update_module_params=True)
    assert newer.loss(pair.model, pair.guide, x) == pytest.approx(value, rel=1e-5)
    assert {key.split("$$$")[0] for key in pyro.get_param_store()} == {"enc", "dec", "aef"}
    assert math.isfinite(older.loss(pair.model, pair.guide, x))  # with its own weights, under another name
    assert newer.loss(pair.model, pair.guide, x) == pytest.approx(value, rel=1e-5)


def test_a_missing_part_of_a_store_is_named(tmp_path):
    pair, x = Simple(), torch.randn(B, N)
    path, _, _, _ = saved(tmp_path, pair, x)
    load(path)
    del pyro.get_param_store()["aef$$$site_z.features.linear.bias"]
    with pytest.raises(
        vae2aef.WrapError, match=r"lacks some of them: aef\$\$\$site_z.features.linear.bias. The checkpo"
    ):
        vae2aef.AEF_ELBO(noise=0).loss(pair.model, pair.guide, x)
    load(path)
    with pytest.raises(vae2aef.WrapError, match=r"lacks some of them: aef\$\$\$site_z.flow"):
        vae2aef.AEF_ELBO(core_flow="maf", noise=0).loss(pair.model, pair.guide, x)


def test_a_state_dict_before_the_first_call():
    """Into a fresh guide, and into a fresh module of Pyro's ELBO; it comes before what an older store holds."""
    pair, x = Simple(), torch.randn(B, N)
    aef = vae2aef.aef_guide(pair.model, pair.guide, noise=0)
    loss = Trace_ELBO().loss(pair.model, aef, x)
    state = {k: v.clone() for k, v in aef.state_dict().items()}
    again = vae2aef.aef_guide(pair.model, pair.guide, noise=0)
    again.load_state_dict(state)
    assert "in the checkpoint, and not met yet: site_z" in repr(again)
    for p in aef.parameters():
        p.data.add_(0.3)
    for clear in (True, False):
        if clear:
            pyro.clear_param_store()
        fresh_guide = vae2aef.aef_guide(pair.model, pair.guide, noise=0)
        fresh_guide.load_state_dict(state)
        assert Trace_ELBO().loss(pair.model, fresh_guide, x) == pytest.approx(loss, rel=1e-5)
        del fresh_guide
    module = vae2aef.AEF_ELBO(noise=0)(nn.Identity(), nn.Identity())
    module.load_state_dict(state)
    part = {k: v for k, v in state.items() if "linear.bias" not in k}
    partly = vae2aef.aef_guide(pair.model, pair.guide, noise=0)
    partly.load_state_dict(part)
    with pytest.raises(vae2aef.WrapError, match=r"lacks some: site_z.features.linear.bias"):
        partly(x)


def test_a_site_that_appears_by_chance_is_met_where_it_appears():
    """Fault: the whole call run again, so that what the guide did before the site is done twice."""
    enc, runs = nn.Linear(N, 2 * D), []

    def part(x, name, more):
        loc, raw = enc(x).chunk(2, -1)
        pyro.sample(name, dist.Normal(loc, raw.exp()).to_event(1))

    def guide(x):
        with pyro.plate("data", len(x)):
            part(x, "z", False)
            if guide.more:
                part(x, "w", True)
        print_like.write(1)

    class Writer:
        def write(self, value):
            runs.append(value)

    print_like = Writer()

    def model(x):
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(torch.zeros(D), 1.0).to_event(1))
            if guide.more:
                z = z + pyro.sample("w", dist.Normal(torch.zeros(D), 1.0).to_event(1))
            pyro.sample("x", dist.Normal(z.repeat(1, 2), 1.0).to_event(1), obs=x)

    guide.more = False
    aef, x = vae2aef.aef_guide(model, guide, noise=0), torch.randn(B, N)
    Trace_ELBO().loss(model, aef, x)
    guide.more = True
    Trace_ELBO().loss(model, aef, x)
    assert len(runs) == 2 and set(aef.trained()["core"]) == {"z", "w"}


# ---------------------------------------------------------------- which tensor is the data


def conditional():
    """The structure of cvae: the condition comes first, what is scored second; a prior network."""
    enc, prior, dec = nn.Linear(2 * N, 2 * D), nn.Linear(N, 2 * D), nn.Linear(D, N)

    def model(xs, ys=None):
        pyro.module("prior", prior)
        pyro.module("dec", dec)
        with pyro.plate("data"):
            loc, raw = prior(xs).chunk(2, -1)
            z = pyro.sample("z", dist.Normal(loc, raw.exp()).to_event(1))
            if ys is None:
                pyro.deterministic("y", dec(z).sigmoid())
            else:
                part = xs == -1
                pyro.sample("y", dist.Bernoulli(logits=dec(z)[part].view(len(xs), N // 2)).to_event(1),
                            obs=ys[part].view(len(xs), N // 2))  # fmt: skip

    def guide(xs, ys=None):
        pyro.module("enc", enc)
        with pyro.plate("data"):
            out = prior(xs) if ys is None else enc(torch.cat([xs, ys], -1))
            loc, raw = out.chunk(2, -1)
            pyro.sample("z", dist.Normal(loc, raw.exp()).to_event(1))

    xs, ys = torch.rand(B, N).round(), torch.rand(B, N).round()
    xs[:, 2:], ys[:, :2] = -1, -1
    return model, guide, xs, ys


def test_the_condition_is_not_taken_for_the_data():
    """Fault: h reads the first tensor, which is the condition."""
    model, guide, xs, ys = conditional()
    aef = vae2aef.aef_guide(model, guide, noise=0)
    before = Predictive(model, guide=aef, num_samples=2)(xs)["y"]  # no data: the prior network's own draws
    assert before.shape[0] == 2 and not torch.allclose(before[0], before[1]) and aef.maps.source is None
    svi = SVI(model, aef, pyro.optim.Adam({"lr": 1e-2}), loss=Trace_ELBO())
    first = svi.step(xs, ys)
    assert 'h reads ys: what the observed site "y" scores' in repr(aef)
    core = aef.maps.maps["z"].features
    torch.testing.assert_close(core(ys), core.linear(ys))
    assert [svi.step(xs, ys) for _ in range(30)][-1] < first
    after = Predictive(model, guide=aef, num_samples=2)(xs)["y"]
    assert not torch.allclose(after[0], after[1])
    elbo = vae2aef.AEF_ELBO(noise=0)
    elbo.loss(model, guide, xs, ys)
    assert "h reads ys" in repr(elbo)


class Given(nn.Module):
    """A pair whose data are the default of an argument, and may be left out or replaced."""

    def __init__(self, x):
        super().__init__()
        self.pair = Simple()
        self.enc, self.dec = self.pair.enc, self.pair.dec

        def model(x=x):
            self.pair.model(x)

        def guide(x=x):
            self.pair.guide(x)

        self.model, self.guide = model, guide


@pytest.mark.parametrize("data", [None, "x"])
@pytest.mark.parametrize("call", ["left out", "first", "by name"])
def test_data_that_are_a_default(call, data):
    """Fault: only what is passed is seen, so that nothing is found to encode; or in `Predictive`, not again."""
    x = torch.randn(B, N)
    vae = Given(x)
    aef = vae2aef.aef_guide(vae.model, vae.guide, data=data, noise=0)
    args, kwargs = {"left out": ((), {}), "first": ((x,), {}), "by name": ((), {"x": x})}[call]
    value = Trace_ELBO().loss(vae.model, aef, *args, **kwargs)
    assert "h reads x: " in repr(aef) and value == pytest.approx(Trace_ELBO().loss(vae.model, aef))
    z = poutine.trace(aef).get_trace(x).nodes["z"]["value"]
    for args, kwargs in (((), {}), ((x,), {}), ((), {"x": x})):
        drawn = Predictive(vae.model, guide=aef, num_samples=2)(*args, **kwargs)["z"]
        torch.testing.assert_close(drawn.reshape(2, B, D), z.expand(2, B, D))
    other = torch.randn(3, N)
    assert poutine.trace(aef).get_trace(x=other).nodes["z"]["value"].shape == (3, D)


def test_a_leak_of_a_default_is_seen():
    """Fault: what is not passed is not changed either, so that nothing moves with it."""
    x = torch.randn(B, N)
    pair = Simple()

    def model(x=x):
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(torch.zeros(D), 1.0).to_event(1))
            pyro.sample("x", dist.Normal(pair.dec(z) + 0.9 * x, 0.5).to_event(1), obs=x)

    def guide(x=x):
        pair.guide(x)

    with pytest.raises(vae2aef.WrapError, match="the very values that it scores"):
        vae2aef.AEF_ELBO(noise=0).loss(model, guide)


def test_a_default_in_from_pyro():
    x = torch.randn(B, N)
    vae = Given(x)
    model, guide = vae.model, vae.guide
    vae.model = lambda x=x: (pyro.module("vae", vae), model(x))[1]
    aef = vae2aef.from_pyro(vae.model, guide, noise=0)
    torch.testing.assert_close(aef(x), vae2aef.from_pyro(vae.model, guide, x, noise=0, core=aef.core.features,
                                                         core_flow=aef.core_flow)(x))  # fmt: skip


def test_a_default_of_the_guide_alone_is_not_handed_to_the_model():
    """Fault: `model() got an unexpected keyword argument`; or the guide's own default in the place of the model's."""
    pair, x = Simple(), torch.randn(B, N)

    twice, once = 2 * torch.ones(N), torch.ones(N)

    def guide(x, scale=twice):
        pair.guide(x * scale)

    def other(x, scale=once):
        pair.model(x * scale)

    for model in (pair.model, other, lambda x, **more: other(x, **more)):
        pyro.clear_param_store()
        aef = vae2aef.from_pyro(model, guide, x, noise=0)
        elbo = vae2aef.AEF_ELBO(noise=0, core=aef.core.features, core_flow=aef.core_flow)
        assert aef(x).item() == pytest.approx(elbo.loss(model, guide, x) / B, rel=1e-5)


@pytest.mark.parametrize("equal", [False, True])
def test_a_default_that_is_given_by_position_only(equal):
    """Fault: it is passed by its name, a TypeError; or equal numbers before it, of two functions, are told apart."""
    pair, x, factors = Simple(), torch.randn(B, N), [float(v) for v in ("1", "1")]
    again = x.clone() if equal else x

    def model(factor=factors[0], x=x, last=1.0, /):
        pair.model(factor * last * x)

    def guide(factor=factors[1], x=again, last=1.0, /):
        pair.guide(factor * last * x)

    aef = vae2aef.from_pyro(model, guide, noise=0)
    elbo = vae2aef.AEF_ELBO(noise=0, core=aef.core.features, core_flow=aef.core_flow)
    assert aef(x, 1.0).item() == pytest.approx(elbo.loss(model, guide) / B, rel=1e-5)
    assert vae2aef.AEF_ELBO(noise=0).loss(pair.model, lambda x=x, /: pair.guide(x), x)


def test_what_a_call_without_data_is_before_the_first_one_with_them_and_after():
    """As docs/your_pyro_model.md says. Fault: one without any tensor is the guide itself when nothing is known yet."""
    x, y = torch.randn(B, N), torch.randn(B, N)
    pair = Simple()

    def model(y=None, x=None):
        with pyro.plate("data", B):
            z = pyro.sample("z", dist.Normal(torch.zeros(D), 1.0).expand([B, D]).to_event(1))
            pyro.sample("x", pair.density(z), obs=x)

    def guide(y=None, x=None):
        pair.guide(x if x is not None else torch.zeros(B, N) if y is None else y)

    aef = vae2aef.aef_guide(model, guide, noise=0)
    with pytest.raises(vae2aef.WrapError, match="gets no tensor to encode"):
        aef()
    for before in (True, False):
        for args in ((y,), *([] if before else [()])):
            torch.manual_seed(1)
            z = poutine.trace(aef).get_trace(*args).nodes["z"]["value"]
            torch.manual_seed(1)
            torch.testing.assert_close(z, poutine.trace(guide).get_trace(*args).nodes["z"]["value"])
        assert ("h reads x" in repr(aef)) != before
        aef(y, x)


@pytest.mark.parametrize("left_out", [1, 2], ids=["the label", "all"])
def test_a_model_may_draw_what_it_scores_elsewhere(left_out):
    """Fault: a prediction by `obs=None` is refused, since the guide has no such site."""
    pair, classify = Simple(), nn.Linear(D, 3)

    def model(x, y=None, score=True):
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(torch.zeros(D), 1.0).to_event(1))
            pyro.sample("x", pair.density(z), obs=x if score else None)
            pyro.sample("y", dist.Categorical(logits=classify(z)), obs=y)

    def guide(x, y=None, score=True):
        pair.guide(x)

    x, y = torch.randn(B, N), torch.randint(3, (B,))
    aef = vae2aef.aef_guide(model, guide, noise=0)
    Trace_ELBO().loss(model, aef, x, y)
    z = poutine.trace(aef).get_trace(x, y).nodes["z"]["value"]
    drawn = Predictive(model, guide=aef, num_samples=2)(x, None, left_out == 1)
    assert drawn["y"].shape == (2, B)
    torch.testing.assert_close(drawn["z"].reshape(2, B, D), z.expand(2, B, D))
    with pytest.raises(vae2aef.WrapError, match='"y" is in the model and not in the guide'):
        vae2aef.AEF_ELBO(noise=0).loss(model, guide, x)


@dataclasses.dataclass
class Batch:
    label: torch.Tensor
    x: torch.Tensor


@pytest.mark.parametrize("kind", ["dict", "dataclass", "tuple", "named"])
def test_data_inside_dicts_and_dataclasses(kind):
    pair, x, label = Simple(), torch.randn(B, N), torch.randn(B, 7)
    batch: Any = {"dict": {"label": label, "x": x}, "dataclass": Batch(label, x), "tuple": (label, x), "named": x}[kind]

    def get(batch):
        return {"dict": lambda: batch["x"], "dataclass": lambda: batch.x, "tuple": lambda: batch[1]}[kind]()

    def model(batch, **more):
        pair.model(more["x"] if kind == "named" else get(batch))

    def guide(batch, **more):
        pair.guide(more["x"] if kind == "named" else get(batch))

    elbo = vae2aef.AEF_ELBO(noise=0)
    args, kwargs = ((label,), {"x": x}) if kind == "named" else ((batch,), {})
    plain = vae2aef.AEF_ELBO(noise=0)
    value = plain.loss(pair.model, pair.guide, x)
    elbo.core, elbo.core_flow = plain.trained()["core"], plain.trained()["core_flow"]
    elbo = vae2aef.AEF_ELBO(**plain.trained(), noise=0)
    assert elbo.loss(model, guide, *args, **kwargs) == pytest.approx(value, rel=1e-5)
    written = {"dict": "batch['x']", "dataclass": "batch['x']", "tuple": "batch[1]", "named": "x"}[kind]
    assert f"h reads {written}: what the observed site" in repr(elbo)


def test_data_behind_a_threshold_and_in_factors():
    """Autograd does not see through `x > 0`, nor into what a factor scores: other data do."""
    pair, other, x = Simple(), torch.randn(B, 9), torch.randn(B, N)

    def model(other, x):
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(torch.zeros(D), 1.0).to_event(1))
            pyro.sample("x", dist.Bernoulli(logits=pair.dec(z)).to_event(1), obs=(x > 0).float())

    def factors(other, x):
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(torch.zeros(D), 1.0).to_event(1))
            pyro.factor("x", -(pair.dec(z) - x).square().sum(-1))

    for each in (model, factors):
        aef = vae2aef.aef_guide(each, lambda other, x: pair.guide(x), noise=0)
        aef(other, x)
        assert aef.maps.source.path == ("x",), each


def test_counts_are_read_as_numbers():
    """Multinomial, as in prodlda, of integers and of floats; and logarithms where asked."""
    enc, dec = nn.Linear(9, 2 * D), nn.Linear(D, 9)

    def model(docs):
        with pyro.plate("documents", docs.shape[0]):
            z = pyro.sample("z", dist.Normal(torch.zeros(docs.shape[0], D), 1.0).to_event(1))
            pyro.sample("obs", dist.Multinomial(int(docs.sum(-1).max()), logits=dec(z)), obs=docs)

    def guide(docs):
        with pyro.plate("documents", docs.shape[0]):
            loc, raw = enc(docs.float()).chunk(2, -1)
            pyro.sample("z", dist.Normal(loc, (0.1 * raw).exp()).to_event(1))

    docs = torch.randint(0, 300, (B, 9))
    elbo = vae2aef.AEF_ELBO(noise=0)
    value = elbo.loss(model, guide, docs)
    assert "observed Multinomial, kept" in repr(elbo) and 'core="log" reads log(1 + x)' in repr(elbo)
    again = vae2aef.AEF_ELBO(**elbo.trained(), noise=0)
    assert again.loss(model, guide, docs.float()) == pytest.approx(value, rel=1e-5)
    log = vae2aef.AEF_ELBO(core="log", noise=0)
    log.loss(model, guide, docs)
    features = log.maps["z"].features
    torch.testing.assert_close(features(docs.float()), features.inner.linear(docs.float().log1p()))
    with pytest.raises(vae2aef.WrapError, match=r'site "z": core="log" reads log\(1 \+ x\) of counts, and the data go'):
        pair = Simple()
        vae2aef.AEF_ELBO(core="log", noise=0).loss(pair.model, pair.guide, torch.randn(B, N))


@pytest.mark.parametrize("core", ["linear", "noise", "log", nn.Linear(N, D)], ids=["linear", "noise", "log", "own"])
@pytest.mark.parametrize("model", [torch.float32, torch.float64])
@pytest.mark.parametrize("data", [torch.int64, torch.uint8, torch.float32, torch.float64])
def test_the_dtype_of_the_data_need_not_be_that_of_the_model(data, model, core):
    """Fault: integers become float32 whatever the model is, and h fails; so do float32 data of a float64 model."""
    enc, dec = nn.Linear(N, 2 * D).to(model), nn.Linear(D, N).to(model)

    def program(x):
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(torch.zeros(len(x), D, dtype=model), 1.0).to_event(1))
            pyro.sample("x", dist.Poisson(dec(z).exp()).to_event(1), obs=x)

    def guide(x):
        with pyro.plate("data", len(x)):
            loc, raw = enc(x.to(model)).chunk(2, -1)
            pyro.sample("z", dist.Normal(loc, (0.1 * raw).exp()).to_event(1))

    elbo = vae2aef.AEF_ELBO(core=core, core_flow="coupling", noise=0)
    x = torch.randint(5, (B, N)).to(data)
    assert math.isfinite(elbo.loss_and_grads(program, guide, x))
    assert elbo._get_trace(program, guide, (x,), {})[1].nodes["z"]["value"].dtype == model
    assert all(p.dtype == model for p in elbo.added.parameters())


def scalars():
    """One number a datum and one latent: without `to_event`, which torch cannot sum over no rows."""
    enc = nn.Linear(1, 2)

    def model(x):
        with pyro.plate("data"):
            z = pyro.sample("z", dist.Normal(torch.zeros_like(x), 1.0))
            pyro.sample("x", dist.Normal(z, 1.0), obs=x)

    def guide(x):
        pyro.module("enc", enc)
        with pyro.plate("data"):
            loc, raw = enc(x.unsqueeze(-1)).unbind(-1)
            pyro.sample("z", dist.Normal(loc, raw.exp()))

    return model, guide


@pytest.mark.parametrize("rows", [0, 1])
@pytest.mark.parametrize("first", [True, False])
def test_batches_of_none_and_one(rows, first):
    """First, and after others; the loss of no data is 0."""
    model, guide = scalars()
    aef, x = vae2aef.aef_guide(model, guide, noise=0), torch.randn(B)
    elbo = vae2aef.AEF_ELBO(noise=0)
    for n in (rows, B, rows) if first else (B, rows):
        value = Trace_ELBO().loss_and_grads(model, aef, x[:n])
        assert math.isfinite(value) and (n > 0 or value == 0)
        assert math.isfinite(elbo.loss(model, guide, x[:n]))
    assert aef.maps.maps["z"].batch.latent_shape == ()
    pyro.clear_param_store()
    pair = Simple()
    elbo = vae2aef.AEF_ELBO(noise=0)
    assert math.isfinite(elbo.loss(pair.model, pair.guide, torch.randn(1, N)))
    elbo.loss(pair.model, pair.guide, torch.randn(B, N))


# ---------------------------------------------------------------- sequences


class Markov:
    """A deep Markov model: a site a time step. The sequences come padded with a mask, packed, or in a list."""

    def __init__(self, kind):
        self.kind, self.gru = kind, nn.GRU(N, 8, batch_first=True)
        self.enc, self.trans, self.emit = nn.Linear(8 + D, 2 * D), nn.Linear(D, 2 * D), nn.Linear(D, N)

    def padded(self, x, lengths):
        if self.kind == "packed":
            return torch.nn.utils.rnn.pad_packed_sequence(x, batch_first=True)
        if self.kind == "list":
            return pad_sequence(x, batch_first=True), torch.tensor([len(v) for v in x])
        return x, lengths

    def guide(self, x, lengths=None):
        x, lengths = self.padded(x, lengths)
        hidden, z = self.gru(x)[0], torch.zeros(len(x), D)
        with pyro.plate("rows", len(x)):
            for t in pyro.markov(range(1, x.shape[1] + 1)):
                loc, raw = self.enc(torch.cat([hidden[:, t - 1], z], -1)).chunk(2, -1)
                mask = (t - 1 < lengths).unsqueeze(-1)
                z = pyro.sample(f"z_{t}", dist.Normal(loc, (0.1 * raw).exp()).mask(mask).to_event(1))

    def model(self, x, lengths=None):
        x, lengths = self.padded(x, lengths)
        z = torch.zeros(len(x), D)
        with pyro.plate("rows", len(x)):
            for t in pyro.markov(range(1, x.shape[1] + 1)):
                loc, raw = self.trans(z).chunk(2, -1)
                mask = (t - 1 < lengths).unsqueeze(-1)
                z = pyro.sample(f"z_{t}", dist.Normal(loc, (0.1 * raw).exp()).mask(mask).to_event(1))
                pyro.sample(f"x_{t}", dist.Normal(self.emit(z), 0.5).mask(mask).to_event(1), obs=x[:, t - 1])

    def batch(self, sequences):
        if self.kind == "packed":
            return (pack_sequence(sequences, enforce_sorted=False),)
        if self.kind == "list":
            return (sequences,)
        return pad_sequence(sequences, batch_first=True), torch.tensor([len(v) for v in sequences])


class Sums:
    """One latent for a list of sequences."""

    def __init__(self):
        self.enc, self.dec = nn.Linear(N, 2 * D), nn.Linear(D, N)

    def model(self, x):
        padded = pad_sequence(x, batch_first=True)
        mask = torch.arange(padded.shape[1]) < torch.tensor([len(v) for v in x]).unsqueeze(-1)
        with pyro.plate("rows", len(x), dim=-2):
            z = pyro.sample("z", dist.Normal(torch.zeros(1, D), 1.0).to_event(1))
            with pyro.plate("steps", padded.shape[1], dim=-1), poutine.mask(mask=mask):
                pyro.sample("x", dist.Normal(self.dec(z), 1.0).to_event(1), obs=padded)

    def guide(self, x):
        with pyro.plate("rows", len(x), dim=-2):
            loc, raw = self.enc(torch.stack([v.sum(0) for v in x])).unsqueeze(1).chunk(2, -1)
            pyro.sample("z", dist.Normal(loc, (0.1 * raw).exp()).to_event(1))


def sequences(*lengths):
    return [torch.randn(n, N) for n in lengths]


@pytest.mark.parametrize("kind", ["padded", "packed", "list"])
def test_ragged_sequences_with_h_for_each_time_step(kind):
    """Longer and shorter batches; the loss of a batch is the sum of those of its rows, which padding does not touch."""
    pair = Markov(kind)
    aef = vae2aef.aef_guide(pair.model, pair.guide, noise=0)
    rows = sequences(3, 1, 4, 2)
    loss = Trace_ELBO()
    whole = loss.loss(pair.model, aef, *pair.batch(rows))
    assert "h reads time step 3" in repr(aef) and "h reads x: what the observed sites" in repr(aef)
    features = aef.maps.maps["z_2"].features
    x = pad_sequence(rows, batch_first=True)
    torch.testing.assert_close(features(x), features.inner(x[:, 1]))
    pairs = [loss.loss(pair.model, aef, *pair.batch(rows[i : i + 2])) for i in (0, 2)]
    assert whole == pytest.approx(sum(pairs), rel=1e-4)
    assert math.isfinite(loss.loss_and_grads(pair.model, aef, *pair.batch(sequences(6, 2, 3))))
    assert len(aef.trained()["core"]) == 6
    assert all(p.grad is not None for p in aef.maps.maps["z_6"].parameters())


LENGTHS = {"equal": (4, 4), "as many steps as rows": (3, 3, 3), "one row": (3,), "different": (1, 4, 2)}


@pytest.mark.parametrize("data", [None, "x", lambda x: x], ids=["found", "named", "made"])
@pytest.mark.parametrize("first", LENGTHS)
@pytest.mark.parametrize("kind", ["a site", "a site a step"])
def test_lists_of_sequences_of_any_length(first, kind, data):
    """Fault: equally long ones, or one row, are taken for a tensor each, of which h reads the first.

    Whatever comes first, the loss of a batch is that of its rows one by one.
    """
    pair = Markov("list") if kind == "a site a step" else Sums()
    aef = vae2aef.aef_guide(pair.model, pair.guide, data=data, noise=0)
    loss = Trace_ELBO()
    loss.loss(pair.model, aef, sequences(*LENGTHS[first]))
    path = "what data= makes of the arguments" if callable(data) else "x"
    assert f"h reads {path}: " in repr(aef) and ("time step 0" if kind != "a site" else "sum over time steps") in repr(
        aef
    )
    for lengths in LENGTHS.values():
        rows = sequences(*lengths)
        whole = loss.loss(pair.model, aef, rows)
        assert whole == pytest.approx(sum(loss.loss(pair.model, aef, [row]) for row in rows), rel=1e-4)


@pytest.mark.parametrize("data", [None, "batch"])
@pytest.mark.parametrize("beside", ["nothing", "a condition", "another that is scored"])
def test_a_list_of_plain_tensors_is_none_of_sequences(beside, data):
    """`[x]` and `[x, c]`, as a DataLoader gives them, whatever their shape; here as many rows as there are tensors."""
    pair = Simple()

    def model(batch):
        pair.model(batch[0])
        if beside == "another that is scored":
            with pyro.plate("others", len(batch[1])):
                pyro.sample("y", dist.Normal(0.0, 1.0).expand([N]).to_event(1), obs=batch[1])

    for rows in (2, 1, 5):
        pyro.clear_param_store()
        x = torch.randn(rows, N)
        batch = [x] if beside == "nothing" else [x, torch.randn(rows, N)]
        aef = vae2aef.aef_guide(model, lambda batch: pair.guide(batch[0]), data=data, noise=0)
        assert math.isfinite(Trace_ELBO().loss(model, aef, batch))
        assert aef.maps.maps["z"].features.linear.in_features == N
        assert not aef.maps.source.ragged


def test_step_features_where_asked_and_where_there_are_none():
    pair, single = Markov("padded"), Simple()
    elbo = vae2aef.AEF_ELBO(core="step", noise=0)
    elbo.loss(pair.model, pair.guide, *pair.batch(sequences(3, 3)))
    assert elbo.maps["z_1"].features.step == 0
    with pytest.raises(vae2aef.WrapError, match=r'site "z": core="step" is for sites z_1'):
        vae2aef.AEF_ELBO(core="step", noise=0).loss(single.model, single.guide, torch.randn(B, N))


def test_one_latent_of_a_ragged_sequence_reads_its_sum():
    """Fault: h of padded values, whose number is that of the longest row."""
    pair = Sums()
    elbo = vae2aef.AEF_ELBO(noise=0)
    assert math.isfinite(elbo.loss(pair.model, pair.guide, sequences(2, 5, 3)))
    assert math.isfinite(elbo.loss(pair.model, pair.guide, sequences(7, 1)))
    assert "h reads the sum over time steps" in repr(elbo)


# ---------------------------------------------------------------- leaks


def leaky(mean=None, prior=None, second=None):
    """A pair whose model may see the data in its mean, its prior, or in a second site."""
    enc, dec = nn.Linear(N, 2 * D), nn.Linear(D, N)

    def model(x, c=None):
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(prior(x) if prior else torch.zeros(len(x), D), 1.0).to_event(1))
            out = dec(z)
            if second:
                half = pyro.sample("a", dist.Normal(out[:, :2], 1.0).to_event(1), obs=x[:, :2])
                pyro.sample("b", dist.Normal(second(out, half, x), 1.0).to_event(1), obs=x[:, 2:])
            else:
                pyro.sample("x", dist.Normal(mean(out, x, c) if mean else out, 0.5).to_event(1), obs=x)

    def guide(x, c=None):
        with pyro.plate("data", len(x)):
            loc, raw = enc(x).chunk(2, -1)
            pyro.sample("z", dist.Normal(loc, (0.1 * raw).exp()).to_event(1))

    return model, guide


LEAKS = {
    "mean": ({"mean": lambda out, x, c: out + 0.9 * x}, r'observed site "x".*moves with x, with the very values'),
    "detached": ({"mean": lambda out, x, c: out + 0.9 * x.detach()}, r'observed site "x".*the very values'),
    "other row": ({"mean": lambda out, x, c: out + x.roll(1, 0)}, r'observed site "x".*the very values'),
    "cyclic": ({"mean": lambda out, x, c: out + x.roll(1, 1)}, r'observed site "x".*the very values'),
    "prior": ({"prior": lambda x: x[:, :D]}, r'site "z" of the model.*moves with x, with what a later site scores'),
    "later": ({"second": lambda out, half, x: out[:, 2:] + x[:, 2:]}, r'observed site "b".*the very values'),
}


@pytest.mark.parametrize("kind", LEAKS)
@pytest.mark.parametrize("how", ["elbo", "from_pyro"])
def test_a_model_that_sees_its_data_is_refused(kind, how):
    """Fault: Normal(f(z) + 0.9 x, ...) accepted, and a fictitious log p(x) given."""
    options, message = LEAKS[kind]
    model, guide = leaky(**options)
    with pytest.raises(vae2aef.WrapError, match=message):
        if how == "elbo":
            vae2aef.AEF_ELBO(noise=0).loss(model, guide, torch.randn(B, N))
        else:
            vae2aef.from_pyro(model, guide, torch.randn(B, N))


SOUND = {
    "plain": {},
    "condition": {"mean": lambda out, x, c: out + c},
    "autoregressive": {"mean": lambda out, x, c: out + nn.functional.pad(x, (1, -1)).cumsum(1)},
    "backwards": {"mean": lambda out, x, c: out + nn.functional.pad(x, (-1, 1)).flip(1).cumsum(1).flip(1)},
    "second given first": {"second": lambda out, half, x: out[:, 2:] + half * x[:, :2]},
}


@pytest.mark.parametrize("kind", SOUND)
def test_sound_models_are_taken(kind):
    model, guide = leaky(**SOUND[kind])
    assert math.isfinite(vae2aef.AEF_ELBO(noise=0).loss(model, guide, torch.randn(B, N), torch.randn(B, N)))


def test_a_prior_given_earlier_observations_is_sound():
    """The structure of a VRNN: z_t given x before t."""
    enc = nn.Linear(N, 2)

    def model(x):
        past = torch.zeros(len(x))
        with pyro.plate("data", len(x)):
            for t in range(N):
                z = pyro.sample(f"z_{t}", dist.Normal(past, 1.0))
                pyro.sample(f"x_{t}", dist.Normal(z + past, 1.0), obs=x[:, t])
                past = past + x[:, t]

    def guide(x):
        with pyro.plate("data", len(x)):
            for t in range(N):
                loc, raw = enc(x).unbind(-1)
                pyro.sample(f"z_{t}", dist.Normal(loc, raw.exp()))

    assert math.isfinite(vae2aef.AEF_ELBO(noise=0).loss(model, guide, torch.randn(B, N)))


# ---------------------------------------------------------------- baselines, warnings


def test_baselines_of_discrete_sites_are_kept():
    """TraceGraph_ELBO's baselines of a site left to Pyro, learned and running, as without an AEF guide."""
    classify, enc, dec, base = nn.Linear(N, 1), nn.Linear(N + 1, 2 * D), nn.Linear(D + 1, N), nn.Linear(N, 1)

    def model(x):
        with pyro.plate("data", len(x)):
            y = pyro.sample("y", dist.Bernoulli(0.5).expand([len(x), 1]).to_event(1))
            z = pyro.sample("z", dist.Normal(torch.zeros(len(x), D), 1.0).to_event(1))
            pyro.sample("x", dist.Normal(dec(torch.cat([z, y], -1)), 0.5).to_event(1), obs=x)

    def guide(x):
        pyro.module("base", base)
        with pyro.plate("data", len(x)):
            infer = {"baseline": {"baseline_value": base(x).squeeze(-1)}}
            y = pyro.sample("y", dist.Bernoulli(logits=classify(x)).to_event(1), infer=infer)
            loc, raw = enc(torch.cat([x, y], -1)).chunk(2, -1)
            pyro.sample("z", dist.Normal(loc, raw.exp()).to_event(1))

    x, gradients = torch.randn(B, N), []
    aef = vae2aef.aef_guide(model, guide, core="noise", core_flow="none")
    for each in (guide, aef):
        torch.manual_seed(1)
        TraceGraph_ELBO().loss_and_grads(model, each, x)
        gradients.append([p.grad.clone() for net in (base, classify) for p in net.parameters()])
        for net in (base, classify):
            net.zero_grad()
    assert gradients[0][0].abs().sum() > 0
    torch.testing.assert_close(gradients[0], gradients[1])
    assert "baseline" in repr(aef)
    elbo = vae2aef.AEF_ELBO(noise=0)
    elbo.loss(model, guide, x)
    assert 'site "y": Bernoulli, left to Pyro' in repr(elbo) and "TraceGraph_ELBO" in repr(elbo)


def test_a_model_that_enumerates_a_site_of_its_own():
    """A label only the model has, summed out by TraceEnum_ELBO."""
    enc, dec = nn.Linear(N, 2 * D), nn.Linear(D, N)
    probs = torch.tensor([0.2, 0.8])

    @config_enumerate
    def model(x):
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(torch.zeros(len(x), D), 1.0).to_event(1))
            y = pyro.sample("y", dist.Categorical(probs))
            pyro.sample("x", dist.Normal(dec(z) + y.unsqueeze(-1), 0.5).to_event(1), obs=x)

    def guide(x):
        with pyro.plate("data", len(x)):
            loc, raw = enc(x).chunk(2, -1)
            pyro.sample("z", dist.Normal(loc, raw.exp()).to_event(1))

    x = torch.randn(B, N)
    aef = vae2aef.aef_guide(model, guide, noise=0)
    value = TraceEnum_ELBO(max_plate_nesting=1).loss(model, aef, x)
    trace = poutine.trace(aef).get_trace(x)
    trace.compute_log_prob()
    z = trace.nodes["z"]["value"]
    normal = torch.distributions.Normal
    each = [normal(dec(z) + y, 0.5).log_prob(x).sum(-1) + probs[y].log() for y in (0, 1)]
    expected = normal(0.0, 1.0).log_prob(z).sum() + torch.stack(each).logsumexp(0).sum()
    assert value == pytest.approx(-(expected - trace.nodes["z"]["log_prob_sum"]).item(), rel=1e-5)
    with warnings.catch_warnings(), pytest.raises(vae2aef.WrapError, match=r'"y".*enumeration.*TraceEnum_ELBO'):
        warnings.simplefilter("ignore")
        vae2aef.AEF_ELBO(noise=0).loss(model, guide, x)
