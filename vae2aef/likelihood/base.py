"""What a likelihood is: a module that makes of the decoder's output the density of one batch of data."""

import math
from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vae2aef.errors import WrapError
from vae2aef.protocols import ResidualDensity

MIN_SCALE = 1e-5
"""Floor of every scale of a likelihood, in units of the (preprocessed) data."""

SPEED = 10.0
"""A learned scale is softplus(10 * parameter). Adam moves a parameter by about its learning rate a step, and pixels
that hardly vary need a scale some fifty times smaller than where it starts: without the factor that takes thousands of
steps at 1e-3, and the likelihood of a short run shows little else."""

SCALES = ("learned", "channel", "shared", "decoder")


class Likelihood(nn.Module):
    """p(x | z). `given` makes of the decoder's output an object with `log_prob`, `sample` and `mean`.

    Attributes:
        discrete: whether it is a probability of whole numbers or classes: x is then scored as it is, and needs no
            dequantisation.
        per_value: how many numbers of the decoder's output belong to each value of x; None if that is not fixed.
    """

    discrete: bool = False
    per_value: int | None = 1

    def given(self, shape: Sequence[int], output: Tensor, *more: Tensor) -> Any:
        """Return the density of data of one batch.

        Args:
            shape: of the data, `(batch, *event)`.
            output: the decoder's first output, shaped like the data or flattened.
            *more: its further outputs.

        Returns:
            A `torch.distributions.Distribution`, or what is like one: `log_prob(x)` of each value, `(batch, *event)`
            in nats; `sample()` and `mean`, `(batch, *event)`.
        """
        raise NotImplementedError(f"{type(self).__name__} has no given()")

    def read(self, x: Tensor) -> Tensor:
        """Return data as encoder, features and `log_prob` take them, `(batch, *event)` to the same."""
        return x

    def check(self, x: Tensor, exact: bool = False) -> None:
        """Look whether data, as `read` returns them, can be scored at all.

        Args:
            x: data, `(batch, *event)`.
            exact: whether the result is to be a log-likelihood, and not a training loss alone.

        Raises:
            ValueError: says what was expected, what came, and what to do.
        """

    def features(self, event_shape: Sequence[int]) -> nn.Module | None:
        """Return what the linear features of an AEF read of x instead of x itself; None for x."""
        return None


class Scaled(Likelihood):
    """A likelihood with a scale `s + 1e-5`: learned, fixed or the decoder's.

    Args:
        event_shape: shape of one event of data.
        scale: `"learned"` (one scale a feature, softplus of a parameter), `"channel"` (one for each index of the first
            event dimension), `"shared"` (one for all), a positive number (fixed), or `"decoder"` (the decoder's
            second output).
        initial_scale: where a learned scale starts.

    Raises:
        ValueError: for an unknown scale, or a number that is not positive.
        TypeError: for True or False.
    """

    fixed: Tensor

    def __init__(self, event_shape: Sequence[int], scale: str | float = "learned", initial_scale: float = 1.0) -> None:
        super().__init__()
        expected = 'expected a scale "learned", "channel", "shared", "decoder" or a number'
        if isinstance(scale, bool):
            raise TypeError(f"{expected}; got {scale}")
        if not isinstance(scale, str) and not (scale > 0 and math.isfinite(scale)):
            raise ValueError(f"expected a positive residual scale, got {scale}")
        if isinstance(scale, str) and scale not in SCALES:
            raise ValueError(f"{expected}; got {scale!r}")
        self.event_shape = torch.Size(event_shape)
        self.kind = scale if isinstance(scale, str) else "fixed"
        if self.kind == "fixed":
            self.register_buffer("fixed", torch.tensor(float(scale)))
        elif self.kind != "decoder":
            raw = initial_scale + math.log(-math.expm1(-initial_scale))  # softplus(raw) = initial_scale
            self.raw_scale = nn.Parameter(torch.full(self._scale_shape(), raw / SPEED))

    def _scale_shape(self) -> tuple[int, ...]:
        ones = (1,) * max(len(self.event_shape), 1)
        return {"learned": tuple(self.event_shape), "channel": (*self.event_shape[:1], *ones[1:]), "shared": ones}[
            self.kind
        ]

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
                    'use likelihood="learned", residual=None',
                )
            return torch.where(decoder_scale < 0, torch.nan, decoder_scale).clamp(min=MIN_SCALE)
        return F.softplus(SPEED * self.raw_scale) + MIN_SCALE

    def extra_repr(self) -> str:
        """Say where the scale comes from."""
        return f"scale={self.kind}"


class AroundMean:
    """r(x - f(z)): a density of residuals around the decoder's mean (Eq. 10).

    Args:
        residual: density of what stands between the data and the mean.
        mean: f(z), `(batch, *event)`.
        decoder_scale: the decoder's own scale, if it has one.
    """

    def __init__(self, residual: ResidualDensity, mean: Tensor, decoder_scale: Tensor | None = None) -> None:
        self.residual, self.mean, self.decoder_scale = residual, mean, decoder_scale

    def log_prob(self, x: Tensor) -> Tensor:
        """Log density of each value, `(batch, *event)`, nats."""
        return self.residual.log_prob(x - self.mean, self.decoder_scale)

    def sample(self) -> Tensor:
        """Draw data, `(batch, *event)`."""
        return self.mean + self.residual.sample(self.mean, self.decoder_scale)

    def information(self) -> tuple[Tensor, Tensor] | None:
        """See `information`: known for our own families alone."""
        return (self.mean, self.residual.scale(self.decoder_scale)) if isinstance(self.residual, Scaled) else None


def observed_density(likelihood: Any, shape: Sequence[int], outputs: Sequence[Tensor], own: Any = None) -> Any:
    """Return p(x | z) for one batch.

    Args:
        likelihood: a `Likelihood`; a density of residuals (`vae2aef.protocols.ResidualDensity`); None for `own`.
        shape: of the data, `(batch, *event)`.
        outputs: what the decoder returns.
        own: the VAE's own density of x given z.
    """
    if likelihood is None:
        return in_shape(own, shape)
    if isinstance(likelihood, Likelihood):
        return likelihood.given(shape, *outputs)
    return around_mean(likelihood, shape, *outputs)


def around_mean(
    residual: ResidualDensity, shape: Sequence[int], mean: Tensor, scale: Tensor | None = None, *_: Tensor
) -> Any:
    """Return r(x - f(z)), mean and scale in the shape of the data."""
    return AroundMean(residual, mean.reshape(shape), None if scale is None else scale.expand_as(mean).reshape(shape))


def in_shape(distribution: Any, shape: Sequence[int]) -> Any:
    """Return a distribution of flattened data, or with channels of size one left out, as one of data of this shape.

    One in `Independent` is taken out of it, so that each value has a density.
    """
    if isinstance(distribution, torch.distributions.Independent):
        return in_shape(distribution.base_dist, shape)
    if not isinstance(distribution, torch.distributions.Distribution):
        return distribution
    own = (*distribution.batch_shape, *distribution.event_shape)
    if not own and len(shape):  # those of scvi-tools do not say
        own = tuple(distribution.mean.shape)
    return distribution if own == tuple(shape) else _InShape(distribution, shape, own)


class _InShape:
    """A distribution seen in another shape."""

    def __init__(self, distribution: Any, shape: Sequence[int], own: tuple[int, ...]) -> None:
        self.distribution, self.shape, self.own = distribution, tuple(shape), own

    def log_prob(self, x: Tensor) -> Tensor:
        """Log density of each value, or of each row, nats; the batch first."""
        each = self.distribution.log_prob(x.reshape(self.own))
        return each if len(self.distribution.event_shape) else each.reshape(self.shape)

    def sample(self) -> Tensor:
        """Draw data, `(batch, *event)`."""
        return self.distribution.sample().reshape(self.shape)

    @property
    def mean(self) -> Tensor:
        """The mean, `(batch, *event)`."""
        return self.distribution.mean.reshape(self.shape)

    def information(self) -> tuple[Tensor, Tensor] | None:
        """See `information`."""
        return information(self.distribution)


def information(density: Any) -> tuple[Tensor, Tensor] | None:
    """Return a function a(z) of the density's parameters, and s: J^T S^-2 J is near or below its Fisher information.

    J is the Jacobian of a, S the diagonal of s. For every density the mean and the standard deviation of x will do: by
    the Cramer-Rao bound it is then at most the information. Some know better.

    Returns:
        Shapes `(batch, ...)` and broadcastable; None where it is not known.
    """
    if hasattr(density, "information"):
        return density.information()
    if isinstance(density, torch.distributions.Independent):
        return information(density.base_dist)
    if not isinstance(density, torch.distributions.Distribution) or len(density.event_shape):
        return None  # the values of an event may depend on each other
    try:
        mean, variance = density.mean, density.variance
    except NotImplementedError:
        return None
    sound = bool(mean.isfinite().all()) and bool((variance > 0).all()) and bool(variance.isfinite().all())
    return (mean, variance.sqrt()) if sound else None
