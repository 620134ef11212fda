"""from_pyro with plates without a size, labels summed out, counts, several observed sites, and flows of zuko."""

import math

import pytest
import torch
from torch import nn

pyro = pytest.importorskip("pyro")
import pyro.distributions as dist  # noqa: E402
import pyro.poutine as poutine  # noqa: E402
from pyro.infer import config_enumerate  # noqa: E402

import vae2aef  # noqa: E402
from vae2aef.batch import Batch  # noqa: E402
from vae2aef.chain import Generate  # noqa: E402

pytestmark = pytest.mark.usefixtures("core_flows", "fresh_pyro")

B, N, D, K = 6, 4, 2, 3


def hot(k, n):
    return nn.functional.one_hot(torch.full((n,), k), K).to(torch.get_default_dtype())


class Labelled(nn.Module):
    """Linear and Gaussian given a label, so that log p(x) is known; where the label is, and on what, may be chosen."""

    def __init__(self, guided=True, prior=False, plate=True):
        super().__init__()
        self.enc, self.dec = nn.Linear(N + K, 2 * D), nn.Linear(D, N)
        self.classify, self.shift, self.move = nn.Linear(N, K), nn.Linear(K, N), nn.Linear(K, D)
        self.logits = nn.Parameter(torch.randn(K))
        self.guided, self.prior, self.sized = guided, prior, plate

    def plate(self, x):
        return pyro.plate("data", len(x)) if self.sized else pyro.plate("data")

    def model(self, x, y=None):
        with self.plate(x):
            infer = None if self.guided else {"enumerate": "parallel"}
            y = pyro.sample("y", dist.OneHotCategorical(logits=self.logits.expand(len(x), K)), obs=y, infer=infer)
            z = pyro.sample("z", dist.Normal(self.move(y) * self.prior, x.new_ones(len(x), D)).to_event(1))
            pyro.sample("x", dist.Normal(self.dec(z) + self.shift(y), 0.5).to_event(1), obs=x)

    def guide(self, x, y=None):
        with self.plate(x):
            if self.guided and y is None:
                y = pyro.sample("y", dist.OneHotCategorical(logits=self.classify(x)))
            y = x.new_zeros(len(x), K) if y is None else y
            loc, raw = self.enc(torch.cat([x, y], -1)).chunk(2, -1)
            pyro.sample("z", dist.Normal(loc, (0.2 * raw).exp()).to_event(1))

    def exact(self, x):
        w = self.dec.weight.detach()
        terms = []
        for k in range(K):
            y = hot(k, 1)
            mean = (self.dec(self.move(y) * self.prior) + self.shift(y))[0].detach()
            normal = torch.distributions.MultivariateNormal(mean, w @ w.T + 0.25 * torch.eye(N))
            terms.append(normal.log_prob(x) + self.logits.detach().log_softmax(0)[k])
        return torch.stack(terms).logsumexp(0)


@pytest.mark.parametrize("prior", [False, True])
@pytest.mark.parametrize("guided", [False, True])
@pytest.mark.parametrize("sized", [False, True])
def test_labels_are_summed_out(guided, prior, sized):
    """log p(x) is that of the mixture; the loss is -log of the sum over labels at z, minus log|det|."""
    vae, x = Labelled(guided, prior, sized), torch.randn(B, N)
    aef = vae2aef.from_pyro(vae.model, vae.guide, x, noise=0.0)
    assert 'site "y": summed out, 3 values' in repr(aef)
    result = aef.log_prob(x, num_samples=2000)
    assert ((result.value - vae.exact(x)).abs() < 5 * result.std_error + 0.01).all()
    terms = aef(x, terms=True)
    z = terms.z["z"]
    best = nn.functional.one_hot(vae.classify(x).argmax(1), K).to(x) if guided else torch.zeros(B, K)
    loc, raw = vae.enc(torch.cat([x, best], -1)).chunk(2, -1)
    u, log_det = aef.core_flow["z"](aef.core["z"].features(x))
    torch.testing.assert_close(z, loc + (0.2 * raw).exp() * u)
    normal = torch.distributions.Normal
    each = [
        normal(vae.dec(z) + vae.shift(hot(k, B)), 0.5).log_prob(x).sum(1)
        + normal(vae.move(hot(k, B)) * prior, 1.0).log_prob(z).sum(1)
        + vae.logits.log_softmax(0)[k]
        for k in range(K)
    ]
    expected = torch.stack(each).logsumexp(0) + log_det + 0.2 * raw.sum(1)
    assert terms.loss.item() == pytest.approx(-expected.mean().item(), rel=1e-9)
    terms.loss.backward()
    assert vae.logits.grad.abs().sum() > 0 and vae.dec.weight.grad.abs().sum() > 0


def test_a_plate_without_a_size_is_found_by_name():
    """Beside another that is as long as the batch: fault, the other taken, or the named one not known."""
    enc = nn.Linear(N, 2 * B)

    def model(x):
        with pyro.plate("rows", dim=-1):
            with pyro.plate("parts", B, dim=-2):
                z = pyro.sample("z", dist.Normal(x.new_zeros(B, len(x)), 1.0))
            pyro.sample("x", dist.Normal(z[:N].t(), 1.0).to_event(1), obs=x)

    def guide(x):
        loc, raw = enc(x).t().chunk(2)
        with pyro.plate("parts", B, dim=-2), pyro.plate("rows", dim=-1):
            pyro.sample("z", dist.Normal(loc, raw.exp()))

    elbo = vae2aef.AEF_ELBO(plate="rows", noise=0)
    assert math.isfinite(elbo.loss(model, guide, torch.randn(B, N))) and elbo.maps["z"].batch.axis == -1
    with pytest.raises(vae2aef.WrapError, match=r'which plate.*"parts".*"rows"|which plate.*"rows".*"parts"'):
        vae2aef.AEF_ELBO(noise=0).loss(model, guide, torch.randn(B, N))


@pytest.mark.slow
def test_the_sum_is_that_of_the_labelled_conversions():
    """As for ss_vae_M2: given labels are observed and scored, and their probabilities add up to that of x."""
    vae, x = Labelled(), torch.randn(B, N)
    free = vae2aef.from_pyro(vae.model, config_enumerate(vae.guide), x)
    given = vae2aef.from_pyro(vae.model, vae.guide, x, hot(0, B))
    each = [given.log_prob(x, hot(k, B), num_samples=4000).value for k in range(K)]
    torch.testing.assert_close(
        free.log_prob(x, num_samples=4000).value, torch.stack(each).logsumexp(0), rtol=0, atol=0.05
    )


def test_decode_and_sample_with_labels():
    """Draws have each label as often as it is probable; a mean is that over the labels."""
    vae, x = Labelled(prior=True), torch.randn(B, N)
    with torch.no_grad():
        vae.shift.weight.copy_(50 * torch.eye(N, K))
    aef = vae2aef.from_pyro(vae.model, vae.guide, x)
    drawn = aef.sample(3000, residual=True)
    share = torch.stack([(drawn[:, k] > 25).double().mean() for k in range(K)])
    torch.testing.assert_close(share, vae.logits.detach().softmax(0), rtol=0, atol=0.04)
    z = torch.randn(B, D)
    normal = torch.distributions.Normal
    weights = torch.stack(
        [vae.logits.log_softmax(0)[k] + normal(vae.move(hot(k, B)), 1.0).log_prob(z).sum(1) for k in range(K)]
    ).softmax(0)
    means = torch.stack([vae.dec(z) + vae.shift(hot(k, B)) for k in range(K)])
    torch.testing.assert_close(aef.decode({"z": z}), (weights.unsqueeze(-1) * means).sum(0))


class Parts(nn.Module):
    """A label for each of a row's parts, in a plate left or right of the data's, masked if asked for."""

    P = 3

    def __init__(self, left=False, hot=False):
        super().__init__()
        self.enc, self.dec, self.left, self.hot = nn.Linear(N * self.P, 2 * D), nn.Linear(D, N), left, hot
        self.means, self.logits = nn.Parameter(torch.randn(2, N)), nn.Parameter(torch.randn(2))

    def turn(self, value):
        return value.transpose(0, 1) if self.left else value

    def plates(self, x):
        return (
            pyro.plate("data", len(x), dim=-1 if self.left else -2),
            pyro.plate("parts", x.shape[1], dim=-2 if self.left else -1),
        )

    def label(self, x, mask, logits):
        fn = dist.OneHotCategorical(logits=logits) if self.hot else dist.Categorical(logits=logits)
        with poutine.mask(mask=self.turn(mask)):
            return pyro.sample("y", fn)

    def model(self, x, mask):
        rows, parts = self.plates(x)
        with rows:
            z = pyro.sample("z", dist.Normal(x.new_zeros(D), 1.0).to_event(1))
            with parts:
                y = self.label(x, mask, self.logits)
                mean = self.dec(z) + (y @ self.means if self.hot else self.means[y])
                with poutine.mask(mask=self.turn(mask)):
                    pyro.sample("x", dist.Normal(mean, 0.5).to_event(1), obs=self.turn(x))

    def guide(self, x, mask):
        rows, parts = self.plates(x)
        with rows:
            loc, raw = self.enc(x.flatten(1)).chunk(2, -1)
            loc, scale = (v if self.left else v.unsqueeze(1) for v in (loc, (0.2 * raw).exp()))
            pyro.sample("z", dist.Normal(loc, scale).to_event(1))
            with parts:
                self.label(x, mask, x.new_zeros(2))

    def exact(self, x, mask, z):
        """log p(x | z): given z, each part is a mixture of its own."""
        normal = torch.distributions.Normal
        each = [normal(self.dec(z).unsqueeze(1) + mean, 0.5).log_prob(x).sum(-1) for mean in self.means]
        each = torch.stack(each, -1) + self.logits.log_softmax(0)
        return (each.logsumexp(-1) * mask).sum(-1)


@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("hot", [False, True])
@pytest.mark.parametrize("left", [False, True])
def test_a_label_for_each_part_of_a_row_is_summed_out_by_itself(left, hot, masked):
    """Fault: all parts of a row are given one label; or masked labels count once for each of their values."""
    vae, x = Parts(left, hot), torch.randn(B, Parts.P, N)
    mask = torch.ones(B, Parts.P, dtype=torch.bool)
    mask[0, 0], mask[2, 1:] = not masked, not masked
    aef = vae2aef.from_pyro(vae.model, vae.guide, x, mask)
    assert 'site "y": summed out, 2 values for each of 3 elements' in repr(aef)
    z = torch.randn(B, D)
    given = Generate(B, {"z": z if left else z.unsqueeze(1)})
    density = aef.parts.run_model(given, Batch(x, (mask,), {}), {}).density
    torch.testing.assert_close(density.log_prob(x), vae.exact(x, mask, z))


@pytest.mark.remedy('site "{}": a row had {} discrete values when')
def test_a_row_with_other_parts_than_the_example_is_named():
    enc, dec = nn.Linear(N, 2 * D), nn.Linear(D, N)

    def labels(parts):
        with pyro.plate("parts", parts.shape[1], dim=-2):
            return pyro.sample("y", dist.Bernoulli(parts.t().sigmoid()))

    def model(x, parts):
        pyro.module("dec", dec)
        with pyro.plate("data", len(x), dim=-1):
            z = pyro.sample("z", dist.Normal(x.new_zeros(D), 1.0).to_event(1))
            mean = dec(z) + labels(parts).sum(-2).unsqueeze(-1)
            pyro.sample("x", dist.Normal(mean, 0.5).to_event(1), obs=x)

    def guide(x, parts):
        pyro.module("enc", enc)
        with pyro.plate("data", len(x), dim=-1):
            loc, raw = enc(x).chunk(2, -1)
            pyro.sample("z", dist.Normal(loc, raw.exp()).to_event(1))
            labels(parts)

    x, parts = torch.randn(B, N), torch.randn(B, 3)
    aef = vae2aef.from_pyro(model, guide, x, parts)
    with pytest.raises(vae2aef.WrapError, match=r'"y": a row had \(3,\) discrete values .* has \(2,\) now.*convert'):
        aef(x, parts[:, :2])
    assert vae2aef.from_pyro(model, guide, x, parts[:, :2])(x, parts[:, :2]).isfinite()


def test_too_many_combinations_and_other_latents_are_refused():
    enc = nn.Linear(N, 2 * D)

    def pair(latent):
        def model(x):
            with pyro.plate("data", len(x)):
                y = pyro.sample("y", latent(len(x)))
                z = pyro.sample("z", dist.Normal(torch.zeros(len(x), D), 1.0).to_event(1))
                pyro.sample("x", dist.Normal(z.repeat(1, 2) + y.sum(), 1.0).to_event(1), obs=x)

        def guide(x):
            with pyro.plate("data", len(x)):
                pyro.sample("y", latent(len(x)))
                loc, raw = enc(x).chunk(2, -1)
                pyro.sample("z", dist.Normal(loc, raw.exp()).to_event(1))

        return model, guide

    x = torch.randn(B, N)
    with pytest.raises(
        vae2aef.WrapError, match=r"sums out discrete latents.*2000 combinations, more than 1024.*TraceG"
    ):
        vae2aef.from_pyro(*pair(lambda n: dist.Categorical(torch.ones(n, 2000))), x)
    with pytest.raises(vae2aef.WrapError, match='left to Pyro would be: "y", Gamma'):
        vae2aef.from_pyro(*pair(lambda n: dist.Gamma(torch.ones(n), 1.0)), x)


@pytest.mark.parametrize("kind", ["multinomial", "onehot"])
def test_events_that_are_discrete(kind):
    """Counts of words and classes, whole events: log p(x) by quadrature over one latent."""
    dec = nn.Linear(1, N)
    enc = nn.Linear(N, 2)

    def density(logits):
        return dist.Multinomial(7, logits=logits) if kind == "multinomial" else dist.OneHotCategorical(logits=logits)

    def model(x):
        pyro.module("dec", dec)
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(x.new_zeros(len(x), 1), 1.0).to_event(1))
            pyro.sample("x", density(dec(z)), obs=x)

    def guide(x):
        pyro.module("enc", enc)
        with pyro.plate("data", len(x)):
            loc, raw = enc(x).chunk(2, -1)
            pyro.sample("z", dist.Normal(loc, (0.1 * raw).exp()).to_event(1))

    x = density(torch.zeros(B, N)).sample()
    aef = vae2aef.from_pyro(model, guide, x)
    grid = torch.linspace(-8, 8, 4001).unsqueeze(-1)
    prior = torch.distributions.Normal(0.0, 1.0).log_prob(grid.squeeze(-1))
    exact = torch.stack([(density(dec(grid)).log_prob(row.expand(len(grid), N)) + prior).logsumexp(0) for row in x])
    exact = exact + math.log(16 / 4000)
    result = aef.log_prob(x, num_samples=2000)
    assert ((result.value - exact).abs() < 5 * result.std_error + 0.01).all()
    assert aef.sample(3, residual=True).shape == (3, N) and aef(x).isfinite()


def test_a_prior_of_zuko_is_sampled():
    zuko = pytest.importorskip("zuko")
    from pyro.contrib.zuko import ZukoToPyro

    flow, enc, dec = (
        zuko.flows.MAF(features=D, transforms=1, hidden_features=(8,)),
        nn.Linear(N, 2 * D),
        nn.Linear(D, N),
    )

    def model(x):
        pyro.module("prior", flow)
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", ZukoToPyro(flow()))
            pyro.sample("x", dist.Normal(dec(z), 0.5).to_event(1), obs=x)

    def guide(x):
        with pyro.plate("data", len(x)):
            loc, raw = enc(x).chunk(2, -1)
            pyro.sample("z", dist.Normal(loc, raw.exp()).to_event(1))

    pyro.module("enc", enc), pyro.module("dec", dec)
    both = nn.ModuleList([flow, enc, dec]).double()
    assert len(both) == 3
    x = torch.randn(B, N)

    class VAE(nn.Module):
        def __init__(self):
            super().__init__()
            self.nets = both

        def model(self, x):
            model(x)

        def guide(self, x):
            guide(x)

    vae = VAE()
    aef = vae2aef.wrap(vae, example=x)
    assert aef.sample(5).shape == (5, N)
    z = torch.randn(B, D)
    torch.testing.assert_close(aef.parts.prior.log_prob(z), flow().log_prob(z))
    assert aef.log_prob(x, num_samples=16).value.isfinite().all()


def test_a_deterministic_site_of_the_observed_name():
    """The structure of cvae: what is observed in training is deterministic where the data are not given."""
    enc, prior, dec = nn.Linear(2 * N, 2 * D), nn.Linear(N, 2 * D), nn.Linear(D, N)

    class Conditional(nn.Module):
        def __init__(self):
            super().__init__()
            self.nets = nn.ModuleList([enc, prior, dec])

        def model(self, xs, ys=None):
            with pyro.plate("data"):
                loc, raw = prior(xs).chunk(2, -1)
                z = pyro.sample("z", dist.Normal(loc, raw.exp()).to_event(1))
                pyro.deterministic("mean", dec(z), event_dim=1)
                if ys is None:
                    return pyro.deterministic("y", dec(z), event_dim=1)
                return pyro.sample("y", dist.Normal(dec(z), 0.5).to_event(1), obs=ys)

        def guide(self, xs, ys=None):
            with pyro.plate("data"):
                out = prior(xs) if ys is None else enc(torch.cat([xs, ys], -1))
                loc, raw = out.chunk(2, -1)
                pyro.sample("z", dist.Normal(loc, raw.exp()).to_event(1))

    vae, xs, ys = Conditional(), torch.randn(B, N), torch.randn(B, N)
    aef = vae2aef.from_pyro(vae.model, vae.guide, xs, ys, noise=0.0)
    elbo = vae2aef.AEF_ELBO(core=aef.core.features, core_flow=aef.core_flow, noise=0)
    assert aef(ys, xs).item() == pytest.approx(elbo.loss(vae.model, vae.guide, xs, ys) / B, rel=1e-9)
    assert "h reads ys" in repr(elbo)
    w, (loc, raw) = dec.weight.detach(), prior(xs).detach().chunk(2, -1)
    covariance = w @ torch.diag_embed((2 * raw).exp()) @ w.T + 0.25 * torch.eye(N)
    exact = torch.distributions.MultivariateNormal(dec(loc).detach(), covariance).log_prob(ys)
    result = aef.log_prob(ys, xs, num_samples=2000)
    assert ((result.value - exact).abs() < 5 * result.std_error + 0.01).all()
    assert aef.sample(3, xs[:3]).shape == (3, N)


def test_a_packed_condition_keeps_to_its_rows():
    """Fault: the rows of a packed sequence left behind, or its indices cut as if they were data."""
    from torch.nn.utils.rnn import pack_sequence, pad_packed_sequence

    from vae2aef.batch import Batch

    sequences = [torch.randn(n, 2) for n in (3, 1, 4, 2, 4)]
    batch = Batch(torch.randn(5, 3), (pack_sequence(sequences, enforce_sorted=False),))
    for rows, index in (
        (batch.rows(slice(1, 3)), [1, 2]),
        (batch.repeat(2), [0, 1, 2, 3, 4] * 2),
        (batch.head(3), [0, 1, 2]),
    ):
        padded, lengths = pad_packed_sequence(rows.cond[0], batch_first=True)
        assert lengths.tolist() == [len(sequences[i]) for i in index]
        for row, i in zip(padded, index, strict=True):
            torch.testing.assert_close(row[: len(sequences[i])], sequences[i])
    assert not batch.detach().cond[0].data.requires_grad
