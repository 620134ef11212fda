"""Short models of ours, of the structure of each of Pyro's examples, trained with one line changed.

The examples themselves run from a checkout: `tests/adapters/test_pyro_examples.py`.
"""

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import pytest
import torch
from torch import nn

pyro = pytest.importorskip("pyro")
import pyro.distributions as dist  # noqa: E402
import pyro.distributions.transforms as transforms  # noqa: E402
import pyro.poutine as poutine  # noqa: E402
from pyro.infer import SVI, Trace_ELBO, TraceEnum_ELBO, TraceGraph_ELBO, config_enumerate  # noqa: E402

import vae2aef  # noqa: E402

B, N, D, K, T = 12, 6, 2, 3, 4


@pytest.fixture(autouse=True)
def fresh():
    pyro.clear_param_store()
    torch.manual_seed(0)


class Case(NamedTuple):
    """A program: what is run, with which loss, and what h is to read of it for which sites."""

    model: Callable[..., Any]
    guide: Callable[..., Any]
    calls: list[tuple]
    loss: Any
    reads: str
    sites: set[str]
    options: dict[str, Any] = {}  # noqa: RUF012 -- never written to


def gaussian(raw):
    loc, log_scale = raw.chunk(2, -1)
    return dist.Normal(loc, (0.3 * log_scale).exp()).to_event(1)


def standard(rows):
    return dist.Normal(torch.zeros(rows, D), 1.0).to_event(1)


def beside(*values):
    """Put side by side what enumeration has given dimensions to the left."""
    shape = torch.broadcast_shapes(*(v.shape[:-1] for v in values))
    return torch.cat([v.expand(*shape, v.shape[-1]) for v in values], -1)


def bits():
    return (torch.rand(B, N) < torch.linspace(0.05, 0.95, N)).float()


class VAE(nn.Module):
    """vae.py: bits, one latent."""

    def __init__(self, prior=None):
        super().__init__()
        self.enc, self.dec = nn.Linear(N, 2 * D), nn.Linear(D, N)
        self.prior = prior

    def model(self, x):
        pyro.module("vae", self)
        with pyro.plate("data", len(x)):
            z = pyro.sample("latent", standard(len(x)) if self.prior is None else self.prior())
            pyro.sample("obs", dist.Bernoulli(logits=self.dec(z)).to_event(1), obs=x)

    def guide(self, x):
        pyro.module("vae", self)
        with pyro.plate("data", len(x)):
            pyro.sample("latent", gaussian(self.enc(x)))


def vae():
    made = VAE()
    return Case(made.model, made.guide, [(bits(),)], Trace_ELBO(), "x", {"latent"})


def vae_flow_prior():
    """A flow of zuko for a prior, which is called as ZukoToPyro is."""
    zuko = pytest.importorskip("zuko")
    from pyro.contrib.zuko import ZukoToPyro

    made = VAE()
    made.flow = zuko.flows.MAF(D, transforms=1, hidden_features=(8,))
    made.prior = lambda: ZukoToPyro(made.flow())
    return Case(made.model, made.guide, [(bits(),)], Trace_ELBO(), "x", {"latent"})


class CVAE(nn.Module):
    """cvae: the rest of a picture given a part of it; the prior sees the condition, and -1 is masked."""

    def __init__(self):
        super().__init__()
        self.first, self.prior = nn.Linear(N, N), nn.Linear(N, 2 * D)
        self.enc, self.dec = nn.Linear(2 * N, 2 * D), nn.Linear(D, N)

    def model(self, xs, ys=None):
        pyro.module("cvae", self)
        with pyro.plate("data", len(xs)):
            zs = pyro.sample("z", gaussian(self.prior(xs)))
            logits = self.dec(zs) + self.first(xs)
            if ys is None:
                return pyro.deterministic("y", logits.sigmoid())
            there = ys != -1
            picture = dist.Bernoulli(logits=logits).mask(there).to_event(1)
            return pyro.sample("y", picture, obs=torch.where(there, ys, 0.0))

    def guide(self, xs, ys=None):
        with pyro.plate("data", len(xs)):
            pyro.sample("z", gaussian(self.prior(xs) if ys is None else self.enc(torch.cat([xs, ys], -1))))


def cvae():
    made, x = CVAE(), bits()
    here = torch.arange(N) < 2
    xs, ys = torch.where(here, x, -1.0), torch.where(here, -1.0, x)
    return Case(made.model, made.guide, [(xs, ys)], Trace_ELBO(), "ys", {"z"})


class Labelled(nn.Module):
    """ss_vae_M2: a label that is given in some batches, and enumerated in others."""

    def __init__(self):
        super().__init__()
        self.classify, self.enc, self.dec = nn.Linear(N, K), nn.Linear(N + K, 2 * D), nn.Linear(D + K, N)

    def model(self, xs, ys=None):
        pyro.module("ss_vae", self)
        with pyro.plate("data", len(xs)):
            zs = pyro.sample("z", standard(len(xs)))
            ys = pyro.sample("y", dist.OneHotCategorical(torch.ones(len(xs), K) / K), obs=ys)
            pyro.sample("x", dist.Bernoulli(logits=self.dec(beside(zs, ys))).to_event(1), obs=xs)

    def guide(self, xs, ys=None):
        with pyro.plate("data", len(xs)):
            if ys is None:
                ys = pyro.sample("y", dist.OneHotCategorical(logits=self.classify(xs)))
            pyro.sample("z", gaussian(self.enc(beside(xs, ys))))


def ss_vae():
    made, x = Labelled(), bits()
    guide = config_enumerate(made.guide, "parallel", expand=True)
    loss = TraceEnum_ELBO(max_plate_nesting=1, strict_enumeration_warning=False)
    return Case(made.model, guide, [(x, torch.eye(K).repeat(B // K, 1)), (x,)], loss, "xs", {"z"})


class DMM(nn.Module):
    """dmm: a latent a time step, padded sequences of bits and those backwards, masks; with IAFs after the guide's."""

    def __init__(self, iafs=0):
        super().__init__()
        self.rnn, self.combine = nn.RNN(N, 5, batch_first=True), nn.Linear(5 + D, 2 * D)
        self.trans, self.emit = nn.Linear(D, 2 * D), nn.Linear(D, N)
        self.iafs = nn.ModuleList(transforms.affine_autoregressive(D, [6]) for _ in range(iafs))

    def model(self, mini_batch, backwards, mask):
        pyro.module("dmm", self)
        z = torch.zeros(len(mini_batch), D)
        with pyro.plate("songs", len(mini_batch)):
            for t in pyro.markov(range(1, mini_batch.shape[1] + 1)):
                with poutine.mask(mask=mask[:, t - 1]):
                    z = pyro.sample(f"z_{t}", gaussian(self.trans(z)))
                    notes = dist.Bernoulli(logits=self.emit(z)).to_event(1)
                    pyro.sample(f"obs_x_{t}", notes, obs=mini_batch[:, t - 1])

    def guide(self, mini_batch, backwards, mask):
        pyro.module("dmm", self)
        hidden, z = self.rnn(backwards)[0].flip(1), torch.zeros(len(mini_batch), D)
        with pyro.plate("songs", len(mini_batch)):
            for t in pyro.markov(range(1, mini_batch.shape[1] + 1)):
                q = gaussian(self.combine(torch.cat([hidden[:, t - 1], z], -1)))
                q = dist.TransformedDistribution(q, list(self.iafs)) if self.iafs else q
                with poutine.mask(mask=mask[:, t - 1]):
                    z = pyro.sample(f"z_{t}", q)


def dmm(iafs=0):
    made, lengths = DMM(iafs), torch.arange(B) % T + 1
    mask = torch.arange(T) < lengths.unsqueeze(1)
    x = (torch.rand(B, T, N) < torch.linspace(0.05, 0.95, N)).float() * mask.unsqueeze(-1)
    sites = {f"z_{t}" for t in range(1, T + 1)}
    return Case(made.model, made.guide, [(x, x.flip(1), mask)], Trace_ELBO(), "mini_batch", sites)


class ProdLDA(nn.Module):
    """prodlda: counts of words, as integers or not; the number of words is read off the data."""

    def __init__(self):
        super().__init__()
        self.enc, self.norm, self.beta = nn.Linear(N, 2 * D), nn.BatchNorm1d(N, affine=False), nn.Linear(D, N)

    def model(self, docs):
        pyro.module("decoder", self.beta)
        with pyro.plate("documents", len(docs)):
            theta = pyro.sample("logtheta", standard(len(docs))).softmax(-1)
            probs = self.norm(self.beta(theta)).softmax(-1)
            pyro.sample("obs", dist.Multinomial(int(docs.sum(-1).max()), probs), obs=docs)

    def guide(self, docs):
        pyro.module("encoder", self.enc)
        with pyro.plate("documents", len(docs)):
            pyro.sample("logtheta", gaussian(self.enc(docs.float().log1p())))


def prodlda(whole=False):
    made = ProdLDA()
    x = dist.Multinomial(9, torch.linspace(0.1, 3, N)).sample((B,))
    return Case(made.model, made.guide, [(x.long() if whole else x,)], Trace_ELBO(), "docs", {"logtheta"})


class SCANVI(nn.Module):
    """scanvi: two levels of latents, a label between, the size of a library, counts."""

    def __init__(self):
        super().__init__()
        self.enc2, self.enc1, self.classify = nn.Linear(N, 2 * D + 2), nn.Linear(D + K, 2 * D), nn.Linear(D, K)
        self.dec2, self.dec = nn.Linear(D + K, 2 * D), nn.Linear(D, N)
        self.theta = nn.Parameter(torch.ones(N))

    def model(self, x, y=None):
        pyro.module("scanvi", self)
        with pyro.plate("batch", len(x)), poutine.scale(scale=1.0):
            z1 = pyro.sample("z1", standard(len(x)))
            y = pyro.sample("y", dist.OneHotCategorical(torch.ones(len(x), K) / K), obs=y)
            z2 = pyro.sample("z2", gaussian(self.dec2(beside(z1, y))))
            size = pyro.sample("l", dist.LogNormal(2.0 * torch.ones(len(x), 1), 1.0).to_event(1))
            logits = (size * self.dec(z2).softmax(-1) + 1e-6).log() - self.theta
            counts = dist.NegativeBinomial(self.theta.exp(), logits=logits).to_event(1)
            pyro.sample("x", counts, obs=x)

    def guide(self, x, y=None):
        pyro.module("scanvi", self)
        with pyro.plate("batch", len(x)), poutine.scale(scale=1.0):
            raw = self.enc2(x.log1p())
            pyro.sample("l", dist.LogNormal(raw[..., :1] + 2, (0.3 * raw[..., 1:2]).exp()).to_event(1))
            z2 = pyro.sample("z2", gaussian(raw[..., 2:]))
            if y is None:
                y = pyro.sample("y", dist.OneHotCategorical(logits=self.classify(z2)))
            pyro.sample("z1", gaussian(self.enc1(beside(z2, y))))


def scanvi():
    made = SCANVI()
    x = torch.poisson(torch.linspace(1, 9, N).expand(B, N))
    guide = config_enumerate(made.guide, "parallel", expand=True)
    loss = TraceEnum_ELBO(max_plate_nesting=1, strict_enumeration_warning=False)
    calls = [(x, torch.eye(K).repeat(B // K, 1)), (x,)]
    return Case(made.model, guide, calls, loss, "x", {"l", "z2", "z1"}, {"core": "log"})


class CEVAE(nn.Module):
    """contrib.cevae: covariates, a treatment and an outcome; the guide scores the latter two as auxiliary sites."""

    def __init__(self):
        super().__init__()
        self.enc, self.dec = nn.Linear(N + 2, 2 * D), nn.Linear(D, N)
        self.t, self.y, self.q_t, self.q_y = nn.Linear(D, 1), nn.Linear(D + 1, 1), nn.Linear(N, 1), nn.Linear(N + 1, 1)

    def model(self, x, t=None, y=None):
        pyro.module("cevae", self)
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", standard(len(x)))
            pyro.sample("x", dist.Normal(self.dec(z), 0.5).to_event(1), obs=x)
            t = pyro.sample("t", dist.Bernoulli(logits=self.t(z).squeeze(-1)), obs=t)
            pyro.sample("y", dist.Bernoulli(logits=self.y(beside(z, t.unsqueeze(-1))).squeeze(-1)), obs=y)

    def guide(self, x, t=None, y=None):
        helper = {"is_auxiliary": True}
        with pyro.plate("data", len(x)):
            t = pyro.sample("t", dist.Bernoulli(logits=self.q_t(x).squeeze(-1)), obs=t, infer=helper)
            seen = beside(x, t.unsqueeze(-1))
            y = pyro.sample("y", dist.Bernoulli(logits=self.q_y(seen).squeeze(-1)), obs=y, infer=helper)
            pyro.sample("z", gaussian(self.enc(beside(seen, y.unsqueeze(-1)))))


def cevae():
    made = CEVAE()
    t, y = torch.randint(2, (2, B)).float()
    return Case(made.model, made.guide, [(torch.randn(B, N) + 1, t, y)], Trace_ELBO(), "x", {"z"})


class AIR(nn.Module):
    """air: objects that are there or not, one after another, with baselines; a plate that draws rows."""

    def __init__(self):
        super().__init__()
        self.cell, self.where, self.what = nn.RNNCell(N + D, 6), nn.Linear(6, 2 * D), nn.Linear(6, 1 + 2 * D)
        self.baseline, self.dec = nn.Linear(N, 1), nn.Linear(D, N)

    def steps(self, x, rows, what):
        with pyro.plate("data", len(x), subsample_size=rows) as index:
            return what(x[index])

    def model(self, data, rows):
        pyro.module("air", self)
        self.steps(data, rows, self._model)

    def guide(self, data, rows):
        self.steps(data, rows, self._guide)

    def _model(self, x):
        there, picture = torch.ones(len(x), 1), torch.zeros(len(x), N)
        for t in range(2):
            there = pyro.sample(f"z_pres_{t}", dist.Bernoulli(0.5 * there).to_event(1))
            z = pyro.sample(f"z_what_{t}", standard(len(x)).mask(False).mask(there.squeeze(-1) > 0))
            picture = picture + there * self.dec(z)
        pyro.sample("obs", dist.Normal(picture, 0.5).to_event(1), obs=x)

    def _guide(self, x):
        there, z, hidden = torch.ones(len(x), 1), torch.zeros(len(x), D), torch.zeros(len(x), 6)
        for t in range(2):
            hidden = self.cell(torch.cat([x, z], -1), hidden)
            raw = self.what(hidden)
            infer = {"baseline": {"baseline_value": self.baseline(x.detach()).squeeze(-1)}}
            there = pyro.sample(f"z_pres_{t}", dist.Bernoulli(raw[:, :1].sigmoid() * there).to_event(1), infer=infer)
            z = pyro.sample(f"z_what_{t}", gaussian(raw[:, 1:]).mask(there.squeeze(-1) > 0))


def air():
    made = AIR()
    return Case(
        made.model, made.guide, [(torch.randn(B, N) + 2, 4)], TraceGraph_ELBO(), "data", {"z_what_0", "z_what_1"}
    )


CASES = {
    "vae.py": vae, "vae_flow_prior": vae_flow_prior, "cvae": cvae, "ss_vae_M2": ss_vae, "dmm": dmm,
    "dmm with IAF": lambda: dmm(iafs=1), "prodlda": prodlda, "prodlda, integers": lambda: prodlda(whole=True),
    "scanvi": scanvi, "contrib.cevae": cevae, "air": air,
}  # fmt: skip


CLEAR = ("vae.py", "vae_flow_prior", "ss_vae_M2", "dmm", "dmm with IAF", "scanvi")


@pytest.mark.parametrize("name", CASES)
def test_a_model_of_the_structure_of_an_example_trains_with_one_line_changed(name):
    """Its loss falls, h reads what is scored, the sites are mapped, and log p(x) is there where it is defined."""
    case = CASES[name]()
    guide = vae2aef.aef_guide(case.model, case.guide, **case.options)  # the one line
    svi = SVI(case.model, guide, pyro.optim.Adam({"lr": 2e-2}), loss=case.loss)
    losses = [sum(svi.step(*call) for call in case.calls) for _ in range(30)]
    assert all(math.isfinite(loss) for loss in losses)
    assert sum(losses[-10:]) < sum(losses[:10])
    assert guide.maps.source.path == (case.reads,)
    assert set(guide.trained()["core"]) == case.sites
    call = case.calls[-1]
    if name == "air":
        with pytest.raises(vae2aef.WrapError, match='"z_pres_0", Bernoulli, left to Pyro'):
            vae2aef.from_pyro(case.model, case.guide, *call)
        return
    aef = vae2aef.from_pyro(case.model, case.guide, *call, core="noise", core_flow="none", data=case.reads)
    position = aef.vae.position
    x, *rest = call[position][:4], *(v[:4] for v in (*call[:position], *call[position + 1 :]))
    found = aef.log_prob(x, *rest, num_samples=60, proposal="laplace").value
    bound = -aef(x, *rest).detach()
    assert found.shape == (4,) and found.isfinite().all() and found.mean() > bound - 3 * D
    if name in CLEAR:  # other data are less probable
        elsewhere = aef.log_prob(x.flip(-1), *rest, num_samples=60, proposal="laplace").value
        assert found.mean() > elsewhere.mean()
