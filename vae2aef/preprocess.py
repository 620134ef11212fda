"""Preprocessing of data as bijections with log-determinants, and bits per dimension.

Densities are always those of data on the unit interval: the log-determinant of a preprocessing counts from
there, and `bits_per_dim` adds the log2 of the number of grey levels.
"""

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from vae2aef.errors import DataTypeError
from vae2aef.flows import Bijection
from vae2aef.tensors import at_least_float32, numel, sum_event


def require_continuous(x: Tensor) -> None:
    """Refuse integers: a density needs continuous data.

    Raises:
        TypeError: says how to dequantise.
    """
    if not x.is_floating_point():
        raise DataTypeError(
            f"x is of {x.dtype}, and a density needs continuous data: ",
            'pass vae2aef.dequantize(x), or wrap with preprocess=["dequantize", ...]',
        )


def dequantize(x: Tensor, bins: int = 256, generator: torch.Generator | None = None) -> Tensor:
    """Turn integer grey levels into continuous data: `(x + u) / bins`, u uniform on [0, 1).

    Args:
        x: whole numbers in `0 .. bins - 1`, any shape; integers, or floats that hold whole numbers.
        bins: the number of grey levels.
        generator: the random generator to draw u from; torch's own by default.

    Returns:
        Data in [0, 1), of the shape of `x`; in torch's default dtype if `x` is of integers.

    Raises:
        ValueError: if a value is outside `0 .. bins - 1`.

    References:
        Paper, appendix D.4; Theis, van den Oord, Bethge, *A note on the evaluation of generative models*.
    """
    if not torch.compiler.is_compiling() and x.numel() and (x.min() < 0 or x.max() > bins - 1):
        raise ValueError(
            f"expected whole numbers in 0 .. {bins - 1}, got values from {x.min().item()} to {x.max().item()}; "
            "pass the right `bins`"
        )
    levels = x if x.is_floating_point() else x.to(torch.get_default_dtype())
    noise = torch.rand(levels.shape, generator=generator, dtype=levels.dtype, device=levels.device)
    return ((levels + noise) / bins).clamp(max=1 - torch.finfo(levels.dtype).eps)


class Dequantize(Bijection):
    """Dequantise integer tensors with fresh noise at every call; floating point data passes unchanged.

    Its log-determinant is zero, since densities are those of data on the unit interval. It is no bijection
    in the strict sense: `inverse` returns continuous data.

    Args:
        bins: the number of grey levels.
    """

    def __init__(self, bins: int = 256) -> None:
        super().__init__()
        self.bins = bins

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Map grey levels `(batch, *event)` to [0, 1); zeros of shape `(batch,)` as log-determinant."""
        y = x if x.is_floating_point() else dequantize(x, self.bins)
        return y, y.new_zeros(y.shape[0])

    def inverse(self, y: Tensor) -> tuple[Tensor, Tensor]:
        """Return `y` in [0, 1) as it is, and zeros of shape `(batch,)`."""
        return y, y.new_zeros(y.shape[0])

    def extra_repr(self) -> str:
        """Say the number of grey levels."""
        return f"bins={self.bins}"


def bins_of(module: nn.Module) -> int | None:
    """Return the grey levels that the first `Dequantize` inside a module takes; None if there is none."""
    return next((step.bins for step in module.modules() if isinstance(step, Dequantize)), None)


class Logit(Bijection):
    """The logit of shrunken data, y = logit(lam + (1 - 2 lam) x), for x in [0, 1] (Eq. 19).

    A value outside [0, 1] becomes NaN, which the loss reports by name; it never passes silently.

    Args:
        lam: how far to stay from 0 and 1; the paper takes 1e-6 (MNIST-like) and 0.05 (colour images).

    Raises:
        ValueError: if `lam` is not in (0, 0.5).

    Example:
        >>> logit = Logit(0.05)
        >>> y, log_det = logit(torch.tensor([[0.0, 0.5, 1.0]]))
        >>> y
        tensor([[-2.9444,  0.0000,  2.9444]])
        >>> logit.inverse(y)[0].round(decimals=4).abs()
        tensor([[0.0000, 0.5000, 1.0000]])
    """

    def __init__(self, lam: float = 0.05) -> None:
        super().__init__()
        if not 0 < lam < 0.5:
            raise ValueError(f"expected lam in (0, 0.5), got {lam}; the paper uses 1e-6 and 0.05")
        self.lam = lam

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Map `x` in [0, 1]; see `Bijection.forward` for shapes. Raises TypeError for integers."""
        require_continuous(x)
        x = torch.where((x >= 0) & (x <= 1), x, math.nan)
        inside = self.lam + (1 - 2 * self.lam) * x
        # 1 - inside from 1 - x, which keeps its digits near x = 1.
        outside = self.lam + (1 - 2 * self.lam) * (1 - x)
        log_p, log_q = inside.log(), outside.log()
        return log_p - log_q, sum_event(math.log(1 - 2 * self.lam) - log_p - log_q)

    def inverse(self, y: Tensor) -> tuple[Tensor, Tensor]:
        """Map back. A mean far out in logit space lands outside [0, 1], by at most lam / (1 - 2 lam)."""
        log_p, log_q = torch.nn.functional.logsigmoid(y), torch.nn.functional.logsigmoid(-y)
        x = (log_p.exp() - self.lam) / (1 - 2 * self.lam)
        return x, sum_event(log_p + log_q - math.log(1 - 2 * self.lam))

    def extra_repr(self) -> str:
        """Say lambda."""
        return f"lam={self.lam:g}"


class Standardize(Bijection):
    """Shift and scale by stored statistics: y = (x - shift) / scale.

    Made once from data with `fit`, an explicit step; the statistics are buffers and travel with
    `state_dict` and `.to()`.

    Args:
        shift: broadcastable to `(batch, *event)`.
        scale: positive, broadcastable likewise.

    Raises:
        ValueError: if a scale is not positive and finite.
    """

    shift: Tensor
    scale: Tensor

    def __init__(self, shift: Tensor, scale: Tensor) -> None:
        super().__init__()
        if not bool((torch.isfinite(scale) & (scale > 0)).all() & torch.isfinite(shift).all()):
            raise ValueError("expected finite shifts and positive, finite scales")
        self.register_buffer("shift", shift.detach().clone())
        self.register_buffer("scale", scale.detach().clone())

    @classmethod
    def fit(cls, x: Tensor, per: str = "all", floor: float = 1e-3) -> "Standardize":
        """Take mean and standard deviation from data.

        Args:
            x: shape `(batch, *event)`.
            per: `"all"` (one number each), `"channel"` (one for each index of the first event dimension) or
                `"feature"`.
            floor: smallest scale, for features that do not vary.

        Raises:
            ValueError: if `per` is unknown, or `x` is empty or not finite.
            TypeError: if `x` holds integers.
        """
        require_continuous(x)
        if per not in ("all", "channel", "feature"):
            raise ValueError(f'expected per="all", "channel" or "feature", got {per!r}')
        if not x.numel() or not bool(torch.isfinite(x).all()):
            raise ValueError(f"cannot take statistics: data of shape {tuple(x.shape)} is empty or not finite")
        kept = {"all": (), "channel": (1,), "feature": tuple(range(1, x.dim()))}[per]
        dims = [d for d in range(x.dim()) if d not in kept]
        x = at_least_float32(x)
        shift, var = x.mean(dims, keepdim=True), x.var(dims, correction=0, keepdim=True)
        return cls(shift[0], var.sqrt().clamp(min=floor)[0])

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Standardise; see `Bijection.forward` for shapes. Raises TypeError for integers."""
        require_continuous(x)
        return (x - self.shift) / self.scale, -self._log_det(x)

    def inverse(self, y: Tensor) -> tuple[Tensor, Tensor]:
        """Undo; see `Bijection.inverse` for shapes."""
        return y * self.scale + self.shift, self._log_det(y)

    def _log_det(self, x: Tensor) -> Tensor:
        return self.scale.log().expand(x.shape[1:]).sum().expand(x.shape[0])

    def extra_repr(self) -> str:
        """Say how many statistics are stored."""
        return f"{self.scale.numel()} of each"


def bits_per_dim(log_prob: Tensor, event_shape: Sequence[int], bins: int = 256, width: float = 1.0) -> Tensor:
    """Convert log densities to bits per dimension; lower is better.

    `-log_prob / (N log 2) + log2(bins / width)`: with `bins=256`, bits per value of 8-bit data; with `bins=1`,
    the differential entropy in bits.

    Args:
        log_prob: nats, any shape.
        event_shape: shape of one event, N values in all.
        bins: grey levels of the data before dequantisation.
        width: length of the interval on which the data live: 1 for [0, 1], 2 for [-1, 1].

    Raises:
        ValueError: if the event is empty, or `bins` or `width` is not positive.

    Example:
        The uniform density on [0, 1] spends 8 bits on every 8-bit value:

        >>> bits_per_dim(torch.zeros(1), (1, 28, 28), bins=256)
        tensor([8.])
    """
    if numel(event_shape) == 0 or bins < 1 or not width > 0:
        raise ValueError(
            f"expected an event with values, bins >= 1 and width > 0, got {tuple(event_shape)}, {bins} and {width}"
        )
    return -log_prob / (numel(event_shape) * math.log(2)) + math.log2(bins / width)
