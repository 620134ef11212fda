"""`vae2aef compare`: one VAE, several ways to train it, one honest table."""

from __future__ import annotations

import hashlib
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import torch
from rich.console import Console
from rich.text import Text

from vae2aef.aef import AEF
from vae2aef.comparison import report, texts
from vae2aef.comparison.arms import Recipe
from vae2aef.comparison.batches import continuous
from vae2aef.comparison.data import Dataset, load
from vae2aef.comparison.display import Display
from vae2aef.comparison.factory import find_factory, takes_latents
from vae2aef.comparison.files import check_out, open_out, write_atomic, write_json
from vae2aef.comparison.inputs import InputError
from vae2aef.comparison.look import LOOKED_AT, look
from vae2aef.comparison.machine import machine, versions
from vae2aef.comparison.options import Options
from vae2aef.comparison.plots import SHOWN, save_comparison, save_curves, save_sheet
from vae2aef.comparison.run import Held, run_arm
from vae2aef.comparison.summary import Row, summarise
from vae2aef.errors import NonFiniteError
from vae2aef.flows import Bijection, Chain, Identity
from vae2aef.preprocess import Logit, Standardize, bits_per_dim

VALIDATION_LIMIT = 256
FIT_LIMIT = 20_000


def compare(options: Options, out: Path, console: Console, overwrite: bool = False) -> list[Row]:
    """Train and test every arm with every seed, and write tables and pictures to `out`.

    A run that `out` already holds is not done again, and one that was stopped is taken up where it stopped.

    Args:
        options: what to compare.
        out: folder for `results.json`, `report.html`, pictures and `runs/`; made only when all inputs are known
            to be good.
        console: for progress and the table.
        overwrite: throw away another comparison in `out`.

    Returns:
        The rows of the table, one an arm.

    Raises:
        InputError: data, VAE, options or folder cannot be used; nothing was written.
        NonFiniteError: training diverged; names arm and seed.
        KeyboardInterrupt: Ctrl-C; the same call goes on from there.
    """
    find_factory(options.vae)
    check_out(out, overwrite)
    with torch.random.fork_rng(devices=range(torch.cuda.device_count())):
        dataset = load(options.data, options.bins)
        data, recipe = _prepare(dataset, options)
        looked = look(recipe, options, continuous(data.train[:LOOKED_AT], data.bins, "look"))
        weights, shared = _check(recipe, options)
        open_out(out, options, {"data": dataset.digest(), "initial weights of the VAE": weights}, overwrite)
        _say(looked, console)
        if options.latents != Options.latents and not takes_latents(options.vae):
            console.print(f"--latents is not used: {options.vae} does not take it", highlight=False)
        results = _run_all(options, data, recipe, out, console)
    rows = summarise(results, options.arms, dataset.event_shape, dataset.bins, options.importance_samples)
    notes = texts.warnings(rows, options)
    _write(options, dataset, data, results, rows, out, [*looked, *notes], shared)
    console.print(report.terminal_table(rows, _title(options, dataset), options.importance_samples))
    for arm, text in _arms(options):
        console.print(f"[bold]{arm}[/]: {text}", highlight=False, soft_wrap=True)
    _say(notes, console)
    console.print(f"{out / 'report.html'}", highlight=False, soft_wrap=True)
    return rows


def _say(notes: list[str], console: Console) -> None:
    for note in notes:
        console.print(Text.assemble(("note", "yellow"), f" {note}"), soft_wrap=True)


def _arms(options: Options) -> list[tuple[str, str]]:
    return [(arm, texts.arm(arm, options.core_flow)) for arm in options.arms]


def _prepare(dataset: Dataset, options: Options) -> tuple[Held, Recipe]:
    """Split, dequantise what is held out, and fit the preprocessing."""
    train, validation = dataset.split_validation()
    if options.preprocess == "logit" and dataset.bins == 1:
        for x in (dataset.x_train, dataset.x_test):
            if x.min() < 0 or x.max() > 1:
                raise InputError(
                    f"--preprocess logit takes data within 0 and 1, {options.data} has values from "
                    f"{x.min():g} to {x.max():g}; scale them, or use --preprocess standardize or none"
                )
    order = torch.randperm(len(dataset.x_test), generator=torch.Generator().manual_seed(0))
    test = dataset.x_test[order[: options.test_limit or None]]
    test = continuous(test, dataset.bins, "dequantize test")
    seen = continuous(train[:FIT_LIMIT], dataset.bins, "dequantize fit")
    held = Held(
        train=train,
        validation=continuous(validation[:VALIDATION_LIMIT], dataset.bins, "dequantize validation"),
        test=test,
        shown=test[: 2 * SHOWN],
        bins=dataset.bins,
    )
    preprocess = _preprocess(seen, options)
    recipe = Recipe(options.vae, options.latents, options.prior, options.core_flow, preprocess, seen[:16])
    return held, recipe


def _preprocess(x: torch.Tensor, options: Options) -> Bijection:
    """Paper D.3: the logit, then a shift and a scale; ours are fitted, one of each a feature, and not learned."""
    if options.preprocess == "none":
        return Identity()
    if options.preprocess == "standardize":
        return Standardize.fit(x, per="feature")
    logit = Logit(options.lam)
    return Chain(logit, Standardize.fit(logit(x)[0], per="feature"))


def _check(recipe: Recipe, options: Options) -> tuple[str, str]:
    """Build every arm and take one loss before anything is written.

    Returns:
        A digest of the VAE's weights, and what all arms have in common.
    """
    for arm in options.arms:
        aef = recipe.build(arm, 0)
        try:
            aef(recipe.example)
        except (RuntimeError, ValueError, TypeError) as problem:
            raise InputError(f"--vae {options.vae}: {arm} has no loss on the data: {problem}") from problem
    aef = recipe.build(options.arms[0], 0)
    sha = hashlib.sha256()
    for name, value in aef.vae.state_dict().items():
        sha.update(name.encode() + repr(tuple(value.shape)).encode() + value.detach().cpu().numpy().tobytes())
    return sha.hexdigest()[:16], texts.model(aef, options)


def _run_all(options: Options, data: Held, recipe: Recipe, out: Path, console: Console) -> list[dict[str, Any]]:
    runs = [(seed, arm) for seed in range(options.seeds) for arm in options.arms]
    results = []
    with Display(console, len(runs), options.steps) as display:
        for seed, arm in runs:
            name = f"{arm}, seed {seed}"
            folder = out / "runs" / f"seed{seed}-{arm}"
            there = (folder / "result.json").exists()

            def build(arm: str = arm, seed: int = seed) -> AEF:
                return recipe.build(arm, seed)

            if there:
                display.skip()
            show = display.start(name)
            try:
                result = run_arm(build, arm, seed, data, options, folder, show)
            except NonFiniteError as problem:
                raise NonFiniteError(f"{name}: {problem}. Training diverged; try a smaller --lr") from problem
            results.append(result)
            test = torch.tensor(result["test"]["log_prob"], dtype=torch.float64)
            bits = float(bits_per_dim(test, data.test.shape[1:], data.bins).mean())
            display.line(f"{name}: test {bits:.4f} bits per dimension" + (" (from before)" if there else ""))
    return results


def _write(
    options: Options,
    dataset: Dataset,
    data: Held,
    results: list[dict[str, Any]],
    rows: list[Row],
    out: Path,
    notes: list[str],
    shared: str,
) -> None:
    """Write `results.json`, the pictures and the report."""
    sizes: dict[str, int] = {"train": len(data.train), "validation": len(data.validation), "test": len(data.test)}
    command = options.command(str(out))
    about: dict[str, dict[str, Any]] = {"versions": versions(), "machine": machine()}
    about_data = {
        "name": dataset.name,
        "event_shape": list(dataset.event_shape),
        "bins": dataset.bins,
        "digest": dataset.digest(),
        "sizes": sizes,
    }
    protocol = texts.protocol(options, sizes, dataset.bins, results[0]["proposal"], shared)
    write_json(
        out / "results.json",
        {
            "command": command,
            "options": options.as_dict(),
            **about,
            "data": about_data,
            "protocol": protocol,
            "notes": notes,
            "rows": [asdict(row) for row in rows],
            # One value a test sample is in runs/*/result.json.
            "runs": [{key: value for key, value in run.items() if key != "test"} for run in results],
        },
    )
    pictures = {arm: _pictures(out / "runs" / f"seed0-{arm}") for arm in options.arms}
    originals = data.shown.numpy()
    save_sheet(out / "originals.png", originals[:SHOWN])
    for arm, shown in pictures.items():
        save_sheet(out / f"reconstructions-{arm}.png", shown["reconstructions"][:SHOWN])
        save_sheet(out / f"samples-{arm}.png", shown["samples"])
    save_comparison(out / "comparison.png", originals, pictures, rows)
    save_curves(out / "curves.png", results, options.arms)
    page = report.html_report(
        title=_title(options, dataset),
        rows=rows,
        draws=options.importance_samples,
        arms=_arms(options),
        notes=notes,
        pictures=[
            (out / "comparison.png", "Test data, their reconstructions and samples; bits per dimension at the left."),
            (out / "curves.png", "Validation marginals (comparable) and training losses (not comparable)."),
        ],
        command=command,
        protocol=protocol,
        meaning=texts.MEANING,
        made_with=_made_with(about),
    )
    write_atomic(out / "report.html", lambda path: path.write_text(page, encoding="utf-8"))
    table = report.markdown_table(rows, options.importance_samples)
    write_atomic(out / "table.md", lambda path: path.write_text(table, encoding="utf-8"))


def _pictures(folder: Path) -> dict[str, np.ndarray]:
    with np.load(folder / "pictures.npz", allow_pickle=False) as file:
        return {name: file[name] for name in file.files}


def _title(options: Options, dataset: Dataset) -> str:
    return f"VAE and AEF on {dataset.name}: {options.steps} steps, {options.importance_samples} draws a test sample"


def _made_with(about: dict[str, dict[str, Any]]) -> str:
    packages = ", ".join(f"{name} {number}" for name, number in about["versions"].items())
    where = about["machine"]
    return (
        f"{packages}. {where['processor']}, {where['cores']} cores, {where['torch_threads']} torch threads, "
        f"accelerator: {where['accelerator']}."
    )
