"""An estimate of log p(x) with what speaks for it: error, effective sample size, Pareto k-hat, and a warning."""

import math
import warnings
from typing import NamedTuple

import torch
from torch import Tensor

from vae2aef.pareto import pareto_tail, tail_length

FEWEST_EFFECTIVE = 10.0
"""Below this effective sample size the delta method does not hold: the error of log p-hat has no normal law."""

LARGEST_K = 0.7
"""Above this Pareto k-hat neither the value nor an error can be trusted (Vehtari et al., 2024)."""

SMALL_TAIL = 0.1
"""A tail that exceeds its cutoff by less than this share of the sum of all weights, as drawn and as its fit expects,
does little harm whatever its k-hat: nearly equal weights have a shape too, and it can be any. The error is then that of
the estimate without it and the tail itself."""


class EstimateWarning(UserWarning):
    """Some values of log p(x) rest on too few importance weights: they are probably too low."""


class Mean(NamedTuple):
    """A mean over data.

    Attributes:
        value: nats.
        std_error: of `value`, from the spread between data, which holds that of the estimates; infinite for one
            datum.
    """

    value: float
    std_error: float


class LogProb(NamedTuple):
    """An estimate of log p(x) with its evidence. Its exponential is unbiased, so `value` is too low on average.

    Attributes:
        value: nats, shape `(batch,)`.
        std_error: standard error of `value` from the importance sampling (delta method), nats, `(batch,)`; zero if
            exact, infinite where it cannot be known: in `uncertain` rows.
        effective_sample_size: (sum of weights)^2 / sum of squares, between 1 and K, `(batch,)`; infinite if exact.
        exact: whether `value` is exact (partition family).
        pareto_k: Pareto k-hat, the shape of the tail of the weights, `(batch,)`: up to 0.7 they can be averaged. NaN
            with 20 draws or fewer, which do not tell; minus infinity if exact.
        bound: whether the samples were placed by one rule for all data. Nothing then looked for the mass of each: take
            the value for a lower bound.
    """

    value: Tensor
    std_error: Tensor
    effective_sample_size: Tensor
    exact: bool
    pareto_k: Tensor
    bound: bool = False

    @property
    def uncertain(self) -> Tensor:
        """Rows whose error cannot be known, `(batch,)`, bool.

        Their effective sample size is below 10, or their k-hat is unknown or above 0.7, and the tail it is of more
        than a tenth of all weights.
        """
        return self.std_error.isinf()

    def mean(self) -> Mean:
        """Return the mean over data with its standard error, in nats; warns if it rests on uncertain rows.

        Raises:
            ValueError: if there are no data.
        """
        n = len(self.value)
        if not n:
            raise ValueError("expected at least one datum to take a mean over, got none")
        warn_of(self.uncertain, "this mean of log p(x) rests on")
        spread = float(self.value.std()) / math.sqrt(n) if n > 1 else math.inf
        return Mean(float(self.value.mean()), spread)


def warn_of(rows: Tensor, what: str = "log_prob returned") -> None:
    """Say in plain words how many rows are uncertain, if any are, and what to do."""
    count = int(rows.sum())
    if count:
        warnings.warn(
            f"{what} {count} uncertain value{'s' if count > 1 else ''} of {len(rows)}: Pareto k-hat above 0.7 (or too "
            "few draws to tell) or an effective sample size below 10. A few importance weights carry them: they are "
            "probably too low, and their error is unknown. Raise num_samples, pass target_error=..., or take "
            'method="ais" on some rows. `.uncertain` says which',
            EstimateWarning,
            stacklevel=2,
        )


class Sums:
    """What is kept of importance weights, in memory that does not grow with their number.

    Args:
        like: `(batch,)`, for shape and device.
        most: the largest number of draws that is to come.
    """

    def __init__(self, like: Tensor, most: int) -> None:
        self.total = self.squares = torch.full_like(like, -math.inf, dtype=torch.float64)
        self.largest = self.total.new_zeros(0, len(like))
        self.kept, self.draws = tail_length(most) + 1, 0

    def add(self, log_w: Tensor) -> None:
        """Take in log weights `(draws, batch)`."""
        log_w = log_w.double()
        self.total = torch.logaddexp(self.total, log_w.logsumexp(0))
        self.squares = torch.logaddexp(self.squares, (2 * log_w).logsumexp(0))
        both = torch.cat([self.largest, log_w])
        self.largest = both.topk(min(self.kept, len(both)), dim=0).values
        self.draws += len(log_w)

    def rows(self, take: Tensor) -> "Sums":
        """Return those of some rows."""
        part = Sums(self.total[take], 1)
        part.total, part.squares, part.largest = self.total[take], self.squares[take], self.largest[:, take]
        part.kept, part.draws = self.kept, self.draws
        return part

    def evidence(self) -> Tensor:
        """Return value, standard error, effective sample size and k-hat: `(4, batch)`, float64."""
        n = self.draws
        effective = (2 * self.total - self.squares).exp()
        tail = pareto_tail(self.largest, n)
        # Var(mean w) / (mean w)^2 from the same sums as the effective sample size, with K - 1 for the variance.
        relative = (1 / effective - 1 / n).clamp(min=0) * n / max(n - 1, 1)
        share = (tail.log_excess - self.total).exp()
        relative = torch.where(tail.k <= LARGEST_K, relative, relative + share.square())
        known = (effective >= FEWEST_EFFECTIVE) & ((tail.k <= LARGEST_K) | (share <= SMALL_TAIL))
        std_error = torch.where(known, relative.sqrt(), math.inf)
        return torch.stack([self.total - math.log(n), std_error, effective, tail.k])
