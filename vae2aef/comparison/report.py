"""The table of a comparison: on the terminal, in Markdown and on the page."""

from __future__ import annotations

from collections.abc import Sequence

from rich.box import SIMPLE_HEAD
from rich.table import Table

from vae2aef.comparison.summary import Row

COLUMNS = (
    "arm",
    "bits per dimension",
    "difference",
    "effective sample size of {draws} draws: median (min)",
    "reconstruction MSE",
    "parameters",
    "of these added",
    "seconds",
    "as good as {first} after",
)


def headings(first: str, draws: int) -> list[str]:
    """Return `COLUMNS` with the arm that differences are to, and the draws for the marginal of one sample."""
    names = [name.format(draws=draws, first=first) for name in COLUMNS]
    return [f"difference to {first}" if name == "difference" else name for name in names]


def cells(row: Row) -> tuple[str, ...]:
    """Return one row of the table as text, in the order of `COLUMNS`."""
    change = "—"
    if row.difference is not None:
        change = f"{_signed(row.difference)} ± {row.difference_interval:.3f}"
    return (
        row.arm,
        f"{row.bits_per_dim:.3f} ± {row.interval:.3f}",
        change,
        f"{row.ess_median:.1f} ({row.ess_min:.1f})",
        f"{row.reconstruction_mse:.4f}",
        f"{row.parameters:,}",
        f"{sum(row.added.values()):,}",
        f"{row.seconds:.0f}",
        "never" if row.reached is None else f"{row.reached:.0%}",
    )


def _signed(value: float) -> str:
    """A difference with its sign, the true minus sign."""
    return f"{value:+.3f}".replace("-", "\u2212")


def terminal_table(rows: Sequence[Row], title: str, draws: int) -> Table:
    """Make the table for the terminal.

    Args:
        rows: one an arm; differences are to the first.
        title: above the table.
        draws: importance samples for the marginal of one sample.
    """
    table = Table(title=title, title_justify="left", box=SIMPLE_HEAD, padding=(0, 1, 0, 0), pad_edge=False)
    for name in ("arm", "bits/dim", f"minus\n{rows[0].arm}", f"ESS (min)\nof {draws}", "s", "equal\nafter", "at s"):
        table.add_column(name, justify="left" if name == "arm" else "right", no_wrap=True)
    for row in rows:
        # Eighty columns must do: reconstruction error and parameters are left to the report.
        arm, bits, change, _, _, _, _, seconds, reached = cells(row)
        sizes = f"{row.ess_median:.1f} ({row.ess_min:.0f})"
        after = "" if row.reached_seconds is None else f"{row.reached_seconds:.0f}"
        table.add_row(arm, bits, change, sizes, seconds, reached, after)
    return table


def _short(count: int) -> str:
    return f"{count / 1e6:.2f}M" if count >= 1e6 else f"{count / 1e3:.0f}k" if count >= 1e4 else str(count)


def markdown_table(rows: Sequence[Row], draws: int) -> str:
    """Return the table in Markdown, for a README; `draws` as in `terminal_table`."""
    lines = [headings(rows[0].arm, draws), ["---"] + ["---:"] * (len(COLUMNS) - 1), *(list(cells(row)) for row in rows)]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines) + "\n"


def page_table(rows: Sequence[Row]) -> list[list[str]]:
    """Return heading and rows, one an arm, for the report, in few words: its text says the rest."""
    first = rows[0].arm
    lines = [
        ["arm", "bits per dim.", f"minus {first}", f"equal to {first} after", "training", "squared error", "parameters"]
    ]
    for row in rows:
        arm, bits, change, _, error, _, _, spent, share = cells(row)
        after = share if row.reached is None else f"{row.reached:.0%} of steps"
        after += "" if row.reached_seconds is None else f", {row.reached_seconds:.0f} s"
        added = sum(row.added.values())
        sizes = f"{_short(row.parameters)}, {_short(added)} added" if added else _short(row.parameters)
        lines.append([arm, bits, change, after, f"{spent} s", error, sizes])
    return lines
