"""A VAE of two latents in torch and in Pyro, on the same networks: linear and Gaussian, so that p(x) is known."""

import math
from typing import Any

import pyro
import pyro.distributions as dist
import torch
from torch import Tensor, nn

import vae2aef
from vae2aef.protocols import Place

N, UPPER, LOWER = 4, 2, 3
SCALE_LOWER, SCALE_X = 0.7, 0.5


class TwoLevels(nn.Module):
    """z2 -> z1 -> x, all linear; the encoder finds z2 first, and z1 given z2 and x. A condition shifts x."""

    def __init__(self, conditional: bool = False) -> None:
        super().__init__()
        self.upper = nn.Linear(N, 2 * UPPER)
        self.lower = nn.Linear(N + UPPER, 2 * LOWER)
        self.prior_lower = nn.Linear(UPPER, LOWER)
        self.mean = nn.Linear(LOWER, N)
        self.shift = nn.Linear(2, N) if conditional else None

    def decode(self, z1: Tensor, *label: Tensor) -> Tensor:
        return self.mean(z1) + (self.shift(label[0]) if self.shift is not None else 0.0)

    def negative_elbo(self, x: Tensor, noise: dict[str, Tensor], scale: float) -> Tensor:
        """The VAE's own loss with given noise: written out by hand, with nothing of ours."""
        normal = torch.distributions.Normal
        loc, raw = self.upper(x).chunk(2, 1)
        z2 = loc + raw.exp() * noise["z2"]
        kl = normal(loc, raw.exp()).log_prob(z2).sum(1) - normal(0.0, 1.0).log_prob(z2).sum(1)
        loc, raw = self.lower(torch.cat([x, z2], 1)).chunk(2, 1)
        z1 = loc + raw.exp() * noise["z1"]
        kl = kl + normal(loc, raw.exp()).log_prob(z1).sum(1)
        kl = kl - normal(self.prior_lower(z2), SCALE_LOWER).log_prob(z1).sum(1)
        return kl - normal(self.mean(z1), scale).log_prob(x).sum(1)

    # The same VAE for Pyro.

    def model(self, x: Tensor) -> None:
        with pyro.plate("data", len(x)):
            z2 = pyro.sample("z2", dist.Normal(x.new_zeros(UPPER), 1.0).to_event(1))
            z1 = pyro.sample("z1", dist.Normal(self.prior_lower(z2), SCALE_LOWER).to_event(1))
            pyro.sample("x", dist.Normal(self.mean(z1), SCALE_X).to_event(1), obs=x)

    def guide(self, x: Tensor) -> None:
        with pyro.plate("data", len(x)):
            loc, raw = self.upper(x).chunk(2, 1)
            z2 = pyro.sample("z2", dist.Normal(loc, raw.exp()).to_event(1))
            loc, raw = self.lower(torch.cat([x, z2], 1)).chunk(2, 1)
            pyro.sample("z1", dist.Normal(loc, raw.exp()).to_event(1))

    @torch.no_grad()
    def with_exact_posterior(self) -> "TwoLevels":
        """Make the encoder's means those of p(z2 | x) and p(z1 | x, z2), and its scales their standard deviations."""
        a, b = self.prior_lower.weight, self.mean.weight
        to = torch.cat([torch.eye(UPPER), a, b @ a])  # (z2, z1, x) from z2, then what z1 and x add to it
        more = torch.cat([torch.zeros(UPPER, LOWER), torch.eye(LOWER), b]) * SCALE_LOWER
        last = torch.cat([torch.zeros(UPPER + LOWER, N), torch.eye(N)]) * SCALE_X
        covariance = (to @ to.T + more @ more.T + last @ last.T).to(a)
        mean = torch.cat([torch.zeros(UPPER), self.prior_lower.bias, self.mean(self.prior_lower.bias)])
        z2, z1, x = (slice(0, UPPER), slice(UPPER, UPPER + LOWER), slice(UPPER + LOWER, None))
        for layer, target, given in ((self.upper, z2, [x]), (self.lower, z1, [x, z2])):
            index = torch.cat([torch.arange(UPPER + LOWER + N)[g] for g in given])
            gain = covariance[target][:, index] @ torch.linalg.inv(covariance[index][:, index])
            left = covariance[target, target] - gain @ covariance[index][:, target]
            size = left.shape[0]
            layer.weight.zero_()
            layer.weight[:size], layer.bias[:size] = gain, mean[target] - gain @ mean[index]
            layer.bias[size:] = 0.5 * left.diagonal().log()
        return self

    @torch.no_grad()
    def exact(self, x: Tensor) -> Tensor:
        """The marginal log p(x) of the generative model with residual scale `SCALE_X`, in closed form."""
        a, b = self.prior_lower.weight, self.mean.weight
        covariance = b @ (a @ a.T + SCALE_LOWER**2 * torch.eye(LOWER).to(a)) @ b.T + SCALE_X**2 * torch.eye(N).to(a)
        at = self.mean(self.prior_lower.bias)
        return torch.distributions.MultivariateNormal(at, covariance).log_prob(x)


class Parts(vae2aef.VAEProgram):
    """What an adapter writes for it."""

    def __init__(self, vae: TwoLevels) -> None:
        self.vae = vae
        self.taken = ("two levels, read top to bottom",)
        self.passes = 0

    def infer(self, x: Tensor, *label: Tensor) -> Any:
        self.passes += 1
        return {"x": x, "upper": tuple(self.vae.upper(x).chunk(2, 1))}

    def run(self, place: Place, state: Any, *label: Tensor) -> vae2aef.Decoded:
        upper = None if state is None else vae2aef.Posterior(state["upper"][0], state["upper"][1].exp())
        z2 = place("z2", vae2aef.StandardNormal((UPPER,)).to(self.vae.mean.weight), upper)
        lower = None
        if state is not None:
            loc, raw = self.vae.lower(torch.cat([state["x"], z2], 1)).chunk(2, 1)
            lower = vae2aef.Posterior(loc, raw.exp())
        loc = self.vae.prior_lower(z2)
        z1 = place("z1", vae2aef.Gaussian(loc, torch.full_like(loc, SCALE_LOWER)), lower)
        return vae2aef.Decoded(self.vae.decode(z1, *label))


@vae2aef.register_adapter(f"{TwoLevels.__module__}.TwoLevels")
def adapt(vae: TwoLevels, x: Tensor, *cond: Any, encoder_scale: str | None = None) -> vae2aef.VAEParts:
    return Parts(vae)


def torch_aef(x: Tensor, vae: TwoLevels | None = None, **options: Any) -> vae2aef.AEF:
    """Wrap the torch VAE; residual scale and sigma are the fixed ones of the closed form unless said otherwise."""
    return vae2aef.wrap(
        vae or TwoLevels(), example=x, **{"residual": SCALE_X, "noise": 0.0, "core_flow": "coupling", **options}
    )


def pyro_aef(x: Tensor, vae: TwoLevels | None = None, **options: Any) -> vae2aef.AEF:
    """Convert the Pyro pair, likewise."""
    vae = vae or TwoLevels()
    return vae2aef.from_pyro(vae.model, vae.guide, x, **{"noise": 0.0, "core_flow": "coupling", **options})


ENTROPY = 0.5 * math.log(2 * math.pi * math.e)
