"""What AEF_ELBO does with each kind of site, argument, plate and guide; and what it refuses, with site and fix."""

import math
import types

import pytest
import torch
from torch import nn

pyro = pytest.importorskip("pyro")
import pyro.distributions as dist  # noqa: E402
import pyro.distributions.transforms as T  # noqa: E402
import pyro.poutine as poutine  # noqa: E402
from pyro.infer import SVI, Trace_ELBO  # noqa: E402
from pyro.infer.autoguide import AutoNormal  # noqa: E402
from pyro.infer.reparam import LocScaleReparam  # noqa: E402

import vae2aef  # noqa: E402

pytestmark = pytest.mark.usefixtures("core_flows")

B, N, D = 6, 4, 2


@pytest.fixture(autouse=True)
def fresh():
    pyro.clear_param_store()
    torch.manual_seed(0)
    yield


def nets():
    return nn.Linear(N, 2 * D), nn.Linear(D, N)


def simple(model_site=None, guide_site=None, observed=None, plate=True, name="z"):
    """A pair with parts to choose: functions of (loc, scale), of z, of the decoder's output."""
    enc, dec = nets()
    model_site = model_site or (lambda n: dist.Normal(torch.zeros(n, D), 1.0).to_event(1))
    guide_site = guide_site or (lambda loc, scale: dist.Normal(loc, scale).to_event(1))
    observed = observed or (lambda mean: dist.Normal(mean, 0.5).to_event(1))

    def model(x):
        pyro.module("dec", dec)
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", model_site(len(x)))
            pyro.sample("x", observed(dec(z)), obs=x)

    def guide(x):
        pyro.module("enc", enc)
        with pyro.plate("data", len(x)):
            loc, raw = enc(x).chunk(2, -1)
            pyro.sample(name, guide_site(loc, (0.1 * raw).exp()))

    return model, guide


def check(elbo, model, guide, *args, **kwargs):
    """A finite loss, and gradients for all parameters of h and n."""
    loss = elbo.loss_and_grads(model, guide, *args, **kwargs)
    assert math.isfinite(loss)
    assert len(elbo.added)
    for name, parameter in elbo.added.named_parameters():
        assert parameter.grad is not None and parameter.grad.isfinite().all(), name
    return loss


# ---------------------------------------------------------------- sites that are mapped

SITES = {
    "normal": lambda m, s: dist.Normal(m, s).to_event(1),
    "laplace": lambda m, s: dist.Laplace(m, s).to_event(1),
    "student": lambda m, s: dist.StudentT(4.0, m, s).to_event(1),
    "cauchy": lambda m, s: dist.Cauchy(m, s).to_event(1),
    "mvn": lambda m, s: dist.MultivariateNormal(m, scale_tril=torch.diag_embed(s)),
    "lowrank": lambda m, s: dist.LowRankMultivariateNormal(m, s.unsqueeze(-1), s),
    "masked": lambda m, s: dist.Normal(m, s).to_event(1).mask(torch.arange(len(m)) > 1),
    "transformed": lambda m, s: dist.TransformedDistribution(
        dist.Normal(m, s).to_event(1), [T.AffineTransform(1.0, 2.0), T.TanhTransform(), T.TanhTransform().inv]
    ),
}


@pytest.mark.parametrize("kind", SITES)
@pytest.mark.parametrize("noise", [0.0, 0.5])
def test_every_location_scale_family(kind, noise):
    model, guide = simple(guide_site=SITES[kind])
    elbo, x = vae2aef.AEF_ELBO(noise=noise), torch.randn(B, N)
    check(elbo, model, guide, x)
    assert "mapped" in repr(elbo)
    terms = elbo._get_trace(model, guide, (x,), {})[1].nodes["z"]["log_prob"]
    assert terms.shape == (B,)
    assert ((terms == 0) == (torch.arange(B) < 2)).all() if kind == "masked" else (terms != 0).all()


def test_a_learned_posterior_flow_is_trained():
    flow = T.affine_autoregressive(D, hidden_dims=[8])
    model, base = simple(guide_site=lambda m, s: dist.TransformedDistribution(dist.Normal(m, s).to_event(1), [flow]))

    def guide(x):
        pyro.module("flow", flow)
        base(x)

    x = torch.randn(B, N)
    elbo = vae2aef.AEF_ELBO(noise=0)
    svi = SVI(model, guide, pyro.optim.Adam({"lr": 1e-2}), loss=elbo)
    svi.step(x)
    before = [p.detach().clone() for p in flow.parameters()]
    svi.step(x)
    assert all(not torch.equal(a, b) for a, b in zip(before, flow.parameters(), strict=True))


def test_lognormal_site_stays_positive():
    model, guide = simple(
        model_site=lambda n: dist.LogNormal(torch.zeros(n, D), 1.0).to_event(1),
        guide_site=lambda m, s: dist.LogNormal(m, s).to_event(1),
    )
    check(vae2aef.AEF_ELBO(noise=0), model, guide, torch.randn(B, N))


def test_simplex_through_a_transform_that_changes_the_shape():
    """Two core variables, three latent ones: log|det| is that of the transform onto the simplex."""
    stick = T.StickBreakingTransform()
    dec = nn.Linear(D + 1, N)
    enc, _ = nets()

    def model(x):
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Dirichlet(torch.ones(D + 1)))
            pyro.sample("x", dist.Normal(dec(z), 0.5).to_event(1), obs=x)

    def guide(x):
        with pyro.plate("data", len(x)):
            loc, raw = enc(x).chunk(2, -1)
            pyro.sample("z", dist.TransformedDistribution(dist.Normal(loc, raw.exp()).to_event(1), [stick]))

    elbo, x = vae2aef.AEF_ELBO(noise=0), torch.randn(B, N)
    check(elbo, model, guide, x)
    _, trace = elbo._get_trace(model, guide, (x,), {})
    loc, raw = enc(x).chunk(2, -1)
    u, log_det = elbo.maps["z"].flow(elbo.maps["z"].features(x))
    v = loc + raw.exp() * u
    z = stick(v)
    torch.testing.assert_close(trace.nodes["z"]["value"], z)
    torch.testing.assert_close(
        trace.nodes["z"]["log_prob"], -(log_det + raw.sum(-1) + stick.log_abs_det_jacobian(v, z)), rtol=1e-4, atol=1e-4
    )


def test_a_transform_without_log_det_is_refused_by_site():
    class NoLogDet(T.Transform):
        domain = codomain = dist.constraints.real
        bijective = True

        def _call(self, x):
            return x + 1

        def _inverse(self, y):
            return y - 1

    model, guide = simple(
        guide_site=lambda m, s: dist.TransformedDistribution(dist.Normal(m, s).to_event(1), [NoLogDet()])
    )
    with pytest.raises(vae2aef.WrapError, match=r'site "z": the transform NoLogDet has no known log-determinant; use'):
        vae2aef.AEF_ELBO(noise=0).loss(model, guide, torch.randn(B, N))


# ---------------------------------------------------------------- plates, masks, shapes


def test_latent_with_plates_of_its_own_and_masks():
    """Two plates: rows on the left, parts on the right; each cell's terms are masked alone."""
    k = 3
    enc, dec = nn.Linear(N, k * 2 * D), nn.Linear(D, N)
    mask = torch.rand(B, k) > 0.4

    def guide(x):
        with pyro.plate("rows", B, dim=-2), pyro.plate("parts", k, dim=-1), poutine.mask(mask=mask):
            loc, raw = enc(x).reshape(B, k, 2 * D).chunk(2, -1)
            pyro.sample("z", dist.Normal(loc, raw.exp()).to_event(1))

    def model(x):
        with pyro.plate("rows", B, dim=-2):
            with pyro.plate("parts", k, dim=-1), poutine.mask(mask=mask):
                z = pyro.sample("z", dist.Normal(torch.zeros(D), 1.0).to_event(1))
            mean = dec((z * mask.unsqueeze(-1)).sum(-2)).unsqueeze(-2)
            pyro.sample("x", dist.Normal(mean, 1.0).to_event(1), obs=x.unsqueeze(-2))

    x = torch.randn(B, N)
    elbo = vae2aef.AEF_ELBO(noise=0)
    check(elbo, model, guide, x)
    _, trace = elbo._get_trace(model, guide, (x,), {})
    site = trace.nodes["z"]
    loc, raw = enc(x).reshape(B, k, 2 * D).chunk(2, -1)
    u, log_det = elbo.maps["z"].flow(elbo.maps["z"].features(x).reshape(B * k, D))
    torch.testing.assert_close(site["value"], loc + raw.exp() * u.reshape(B, k, D))
    torch.testing.assert_close(site["log_prob"], -(mask * (log_det.reshape(B, k) + raw.sum(-1))))


def test_data_plate_on_the_right_of_another():
    """The batch may be at any dimension: here the rightmost, with another plate to its left."""
    enc, dec = nn.Linear(N, 3 * 2), nn.Linear(3, N)

    def guide(x):
        loc, raw = enc(x).t().reshape(3, 2, B).unbind(1)
        with pyro.plate("parts", 3, dim=-2), pyro.plate("rows", B, dim=-1):
            pyro.sample("z", dist.Normal(loc, raw.exp()))

    def model(x):
        with pyro.plate("rows", B, dim=-1):
            with pyro.plate("parts", 3, dim=-2):
                z = pyro.sample("z", dist.Normal(0.0, 1.0))
            pyro.sample("x", dist.Normal(dec(z.t()), 1.0).to_event(1), obs=x)

    elbo = vae2aef.AEF_ELBO(noise=0)
    check(elbo, model, guide, torch.randn(B, N))
    assert elbo.maps["z"].batch.latent_shape == (3,)


@pytest.mark.parametrize("turned", [False, True])
def test_no_plate_but_events(turned):
    """Without plates, the batch is found by its size, also inside the event and behind the latent dimension."""
    enc, dec = nets()

    def turn(value):
        return value.t() if turned else value

    def guide(x):
        loc, raw = enc(x).chunk(2, -1)
        pyro.sample("z", dist.Normal(turn(loc), turn(raw.exp())).to_event(2))

    def model(x):
        z = pyro.sample("z", dist.Normal(turn(torch.zeros(len(x), D)), 1.0).to_event(2))
        pyro.sample("x", dist.Normal(dec(turn(z)), 1.0).to_event(2), obs=x)

    elbo = vae2aef.AEF_ELBO(noise=0)
    x = torch.randn(B, N)
    check(elbo, model, guide, x)
    _, trace = elbo._get_trace(model, guide, (x,), {})
    loc, raw = enc(x).chunk(2, -1)
    u, log_det = elbo.maps["z"].flow(elbo.maps["z"].features(x))
    torch.testing.assert_close(turn(trace.nodes["z"]["value"]), loc + raw.exp() * u)
    torch.testing.assert_close(trace.nodes["z"]["log_prob"], -(log_det.sum() + raw.sum()))


def test_batch_dimension_not_found():
    def guide(x):
        summary = x.mean(0)
        pyro.sample("g", dist.Normal(summary, 1.0).to_event(1))

    def model(x):
        g = pyro.sample("g", dist.Normal(torch.zeros(N), 1.0).to_event(1))
        with pyro.plate("data", len(x)):
            pyro.sample("x", dist.Normal(g, 1.0).to_event(1), obs=x)

    with pytest.raises(vae2aef.WrapError, match=r'site "g": the batch dimension is not found.*pyro.plate'):
        vae2aef.AEF_ELBO(noise=0).loss(model, guide, torch.randn(B, N))


@pytest.mark.remedy('site "{}": which plate holds the batch of {}')
def test_two_plates_of_the_same_size_need_a_name():
    enc = nn.Linear(N, B * 2)

    def guide(x):
        loc, raw = enc(x).reshape(B, B, 2).unbind(-1)
        with pyro.plate("rows", B, dim=-2), pyro.plate("parts", B, dim=-1):
            pyro.sample("z", dist.Normal(loc, raw.exp()))

    def model(x):
        with pyro.plate("rows", B, dim=-2):
            with pyro.plate("parts", B, dim=-1):
                z = pyro.sample("z", dist.Normal(0.0, 1.0))
            pyro.sample("x", dist.Normal(z[:, :N].unsqueeze(-2), 1.0).to_event(1), obs=x.unsqueeze(-2))

    x = torch.randn(B, N)
    with pytest.raises(vae2aef.WrapError, match=r'site "z": which plate.*"rows".*"parts".*plate='):
        vae2aef.AEF_ELBO(noise=0).loss(model, guide, x)
    check(vae2aef.AEF_ELBO(plate="rows", noise=0), model, guide, x)
    with pytest.raises(vae2aef.WrapError, match=r'inside the plate "other"'):
        vae2aef.AEF_ELBO(plate="other", noise=0).loss(model, guide, x)


def test_particles_without_a_given_nesting():
    model, guide = simple(model_site=lambda n: dist.Normal(torch.zeros(D), 1.0).to_event(1))
    elbo = vae2aef.AEF_ELBO(noise=0.5, num_particles=3, vectorize_particles=True)
    x = torch.randn(B, N)
    check(elbo, model, guide, x)
    _, trace = elbo._get_trace(*(elbo._vectorized_num_particles(part) for part in (model, guide)), (x,), {})
    assert trace.nodes["z"]["value"].shape == (3, B, D)
    assert (trace.nodes["z"]["value"].std(0) > 0).all()  # noise of its own for each particle


def test_batches_of_several_sizes():
    model, guide = simple(model_site=lambda n: dist.Normal(torch.zeros(n, D), 1.0).to_event(1))
    elbo = vae2aef.AEF_ELBO(noise=0)
    for size in (B, 3, 1, 10):
        check(elbo, model, guide, torch.randn(size, N))


# ---------------------------------------------------------------- models


def test_conditional_model_with_a_learned_prior():
    enc, dec, prior = nn.Linear(N + 2, 2 * D), nn.Linear(D + 2, N), nn.Linear(2, 2 * D)

    def model(x, y):
        pyro.module("dec", dec)
        pyro.module("prior", prior)
        with pyro.plate("data", len(x)):
            loc, raw = prior(y).chunk(2, -1)
            z = pyro.sample("z", dist.Normal(loc, raw.exp()).to_event(1))
            pyro.sample("x", dist.Normal(dec(torch.cat([z, y], -1)), 0.5).to_event(1), obs=x)

    def guide(x, y):
        pyro.module("enc", enc)
        with pyro.plate("data", len(x)):
            loc, raw = enc(torch.cat([x, y], -1)).chunk(2, -1)
            pyro.sample("z", dist.Normal(loc, raw.exp()).to_event(1))

    check(vae2aef.AEF_ELBO(noise=0), model, guide, torch.randn(B, N), torch.randn(B, 2))
    assert prior.weight.grad.abs().sum() > 0


def markov(steps):
    """A state-space model: a site a time step, each conditioned on the one before; lengths by mask."""
    gru, enc = nn.GRU(N, 8, batch_first=True), nn.Linear(8 + D, 2 * D)
    trans, emit = nn.Linear(D, 2 * D), nn.Linear(D, N)

    def guide(x, lengths):
        for name, module in (("gru", gru), ("enc", enc)):
            pyro.module(name, module)
        hidden, z = gru(x)[0], torch.zeros(len(x), D)
        with pyro.plate("data", len(x)):
            for t in range(x.shape[1]):
                loc, raw = enc(torch.cat([hidden[:, t], z], -1)).chunk(2, -1)
                with poutine.mask(mask=t < lengths):
                    z = pyro.sample(f"z_{t}", dist.Normal(loc, (0.1 * raw).exp()).to_event(1))

    def model(x, lengths):
        for name, module in (("trans", trans), ("emit", emit)):
            pyro.module(name, module)
        z = torch.zeros(len(x), D)
        with pyro.plate("data", len(x)):
            for t in range(x.shape[1]):
                loc, raw = trans(z).chunk(2, -1)
                with poutine.mask(mask=t < lengths):
                    z = pyro.sample(f"z_{t}", dist.Normal(loc, (0.1 * raw).exp()).to_event(1))
                    pyro.sample(f"x_{t}", dist.Normal(emit(z), 0.5).to_event(1), obs=x[:, t])

    return model, guide


def test_deep_markov_model_with_masks_and_more_steps_later():
    model, guide = markov(3)
    elbo = vae2aef.AEF_ELBO(core={f"z_{t}": _Summary() for t in range(5)}, noise=0)
    lengths = torch.tensor([3, 1, 2, 3, 3, 2])
    check(elbo, model, guide, torch.randn(B, 3, N), lengths)
    assert len(elbo.maps) == 3
    _, trace = elbo._get_trace(model, guide, (torch.randn(B, 3, N), lengths), {})
    assert trace.nodes["z_2"]["log_prob"][1] == 0 and trace.nodes["z_2"]["log_prob"][0] != 0
    elbo.loss(model, guide, torch.randn(B, 5, N), torch.full((B,), 5))  # sites that were not there before
    assert len(elbo.maps) == 5
    elbo.loss(model, guide, torch.randn(B, 2, N), torch.full((B,), 2))


@pytest.mark.parametrize("discrete", [False, True])
def test_masks_inside_events_as_in_pyros_dmm_tutorial(discrete):
    """`Normal(...).mask(m[:, t:t+1]).to_event(1)`, annealing by poutine.scale, several arguments."""
    enc, trans, emit = nn.Linear(N + D, 2 * D), nn.Linear(D, 2 * D), nn.Linear(D, N)

    def site(name, out, mask, weight):
        loc, raw = out.chunk(2, -1)
        with poutine.scale(scale=weight):
            return pyro.sample(name, dist.Normal(loc, (0.1 * raw).exp()).mask(mask).to_event(1))

    def guide(x, mask, weight):
        z = torch.zeros(len(x), D)
        with pyro.plate("z_minibatch", len(x)):
            for t in pyro.markov(range(x.shape[1])):
                z = site(f"z_{t}", enc(torch.cat([x[:, t], z], -1)), mask[:, t : t + 1], weight)

    def model(x, mask, weight):
        z = torch.zeros(len(x), D)
        with pyro.plate("z_minibatch", len(x)):
            for t in pyro.markov(range(x.shape[1])):
                z = site(f"z_{t}", trans(z), mask[:, t : t + 1], weight)
                fn = dist.Bernoulli(logits=emit(z)) if discrete else dist.Normal(emit(z), 0.5)
                pyro.sample(f"x_{t}", fn.mask(mask[:, t : t + 1]).to_event(1), obs=x[:, t])

    x = torch.randn(B, 3, N)
    x = (x > 0).float() if discrete else x
    mask = torch.arange(3) < torch.tensor([3, 1, 2, 3, 3, 2]).unsqueeze(-1)
    elbo = vae2aef.AEF_ELBO(observed="gaussian" if discrete else None, noise=0)
    check(elbo, model, guide, x, mask, 0.3)
    model_trace, trace = elbo._get_trace(model, guide, (x, mask, 0.3), {})
    for t in range(3):
        for terms in (trace.nodes[f"z_{t}"], model_trace.nodes[f"z_{t}"], model_trace.nodes[f"x_{t}"]):
            assert ((terms["log_prob"] == 0) == ~mask[:, t]).all()
    assert trace.nodes["z_0"]["scale"] == 0.3
    torch.testing.assert_close(trace.nodes["z_0"]["log_prob"], 0.3 * trace.nodes["z_0"]["unscaled_log_prob"])


def test_a_mask_that_differs_inside_an_event_is_refused():
    model, guide = simple(guide_site=lambda m, s: dist.Normal(m, s).mask(torch.tensor([True, False])).to_event(1))
    with pytest.raises(vae2aef.WrapError, match=r'site "z": its mask differs.*to_event\(1\).mask'):
        vae2aef.AEF_ELBO(noise=0).loss(model, guide, torch.randn(B, N))


class _Summary(nn.Module):
    """A feature expansion for sequences of any length."""

    def __init__(self):
        super().__init__()
        self.linear = nn.Linear(N, D)

    def forward(self, x):
        return self.linear(x.mean(1))


def test_pyro_param_decoder_and_scale():
    enc, _ = nets()

    def model(x):
        weight = pyro.param("weight", torch.randn(D, N))
        scale = pyro.param("scale", torch.ones(N), constraint=dist.constraints.positive)
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(torch.zeros(D), 1.0).to_event(1))
            pyro.sample("x", dist.Normal(z @ weight, scale).to_event(1), obs=x)

    def guide(x):
        pyro.module("enc", enc)
        with pyro.plate("data", len(x)):
            loc, raw = enc(x).chunk(2, -1)
            pyro.sample("z", dist.Normal(loc, raw.exp()).to_event(1))

    svi = SVI(model, guide, pyro.optim.Adam({"lr": 0.01}), loss=vae2aef.AEF_ELBO(noise=0))
    x = torch.randn(B, N)
    svi.step(x)
    before = pyro.param("weight").detach().clone(), pyro.param("scale").detach().clone()
    svi.step(x)
    assert not torch.equal(pyro.param("weight"), before[0]) and not torch.equal(pyro.param("scale"), before[1])


# ---------------------------------------------------------------- sites that are left to Pyro


def test_global_site_beside_a_local_one():
    """Bayesian weights keep Trace_ELBO's treatment: the loss is theirs plus the AEF's, and both are trained."""
    enc, _ = nets()

    def model(x):
        w = pyro.sample("w", dist.Normal(torch.zeros(D, N), 1.0).to_event(2))
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(torch.zeros(D), 1.0).to_event(1))
            pyro.sample("x", dist.Normal(z @ w, 0.5).to_event(1), obs=x)

    def guide(x):
        pyro.module("enc", enc)
        loc = pyro.param("w_loc", torch.zeros(D, N))
        pyro.sample("w", dist.Normal(loc, 0.1).to_event(2))
        with pyro.plate("data", len(x)):
            loc, raw = enc(x).chunk(2, -1)
            pyro.sample("z", dist.Normal(loc, raw.exp()).to_event(1))

    x = torch.randn(B, N)
    elbo = vae2aef.AEF_ELBO(noise=0)
    check(elbo, model, guide, x)
    assert '"w": Normal, left to Pyro (a reparameterised draw): it does not see the data' in repr(elbo)
    model_trace, trace = elbo._get_trace(model, guide, (x,), {})
    w = trace.nodes["w"]["value"]
    torch.testing.assert_close(trace.nodes["w"]["log_prob"], trace.nodes["w"]["fn"].log_prob(w))
    assert model_trace.nodes["w"]["value"] is w


def test_discrete_latent_beside_a_mapped_one():
    """A class drawn from q(y|x) has Trace_ELBO's score-function gradient; z given x and y is mapped."""
    classify, enc, dec = nn.Linear(N, 3), nn.Linear(N + 3, 2 * D), nn.Linear(D + 3, N)

    def hot(y):
        return nn.functional.one_hot(y, 3).float()

    def model(x):
        with pyro.plate("data", len(x)):
            y = pyro.sample("y", dist.Categorical(torch.ones(3) / 3))
            z = pyro.sample("z", dist.Normal(torch.zeros(D), 1.0).to_event(1))
            pyro.sample("x", dist.Normal(dec(torch.cat([z, hot(y)], -1)), 0.5).to_event(1), obs=x)

    def guide(x):
        pyro.module("classify", classify)
        with pyro.plate("data", len(x)):
            y = pyro.sample("y", dist.Categorical(logits=classify(x)))
            loc, raw = enc(torch.cat([x, hot(y)], -1)).chunk(2, -1)
            pyro.sample("z", dist.Normal(loc, raw.exp()).to_event(1))

    elbo = vae2aef.AEF_ELBO(noise=0)
    check(elbo, model, guide, torch.randn(B, N))
    assert classify.weight.grad.abs().sum() > 0
    assert '"y": Categorical, left to Pyro (a draw with a score-function gradient)' in repr(elbo)


def test_enumerated_site_is_refused():
    def model(x):
        with pyro.plate("data", len(x)):
            pyro.sample("y", dist.Categorical(torch.ones(3) / 3), infer={"enumerate": "parallel"})
            z = pyro.sample("z", dist.Normal(torch.zeros(D), 1.0).to_event(1))
            pyro.sample("x", dist.Normal(z.repeat(1, 2), 0.5).to_event(1), obs=x)

    def guide(x):
        with pyro.plate("data", len(x)):
            pyro.sample("y", dist.Categorical(torch.ones(3) / 3), infer={"enumerate": "parallel"})
            pyro.sample("z", dist.Normal(x[:, :D], 1.0).to_event(1))

    with pytest.raises(vae2aef.WrapError, match=r'site "y": it is marked for enumeration.*remove'):
        vae2aef.AEF_ELBO(noise=0).loss(model, guide, torch.randn(B, N))


def test_only_a_discrete_site_is_refused():
    def model(x):
        with pyro.plate("data", len(x)):
            y = pyro.sample("y", dist.Categorical(torch.ones(3) / 3))
            pyro.sample("x", dist.Normal(y.float().unsqueeze(-1).expand(-1, N), 0.5).to_event(1), obs=x)

    def guide(x):
        with pyro.plate("data", len(x)):
            pyro.sample("y", dist.Categorical(logits=x[:, :3]))

    with pytest.raises(vae2aef.WrapError, match=r'"y".*Categorical.*Normal, Laplace|"y" \(Categorical\).*amortised'):
        vae2aef.AEF_ELBO(noise=0).loss(model, guide, torch.randn(B, N))


def test_auxiliary_site_with_a_delta_after_it():
    """AutoGuide style: one auxiliary draw that is unpacked into Delta sites."""
    model, _ = simple()
    enc, _ = nets()

    def guide(x):
        with pyro.plate("data", len(x)):
            loc, raw = enc(x).chunk(2, -1)
            a = pyro.sample("_a", dist.Normal(loc, raw.exp()).to_event(1), infer={"is_auxiliary": True})
            pyro.sample("z", dist.Delta(2 * a, log_density=-D * math.log(2.0), event_dim=1))

    x = torch.randn(B, N)
    elbo = vae2aef.AEF_ELBO(noise=0)
    loss = check(elbo, model, guide, x)
    _, trace = elbo._get_trace(model, guide, (x,), {})
    total = (trace.nodes["_a"]["log_prob"] + trace.nodes["z"]["log_prob"]).sum()
    model_trace, _ = elbo._get_trace(model, guide, (x,), {})
    assert loss == pytest.approx((total - model_trace.log_prob_sum()).item(), rel=1e-5)
    torch.testing.assert_close(trace.nodes["z"]["log_prob"], torch.full((B,), -D * math.log(2.0)))


def test_autoguide_does_not_see_the_data():
    model, _ = simple(model_site=lambda n: dist.Normal(torch.zeros(n, D), 1.0).to_event(1))
    with pytest.raises(vae2aef.WrapError, match=r'no site of the guide sees the data.*"z".*amortised'):
        vae2aef.AEF_ELBO(noise=0).loss(model, AutoNormal(model), torch.randn(B, N))


def test_guide_that_ignores_the_data_and_one_that_detaches():
    model, _ = simple()
    enc, _ = nets()

    def ignores(x):
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Normal(pyro.param("loc", torch.zeros(B, D)), 1.0).to_event(1))

    def detaches(x):
        with pyro.plate("data", len(x)):
            with torch.no_grad():
                loc, raw = enc(x).chunk(2, -1)
            pyro.sample("z", dist.Normal(loc, raw.exp()).to_event(1))

    x = torch.randn(B, N)
    with pytest.raises(vae2aef.WrapError, match=r"no site of the guide sees the data"):
        vae2aef.AEF_ELBO(noise=0).loss(model, ignores, x)
    check(vae2aef.AEF_ELBO(noise=0), model, detaches, x)


def test_names_that_differ():
    model, guide = simple(name="latent")
    message = r'"latent" is in the guide and not in the model; "z" is in the model and not in the guide.*Rename'
    with pytest.raises(vae2aef.WrapError, match=message):
        vae2aef.AEF_ELBO(noise=0).loss(model, guide, torch.randn(B, N))


def test_a_guide_that_only_has_the_site_as_deterministic():
    model, guide = simple()
    split = poutine.reparam(guide, {"z": LocScaleReparam(0.5)})
    with pytest.raises(
        vae2aef.WrapError, match=r'"z_decentered" is in the guide and not in the model; "z" is in the m'
    ):
        vae2aef.AEF_ELBO(noise=0).loss(model, split, torch.randn(B, N))


@pytest.mark.parametrize("how", ["from_pyro", "aef_guide", "AEF_ELBO"])
@pytest.mark.parametrize("kind", ["computes", "observes"])
def test_a_guide_that_computes_or_observes_a_latent_of_the_model(how, kind):
    """Pyro's replay ends in `RuntimeError: site ... must be sampled in trace`, which names no remedy."""
    of_z, guide_of_z = simple()

    def model(x):
        pyro.sample("s", dist.Normal(x.new_zeros(()), 1.0))
        of_z(x)

    def guide(x):
        guide_of_z(x)
        if kind == "computes":
            pyro.deterministic("s", x.mean())
        else:
            pyro.sample("s", dist.Normal(x.new_zeros(()), 1.0), obs=x.mean())

    x = torch.randn(B, N)
    with pytest.raises(vae2aef.WrapError, match=r'"s" is in the model and not in the guide\. Rename'):
        if how == "from_pyro":
            vae2aef.from_pyro(model, guide, x)
        elif how == "aef_guide":
            Trace_ELBO().loss(model, vae2aef.aef_guide(model, guide), x)
        else:
            vae2aef.AEF_ELBO().loss(model, guide, x)


def test_amortised_easyguide():
    from pyro.contrib.easyguide import EasyGuide

    model, base = simple()

    class Easy(EasyGuide):
        def guide(self, x):
            base(x)

    check(vae2aef.AEF_ELBO(noise=0), model, Easy(model), torch.randn(B, N))


# ---------------------------------------------------------------- observed sites


@pytest.mark.parametrize(
    "kind, observed",
    [
        ("Bernoulli", lambda m: dist.Bernoulli(logits=m).to_event(1)),
        ("Poisson", lambda m: dist.Poisson(m.exp()).to_event(1)),
    ],
)
def test_discrete_data_is_kept_or_made_gaussian(kind, observed):
    model, guide = simple(observed=observed)
    x = (torch.rand(B, N) > 0.5).float()
    elbo = vae2aef.AEF_ELBO(noise=0)
    check(elbo, model, guide, x)
    assert f'"x": observed {kind}, kept as it is' in repr(elbo)
    with pytest.raises(vae2aef.WrapError, match='expected observed "gaussian" or "keep" for it, got'):
        vae2aef.AEF_ELBO(observed={"x": "gauss"}, noise=0).loss(model, guide, x)
    elbo = vae2aef.AEF_ELBO(observed="gaussian", noise=0)
    check(elbo, model, guide, x)
    assert f'"x": observed {kind}, replaced by a Gaussian around its mean, scale learned' in repr(elbo)
    trace, _ = elbo._get_trace(model, guide, (x,), {})
    fn = trace.nodes["x"]["fn"].base_dist
    torch.testing.assert_close(fn.scale[0], elbo.scales["x"].scale())
    assert fn.scale.shape == (B, N)
    original = poutine.trace(poutine.condition(model, {"z": trace.nodes["z"]["value"]})).get_trace(x)
    torch.testing.assert_close(fn.loc, original.nodes["x"]["fn"].mean)
    check(vae2aef.AEF_ELBO(observed={"x": "keep"}, noise=0), model, guide, x)


def test_label_is_kept_beside_continuous_data():
    base, guide = simple()
    classify = nn.Linear(D, 3)

    def model(x):
        base(x)

    def labelled(x, y):
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(torch.zeros(D), 1.0).to_event(1))
            pyro.sample("x", dist.Normal(z.repeat(1, 2), 1.0).to_event(1), obs=x)
            pyro.sample("y", dist.Categorical(logits=classify(z)), obs=y)

    def guide_xy(x, y):
        guide(x)

    x, y = torch.randn(B, N), torch.randint(3, (B,))
    check(vae2aef.AEF_ELBO(noise=0), labelled, guide_xy, x, y)
    pyro.clear_param_store()
    check(vae2aef.AEF_ELBO(observed={"y": "keep"}, noise=0), labelled, guide_xy, x, y)


def test_any_continuous_density_is_taken():
    for observed in (
        lambda m: dist.StudentT(3.0, m, 1.0).to_event(1),
        lambda m: dist.MultivariateNormal(m, torch.eye(N)),
        lambda m: dist.Laplace(m, 0.3).to_event(1),
    ):
        pyro.clear_param_store()
        model, guide = simple(observed=observed)
        check(vae2aef.AEF_ELBO(noise=0), model, guide, torch.randn(B, N))


# ---------------------------------------------------------------- the data


def test_data_by_name_by_callable_and_nested():
    inner_model, inner_guide = simple()
    x, y = torch.randn(B, N), torch.randn(B, 7)

    def model(y, batch):
        inner_model(batch["x"])

    def guide(y, batch):
        inner_guide(batch["x"])

    elbo = vae2aef.AEF_ELBO(data=lambda y, batch: batch["x"], noise=0)
    check(elbo, model, guide, y, {"x": x})
    assert elbo.maps["z"].features.linear.in_features == N
    elbo = vae2aef.AEF_ELBO(data="x", noise=0)
    check(elbo, lambda y, x: inner_model(x), lambda y, x: inner_guide(x), y, x)
    elbo = vae2aef.AEF_ELBO(data="x", noise=0)
    check(elbo, lambda y, **named: inner_model(named["x"]), lambda y, **named: inner_guide(named["x"]), y, x=x)
    with pytest.raises(vae2aef.WrapError, match=r'data="w" is no argument.*\[\'x\', \'y\'\]'):
        vae2aef.AEF_ELBO(data="w", noise=0).loss(lambda y, x: inner_model(x), lambda y, x: inner_guide(x), y, x)


def test_data_from_outside_the_arguments():
    inner_model, inner_guide = simple()
    x = torch.randn(B, N)
    elbo = vae2aef.AEF_ELBO(data=lambda: x, noise=0)
    check(elbo, lambda: inner_model(x), lambda: inner_guide(x))
    assert "mapped" in repr(elbo)


def test_core_module_of_the_wrong_shape():
    model, guide = simple()
    with pytest.raises(vae2aef.WrapError, match=r'site "z": expected the core module to return \(6, 2\).*got \(6, 5\)'):
        vae2aef.AEF_ELBO(core=nn.Linear(N, 5), noise=0).loss(model, guide, torch.randn(B, N))


@pytest.mark.parametrize("where", ["model", "guide"])
def test_an_error_of_ones_own_is_no_error_of_the_type(where):
    """Fault: whatever goes wrong on integers is said to be their type."""
    model, guide = simple()

    def broken(x):
        raise RuntimeError("a mistake of the user's")

    pair = {"model": model, "guide": guide, where: broken}
    pair["guide"] = pair["guide"] if where == "guide" else lambda x: guide(x.float())
    with pytest.raises(RuntimeError, match="a mistake of the user's"):
        vae2aef.AEF_ELBO(noise=0).loss(pair["model"], pair["guide"], torch.randint(3, (B, N)))


@pytest.mark.parametrize("layer", [nn.Conv1d(1, N, 1), nn.Bilinear(N, N, N), nn.Embedding(1, 1).weight.__matmul__])
def test_errors_of_the_type_are_told_from_others(layer):
    """What torch says where integers come to layers of floats."""
    model, _ = simple()
    x = torch.randint(3, (B, 1, N))

    def guide(x):
        layer(*[x, x][: 1 + isinstance(layer, nn.Bilinear)])

    with pytest.raises(vae2aef.WrapError, match=r"floating point data, got torch.int64"):
        vae2aef.AEF_ELBO(noise=0).loss(model, guide, x)


def test_no_data_and_integers():
    model, guide = simple()
    with pytest.raises(vae2aef.WrapError, match="gets no tensor to encode"):
        vae2aef.AEF_ELBO(noise=0).loss(model, guide)
    with pytest.raises(vae2aef.WrapError, match=r"floating point data, got torch.int64.*data="):
        vae2aef.AEF_ELBO(noise=0).loss(model, guide, torch.randint(3, (B, N)))


# ---------------------------------------------------------------- the parameter store


def test_store_cleared_saved_loaded(tmp_path):
    model, guide = simple()
    x = torch.randn(B, N)
    elbo = vae2aef.AEF_ELBO(core_flow="maf", noise=0)
    svi = SVI(model, guide, pyro.optim.Adam({"lr": 1e-2}), loss=elbo)
    for _ in range(3):
        svi.step(x)
    loss = svi.evaluate_loss(x)
    path = str(tmp_path / "store.pt")
    pyro.get_param_store().save(path)
    pyro.clear_param_store()
    assert svi.evaluate_loss(x) == pytest.approx(loss)  # the modules keep their weights, and are registered again
    assert any(key.startswith("aef$$$") for key in pyro.get_param_store())
    pyro.clear_param_store()
    del svi, elbo
    torch.manual_seed(99)
    pyro.get_param_store().load(path, map_location="cpu")
    again = vae2aef.AEF_ELBO(core_flow="maf", noise=0)  # as in a new process: weights and permutations come back
    assert again.loss(model, guide, x) == pytest.approx(loss, rel=1e-5)
    fresh_store = SVI(model, guide, pyro.optim.Adam({"lr": 1e-2}), loss=again)
    before = pyro.param("aef$$$site_z.features.linear.weight").detach().clone()
    fresh_store.step(x)
    assert not torch.equal(before, pyro.param("aef$$$site_z.features.linear.weight"))
    torch.testing.assert_close(
        again.maps["z"].features.linear.weight, pyro.param("aef$$$site_z.features.linear.weight")
    )


def test_loading_into_a_living_loss(tmp_path):
    model, guide = simple()
    x = torch.randn(B, N)
    elbo = vae2aef.AEF_ELBO(noise=0)
    loss = elbo.loss(model, guide, x)
    path = str(tmp_path / "store.pt")
    pyro.get_param_store().save(path)
    svi = SVI(model, guide, pyro.optim.Adam({"lr": 1e-1}), loss=elbo)
    for _ in range(3):
        svi.step(x)
    pyro.get_param_store().load(path, map_location="cpu")
    for module, name in ((model, "dec"), (guide, "enc")):
        inner = next(c.cell_contents for c in module.__closure__ if isinstance(c.cell_contents, nn.Linear))
        pyro.module(name, inner, update_module_params=True)
    assert elbo.loss(model, guide, x) == pytest.approx(loss, rel=1e-5)


def test_two_losses_have_parameters_of_their_own():
    model, guide = simple()
    x = torch.randn(B, N)
    first, second = vae2aef.AEF_ELBO(noise=0), vae2aef.AEF_ELBO(core_flow="none", noise=0)
    for elbo in (first, second, first):
        elbo.loss(model, guide, x)
    assert {key.split("$$$")[0] for key in pyro.get_param_store()} == {"enc", "dec", "aef", "aef_2"}
    named = vae2aef.AEF_ELBO(name="mine", noise=0)
    named.loss(model, guide, x)
    assert any(key.startswith("mine$$$") for key in pyro.get_param_store())
    with pytest.raises(vae2aef.WrapError, match='the name "mine" is used by another'):
        vae2aef.AEF_ELBO(name="mine", noise=0).loss(model, guide, x)


def test_stale_store_of_another_shape_is_refused():
    x = torch.randn(B, N)
    model, guide = simple()
    store = pyro.get_param_store()
    pyro.param("old$$$site_z.features.linear.weight", torch.zeros(5, 5))
    with pytest.raises(vae2aef.WrapError, match=r"holds .old\$\$\$.*shape \(5, 5\).*clear_param_store"):
        vae2aef.AEF_ELBO(name="old", noise=0).loss(model, guide, x)
    assert store["old$$$site_z.features.linear.weight"].shape == (5, 5)


class Model(pyro.nn.PyroModule):
    def __init__(self):
        super().__init__()
        self.dec = pyro.nn.PyroModule[nn.Linear](D, N)
        self.scale = pyro.nn.PyroParam(torch.ones(N), constraint=dist.constraints.positive)

    def forward(self, x):
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(torch.zeros(D), 1.0).to_event(1))
            pyro.sample("x", dist.Normal(self.dec(z), self.scale).to_event(1), obs=x)


class Guide(pyro.nn.PyroModule):
    def __init__(self):
        super().__init__()
        self.enc = pyro.nn.PyroModule[nn.Linear](N, 2 * D)

    def forward(self, x):
        with pyro.plate("data", len(x)):
            loc, raw = self.enc(x).chunk(2, -1)
            pyro.sample("z", dist.Normal(loc, raw.exp()).to_event(1))


@pytest.mark.parametrize("data", [None, "x"])
def test_pyro_modules_under_svi_and_under_torch_optimizers(data):
    x = torch.randn(B, N)
    model, guide = Model(), Guide()
    svi = SVI(model, guide, pyro.optim.Adam({"lr": 1e-2}), loss=vae2aef.AEF_ELBO(data=data, noise=0))
    assert svi.step(x) != svi.step(x)
    module = vae2aef.AEF_ELBO(data=data, noise=0)(model, guide)
    module(x)  # as with Pyro's own: made at the first call
    optimizer = torch.optim.Adam(module.parameters(), lr=1e-2)
    names = {name for name, _ in module.named_parameters()}
    assert any(name.startswith("added.site_z") for name in names) and any("enc" in name for name in names)
    before = [p.detach().clone() for p in module.parameters()]
    for _ in range(2):
        optimizer.zero_grad()
        module(x).backward()
        optimizer.step()
    assert all(not torch.equal(a, b) for a, b in zip(before, module.parameters(), strict=True))


# ---------------------------------------------------------------- options


def test_noise_can_change_and_options_are_checked():
    model, guide = simple()
    x = torch.randn(B, N)
    elbo = vae2aef.AEF_ELBO(core_flow="none", noise=0)
    loss = elbo.loss(model, guide, x)
    assert elbo.loss(model, guide, x) == loss  # deterministic
    elbo.noise = 0.5
    assert elbo.loss(model, guide, x) != elbo.loss(model, guide, x)
    for value in (-1.0, math.nan):
        with pytest.raises(ValueError, match="noise >= 0"):
            elbo.noise = value
    with pytest.raises(ValueError, match="whose noise is 1"):
        vae2aef.AEF_ELBO(core="noise", noise=0.5)
    with pytest.raises(ValueError, match='expected observed None, "gaussian"'):
        vae2aef.AEF_ELBO(observed="normal", noise=0)
    with pytest.raises(vae2aef.WrapError, match=r'site "z": core= is a dict without it'):
        vae2aef.AEF_ELBO(core={"y": "linear"}, noise=0).loss(model, guide, x)


def test_a_dict_of_sites_that_are_all_the_guides_own():
    """Fault: sigma is 0.3 beside a core that is "noise", and what was trained cannot be converted."""
    model, guide = simple()
    both, x = Both(model, guide), torch.randn(B, N)
    for noise in (None, 0.0, 0.3):
        elbo = vae2aef.AEF_ELBO(core={"z": "noise"}, noise=noise)
        assert elbo.noise == 1
        elbo.noise = 0.1  # of the other sites, of which there are none
        assert elbo.noise == 1 and math.isfinite(elbo.loss(both.model, both.guide, x))
        assert vae2aef.from_pyro(both.model, both.guide, x, noise=elbo.noise, **elbo.trained()).noise == 1
    assert vae2aef.from_pyro(both.model, both.guide, x, core={"z": "noise"}, noise=0.3).noise == 1


@pytest.mark.parametrize("flow", [None, {"z": None}])
def test_no_core_flow_is_none(flow):
    """Fault: None, the default of `wrap`, is no flow of these."""
    model, guide = simple()
    both, x = Both(model, guide), torch.randn(B, N)
    elbo, aef = vae2aef.AEF_ELBO(core_flow=flow), vae2aef.aef_guide(both.model, both.guide, core_flow=flow)
    assert math.isfinite(elbo.loss(both.model, both.guide, x))
    aef(x)
    for maps in (elbo.maps, aef.maps.maps):
        assert isinstance(maps["z"].flow, vae2aef.flows.Identity)


@pytest.mark.parametrize("noise", ["0.3", b"1", True, [0.3]])
def test_sigma_that_is_no_number(noise):
    """Fault: an error of `math.isfinite`, or True taken for 1."""
    model, guide = simple()
    with pytest.raises(TypeError, match="expected noise as a number >= 0"):
        vae2aef.AEF_ELBO(noise=noise)
    elbo, aef = vae2aef.AEF_ELBO(noise=0), vae2aef.aef_guide(model, guide, noise=0)
    for changed in (elbo, aef):
        with pytest.raises(TypeError, match="expected noise as a number >= 0"):
            changed.noise = noise
        assert changed.noise == 0
        changed.noise = None
        assert changed.noise == vae2aef.core.DEFAULT_NOISE


def test_one_default_of_sigma_everywhere():
    """Fault: `AEF_ELBO` and `aef_guide` train at 0 what `from_pyro` and `wrap` take at 0.3."""
    model, guide = simple(model_site=lambda n: dist.Normal(torch.zeros(n, D), 1.0).to_event(1))
    both, x = Both(model, guide), torch.randn(B, N)
    for options in ({}, {"core": "noise"}):
        made = vae2aef.from_pyro(both.model, both.guide, x, **options)
        for noise in ({}, {"noise": None}):
            elbo, aef = vae2aef.AEF_ELBO(**options, **noise), vae2aef.aef_guide(model, guide, **options, **noise)
            assert elbo.noise == aef.noise == made.noise == (1.0 if options else vae2aef.core.DEFAULT_NOISE)
        assert ("the default; noise=0 is the paper's loss" in repr(elbo)) == (not options)
    elbo = vae2aef.AEF_ELBO(noise=0)
    assert elbo.noise == 0 and elbo.loss(model, guide, x) == elbo.loss(model, guide, x)
    elbo = vae2aef.AEF_ELBO()
    assert elbo.loss(model, guide, x) != elbo.loss(model, guide, x)


@pytest.mark.remedy('site "{}": a core that is part of the data i')
def test_the_partition_family_needs_a_module():
    model, guide = simple(model_site=lambda n: dist.Normal(torch.zeros(n, D), 1.0).to_event(1))
    x = torch.randn(B, N)
    for core in ("center", torch.arange(N) < D):
        with pytest.raises(vae2aef.WrapError, match=r'site "z".*from_pyro'):
            vae2aef.AEF_ELBO(core=core, noise=0).loss(model, guide, x)
        vae = Both(model, guide)
        assert vae2aef.from_pyro(vae.model, vae.guide, x, core=core).core.exact


class Both(nn.Module):
    """A pair of functions as methods of a module that holds their networks."""

    def __init__(self, model, guide):
        super().__init__()
        cells = [cell.cell_contents for part in (model, guide) for cell in part.__closure__]
        self.nets = nn.ModuleList([c for c in cells if isinstance(c, nn.Module)])
        self.own = model, guide

    def model(self, *args):
        return self.own[0](*args)

    def guide(self, *args):
        return self.own[1](*args)


@pytest.mark.parametrize("core", ["all", "Linear", 3, None])
def test_words_that_are_no_core(core):
    """Fault: "all" is taken, which is the inside's own word."""
    model, guide = simple()
    with pytest.raises(vae2aef.WrapError, match='expected core "linear", "step", "sum", "log", "noise" or a module, g'):
        vae2aef.AEF_ELBO(core=core, noise=0).loss(model, guide, torch.randn(B, N))


@pytest.mark.remedy(
    'site "{}": core="sum" is of the time steps o', 'site "{}": core="log" reads log(1 + x) of co',
    'site "{}": core="step" is for sites z_1, z_2',
)  # fmt: skip
def test_cores_of_sequences_and_counts_where_there_are_none():
    """Fault: "sum" adds up the features of plain rows, as if they were time steps."""
    model, guide = simple()
    x = torch.randn(B, N)
    for core in ("sum", "log", "step"):
        with pytest.raises(vae2aef.WrapError, match=f'core="{core}" .*') as error:
            vae2aef.AEF_ELBO(core=core, noise=0).loss(model, guide, x)
        word = error.value.fix.split('core="')[1].split('"')[0]
        check(vae2aef.AEF_ELBO(core=word, noise=0), model, guide, x)
    model, guide = markov(3)
    elbo = vae2aef.AEF_ELBO(core="sum", noise=0)  # of sequences of one length
    check(elbo, model, guide, torch.randn(B, 3, N), torch.full((B,), 3))
    assert "h reads the sum over time steps" in repr(elbo)


@pytest.mark.remedy(
    "observed= names {}, and the model has no suc", 'observed site "{}": observed="gaussian" is f',
    'observed site "{}": expected observed "gauss',
)  # fmt: skip
@pytest.mark.parametrize("kind", [dict, types.MappingProxyType])
def test_observed_by_site(kind):
    """Fault: a name that is no site, or a site that is not discrete, is passed over; other mappings are no dict."""
    model, guide = simple(observed=lambda m: dist.Bernoulli(logits=m).to_event(1))
    x = (torch.rand(B, N) > 0.5).float()
    with pytest.raises(vae2aef.WrapError, match=r"names 'X', and the model has no such site; name one .*: z, x$"):
        vae2aef.AEF_ELBO(observed=kind({"X": "gaussian"}), noise=0).loss(model, guide, x)
    elbo = vae2aef.AEF_ELBO(observed=kind({"x": "gaussian"}), noise=0)
    check(elbo, model, guide, x)
    assert set(elbo.scales) == {"x"}
    plain, guide = simple()
    for word, message in (("gaussian", "is for discrete sites, and this is a Normal"), ("gauss", "got 'gauss'")):
        with pytest.raises(vae2aef.WrapError, match=f'observed site "x": .*{message}; leave'):
            vae2aef.AEF_ELBO(observed=kind({"x": word}), noise=0).loss(plain, guide, x)
    check(vae2aef.AEF_ELBO(observed=kind({"x": "keep"}), noise=0), plain, guide, x)
    check(vae2aef.AEF_ELBO(observed="gaussian", noise=0), plain, guide, x)  # of discrete sites, if there are any
    check(vae2aef.AEF_ELBO(noise=0), plain, guide, x)


def test_observed_of_later_time_steps_may_be_named():
    model, guide = markov(2)
    elbo = vae2aef.AEF_ELBO(observed={f"x_{t}": "keep" for t in range(5)}, noise=0)
    check(elbo, model, guide, torch.randn(B, 2, N), torch.full((B,), 2))
    with pytest.raises(vae2aef.WrapError, match="names 'y_0', and the model has no such site"):
        vae2aef.AEF_ELBO(observed={"y_0": "keep"}).loss(model, guide, torch.randn(B, 2, N), torch.full((B,), 2))


def test_gaussian_with_another_loss_is_a_change_of_the_model():
    """As documented: `SVI(aef.model, aef, ...)`; it is AEF_ELBO's own loss, and its scale is trained."""
    model, guide = simple(observed=lambda m: dist.Bernoulli(logits=m).to_event(1))
    x = (torch.rand(B, N) > 0.5).float()
    aef = vae2aef.aef_guide(model, guide, observed="gaussian", noise=0)
    svi = SVI(aef.model, aef, pyro.optim.Adam({"lr": 1e-2}), loss=Trace_ELBO())
    elbo = vae2aef.AEF_ELBO(observed="gaussian", noise=0, **aef.trained())
    first = svi.step(x)
    before = aef.maps.scales["x"].scale().detach().clone()
    svi.step(x)
    assert not torch.equal(before, aef.maps.scales["x"].scale()) and math.isfinite(first)
    elbo = vae2aef.AEF_ELBO(observed="gaussian", noise=0, **aef.trained())
    elbo.loss(model, guide, x)
    elbo.scales["x"].load_state_dict(aef.maps.scales["x"].state_dict())
    assert elbo.loss(model, guide, x) == pytest.approx(svi.evaluate_loss(x), rel=1e-5)


def test_not_finite_names_the_site():
    model, guide = simple(guide_site=lambda m, s: dist.Normal(m, 0 * s, validate_args=False).to_event(1))
    pyro.enable_validation(False)
    try:
        with pytest.raises(vae2aef.NonFiniteError, match=r'site "z"'):
            vae2aef.AEF_ELBO(noise=0).loss(model, guide, torch.randn(B, N))
    finally:
        pyro.enable_validation(True)


@pytest.mark.filterwarnings("ignore::UserWarning")
def test_trace_elbo_and_aef_elbo_are_exchangeable_mid_training():
    model, guide = simple()
    x = torch.randn(B, N)
    optimizer = pyro.optim.Adam({"lr": 1e-2})
    for loss in (Trace_ELBO(), vae2aef.AEF_ELBO(noise=1.0), vae2aef.AEF_ELBO(noise=0)):
        svi = SVI(model, guide, optimizer, loss=loss)
        assert all(math.isfinite(svi.step(x)) for _ in range(3))
