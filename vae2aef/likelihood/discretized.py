"""Likelihoods of grey levels: the mass of a continuous density in the bin of each level.

The lowest bin takes the lower tail and the highest the upper one, so that the levels' probabilities add up to one.
"""

import math
from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from vae2aef.likelihood.base import Scaled


class Grid(Scaled):
    """Data on `bins` levels from `low` to `high`, equally spaced.

    Integers 0 .. bins - 1 are read as levels; floating point data are these levels already.

    Args:
        event_shape: shape of one event of data.
        scale: of the density, in units of the data; as for `Scaled`.
        bins: how many levels.
        low: the lowest level.
        high: the highest level.
        initial_scale: where a learned scale starts.

    Raises:
        ValueError: for fewer than two bins, or `high` not above `low`.
    """

    discrete = True

    def __init__(
        self,
        event_shape: Sequence[int],
        scale: str | float = "learned",
        bins: int = 256,
        low: float = 0.0,
        high: float = 1.0,
        initial_scale: float = 0.3,
    ) -> None:
        super().__init__(event_shape, scale, initial_scale)
        if bins < 2 or not high > low:
            raise ValueError(f"expected at least 2 bins from low to high > low, got {bins} from {low} to {high}")
        self.bins, self.low, self.high = bins, low, high

    @property
    def width(self) -> float:
        """The distance between levels."""
        return (self.high - self.low) / (self.bins - 1)

    def read(self, x: Tensor) -> Tensor:
        """Return integers as levels."""
        return x if x.is_floating_point() else self.low + self.width * x.to(torch.get_default_dtype())

    def check(self, x: Tensor, exact: bool = False) -> None:
        """Refuse data off the grid; see `Likelihood.check`."""
        steps = (x.double() - self.low) / self.width
        off = ((steps - steps.round()).abs() > 1e-2) | (steps < -0.5) | (steps > self.bins - 0.5)
        if bool(off.any()):
            raise ValueError(
                f"{type(self).__name__}: expected data on {self.bins} levels from {self.low:g} to {self.high:g} "
                f"(integers 0 to {self.bins - 1}, or floats), got {x[off][0].item():.6g}. Data must not be "
                "dequantised; another range or number of levels is said by low=, high= and bins="
            )

    def edges(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Return which of x lie in the lowest bin, and which in the highest."""
        half = 0.5 * self.width
        return x < self.low + half, x > self.high - half

    def snap(self, x: Tensor) -> Tensor:
        """Return the levels nearest to values."""
        steps = ((x - self.low) / self.width).round().clamp(0, self.bins - 1)
        return self.low + self.width * steps

    def extra_repr(self) -> str:
        """Say the levels."""
        return f"bins={self.bins}, low={self.low:g}, high={self.high:g}, {super().extra_repr()}"


class _OnGrid:
    """One batch of a discretised density."""

    def __init__(self, grid: "DiscretizedLogistic | DiscretizedGaussian", location: Tensor, scale: Tensor) -> None:
        self.grid, self.location, self.scale = grid, location, scale

    @property
    def mean(self) -> Tensor:
        """The mean of the levels, to half a level: that of the density with what is beyond both ends at the ends.

        The location may lie far beyond them: it is how a decoder says that a value is surely black.
        """
        grid = self.grid
        above = [grid.mean_above((self.location - end) / self.scale) for end in (grid.low, grid.high)]
        return grid.low + self.scale * (above[0] - above[1])

    def log_prob(self, x: Tensor) -> Tensor:
        """Log probability of each value, `(batch, *event)`, nats."""
        half = 0.5 * self.grid.width
        above, below = (x + half - self.location) / self.scale, (x - half - self.location) / self.scale
        return self.grid.log_mass(below, above, *self.grid.edges(x))

    def sample(self) -> Tensor:
        """Draw levels, `(batch, *event)`."""
        return self.grid.snap(self.location + self.scale * self.grid.draw(self.location))

    def information(self) -> tuple[Tensor, Tensor]:
        """See `vae2aef.likelihood.base.information`: that of the density cut off at both ends, less what bins blur."""
        half, grid = 0.5 * self.grid.width, self.grid
        ends = (grid.low + half - self.location) / self.scale, (grid.high - half - self.location) / self.scale
        blurred = (self.scale.square() + grid.width**2 / 12).sqrt()
        return self.location, blurred * grid.cut_off(*ends).clamp(min=1e-8).rsqrt()


class DiscretizedLogistic(Grid):
    """The mass of a logistic density of scale s in each bin.

    See `Grid` for the arguments.

    References:
        Kingma et al., *Improved variational inference with inverse autoregressive flow*, NeurIPS 2016, appendix.

    Example:
        >>> likelihood = DiscretizedLogistic((1,), 0.1, bins=4)
        >>> levels = torch.arange(4).reshape(4, 1)
        >>> density = likelihood.given((4, 1), torch.full((4, 1), 0.4))
        >>> density.log_prob(likelihood.read(levels)).exp().sum()
        tensor(1.)
    """

    def cut_off(self, low: Tensor, high: Tensor) -> Tensor:
        """Return the Fisher information, for its location, of a density of scale 1 of which all beyond is one event."""
        a, b = torch.sigmoid(low), torch.sigmoid(high)
        return ((1 - 2 * a) ** 3 - (1 - 2 * b) ** 3) / 6 + a * (1 - a) ** 2 + b**2 * (1 - b)

    def mean_above(self, location: Tensor) -> Tensor:
        """Return the mean of max(0, y) for y of scale 1 around a location."""
        return F.softplus(location)

    def given(self, shape: Sequence[int], output: Tensor, *more: Tensor) -> _OnGrid:
        """See `Likelihood.given`."""
        return _grid_density(self, shape, output, more)

    def log_mass(self, below: Tensor, above: Tensor, lowest: Tensor, highest: Tensor) -> Tensor:
        """Return log(F(above) - F(below)), F(below) being 0 in the lowest bin and F(above) 1 in the highest.

        F(b) - F(a) = F(b) (1 - F(a)) (1 - exp(a - b)), whose logarithms keep their digits far out.
        """
        return logistic_log_mass(below, above, lowest, highest)

    def draw(self, like: Tensor) -> Tensor:
        """Draw from the logistic density of scale 1."""
        return _logistic_noise(like)


class DiscretizedGaussian(Grid):
    """The mass of a Gaussian density of standard deviation s in each bin.

    See `Grid` for the arguments.

    References:
        Ho, Jain, Abbeel, *Denoising diffusion probabilistic models*, NeurIPS 2020, Eq. 13.
    """

    def cut_off(self, low: Tensor, high: Tensor) -> Tensor:
        """See `DiscretizedLogistic.cut_off`."""

        def inside(t: Tensor) -> Tensor:
            return torch.special.ndtr(t) - t * _normal(t)

        def outside(t: Tensor) -> Tensor:
            return _normal(t) ** 2 / torch.special.ndtr(t).clamp(min=1e-30)

        return inside(high) - inside(low) + outside(low) + outside(-high)

    def mean_above(self, location: Tensor) -> Tensor:
        """See `DiscretizedLogistic.mean_above`."""
        return location * torch.special.ndtr(location) + _normal(location)

    def given(self, shape: Sequence[int], output: Tensor, *more: Tensor) -> _OnGrid:
        """See `Likelihood.given`."""
        return _grid_density(self, shape, output, more)

    def log_mass(self, below: Tensor, above: Tensor, lowest: Tensor, highest: Tensor) -> Tensor:
        """See `DiscretizedLogistic.log_mass`; of the two tails the lower is taken, which keeps its digits."""
        flip = above + below > 0
        a, b = torch.where(flip, -above, below), torch.where(flip, -below, above)
        log_a, log_b = torch.special.log_ndtr(a), torch.special.log_ndtr(b)
        inside = log_b + _log1mexp((log_b - log_a).clamp(min=torch.finfo(log_b.dtype).tiny))
        value = torch.where(lowest, torch.special.log_ndtr(above), inside)
        return torch.where(highest, torch.special.log_ndtr(-below), value)

    def draw(self, like: Tensor) -> Tensor:
        """Draw from the standard normal."""
        return torch.randn_like(like)


def _grid_density(grid: Any, shape: Sequence[int], output: Tensor, more: Sequence[Tensor]) -> _OnGrid:
    own = more[0].expand_as(output).reshape(tuple(shape)) if grid.kind == "decoder" and more else None
    return _OnGrid(grid, output.reshape(tuple(shape)), grid.scale(own))


def logistic_log_mass(below: Tensor, above: Tensor, lowest: Tensor, highest: Tensor) -> Tensor:
    """See `DiscretizedLogistic.log_mass`."""
    left = torch.where(lowest, 0.0, F.logsigmoid(-below))
    right = torch.where(highest, 0.0, F.logsigmoid(above))
    between = _log1mexp((above - below).clamp(min=torch.finfo(above.dtype).tiny))
    return left + right + torch.where(lowest | highest, 0.0, between)


def _normal(x: Tensor) -> Tensor:
    return (-0.5 * x.square()).exp() / math.sqrt(2 * math.pi)


def _log1mexp(x: Tensor) -> Tensor:
    """log(1 - exp(-x)) for x > 0 (Maechler, 2012)."""
    small = x < math.log(2.0)
    near = torch.where(small, x, 1.0)
    far = torch.where(small, 1.0, x)
    return torch.where(small, (-torch.expm1(-near)).log(), torch.log1p(-(-far).exp()))


def _logistic_noise(like: Tensor) -> Tensor:
    u = torch.rand_like(like).clamp(min=torch.finfo(like.dtype).tiny, max=1 - torch.finfo(like.dtype).eps)
    return u.log() - (-u).log1p()
