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
        importance_std_error: of `bits_per_dim`, from the importance sampling alone, where it is known.
        ess_median: effective sample size, median over test samples and seeds.
        ess_min: the smallest one.
        reconstruction_mse: mean over seeds, in the space of the data.
        parameters: of the VAE and what was added.
        added: parameters added, by part.
        seconds: in training steps, mean over seeds.
        best_steps: the step whose weights were tested, one a seed.
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
        # None where the error of an estimate is not known.
        estimate_error = np.array([run["test"]["std_error"] for run in runs[arm]], dtype=float) * scale
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
                importance_std_error=float(np.sqrt(np.nansum(estimate_error**2)) / estimate_error.size),
                ess_median=median,
                ess_min=float(ess.min()),
                reconstruction_mse=float(np.mean([run["reconstruction_mse"] for run in runs[arm]])),
                parameters=runs[arm][0]["parameters"]["total"],
                added=runs[arm][0]["parameters"]["added"],
                seconds=float(np.mean([run["seconds"] for run in runs[arm]])),
                best_steps=[run["best_step"] for run in runs[arm]],
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


def _test_bits(runs: list[dict[str, Any]], event_shape: Sequence[int], bins: int) -> np.ndarray:
    log_prob = torch.tensor([run["test"]["log_prob"] for run in runs], dtype=torch.float64)
    return bits_per_dim(log_prob, event_shape, bins).numpy()
