"""From the runs' results to the rows of the table."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

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
        importance_std_error: of `bits_per_dim`, from the importance sampling alone, as far as its errors are known.
        ess_median: effective sample size, median over test samples and seeds.
        ess_min: the smallest one.
        reconstruction_mse: mean over seeds, in the space of the data.
        parameters: of the VAE and what was added.
        added: parameters added, by part.
        seconds: in training steps, mean over seeds.
        best_steps: the step whose weights were tested, one a seed.
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
    importance_std_error: float
    ess_median: float
    ess_min: float
    reconstruction_mse: float
    parameters: int
    added: dict[str, int]
    seconds: float
    best_steps: list[int]
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
        mean, error = mean_and_error(bpd[arm])
        change, change_error = (None, None) if arm == arms[0] else mean_and_error(bpd[arm] - bpd[arms[0]])
        median = float(np.median(ess))
        rows.append(
            Row(
                arm=arm,
                bits_per_dim=mean,
                std_error=error,
                difference=change,
                difference_std_error=change_error,
                importance_std_error=_importance_error(runs[arm]) * scale,
                ess_median=median,
                ess_min=float(ess.min()),
                reconstruction_mse=float(np.mean([run["reconstruction_mse"] for run in runs[arm]])),
                parameters=runs[arm][0]["parameters"]["total"],
                added=runs[arm][0]["parameters"]["added"],
                seconds=float(np.mean([run["seconds"] for run in runs[arm]])),
                best_steps=[run["best_step"] for run in runs[arm]],
                uncertain=float(np.mean([run["test"]["uncertain"] for run in runs[arm]])) / ess.shape[1],
                gap=gap,
                gap_std_error=gap_error,
                few_draws=median < FEW_DRAWS * importance_samples,
            )
        )
    return rows


def mean_and_error(values: np.ndarray) -> tuple[float, float]:
    """Mean of (seeds, samples) values, and its standard error.

    The same samples are tested with every seed, so the error over samples is that of the values averaged over
    seeds; the variance between seeds' means, divided by the number of seeds, is added to its square.
    """
    seeds, samples = values.shape
    over_samples = values.mean(0).var(ddof=1) / samples
    between_seeds = values.mean(1).var(ddof=1) / seeds if seeds > 1 else 0.0
    return float(values.mean()), float(np.sqrt(over_samples + between_seeds))


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
