"""Small fully convolutional VAEs on grids of one to three dimensions. Smooth, in torch's default dtype."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from vae2aef.parts import Decoded, Posterior
from vae2aef.priors import StandardNormal
from vae2aef.program import Gaussian, VAEProgram

CONV = {1: nn.Conv1d, 2: nn.Conv2d, 3: nn.Conv3d}
BACK = {1: nn.ConvTranspose1d, 2: nn.ConvTranspose2d, 3: nn.ConvTranspose3d}


class GridVAE(nn.Module):
    """Data `(channels, *grid)`, latent `(latent, *grid / factor)`; `encoder` returns (location, log std).

    Args:
        factor: along each dimension.
        channels: of the data.
        latent: channels of the latent.
        mixing: whether a position of the latent sees its neighbours' patches.
    """

    def __init__(self, factor: Sequence[int], channels: int = 1, latent: int = 2, mixing: bool = True) -> None:
        super().__init__()
        dims, factor = len(factor), tuple(factor)
        kernel = 3 if mixing else 1
        self.down = CONV[dims](channels, 4, factor, factor)
        self.heads = CONV[dims](4, 2 * latent, kernel, padding=kernel // 2)
        self.inner = CONV[dims](latent, 4, kernel, padding=kernel // 2)
        self.up = BACK[dims](4, channels, factor, factor)

    def encoder(self, x: Tensor) -> tuple[Tensor, Tensor]:
        return self.heads(torch.tanh(self.down(x))).chunk(2, dim=1)

    def decoder(self, z: Tensor) -> Tensor:
        return self.up(torch.tanh(self.inner(z)))


class TracedGridVAE(GridVAE):
    """The same, known by its forward alone."""

    def __init__(self, factor: Sequence[int], channels: int = 1, latent: int = 2) -> None:
        super().__init__(factor, channels, latent)
        self.first, self.second = self.heads, self.up

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        loc, log_std = self.first(torch.tanh(self.down(x))).chunk(2, dim=1)
        z = loc + log_std.exp() * torch.randn_like(loc)
        return self.second(torch.tanh(self.inner(z))), loc, log_std


class CausalVAE(nn.Module):
    """Video (channels, 1 + 2 n, 2 h, 2 w) to a latent (2, 1 + n, h, w): the first frame is repeated in front."""

    def __init__(self) -> None:
        super().__init__()
        self.down, self.up = nn.Conv3d(1, 4, 2, 2), nn.ConvTranspose3d(2, 1, 2, 2)

    def encoder(self, x: Tensor) -> tuple[Tensor, Tensor]:
        return self.down(torch.cat([x[:, :, :1], x], 2)).chunk(2, 1)

    def decoder(self, z: Tensor) -> Tensor:
        return self.up(torch.tanh(z))[:, :, 1:]


class FixedGridVAE(nn.Module):
    """A latent (2, 2, 2) of data (1, 4, 4) by dense layers: a grid by its shape alone, of one size."""

    def __init__(self) -> None:
        super().__init__()
        self.inner, self.outer = nn.Linear(16, 16), nn.Linear(8, 16)

    def encoder(self, x: Tensor) -> tuple[Tensor, Tensor]:
        return torch.tanh(self.inner(x.flatten(1))).reshape(-1, 4, 2, 2).chunk(2, 1)

    def decoder(self, z: Tensor) -> Tensor:
        return self.outer(z.flatten(1)).reshape(-1, 1, 4, 4)


class TwoGrids(nn.Module):
    """Two latents on grids: z2 (2, h/4, w/4), and z1 (2, h/2, w/2) given it."""

    def __init__(self) -> None:
        super().__init__()
        self.up1, self.up2 = nn.Conv2d(1, 4, 2, 2), nn.Conv2d(4, 4, 2, 2)
        self.heads1, self.heads2 = nn.Conv2d(6, 4, 1), nn.Conv2d(4, 4, 1)
        self.prior1, self.mean = nn.ConvTranspose2d(2, 4, 2, 2), nn.ConvTranspose2d(2, 1, 2, 2)


class TwoGridsParts(VAEProgram):
    def __init__(self, vae: TwoGrids, x: Tensor) -> None:
        self.vae, self.top = vae, StandardNormal((2, x.shape[2] // 4, x.shape[3] // 4))

    def infer(self, x: Tensor) -> tuple[Tensor, Tensor]:
        d1 = torch.tanh(self.vae.up1(x))
        return d1, torch.tanh(self.vae.up2(d1))

    def run(self, place, state) -> Decoded:
        q2 = None if state is None else _posterior(self.vae.heads2(state[1]))
        z2 = place("z2", self.top, q2)
        loc, raw = self.vae.prior1(z2).chunk(2, 1)
        doubled = z2.repeat_interleave(2, 2).repeat_interleave(2, 3)
        q1 = None if state is None else _posterior(self.vae.heads1(torch.cat([state[0], doubled], 1)))
        return Decoded(self.vae.mean(torch.tanh(place("z1", Gaussian(loc, raw.exp()), q1))))


def _posterior(raw: Tensor) -> Posterior:
    loc, log_std = raw.chunk(2, 1)
    return Posterior(loc, log_std.exp())
