"""What a finished comparison writes: `results.json`, pictures, the report and its table."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from vae2aef.comparison import report, wording
from vae2aef.comparison.data import Dataset
from vae2aef.comparison.files import write_atomic, write_json
from vae2aef.comparison.machine import machine, versions
from vae2aef.comparison.options import Options
from vae2aef.comparison.plots import SHOWN, save_comparison, save_curves, save_sheet
from vae2aef.comparison.run import RunData
from vae2aef.comparison.summary import Row
from vae2aef.comparison.verdict import verdict


@dataclass(frozen=True)
class Outcome:
    """A finished comparison.

    Attributes:
        options: what was asked for.
        dataset: what it was asked of.
        data: the parts it was split into.
        runs: the result of each run, as `run_arm` returns it.
        rows: of the table.
        notes: what stands against taking the table at its word.
        shared: what all arms have in common.
    """

    options: Options
    dataset: Dataset
    data: RunData
    runs: list[dict[str, Any]]
    rows: list[Row]
    notes: list[str]
    shared: str

    @property
    def title(self) -> str:
        """The heading of table and report."""
        steps, draws = self.options.steps, self.options.importance_samples
        return f"VAE and AEF on {self.dataset.name}: {steps} steps, {draws} draws a test sample"

    @property
    def verdict(self) -> list[str]:
        """What to take away, and what to try next."""
        return verdict(self.rows, self.options)

    @property
    def sizes(self) -> dict[str, int]:
        """How many samples each part of the data has."""
        return {
            "train": len(self.data.train), "validation": len(self.data.validation), "test": len(self.data.test),
        }  # fmt: skip

    @property
    def protocol(self) -> list[str]:
        """How the numbers were made, one line each."""
        return wording.protocol(self.options, self.sizes, self.dataset.bins, self.shared)


def write_results(outcome: Outcome, out: Path) -> None:
    """Write everything to `out`, which holds the runs' own folders already."""
    about: dict[str, dict[str, Any]] = {"versions": versions(), "machine": machine()}
    command = outcome.options.command(str(out))
    write_json(out / "results.json", _content(outcome, about, command))
    _save_pictures(outcome, out)
    page = _page(outcome, about, command, out)
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
    arms, originals = outcome.options.arms, outcome.data.shown.numpy()
    pictures = {arm: _pictures(out / "runs" / f"seed0-{arm}") for arm in arms}
    save_sheet(out / "originals.png", originals[:SHOWN])
    for arm, shown in pictures.items():
        save_sheet(out / f"reconstructions-{arm}.png", shown["reconstructions"][:SHOWN])
        save_sheet(out / f"samples-{arm}.png", shown["samples"])
        save_sheet(out / f"draws-{arm}.png", shown["draws"])
    save_comparison(out / "comparison.png", originals, pictures, outcome.rows)
    save_curves(out / "curves.png", outcome.runs, arms)


def _pictures(folder: Path) -> dict[str, np.ndarray]:
    with np.load(folder / "pictures.npz", allow_pickle=False) as file:
        return {name: file[name] for name in file.files}


def _page(outcome: Outcome, about: dict[str, dict[str, Any]], command: str, out: Path) -> str:
    """Return the report as a web page."""
    return report.html_report(
        title=outcome.title,
        rows=outcome.rows,
        draws=outcome.options.importance_samples,
        arms=wording.arms(outcome.options),
        notes=outcome.notes,
        pictures=[
            (out / "comparison.png", "Test data, their reconstructions and samples; bits per dimension at the left."),
            (out / "curves.png", "Validation marginals (comparable) and training losses (not comparable)."),
        ],
        command=command,
        protocol=outcome.protocol,
        meaning=wording.MEANING,
        made_with=_made_with(about),
        verdict=outcome.verdict,
    )


def _made_with(about: dict[str, dict[str, Any]]) -> str:
    packages = ", ".join(f"{name} {number}" for name, number in about["versions"].items())
    where = about["machine"]
    return (
        f"{packages}. {where['processor']}, {where['cores']} cores, {where['torch_threads']} torch threads, "
        f"accelerator: {where['accelerator']}."
    )
