"""Flows of latents that are grids: couplings with convolutional conditioners, and an invertible 1 x 1 convolution.

Nothing in them fixes the size of the grid: one that was trained on 8 x 8 positions maps 16 x 12, too. All work on
`(batch, channels, *grid)` with a grid of one to three dimensions.
"""

import torch
from torch import Tensor, nn

from vae2aef.flows import MAX_LOG_SCALE, Bijection, Chain, bounded
from vae2aef.patches import CONVOLUTIONS
from vae2aef.tensors import full_precision, sum_event


class FanInConv(nn.Module):
    """A convolution that keeps the grid (odd kernel, zeros around it), scaled by its fan-in as `FanInLinear`.

    Args:
        dims: of the grid, 1 to 3.
        channels_in: how many channels it reads.
        channels_out: how many it returns.
        kernel: its size along each dimension; odd.
        base: up to how many inputs of a sum nothing changes.
    """

    gain: Tensor

    def __init__(self, dims: int, channels_in: int, channels_out: int, kernel: int, base: int = 32) -> None:
        super().__init__()
        self.dims, self.padding = dims, kernel // 2
        fan_in = channels_in * kernel**dims
        self.register_buffer("gain", torch.tensor(min(1.0, base / fan_in)))
        bound = fan_in**-0.5  # as torch.nn.Conv2d
        weight = torch.empty(channels_out, channels_in, *(kernel for _ in range(dims))).uniform_(-bound, bound)
        self.weight = nn.Parameter(weight / self.gain)
        self.bias = nn.Parameter(torch.empty(channels_out).uniform_(-bound, bound))

    def forward(self, x: Tensor) -> Tensor:
        """Map `(batch, channels_in, *grid)` to `(batch, channels_out, *grid)`."""
        return CONVOLUTIONS[self.dims](x, self.weight * self.gain, self.bias, padding=self.padding)


def conditioner(dims: int, channels_in: int, channels_out: int, hidden: int) -> nn.Sequential:
    """Make a network that sees 5 positions along each dimension, `(batch, channels, *grid)` to the same grid."""
    return nn.Sequential(
        FanInConv(dims, channels_in, hidden, 3), nn.SiLU(),
        FanInConv(dims, hidden, hidden, 1), nn.SiLU(),
        FanInConv(dims, hidden, channels_out, 3),
    )  # fmt: skip


class _Constant(nn.Module):
    """A conditioner that has nothing to look at: learned channels, the same everywhere."""

    def __init__(self, dims: int, channels: int) -> None:
        super().__init__()
        self.value = nn.Parameter(torch.zeros(channels, *(1 for _ in range(dims))))

    def forward(self, x: Tensor) -> Tensor:
        return self.value.expand(x.shape[0], -1, *x.shape[2:])


class ChannelCoupling(Bijection):
    """Affine coupling of channels: the second half is mapped given the first. Of one channel, an affine map of it.

    Args:
        channels: of the latent.
        dims: of its grid.
        hidden: channels of the conditioner.

    References:
        Dinh, Sohl-Dickstein, Bengio, *Density estimation using Real NVP*, ICLR 2017, section 3.4.
    """

    def __init__(self, channels: int, dims: int, hidden: int = 16) -> None:
        super().__init__()
        self.kept = channels // 2
        changed = 2 * (channels - self.kept)
        self.conditioner = conditioner(dims, self.kept, changed, hidden) if self.kept else _Constant(dims, changed)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Normalise; see `Bijection.forward` for shapes."""
        with full_precision(x):
            kept, changed = x[:, : self.kept], x[:, self.kept :]
            log_scale, shift = self._affine(kept)
            return torch.cat([kept, changed * log_scale.exp() + shift], dim=1), sum_event(log_scale)

    def inverse(self, y: Tensor) -> tuple[Tensor, Tensor]:
        """Generate; see `Bijection.inverse` for shapes."""
        with full_precision(y):
            kept, changed = y[:, : self.kept], y[:, self.kept :]
            log_scale, shift = self._affine(kept)
            return torch.cat([kept, (changed - shift) * (-log_scale).exp()], dim=1), -sum_event(log_scale)

    def make_identity(self) -> None:
        """Set the parameters so that the layer changes nothing."""
        last = self.conditioner[-1] if isinstance(self.conditioner, nn.Sequential) else self.conditioner
        for parameter in last.parameters():
            parameter.zero_()

    def _affine(self, kept: Tensor) -> tuple[Tensor, Tensor]:
        raw, shift = self.conditioner(kept).chunk(2, dim=1)
        return bounded(raw), shift


class CheckerboardCoupling(Bijection):
    """Affine coupling of positions: those of one colour of a checkerboard are mapped given those of the other.

    Args:
        channels: of the latent.
        dims: of its grid.
        odd: which colour is kept: positions whose indices sum to an odd number.
        hidden: channels of the conditioner.

    References:
        Dinh, Sohl-Dickstein, Bengio, *Density estimation using Real NVP*, ICLR 2017, section 3.4.
    """

    def __init__(self, channels: int, dims: int, odd: bool = False, hidden: int = 16) -> None:
        super().__init__()
        self.odd = odd
        self.conditioner = conditioner(dims, channels, 2 * channels, hidden)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Normalise; see `Bijection.forward` for shapes."""
        with full_precision(x):
            kept, log_scale, shift = self._affine(x)
            y = torch.where(kept, x, x * log_scale.exp() + shift)
            return y, sum_event(torch.where(kept, 0.0, log_scale))

    def inverse(self, y: Tensor) -> tuple[Tensor, Tensor]:
        """Generate; see `Bijection.inverse` for shapes."""
        with full_precision(y):
            kept, log_scale, shift = self._affine(y)
            x = torch.where(kept, y, (y - shift) * (-log_scale).exp())
            return x, -sum_event(torch.where(kept, 0.0, log_scale))

    def make_identity(self) -> None:
        """Set the parameters so that the layer changes nothing."""
        for parameter in self.conditioner[-1].parameters():
            parameter.zero_()

    def _affine(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        kept = self._kept(x)
        raw, shift = self.conditioner(torch.where(kept, x, 0.0)).chunk(2, dim=1)
        return kept, bounded(raw), shift

    def _kept(self, x: Tensor) -> Tensor:
        """Return True at the positions that stay, of shape `(*grid)`."""
        colour = torch.zeros((), dtype=torch.long, device=x.device)
        for n in x.shape[2:]:
            colour = colour.unsqueeze(-1) + torch.arange(n, device=x.device)
        return colour % 2 == int(self.odd)


class Invertible1x1Conv(Bijection):
    """The same invertible linear map of the channels at every position, W = P L (U + diag(s)), log s from -3 to 3.

    P is a fixed permutation, L has ones on its diagonal, and W starts as a random rotation.

    Args:
        channels: of the latent.

    References:
        Kingma, Dhariwal, *Glow: generative flow with invertible 1x1 convolutions*, NeurIPS 2018.
    """

    order: Tensor
    sign: Tensor

    def __init__(self, channels: int) -> None:
        super().__init__()
        rotation = torch.linalg.qr(torch.randn(channels, channels))[0]
        p, lower, upper = torch.linalg.lu(rotation)
        diagonal = upper.diagonal()
        log_scale = diagonal.abs().log().clamp(-0.95 * MAX_LOG_SCALE, 0.95 * MAX_LOG_SCALE)
        self.register_buffer("order", p.argmax(1))
        self.register_buffer("sign", diagonal.sign())
        self.lower, self.upper = nn.Parameter(lower.tril(-1)), nn.Parameter(upper.triu(1))
        self.log_scale = nn.Parameter(MAX_LOG_SCALE * torch.atanh(log_scale / MAX_LOG_SCALE))

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Normalise; see `Bijection.forward` for shapes."""
        with full_precision(x):
            lower, upper = self._factors()
            return self._apply_to((lower @ upper)[self.order], x), self._log_det(x)

    def inverse(self, y: Tensor) -> tuple[Tensor, Tensor]:
        """Generate; see `Bijection.inverse` for shapes."""
        with full_precision(y):
            lower, upper = self._factors()
            one = torch.eye(len(lower), dtype=lower.dtype, device=lower.device)
            back = torch.linalg.solve_triangular(lower, one, upper=False, unitriangular=True)
            back = torch.linalg.solve_triangular(upper, back, upper=True)
            return self._apply_to(back[:, self.order], y), -self._log_det(y)

    def make_identity(self) -> None:
        """Set the parameters so that the layer changes nothing."""
        for parameter in self.parameters():
            parameter.zero_()
        self.sign.fill_(1.0)
        self.order.copy_(torch.arange(len(self.order)))

    def _factors(self) -> tuple[Tensor, Tensor]:
        one = torch.eye(len(self.sign), dtype=self.lower.dtype, device=self.lower.device)
        return self.lower.tril(-1) + one, self.upper.triu(1) + (self.sign * bounded(self.log_scale).exp()).diag()

    def _log_det(self, x: Tensor) -> Tensor:
        return (bounded(self.log_scale).sum() * x.shape[2:].numel()).expand(x.shape[0])

    def _apply_to(self, weight: Tensor, x: Tensor) -> Tensor:
        dims = x.dim() - 2
        return CONVOLUTIONS[dims](x, weight.reshape(*weight.shape, *(1 for _ in range(dims))))


def grid_coupling(channels: int, dims: int, layers: int = 4) -> Chain:
    """Make a flow of a grid: checkerboards of both colours and channels in turn, each after a mixing of the channels.

    Args:
        channels: of the latent.
        dims: of its grid, 1 to 3.
        layers: how many couplings.
    """
    hidden = max(12, min(3 * channels, 64))
    made: list[Bijection] = []
    for i in range(layers):
        made.append(Invertible1x1Conv(channels))
        if i % 2 and channels > 1:
            made.append(ChannelCoupling(channels, dims, hidden))
        else:
            odd = bool((i // 2 if channels > 1 else i) % 2)
            made.append(CheckerboardCoupling(channels, dims, odd, hidden))
    return Chain(*made)
