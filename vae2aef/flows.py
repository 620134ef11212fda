"""Bijections with exact log-determinants: what one is, how they are put together, and an affine coupling.

Two small layers are ours: the affine coupling here (Dinh et al., 2017) and the masked autoregressive layer of
`vae2aef.masked` (Papamakarios et al., 2017). Both bound their log-scale, so that sampling does not explode, and
neither has state beyond its parameters: nothing is initialised from data.
"""

import abc
from collections.abc import Callable, Sequence
from typing import cast

import torch
from torch import Tensor, nn

from vae2aef.fan_in import FanInLinear
from vae2aef.tensors import full_precision, sum_event

MAX_LOG_SCALE = 3.0
"""Bound on |log s| of one layer. Unbounded (softplus) scales give samples of 1e33 after short training."""


class Bijection(nn.Module, abc.ABC):
    """An invertible map of tensors of shape `(batch, *event)`.

    `forward` is the direction from data to noise (the direction of training), `inverse` the other one.
    """

    @abc.abstractmethod
    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Map `x`, shape `(batch, *event)`, to `(y, log|det dy/dx|)`, shapes `(batch, *event)`, `(batch,)`."""

    @abc.abstractmethod
    def inverse(self, y: Tensor) -> tuple[Tensor, Tensor]:
        """Map `y`, shape `(batch, *event)`, to `(x, log|det dx/dy|)`, shapes `(batch, *event)`, `(batch,)`."""


class Identity(Bijection):
    """The map that changes nothing: `core_flow="none"`, and no preprocessing."""

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Return `x`, shape `(batch, *event)`, and zeros of shape `(batch,)`."""
        return x, x.new_zeros(x.shape[0])

    def inverse(self, y: Tensor) -> tuple[Tensor, Tensor]:
        """Return `y`, shape `(batch, *event)`, and zeros of shape `(batch,)`."""
        return y, y.new_zeros(y.shape[0])


class Chain(Bijection):
    """Bijections one after the other: `forward` applies them left to right, `inverse` right to left."""

    def __init__(self, *bijections: Bijection) -> None:
        super().__init__()
        self.bijections = nn.ModuleList(bijections)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Apply all; see `Bijection.forward` for shapes."""
        y, total = x, None
        for bijection in self.bijections:
            y, log_det = bijection(y)
            total = log_det if total is None else total + log_det
        return y, y.new_zeros(y.shape[0]) if total is None else total

    def inverse(self, y: Tensor) -> tuple[Tensor, Tensor]:
        """Undo all, last first; see `Bijection.inverse` for shapes."""
        x, total = y, None
        for bijection in reversed(cast("Sequence[Bijection]", self.bijections)):
            x, log_det = bijection.inverse(x)
            total = log_det if total is None else total + log_det
        return x, x.new_zeros(x.shape[0]) if total is None else total


class Inverse(Bijection):
    """The same bijection run backwards. The inverse of a masked autoregressive flow is an IAF."""

    def __init__(self, bijection: Bijection) -> None:
        super().__init__()
        self.bijection = bijection

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Apply the inverse of the wrapped bijection; see `Bijection.forward` for shapes."""
        return self.bijection.inverse(x)

    def inverse(self, y: Tensor) -> tuple[Tensor, Tensor]:
        """Apply the forward of the wrapped bijection; see `Bijection.inverse` for shapes."""
        return self.bijection(y)


class Each(Bijection):
    """Apply a bijection to each element of the leading dimensions of a latent on its own.

    Args:
        flow: maps `(rows, *inner)`.
        outer: how many leading dimensions of the latent are rows to it.
    """

    def __init__(self, flow: Bijection, outer: int) -> None:
        super().__init__()
        self.flow = flow
        self.outer = outer

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """See `Bijection.forward`."""
        return self._on_rows(self.flow, x)

    def inverse(self, y: Tensor) -> tuple[Tensor, Tensor]:
        """See `Bijection.inverse`."""
        return self._on_rows(self.flow.inverse, y)

    def _on_rows(self, flow: Callable[[Tensor], tuple[Tensor, Tensor]], x: Tensor) -> tuple[Tensor, Tensor]:
        rows = x.shape[: 1 + self.outer]
        y, log_det = flow(x.reshape(rows.numel(), *x.shape[len(rows) :]))
        return y.reshape(x.shape), sum_event(log_det.reshape(rows))


def bounded(raw: Tensor) -> Tensor:
    """Squash a raw log-scale of any shape to (-MAX_LOG_SCALE, MAX_LOG_SCALE), with slope 1 at zero."""
    return MAX_LOG_SCALE * torch.tanh(raw / MAX_LOG_SCALE)


class _Constant(nn.Module):
    """A conditioner that has nothing to look at: a learned vector, the same for every sample."""

    def __init__(self, features: int) -> None:
        super().__init__()
        self.value = nn.Parameter(torch.zeros(features))

    def forward(self, x: Tensor) -> Tensor:
        return self.value.expand(x.shape[0], -1)


class AffineCoupling(Bijection):
    """Affine coupling layer on a random half of the features: y_b = x_b exp(s(x_a)) + t(x_a).

    Works on events of any shape with `features` numbers in all; `|s| <= 3`. With one feature there is
    nothing to condition on, and the layer is a learned affine map.

    Args:
        features: D, the number of values in one event (0 or more).
        hidden: units in each of the two hidden layers of the conditioner.

    Raises:
        RuntimeError: from torch, if an input's event does not hold `features` values.

    References:
        Dinh, Sohl-Dickstein, Bengio, *Density estimation using Real NVP*, ICLR 2017.
    """

    permutation: Tensor

    def __init__(self, features: int, hidden: int = 128) -> None:
        super().__init__()
        self.features = features
        self.kept = features // 2
        changed = 2 * (features - self.kept)
        self.register_buffer("permutation", torch.randperm(features))
        self.conditioner: nn.Module = _Constant(changed)
        if self.kept:
            self.conditioner = nn.Sequential(
                FanInLinear(self.kept, hidden), nn.SiLU(),
                FanInLinear(hidden, hidden), nn.SiLU(),
                FanInLinear(hidden, changed),
            )  # fmt: skip

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Normalise; see `Bijection.forward` for shapes."""
        with full_precision(x):
            kept, changed = self._halves(x.reshape(x.shape[0], self.features)[:, self.permutation])
            log_scale, shift = self._affine(kept)
            y = torch.cat([kept, changed * log_scale.exp() + shift], dim=1)
            return y.reshape(x.shape), log_scale.sum(1)

    def inverse(self, y: Tensor) -> tuple[Tensor, Tensor]:
        """Generate; see `Bijection.inverse` for shapes."""
        with full_precision(y):
            kept, changed = self._halves(y.reshape(y.shape[0], self.features))
            log_scale, shift = self._affine(kept)
            x = torch.cat([kept, (changed - shift) * (-log_scale).exp()], dim=1)
            return x[:, self.permutation.argsort()].reshape(y.shape), -log_scale.sum(1)

    def _halves(self, flat: Tensor) -> tuple[Tensor, Tensor]:
        return flat[:, : self.kept], flat[:, self.kept :]

    def _affine(self, kept: Tensor) -> tuple[Tensor, Tensor]:
        raw, shift = self.conditioner(kept).chunk(2, dim=1)
        return bounded(raw), shift
