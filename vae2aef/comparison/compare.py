"""`vae2aef compare`: one VAE, several ways to train it, one honest table."""

from __future__ import annotations

import hashlib
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from rich.console import Console

from vae2aef.aef import AEF
from vae2aef.comparison import remarks, report, wording
from vae2aef.comparison.arms import Recipe
from vae2aef.comparison.batches import continuous
from vae2aef.comparison.conditions import read_conditions
from vae2aef.comparison.damage import damage
from vae2aef.comparison.data import Dataset, load
from vae2aef.comparison.device import require_device
from vae2aef.comparison.display import Beginning, Display
from vae2aef.comparison.errors import InputError
from vae2aef.comparison.factory import find_factory, takes_latents
from vae2aef.comparison.folder import check_out, opened
from vae2aef.comparison.inspect_vae import INSPECTED_ROWS, inspect_vae
from vae2aef.comparison.likelihoods import GRIDS, values
from vae2aef.comparison.options import Options
from vae2aef.comparison.own_loop import of_recipe
from vae2aef.comparison.plots import SHOWN
from vae2aef.comparison.results import Outcome, write_results
from vae2aef.comparison.rows import Rows
from vae2aef.comparison.run import RunData, run_arm
from vae2aef.comparison.summary import Row, summarise
from vae2aef.errors import NonFiniteError
from vae2aef.flows import Bijection, Chain, Identity
from vae2aef.preprocess import Logit, Standardize, bits_per_dim

VALIDATION_LIMIT = 256
EXAMPLE_ROWS = 128
FIT_LIMIT = 20_000


def compare(options: Options, out: Path, console: Console, overwrite: bool = False) -> list[Row]:
    """Train and test every arm with every seed, and write tables and pictures to `out`.

    A run that `out` already holds is not done again, and one that was stopped is taken up where it stopped.

    Args:
        options: what to compare.
        out: folder for `results.json`, `report.html`, pictures and `runs/`; made only when all inputs are known
            to be good.
        console: for progress and the table.
        overwrite: throw away another comparison in `out`; the same one is gone on with.

    Returns:
        The rows of the table, one an arm.

    Raises:
        InputError: data, VAE, options or folder cannot be used; nothing was written.
        NonFiniteError: training diverged; names arm and seed.
        KeyboardInterrupt: Ctrl-C or, as `Terminated`, SIGTERM; the same call goes on from there.
    """
    require_device(options.device)
    check_out(out, overwrite)
    with torch.random.fork_rng(devices=range(torch.cuda.device_count())):
        with Beginning(console) as doing:
            doing(f"importing {options.vae}")
            find_factory(options.vae)
            doing(f"reading {options.data}")
            dataset = load(options.data, options.bins)
            found = remarks.of_data(dataset, options)
            with remarks.naming(dataset.notes):
                data, recipe = _conditioned(dataset, options, *_prepare(dataset, options))
                doing(f"calling {options.vae}")
                found += remarks.of_loss(recipe.make(0)["vae"], options)
                doing("a loss of every arm")
                # "look" names the random stream of these rows, and stays what it was.
                found += inspect_vae(recipe, options, continuous(data.train[:INSPECTED_ROWS], data.bins, "look"))
                weights, shared, of_latents = _check(recipe, options)
            found += of_latents
        digests = {"data": dataset.digest(), "initial weights of the VAE": weights}
        with opened(out, options, digests, overwrite):
            console.print(doing.said(), highlight=False, soft_wrap=True)
            remarks.say(found, console)
            if options.latents != Options.latents and not takes_latents(options.vae):
                console.print(f"--latents is not used: {options.vae} does not take it", highlight=False)
            results = _run_all(options, data, recipe, out, console)
            rows = summarise(results, options.arms, dataset.event_shape, data.bins, options.importance_samples)
            notes = [
                *remarks.of_bits(rows, dataset.bins),
                *wording.warnings(rows, options),
                *wording.drifts(results, dataset.event_shape, data.bins),
                *wording.nats(rows, options, dataset.event_shape),
                *wording.certificates(rows),
            ]
            outcome = Outcome(options, dataset, data, results, rows, [*found, *notes], shared, of_recipe(recipe))
            write_results(outcome, out)
    _show(outcome, notes, out, console)
    return rows


def _show(outcome: Outcome, notes: list[str], out: Path, console: Console) -> None:
    """Print what came out."""
    headline, *more = outcome.verdict
    console.print(headline, style="bold", highlight=False, soft_wrap=True)
    for sentence in more:
        console.print(sentence, highlight=False, soft_wrap=True)
    console.print(report.terminal_table(outcome.rows, outcome.title, outcome.options.importance_samples))
    for arm, text in wording.arms(outcome.options):
        console.print(f"[bold]{arm}[/]: {text}", highlight=False, soft_wrap=True)
    remarks.say(notes, console)
    console.print(f"{out / 'report.html'}", highlight=False, soft_wrap=True)


def _conditioned(dataset: Dataset, options: Options, data: RunData, recipe: Recipe) -> tuple[RunData, Recipe]:
    """Add what a conditional VAE is told."""
    known = read_conditions(dataset, options)
    known = known._replace(validation=tuple(one[: len(data.validation)] for one in known.validation))
    rows = tuple(one[: len(recipe.example)] for one in known.train)
    return replace(data, conditions=known), replace(recipe, cond=rows, classes=len(dataset.classes))


def _prepare(dataset: Dataset, options: Options) -> tuple[RunData, Recipe]:
    """Split, dequantise what is held out, and fit the preprocessing."""
    if options.discrete:
        return _prepare_discrete(dataset, options)
    train, validation = dataset.split_validation()
    dataset.require_range(options.preprocess, options.data)
    test = continuous(dataset.some_test(options.test_limit), dataset.bins, "dequantize test")
    seen = continuous(train[:FIT_LIMIT], dataset.bins, "dequantize fit")
    held = RunData(
        train=train,
        validation=continuous(validation[:VALIDATION_LIMIT], dataset.bins, "dequantize validation"),
        test=test,
        shown=test[: 2 * SHOWN],
        bins=dataset.bins,
    )
    preprocess = _preprocess(seen, options)
    # A copy, as a slice would hold all rows that were seen for as long as the comparison lasts.
    return held, _recipe(options, preprocess, seen[:EXAMPLE_ROWS].clone(), dataset.bins)


def _prepare_discrete(dataset: Dataset, options: Options) -> tuple[RunData, Recipe]:
    """Split; data are scored as they are, and their bits are exact."""
    if dataset.bins == 1 and options.likelihood in GRIDS:
        raise InputError(f"--likelihood {options.likelihood} is of grey levels, and {options.data} is continuous")

    def scored(x: torch.Tensor) -> torch.Tensor:
        return values(x, dataset.bins, options.likelihood)

    train, validation = dataset.split_validation()
    all_scored = train.map(scored) if isinstance(train, Rows) else scored(train)
    test = scored(dataset.some_test(options.test_limit))
    held = RunData(all_scored, scored(validation[:VALIDATION_LIMIT]), test, test[: 2 * SHOWN], bins=1)
    return held, _recipe(options, Identity(), held.train[:EXAMPLE_ROWS], dataset.bins)


def _recipe(options: Options, preprocess: Bijection, example: torch.Tensor, bins: int) -> Recipe:
    flows = options.prior, options.core_flow
    return Recipe(options.vae, options.latents, *flows, preprocess, example, options.likelihood, bins)


def _preprocess(x: torch.Tensor, options: Options) -> Bijection:
    """Paper D.3: the logit, then a shift and a scale; ours are fitted, one of each a feature, and not learned."""
    if options.preprocess == "none":
        return Identity()
    if options.preprocess == "standardize":
        return Standardize.fit(x, per="feature")
    logit = Logit(options.lam)
    return Chain(logit, Standardize.fit(logit(x)[0], per="feature"))


def _check(recipe: Recipe, options: Options) -> tuple[str, str, list[str]]:
    """Build every arm and take one loss before anything is written.

    Returns:
        A digest of the VAE's weights, what all arms have in common, and notes on the latents.
    """
    first = recipe.build(options.arms[0], 0)
    found = _digest(first), wording.model(first, options), remarks.of_latents(first)  # before a loss
    for arm in options.arms:
        aef = first if arm == options.arms[0] else recipe.build(arm, 0)
        try:
            aef(recipe.example, *recipe.cond)
        except (RuntimeError, ValueError, TypeError) as problem:
            raise InputError(f"--vae {options.vae}: {arm} has no loss on the data: {problem}") from problem
    return found


def _digest(aef: AEF) -> str:
    """Return a digest of the VAE's weights."""
    sha = hashlib.sha256()
    for name, value in aef.vae.state_dict().items():
        sha.update(name.encode() + repr(tuple(value.shape)).encode() + value.detach().cpu().numpy().tobytes())
    return sha.hexdigest()[:16]


def _run_all(options: Options, data: RunData, recipe: Recipe, out: Path, console: Console) -> list[dict[str, Any]]:
    runs = [(seed, arm) for seed in range(options.seeds) for arm in options.arms]
    results = []
    with Display(console, len(runs), options.steps) as display:
        for seed, arm in runs:
            name = f"{arm}, seed {seed}"
            folder = out / "runs" / f"seed{seed}-{arm}"
            damaged = damage(folder, len(data.test))
            there = (folder / "result.json").exists()

            def build(arm: str = arm, seed: int = seed) -> AEF:
                return recipe.build(arm, seed)

            for what in damaged:
                display.line(f"{name}: {what}; what it held is made again")
            if there:
                display.skip()
            progress = display.start(name)
            try:
                result = run_arm(build, arm, seed, data, options, folder, progress)
            except NonFiniteError as problem:
                raise NonFiniteError(f"{name}: {problem}. Training diverged; try a smaller --lr") from problem
            results.append(result)
            test = torch.tensor(result["test"]["log_prob"], dtype=torch.float64)
            bits = float(bits_per_dim(test, data.test.shape[1:], data.bins).mean())
            display.line(f"{name}: test {bits:.4f} bits per dimension" + (" (from before)" if there else ""))
    return results
