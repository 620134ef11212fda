"""From the runs' results to the rows of the table."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import torch

from vae2aef.preprocess import bits_per_dim

FEW_DRAWS = 0.1


@dataclass(frozen=True)
class Row:
    """One arm, over all its seeds.

    Attributes:
        arm: its name.
        bits_per_dim: mean over test samples and seeds; lower is better.
        std_error: of that mean, over test samples and, with several seeds, between seeds, in quadrature.
        difference: to the first arm on the same test samples and seeds; None for the first arm.
        difference_std_error: paired, computed like `std_error`.
        interval: half of the 95 % interval of `bits_per_dim`, by Student's t: few seeds say little of their spread.
        difference_interval: half of that of `difference`.
        importance_std_error: of `bits_per_dim`, from the importance sampling alone, as far as its errors are known.
        ess_median: effective sample size, median over test samples and seeds.
        ess_min: the smallest one.
        reconstruction_mse: mean over seeds, in the space of the data.
        parameters: of the VAE and what was added.
        added: parameters added, by part.
        seconds: in training steps, mean over seeds.
        best_steps: the step whose weights were tested, one a seed.
        reached: share of the steps after which it was as good on validation data as the first arm's best, median over
            seeds; None if it never was in half of them.
        reached_seconds: seconds in training steps until then, likewise; None if that is not known either.
        uncertain: share of test samples whose estimate cannot be trusted (`LogProb.uncertain`).
        gap: from the certificate: how many nats the marginal is too low by at most, mean over seeds.
        gap_std_error: of it.
        few_draws: the median effective sample size is below a tenth of the draws.
    """

    arm: str
    bits_per_dim: float
    std_error: float
    difference: float | None
    difference_std_error: float | None
    interval: float
    difference_interval: float | None
    importance_std_error: float
    ess_median: float
    ess_min: float
    reconstruction_mse: float
    parameters: int
    added: dict[str, int]
    seconds: float
    best_steps: list[int]
    reached: float | None
    reached_seconds: float | None
    uncertain: float
    gap: float
    gap_std_error: float
    few_draws: bool


def summarise(
    results: Sequence[dict[str, Any]],
    arms: Sequence[str],
    event_shape: Sequence[int],
    bins: int,
    importance_samples: int,
) -> list[Row]:
    """Make a row an arm.

    Args:
        results: contents of `result.json` of every run: each arm with the same seeds and test samples.
        arms: in the order of the table; differences are to the first.
        event_shape: shape of one sample.
        bins: number of levels of the data.
        importance_samples: draws for each test sample.
    """
    runs = {arm: sorted((r for r in results if r["arm"] == arm), key=lambda r: r["seed"]) for arm in arms}
    bpd = {arm: _test_bits(runs[arm], event_shape, bins) for arm in arms}
    scale = 1 / (math.prod(event_shape) * math.log(2))
    rows = []
    for arm in arms:
        ess = np.array([run["test"]["effective_sample_size"] for run in runs[arm]])
        gap, gap_error = _gap(runs[arm])
        bits = mean_and_error(bpd[arm])
        change = None if arm == arms[0] else mean_and_error(bpd[arm] - bpd[arms[0]])
        median = float(np.median(ess))
        rows.append(
            Row(
                arm=arm,
                bits_per_dim=bits.mean,
                std_error=bits.std_error,
                difference=None if change is None else change.mean,
                difference_std_error=None if change is None else change.std_error,
                interval=bits.interval,
                difference_interval=None if change is None else change.interval,
                importance_std_error=_importance_error(runs[arm]) * scale,
                ess_median=median,
                ess_min=float(ess.min()),
                reconstruction_mse=float(np.mean([run["reconstruction_mse"] for run in runs[arm]])),
                parameters=runs[arm][0]["parameters"]["total"],
                added=runs[arm][0]["parameters"]["added"],
                seconds=float(np.mean([run["seconds"] for run in runs[arm]])),
                best_steps=[run["best_step"] for run in runs[arm]],
                reached=_reached(runs[arm], runs[arms[0]]),
                reached_seconds=_reached_seconds(runs[arm], runs[arms[0]]),
                uncertain=float(np.mean([run["test"]["uncertain"] for run in runs[arm]])) / ess.shape[1],
                gap=gap,
                gap_std_error=gap_error,
                few_draws=median < FEW_DRAWS * importance_samples,
            )
        )
    return rows


class MeanInterval(NamedTuple):
    """A mean over samples and seeds, its standard error, and half of its 95 % interval."""

    mean: float
    std_error: float
    interval: float


def mean_and_error(values: np.ndarray) -> MeanInterval:
    """Mean of (seeds, samples) values, and how sure it is.

    The same samples are tested with every seed, so the error over samples is that of the values averaged over
    seeds; the variance between seeds' means, divided by the number of seeds, is added to its square. The interval
    adds the two intervals of Student's t in the same way, which covers at least as often as it says, also with two
    seeds; of one seed it is over the samples alone.
    """
    from scipy.stats import t

    seeds, samples = values.shape
    over_samples = values.mean(0).var(ddof=1) / samples
    between_seeds = values.mean(1).var(ddof=1) / seeds if seeds > 1 else 0.0
    halves = [(over_samples, samples - 1)] + ([(between_seeds, seeds - 1)] if seeds > 1 else [])
    interval = math.sqrt(sum(t.ppf(0.975, freedom) ** 2 * variance for variance, freedom in halves))
    return MeanInterval(float(values.mean()), math.sqrt(over_samples + between_seeds), float(interval))


def _reached(runs: list[dict[str, Any]], first: list[dict[str, Any]]) -> float | None:
    """Share of the steps after which a run's validation curve is at the other run's best, seed by seed; the median."""
    shares = []
    for run, look in zip(runs, _looks(runs, first), strict=True):
        curve = run["validation_bits_per_dim"]
        shares.append(math.inf if look is None else curve[look][0] / curve[-1][0])
    return _known(shares)


def _reached_seconds(runs: list[dict[str, Any]], first: list[dict[str, Any]]) -> float | None:
    """The same in seconds of training steps; None also where a run did not note them."""
    found = []
    for run, look in zip(runs, _looks(runs, first), strict=True):
        times = run.get("validation_seconds", [])
        if len(times) != len(run["validation_bits_per_dim"]) or None in times:
            return None
        found.append(math.inf if look is None else times[look])
    return _known(found)


def _looks(runs: list[dict[str, Any]], first: list[dict[str, Any]]) -> Iterator[int | None]:
    """Yield, seed by seed, at which look at validation data a run was at the other run's best; None for never."""
    for run, other in zip(runs, first, strict=True):
        best = min(value for _, value in other["validation_bits_per_dim"])
        curve = run["validation_bits_per_dim"]
        yield next((look for look, (_, value) in enumerate(curve) if value <= best), None)


def _known(values: list[float]) -> float | None:
    median = float(np.median(values))
    return median if math.isfinite(median) else None


def _importance_error(runs: list[dict[str, Any]]) -> float:
    errors = np.array([run["test"]["std_error"] for run in runs], dtype=float)
    known = errors[np.isfinite(errors)]
    return float(np.sqrt((known**2).sum())) / max(known.size, 1)


def _gap(runs: list[dict[str, Any]]) -> tuple[float, float]:
    """Mean over seeds of the certificate's gap, and its error."""
    errors = np.array([run["certificate"]["std_error"] for run in runs])
    return float(np.mean([run["certificate"]["gap"] for run in runs])), float(np.sqrt((errors**2).sum())) / len(runs)


def _test_bits(runs: list[dict[str, Any]], event_shape: Sequence[int], bins: int) -> np.ndarray:
    log_prob = torch.tensor([run["test"]["log_prob"] for run in runs], dtype=torch.float64)
    return bits_per_dim(log_prob, event_shape, bins).numpy()
