"""Pyro's VAE with AEF_ELBO in the place of Trace_ELBO.

The model and guide are those of Pyro's VAE tutorial, with a Normal instead of a Bernoulli over the pixels, which are
grey here; of bits, the Bernoulli stays as it is. The whole change from one loss to the other is the argument of SVI.
"""

import pyro
import pyro.distributions as dist
import torch
from pyro.infer import SVI, Trace_ELBO
from torch import nn

import vae2aef
from vae2aef.comparison.data import load


class VAE(nn.Module):
    """Two hidden layers each way; z has 8 dimensions."""

    def __init__(self, pixels=64, latents=8, hidden=128):
        super().__init__()
        self.latents = latents
        self.encoder = nn.Sequential(nn.Linear(pixels, hidden), nn.Softplus(), nn.Linear(hidden, 2 * latents))
        self.decoder = nn.Sequential(nn.Linear(latents, hidden), nn.Softplus(), nn.Linear(hidden, pixels))
        self.log_scale = nn.Parameter(torch.full((pixels,), -1.0))

    def model(self, x):
        pyro.module("vae", self)
        with pyro.plate("data", x.shape[0]):
            loc, scale = x.new_zeros(x.shape[0], self.latents), x.new_ones(x.shape[0], self.latents)
            z = pyro.sample("latent", dist.Normal(loc, scale).to_event(1))
            pyro.sample("obs", dist.Normal(self.decoder(z), self.log_scale.exp()).to_event(1), obs=x)

    def guide(self, x):
        pyro.module("vae", self)
        with pyro.plate("data", x.shape[0]):
            loc, log_scale = self.encoder(x).chunk(2, dim=-1)
            pyro.sample("latent", dist.Normal(loc, log_scale.exp()).to_event(1))


def train(vae, loss, x, epochs, batch=128):
    svi = SVI(vae.model, vae.guide, pyro.optim.Adam({"lr": 1e-3}), loss=loss)
    for _ in range(epochs):
        for rows in torch.randperm(len(x)).split(batch):
            svi.step(vae2aef.dequantize(x[rows], bins=17))


def main(epochs=150, num_samples=256):
    digits = load("digits")
    x, test = digits.x_train.flatten(1), vae2aef.dequantize(digits.x_test.flatten(1), bins=17)
    for name, loss in (("Trace_ELBO", Trace_ELBO()), ("AEF_ELBO", vae2aef.AEF_ELBO())):
        pyro.clear_param_store()
        pyro.set_rng_seed(0)
        vae = VAE()
        train(vae, loss, x, epochs)
        # Both by the same estimate of log p(x) on held-out digits, never by their losses.
        trained = name == "AEF_ELBO"
        added = {**loss.trained(), "noise": loss.noise} if trained else {"core": "noise", "core_flow": "none"}
        aef = vae2aef.from_pyro(vae.model, vae.guide, test, **added)
        result = aef.log_prob(test, num_samples=num_samples)
        error = (aef.reconstruct(test) - test).square().mean().sqrt()
        print(f"{name:>10}: log p(x) = {result.value.mean():.2f} nats, RMS reconstruction error {error:.4f}")


if __name__ == "__main__":
    main()
