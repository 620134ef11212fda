"""Likelihoods of counts: Poisson and negative binomial, with more zeros or without."""

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, distributions, nn

from vae2aef.errors import WrapError
from vae2aef.likelihood.base import Scaled


class _Counts(Scaled):
    """A likelihood of whole numbers from 0 on, whose decoder returns their mean.

    Args:
        event_shape: shape of one event of data.
        scale: of the dispersion, as for `Scaled`.
        log: whether the decoder returns the log of the mean.
        zeros: None, or where the logits of a further mass at zero come from: `"learned"` (one a feature) or
            `"decoder"` (its last output).
    """

    discrete = True

    def __init__(
        self, event_shape: Sequence[int], scale: str | float, log: bool = False, zeros: str | None = None
    ) -> None:
        super().__init__(event_shape, scale)
        if zeros not in (None, "learned", "decoder"):
            raise ValueError(f'expected zeros None, "learned" or "decoder"; got {zeros!r}')
        self.log, self.zeros = log, zeros
        self.per_value = None if "decoder" in (scale, zeros) else 1
        if zeros == "learned":
            self.zero_logits = nn.Parameter(torch.full(tuple(event_shape), -2.0))

    def mean_of(self, shape: Sequence[int], output: Tensor) -> Tensor:
        """Return the mean; a negative one becomes NaN, which the loss reports by name."""
        output = output.reshape(tuple(shape))
        return output.exp() if self.log else torch.where(output < 0, torch.nan, output).clamp(min=1e-10)

    def with_zeros(self, shape: Sequence[int], base: Any, more: Sequence[Tensor]) -> Any:
        """Mix a further mass at zero in, if there is one."""
        if self.zeros is None:
            return base
        if self.zeros == "decoder":
            if not more:
                raise WrapError(
                    f"{type(self).__name__}: expected the decoder to return the logits of further zeros last; got "
                    "one output less. ",
                    'Pass zeros="learned"',
                )
            return ZeroInflated(base, more[-1].reshape(tuple(shape)))
        return ZeroInflated(base, self.zero_logits.expand(tuple(shape)))

    def read(self, x: Tensor) -> Tensor:
        """Return counts as floating point numbers."""
        return x if x.is_floating_point() else x.to(torch.get_default_dtype())

    def check(self, x: Tensor, exact: bool = False) -> None:
        """Refuse what is no count; see `Likelihood.check`."""
        bad = x[(x < 0) | (x != x.round())]
        if bad.numel():
            raise ValueError(f"{type(self).__name__}: expected whole numbers 0, 1, 2, ..., got {bad[0].item():.6g}")

    def features(self, event_shape: Sequence[int]) -> nn.Module:
        """Read log(1 + x): counts span orders of magnitude."""
        return Log1p()


class Poisson(_Counts):
    """Counts of a mean that the decoder returns.

    Args:
        event_shape: shape of one event of data.
        log: whether the decoder returns the log of the mean.
        zeros: see `_Counts`: None, `"learned"` or `"decoder"`.
    """

    def __init__(self, event_shape: Sequence[int], log: bool = False, zeros: str | None = None) -> None:
        super().__init__(event_shape, 1.0, log, zeros)

    def given(self, shape: Sequence[int], output: Tensor, *more: Tensor) -> Any:
        """See `Likelihood.given`."""
        return self.with_zeros(shape, _Poisson(self.mean_of(shape, output), validate_args=False), more)


class _Poisson(distributions.Poisson):
    def information(self) -> tuple[Tensor, Tensor]:
        """See `vae2aef.likelihood.base.information`: 2 sqrt(mean) has the information 1."""
        return 2 * self.rate.sqrt(), torch.ones((), dtype=self.rate.dtype)


class NegativeBinomial(_Counts):
    """Counts of a mean m that the decoder returns, with the variance m + m^2 / theta.

    Args:
        event_shape: shape of one event of data.
        scale: of theta, as for `Scaled`: `"learned"` (one a feature), `"channel"`, `"shared"`, a number, or
            `"decoder"` (its second output).
        log: whether the decoder returns the log of the mean.
        zeros: see `_Counts`: None, `"learned"` or `"decoder"`.

    References:
        Lopez et al., *Deep generative modeling for single-cell transcriptomics*, Nature Methods 2018.
    """

    def __init__(
        self, event_shape: Sequence[int], scale: str | float = "learned", log: bool = False, zeros: str | None = None
    ) -> None:
        super().__init__(event_shape, scale, log, zeros)

    def given(self, shape: Sequence[int], output: Tensor, *more: Tensor) -> Any:
        """See `Likelihood.given`."""
        mean = self.mean_of(shape, output)
        own = more[0].reshape(tuple(shape)) if self.kind == "decoder" and more else None
        theta = self.scale(own).to(mean.dtype)
        logits = mean.log() - theta.log()
        base = distributions.NegativeBinomial(theta.expand_as(mean), logits=logits, validate_args=False)
        return self.with_zeros(shape, base, more)


class ZeroInflated:
    """A distribution of counts with a further mass at zero.

    Args:
        base: a distribution, `(batch, *event)`.
        logits: of the further mass, the same shape.
    """

    def __init__(self, base: Any, logits: Tensor) -> None:
        self.base, self.logits = base, logits

    def log_prob(self, x: Tensor) -> Tensor:
        """Log probability of each value, `(batch, *event)`, nats."""
        some = F.logsigmoid(-self.logits) + self.base.log_prob(x)
        return torch.where(x == 0, torch.logaddexp(F.logsigmoid(self.logits).expand_as(some), some), some)

    def sample(self) -> Tensor:
        """Draw data, `(batch, *event)`."""
        return self.base.sample() * torch.bernoulli(torch.sigmoid(-self.logits))

    @property
    def mean(self) -> Tensor:
        """The mean, `(batch, *event)`."""
        return self.base.mean * torch.sigmoid(-self.logits)

    def information(self) -> tuple[Tensor, Tensor]:
        """See `vae2aef.likelihood.base.information`: mean and standard deviation."""
        keep = torch.sigmoid(-self.logits)
        variance = keep * (self.base.variance + (1 - keep) * self.base.mean.square())
        return self.mean, variance.clamp(min=1e-12).sqrt()


class Log1p(nn.Module):
    """log(1 + x), elementwise."""

    def forward(self, x: Tensor) -> Tensor:
        """Return the logarithm of one more than each value."""
        return x.log1p()
