"""What a finished comparison writes: `results.json`, pictures, the report and its table."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Any

from vae2aef.comparison import report, sections
from vae2aef.comparison.files import write_atomic, write_json
from vae2aef.comparison.machine import machine, versions
from vae2aef.comparison.outcome import Material, Outcome
from vae2aef.comparison.page import render
from vae2aef.comparison.plots import SHOWN, save_comparison, save_curves, save_sheet

__all__ = ["Outcome", "write_results"]


def write_results(outcome: Outcome, out: Path) -> None:
    """Write everything to `out`, which holds the runs' own folders already."""
    about: dict[str, dict[str, Any]] = {"versions": versions(), "machine": machine()}
    command = outcome.options.command(str(out))
    write_json(out / "results.json", _content(outcome, about, command))
    _save_pictures(outcome, out)
    page = render(sections.page(outcome, out, command, _made_with(about)))
    write_atomic(out / "report.html", lambda path: path.write_text(page, encoding="utf-8"))
    table = report.markdown_table(outcome.rows, outcome.options.importance_samples)
    write_atomic(out / "table.md", lambda path: path.write_text(table, encoding="utf-8"))


def _content(outcome: Outcome, about: dict[str, dict[str, Any]], command: str) -> dict[str, Any]:
    """Return what goes into `results.json`."""
    dataset = outcome.dataset
    return {
        "command": command,
        "options": outcome.options.as_dict(),
        **about,
        "data": {
            "name": dataset.name,
            "event_shape": list(dataset.event_shape),
            "bins": dataset.bins,
            "digest": dataset.digest(),
            "sizes": outcome.sizes,
        },
        "verdict": outcome.verdict,
        "protocol": outcome.protocol,
        "notes": outcome.notes,
        "rows": [asdict(row) for row in outcome.rows],
        # One value a test sample is in runs/*/result.json.
        "runs": [{key: value for key, value in run.items() if key != "test"} for run in outcome.runs],
    }


def _save_pictures(outcome: Outcome, out: Path) -> None:
    material = Material(outcome, out)
    originals, pictures = material.shown, material.arrays
    save_sheet(out / "originals.png", originals[:SHOWN])
    for arm, shown in pictures.items():
        save_sheet(out / f"reconstructions-{arm}.png", shown["reconstructions"][:SHOWN])
        save_sheet(out / f"samples-{arm}.png", shown["samples"])
        save_sheet(out / f"draws-{arm}.png", shown.get("draws_of_samples", shown["draws"]))
    save_comparison(out / "comparison.png", originals, pictures, outcome.rows)
    save_curves(out / "curves.png", outcome.runs, material.arms)


def _made_with(about: dict[str, dict[str, Any]]) -> str:
    packages = ", ".join(f"{name} {number}" for name, number in about["versions"].items())
    where = about["machine"]
    return (
        f"{packages}. {where['processor']}, {where['cores']} cores, {where['torch_threads']} torch threads, "
        f"accelerator: {where['accelerator']}."
    )
