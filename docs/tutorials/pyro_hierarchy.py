"""A two-level VAE: the model goes z1 -> z2 -> x, the guide x -> z2 -> z1. Both sites are mapped by the same rule."""

import pyro
import pyro.distributions as dist
import torch
from pyro.infer import SVI, Trace_ELBO
from torch import nn

import vae2aef
from vae2aef.comparison.data import load


class Ladder(pyro.nn.PyroModule):
    """z1 has 2 dimensions, z2 has 8."""

    def __init__(self, pixels=64, top=2, bottom=8, hidden=128):
        super().__init__()
        self.top = top
        self.up_x = nn.Sequential(nn.Linear(pixels, hidden), nn.Softplus(), nn.Linear(hidden, 2 * bottom))
        self.up_z = nn.Sequential(nn.Linear(bottom, hidden), nn.Softplus(), nn.Linear(hidden, 2 * top))
        self.down_z = nn.Sequential(nn.Linear(top, hidden), nn.Softplus(), nn.Linear(hidden, 2 * bottom))
        self.down_x = nn.Sequential(nn.Linear(bottom, hidden), nn.Softplus(), nn.Linear(hidden, pixels))
        self.log_scale = nn.Parameter(torch.full((pixels,), -1.0))

    def model(self, x):
        pyro.module("ladder", self)
        with pyro.plate("data", x.shape[0]):
            z1 = pyro.sample("z1", dist.Normal(x.new_zeros(x.shape[0], self.top), 1.0).to_event(1))
            loc, log_scale = self.down_z(z1).chunk(2, dim=-1)
            z2 = pyro.sample("z2", dist.Normal(loc, log_scale.exp()).to_event(1))
            pyro.sample("x", dist.Normal(self.down_x(z2), self.log_scale.exp()).to_event(1), obs=x)

    def guide(self, x):
        pyro.module("ladder", self)
        with pyro.plate("data", x.shape[0]):
            loc, log_scale = self.up_x(x).chunk(2, dim=-1)
            z2 = pyro.sample("z2", dist.Normal(loc, log_scale.exp()).to_event(1))
            loc, log_scale = self.up_z(z2).chunk(2, dim=-1)
            pyro.sample("z1", dist.Normal(loc, log_scale.exp()).to_event(1))


def train(ladder, loss, x, epochs, batch=128):
    svi = SVI(ladder.model, ladder.guide, pyro.optim.ClippedAdam({"lr": 1e-3, "clip_norm": 200.0}), loss=loss)
    for _ in range(epochs):
        for rows in torch.randperm(len(x)).split(batch):
            svi.step(vae2aef.dequantize(x[rows], bins=17))


def main(epochs=150, num_samples=256):
    digits = load("digits")
    x, test = digits.x_train.flatten(1), vae2aef.dequantize(digits.x_test.flatten(1), bins=17)
    for name, loss in (("Trace_ELBO", Trace_ELBO()), ("AEF_ELBO", vae2aef.AEF_ELBO(noise=0.1))):
        pyro.clear_param_store()
        pyro.set_rng_seed(0)
        ladder = Ladder()
        train(ladder, loss, x, epochs)
        added = loss.trained() if name == "AEF_ELBO" else {"core": "noise", "core_flow": "none"}
        aef = vae2aef.from_pyro(ladder.model, ladder.guide, test, **added)
        result = aef.log_prob(test, num_samples=num_samples)
        size = result.effective_sample_size.median()
        print(f"{name:>10}: log p(x) = {result.value.mean():.2f} nats, median effective sample size {size:.1f}")
        shapes = {site: tuple(z.shape) for site, z in aef.encode(test).items()}
        print(f"{'':>10}  latents {shapes}, samples {tuple(aef.sample(4).shape)}")


if __name__ == "__main__":
    main()
