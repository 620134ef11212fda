"""Densities r of the residual delta = x - f(z), with a learnable scale (paper, section 3.1)."""

import math
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from vae2aef.likelihood.base import MIN_SCALE, AroundMean, Scaled, around_mean

__all__ = ["FAMILIES", "MIN_SCALE", "Residual"]


def gaussian(unit: Tensor, log_scale: Tensor, df: float) -> Tensor:
    """Log density of scale * `unit` under the normal distribution, elementwise, nats."""
    return torch.addcmul(-0.5 * math.log(2 * math.pi) - log_scale, unit, unit, value=-0.5)


def laplace(unit: Tensor, log_scale: Tensor, df: float) -> Tensor:
    """Log density of scale * `unit` under the Laplace distribution, elementwise, nats."""
    return -math.log(2.0) - log_scale - unit.abs()


def student_t(unit: Tensor, log_scale: Tensor, df: float) -> Tensor:
    """Log density of scale * `unit` under Student's t of `df` degrees of freedom, elementwise, nats."""
    normaliser = math.lgamma(0.5 * (df + 1)) - math.lgamma(0.5 * df) - 0.5 * math.log(math.pi * df)
    return normaliser - log_scale - 0.5 * (df + 1) * torch.log1p(unit.square() / df)


FAMILIES: dict[str, Callable[[Tensor, Tensor, float], Tensor]] = {
    "gaussian": gaussian,
    "laplace": laplace,
    "student_t": student_t,
}


class Residual(Scaled):
    """A density of residuals r(x - f(z)), independent from feature to feature, with the scale `s + 1e-5`.

    Any module with the same `log_prob` and `sample` can stand in its place.

    Args:
        event_shape: shape of one event of data.
        scale: `"learned"` (one a feature), `"channel"`, `"shared"`, a positive number (fixed), or `"decoder"` (the
            decoder's second output); see `Scaled`.
        family: `"gaussian"`, `"laplace"` or `"student_t"`.
        df: degrees of freedom of Student's t.
        initial_scale: where a learned scale starts.

    Raises:
        ValueError: for an unknown family or scale, or a number that is not positive.
        TypeError: for True or False.

    Example:
        >>> Residual((3,), scale=1.0).log_prob(torch.zeros(1, 3))
        tensor([[-0.9189, -0.9189, -0.9189]])
    """

    def __init__(
        self,
        event_shape: Sequence[int],
        scale: str | float = "learned",
        family: str = "gaussian",
        initial_scale: float = 1.0,
        df: float = 4.0,
    ) -> None:
        if family not in FAMILIES:
            raise ValueError(f"expected a residual family {', '.join(FAMILIES)}; got {family!r}")
        super().__init__(event_shape, scale, initial_scale)
        if not (df > 0 and math.isfinite(df)):
            raise ValueError(f"expected positive degrees of freedom, got df={df}")
        self.df = float(df)
        self.family = family

    def given(self, shape: Sequence[int], output: Tensor, *more: Tensor) -> AroundMean:
        """See `vae2aef.likelihood.Likelihood.given`."""
        return around_mean(self, shape, output, *more)

    def log_prob(self, delta: Tensor, decoder_scale: Tensor | None = None) -> Tensor:
        """Log density in nats of every single residual.

        Args:
            delta: residuals, shape `(batch, *event)`.
            decoder_scale: as in `scale`.

        Returns:
            Shape `(batch, *event)`: not summed, so that the partition family can leave out the core.
        """
        scale = self.scale(decoder_scale)
        unit = delta * scale.reciprocal()  # of which autograd makes less work than of a quotient
        return FAMILIES[self.family](unit, scale.log(), self.df)

    def sample(self, mean: Tensor, decoder_scale: Tensor | None = None) -> Tensor:
        """Draw residuals shaped like `mean`, shape `(batch, *event)`."""
        if self.family == "gaussian":
            unit = torch.randn_like(mean)
        else:
            one = torch.ones_like(mean)
            base = (
                torch.distributions.Laplace(0 * one, one, validate_args=False)
                if self.family == "laplace"
                else torch.distributions.StudentT(self.df * one, validate_args=False)
            )
            unit = base.sample()
        return unit * self.scale(decoder_scale)

    def extra_repr(self) -> str:
        """Say the family and where the scale comes from."""
        return f"{self.family}, {super().extra_repr()}"
