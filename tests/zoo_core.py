"""Small VAEs for the tests of the core. Smooth, tiny, and in torch's default dtype."""

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

import vae2aef
from vae2aef.tensors import numel


class SmallVAE(nn.Module):
    """Events and latents of any shape; `encoder` returns (location, log standard deviation).

    Args:
        event: shape of one event.
        latent: shape of one latent.
        own_scale: let the decoder return (mean, scale).
        classes: how many numbers a condition `(batch, classes)` holds; 0 for no condition.
    """

    def __init__(
        self, event: Sequence[int], latent: Sequence[int], own_scale: bool = False, classes: int = 0, hidden: int = 6
    ) -> None:
        super().__init__()
        self.event, self.latent, self.own_scale = tuple(event), tuple(latent), own_scale
        n, d = numel(event), numel(latent)
        self.inner = nn.Linear(n + classes, hidden)
        self.heads = nn.Linear(hidden, 2 * d)
        self.outer = nn.Linear(d + classes, hidden)
        self.mean = nn.Linear(hidden, n)
        if own_scale:
            self.spread = nn.Linear(hidden, n)

    def encoder(self, x: Tensor, *cond: Tensor, label: Tensor | None = None) -> tuple[Tensor, Tensor]:
        flat = torch.cat([x.reshape(x.shape[0], numel(self.event)), *_given(cond, label)], dim=1)
        loc, log_std = self.heads(torch.tanh(self.inner(flat))).chunk(2, dim=1)
        shape = (x.shape[0], *self.latent)
        return loc.reshape(shape), log_std.reshape(shape)

    def decoder(self, z: Tensor, *cond: Tensor, label: Tensor | None = None) -> Any:
        flat = torch.cat([z.reshape(z.shape[0], numel(self.latent)), *_given(cond, label)], dim=1)
        hidden = torch.tanh(self.outer(flat))
        shape = (z.shape[0], *self.event)
        mean = self.mean(hidden).reshape(shape)
        return (mean, nn.functional.softplus(self.spread(hidden)).reshape(shape)) if self.own_scale else mean


def _given(cond: tuple, label: Tensor | None) -> list[Tensor]:
    return [*cond, *([] if label is None else [label])]


class ConditionalPrior(nn.Module):
    """p0(z | label): a normal around a learned map of the label. Events of shape `(latent,)`."""

    def __init__(self, classes: int, latent: int) -> None:
        super().__init__()
        self.loc = nn.Linear(classes, latent)

    def log_prob(self, z: Tensor, label: Tensor) -> Tensor:
        return -0.5 * ((z - self.loc(label)).square() + math.log(2 * math.pi)).sum(1)

    def sample(self, n: int, label: Tensor) -> Tensor:
        loc = self.loc(label)
        assert loc.shape[0] == n
        return loc + torch.randn_like(loc)


class LinearGaussianVAE(nn.Module):
    """x = A z + b + noise, with an affine encoder and a constant posterior scale (a standard deviation).

    Args:
        n: values in one event.
        d: values in one latent.
        orthogonal: make A's columns orthogonal, so that the exact posterior has a diagonal covariance.
    """

    def __init__(self, n: int, d: int, orthogonal: bool = False) -> None:
        super().__init__()
        a = torch.randn(n, d)
        if orthogonal:
            a = torch.linalg.qr(a)[0] * (0.5 + torch.rand(d))
        self.a, self.b = nn.Parameter(a), nn.Parameter(torch.randn(n))
        self.w, self.c = nn.Parameter(0.3 * torch.randn(d, n)), nn.Parameter(0.3 * torch.randn(d))
        self.std = nn.Parameter(0.5 + torch.rand(d))

    def encoder(self, x: Tensor) -> tuple[Tensor, Tensor]:
        loc = x @ self.w.t() + self.c
        return loc, self.std.expand_as(loc)

    def decoder(self, z: Tensor) -> Tensor:
        return z @ self.a.t() + self.b

    def covariance(self, residual_scale: float) -> Tensor:
        return self.a @ self.a.t() + residual_scale**2 * torch.eye(self.b.shape[0], dtype=self.b.dtype)

    def exact_posterior(self, x: Tensor, residual_scale: float) -> tuple[Tensor, Tensor]:
        """Location `(batch, d)` and covariance `(d, d)` of p(z | x)."""
        precision = torch.eye(self.a.shape[1], dtype=self.a.dtype) + self.a.t() @ self.a / residual_scale**2
        covariance = torch.linalg.inv(precision)
        return (x - self.b) @ self.a @ covariance / residual_scale**2, covariance

    def log_marginal(self, x: Tensor, residual_scale: float) -> Tensor:
        """The closed form of log p(x), `(batch,)`."""
        normal = torch.distributions.MultivariateNormal(self.b, self.covariance(residual_scale))
        return normal.log_prob(x).detach()

    @torch.no_grad()
    def centre_on_posterior(self, residual_scale: float) -> Tensor:
        """Set the encoder's location to the mean of p(z | x); return that posterior's covariance."""
        covariance = self.exact_posterior(self.b[None], residual_scale)[1]
        gain = covariance @ self.a.t() / residual_scale**2
        self.w.copy_(gain)
        self.c.copy_(-gain @ self.b)
        return covariance

    @torch.no_grad()
    def use_exact_posterior(self, residual_scale: float) -> None:
        """Set the encoder to p(z | x); `orthogonal` is needed."""
        self.std.copy_(self.centre_on_posterior(residual_scale).diagonal().sqrt())


class FlowPosteriorVAE(SmallVAE):
    """A VAE whose posterior has a planar-like flow after the affine map; found through its own adapter."""

    def __init__(self, event: Sequence[int], latent: Sequence[int]) -> None:
        super().__init__(event, latent)
        self.flow = vae2aef.Chain(
            vae2aef.Inverse(vae2aef.AffineCoupling(numel(latent), hidden=5)),
            vae2aef.MaskedAutoregressive(numel(latent), hidden=5),
        )


class FlowPosteriorParts(vae2aef.VAEParts):
    """What the adapter of `FlowPosteriorVAE` returns."""

    def __init__(self, vae: FlowPosteriorVAE) -> None:
        self.module = vae

    def encode(self, x: Tensor, *cond: Any, **kwargs: Any) -> vae2aef.Posterior:
        loc, log_std = self.module.encoder(x)
        return vae2aef.Posterior(loc, log_std.exp(), self.module.flow)

    def decode(self, z: Tensor, *cond: Any, **kwargs: Any) -> vae2aef.Decoded:
        return vae2aef.Decoded(self.module.decoder(z))


@vae2aef.register_adapter(f"{FlowPosteriorVAE.__module__}.{FlowPosteriorVAE.__qualname__}")
def _adapt(vae: FlowPosteriorVAE, example: Tensor) -> FlowPosteriorParts:
    return FlowPosteriorParts(vae)


class ExampleVAE(nn.Module):
    """Shaped like the VAE of pytorch/examples: encode, reparameterize, decode of flat data, sigmoid output."""

    def __init__(self, size: int = 12, latent: int = 3, treats_as: str = "log_var") -> None:
        super().__init__()
        self.fc1, self.fc21, self.fc22 = nn.Linear(size, 8), nn.Linear(8, latent), nn.Linear(8, latent)
        self.fc3, self.fc4 = nn.Linear(latent, 8), nn.Linear(8, size)
        self.treats_as = treats_as

    def encode(self, x: Tensor) -> tuple[Tensor, Tensor]:
        hidden = torch.relu(self.fc1(x))
        return self.fc21(hidden), self.fc22(hidden)

    def reparameterize(self, loc: Tensor, second: Tensor) -> Tensor:
        std = {"log_var": (0.5 * second).exp(), "log_std": second.exp(), "std": second, "var": second.abs().sqrt()}
        return loc + std[self.treats_as] * torch.randn_like(loc)

    def decode(self, z: Tensor) -> Tensor:
        return torch.sigmoid(self.fc4(torch.relu(self.fc3(z))))


@torch.no_grad()
def shake(module: nn.Module, amount: float = 0.3) -> None:
    """Move every parameter away from its initial value: properties must hold anywhere."""
    for parameter in module.parameters():
        parameter.add_(amount * torch.randn_like(parameter))
