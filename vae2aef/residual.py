"""Densities r of the residual delta = x - f(z), with a learnable scale (paper, section 3.1)."""

import math
from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vae2aef.errors import WrapError

MIN_SCALE = 1e-5
"""Floor of every residual scale, in units of the (preprocessed) data."""

SPEED = 10.0
"""A learned scale is softplus(10 * parameter). Adam moves a parameter by about its learning rate a step, and pixels
that hardly vary need a scale some fifty times smaller than where it starts: without the factor that takes thousands of
steps at 1e-3, and the likelihood of a short run shows little else."""


def gaussian(standardised: Tensor) -> Tensor:
    """Log density of the standard normal, elementwise, nats."""
    return -0.5 * (standardised.square() + math.log(2 * math.pi))


def laplace(standardised: Tensor) -> Tensor:
    """Log density of the Laplace distribution of scale 1, elementwise, nats."""
    return -standardised.abs() - math.log(2.0)


def student_t(standardised: Tensor, df: float = 4.0) -> Tensor:
    """Log density of Student's t of scale 1 and `df` degrees of freedom, elementwise, nats."""
    normaliser = math.lgamma(0.5 * (df + 1)) - math.lgamma(0.5 * df) - 0.5 * math.log(math.pi * df)
    return normaliser - 0.5 * (df + 1) * torch.log1p(standardised.square() / df)


FAMILIES: dict[str, Callable[[Tensor], Tensor]] = {
    "gaussian": gaussian,
    "laplace": laplace,
    "student_t": student_t,
}


class Residual(nn.Module):
    """A density of residuals, independent from feature to feature, with the scale `s + 1e-5`.

    Any module with the same `log_prob` and `sample` can stand in its place.

    Args:
        event_shape: shape of one event of data.
        scale: `"learned"` (one scale a feature, softplus of a parameter), `"shared"` (one for all),
            a positive number (fixed), or `"decoder"` (the decoder's second output, handed to `log_prob`).
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

    fixed: Tensor

    def __init__(
        self,
        event_shape: Sequence[int],
        scale: str | float = "learned",
        family: str = "gaussian",
        initial_scale: float = 1.0,
        df: float = 4.0,
    ) -> None:
        super().__init__()
        if family not in FAMILIES:
            raise ValueError(f"expected a residual family {', '.join(FAMILIES)}; got {family!r}")
        if isinstance(scale, bool):
            raise TypeError(f'expected a scale "learned", "shared", "decoder" or a number; got {scale}')
        if not isinstance(scale, str) and not (scale > 0 and math.isfinite(scale)):
            raise ValueError(f"expected a positive residual scale, got {scale}")
        if isinstance(scale, str) and scale not in ("learned", "shared", "decoder"):
            raise ValueError(f'expected a scale "learned", "shared", "decoder" or a number; got {scale!r}')
        if not (df > 0 and math.isfinite(df)):
            raise ValueError(f"expected positive degrees of freedom, got df={df}")
        self.event_shape = torch.Size(event_shape)
        self.df = float(df)
        self.family = family
        self.kind = scale if isinstance(scale, str) else "fixed"
        if scale in ("learned", "shared"):
            shape = self.event_shape if scale == "learned" else (1,) * max(len(self.event_shape), 1)
            raw = initial_scale + math.log(-math.expm1(-initial_scale))  # softplus(raw) = initial_scale
            self.raw_scale = nn.Parameter(torch.full(tuple(shape), raw / SPEED))
        elif not isinstance(scale, str):
            self.register_buffer("fixed", torch.tensor(float(scale)))

    def scale(self, decoder_scale: Tensor | None = None) -> Tensor:
        """Return the scale, broadcastable to `(batch, *event)`, in units of the (preprocessed) data.

        A negative scale of the decoder becomes NaN, which the loss reports by name.

        Args:
            decoder_scale: the decoder's second output, shape `(batch, *event)`; for `"decoder"` only.

        Raises:
            WrapError: if the scale is the decoder's and none is given.
        """
        if self.kind == "fixed":
            return self.fixed
        if self.kind == "decoder":
            if decoder_scale is None:
                raise WrapError(
                    'residual="decoder" needs a decoder that returns (mean, scale), but it returned the mean alone; ',
                    'use residual="learned"',
                )
            return torch.where(decoder_scale < 0, torch.nan, decoder_scale).clamp(min=MIN_SCALE)
        return F.softplus(SPEED * self.raw_scale) + MIN_SCALE

    def log_prob(self, delta: Tensor, decoder_scale: Tensor | None = None) -> Tensor:
        """Log density in nats of every single residual.

        Args:
            delta: residuals, shape `(batch, *event)`.
            decoder_scale: as in `scale`.

        Returns:
            Shape `(batch, *event)`: not summed, so that the partition family can leave out the core.
        """
        scale = self.scale(decoder_scale)
        unit = delta / scale
        value = student_t(unit, self.df) if self.family == "student_t" else FAMILIES[self.family](unit)
        return value - scale.log()

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
        return f"{self.family}, scale={self.kind}"
