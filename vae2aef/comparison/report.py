"""The result of a comparison on the terminal, and as one web page that needs nothing else."""

from __future__ import annotations

import base64
from collections.abc import Sequence
from html import escape
from pathlib import Path

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

STYLE = """
:root { color-scheme: light dark; --line: #8886; --soft: #8882; }
body { font: 16px/1.5 system-ui, sans-serif; max-width: 60rem; margin: 2rem auto; padding: 0 1rem; }
h1 { font-size: 1.5rem; } h2 { font-size: 1.15rem; margin-top: 2.2rem; }
table { border-collapse: collapse; width: 100%; font-variant-numeric: tabular-nums; }
th, td { text-align: right; padding: .35rem .6rem; border-bottom: 1px solid var(--line); }
td { white-space: nowrap; }
th:first-child, td:first-child { text-align: left; }
th { font-weight: 600; vertical-align: bottom; }
.wide { overflow-x: auto; }
.note { border-left: 3px solid #e6a23c; background: var(--soft); padding: .4rem .8rem; margin: .5rem 0; }
.verdict { font-size: 1.1rem; margin: .4rem 0; } .verdict:first-of-type { font-size: 1.3rem; font-weight: 600; }
pre { background: var(--soft); padding: .7rem 1rem; border-radius: 4px; }
pre { white-space: pre-wrap; overflow-wrap: anywhere; }
img { width: 100%; background: white; border-radius: 4px; }
figure { margin: 1rem 0; } figcaption { font-size: .9rem; opacity: .8; }
li { margin: .3rem 0; }
dl { display: grid; grid-template-columns: max-content auto; gap: .1rem .9rem; font-size: .9rem; }
dt { font-weight: 600; } dd { margin: 0; }
"""


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
    for name in ("arm", "bits/dim", f"minus\n{rows[0].arm}", f"ESS (min)\nof {draws}", "params", "s", "equal\nafter"):
        table.add_column(name, justify="left" if name == "arm" else "right", no_wrap=True)
    for row in rows:
        # Eighty columns must do: reconstruction error and added parameters are left to the report.
        arm, bits, change, _, _, _, _, seconds, reached = cells(row)
        sizes = f"{row.ess_median:.1f} ({row.ess_min:.0f})"
        table.add_row(arm, bits, change, sizes, _short(row.parameters), seconds, reached)
    return table


def _short(count: int) -> str:
    return f"{count / 1e6:.2f}M" if count >= 1e6 else f"{count / 1e3:.0f}k" if count >= 1e4 else str(count)


def markdown_table(rows: Sequence[Row], draws: int) -> str:
    """Return the table in Markdown, for a README; `draws` as in `terminal_table`."""
    lines = [headings(rows[0].arm, draws), ["---"] + ["---:"] * (len(COLUMNS) - 1), *(list(cells(row)) for row in rows)]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines) + "\n"


def html_report(
    title: str,
    rows: Sequence[Row],
    draws: int,
    arms: Sequence[tuple[str, str]],
    notes: Sequence[str],
    pictures: Sequence[tuple[Path, str]],
    command: str,
    protocol: Sequence[str],
    meaning: Sequence[str],
    made_with: str,
    verdict: Sequence[str] = (),
) -> str:
    """Return a web page with everything inline: it opens offline.

    Args:
        title: heading.
        rows: of the table.
        draws: importance samples for the marginal of one sample.
        arms: name and text of each.
        notes: what stands against taking the table at its word.
        pictures: PNG files with their captions.
        command: that makes this comparison.
        protocol: how the numbers were made.
        meaning: what they mean.
        made_with: versions and machine, one line.
        verdict: sentences, the first of which says what to take away.
    """
    body = "".join(f"<tr>{''.join(f'<td>{escape(c)}</td>' for c in cells(row))}</tr>\n" for row in rows)
    figures = "".join(
        f'<figure><img alt="{escape(caption)}" src="data:image/png;base64,'
        f'{base64.b64encode(path.read_bytes()).decode()}"><figcaption>{escape(caption)}</figcaption></figure>\n'
        for path, caption in pictures
    )
    return f"""<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>{escape(title)}</title>
<style>{STYLE}</style>
</head>
<body>
<h1>{escape(title)}</h1>
{"".join(f'<p class="verdict">{escape(line)}</p>' for line in verdict)}
<div class="wide"><table>
<thead><tr>{"".join(f"<th>{escape(name)}</th>" for name in headings(rows[0].arm, draws))}</tr></thead>
<tbody>
{body}</tbody>
</table></div>
<dl>{"".join(f"<dt>{escape(name)}</dt><dd>{escape(text)}</dd>" for name, text in arms)}</dl>
{"".join(f'<p class="note">{escape(note)}</p>' for note in notes)}
<h2>What the number means</h2>
{"".join(f"<p>{escape(text)}</p>" for text in meaning)}
<h2>Pictures</h2>
{figures}<h2>How it was measured</h2>
<ul>{"".join(f"<li>{escape(line)}</li>" for line in protocol)}</ul>
<h2>The command</h2>
<pre>{escape(command)}</pre>
<p><small>{escape(made_with)}</small></p>
</body>
</html>
"""
