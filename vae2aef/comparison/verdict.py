"""What a comparison says, in sentences a person can act on; the first is the verdict."""

from __future__ import annotations

from collections.abc import Sequence

from vae2aef.comparison.arms import ARMS
from vae2aef.comparison.options import Options
from vae2aef.comparison.summary import Row

OWN_LOOP = "In your own loop: "
"""Begins the sentence that is code."""
DOUBT = 0.5
"""Share of uncertain estimates from which on the verdict says that they may turn it round."""


def verdict(rows: Sequence[Row], options: Options) -> list[str]:
    """Say which arm is best, since when, what the gain comes from, and what to try next.

    Args:
        rows: one an arm; differences are to the first.
        options: of the comparison.

    Returns:
        Sentences. A difference counts only where its 95 % interval leaves zero out.
    """
    first, *others = rows
    if not others:
        return [f"{_name(first)} has {first.bits_per_dim:.3f} ± {first.interval:.3f} bits per dimension. "
                "There is no other arm to compare it with."]  # fmt: skip
    best = min(others, key=lambda row: row.bits_per_dim)
    scope = "95 % interval" + ("" if options.seeds > 1 else ", one seed")
    difference, interval = best.difference or 0.0, best.difference_interval or 0.0
    amount = f"{abs(difference):.3f} ± {interval:.3f} bits per dimension ({scope})"
    if abs(difference) <= interval:
        found = [f"No arm is better than {_name(first)}: the best, {_name(best)}, differs by {amount}, which is within "
                 "the error."]  # fmt: skip
    elif difference > 0:
        found = [f"{_capital(_name(first))} is the best: the next, {_name(best)}, is worse by {amount}."]
    else:
        found = [f"{_capital(_name(best))} is better than {_name(first)} by {amount}.", *_evidence(best, rows)]
    return [*found, *_next(first, best, rows, options)]


def _name(row: Row) -> str:
    arm = ARMS[row.arm]
    if row.arm == "vae":
        return "the VAE"
    if row.arm == "vae+features":
        return "the VAE with linear features (vae+features)"
    return f"the AEF with σ = {arm.noise:g} ({row.arm})"


def _capital(text: str) -> str:
    return text[0].upper() + text[1:]


def _evidence(best: Row, rows: Sequence[Row]) -> list[str]:
    found, first = [], rows[0]
    if best.reached is not None:
        found.append(f"It was as good as {_name(first)} ever was after {best.reached:.0%} of the steps.")
    features = next((row for row in rows if row.arm == "vae+features"), None)
    if features is not None and features not in (first, best) and features.difference is not None and best.difference:
        share = min(max(features.difference / best.difference, 0.0), 1.0)
        part = "all" if share > 0.95 else "most" if share > 0.5 else "some" if share > 0.05 else "none"
        found.append(f"{part.capitalize()} of the gain ({share:.0%}) comes with the linear features alone.")
    return found


def _next(first: Row, best: Row, rows: Sequence[Row], options: Options) -> list[str]:
    """What to do now: one remedy for each thing that stands against the verdict, or the line to write."""
    found = []
    if any(max(row.best_steps) >= options.steps for row in rows):
        found.append(f"train longer (--steps {2 * options.steps}): not every arm had converged")
    if any(row.uncertain > DOUBT for row in (first, best)):
        found.append(f"--importance-samples {4 * options.importance_samples}: most estimates are uncertain")
    if options.seeds == 1:
        found.append("--seeds 3: one seed says nothing of others")
    said = [f"To try next: {'; '.join(found)}."] if found else []
    if best.difference is None or best.difference_interval is None or best.difference >= -best.difference_interval:
        return said
    return [*said, *_line(best, options)]


def _line(best: Row, options: Options) -> list[str]:
    """The line that trains the user's VAE as the best arm was trained."""
    arm = ARMS[best.arm]
    if arm.core == "noise":
        return []
    likelihood = "" if options.likelihood == "vae" else f', likelihood="{options.likelihood}"'
    settings = f'noise={arm.noise:g}, core_flow="{options.core_flow}"{likelihood}'
    return [f"{OWN_LOOP}vae2aef.wrap(vae, example=x, {settings})"]
