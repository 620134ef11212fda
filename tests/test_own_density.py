"""A VAE's own density of x given z: it is kept, whichever way the VAE comes, and says what it has no probability of."""

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro.infer import SVI
from pyro.optim import Adam
from torch import nn

import vae2aef


class Pair(nn.Module):
    """Model and guide, with a density of the decoder's output."""

    def __init__(self, observed):
        super().__init__()
        self.encoder, self.decoder, self.observed = nn.Linear(6, 4), nn.Linear(2, 6), observed

    def model(self, x):
        pyro.module("decoder", self.decoder)
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(x.new_zeros(len(x), 2), 1.0).to_event(1))
            pyro.sample("obs", self.observed(self.decoder(z)).to_event(1), obs=x)

    def guide(self, x):
        pyro.module("encoder", self.encoder)
        with pyro.plate("data", len(x)):
            loc, scale = self.encoder(x).chunk(2, dim=1)
            pyro.sample("z", dist.Normal(loc, scale.exp()).to_event(1))


class Distribution(nn.Module):
    """A decoder that returns a torch distribution."""

    def __init__(self, observed):
        super().__init__()
        self.encoder, self.decoder, self.observed = nn.Linear(6, 4), nn.Linear(2, 6), observed

    def encode(self, x):
        loc, scale = self.encoder(x).chunk(2, dim=1)
        return torch.distributions.Normal(loc, scale.exp())

    def decode(self, z):
        return self.observed(self.decoder(z))


WAYS = {
    "wrap": lambda observed, x: vae2aef.wrap(Pair(observed), example=x),
    "from_pyro": lambda observed, x: vae2aef.from_pyro(*(lambda p: (p.model, p.guide))(Pair(observed)), x),
    "torch": lambda observed, x: vae2aef.wrap(Distribution(observed), example=x),
}


@pytest.fixture(autouse=True)
def _fresh_store():
    pyro.clear_param_store()


@pytest.mark.parametrize("way", ["wrap", "from_pyro"])
@pytest.mark.parametrize("family", [dist.Normal, dist.Laplace])
def test_the_density_of_a_pyro_model_is_kept(way, family):
    """`wrap` of an object with model and guide took a Gaussian of learned scale, `from_pyro` the model's own."""
    x = torch.rand(8, 6)
    aef = WAYS[way](lambda mean: family(mean, 0.5), x)
    _, mean = (joint := aef.log_joint(vae2aef.batch.Batch(x, (), {}))).decoded.scale, joint.decoded.mean
    expected = family(mean, 0.5).log_prob(x).sum(1)
    torch.testing.assert_close(joint.residual, expected)
    assert len(list(aef.likelihood.parameters())) == 0


@pytest.mark.parametrize("validate", [False, True])
@pytest.mark.parametrize("way", WAYS)
def test_grey_values_of_a_bernoulli_are_trained_and_not_scored(way, validate):
    x = torch.rand(8, 6)
    if way == "torch" and validate:
        pytest.skip("torch itself refuses them")
    options = {} if validate else {"validate_args": False}
    aef = WAYS[way](lambda logits: dist.Bernoulli(logits=logits, **options), x)
    aef(x).backward()
    with pytest.raises(
        ValueError, match=r"whole numbers, and the data hold values between them.* draw bits by x\.bernoulli"
    ):
        aef.log_prob(x, num_samples=8)
    with pytest.raises(ValueError, match="whole numbers"):
        aef.impute(x, torch.ones_like(x, dtype=torch.bool), num_samples=8)
    bits = x.bernoulli()
    assert aef.log_prob(bits, num_samples=8).value.isfinite().all()
    there = torch.arange(6) > 1
    assert aef.log_prob(torch.where(there, bits, 0.5), num_samples=8, observed=there).value.isfinite().all()


def test_grey_values_are_refused_by_pyro_and_are_no_leak():
    """`AEF_ELBO` said that the model sees the data that it scores; Pyro's own words are the right ones."""
    pair, x = Pair(lambda logits: dist.Bernoulli(logits=logits)), torch.rand(8, 6)
    svi = SVI(pair.model, pair.guide, Adam({"lr": 1e-3}), loss=vae2aef.AEF_ELBO())
    with pytest.raises(ValueError, match=r"within the support \(Boolean\(\)\)"):
        svi.step(x)
    assert svi.step(x.bernoulli()) > 0
