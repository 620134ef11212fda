"""A stand-in of ours for openai/vdvae, which no package registry has: its attributes and calls, in our own few lines.

The real code runs in `test_checkouts_hierarchies.py`.
"""

import math
from types import SimpleNamespace
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class Net(nn.Module):
    def __init__(self, n: int, out: int) -> None:
        super().__init__()
        self.a, self.b = nn.Conv2d(n, 8, 1), nn.Conv2d(8, out, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.b(F.gelu(self.a(x)))


class Encoder(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.first = nn.Conv2d(3, width, 3, padding=1)
        self.enc_blocks = nn.ModuleList([Net(width, width), Net(width, width)])

    def forward(self, x: Tensor) -> dict[int, Tensor]:
        fine = self.enc_blocks[0](self.first(x.permute(0, 3, 1, 2).contiguous()))
        coarse = self.enc_blocks[1](F.avg_pool2d(fine, fine.shape[2]))
        return {fine.shape[2]: fine, 1: coarse}


class DecBlock(nn.Module):
    def __init__(self, width: int, zdim: int, base: int, mixin: int | None) -> None:
        super().__init__()
        self.base, self.mixin, self.zdim, self.widths = base, mixin, zdim, {base: width}
        self.enc, self.prior = Net(2 * width, 2 * zdim), Net(width, 2 * zdim + width)
        self.z_fn, self.resnet = nn.Conv2d(zdim, width, 1), Net(width, width)

    def forward(self, xs: dict[int, Tensor], acts: dict[int, Tensor]) -> tuple[Tensor, Tensor]:
        a = acts[self.base]
        x = xs.get(self.base, torch.zeros_like(a))
        x = x.repeat(a.shape[0], 1, 1, 1) if len(x) != len(a) else x
        if self.mixin is not None:
            x = x + F.interpolate(xs[self.mixin], scale_factor=self.base // self.mixin)
        qm, qs = self.enc(torch.cat([x, a], 1)).chunk(2, 1)
        pm, ps, more = self.prior(x).split([self.zdim, self.zdim, x.shape[1]], 1)
        z = qs.exp() * torch.empty_like(qm).normal_() + qm
        kl = ps - qs - 0.5 + 0.5 * (qs.exp() ** 2 + (qm - pm) ** 2) / ps.exp() ** 2
        xs[self.base] = self.resnet(x + more + self.z_fn(z))
        return z, kl.flatten(1).sum(1)


class OutNet(nn.Module):
    """A mixture of discretised logistics, the channels autoregressive."""

    def __init__(self, width: int, mixtures: int) -> None:
        super().__init__()
        self.mixtures, self.conv = mixtures, nn.Conv2d(width, 10 * mixtures, 1)

    def forward(self, features: Tensor) -> Tensor:
        return self.conv(features).permute(0, 2, 3, 1)

    def nll(self, features: Tensor, x: Tensor) -> Tensor:
        raw, k = self(features), self.mixtures
        rest = raw[..., k:].reshape(*x.shape, 3 * k)
        loc, log_scale, shift = rest[..., :k], rest[..., k : 2 * k].clamp(min=-7), rest[..., 2 * k :].tanh()
        red, green = x[..., 0:1], x[..., 1:2]
        loc = torch.stack(
            [loc[..., 0, :], loc[..., 1, :] + shift[..., 0, :] * red,
             loc[..., 2, :] + shift[..., 1, :] * red + shift[..., 2, :] * green], -2,
        )  # fmt: skip
        value, half = x.unsqueeze(-1), 1 / 255
        upper = torch.where(value > 0.999, math.inf, (value + half - loc) * (-log_scale).exp()).sigmoid()
        lower = torch.where(value < -0.999, -math.inf, (value - half - loc) * (-log_scale).exp()).sigmoid()
        per_component = (upper - lower).clamp(min=1e-12).log().sum(-2) + raw[..., :k].log_softmax(-1)
        return -per_component.logsumexp(-1).sum((1, 2)) / x[0].numel()

    def sample(self, features: Tensor) -> Any:
        return torch.randint(0, 256, (features.shape[0], *features.shape[2:], 3), dtype=torch.uint8).numpy()


class Decoder(nn.Module):
    def __init__(self, width: int, zdim: int, size: int, mixtures: int) -> None:
        super().__init__()
        self.size = size
        self.dec_blocks = nn.ModuleList([DecBlock(width, zdim, 1, None), DecBlock(width, zdim, size, 1)])
        self.bias_xs = nn.ParameterList([nn.Parameter(torch.zeros(1, width, 1, 1))])
        self.out_net = OutNet(width, mixtures)
        self.gain = nn.Parameter(torch.ones(1, width, 1, 1))

    def final_fn(self, x: Tensor) -> Tensor:
        return x * self.gain

    def forward(self, acts: dict[int, Tensor]) -> tuple[Tensor, list[tuple[Tensor, Tensor]]]:
        xs: dict[int, Tensor] = {bias.shape[2]: bias for bias in self.bias_xs}
        stats = [block(xs, acts) for block in self.dec_blocks]
        return self.final_fn(xs[self.size]), stats


class VAE(nn.Module):
    def __init__(
        self, size: int = 2, width: int = 6, zdim: int = 2, mixtures: int = 2, dataset: str = "cifar10"
    ) -> None:
        super().__init__()
        zdim = mixtures = 2
        self.H = SimpleNamespace(image_size=size, num_mixtures=mixtures, dataset=dataset, zdim=zdim)
        self.encoder, self.decoder = Encoder(width), Decoder(width, zdim, size, mixtures)

    def forward(self, x: Tensor, x_target: Tensor) -> dict[str, Tensor]:
        features, stats = self.decoder(self.encoder(x))
        distortion = self.decoder.out_net.nll(features, x_target)
        rate = sum(kl for _, kl in stats) / x[0].numel()
        return {"elbo": (distortion + rate).mean(), "distortion": distortion.mean(), "rate": rate.mean()}
