"""The marginal likelihood p(x) = int p(x, w) dw by importance sampling (Eq. 17-18, appendix C).

    log p(x) ~ log 1/K sum_k p(x, w_k) / q(w_k | x),    w_k ~ q(w | x) = N(h(x), L L^T)

The marginal equals int p0(z) p(x | z) dz: encoder, features and core flow only place the samples. So a VAE and
an AEF are compared by one estimator. The average inside the logarithm makes it a lower bound on log p(x) in
expectation, tight when the effective sample size is large.
"""

import math
from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING, Any, NamedTuple, ParamSpec, TypeVar

import torch
from torch import Tensor

from vae2aef.core import Expansion
from vae2aef.errors import NonFiniteError
from vae2aef.laplace import LaplaceSampler
from vae2aef.modes import evaluation_mode, own_random_state, without_gradients
from vae2aef.tensors import numel, repeat_batch

if TYPE_CHECKING:
    from vae2aef.aef import AEF

P = ParamSpec("P")
R = TypeVar("R")

FULL_COVARIANCE_UP_TO = 128
"""Largest latent for which a full covariance is tuned; above it, one scale for each core variable."""

TUNING_ROWS, TUNING_DRAWS, TUNING_STEPS, TUNING_LR = 64, 4, 60, 0.1
TUNING_SEED = 0x5EED_0AEF  # no seed that a user would take: tuning and estimate must not share their draws
GRID = tuple(10.0**e for e in (-4, -3.5, -3, -2.5, -2, -1.5, -1, -0.5, 0))


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


class Proposal(NamedTuple):
    """The spread of the importance samples: w = h(x) + L e, e standard normal, one L for all x.

    Attributes:
        log_scale: log of the diagonal of L, shape `(D,)`.
        lower: L below its diagonal, in units of the scale of the row: shape `(D, D)`, or None for a diagonal.
    """

    log_scale: Tensor
    lower: Tensor | None = None

    def draw(self, n: int) -> tuple[Tensor, Tensor]:
        """Draw `n` offsets from h(x), shape `(n, D)`, with their log density in nats, `(n,)`."""
        noise = torch.randn(n, *self.log_scale.shape, dtype=self.log_scale.dtype, device=self.log_scale.device)
        log_q = -0.5 * (noise.square() + math.log(2 * math.pi)).sum(1) - self.log_scale.sum()
        unit = noise if self.lower is None else noise + noise @ self.lower.tril(-1).t()
        return unit * self.log_scale.exp(), log_q


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
    kwargs = kwargs or {}
    if num_samples < 1 or (chunk_size is not None and chunk_size < 1):
        raise ValueError(f"expected num_samples and chunk_size of at least 1, got {num_samples}, {chunk_size}")
    if isinstance(proposal, str) and proposal != "laplace":
        raise ValueError(f'expected a proposal None, "laplace" or from aef.tune_proposal, got {proposal!r}')
    batch = x.shape[0]
    if proposal is None and batch:
        proposal = tune(aef, x, cond, kwargs)
    if proposal is None or aef.core.exact or not batch:  # the partition family, or nothing to estimate
        with evaluation_mode(aef):
            value = aef.expanded_log_prob(x, *cond, **kwargs)
        _require_finite(value)
        return LogProb(value, torch.zeros_like(value), torch.full_like(value, math.inf), aef.core.exact)
    at_once = chunk_size or max(batch, 2**15 // max(numel(aef.event_shape), 1))
    if proposal == "laplace":  # which holds a Jacobian of N x D values for each row
        at_once = min(at_once, max(2**25 // max(numel(aef.event_shape) * numel(aef.latent_shape), 1), 1))
    with evaluation_mode(aef):
        parts = []
        for rows in range(0, batch, at_once):
            take = slice(rows, rows + at_once)
            case = Case(aef, x[take], _rows(cond, take, batch), _rows(kwargs, take, batch), at_once)
            draw = (
                LaplaceSampler(case).log_weights if isinstance(proposal, str) else partial(case.log_weights, proposal)
            )
            parts.append(_accumulate(draw, case, num_samples))
    values, sizes = (torch.cat(column) for column in zip(*parts, strict=True))
    _require_finite(values)
    # Var(mean w) / (mean w)^2 from the same sums as the effective sample size, with K - 1 for the variance.
    relative = (1 / sizes - 1 / num_samples).clamp(min=0) * num_samples / max(num_samples - 1, 1)
    std_error = relative.sqrt() if num_samples > 1 else torch.full_like(values, math.inf)
    return LogProb(values, std_error, sizes, False)


class Case:
    """One batch with all that does not change from draw to draw: encoded and preprocessed once.

    Args:
        aef: the model.
        x: data, shape `(batch, *event)`.
        cond: conditions.
        kwargs: conditions by name.
        at_once: most rows to decode at once; None for no limit.
    """

    def __init__(self, aef: "AEF", x: Tensor, cond: tuple, kwargs: dict[str, Any], at_once: int | None = None) -> None:
        self.aef, self.cond, self.kwargs, self.batch = aef, cond, kwargs, x.shape[0]
        self.draws_decoded = None if at_once is None else max(at_once // max(self.batch, 1), 1)
        self.y, self.log_det = aef._preprocess(x)
        self.core, _ = aef.core(self.y)
        self.posterior = aef.parts.encode(self.y, *cond, **kwargs)

    def log_weights(self, proposal: Proposal, draws: int) -> Tensor:
        """Return log p(x, w_k) / q(w_k | x) for fresh draws: shape `(draws, batch)`, nats."""
        offsets, log_q = proposal.draw(draws * self.batch)
        w = self._repeat(self.core, draws) + offsets.reshape(-1, *self.aef.latent_shape).to(self.core.dtype)
        loc, scale, transform = self.posterior
        posterior = type(self.posterior)(self._repeat(loc, draws), self._repeat(scale, draws), transform)
        cond, kwargs = self.conditions(draws)
        z, log_det = self.aef._latent(w, posterior)
        log_w = self.aef._prior_log_prob(z, cond, kwargs) + self.log_residual(z, draws) + log_det - log_q
        return log_w.reshape(draws, self.batch) + self.log_det

    def log_residual(self, z: Tensor, draws: int) -> Tensor:
        """Return log r(x - f(z)) in nats for `z` of shape `(draws * batch, *latent)`, decoded piece by piece."""
        pieces = []
        for rows in z.split((self.draws_decoded or draws) * self.batch):
            repeats = rows.shape[0] // self.batch
            mean, scale = self.aef._decode(rows, *self.conditions(repeats))
            pieces.append(self.aef._residual_log_prob(self._repeat(self.y, repeats), mean, scale))
        return torch.cat(pieces)

    def conditions(self, draws: int) -> tuple[tuple, dict[str, Any]]:
        """Return the conditions, each tensor with the batch dimension repeated `draws` times."""
        cond = tuple(self._repeat(c, draws) for c in self.cond)
        return cond, {name: self._repeat(c, draws) for name, c in self.kwargs.items()}

    def encode(self) -> Tensor:
        """Return the latents of the batch without noise, shape `(batch, *latent)`."""
        return self.aef._latent(self.core, self.posterior)[0]

    def _repeat(self, value: Any, draws: int) -> Any:
        return value if draws == 1 else repeat_batch(value, draws, self.batch)


def _accumulate(log_weights: Callable[[int], Tensor], case: Case, num_samples: int) -> tuple[Tensor, Tensor]:
    """Log mean weight and effective sample size, `(batch,)` each, from streamed sums of weights."""
    total = squares = case.y.new_full((case.batch,), -math.inf)
    done = 0
    while done < num_samples:
        draws = min(LATENT_BLOCK * (case.draws_decoded or 1), num_samples - done)
        log_w = log_weights(draws)
        total = torch.logaddexp(total, log_w.logsumexp(0))
        squares = torch.logaddexp(squares, (2 * log_w).logsumexp(0))
        done += draws
    return total - math.log(num_samples), (2 * total - squares).exp()


@without_gradients
def tune(aef: "AEF", x: Tensor, cond: tuple = (), kwargs: dict[str, Any] | None = None) -> Proposal | None:
    """Tune the proposal on (at most 64 rows of) data: a scan over one common scale, then gradient ascent.

    What is maximised is the importance-weighted bound itself (Burda et al., 2016), over a scale for each core
    variable and, up to 128 of them, their correlations. The better of start and end is returned. Nothing in
    the model changes; torch's random state is left as it was.

    Args:
        aef: the model.
        x: held-out data, shape `(batch, *event)`.
        cond: conditions.
        kwargs: conditions by name.

    Returns:
        The proposal; None in the partition family, whose likelihood is exact.

    Raises:
        ValueError: if `x` is empty.
        NonFiniteError: if no proposal gives a finite bound.
    """
    if not isinstance(aef.core, Expansion):
        return None
    if not x.shape[0]:
        raise ValueError("cannot tune a proposal on an empty batch")
    batch, take = x.shape[0], slice(0, TUNING_ROWS)
    with evaluation_mode(aef), own_random_state(x.device):
        torch.manual_seed(TUNING_SEED)
        with torch.no_grad():
            case = Case(aef, x[take], _rows(cond, take, batch), _rows(kwargs or {}, take, batch))
            dim = numel(aef.latent_shape)
            like = case.core.new_zeros(dim)
            scales = [*GRID, aef.noise] if aef.noise else list(GRID)
            starts = [Proposal(like + math.log(scale)) for scale in scales]
            start = max(starts, key=lambda p: _bound(case, p))
        tuned = _ascend(case, start, full=dim <= FULL_COVARIANCE_UP_TO)
        with torch.no_grad():
            best = max((start, tuned), key=lambda p: _bound(case, p, draws=2 * TUNING_DRAWS))
            if not math.isfinite(_bound(case, best)):
                raise NonFiniteError("no importance proposal gives a finite bound: is the model's loss finite?")
    return best


def _ascend(case: Case, start: Proposal, full: bool) -> Proposal:
    """Maximise the bound by Adam from `start`."""
    log_scale = start.log_scale.clone().requires_grad_()
    dim = log_scale.shape[0]
    lower = log_scale.new_zeros(dim, dim).requires_grad_() if full and dim > 1 else None
    optimizer = torch.optim.Adam([p for p in (log_scale, lower) if p is not None], lr=TUNING_LR)
    schedule = torch.optim.lr_scheduler.LinearLR(optimizer, 1.0, 0.1, TUNING_STEPS)
    for _ in range(TUNING_STEPS):
        with torch.enable_grad():
            loss = -_iwae(case.log_weights(Proposal(log_scale, lower), TUNING_DRAWS)).mean()
            grads = torch.autograd.grad(loss, optimizer.param_groups[0]["params"])
        if not all(bool(g.isfinite().all()) for g in grads):
            break
        for parameter, grad in zip(optimizer.param_groups[0]["params"], grads, strict=True):
            parameter.grad = grad
        optimizer.step()
        schedule.step()
    return Proposal(log_scale.detach(), None if lower is None else lower.detach())


def _bound(case: Case, proposal: Proposal, draws: int = TUNING_DRAWS) -> float:
    value = float(_iwae(case.log_weights(proposal, draws)).mean())
    return value if math.isfinite(value) else -math.inf


def _iwae(log_w: Tensor) -> Tensor:
    return log_w.logsumexp(0) - math.log(log_w.shape[0])


def _rows(conditions: Any, take: slice, batch: int) -> Any:
    """Cut the rows `take` out of every condition that has the batch dimension."""

    def cut(value: Any) -> Any:
        has_batch = isinstance(value, Tensor) and value.dim() > 0 and value.shape[0] == batch
        return value[take] if has_batch else value

    if isinstance(conditions, dict):
        return {name: cut(value) for name, value in conditions.items()}
    return tuple(cut(value) for value in conditions)


def _require_finite(values: Tensor) -> None:
    bad = (~values.isfinite()).nonzero().flatten().tolist()
    if bad:
        raise NonFiniteError(f"log_prob is not finite in rows {bad[:5]} of the batch; call aef(x) to see the term")
