"""Values and gradients of every loss of Pyro with an AEF guide, h learned and sigma as trained with, against autograd.

`test_aef_guide.py` has the two ends: h = 0 and sigma = 1, the guide itself; and sigma = 0, where nothing is drawn.
"""

import importlib.util
import math
from pathlib import Path

import pytest
import torch

pyro = pytest.importorskip("pyro")
import pyro.distributions as dist  # noqa: E402
from pyro.infer import Trace_ELBO, TraceGraph_ELBO  # noqa: E402

import vae2aef  # noqa: E402

spec = importlib.util.spec_from_file_location("guide_cases", Path(__file__).parent / "test_aef_guide.py")
cases = importlib.util.module_from_spec(spec)
spec.loader.exec_module(cases)

pytestmark = [
    pytest.mark.usefixtures("fresh_pyro"),
    pytest.mark.filterwarnings("ignore:.torch.jit:DeprecationWarning"),
]
SIGMA, B, N, D = 0.3, cases.B, cases.N, cases.D
Normal = torch.distributions.Normal


def all_parameters(pair, aef):
    return {**cases.parameters(pair), **{f"added.{n}": p for n, p in aef.added.named_parameters()}}


def run(loss, pair, aef, x, seed=1):
    """The loss, its gradients, and every z that the decoder was given."""
    for p in all_parameters(pair, aef).values():
        p.grad = None
    seen = []
    hook = pair.dec.register_forward_pre_hook(lambda module, inputs: seen.append(inputs[0].detach().clone()))
    torch.manual_seed(seed)
    value = float(loss.loss_and_grads(pair.model, aef, x))
    hook.remove()
    found = {name: p.grad.clone() for name, p in all_parameters(pair, aef).items() if p.grad is not None}
    return value, found, torch.stack([z.reshape(-1, B, D) for z in seen]).flatten(0, 1)


def by_hand(kind, pair, aef, x, z):
    """The loss in closed form, for the noise that made each z, `(particles, B, D)`."""
    loc, raw = pair.enc(x).chunk(2, -1)
    scale, h = (0.3 * raw).exp(), aef.maps.maps["z"].features(x)
    noise = ((z - loc - scale * h) / (scale * SIGMA)).detach()
    z = loc + scale * (h + SIGMA * noise)
    q = Normal(loc + scale * h, SIGMA * scale)
    fit = Normal(pair.dec(z), 0.7).log_prob(x).sum(-1)
    if "MeanField" in kind:
        return torch.distributions.kl_divergence(q, Normal(0.0, 1.0)).sum() - fit.mean(0).sum()
    weights = fit + (Normal(0.0, 1.0).log_prob(z) - q.log_prob(z)).sum(-1)  # of each particle and datum
    if "Renyi" in kind:  # alpha = 1/2
        return -2 * ((0.5 * weights).logsumexp(0) - math.log(len(weights))).sum()
    return -weights.mean(0).sum()


def _no_chance(shape, dtype, device):
    return torch.linspace(-2, 2, B * D, dtype=dtype).sin().reshape(shape)


@pytest.mark.parametrize("kind", cases.losses())
def test_value_and_every_gradient_of_each_loss(kind, monkeypatch):
    """With the same noise, in float64: of encoder, decoder and h."""
    if "Jit" in kind:  # draws by another function of torch, in another order
        monkeypatch.setattr(torch.distributions.normal, "_standard_normal", _no_chance)
    pair, x = cases.Pair(), torch.randn(B, N)
    aef = vae2aef.aef_guide(pair.model, pair.guide, noise=SIGMA, core_flow="none")
    Trace_ELBO().loss(pair.model, aef, x)  # h is made, and model and guide looked at
    value, gradients, z = run(cases.losses()[kind.removeprefix("Jit")], pair, aef, x)
    if "Jit" in kind:
        loss = cases.losses()[kind]
        run(loss, pair, aef, x)  # compiles
        value, gradients, _ = run(loss, pair, aef, x)
    assert len(z) == (3 if "particles" in kind or kind == "Renyi" else 1)
    for p in all_parameters(pair, aef).values():
        p.grad = None
    expected = by_hand(kind, pair, aef, x, z)
    expected.backward()
    assert value == pytest.approx(expected.item(), rel=1e-10)
    wanted = {name: p.grad for name, p in all_parameters(pair, aef).items() if p.grad is not None}
    assert gradients.keys() == wanted.keys() and any(name.startswith("added") for name in wanted)
    for name, gradient in wanted.items():
        torch.testing.assert_close(gradients[name], gradient, rtol=1e-9, atol=1e-10, msg=name)
        assert bool(gradient.any()), name


class Scored:
    """A site beside the latent whose gradient is a score function: a Bernoulli, with a baseline or none."""

    def __init__(self, baseline):
        self.enc, self.dec = torch.nn.Linear(N, 2 * D + 1), torch.nn.Linear(D, N)
        self.baseline = baseline

    def model(self, x):
        pyro.module("dec", self.dec)
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(torch.zeros(len(x), D), 1.0).to_event(1))
            on = pyro.sample("on", dist.Bernoulli(torch.full((len(x),), 0.4)))
            pyro.sample("x", dist.Normal(self.dec(z) + on.unsqueeze(-1), 0.7).to_event(1), obs=x)

    def guide(self, x):
        pyro.module("enc", self.enc)
        with pyro.plate("data", len(x)):
            raw = self.enc(x)
            pyro.sample("z", dist.Normal(raw[..., :D], (0.3 * raw[..., D:-1]).exp()).to_event(1))
            infer = {"baseline": {"use_decaying_avg_baseline": True}} if self.baseline else {}
            pyro.sample("on", dist.Bernoulli(logits=raw[..., -1]), infer=infer)


@pytest.mark.parametrize("kind", ["Trace", "TraceGraph", "TraceGraph, baseline"])
def test_gradients_of_a_score_function_beside_the_latent(kind):
    """The mean of many draws in vectors is the gradient of the sum over both values of the Bernoulli."""
    pair, x = Scored("baseline" in kind), torch.randn(2, N)
    aef = vae2aef.aef_guide(pair.model, pair.guide, noise=0, core_flow="none")
    loss = (Trace_ELBO if kind == "Trace" else TraceGraph_ELBO)(
        num_particles=20000, vectorize_particles=True, max_plate_nesting=1
    )
    loss.loss_and_grads(pair.model, aef, x)
    found = {n: p.grad.clone() for n, p in [*pair.enc.named_parameters(), *aef.added.named_parameters()]}
    raw = pair.enc(x)
    scale = (0.3 * raw[..., D:-1]).exp()
    z = raw[..., :D] + scale * aef.maps.maps["z"].features(x)
    total = Normal(0.0, 1.0).log_prob(z).sum() + scale.log().sum()
    logit = raw[..., -1]
    for on, prior in ((1.0, 0.4), (0.0, 0.6)):
        q = torch.distributions.Bernoulli(logits=logit)
        log_q = q.log_prob(torch.full_like(logit, on))
        fit = Normal(pair.dec(z) + on, 0.7).log_prob(x).sum(-1)
        total = total + (log_q.exp() * (fit + math.log(prior) - log_q)).sum()
    for p in (*pair.enc.parameters(), *aef.added.parameters()):
        p.grad = None
    (-total).backward()
    for name, p in [*pair.enc.named_parameters(), *aef.added.named_parameters()]:
        torch.testing.assert_close(found[name], p.grad, rtol=0.05, atol=0.15, msg=name)
