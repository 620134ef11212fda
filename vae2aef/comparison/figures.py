"""From a finished comparison to the figures of its report: curves, test data one by one, and latents."""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from vae2aef.comparison import charts
from vae2aef.comparison.charts import Records, Spec
from vae2aef.comparison.gallery import thumbnails
from vae2aef.comparison.outcome import Material, Outcome
from vae2aef.comparison.page import Figure, View

THUMBNAILS = 1_500_000
"""Characters that pictures of single test data may take together."""
LATENTS = 256
"""Latents that are drawn: those with the largest variance of the posterior mean."""
RING = 60
NINETY_FIVE = math.sqrt(-2 * math.log(0.05))
"""The radius that holds 95 % of a standard normal of two dimensions."""


def data_rows(material: Material) -> list[dict[str, Any]]:
    """What is told of each test datum: its place, log p(x) by arm (mean over seeds), codes of two, its picture."""
    nats = log_prob(material.outcome)
    found: list[dict[str, Any]] = [
        {"number": i, **{f"a{k}": _rounded(values[i]) for k, values in enumerate(nats)}} for i in range(len(nats[0]))
    ]
    for k, arm in enumerate(material.arms):
        for datum, code in zip(found, material.arrays[arm].get("z", ()), strict=False):
            datum |= {f"z{k}x": _rounded(code[0]), f"z{k}y": _rounded(code[1])}
    if material.images:
        for datum, image in zip(found, thumbnails(material.test, THUMBNAILS), strict=False):
            datum["image"] = image
    return found


def log_prob(outcome: Outcome) -> np.ndarray:
    """The marginal of each test datum, (arms, n), in nats, averaged over seeds."""
    return np.array(
        [np.mean([run["test"]["log_prob"] for run in outcome.runs_of(arm)], axis=0) for arm in outcome.options.arms]
    )


def learning(outcome: Outcome, specs: dict[str, Spec]) -> Figure:
    """Validation marginals against steps and seconds, and the training losses apart."""
    rows, losses = [], {}
    for arm in (arms := list(outcome.options.arms)):
        losses[arm] = [
            {"arm": arm, "seed": run["seed"], "step": step, "loss": loss}
            for run in outcome.runs_of(arm)
            for step, loss in run["training_loss"]
        ]
        for run in outcome.runs_of(arm):
            curve = run["validation_bits_per_dim"]
            # Runs of earlier versions have no times.
            times = run.get("validation_seconds", [None] * len(curve))
            for (step, bits), seconds in zip(curve, times, strict=True):
                rows.append({"arm": arm, "seed": run["seed"], "step": step, "seconds": seconds, "bits": bits})
    specs["curve-steps"] = charts.curves(rows, arms, "step", "step of training")
    what = (
        "Each line is a run, measured on held-out data by the same estimate for every arm. Click a name to follow one."
    )
    views = [View("by step", ["curve-steps"], what)]
    if timed := [row for row in rows if row["seconds"] is not None]:
        specs["curve-seconds"] = charts.curves(timed, arms, "seconds", "seconds in training steps")
        caption = "The same against the time spent in training steps: an arm whose steps are dearer moves to the right."
        views.append(View("by seconds", ["curve-seconds"], caption))
    for arm in arms:
        specs[f"loss-{arm}"] = charts.loss(losses[arm], arm, arms)
    caption = "What training lowers, in nats. It is another quantity in each arm and has a scale of its own in each."
    views.append(View("training loss", [f"loss-{arm}" for arm in arms], caption))
    return Figure("curves-figure", views)


def pairs_of_arms(outcome: Outcome, specs: dict[str, Spec]) -> Figure:
    """Log p(x) of every other arm against that of the first."""
    arms, nats = list(outcome.options.arms), log_prob(outcome)
    margin = 0.04 * float(nats.max() - nats.min()) or 1.0
    span = (float(nats.min()) - margin, float(nats.max()) + margin)
    views = []
    for k, other in enumerate(arms[1:], start=1):
        specs[f"scatter-{other}"] = charts.scatter(arms, other, span)
        share = float((nats[k] > nats[0]).mean())
        caption = (
            f"Above the dashed line a datum has a higher log p(x) under {other}: {share:.0%} of the test data have."
        )
        views.append(View(f"{other} and {arms[0]}", [f"scatter-{other}"], caption))
    hint = "Hover over a point for its numbers; click it to enlarge the datum." if outcome.dataset.bins > 1 else ""
    return Figure("scatter-figure", views, hint or "Hover over a point for its numbers.")


def latents(material: Material, specs: dict[str, Spec]) -> list[Figure]:
    """Active units, the aggregate posterior against the prior and, for two latents, the codes of test data."""
    arms, rows = material.having("mean_variance"), []
    for arm in arms:
        rows += _latents_of(arm, material.arrays[arm])
    most = max((len(material.arrays[arm]["mean_variance"]) for arm in arms), default=0)
    some = f" Of {most} latents the {LATENTS} most used are drawn." if most > LATENTS else ""
    specs["units"] = charts.units([row for row in rows if row["variance"] > 0], material.arms)
    specs["aggregate"] = charts.aggregate(rows, material.arms)
    views = [
        View("active units", ["units"],
             "Latents above the dashed line carry something of the data (Burda et al., 2016); those below are idle."
             + some),
        View("aggregate posterior", ["aggregate"],
             "Each point is a latent. On the cross, its codes are spread as the prior is; away from it, samples from "
             "the prior are decoded where no datum lies, or data lie where none is sampled."),
    ]  # fmt: skip
    found = [Figure("latents-figure", views)]
    if two := material.having("z"):
        for arm in two:
            specs[f"codes-{arm}"] = charts.codes(material.arms, arm, _ring(material.arrays[arm]))
        caption = "Codes of test data. The dashed ring holds 95 % of a normal prior: codes outside are hardly sampled."
        found.append(Figure("codes-figure", [View(f"codes, {arm}", [f"codes-{arm}"]) for arm in two], caption))
    return found


def _latents_of(arm: str, found: dict[str, np.ndarray]) -> Records:
    order = np.argsort(-found["mean_variance"])[:LATENTS]
    return [
        {
            "arm": arm,
            "rank": rank,
            "latent": int(unit) + 1,
            "variance": _rounded(found["mean_variance"][unit]),
            "mean": _rounded((found["posterior_mean"][unit] - found["prior_mean"][unit]) / found["prior_std"][unit]),
            "spread": _rounded(found["posterior_std"][unit] / found["prior_std"][unit]),
        }
        for rank, unit in enumerate(order, start=1)
    ]


def _ring(found: dict[str, np.ndarray]) -> Records:
    turn = np.linspace(0, 2 * np.pi, RING + 1)
    z = found["prior_mean"] + NINETY_FIVE * found["prior_std"] * np.stack([np.cos(turn), np.sin(turn)], axis=1)
    return [{"z1": _rounded(a), "z2": _rounded(b), "order": i} for i, (a, b) in enumerate(z)]


def _rounded(value: Any) -> float:
    """Five digits are more than a figure shows."""
    return float(f"{float(value):.5g}")
