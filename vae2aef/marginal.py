"""The marginal likelihood p(x) = int p0(z) p(x | z) dz by importance sampling (Eq. 17-18, appendix C).

    log p(x) ~ log 1/K sum_k p(x, v_k) / q(v_k | x),    v_k ~ q(v | x)

Encoder, features and core flow only place the samples, so a VAE and an AEF are compared by one estimator. The average
inside the logarithm makes it a lower bound on log p(x) in expectation, tight when the effective sample size is large.
"""

import math
import numbers
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from vae2aef import ais
from vae2aef.batch import Batch
from vae2aef.case import Case
from vae2aef.draws import Draws, preprocessed
from vae2aef.errors import NonFiniteError
from vae2aef.evidence import EstimateWarning, LogProb, Sums, warn_of
from vae2aef.modes import evaluation_mode
from vae2aef.proposals import Proposal, tune
from vae2aef.samplers import Fitted, Sampler, sampler
from vae2aef.tensors import numel, rows_on_gpu, without_gradients

if TYPE_CHECKING:
    from vae2aef.aef import AEF

__all__ = ["EstimateWarning", "LogProb", "Proposal", "log_prob", "tune"]

MAX_SAMPLES = 16384


@without_gradients
def log_prob(
    aef: "AEF",
    x: Tensor,
    cond: tuple = (),
    kwargs: dict[str, Any] | None = None,
    num_samples: int = 128,
    proposal: "Proposal | str | None" = None,
    chunk_size: int | None = None,
    seed: int | None = None,
    target_error: float | None = None,
    max_samples: int = MAX_SAMPLES,
    method: str = "importance",
    observed: Tensor | None = None,
) -> LogProb:
    """Estimate log p(x) in nats, in `eval()` mode and without gradients.

    Args:
        aef: the model.
        x: data, shape `(batch, *event)`.
        cond: conditions; tensors with the leading size of the batch are repeated for each draw.
        kwargs: conditions by name.
        num_samples: K, importance samples for each datum.
        proposal: where to draw them. None looks for the mass of each datum's posterior (`vae2aef.finding`).
            `"laplace"` fits one Gaussian to each, at the mode that the encoder leads to. `"tuned"` is the cheap mode:
            one Gaussian around h(x) for all data, tuned on the first 64 rows of `x` with other draws than the
            estimate's; or pass one from `aef.tune_proposal`. The result is then marked as a `bound`.
        chunk_size: most decoder rows at once. Memory does not depend on K. By default the batch's own size, or
            more if the data is small (2^15 values in all; on a GPU 2^22 numbers of the decoder's).
        seed: a datum's number then depends on the datum, its conditions and the seed alone: not on the batch, its
            order, the chunks or the rank, up to rounding. None takes torch's random state.
        target_error: draw on until each datum's standard error is at most this, in nats.
        max_samples: most draws for a datum, with `target_error`.
        method: `"ais"` for annealed importance sampling (`vae2aef.ais`): K is then the number of chains, each of
            thousands of decoder passes, and they begin at the prior, or at `proposal="laplace"`. Rounding grows on the
            way, and a seed holds to a few digits only.
        observed: True where a value of x is known, `(batch, *event)` or `(*event)`; the result is log p of these alone
            (`vae2aef.missing`).

    Raises:
        ValueError: if K or `chunk_size` is not positive, `x` has the wrong shape, or the proposal is unknown or
            not possible for this model, or tuned on the batch while a seed is given.
        NonFiniteError: if a value is not finite; names the rows.

    Warns:
        EstimateWarning: if there are rows whose estimate cannot be trusted.
    """
    require_numbers(num_samples, chunk_size, target_error)
    _require_proposal(proposal, seed, method)
    batch = Batch(x, cond, kwargs or {})
    observed = None if observed is None else aef.require_mask(observed, x)
    seen = _seen(batch, observed)
    random = None if seed is None else Draws.of(seen, seed)
    if aef.partition is not None or not batch.size:  # exact, or nothing to estimate
        return _without_latents(aef, seen, num_samples, random)
    proposal = tune(aef, x, cond, kwargs) if proposal == "tuned" else proposal
    common = isinstance(proposal, Proposal)
    random = Draws.of(batch, None) if random is None and not common else random
    most = num_samples if target_error is None else max(max_samples, num_samples)

    def chunk(case: Case) -> Tensor:
        if method == "ais":
            return _annealed(case, num_samples, proposal)
        return _estimate(sampler(case, proposal), num_samples, target_error or math.inf, most)

    at_once = rows_at_once(aef, batch.x.shape, proposal, chunk_size, 2**18 if method == "ais" else 2**15)
    with evaluation_mode(aef):
        decoded = None if chunk_size is None else at_once
        found = torch.cat([chunk(case) for case in cases(aef, batch, at_once, random, None, observed, decoded)], dim=1)
    return _checked(found, common)


def cases(
    aef: "AEF",
    batch: Batch,
    at_once: int,
    random: Draws | None,
    log_det: Tensor | None = None,
    observed: Tensor | None = None,
    decoded: int | None = None,
) -> Iterator[Case]:
    """Cut a batch into cases of `at_once` rows, of which `decoded` are decoded at once; see `Case`."""
    if decoded is None:
        decoded = rows_on_gpu(batch.x, at_once, getattr(aef.likelihood, "per_value", None))
    for first in range(0, batch.size, at_once):
        rows = slice(first, first + at_once)
        own = None if random is None else random.rows(rows)
        known, there = (None if each is None else each[rows] for each in (log_det, observed))
        yield Case(aef, batch.rows(rows), decoded, own, known, there)


def _seen(batch: Batch, observed: Tensor | None) -> Batch:
    """Return what is known of the data, zeros for the rest; refuse data that are not finite."""
    x = batch.x if observed is None else torch.where(observed, batch.x, 0)
    if x.is_floating_point():
        _require_finite(x.flatten(1).sum(1) if x.dim() > 1 else x)
    return batch._replace(x=x)


def require_numbers(num_samples: int, chunk_size: int | None = None, target_error: float | None = None) -> None:
    """Refuse numbers of draws that are none.

    Raises:
        ValueError: names what was expected, and what came.
    """
    for name, value in (("num_samples", num_samples), ("chunk_size", chunk_size)):
        if value is not None and not isinstance(value, numbers.Integral):
            raise ValueError(f"expected {name} as a whole number, got {value!r}")
    if num_samples < 1 or (chunk_size is not None and chunk_size < 1):
        raise ValueError(f"expected num_samples and chunk_size of at least 1, got {num_samples}, {chunk_size}")
    if target_error is not None and not (isinstance(target_error, numbers.Real) and target_error > 0):
        raise ValueError(f"expected a positive target_error, got {target_error}")


def _require_proposal(proposal: "Proposal | str | None", seed: int | None, method: str) -> None:
    if method not in ("importance", "ais"):
        raise ValueError(f'expected a method "importance" or "ais", got {method!r}')
    if method == "ais" and proposal not in (None, "laplace"):
        raise ValueError(f'method="ais" begins at the prior, or at proposal="laplace"; got {proposal!r}')
    known = isinstance(proposal, str) and proposal in ("laplace", "tuned")
    if not (proposal is None or known or isinstance(proposal, Proposal)):
        raise ValueError(f'expected a proposal None, "laplace", "tuned" or from aef.tune_proposal, got {proposal!r}')
    if proposal == "tuned" and seed is not None:
        raise ValueError(
            'proposal="tuned" is tuned on the batch, and with a seed no number may depend on the batch: leave it out, '
            "or pass aef.tune_proposal(held_out)"
        )


def _checked(found: Tensor, bound: bool) -> LogProb:
    value, std_error, size, k = found
    _require_finite(value)
    result = LogProb(value, std_error, size, False, k, bound)
    if not torch.compiler.is_compiling():
        warn_of(result.uncertain)
    return result


def _without_latents(aef: "AEF", batch: Batch, draws: int, random: Draws | None) -> LogProb:
    """Return the likelihood of the partition family: exact, or an average over the noise of dequantised integers."""

    def value(number: int) -> Tensor:
        y, log_det = preprocessed(aef, batch.x, random, number)
        core, shell = aef.split(y)
        joint = aef.chain(batch._replace(x=shell), core)
        return joint.prior + joint.residual + joint.log_det + log_det

    with evaluation_mode(aef):
        first = value(0)
        if not batch.size or bool((value(1) == first).all()) or not bool(first.isfinite().all()):
            _require_finite(first)
            infinite = torch.full_like(first, math.inf)
            return LogProb(first, torch.zeros_like(first), infinite, aef.partition is not None, -infinite)
        sums = Sums(first, draws)
        for number in range(draws):
            sums.add(value(number).unsqueeze(0))
    return _checked(sums.evidence().to(first.dtype), False)


def rows_at_once(
    aef: "AEF", shape: Sequence[int], proposal: "Proposal | str | None", chunk_size: int | None, least: int = 2**15
) -> int:
    """Return the most rows to decode at once: the batch's own, or `least` values of data; fewer for big Jacobians.

    `shape` is that of the data, `(batch, *event)`.
    """
    batch, values = shape[0], max(numel(shape[1:]), 1)
    rows = chunk_size or max(batch, least // values)
    if isinstance(proposal, Proposal):
        return rows
    dim = sum(numel(site.core.latent_shape) for site in aef.by_latent().values())
    dim = dim * values // max(numel(aef.event_shape), 1)  # a larger grid has more latents, too
    return min(rows, max(2**25 // (values * max(dim, 1)), 1))


def _annealed(case: Case, chains: int, proposal: "str | Proposal | None") -> Tensor:
    start = sampler(case, proposal) if proposal is not None else None
    sums = Sums(case.log_det, chains)
    sums.add(ais.log_weights(case, chains, start.mixture if isinstance(start, Fitted) else None))
    return sums.evidence().to(case.log_det.dtype)


def _estimate(source: Sampler, num_samples: int, target: float, most: int) -> Tensor:
    """Return value, error, effective sample size and k-hat, `(4, batch)`, from streamed sums of weights."""
    sums = Sums(source.case.log_det, most)
    _draw(source, sums, num_samples)
    found = sums.evidence()
    rows = torch.arange(source.case.size, device=found.device)
    while sums.draws < most:
        wanting = (found[1, rows] > target).nonzero().flatten()
        if not len(wanting):
            break
        if len(wanting) < len(rows):
            source, sums, rows = source.rows(wanting), sums.rows(wanting), rows[wanting]
        _draw(source, sums, min(2 * sums.draws, most))
        found[:, rows] = sums.evidence()
    return found.to(source.case.log_det.dtype)


def _draw(source: Sampler, sums: Sums, upto: int) -> None:
    while sums.draws < upto:
        sums.add(source.log_weights(sums.draws, min(source.block, upto - sums.draws)))


def _require_finite(values: Tensor) -> None:
    if torch.compiler.is_compiling():  # which reads no values
        return
    bad = (~values.isfinite()).nonzero().flatten().tolist()
    if bad:
        raise NonFiniteError(f"log_prob is not finite in rows {bad[:5]} of the batch; call aef(x) to see the term")
