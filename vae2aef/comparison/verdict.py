"""What a comparison says, in sentences a person can act on; the first is the verdict."""

from __future__ import annotations

from collections.abc import Sequence

from vae2aef.comparison.arms import ARMS
from vae2aef.comparison.options import Options
from vae2aef.comparison.own_loop import Made, own_loop
from vae2aef.comparison.summary import Row

DOUBT = 0.5
"""Share of uncertain estimates from which on the verdict says that they may turn it round."""


def winner(rows: Sequence[Row]) -> Row | None:
    """Return the arm that the verdict is for; differences are to the first, and count beyond their interval alone.

    Returns:
        Of the arms that are surely better than the first, the one with the fewest bits; the first if all others are
        surely worse; else None, as for a single arm.
    """
    first, *others = rows
    if better := [row for row in others if _sure(row) < 0]:
        return min(better, key=lambda row: row.bits_per_dim)
    return first if others and all(_sure(row) > 0 for row in others) else None


def verdict(rows: Sequence[Row], options: Options, bins: int, made: Made | None = None) -> list[str]:
    """Say what `sentences` say, and `winning_line` as one more sentence."""
    line = winning_line(rows, options, bins, made)
    return [*sentences(rows, options), *([f"In your own loop: {line}"] if line else [])]


def winning_line(rows: Sequence[Row], options: Options, bins: int, made: Made | None = None) -> str:
    """Return the line of code that trains the best arm in a loop of one's own; empty where the first arm is no worse.

    Args:
        rows: one an arm; differences are to the first.
        options: of the comparison.
        bins: number of levels of the data; 1 for continuous data.
        made: what the line takes from the comparison beside its options.
    """
    best = winner(rows)
    return "" if best in (None, rows[0]) else own_loop(best.arm, options, bins, made)


def sentences(rows: Sequence[Row], options: Options) -> list[str]:
    """Say which arm is best, since when, what the gain comes from, and what to try next.

    Args:
        rows: one an arm; differences are to the first.
        options: of the comparison.

    Returns:
        The first is the verdict. A difference counts only where its 95 % interval leaves zero out.
    """
    first, *others = rows
    if not others:
        return [f"{_capital(_name(first))} has {first.bits_per_dim:.3f} ± {first.interval:.3f} bits per dimension. "
                "There is no other arm to compare it with."]  # fmt: skip
    best = winner(rows)
    # The arm that the sentence is of: the winner, or whoever comes closest to being better than the first.
    named = best if best not in (None, first) else min(
        [row for row in others if best is first or not _sure(row)], key=lambda row: row.bits_per_dim
    )  # fmt: skip
    scope = "95 % interval" + ("" if options.seeds > 1 else ", one seed")
    amount = f"{abs(named.difference or 0.0):.3f} ± {named.difference_interval:.3f} bits per dimension ({scope})"
    if best is None:
        way = "ahead" if (named.difference or 0.0) < 0 else "behind"
        found = [f"No arm is surely better than {_name(first)}: {_name(named)} is {way} by {amount}, which is within "
                 "the error."]  # fmt: skip
    elif best is first:
        found = [f"{_capital(_name(first))} is the best: the next, {_name(named)}, is worse by {amount}."]
    else:
        found = [f"{_capital(_name(best))} is better than {_name(first)} by {amount}.", *_evidence(best, rows, options)]
    return found + _next(named, rows, options)


def _sure(row: Row) -> int:
    """The sign of an arm's difference to the first, 0 where its interval holds zero."""
    difference, interval = row.difference or 0.0, row.difference_interval or 0.0
    return -1 if difference < -interval else 1 if difference > interval else 0


def _name(row: Row) -> str:
    arm = ARMS[row.arm]
    if row.arm == "vae":
        return "the VAE"
    if row.arm == "vae+features":
        return "the VAE with linear features (vae+features)"
    return f"the AEF with σ = {arm.noise:g} ({row.arm})"


def _capital(text: str) -> str:
    return text[0].upper() + text[1:]


def _evidence(best: Row, rows: Sequence[Row], options: Options) -> list[str]:
    """Since when the best arm was ahead, and how much of its gain is there before the noise is taken down."""
    found, first = [], rows[0]
    if best.reached is not None:
        found.append(f"On validation data it was as good as {_name(first)} ever was after {best.reached:.0%} of the "
                     "steps.")  # fmt: skip
    features = next((row for row in rows if row.arm == "vae+features"), None)
    if first.arm != "vae" or features in (None, best) or not best.difference:
        return found
    flow = "" if options.core_flow == "none" else f" and the {options.core_flow} core flow"
    what = f"with the linear features{flow} at σ = 1 (vae+features)"
    if _sure(features):
        share = min(max((features.difference or 0.0) / best.difference, 0.0), 1.0)
        part = "all" if share > 0.95 else "most" if share > 0.5 else "some" if share > 0.05 else "none"
        return [*found, f"{part.capitalize()} of the gain ({share:.0%}) is there {what}."]
    change = f"{features.difference:+.3f} ± {features.difference_interval:.3f}".replace("-", "\u2212")
    return [*found, f"How much of the gain is there {what} is within the error: {change}."]


def _next(named: Row, rows: Sequence[Row], options: Options) -> list[str]:
    """What to do now: one remedy for each thing that stands against the verdict."""
    found = []
    if any(max(row.best_steps) >= options.steps for row in rows):
        found.append(f"train longer (--steps {2 * options.steps}): not every arm had converged")
    if any(row.uncertain > DOUBT for row in (rows[0], named)):
        found.append(f"--importance-samples {4 * options.importance_samples}: most estimates are uncertain")
    if options.seeds == 1:
        found.append("--seeds 3: one seed says nothing of others")
    return [f"To try next: {'; '.join(found)}."] if found else []
