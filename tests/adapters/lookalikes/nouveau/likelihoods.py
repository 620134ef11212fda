"""The distributions of the stand-in, with the names and methods of NVAE's, in our own few lines."""

import math
from typing import Any

import torch
from torch import Tensor


class Normal:
    """N(loc, scale^2), both softly clamped."""

    def __init__(self, mu: Tensor, log_sigma: Tensor, temp: float = 1.0) -> None:
        self.mu = 5 * torch.tanh(mu / 5)
        self.sigma = ((5 * torch.tanh(log_sigma / 5)).exp() + 0.01) * temp

    def sample(self) -> Tensor:
        return self.mu + self.sigma * torch.randn_like(self.mu)

    def log_p(self, z: Tensor) -> Tensor:
        return torch.distributions.Normal(self.mu, self.sigma).log_prob(z)

    def kl(self, other: "Normal") -> Tensor:
        p, q = (torch.distributions.Normal(one.mu, one.sigma) for one in (self, other))
        return torch.distributions.kl_divergence(p, q)


class NormalDecoder:
    """A normal density of 2 x - 1."""

    def __init__(self, logits: Tensor) -> None:
        self.dist = Normal(*logits.chunk(2, 1))

    def log_prob(self, x: Tensor) -> Tensor:
        return self.dist.log_p(2 * x - 1)

    def sample(self) -> Tensor:
        return (self.dist.sample().clamp(-1, 1) + 1) / 2


class DiscMixLogistic:
    """A mixture of logistics, discretised; the channels follow one another linearly (PixelCNN++)."""

    def __init__(self, logits: Tensor, num_mix: int, num_bits: int) -> None:
        self.max_val = 2.0**num_bits - 1
        self.weights = logits[:, :num_mix].log_softmax(1)
        parts = logits[:, num_mix:].unflatten(1, (3, 3, num_mix)).transpose(1, 2)
        self.loc, self.log_scale, self.shift = parts[:, 0], parts[:, 1].clamp(min=-7), parts[:, 2].tanh()

    def log_prob(self, x: Tensor) -> Tensor:
        """Of each pixel, all channels: `(batch, height, width)`."""
        if not (0 <= x.min() and x.max() <= 1):
            raise AssertionError
        y = (2 * x - 1).unsqueeze(2)
        red, green = y[:, 0], y[:, 1]
        shift = self.shift
        blue = shift[:, 1] * red + shift[:, 2] * green
        centred = y - self.loc - torch.stack([torch.zeros_like(blue), shift[:, 0] * red, blue], 1)
        upper, lower = ((centred + side / self.max_val) * (-self.log_scale).exp() for side in (1, -1))
        upper = torch.where(y > 0.99, math.inf, upper)  # as theirs: at 8 bits it takes in level 254
        lower = torch.where(y < -0.999, -math.inf, lower)
        each = (upper.sigmoid() - lower.sigmoid()).clamp(min=1e-12).log().sum(1)
        return (each + self.weights).logsumexp(1)

    def mean(self) -> Tensor:
        weights = self.weights.exp().unsqueeze(1)
        loc, shift = (weights * self.loc).sum(2), (weights * self.shift).sum(2)
        red = loc[:, 0].clamp(-1, 1)
        green = (loc[:, 1] + shift[:, 0] * red).clamp(-1, 1)
        blue = (loc[:, 2] + shift[:, 1] * red + shift[:, 2] * green).clamp(-1, 1)
        return (torch.stack([red, green, blue], 1) + 1) / 2

    def sample(self) -> Tensor:
        chosen = torch.distributions.OneHotCategorical(logits=self.weights.movedim(1, -1)).sample()
        chosen = chosen.movedim(-1, 1).unsqueeze(1)
        loc, log_scale, shift = ((chosen * of).sum(2) for of in (self.loc, self.log_scale, self.shift))
        red, green, blue = (loc + log_scale.exp() * torch.rand_like(loc).clamp(1e-5, 1 - 1e-5).logit()).unbind(1)
        red = red.clamp(-1, 1)
        green = (green + shift[:, 0] * red).clamp(-1, 1)
        blue = (blue + shift[:, 1] * red + shift[:, 2] * green).clamp(-1, 1)
        return (torch.stack([red, green, blue], 1) + 1) / 2


def reconstruction_loss(output: Any, x: Tensor, crop: bool) -> Tensor:
    """-log p(x | z), `(batch,)`."""
    each = output.log_prob(x)
    return -(each[..., 2:30, 2:30] if crop else each).flatten(1).sum(1)
