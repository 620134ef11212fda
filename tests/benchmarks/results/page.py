"""Write the results page: `python page.py --runs FOLDER --docs docs`: tables, curves, and the raw runs as JSON.

The sentences are those of `text.md` beside this; the tables are computed from the runs.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from arms import ARMS
from cells import CELLS, Cell

from vae2aef.comparison.summary import MeanInterval, mean_and_error

SHOWN = ("vae", "features", "aef", "aef-noise", "vae-prior", "aef-prior", "noise-prior")
"""Arms of the front table."""

HONEST = ("bounded-0", "volume-flow-0", "flow-0", "decoder-noise-0", "jacobian-0", "warm-up-0")
"""Ways to keep sigma = 0 honest."""

STARTS = {
    "features": "small-features", "aef": "small-aef", "aef-noise": "small-noise", "aef-prior": "small-aef-prior",
    "noise-prior": "small-noise-prior",
}  # fmt: skip
"""What started from the default, and from the smaller h that was the default before."""

APART = ("mnist-gaussian",)
"""Cells that the front table leaves out: MNIST again, with the likelihood of the paper."""

TITLES = {
    "mnist": "MNIST", "cifar10": "CIFAR-10 with the logistic", "cifar10-gaussian": "CIFAR-10 with the Gaussian",
    "digits": "digits", "fashion": "FashionMNIST", "mnist-bits": "MNIST as bits", "mnist2": "MNIST with two latents",
    "patches": "patches", "shuttle": "Shuttle", "power": "power demand", "genes": "genes",
}  # fmt: skip

WITHOUT = ("gaussian", "flow", "center")
"""Arms with an exact density: no VAE, or a partition."""

COLOURS = ("black", "tab:gray", "tab:red", "tab:orange", "tab:blue", "tab:purple", "tab:green")
PICTURED = ("mnist", "fashion", "cifar10-gaussian", "mnist-bits", "patches", "digits")

Runs = dict[str, dict[int, dict[str, Any]]]


class Line(NamedTuple):
    """One arm of one cell; log p(x) in the unit of the cell, the difference to the VAE over the seeds both have."""

    arm: str
    value: MeanInterval
    difference: MeanInterval | None
    seeds: int
    run: dict[str, Any]


def read(folder: Path) -> dict[str, Runs]:
    """Return the runs by cell, arm and seed."""
    found: dict[str, Runs] = {}
    for name in CELLS:
        runs: Runs = {}
        for path in sorted((folder / name).glob("*.json")):
            run = json.loads(path.read_text())
            runs.setdefault(run["arm"], {})[run["seed"]] = run
        if "vae" in runs:
            found[name] = {arm: runs[arm] for arm in ARMS if arm in runs}
    return found


def factor(cell: Cell) -> float:
    """What nats are multiplied by: lower bits per dimension are better, more nats are."""
    return -1 / (cell.values * np.log(2)) if cell.unit == "bits" else 1.0


def offset(cell: Cell) -> float:
    """Bits a value that dequantised data have beside those of their density."""
    return float(np.log2(cell.bins)) if cell.likelihood == "vae" and cell.bins > 1 else 0.0


def lines(cell: Cell, runs: Runs) -> list[Line]:
    """Return the arms of a cell, the best first."""
    scale, shift = factor(cell), offset(cell)
    found = []
    for arm, own in runs.items():
        seeds = sorted(own)
        table = np.array([own[seed]["log_prob"] for seed in seeds]) * scale + shift
        both = [seed for seed in seeds if seed in runs["vae"]]
        difference = None
        if arm != "vae" and both:
            pairs = [np.array(own[s]["log_prob"]) - np.array(runs["vae"][s]["log_prob"]) for s in both]
            difference = mean_and_error(np.array(pairs) * scale)
        found.append(Line(arm, mean_and_error(table), difference, len(seeds), own[seeds[0]]))
    return sorted(found, key=lambda line: line.value.mean * (1 if scale < 0 else -1))


def number(value: float, digits: int, sign: bool = False) -> str:
    return f"{value:{'+' if sign else ''}.{digits}f}".replace("-", "−")


def spread(found: MeanInterval, digits: int, sign: bool = False) -> str:
    return f"{number(found.mean, digits, sign)} ± {number(found.interval, digits)}"


def table(found: list[Line], cell: Cell, runs: Runs) -> str:
    """One cell's table."""
    digits = 3 if cell.unit == "bits" else 2
    unit = "bits per dimension" if cell.unit == "bits" else "log p(x), nats"
    rows = [
        f"| arm | {unit} | difference to the VAE | seeds | certificate, nats | uncertain | best step | std of h "
        "| equal after | s of training |",
        "|---|---:|---:|---:|---:|---:|---:|---:|---:|---:|",
    ]
    for line in found:
        run = line.run
        best = min(run["validation_nats"], key=lambda point: point[1])
        difference = "" if line.difference is None else spread(line.difference, digits, sign=True)
        drift = f"{run['gauge']['std_h']:.2f}" if run["gauge"] else ""
        rows.append(
            f"| {ARMS[line.arm].text} | {spread(line.value, digits)} | {difference} | {line.seeds} | "
            f"{number(run['certificate'], 2)} | {100 * run['uncertain'] / len(run['log_prob']):.0f} % | {best[0]} | "
            f"{drift} | {equal_after(run, runs['vae'])} | {best_seconds(run)} |"
        )
    return "\n".join(rows)


def equal_after(run: dict[str, Any], vae: dict[int, dict[str, Any]]) -> str:
    """The share of the steps after which a run was as good on held-out data as the VAE of its seed ever was."""
    if run["seed"] not in vae:
        return ""
    best = min(value for _, value, _ in vae[run["seed"]]["validation_nats"])
    step = next((step for step, value, _ in run["validation_nats"] if value <= best), None)
    return "never" if step is None else f"{100 * step / run['steps']:.0f} %"


def best_seconds(run: dict[str, Any]) -> str:
    """Seconds of all steps on the GPU, of the first session; a crowded GPU or a shared CPU says nothing."""
    return f"{run['validation_nats'][-1][2]:.1f}" if run["graph"] and not run.get("crowded") else ""


def equal_seconds(all_runs: dict[str, Runs], arm: str, other: str) -> str:
    """Held-out log p(x) of an arm after all its steps, and of another after as many seconds and as many steps.

    Of first seeds, on the GPU; after a time that lies between two looks the later one is taken.
    """
    rows = [f"| nats of held-out data | {ARMS[arm].text} | {ARMS[other].text}: as many seconds | as many steps |"]
    rows.append("|---|---:|---:|---:|")
    for name, runs in all_runs.items():
        if all(0 in runs.get(one, {}) for one in (arm, other)):
            first, second = (runs[one][0]["validation_nats"] for one in (arm, other))
            seconds = first[-1][2]
            then = next((look for look in second if look[2] >= seconds), second[-1])
            shown = (f"{number(-nats, 1)} ({after:.1f} s)" for _, nats, after in (first[-1], then, second[-1]))
            rows.append(f"| {CELLS[name].about} | " + " | ".join(shown) + " |")
    return "\n".join(rows)


def front(all_runs: dict[str, Runs]) -> str:
    """The table of differences to the VAE, a row an arm, a column a cell."""
    cells = [name for name in all_runs if name not in APART]
    rows = ["| arm | " + " | ".join(cells) + " |", "|---|" + "---:|" * len(cells)]
    found = {name: {x.arm: x for x in lines(CELLS[name], all_runs[name])} for name in cells}
    for arm in SHOWN:
        entries = []
        for name in cells:
            line = found[name].get(arm)
            digits = 3 if CELLS[name].unit == "bits" else 2
            if line is None:
                entries.append("")
            elif line.difference is None:
                entries.append(number(line.value.mean, digits))
            else:
                entries.append(spread(line.difference, digits, sign=True))
        rows.append(f"| {ARMS[arm].text} | " + " | ".join(entries) + " |")
    return "\n".join(rows)


def against(all_runs: dict[str, Runs], arms: tuple[str, ...], other: str) -> str:
    """Nats of the test data of each arm less those of another, paired by datum, of the first seed that both have."""
    cells = [name for name, runs in all_runs.items() if any(arm in runs for arm in arms)]
    rows = [f"| nats against {ARMS[other].text} | " + " | ".join(cells) + " |", "|---|" + "---:|" * len(cells)]
    for arm in arms:
        entries = []
        for name in cells:
            own, reference = (all_runs[name].get(one, {}) for one in (arm, other))
            both = sorted(own.keys() & reference.keys())
            pair = [np.array(runs[both[0]]["log_prob"]) for runs in (own, reference)] if both else None
            entries.append(spread(mean_and_error((pair[0] - pair[1])[None]), 1, sign=True) if pair else "")
        if any(entries):
            rows.append(f"| {ARMS[arm].text} | " + " | ".join(entries) + " |")
    return "\n".join(rows)


def recommended(all_runs: dict[str, Runs], arm: str = "noise-prior") -> str:
    """What is recommended for images beside the best arm of the first table, by cell, over the seeds that both have."""
    rows = ["| | the best arm of the first table | recommended less best | seeds |", "|---|---|---:|---:|"]
    for name, runs in all_runs.items():
        cell = CELLS[name]
        best = next(line.arm for line in lines(cell, runs) if line.arm in SHOWN)
        found, seeds = between(cell, runs, arm, best)
        digits, unit = (3, "bits") if cell.unit == "bits" else (2, "nats")
        told = "" if best == arm or found is None else f"{spread(found, digits, sign=True)} {unit}"
        rows.append(f"| {cell.about} | {ARMS[best].text} | {told} | {seeds} |")
    return "\n".join(rows)


def between(cell: Cell, runs: Runs, arm: str, other: str) -> tuple[MeanInterval | None, int]:
    """Return an arm less another in the unit of the cell, paired by seed and datum, and over how many seeds."""
    both = sorted(runs.get(arm, {}).keys() & runs.get(other, {}).keys())
    if not both or arm == other:
        return None, len(both)
    pairs = np.array([np.subtract(runs[arm][seed]["log_prob"], runs[other][seed]["log_prob"]) for seed in both])
    return mean_and_error(pairs * factor(cell)), len(both)


def against_vae(all_runs: dict[str, Runs]) -> str:
    """Where each arm of the first table is surely ahead of the VAE, and where behind."""
    rows = ["| nats against the VAE | surely ahead | surely behind |", "|---|---|---|"]
    for arm in SHOWN[1:]:
        cells = (", ".join(_names(all_runs, arm, "vae", sign)) for sign in (1, -1))
        rows.append(f"| {ARMS[arm].text} | {' | '.join(cells)} |")
    return "\n".join(rows)


def sides(all_runs: dict[str, Runs], arm: str, other: str) -> str:
    """Where an arm is surely ahead of another, and where behind, with nats of the test data."""
    said = []
    for sign, words in ((1, "surely ahead on"), (-1, "surely behind on")):
        names = _names(all_runs, arm, other, sign)
        if names:
            said.append(f"{words} {_listed(names)}")
    return ", ".join(said) + " (nats)"


def _names(all_runs: dict[str, Runs], arm: str, other: str, sign: int) -> list[str]:
    found = []
    for name, runs in all_runs.items():
        pair, seeds = between(CELLS[name], runs, arm, other)
        if name in APART or pair is None or seeds < 2:
            continue
        mean, interval = pair.mean / factor(CELLS[name]), abs(pair.interval / factor(CELLS[name]))
        if mean * sign > interval:
            digits = 1 if abs(mean) < 20 else 0
            found.append(f"{TITLES[name]} ({number(abs(mean), digits)} ± {number(interval, digits)})")
    return found


def _listed(names: list[str]) -> str:
    return names[0] if len(names) == 1 else f"{', '.join(names[:-1])} and {names[-1]}"


def start(all_runs: dict[str, Runs]) -> str:
    """What the default start of h gives over the small one, over the seeds that both have."""
    cells = list(all_runs)
    rows = ["| unit less small start | " + " | ".join(cells) + " |", "|---|" + "---:|" * len(cells)]
    for arm, small in STARTS.items():
        entries = []
        for name in cells:
            found, seeds = between(CELLS[name], all_runs[name], arm, small)
            digits = 3 if CELLS[name].unit == "bits" else 2
            entries.append("" if found is None else f"{spread(found, digits, sign=True)} ({seeds})")
        rows.append(f"| {ARMS[arm].text} | " + " | ".join(entries) + " |")
    return "\n".join(rows)


def beside(all_runs: dict[str, Runs]) -> str:
    """The table of what has a density on x itself, in the unit of each cell, with the best VAE's or AEF's own."""
    cells = [name for name, runs in all_runs.items() if any(arm in runs for arm in WITHOUT)]
    rows = ["| | " + " | ".join(cells) + " |", "|---|" + "---:|" * len(cells)]
    found = {name: {x.arm: x for x in lines(CELLS[name], all_runs[name])} for name in cells}
    digits = {name: 3 if CELLS[name].unit == "bits" else 2 for name in cells}
    for arm in WITHOUT:
        entries = [number(found[n][arm].value.mean, digits[n]) if arm in found[n] else "" for n in cells]
        rows.append(f"| {ARMS[arm].text} | " + " | ".join(entries) + " |")
    for text, arms in (("the VAE, by its ELBO", ("vae",)), ("the best arm of the first table", SHOWN)):
        best = [next(x for x in found[n].values() if x.arm in arms) for n in cells]  # the best is first
        rows.append(
            f"| {text} | "
            + " | ".join(number(x.value.mean, digits[n]) for x, n in zip(best, cells, strict=True))
            + " |"
        )
    return "\n".join(rows)


def with_table(readme: str, table: str) -> str:
    """Put the rows of the front table under the heading that the README gives them."""
    before, heading, rest = readme.partition("|---|---:|---:|---:|---:|---:|---:|\n")
    after = rest[rest.index("\n\n") :]
    return before + heading + "\n".join(table.splitlines()[2:]) + after


def picture(all_runs: dict[str, Runs], path: Path) -> None:
    """Learning curves of the first seed: held-out log p(x) against the step."""
    from matplotlib.figure import Figure

    names = [name for name in PICTURED if name in all_runs]
    figure = Figure(figsize=(12, 6.4), layout="constrained", facecolor="white")
    for axes, name in zip(figure.subplots(2, 3).flat, names, strict=False):
        cell = CELLS[name]
        for arm, colour in zip(SHOWN, COLOURS, strict=True):
            run = all_runs[name].get(arm, {}).get(0)
            if run is None:
                continue
            steps = [point[0] for point in run["validation_nats"]]
            values = [-point[1] * factor(cell) + offset(cell) for point in run["validation_nats"]]
            axes.plot(steps[1:], values[1:], "-", color=colour, lw=1.4, label=ARMS[arm].text)
        axes.set_title(cell.about, fontsize=9)
        axes.set_ylabel("bits per dimension" if cell.unit == "bits" else "log p(x), nats", fontsize=8)
        axes.set_xlabel("step", fontsize=8)
        axes.tick_params(labelsize=8)
    handles, labels = figure.axes[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncol=4, fontsize=8)
    figure.savefig(path, dpi=110)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=Path, required=True)
    parser.add_argument("--docs", type=Path, required=True)
    options = parser.parse_args()
    all_runs = read(options.runs)
    (options.docs / "results").mkdir(exist_ok=True)
    tables = {
        "{front}": front(all_runs), "{core_flow}": equal_seconds(all_runs, "small-noise", "noise-flow"),
        "{honest}": against(all_runs, HONEST, "small-aef"), "{beside}": beside(all_runs), "{start}": start(all_runs),
        "{recommended}": recommended(all_runs), "{against_vae}": against_vae(all_runs),
        "{sigma}": sides(all_runs, "aef-noise", "aef"), "{prior}": sides(all_runs, "noise-prior", "aef-noise"),
    }  # fmt: skip
    parts = [(Path(__file__).parent / "text.md").read_text()]
    for name, made in tables.items():
        if name not in parts[0]:
            raise SystemExit(f"text.md has no place for {name}")
        parts[0] = parts[0].replace(name, made)
    for name, runs in all_runs.items():
        cell = CELLS[name]
        parts.append(f"### {cell.about}\n\n{cell.steps} steps.\n\n{table(lines(cell, runs), cell, runs)}\n")
        flat = [run for own in runs.values() for run in own.values()]
        (options.docs / "results" / f"{name}.json").write_text(json.dumps(flat))
    (options.docs / "results.md").write_text("\n".join(parts))
    picture(all_runs, options.docs / "images" / "results.png")
    readme = options.docs.parent / "README.md"
    if set(PICTURED) <= set(all_runs):
        readme.write_text(with_table(readme.read_text(), front({name: all_runs[name] for name in PICTURED})))


if __name__ == "__main__":
    main()
