"""A conditional VAE with a learned prior p(z | y): digits given their class."""

import pyro
import pyro.distributions as dist
import torch
from pyro.infer import SVI, Trace_ELBO
from sklearn.datasets import load_digits
from torch import nn

import vae2aef


class CVAE(nn.Module):
    """Encoder, decoder and prior all see the class y, one-hot."""

    def __init__(self, pixels=64, classes=10, latents=8, hidden=128):
        super().__init__()
        self.encoder = nn.Sequential(nn.Linear(pixels + classes, hidden), nn.Softplus(), nn.Linear(hidden, 2 * latents))
        self.decoder = nn.Sequential(nn.Linear(latents + classes, hidden), nn.Softplus(), nn.Linear(hidden, pixels))
        self.prior = nn.Linear(classes, 2 * latents)
        self.log_scale = nn.Parameter(torch.full((pixels,), -1.0))

    def model(self, x, y):
        pyro.module("cvae", self)
        with pyro.plate("data", x.shape[0]):
            loc, log_scale = self.prior(y).chunk(2, dim=-1)
            z = pyro.sample("z", dist.Normal(loc, log_scale.exp()).to_event(1))
            mean = self.decoder(torch.cat([z, y], dim=-1))
            pyro.sample("x", dist.Normal(mean, self.log_scale.exp()).to_event(1), obs=x)

    def guide(self, x, y):
        pyro.module("cvae", self)
        with pyro.plate("data", x.shape[0]):
            loc, log_scale = self.encoder(torch.cat([x, y], dim=-1)).chunk(2, dim=-1)
            pyro.sample("z", dist.Normal(loc, log_scale.exp()).to_event(1))


def train(cvae, loss, x, y, epochs, batch=128):
    svi = SVI(cvae.model, cvae.guide, pyro.optim.Adam({"lr": 1e-3}), loss=loss)
    for _ in range(epochs):
        for rows in torch.randperm(len(x)).split(batch):
            svi.step(vae2aef.dequantize(x[rows], bins=17), y[rows])


def main(epochs=150, num_samples=256):
    images, classes = load_digits(return_X_y=True)
    x, y = torch.tensor(images).to(torch.uint8), nn.functional.one_hot(torch.tensor(classes)).float()
    x, x_test, y, y_test = x[:1437], vae2aef.dequantize(x[1437:], bins=17), y[:1437], y[1437:]
    for name, loss in (("Trace_ELBO", Trace_ELBO()), ("AEF_ELBO", vae2aef.AEF_ELBO())):
        pyro.clear_param_store()
        pyro.set_rng_seed(0)
        cvae = CVAE()
        train(cvae, loss, x, y, epochs)
        trained = name == "AEF_ELBO"
        added = {**loss.trained(), "noise": loss.noise} if trained else {"core": "noise", "core_flow": "none"}
        aef = vae2aef.from_pyro(cvae.model, cvae.guide, x_test, y_test, **added)
        result = aef.log_prob(x_test, y_test, num_samples=num_samples)
        print(f"{name:>10}: log p(x | y) = {result.value.mean():.2f} nats on held-out digits")
        three = torch.eye(10)[[3] * 4]
        print(f"{'':>10}  four threes, drawn: a tensor of shape {tuple(aef.sample(4, three).shape)}")


if __name__ == "__main__":
    main()
