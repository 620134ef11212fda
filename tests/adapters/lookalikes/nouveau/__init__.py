"""A stand-in of ours for NVlabs/NVAE, which no package registry has: its attributes and calls, in our own few lines.

Two scales of 1 and 2 groups, or a single group. A flow scales by what the encoder saw, so that its log-determinant is
not zero, which that of the real one is. The real code runs in `test_nvae.py` where a checkout of it is at hand.
"""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .likelihoods import DiscMixLogistic, Normal, NormalDecoder, reconstruction_loss


class Cell(nn.Module):
    """What the towers are made of: convolutions with another size on the way out."""

    def __init__(self, n: int, out: int, cell_type: str) -> None:
        super().__init__()
        self.cell_type, self.down = cell_type, 2 if "down" in cell_type else 1
        self.a, self.b = nn.Conv2d(n, n, 3, padding=1, stride=self.down), nn.Conv2d(n, out, 1)

    def forward(self, s: Tensor) -> Tensor:
        s = F.interpolate(s, scale_factor=2) if "up" in self.cell_type else s
        return self.b(F.silu(self.a(s)))


class Combiner(nn.Module):
    """Two inputs made one: of the encoder by a sum, of the decoder side by side."""

    def __init__(self, n: int, other: int, cell_type: str) -> None:
        super().__init__()
        self.cell_type = cell_type
        self.conv = nn.Conv2d(other if cell_type == "combiner_enc" else n + other, n, 1)

    def forward(self, s: Tensor, other: Tensor) -> Tensor:
        if self.cell_type == "combiner_enc":
            return s + self.conv(other)
        return self.conv(torch.cat([s, other], 1))


class Flow(nn.Module):
    def __init__(self, channels: int, features: int) -> None:
        super().__init__()
        self.net = nn.Conv2d(features, 2 * channels, 1)

    def forward(self, z: Tensor, ftr: Tensor) -> tuple[Tensor, Tensor]:
        shift, log_scale = self.net(ftr).chunk(2, 1)
        return log_scale.exp() * z + shift, log_scale


class AutoEncoder(nn.Module):
    """An NVAE.

    Args:
        dataset: "mnist" has one channel, a Bernoulli likelihood and a padded border.
        size: of the images.
        num_mixture_dec: components of the likelihood of colour images; 1 for a normal density.
        num_x_bits: of colour images.
        num_nf: flows after each group.
        res_dist: whether posteriors are relative to the prior.
        vanilla: one group alone.
    """

    def __init__(
        self, dataset: str = "cifar10", size: int = 4, num_mixture_dec: int = 2, num_x_bits: int = 8, num_nf: int = 0,
        res_dist: bool = True, vanilla: bool = False,
    ) -> None:  # fmt: skip
        super().__init__()
        n, zs, colours = 4, 2, 1 if dataset == "mnist" else 3
        self.dataset, self.input_size, self.crop_output = dataset, size, dataset == "mnist"
        self.num_mix_output, self.num_bits = num_mixture_dec, num_x_bits
        self.num_flows, self.res_dist, self.vanilla_vae = num_nf, res_dist, vanilla
        top = size // 2 if vanilla else size // 4
        self.z0_size = [zs, top, top]
        self.prior_ftr0 = nn.Parameter(torch.rand(n, top, top))
        self.stem = nn.Conv2d(colours, n, 3, padding=1)
        self.pre_process = nn.ModuleList([Cell(n, n, "down_pre")])
        kinds = "normal_enc combiner_enc normal_enc combiner_enc down_enc normal_enc"
        self.enc_tower: Any = [] if vanilla else nn.ModuleList([made(kind, n, n) for kind in kinds.split()])
        self.enc0 = nn.Sequential(nn.ELU(), nn.Conv2d(n, n, 1))
        kinds = "combiner_dec up_dec normal_dec combiner_dec normal_dec combiner_dec"
        self.dec_tower: Any = [] if vanilla else nn.ModuleList([made(kind, n, zs) for kind in kinds.split()])
        if vanilla:
            self.stem_decoder = nn.Conv2d(zs, n, 1)
        groups = 1 if vanilla else 3
        self.enc_sampler = nn.ModuleList([nn.Conv2d(n, 2 * zs, 3, padding=1) for _ in range(groups)])
        self.dec_sampler = nn.ModuleList([nn.Conv2d(n, 2 * zs, 1) for _ in range(groups - 1)])
        self.nf_cells = nn.ModuleList([Flow(zs, n) for _ in range(groups * num_nf)])
        self.post_process = nn.ModuleList([Cell(n, n, "up_post")])
        out = 1 if colours == 1 else 6 if num_mixture_dec == 1 else 10 * num_mixture_dec
        self.image_conditional = nn.Sequential(nn.ELU(), nn.Conv2d(n, out, 3, padding=1))

    def decoder_output(self, logits: Tensor) -> Any:
        if self.dataset == "mnist":
            return torch.distributions.Bernoulli(logits=logits)
        if self.dataset != "cifar10":
            raise NotImplementedError
        if self.num_mix_output == 1:
            return NormalDecoder(logits)
        return DiscMixLogistic(logits, self.num_mix_output, self.num_bits)

    def _top_down(self, size: int, draw: Any) -> Tensor:
        s = self.prior_ftr0.expand(size, -1, -1, -1)
        zeros = s.new_zeros(size, *self.z0_size)
        z = draw(0, None, (zeros, zeros))
        group = 0
        for cell in self.dec_tower:
            if isinstance(cell, Combiner):
                if group:
                    z = draw(group, s, self.dec_sampler[group - 1](s).chunk(2, 1))
                s, group = cell(s, z), group + 1
            else:
                s = cell(s)
        s = self.stem_decoder(z) if self.vanilla_vae else s
        for cell in self.post_process:
            s = cell(s)
        return self.image_conditional(s)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor, list[Tensor], list[Tensor]]:
        s = self.stem(2 * x - 1)
        for cell in self.pre_process:
            s = cell(s)
        stack = []
        for cell in self.enc_tower:
            if isinstance(cell, Combiner):
                stack.append((cell, s))
            else:
                s = cell(s)
        above, log_qs, log_ps, exact = self.enc0(s), [], [], []

        def draw(group: int, state: Tensor | None, p: tuple[Tensor, Tensor]) -> Tensor:
            features = above
            if state is not None:
                combiner, kept = stack[-group]
                features = combiner(kept, state)
            loc, log_scale = self.enc_sampler[group](features).chunk(2, 1)
            if self.res_dist and state is not None:
                loc, log_scale = p[0] + loc, p[1] + log_scale
            q, prior = Normal(loc, log_scale), Normal(*p)
            z = q.sample()
            log_q = q.log_p(z)
            for flow in self.nf_cells[group * self.num_flows : (group + 1) * self.num_flows]:
                z, log_det = flow(z, features)
                log_q = log_q - log_det
            log_qs.append(log_q.flatten(1).sum(1))
            log_ps.append(prior.log_p(z).flatten(1).sum(1))
            exact.append(q.kl(prior).flatten(1).sum(1))
            return z

        logits = self._top_down(len(x), draw)
        kls = [q - p for q, p in zip(log_qs, log_ps, strict=True)] if self.num_flows else exact
        return logits, torch.stack(log_qs).sum(0), torch.stack(log_ps).sum(0), kls, [kl.mean() for kl in kls]

    def sample(self, num_samples: int, t: float) -> Tensor:
        return self._top_down(num_samples, lambda group, state, p: Normal(*p, t).sample())


def made(kind: str, n: int, zs: int) -> nn.Module:
    return Combiner(n, zs if kind == "combiner_dec" else n, kind) if "combiner" in kind else Cell(n, n, kind)


__all__ = ["AutoEncoder", "Normal", "reconstruction_loss"]
