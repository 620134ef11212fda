"""A deep Markov model on sequences made of digits: the eight rows of an image, one after the other."""

import pyro
import pyro.distributions as dist
import torch
from pyro.infer import SVI, Trace_ELBO
from torch import nn

import vae2aef
from vae2aef.comparison.data import load


class DMM(nn.Module):
    """Gaussian transitions and emissions with small networks; the guide reads the sequence from its end."""

    def __init__(self, pixels=8, latents=3, hidden=32):
        super().__init__()
        self.latents = latents
        self.transition = nn.Sequential(nn.Linear(latents, hidden), nn.Softplus(), nn.Linear(hidden, 2 * latents))
        self.emission = nn.Sequential(nn.Linear(latents, hidden), nn.Softplus(), nn.Linear(hidden, pixels))
        self.rnn = nn.GRU(pixels, hidden, batch_first=True)
        self.combine = nn.Sequential(nn.Linear(hidden + latents, hidden), nn.Softplus(), nn.Linear(hidden, 2 * latents))
        self.log_scale = nn.Parameter(torch.full((pixels,), -1.0))

    def model(self, x):
        pyro.module("dmm", self)
        z = x.new_zeros(x.shape[0], self.latents)
        with pyro.plate("data", x.shape[0]):
            for t in pyro.markov(range(x.shape[1])):
                loc, log_scale = self.transition(z).chunk(2, dim=-1)
                z = pyro.sample(f"z_{t}", dist.Normal(loc, log_scale.exp()).to_event(1))
                emitted = dist.Normal(self.emission(z), self.log_scale.exp()).to_event(1)
                pyro.sample(f"x_{t}", emitted, obs=x[:, t])

    def guide(self, x):
        pyro.module("dmm", self)
        later = self.rnn(x.flip(1))[0].flip(1)
        z = x.new_zeros(x.shape[0], self.latents)
        with pyro.plate("data", x.shape[0]):
            for t in pyro.markov(range(x.shape[1])):
                loc, log_scale = self.combine(torch.cat([later[:, t], z], dim=-1)).chunk(2, dim=-1)
                z = pyro.sample(f"z_{t}", dist.Normal(loc, log_scale.exp()).to_event(1))


def train(dmm, loss, x, epochs, batch=128):
    svi = SVI(dmm.model, dmm.guide, pyro.optim.ClippedAdam({"lr": 2e-3, "clip_norm": 200.0}), loss=loss)
    for _ in range(epochs):
        for rows in torch.randperm(len(x)).split(batch):
            svi.step(vae2aef.dequantize(x[rows], bins=17))


def main(epochs=60, num_samples=256, held_out=100):
    digits = load("digits")  # an image is a sequence of eight rows of eight pixels
    x, test = digits.x_train[:, 0], vae2aef.dequantize(digits.x_test[:held_out, 0], bins=17)
    for name, loss in (("Trace_ELBO", Trace_ELBO()), ("AEF_ELBO", vae2aef.AEF_ELBO(noise=0.1))):
        pyro.clear_param_store()
        pyro.set_rng_seed(0)
        dmm = DMM()
        train(dmm, loss, x, epochs)
        added = loss.trained() if name == "AEF_ELBO" else {"core": "noise", "core_flow": "none"}
        aef = vae2aef.from_pyro(dmm.model, dmm.guide, test, **added)
        result = aef.log_prob(test, num_samples=num_samples)
        size = result.effective_sample_size.median()
        print(f"{name:>10}: log p(x) = {result.value.mean():.2f} nats, median effective sample size {size:.1f}")
        rows = torch.stack(list(aef.reconstruct(test).values()), dim=1)
        error = (rows - test).square().mean().sqrt()
        print(f"{'':>10}  {len(aef.encode(test))} latent sites, RMS reconstruction error {error:.4f}")


if __name__ == "__main__":
    main()
