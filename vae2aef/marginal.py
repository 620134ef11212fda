"""The marginal likelihood p(x) = int p(x, w) dw by importance sampling (Eq. 17-18, appendix C).

    log p(x) ~ log 1/K sum_k p(x, w_k) / q(w_k | x),    w_k ~ q(w | x) = N(h(x), L L^T)

The marginal equals int p0(z) p(x | z) dz: encoder, features and core flow only place the samples. So a VAE and
an AEF are compared by one estimator. The average inside the logarithm makes it a lower bound on log p(x) in
expectation, tight when the effective sample size is large.
"""

import math
from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import Tensor

from vae2aef.batch import Batch
from vae2aef.case import Case
from vae2aef.errors import NonFiniteError
from vae2aef.laplace import LaplaceSampler
from vae2aef.modes import evaluation_mode, without_gradients
from vae2aef.proposals import Proposal, tune
from vae2aef.tensors import numel

if TYPE_CHECKING:
    from vae2aef.aef import AEF

__all__ = ["LogProb", "Proposal", "log_prob", "tune"]

LATENT_BLOCK = 8
"""How many times more latents than data are held at once: flows are cheap, and faster in large batches."""


class LogProb(NamedTuple):
    """An estimate of log p(x) with its error.

    Attributes:
        value: nats, shape `(batch,)`.
        std_error: standard error of `value` from the importance sampling (delta method), nats, `(batch,)`;
            zero if exact.
        effective_sample_size: (sum of weights)^2 / sum of squares, between 1 and K, `(batch,)`; infinite if
            exact. When it is small, `value` is too low on average and `std_error` is optimistic.
        exact: whether `value` is exact (partition family).
    """

    value: Tensor
    std_error: Tensor
    effective_sample_size: Tensor
    exact: bool


@without_gradients
def log_prob(
    aef: "AEF",
    x: Tensor,
    cond: tuple = (),
    kwargs: dict[str, Any] | None = None,
    num_samples: int = 128,
    proposal: "Proposal | str | None" = None,
    chunk_size: int | None = None,
) -> LogProb:
    """Estimate log p(x) in nats, in `eval()` mode and without gradients.

    Args:
        aef: the model.
        x: data, shape `(batch, *event)`.
        cond: conditions; tensors with the leading size of the batch are repeated for each draw.
        kwargs: conditions by name.
        num_samples: K, importance samples for each datum.
        proposal: where to draw them. None tunes one on the first 64 rows of `x`; tuning uses other draws than
            the estimate, so the estimate of p(x) stays unbiased. `"laplace"` fits a Gaussian to the posterior of
            each datum: about 6 D decoder passes more (at most 256 latents), and a far larger effective sample size.
        chunk_size: most decoder rows at once. Memory does not depend on K. By default the batch's own size, or
            more if the data is small (2^15 values in all).

    Raises:
        ValueError: if K or `chunk_size` is not positive, `x` has the wrong shape, or the proposal is unknown or
            not possible for this model.
        NonFiniteError: if a value is not finite; names the rows.
    """
    if num_samples < 1 or (chunk_size is not None and chunk_size < 1):
        raise ValueError(f"expected num_samples and chunk_size of at least 1, got {num_samples}, {chunk_size}")
    if isinstance(proposal, str) and proposal != "laplace":
        raise ValueError(f'expected a proposal None, "laplace" or from aef.tune_proposal, got {proposal!r}')
    batch = Batch(x, cond, kwargs or {})
    if aef.partition is not None or not batch.size:  # an exact likelihood, or nothing to estimate
        with evaluation_mode(aef):
            value = aef.expanded_log_prob(x, *cond, **batch.kwargs)
        _require_finite(value)
        return LogProb(value, torch.zeros_like(value), torch.full_like(value, math.inf), aef.partition is not None)
    proposal = tune(aef, x, cond, kwargs) if proposal is None else proposal
    at_once = _rows_at_once(aef, batch.size, proposal, chunk_size)
    with evaluation_mode(aef):
        parts = []
        for first in range(0, batch.size, at_once):
            case = Case(aef, batch.rows(slice(first, first + at_once)), at_once)
            laplace = isinstance(proposal, str)
            draw = LaplaceSampler(case).log_weights if laplace else partial(case.log_weights, proposal)  # type: ignore[arg-type]
            parts.append(_accumulate(draw, case, num_samples))
    values, sizes = (torch.cat(column) for column in zip(*parts, strict=True))
    _require_finite(values)
    # Var(mean w) / (mean w)^2 from the same sums as the effective sample size, with K - 1 for the variance.
    relative = (1 / sizes - 1 / num_samples).clamp(min=0) * num_samples / max(num_samples - 1, 1)
    std_error = relative.sqrt() if num_samples > 1 else torch.full_like(values, math.inf)
    return LogProb(values, std_error, sizes, False)


def _rows_at_once(aef: "AEF", batch: int, proposal: Any, chunk_size: int | None) -> int:
    """Return the most rows to decode at once: the batch's own, or more of small data; fewer for Jacobians of N x D."""
    values = max(numel(aef.event_shape), 1)
    rows = chunk_size or max(batch, 2**15 // values)
    if not isinstance(proposal, str):
        return rows
    dim = sum(numel(site.core.latent_shape) for site in aef.by_latent().values())
    return min(rows, max(2**25 // (values * max(dim, 1)), 1))


def _accumulate(log_weights: Callable[[int], Tensor], case: Case, num_samples: int) -> tuple[Tensor, Tensor]:
    """Log mean weight and effective sample size, `(batch,)` each, from streamed sums of weights."""
    total = squares = case.log_det.new_full((case.size,), -math.inf)
    done = 0
    while done < num_samples:
        draws = min(LATENT_BLOCK * (case.draws_decoded or 1), num_samples - done)
        log_w = log_weights(draws)
        total = torch.logaddexp(total, log_w.logsumexp(0))
        squares = torch.logaddexp(squares, (2 * log_w).logsumexp(0))
        done += draws
    return total - math.log(num_samples), (2 * total - squares).exp()


def _require_finite(values: Tensor) -> None:
    bad = (~values.isfinite()).nonzero().flatten().tolist()
    if bad:
        raise NonFiniteError(f"log_prob is not finite in rows {bad[:5]} of the batch; call aef(x) to see the term")
