"""from_pyro and wrap on Pyro models: the same AEF as by hand; several latents; closed forms."""

import copy
import math
import warnings

import pytest
import torch
from torch import nn

pyro = pytest.importorskip("pyro")
import pyro.distributions as dist  # noqa: E402
import pyro.poutine as poutine  # noqa: E402

import vae2aef  # noqa: E402
from vae2aef.svi.program import PyroProgram  # noqa: E402

pytestmark = pytest.mark.usefixtures("core_flows")

B, N, D = 6, 4, 2


@pytest.fixture(autouse=True)
def fresh():
    pyro.clear_param_store()
    torch.manual_seed(0)
    yield


class TutorialVAE(nn.Module):
    """The shape of Pyro's VAE tutorial: one module with `model`, `guide` and methods of its own."""

    def __init__(self, observed="normal", guide="normal"):
        super().__init__()
        self.encoder, self.decoder = nn.Linear(N, 2 * D), nn.Linear(D, N)
        self.observed, self.family = observed, guide

    def model(self, x):
        pyro.module("decoder", self.decoder)
        with pyro.plate("data", x.shape[0]):
            loc, scale = x.new_zeros(x.shape[0], D), x.new_ones(x.shape[0], D)
            z = pyro.sample("latent", dist.Normal(loc, scale).to_event(1))
            out = self.decoder(z)
            fn = {
                "normal": lambda: dist.Normal(out, 0.5),
                "laplace": lambda: dist.Laplace(out, 0.5),
                "bernoulli": lambda: dist.Bernoulli(logits=out),
                "cauchy": lambda: dist.Cauchy(out, 0.5),
            }[self.observed]()
            pyro.sample("obs", fn.to_event(1), obs=x.reshape(-1, N))

    def guide(self, x):
        pyro.module("encoder", self.encoder)
        with pyro.plate("data", x.shape[0]):
            loc, raw = self.encoder(x.reshape(-1, N)).chunk(2, -1)
            if self.family == "mvn":
                lower = torch.diag_embed(raw.exp()) + 0.2 * torch.ones(D, D).tril(-1)
                pyro.sample("latent", dist.MultivariateNormal(loc, scale_tril=lower))
            elif self.family == "flow":
                flow = dist.transforms.AffineTransform(0.5, 2.0)
                pyro.sample("latent", dist.TransformedDistribution(dist.Normal(loc, raw.exp()).to_event(1), [flow]))
            else:
                pyro.sample("latent", dist.Normal(loc, raw.exp()).to_event(1))


def by_hand(vae, x, **options):
    def encoder(x):
        loc, raw = vae.encoder(x.reshape(-1, N)).chunk(2, -1)
        return loc, raw

    options |= {"encoder": encoder, "decoder": vae.decoder, "encoder_scale": "log_std"}
    return vae2aef.wrap(vae, example=x, **{"noise": 0.0, "core_flow": "coupling", **options})


@pytest.mark.parametrize("event", [(N,), (2, 2)])
def test_from_pyro_is_wrap(event):
    vae, x = TutorialVAE(), torch.randn(B, *event)
    aef = vae2aef.from_pyro(vae.model, vae.guide, x, noise=0.0)
    assert isinstance(aef, vae2aef.AEF)
    other = by_hand(vae, x, core=aef.core.features, core_flow=aef.core_flow, residual=0.5)
    ours, theirs = aef(x, terms=True), other(x, terms=True)
    for field in ("loss", "prior", "residual", "log_det", "z"):
        torch.testing.assert_close(getattr(ours, field), getattr(theirs, field), msg=field)
    ours.loss.backward()
    got = {name: p.grad.clone() for name, p in vae.named_parameters()}
    vae.zero_grad()
    theirs.loss.backward()
    for name, p in vae.named_parameters():
        torch.testing.assert_close(got[name], p.grad, msg=name)
    torch.testing.assert_close(aef.encode(x), other.encode(x))
    torch.testing.assert_close(aef.reconstruct(x), other.reconstruct(x))
    assert aef.sample(3).shape == (3, *event) and aef.sample(3, temperature=0.5, residual=True).shape == (3, *event)
    assert 'site "latent" of the Pyro guide' in repr(aef) and 'site "obs" of the Pyro model' in repr(aef)


def test_loss_equals_aef_elbo():
    vae, x = TutorialVAE(), torch.randn(B, N)
    aef = vae2aef.from_pyro(vae.model, vae.guide, x, noise=0.0)
    elbo = vae2aef.AEF_ELBO(core=aef.core.features, core_flow=aef.core_flow, noise=0)
    assert aef(x).item() == pytest.approx(elbo.loss(vae.model, vae.guide, x) / B, rel=1e-5)


@pytest.mark.parametrize("guide", ["mvn", "flow"])
def test_matrices_and_posterior_flows(guide):
    vae, x = TutorialVAE(guide=guide), 0.3 * torch.randn(B, N)
    aef = vae2aef.from_pyro(vae.model, vae.guide, x, noise=0.0)
    elbo = vae2aef.AEF_ELBO(core=aef.core.features, core_flow=aef.core_flow, noise=0)
    assert aef(x).item() == pytest.approx(elbo.loss(vae.model, vae.guide, x) / B, rel=1e-5)
    exact = _exact_marginal(vae, x)
    result = aef.log_prob(x, num_samples=3000)
    assert ((result.value - exact).abs() < 5 * result.std_error + 0.01).all()


def _exact_marginal(vae, x):
    """Linear decoder, Normal observation: p(x) is a Gaussian."""
    w = vae.decoder.weight.detach()
    covariance = w @ w.T + 0.25 * torch.eye(N)
    return torch.distributions.MultivariateNormal(vae.decoder.bias.detach(), covariance).log_prob(x)


def test_marginal_of_a_linear_gaussian_model():
    vae, x = TutorialVAE(), 0.3 * torch.randn(B, N)
    aef = vae2aef.from_pyro(vae.model, vae.guide, x)
    for proposal in (None, "laplace"):
        result = aef.log_prob(x, num_samples=3000, proposal=proposal)
        assert ((result.value - _exact_marginal(vae, x)).abs() < 5 * result.std_error + 0.01).all()
    assert result.effective_sample_size.min() > 2900  # exact for a linear model


@pytest.mark.parametrize("how", ["wrap", "from_pyro"])
def test_module_manners(how):
    """aef.vae is vae; every parameter is there once and gets a gradient; copies are copies; state_dict loads."""
    vae, x = TutorialVAE(), torch.randn(B, N)
    aef = vae2aef.wrap(vae, example=x) if how == "wrap" else vae2aef.from_pyro(vae.model, vae.guide, x)
    assert aef.noise == vae2aef.core.DEFAULT_NOISE
    aef.noise = 0.0  # so that copies can be told by their losses
    if how == "wrap":
        assert aef.vae is vae
    aef(x).backward()
    assert {id(p) for p in vae.parameters()} <= {id(p) for p in aef.parameters()}
    for name, p in aef.named_parameters():
        assert p.grad is not None, name
    assert not {id(p) for p in aef.added_parameters()} & {id(p) for p in vae.parameters()}
    twin = copy.deepcopy(aef)
    torch.testing.assert_close(twin(x), aef(x))
    with torch.no_grad():
        for p in twin.parameters():
            p.add_(0.1)
    assert not torch.allclose(twin(x), aef(x))
    aef.load_state_dict(twin.state_dict())
    torch.testing.assert_close(twin(x), aef(x))
    assert aef.double()(x.double()).dtype == torch.float64


def test_parameters_beside_the_module_are_trained_too():
    """Fault: what only Pyro's store knows of a wrapped object left out."""
    vae, x = TutorialVAE(), torch.randn(B, N)
    inner = vae.guide
    vae.guide = lambda x: inner(x + pyro.param("shift", torch.zeros(N)))
    aef = vae2aef.wrap(vae, example=x)
    aef(x).backward()
    (beside,) = (p for name, p in aef.named_parameters() if "shift" in name)
    assert beside.grad is not None and beside.data_ptr() == pyro.param("shift").data_ptr()


class Both(nn.Module):
    """Model and guide as modules inside a module."""

    class Half(nn.Module):
        def __init__(self, whole, name):
            super().__init__()
            self.net = getattr(whole, {"model": "decoder", "guide": "encoder"}[name])
            self.__dict__["run"] = getattr(whole, name)

        def forward(self, x):
            return self.run(x)

    def __init__(self):
        super().__init__()
        whole = TutorialVAE()
        self.model, self.guide = Both.Half(whole, "model"), Both.Half(whole, "guide")


def test_model_and_guide_as_modules_inside():
    vae, x = Both(), torch.randn(B, N)
    aef = vae2aef.wrap(vae, example=x)
    assert not aef.outside
    names = [name for name, _ in aef.named_parameters()]
    assert sum("net" in name for name in names) == 4
    aef(x).backward()
    assert all(p.grad is not None for p in aef.parameters())


def test_wrap_finds_model_and_guide_and_trains():
    vae, x = TutorialVAE(), torch.randn(64, N)
    aef = vae2aef.wrap(vae, example=x, residual="decoder")
    optimizer = torch.optim.Adam(aef.parameters(), lr=1e-2)
    losses = []
    for _ in range(50):
        optimizer.zero_grad()
        loss = aef(x)
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < losses[0]


def test_laplace_and_gaussian_instead_of_bernoulli():
    x = torch.rand(B, N).round()
    laplace = vae2aef.from_pyro(TutorialVAE("laplace").model, TutorialVAE().guide, x)
    assert laplace.residual.family == "laplace"
    vae = TutorialVAE("bernoulli")
    own = vae2aef.from_pyro(vae.model, vae.guide, x, core="noise", core_flow="none")
    terms = own(x, terms=True)
    assert own.discrete and own.likelihood is None and 'density of site "obs"' in repr(own)
    torch.testing.assert_close(terms.residual, dist.Bernoulli(logits=vae.decoder(terms.z)).log_prob(x).sum(1))
    torch.testing.assert_close(terms.reconstruction, vae.decoder(terms.z).sigmoid())
    aef = vae2aef.from_pyro(vae.model, vae.guide, x, observed="gaussian")
    z = aef.encode(x)
    torch.testing.assert_close(aef.decode(z), vae.decoder(z).sigmoid())
    assert "the mean of the discrete site" in repr(aef)


def functions():
    """Model and guide as functions with networks in their closures, plain `pyro.param`s, a condition, a prior net."""
    enc, prior = nn.Linear(N + 1, 2 * D), nn.Linear(1, 2 * D)

    def model(y, x):
        pyro.module("prior", prior)
        weight = pyro.param("weight", torch.randn(D, N))
        scale = pyro.param("scale", 0.5 * torch.ones(N), constraint=dist.constraints.positive)
        with pyro.plate("data", len(x)):
            loc, raw = prior(y).chunk(2, -1)
            z = pyro.sample("z", dist.Normal(loc, raw.exp()).to_event(1))
            pyro.sample("x", dist.Normal(z @ weight, scale).to_event(1), obs=x)

    def guide(y, x):
        pyro.module("enc", enc)
        with pyro.plate("data", len(x)):
            loc, raw = enc(torch.cat([x, y], -1)).chunk(2, -1)
            pyro.sample("z", dist.Normal(loc, raw.exp()).to_event(1))

    return model, guide, enc, prior


def test_functions_params_and_conditions():
    model, guide, enc, prior = functions()
    x, y = torch.randn(B, N), torch.randn(B, 1)
    aef = vae2aef.from_pyro(model, guide, y, x, data="x", noise=0.0)
    elbo = vae2aef.AEF_ELBO(core=aef.core.features, core_flow=aef.core_flow, data="x", noise=0)
    assert aef(x, y).item() == pytest.approx(elbo.loss(model, guide, y, x) / B, rel=1e-5)
    aef(x, y).backward()
    for name, p in aef.named_parameters():
        assert p.grad is not None, name
    inside = {id(p) for p in aef.parameters()}
    assert all(id(p) in inside for p in [*enc.parameters(), *prior.parameters()])
    before = pyro.param("scale").detach().clone()
    torch.optim.SGD(aef.parameters(), lr=0.1).step()
    assert not torch.equal(pyro.param("scale"), before)  # the store sees what is trained
    assert aef.sample(3, torch.randn(3, 1)).shape == (3, N)
    assert aef.log_prob(x, y, num_samples=8, proposal="tuned").value.shape == (B,)
    with pytest.raises(TypeError, match=r"Make them a PyroModule"):
        copy.deepcopy(aef)


def test_a_model_that_reads_its_data_is_no_simple_pair():
    vae, x = TutorialVAE(), torch.randn(B, N)

    def model(x):
        with pyro.plate("data", len(x)):
            z = pyro.sample("latent", dist.Normal(torch.zeros(D), 1.0).to_event(1))
            before = nn.functional.pad(x, (1, -1))  # each value given the one before it
            pyro.sample("obs", dist.Normal(vae.decoder(z) + 0.1 * before, 0.5).to_event(1), obs=x)

    aef = vae2aef.from_pyro(model, vae.guide, x)
    assert isinstance(aef.parts, PyroProgram)
    assert math.isfinite(aef(x).item())
    with pytest.raises(ValueError, match="depends on the data themselves"):
        aef.sample(3)


# ---------------------------------------------------------------- several latents


class Linear2(nn.Module):
    """Two levels, all linear and Gaussian: z1 -> z2 -> x; encoders in either order."""

    def __init__(self, order=("z1", "z2")):
        super().__init__()
        self.order = order
        sizes = {"z1": 2, "z2": 3}
        self.sizes = sizes
        self.p2, self.px = nn.Linear(2, 3), nn.Linear(3, N)
        self.q_first = nn.Linear(N, 2 * sizes[order[0]])
        self.q_second = nn.Linear(N + sizes[order[0]], 2 * sizes[order[1]])

    def model(self, x):
        with pyro.plate("data", len(x)):
            z1 = pyro.sample("z1", dist.Normal(x.new_zeros(2), x.new_ones(2)).to_event(1))
            z2 = pyro.sample("z2", dist.Normal(self.p2(z1), 0.7).to_event(1))
            pyro.sample("x", dist.Normal(self.px(z2), 0.5).to_event(1), obs=x)

    def guide(self, x):
        with pyro.plate("data", len(x)):
            first, second = self.order
            loc, raw = self.q_first(x).chunk(2, -1)
            z = pyro.sample(first, dist.Normal(loc, raw.exp()).to_event(1))
            loc, raw = self.q_second(torch.cat([x, z], -1)).chunk(2, -1)
            pyro.sample(second, dist.Normal(loc, raw.exp()).to_event(1))

    @torch.no_grad()
    def posterior_mean(self):
        """Make the guide's location the exact E[z | x], plus a term that follows the first site's deviation from it."""
        a, b = self.p2.weight, self.px.weight
        start = torch.cat([torch.zeros(2), self.p2.bias])
        prior = torch.cat([torch.cat([torch.eye(2), a.T], 1), torch.cat([a, a @ a.T + 0.49 * torch.eye(3)], 1)])
        to_x = torch.cat([torch.zeros(N, 2), b], 1)
        gain = prior @ to_x.T @ torch.linalg.inv(to_x @ prior @ to_x.T + 0.25 * torch.eye(N))
        offset = start - gain @ (to_x @ start + self.px.bias)
        rows = {"z1": slice(0, 2), "z2": slice(2, 5)}
        first, second = (rows[name] for name in self.order)
        follow = 0.3 * torch.randn(second.stop - second.start, first.stop - first.start)
        for layer in (self.q_first, self.q_second):
            nn.init.zeros_(layer.weight)
            nn.init.zeros_(layer.bias)
        n1, n2 = first.stop - first.start, second.stop - second.start
        self.q_first.weight[:n1], self.q_first.bias[:n1] = gain[first], offset[first]
        self.q_second.weight[:n2, :N] = gain[second] - follow @ gain[first]
        self.q_second.weight[:n2, N:] = follow
        self.q_second.bias[:n2] = offset[second] - follow @ offset[first]
        covariance = prior - gain @ to_x @ prior
        deviation = torch.cat([torch.eye(5)[first], torch.eye(5)[second] - follow @ torch.eye(5)[first]])
        return torch.linalg.cholesky(deviation @ covariance @ deviation.T)  # of the guide's deviations, in its order

    def exact(self, x):
        a, b = self.p2.weight.detach(), self.px.weight.detach()
        covariance2 = a @ a.T + 0.49 * torch.eye(3)
        mean = b @ self.p2.bias.detach() + self.px.bias.detach()
        return torch.distributions.MultivariateNormal(mean, b @ covariance2 @ b.T + 0.25 * torch.eye(N)).log_prob(x)


@pytest.mark.parametrize("order", [("z1", "z2"), ("z2", "z1")])
def test_hierarchy(order):
    vae, x = Linear2(order), torch.randn(B, N)
    aef = vae2aef.from_pyro(vae.model, vae.guide, x, noise=0.0)
    assert isinstance(aef.parts, PyroProgram)
    elbo = vae2aef.AEF_ELBO(
        core={name: core.features for name, core in aef.core.items()}, core_flow=aef.core_flow, noise=0
    )
    loss = aef(x)
    assert loss.item() == pytest.approx(elbo.loss(vae.model, vae.guide, x) / B, rel=1e-5)
    loss.backward()
    for name, p in aef.named_parameters():
        assert p.grad is not None, name
    z = aef.encode(x)
    assert {name: value.shape for name, value in z.items()} == {"z1": (B, 2), "z2": (B, 3)}
    torch.testing.assert_close(aef.decode(z), vae.px(z["z2"]))
    torch.testing.assert_close(aef.reconstruct(x), vae.px(z["z2"]))
    assert aef.sample(7).shape == (7, N) and aef.sample(7, temperature=0.1, residual=True).shape == (7, N)
    twin = copy.deepcopy(aef)
    torch.testing.assert_close(twin(x), aef(x))
    assert twin.double()(x.double()).dtype == twin.sample(2).dtype == torch.float64
    assert not any(key.startswith("vae2aef.from_pyro") for key in pyro.get_param_store())


@pytest.mark.parametrize("order", [("z1", "z2"), ("z2", "z1")])
@pytest.mark.parametrize("noise", [0.0, 0.5])
def test_marginal_of_a_linear_gaussian_hierarchy_is_the_closed_form(order, noise):
    vae, x = Linear2(order), torch.randn(B, N)
    lower = vae.posterior_mean()
    aef = vae2aef.from_pyro(vae.model, vae.guide, x, noise=noise, core_flow="none")
    for core in aef.core.values():
        nn.init.normal_(core.features.linear.weight, std=0.05)
    torch.manual_seed(1)
    result = aef.log_prob(x, num_samples=2000)
    assert not result.exact and result.effective_sample_size.min() > 50
    assert ((result.value - vae.exact(x)).abs() < 5 * result.std_error).all()
    for core in aef.core.values():  # without features and with the exact posterior every weight is p(x)
        nn.init.zeros_(core.features.linear.weight)
        nn.init.zeros_(core.features.linear.bias)
    scale = lower.diagonal()
    proposal = vae2aef.Proposal(scale.log(), (lower / scale.unsqueeze(1)).tril(-1))
    perfect = aef.log_prob(x, num_samples=5, proposal=proposal)
    torch.testing.assert_close(perfect.value, vae.exact(x), rtol=1e-4, atol=1e-4)
    assert perfect.effective_sample_size.min() > 4.99
    if noise:  # minus the loss is a lower bound
        bound = torch.stack([-aef(x).detach() for _ in range(50)]).mean()
        assert bound < vae.exact(x).mean()


@pytest.mark.slow
def test_overflow_far_from_the_data_is_a_weight_of_zero():
    """Scales that overflow for far-off draws stop neither tuning nor estimate, with Pyro's validation on."""
    enc, x = nn.Linear(N, 2), torch.randn(B, N)

    def model(x):
        with pyro.plate("data", len(x)):
            a = pyro.sample("a", dist.Normal(0.0, 1.0))
            b = pyro.sample("b", dist.Normal(0.0, (40 * a).exp()))
            pyro.sample("x", dist.Normal(b.unsqueeze(-1).expand(-1, N), 1.0).to_event(1), obs=x)

    def guide(x):
        pyro.module("enc", enc)
        with pyro.plate("data", len(x)):
            loc, other = enc(x).unbind(-1)
            pyro.sample("a", dist.Normal(0.1 * loc, 1.0))
            pyro.sample("b", dist.Normal(other, 1.0))

    aef = vae2aef.from_pyro(model, guide, x)
    assert aef.log_prob(x, num_samples=200).value.isfinite().all()


def test_a_mask_inside_an_event_is_seen():
    """Independent over a mask: no simple pair, and the masked pixels are left out."""
    vae, x = TutorialVAE(), torch.randn(B, N)
    mask = torch.tensor([True, True, True, False])

    def model(x):
        with pyro.plate("data", len(x)):
            z = pyro.sample("latent", dist.Normal(torch.zeros(D), 1.0).to_event(1))
            pyro.sample("obs", dist.Normal(vae.decoder(z), 0.5).mask(mask).to_event(1), obs=x)

    aef = vae2aef.from_pyro(model, vae.guide, x, core_flow="none", noise=0.0)
    assert isinstance(aef.parts, PyroProgram)
    core = aef.core["latent"]
    loc, raw = vae.encoder(x).chunk(2, -1)
    z = loc + raw.exp() * core.features(x)
    normal = torch.distributions.Normal
    expected = normal(0.0, 1.0).log_prob(z).sum(1) + raw.sum(1)
    expected = expected + (mask * normal(vae.decoder(z), 0.5).log_prob(x)).sum(1)
    torch.testing.assert_close(aef(x), -expected.mean())


def test_deterministic_sites_do_no_harm():
    vae, x = TutorialVAE(), torch.randn(B, N)

    def model(x):
        pyro.deterministic("twice", 2 * x, event_dim=1)
        vae.model(x)

    aef = vae2aef.from_pyro(model, vae.guide, x)
    assert isinstance(aef, vae2aef.AEF)
    assert aef(x).isfinite()


def test_state_space_model_with_plates_and_weights():
    """A site a time step, several observed sites, subsampling weights in the plate: all left out of the mean."""
    enc, trans, emit = nn.Linear(N + D, 2 * D), nn.Linear(D, 2 * D), nn.Linear(D, N)

    def guide(x):
        pyro.module("enc", enc)
        z = torch.zeros(len(x), D)
        with pyro.plate("data", 100, subsample_size=len(x)), poutine.scale(scale=0.5):
            for t in range(x.shape[1]):
                loc, raw = enc(torch.cat([x[:, t], z], -1)).chunk(2, -1)
                z = pyro.sample(f"z_{t}", dist.Normal(loc, raw.exp()).to_event(1))

    def model(x):
        pyro.module("trans", trans)
        pyro.module("emit", emit)
        z = torch.zeros(len(x), D)
        with pyro.plate("data", 100, subsample_size=len(x)), poutine.scale(scale=0.5):
            for t in range(x.shape[1]):
                loc, raw = trans(z).chunk(2, -1)
                z = pyro.sample(f"z_{t}", dist.Normal(loc, raw.exp()).to_event(1))
                pyro.sample(f"x_{t}", dist.Normal(emit(z), 0.5).to_event(1), obs=x[:, t])

    x = torch.randn(B, 3, N)
    aef = vae2aef.from_pyro(model, guide, x)
    aef(x).backward()
    for name, p in aef.named_parameters():
        assert p.grad is not None, name
    assert {name: value.shape for name, value in aef.sample(5).items()} == {f"x_{t}": (5, N) for t in range(3)}
    assert aef.log_prob(x, num_samples=16, proposal="tuned").value.shape == (B,)


def _annealed(vae):
    def model(x):
        with pyro.plate("data", len(x)):
            with poutine.scale(scale=0.5):
                z1 = pyro.sample("z1", dist.Normal(torch.zeros(2), 1.0).to_event(1))
            z2 = pyro.sample("z2", dist.Normal(vae.p2(z1), 0.7).to_event(1))
            pyro.sample("x", dist.Normal(vae.px(z2), 0.5).to_event(1), obs=x)

    return model


def test_hierarchy_with_discrete_data_made_gaussian():
    vae, x = Linear2(), torch.rand(B, N).round()

    def model(x):
        with pyro.plate("data", len(x)):
            z1 = pyro.sample("z1", dist.Normal(torch.zeros(2), 1.0).to_event(1))
            z2 = pyro.sample("z2", dist.Normal(vae.p2(z1), 0.7).to_event(1))
            pyro.sample("x", dist.Bernoulli(logits=vae.px(z2)).to_event(1), obs=x)

    aef = vae2aef.from_pyro(model, vae.guide, x, observed="gaussian")
    torch.testing.assert_close(aef.reconstruct(x), vae.px(aef.encode(x)["z2"]).sigmoid())
    assert ((aef.sample(5) >= 0) & (aef.sample(5) <= 1)).all()
    assert aef.log_prob(x, num_samples=4, proposal="tuned").value.isfinite().all()


def test_refusals():
    vae, x = Linear2(), torch.randn(B, N)
    with pytest.raises(vae2aef.WrapError, match=r"prior= needs a VAE with one latent.*z1, z2"):
        vae2aef.from_pyro(vae.model, vae.guide, x, prior="maf")
    with pytest.raises(vae2aef.WrapError, match="likelihood= needs a pair with one latent"):
        vae2aef.from_pyro(vae.model, vae.guide, x, residual="shared")
    with pytest.raises(vae2aef.WrapError, match=r"different weights, .*'z1 of the model': 0.5.*AEF_ELBO"):
        vae2aef.from_pyro(_annealed(vae), vae.guide, x)
    with pytest.raises(vae2aef.WrapError, match="leave it out"):
        vae2aef.wrap(TutorialVAE(), example=x, encoder_scale="std")

    def with_global(x):
        w = pyro.sample("w", dist.Normal(torch.zeros(2, N), 1.0).to_event(2))
        with pyro.plate("data", len(x)):
            z = pyro.sample("latent", dist.Normal(torch.zeros(D), 1.0).to_event(1))
            pyro.sample("obs", dist.Normal(z @ w, 0.5).to_event(1), obs=x)

    def guide(x):
        pyro.sample("w", dist.Normal(pyro.param("w_loc", torch.zeros(2, N)), 0.1).to_event(2))
        TutorialVAE().guide(x)

    with pytest.raises(vae2aef.WrapError, match=r'every latent site to be mapped.*"w".*AEF_ELBO'):
        vae2aef.from_pyro(with_global, guide, x)


def test_other_continuous_observations():
    vae, x = TutorialVAE("cauchy"), torch.randn(B, N)
    aef = vae2aef.from_pyro(vae.model, vae.guide, x)
    assert aef.likelihood is None and not aef.discrete
    aef(x).backward()
    assert aef.log_prob(x, num_samples=8, proposal="tuned").value.isfinite().all()


# ---------------------------------------------------------------- the rest of the package


def test_check_reads_a_pyro_vae():
    report = vae2aef.check(TutorialVAE(), example=torch.randn(64, N))
    assert report.ok, str(report)
    bits = vae2aef.check(TutorialVAE("bernoulli"), example=torch.randn(64, N).round().clamp(0, 1))
    assert bits.ok, str(bits)


@pytest.mark.filterwarnings("ignore")  # Lightning's, about loggers, workers and checkpoints
@pytest.mark.slow
def test_lightning_trains_it(tmp_path):
    lightning = pytest.importorskip("lightning")
    from vae2aef.training import AEFTask

    vae, x = TutorialVAE(), torch.randn(64, N)
    aef = vae2aef.from_pyro(vae.model, vae.guide, x)
    before = [p.detach().clone() for p in vae.parameters()]
    trainer = lightning.Trainer(
        max_epochs=1, accelerator="cpu", logger=False, enable_checkpointing=False, enable_progress_bar=False,
        enable_model_summary=False, default_root_dir=tmp_path,
    )  # fmt: skip
    loader = torch.utils.data.DataLoader(x, batch_size=16)
    trainer.fit(AEFTask(aef, validation_samples=4), loader, loader)
    assert all(not torch.equal(a, b) for a, b in zip(before, vae.parameters(), strict=True))
    assert "val_log_prob" in trainer.callback_metrics


def test_trained_parts_go_on_in_from_pyro():
    for vae, sites in ((TutorialVAE(), {"latent"}), (Linear2(), {"z1", "z2"})):
        x = torch.randn(B, N)
        elbo = vae2aef.AEF_ELBO(noise=0)
        loss = elbo.loss(vae.model, vae.guide, x)
        trained = elbo.trained()
        assert set(trained["core"]) == set(trained["core_flow"]) == sites
        aef = vae2aef.from_pyro(vae.model, vae.guide, x, noise=elbo.noise, **trained)
        assert aef(x).item() == pytest.approx(loss / B, rel=1e-5)


def test_several_latents_or_other_densities_train_as_a_lightning_task():
    """What from_pyro gives where no AEF with one residual density fits: here an observed Cauchy."""
    lightning = pytest.importorskip("lightning")
    from vae2aef.training import AEFTask

    encoder, decoder = nn.Linear(6, 4), nn.Linear(2, 6)

    def model(x):
        pyro.module("decoder", decoder)
        with pyro.plate("rows", len(x)):
            z = pyro.sample("z", dist.Normal(x.new_zeros(len(x), 2), 1.0).to_event(1))
            pyro.sample("x", dist.Cauchy(decoder(z), 0.5).to_event(1), obs=x)

    def guide(x):
        pyro.module("encoder", encoder)
        with pyro.plate("rows", len(x)):
            loc, log_scale = encoder(x).chunk(2, dim=-1)
            pyro.sample("z", dist.Normal(loc, log_scale.exp()).to_event(1))

    x = torch.randn(32, 6)
    module = vae2aef.from_pyro(model, guide, x)
    task = AEFTask(module, validation_samples=8)
    before = encoder.weight.detach().clone()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # Lightning's advice on workers
        trainer = lightning.Trainer(
            max_epochs=1, accelerator="cpu", logger=False, enable_checkpointing=False, enable_progress_bar=False,
            enable_model_summary=False, num_sanity_val_steps=0, limit_val_batches=1,
        )  # fmt: skip
        loader, few = torch.utils.data.DataLoader(x, batch_size=16), torch.utils.data.DataLoader(x[:3], batch_size=3)
        trainer.fit(task, loader)
        trainer.validate(task, few, verbose=False)  # in inference mode
    assert not torch.equal(encoder.weight, before)
    assert torch.isfinite(trainer.callback_metrics["val_log_prob"])


def test_an_observed_student_t_is_a_residual():
    """With its own degrees of freedom: the loss equals AEF_ELBO's on the same core, and Pyro's density of the data."""
    encoder, decoder = nn.Linear(6, 4), nn.Linear(2, 6)

    def model(x):
        pyro.module("decoder", decoder)
        with pyro.plate("rows", len(x)):
            z = pyro.sample("z", dist.Normal(x.new_zeros(len(x), 2), 1.0).to_event(1))
            pyro.sample("x", dist.StudentT(7.0, decoder(z), 0.5).to_event(1), obs=x)

    def guide(x):
        pyro.module("encoder", encoder)
        with pyro.plate("rows", len(x)):
            loc, log_scale = encoder(x).chunk(2, dim=-1)
            pyro.sample("z", dist.Normal(loc, log_scale.exp()).to_event(1))

    x = torch.randn(8, 6)
    aef = vae2aef.from_pyro(model, guide, x)
    assert isinstance(aef, vae2aef.AEF)
    terms = aef(x, terms=True)
    expected = dist.StudentT(7.0, decoder(terms.z), 0.5).to_event(1).log_prob(x)
    torch.testing.assert_close(terms.residual, expected, rtol=1e-5, atol=1e-5)
    assert aef.log_prob(x, num_samples=8, proposal="laplace").value.isfinite().all()
