"""Pyro pairs of several latents beyond the plain kind: masks, other families, bounded supports."""

import math

import pytest
import torch
from torch import nn

pyro = pytest.importorskip("pyro")
import pyro.distributions as dist  # noqa: E402
from pyro import poutine  # noqa: E402
from zoo_hierarchy import TwoLevels, pyro_aef, torch_aef  # noqa: E402

import vae2aef  # noqa: E402
from vae2aef import testing  # noqa: E402
from vae2aef.batch import Batch, repeat_rows  # noqa: E402
from vae2aef.case import Case  # noqa: E402
from vae2aef.parts import MIN_SCALE  # noqa: E402
from vae2aef.svi.batch_axis import BatchAxis  # noqa: E402
from vae2aef.svi.posterior import SitePosterior  # noqa: E402
from vae2aef.svi.sites import read_site  # noqa: E402

pytestmark = pytest.mark.usefixtures("float64", "core_flows")
B, T = 6, 3
A, C, S, R = 0.8, 1.3, 0.6, 0.5  # z_t = A z_{t-1} + S e, x_t = C z_t + R e


@pytest.fixture(autouse=True)
def fresh():
    pyro.clear_param_store()


class Ragged(nn.Module):
    """A linear state-space model of sequences of different lengths, padded, a site a time step, masked."""

    def __init__(self):
        super().__init__()
        self.enc = nn.Linear(T + 1, 2 * T)

    def model(self, x, length):
        z = x.new_zeros(len(x))
        with pyro.plate("data", len(x)):
            for t in range(T):
                with poutine.mask(mask=length > t):
                    z = pyro.sample(f"z_{t}", dist.Normal(A * z, S))
                    pyro.sample(f"x_{t}", dist.Normal(C * z, R), obs=x[:, t])

    def guide(self, x, length):
        seen = torch.where(torch.arange(T) < length.unsqueeze(1), x, 0.0)
        z = x.new_zeros(len(x))
        with pyro.plate("data", len(x)):
            for t in range(T):
                loc, raw = self.enc(torch.cat([seen, z.unsqueeze(1)], 1))[:, 2 * t : 2 * t + 2].unbind(1)
                with poutine.mask(mask=length > t):
                    z = pyro.sample(f"z_{t}", dist.Normal(loc, (0.3 * raw).exp()))

    def exact(self, x, length):
        """log p(x_1..x_L), a Gaussian."""
        to = torch.tensor([[S * A ** (t - s) if s <= t else 0.0 for s in range(T)] for t in range(T)])
        covariance = C**2 * to @ to.T + R**2 * torch.eye(T)
        values = []
        for row, n in zip(x, length.tolist(), strict=True):
            normal = torch.distributions.MultivariateNormal(torch.zeros(n), covariance[:n, :n])
            values.append(normal.log_prob(row[:n]))
        return torch.stack(values)


LENGTH = torch.tensor([1, 2, 3, 1, 2, 3])


@pytest.mark.parametrize("proposal", [None, "laplace"])
@pytest.mark.parametrize("noise", [0.0, 0.4])
def test_padded_sequences_have_the_marginal_of_what_is_there(proposal, noise):
    vae, x = Ragged(), torch.randn(B, T)
    aef = vae2aef.from_pyro(vae.model, vae.guide, x, LENGTH, noise=noise)
    with torch.no_grad():
        for p in aef.added_parameters():
            p.add_(0.05 * torch.randn_like(p))
    result = aef.log_prob(x, LENGTH, num_samples=4000, proposal=proposal)
    assert result.effective_sample_size.min() > (10 if proposal is None else 1000)
    assert ((result.value - vae.exact(x, LENGTH)).abs() < 5 * result.std_error).all()


def test_the_loss_of_padded_sequences_counts_what_is_there():
    """With noise: log-determinant, prior and entropy of a time step that is not there are left out."""
    vae, x = Ragged(), torch.randn(B, T)
    aef = vae2aef.from_pyro(vae.model, vae.guide, x, LENGTH, noise=0.4)
    torch.manual_seed(2)
    terms = aef(x, LENGTH, terms=True)
    per_step = 0.5 * math.log(2 * math.pi * math.e) + math.log(0.4)
    torch.testing.assert_close(terms.entropy, LENGTH * per_step)
    changed = torch.where(torch.arange(T) < LENGTH.unsqueeze(1), x, 99.0)  # h reads the padding; nothing else may
    for core in aef.core.values():
        nn.init.zeros_(core.features.linear.weight)
    results = []
    for data in (x, changed):
        torch.manual_seed(2)
        results.append(aef(data, LENGTH))
    torch.testing.assert_close(*results)


class Families(nn.Module):
    """Guides of other families: what u is drawn from is then not Gaussian."""

    def __init__(self, alone=False):
        super().__init__()
        self.enc, self.alone = nn.Linear(4, 5), alone

    def model(self, x):
        with pyro.plate("data", len(x)):
            a = pyro.sample("a", dist.Laplace(x.new_zeros(2), 1.0).to_event(1))
            b = a.sum(-1) if self.alone else pyro.sample("b", dist.Normal(a.sum(-1), 1.0))
            mean = torch.stack([a[:, 0], a[:, 1], b, a[:, 0] * b], 1)
            pyro.sample("x", dist.Normal(mean, 0.5).to_event(1), obs=x)

    def guide(self, x):
        with pyro.plate("data", len(x)):
            out = self.enc(x)
            pyro.sample("a", dist.Laplace(out[:, :2], (0.2 * out[:, 2:4]).exp()).to_event(1))
            if not self.alone:
                pyro.sample("b", dist.StudentT(5.0, out[:, 4], 0.7))


@pytest.mark.parametrize("alone", [False, True], ids=["two", "one"])
@pytest.mark.parametrize("noise", [0.0, 0.3])
def test_other_families_are_the_elbos(noise, alone):
    """With sigma > 0 the noise is of the guide's own family: the same draw gives the same loss."""
    vae, x = Families(alone), torch.randn(B, 4)
    aef = vae2aef.from_pyro(vae.model, vae.guide, x, noise=noise)
    core = aef.core.features if alone else {name: one.features for name, one in aef.core.items()}
    elbo = vae2aef.AEF_ELBO(core=core, core_flow=aef.core_flow, noise=noise)
    torch.manual_seed(4)
    loss = aef(x).item()
    torch.manual_seed(4)
    assert loss == pytest.approx(elbo.loss(vae.model, vae.guide, x) / B, rel=1e-9)
    testing.check_jacobian(aef, x)


class Bounded(nn.Module):
    """A latent on the positive numbers, beside one on all of them, or alone."""

    def __init__(self, alone):
        super().__init__()
        self.enc, self.alone = nn.Linear(2, 3), alone

    def model(self, x):
        with pyro.plate("data", len(x)):
            rate = pyro.sample("rate", dist.LogNormal(x.new_tensor(0.0), 0.5))
            b = x.new_zeros(()) if self.alone else pyro.sample("b", dist.Normal(x.new_tensor(0.0), 1.0))
            mean = torch.stack([rate + b, rate.log() + 0.0 * b], -1)
            pyro.sample("x", dist.Normal(mean, 0.4).to_event(1), obs=x)

    def guide(self, x):
        with pyro.plate("data", len(x)):
            loc, raw, other = self.enc(x).unbind(-1)
            pyro.sample("rate", dist.LogNormal(0.3 * loc, (0.1 * raw - 0.5).exp()))
            if not self.alone:
                pyro.sample("b", dist.Normal(other, 0.8))

    def exact(self, x):
        """By quadrature over log rate, and the sum with b in closed form."""
        log_rate = torch.linspace(-4.0, 4.0, 4001)
        normal = torch.distributions.Normal
        wide = 0.4 if self.alone else math.sqrt(0.4**2 + 1.0)
        joint = normal(0.0, 0.5).log_prob(log_rate) + normal(log_rate.exp(), wide).log_prob(x[:, :1])
        joint = joint + normal(log_rate, 0.4).log_prob(x[:, 1:])
        return joint.logsumexp(1) + math.log(8.0 / 4000)


@pytest.mark.parametrize("alone", [False, True], ids=["two", "one"])
@pytest.mark.parametrize("proposal", [None, "laplace"])
def test_bounded_latents_against_quadrature(proposal, alone):
    vae, x = Bounded(alone), torch.rand(B, 2) + 0.3
    aef = vae2aef.from_pyro(vae.model, vae.guide, x)
    result = aef.log_prob(x, num_samples=2000, proposal=proposal)
    assert result.effective_sample_size.min() > (100 if proposal is None else 1000)
    assert ((result.value - vae.exact(x)).abs() < 5 * result.std_error).all()


def test_a_mask_around_the_observation_of_one_latent():
    """Fault: a mask of `poutine.mask` not looked for: every row would be scored."""
    vae, x = Families(alone=True), torch.randn(B, 4)

    def model(x):
        with pyro.plate("data", len(x)):
            a = pyro.sample("a", dist.Laplace(x.new_zeros(2), 1.0).to_event(1))
            with poutine.mask(mask=x[:, 0] > 0):
                pyro.sample("x", dist.Normal(a.repeat(1, 2), 0.5).to_event(1), obs=x)

    terms = vae2aef.from_pyro(model, vae.guide, x)(x, terms=True)
    assert torch.equal(terms.residual != 0, x[:, 0] > 0)


def test_a_mask_within_one_datum_is_refused():
    vae, x = Ragged(), torch.randn(B, T)

    def model(x):
        with pyro.plate("data", len(x), dim=-1), pyro.plate("t", T, dim=-2), poutine.mask(mask=x.T > 0):
            z = pyro.sample("z", dist.Normal(x.new_zeros(()), 1.0))
            pyro.sample("x", dist.Normal(z, 1.0), obs=x.T)

    def guide(x):
        with pyro.plate("data", len(x), dim=-1), pyro.plate("t", T, dim=-2), poutine.mask(mask=x.T > 0):
            pyro.sample("z", dist.Normal(pyro.module("enc", vae.enc)(torch.cat([x, x[:, :1]], 1))[:, :T].T, 1.0))

    with pytest.raises(vae2aef.WrapError, match='site "z": its mask differs between elements of one datum'):
        vae2aef.from_pyro(model, guide, x)


def test_a_site_that_was_not_in_the_example_is_named():
    vae, x = Ragged(), torch.randn(B, T)
    more = []

    def guide(x, length):
        vae.guide(x, length)
        if more:
            with pyro.plate("data", len(x)):
                pyro.sample("new", dist.Normal(x[:, 0], 1.0))

    aef = vae2aef.from_pyro(vae.model, guide, x, LENGTH)
    more.append(True)
    with pytest.raises(vae2aef.WrapError, match=r'site "new" of the guide was not there.*every site'):
        aef(x, LENGTH)


# ---------------------------------------------------------------- faults that no other test had noticed


@pytest.mark.parametrize("make", [pyro_aef, torch_aef])
def test_encoders_do_not_run_where_latents_are_given(make):
    """Faults: the guide run for `Given` too; `state_of_given` that hands on the whole state."""
    vae, x, calls = TwoLevels(), torch.randn(B, 4), []
    aef = make(x, vae)
    vae.lower.register_forward_hook(lambda *_: calls.append("encoder"))
    z = aef.encode(x)
    case = Case(aef, Batch(x))
    v = case.start()
    assert calls == ["encoder"] * 2
    aef.decode(z)
    case.log_joint(v)
    case.log_prior(v)
    assert calls == ["encoder"] * 2


class BatchLast(nn.Module):
    """x_it = z_ti + b_i + noise: a site whose batch is its last axis, alone or beside one of the batch alone."""

    def __init__(self, alone=False):
        super().__init__()
        self.enc, self.alone = nn.Linear(T, 2 * T + 1), alone

    def model(self, x):
        with pyro.plate("data", len(x), dim=-1):
            b = 0.0 if self.alone else pyro.sample("b", dist.Normal(x.new_zeros(()), 1.0))
            with pyro.plate("t", T, dim=-2):
                z = pyro.sample("z", dist.Normal(x.new_zeros(()), 1.0))
                if not self.alone:
                    pyro.sample("x", dist.Normal(z + b, R), obs=x.T)
            if self.alone:
                pyro.sample("x", dist.Normal(z.T, R).to_event(1), obs=x)

    def guide(self, x):
        out = self.enc(x)
        with pyro.plate("data", len(x), dim=-1):
            if not self.alone:
                pyro.sample("b", dist.Normal(out[:, -1], 0.7))
            with pyro.plate("t", T, dim=-2):
                pyro.sample("z", dist.Normal(out[:, :T].T, (0.1 * out[:, T:-1].T).exp()))


def test_a_batch_that_is_not_the_first_axis():
    """Faults: `rows_back` with the batch first, rather than where the site has it; the mean of x.T read as x."""
    vae, x = BatchLast(), torch.randn(B, T)
    aef = vae2aef.from_pyro(vae.model, vae.guide, x, noise=0.0)
    z = aef.encode(x)
    assert z["z"].shape == (T, B)
    core = {name: one.features for name, one in aef.core.items()}
    elbo = vae2aef.AEF_ELBO(core=core, core_flow={"b": aef.core_flow["b"], "z": aef.core_flow["z"].flow}, noise=0)
    assert aef(x).item() == pytest.approx(elbo.loss(vae.model, vae.guide, x) / B, rel=1e-9)
    torch.testing.assert_close(aef.decode(z), (z["z"] + z["b"]).T)
    normal = torch.distributions.MultivariateNormal(torch.zeros(T), (1 + R**2) * torch.eye(T) + 1.0)
    result = aef.log_prob(x, num_samples=1000, proposal="laplace")
    assert result.effective_sample_size.min() > 800
    assert ((result.value - normal.log_prob(x)).abs() < 5 * result.std_error).all()
    assert aef.sample(2).shape == aef.sample(2, residual=True).shape == (2, T)


@pytest.mark.parametrize("options", [{"core_flow": "none"}, {"core": "corner"}, {"prior": "maf"}], ids=str)
def test_one_latent_whose_batch_is_not_the_first_axis(options):
    """Fault: z of one latent in the shape of its site. What is seen of it has the batch first."""
    vae, x = BatchLast(alone=True), torch.randn(B, T)
    aef = vae2aef.from_pyro(vae.model, vae.guide, x, noise=0.0, **options)
    z = aef.encode(x)
    assert z.shape == aef.prior.sample(B).shape == (B, T)
    expected = z if aef.partition is None else aef.partition.join(x[:, aef.partition.mask], z)
    torch.testing.assert_close(aef.decode(z), expected)
    loss = aef(x)
    loss.backward()
    assert aef(x[:0]).item() == 0  # though a plate cannot be empty
    if "core_flow" in options:
        elbo = vae2aef.AEF_ELBO(core=aef.core.features, core_flow="none", noise=0)
        assert loss.item() == pytest.approx(elbo.loss(vae.model, vae.guide, x) / B, rel=1e-9)
        normal = torch.distributions.Normal(0.0, math.sqrt(1 + R**2))
        result = aef.log_prob(x, num_samples=1000, proposal="laplace")
        torch.testing.assert_close(result.value, normal.log_prob(x).sum(1), rtol=0, atol=1e-2)


def test_the_model_runs_on_the_rows_that_the_guide_has_drawn():
    """Fault: subsample indices drawn anew by the model."""
    vae, x, drawn = Families(), torch.randn(B, 4), []

    def subsampled(part, name):
        def run(x):
            with pyro.plate("all", 1000, subsample_size=len(x), dim=-2) as index:
                drawn.append((name, index))
            pyro.module("enc", vae.enc)
            part(x)

        return run

    aef = vae2aef.from_pyro(subsampled(vae.model, "model"), subsampled(vae.guide, "guide"), x)
    drawn.clear()
    aef(x)
    (first, rows), (second, again) = drawn
    assert (first, second) == ("guide", "model") and torch.equal(rows, again)


@pytest.mark.parametrize("family", ["student_t", "matrix", "flow"])
def test_a_posterior_repeats_row_by_row(family):
    """Importance sampling repeats whole batch after whole batch, whatever a site holds for each row."""
    loc, lower = torch.randn(B, T), torch.eye(T) + torch.randn(B, T, T).tril(-1)
    fn = {
        "student_t": dist.StudentT(2.5 + torch.rand(T, B), loc.T, 0.5 + torch.rand(T, B)),
        "matrix": dist.MultivariateNormal(loc, scale_tril=lower),
        "flow": dist.LogNormal(loc, 0.5 + torch.rand(B, T)),
    }[family]
    site = read_site(fn)
    axis = BatchAxis("z", -1 if family == "student_t" else -2, None, torch.Size([T]))
    posterior = SitePosterior.of({"fn": fn, "mask": None}, site, axis, B)
    u = torch.randn(2 * B, T)
    repeated = repeat_rows(posterior, 2, B)
    for got, *halves in zip(repeated.push(u), posterior.push(u[:B]), posterior.push(u[B:]), strict=True):
        along = axis.axis + 2 if got.dim() > 1 else 0
        torch.testing.assert_close(got, torch.cat(halves, along))
    torch.testing.assert_close(repeated.loc, loc.repeat(2, 1))
    assert posterior.free == (family != "flow")  # a LogNormal is on the positive numbers
    zero = posterior.site._replace(scale=torch.zeros(T, B), loc=loc.T)
    floor = SitePosterior.of({"fn": fn, "mask": None}, zero, axis._replace(axis=-1), B)
    assert (floor.scale == MIN_SCALE).all()  # as of every other encoder
    if family == "student_t":
        torch.testing.assert_close(repeated.standard.entropy(), posterior.standard.entropy().repeat(2, 1))
    else:
        v = posterior.loc + posterior.scale * u[:B]
        z, change = posterior.transform(v)  # what follows the affine map is what `push` does beside it
        torch.testing.assert_close((z, change + posterior.scale.log().sum(1)), posterior.push(u[:B]))


def test_two_plates_of_the_model_that_fit():
    """Fault: one of the two taken. It is an error that names plate=; the plates of the guide decide."""
    enc, x = nn.ModuleDict({"enc": nn.Linear(4, 4)}), torch.randn(4, 4)

    def pair(observed):
        def model(x):
            plates = {name: pyro.plate(name, len(x), dim=-1) for name in ("data", "rows")}
            with plates["data"], pyro.plate("t", 4, dim=-2):
                z = pyro.sample("z", dist.Normal(x.new_zeros(()), 1.0))
            with plates[observed], pyro.plate("u", 4, dim=-2):
                pyro.sample("x", dist.Cauchy(z, 1.0), obs=x.T)

        def guide(x):
            pyro.module("enc", enc)
            with pyro.plate("data", len(x), dim=-1), pyro.plate("t", 4, dim=-2):
                pyro.sample("z", dist.Normal(enc["enc"](x).T, 0.5))

        return model, guide

    with pytest.raises(vae2aef.WrapError, match=r'site "z": which plate.*"data".*"t".*pass plate='):
        vae2aef.from_pyro(*pair("data"), x)
    with pytest.raises(vae2aef.WrapError, match=r'site "x": which plate.*"rows".*"u".*pass plate='):
        vae2aef.from_pyro(*pair("rows"), x, plate="data")
    aef = vae2aef.from_pyro(*pair("data"), x, plate="data")
    terms = aef(x, terms=True)
    torch.testing.assert_close(terms.residual, dist.Cauchy(terms.z["z"].T, 1.0).log_prob(x).sum(1))


@pytest.mark.parametrize("alone", [False, True], ids=["two", "one"])
@pytest.mark.parametrize("weighted", [["model", "guide"], ["guide"]], ids=str)
def test_weights_that_differ_are_refused(alone, weighted):
    """Fault: the check of weights off, or blind to the guide, or left out for one latent."""
    vae, x = Families(alone), torch.randn(B, 4)

    class Latents(poutine.scale_messenger.ScaleMessenger):
        """As for annealing: the latents weigh half, the data all."""

        def _process_message(self, msg):
            if msg["type"] == "sample" and not msg["is_observed"]:
                super()._process_message(msg)

    parts = [Latents(0.5)(p) if n in weighted else p for n, p in (("model", vae.model), ("guide", vae.guide))]
    with pytest.raises(vae2aef.WrapError, match=r"different weights, .*'a of the guide': 0.5.*AEF_ELBO"):
        vae2aef.from_pyro(*parts, x)


def test_a_model_that_observes_the_data_in_another_order():
    """Fault: one latent, and its observation taken for the data themselves."""
    vae, x = Families(alone=True), torch.randn(B, 4)
    aef = vae2aef.from_pyro(lambda x: vae.model(x.flip(1)), vae.guide, x, noise=0.0)
    elbo = vae2aef.AEF_ELBO(core=aef.core["a"].features, core_flow=aef.core_flow["a"], noise=0)
    assert aef(x).item() == pytest.approx(elbo.loss(lambda x: vae.model(x.flip(1)), vae.guide, x) / B, rel=1e-9)
    assert aef.reconstruct(x).keys() == {"x"}  # by site: whose columns are the data's is not known


def test_a_site_whose_shape_changes_is_named():
    """Fault: the shape of a site not held against the one it was met with."""
    vae, x, steps = BatchLast(alone=True), torch.randn(B, T), [T]

    def guide(x):
        with pyro.plate("data", len(x), dim=-1), pyro.plate("t", steps[0], dim=-2):
            pyro.sample("z", dist.Normal(pyro.module("enc", vae.enc)(x)[:, : steps[0]].T, 1.0))

    aef, elbo = vae2aef.from_pyro(vae.model, guide, x), vae2aef.AEF_ELBO(noise=0)
    elbo.loss(vae.model, guide, x)
    steps[0] = T - 1
    for run in (aef, lambda x: elbo.loss(vae.model, guide, x)):
        with pytest.raises(vae2aef.WrapError, match=r'site "z": .* shape \(3,\) .* now the site has .* \(2, 6\)'):
            run(x)
