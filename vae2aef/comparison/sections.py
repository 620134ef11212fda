"""From a finished comparison to the sections of its report: what is said, shown and tabulated, in which order."""

from __future__ import annotations

import math
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np

from vae2aef.comparison import figures, pictured, report, wording
from vae2aef.comparison.charts import Spec
from vae2aef.comparison.latent_use import ACTIVE
from vae2aef.comparison.outcome import Material, Outcome
from vae2aef.comparison.page import Page, Section
from vae2aef.comparison.verdict import sentences, winner, winning_line

Table = list[list[str]]


def page(outcome: Outcome, out: Path, command: str, made_with: str) -> Page:
    """Gather all that the report shows.

    Args:
        outcome: the comparison.
        out: its folder, which holds the arrays of every run.
        command: that makes this comparison.
        made_with: versions and machine, one line.
    """
    specs: dict[str, Spec] = {}
    material = Material(outcome, out)
    found = [
        *_curves(outcome, specs),
        *pictured.sections(material, specs),
        *_latents(material, specs),
        _gauge(outcome),
        _certificate(outcome),
        Section("meaning", "What the number means", text=wording.MEANING),
    ]
    elsewhere = {*wording.certificates(outcome.rows), *_drifts(outcome)}
    best = winner(outcome.rows)
    return Page(
        title=outcome.title,
        verdict=sentences(outcome.rows, outcome.options),
        own_loop=winning_line(outcome.rows, outcome.options, outcome.dataset.bins, outcome.made),
        table=report.page_table(outcome.rows),
        best=-1 if best is None else outcome.rows.index(best),
        key=wording.key(outcome.rows, outcome.options),
        arms=wording.arms(outcome.options),
        notes=[note for note in outcome.notes if note not in elsewhere],
        sections=found,
        method=wording.method(outcome.options, outcome.sizes, outcome.dataset.bins, outcome.shared),
        command=command,
        made_with=made_with,
        specs=specs,
        test=figures.data_rows(material),
    )


def _curves(outcome: Outcome, specs: dict[str, Spec]) -> list[Section]:
    found = [Section("curves", "Learning curves", figures=[figures.learning(outcome, specs)])]
    if len(outcome.rows) > 1:
        found.append(Section("data", "Datum by datum", figures=[figures.pairs_of_arms(outcome, specs)]))
    return found


def _latents(material: Material, specs: dict[str, Spec]) -> list[Section]:
    arms = material.having("mean_variance")
    if not arms:
        return []
    table = [["arm", "active units", "mean, farthest", "spread, least to most", "KL of the aggregate"]]
    for arm in arms:
        found = material.arrays[arm]
        far = (found["posterior_mean"] - found["prior_mean"]) / found["prior_std"]
        spread = found["posterior_std"] / found["prior_std"]
        rate = float(found["rate"])
        kl = f"{rate:.2f} nats (by chance {float(found['rate_by_chance']):.2f})" if math.isfinite(rate) else "—"
        active = int((found["mean_variance"] > ACTIVE).sum())
        table.append(
            [arm, f"{active} of {len(far)}", f"{far[np.abs(far).argmax()]:+.2f} σ",
             f"{spread.min():.2f} to {spread.max():.2f}", kl]
        )  # fmt: skip
    text = [
        "The aggregate posterior q(z) is the mixture of the posteriors of all test data. Mean and spread are in the "
        "prior's standard deviations: 0 and 1 if q(z) is the prior. The KL is that of Gaussians with these moments "
        "from a standard normal prior; correlations are not in it."
    ]
    return [Section("latents", "Use of the latents", text, table, figures=figures.latents(material, specs))]


def _gauge(outcome: Outcome) -> Section:
    table = [["arm", "spread of h", "log scale", "share of h in z"]]
    for row in outcome.rows:
        for name, meters in _meters(outcome.runs_of(row.arm)):
            label = row.arm if name == "z" else f"{row.arm}, {name}"
            values = [
                float(np.mean([meter[key] for meter in meters])) for key in ("core_std", "log_scale", "core_share")
            ]
            table.append([label, f"{values[0]:.3g}", f"{values[1]:+.2f} nats", f"{values[2]:.3g}"])
    text = [
        "At σ = 0 the loss can fall for nothing: h shrinks, and the scale of the encoder grows by as much. The meter "
        "shows it: the standard deviation of h(x) over the data, the mean log scale of the encoder, and the variance "
        "of what h contributes to z as a share of that of z. A share far above 1 means that the location only undoes "
        "what h does. The VAE has no h."
    ]
    return Section("gauge", "Gauge meter", text, table if len(table) > 1 else (), notes=_drifts(outcome))


def _meters(runs: list[dict[str, Any]]) -> Iterable[tuple[str, list[dict[str, float]]]]:
    """The meters of each latent, over seeds; runs of a single validation datum have none."""
    known = [run["gauge"] for run in runs if run.get("gauge")]
    return [(name, [one[name] for one in known]) for name in (known[0] if known else ())]


def _certificate(outcome: Outcome) -> Section:
    draws = outcome.options.importance_samples
    table = [["arm", "too low by at most", "uncertain test data", "effective draws", "fewest"]]
    for row in outcome.rows:
        gap = f"{row.gap:.2f} ± {row.gap_std_error:.2f} nats"
        table.append([row.arm, gap, f"{row.uncertain:.1%}", f"{row.ess_median:.1f} of {draws}", f"{row.ess_min:.1f}"])
    text = [
        "How far the numbers can be from the truth. On data drawn from each model, log p(x) is bounded from both "
        "sides: the estimate is too low by at most this much (± one standard error). A test datum is uncertain where "
        "few draws carry the estimate (Pareto k-hat above 0.7). The effective sample size is the median over test data."
    ]
    return Section("certificate", "Certificate", text, table)


def _drifts(outcome: Outcome) -> list[str]:
    return wording.drifts(outcome.runs, outcome.dataset.event_shape, outcome.data.bins)
