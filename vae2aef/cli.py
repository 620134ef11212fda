"""The command line."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.text import Text

from vae2aef.comparison.arms import ARMS
from vae2aef.comparison.errors import InputError
from vae2aef.comparison.interrupt import Terminated, terminable
from vae2aef.comparison.options import Options
from vae2aef.comparison.readers import ACCEPTED

INTERRUPTED, TERMINATED = 130, 143  # 128 + SIGINT and SIGTERM, as shells count
FAILED = 2
DEFAULTS = Options()
YOURS = "mlp, conv, or your own as package.module:factory or file.py:factory."
CHECKED = 128  # rows of the data that `check` looks at

app = typer.Typer(
    help="Train an existing VAE as an AutoEncoder within Flows (AEF), and compare the two honestly.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)


def _version(wanted: bool) -> None:
    if wanted:
        from vae2aef.comparison.machine import versions

        typer.echo(f"vae2aef {versions()['vae2aef']}")
        raise typer.Exit


@app.callback()
def main(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Show the version.")
    ] = False,
) -> None:
    """Train an existing VAE as an AutoEncoder within Flows (AEF), and compare the two honestly."""


@app.command()
def compare(
    data: Annotated[str, typer.Option(help=f"What to train on: {ACCEPTED}.")] = DEFAULTS.data,
    vae: Annotated[str, typer.Option(help=YOURS)] = DEFAULTS.vae,
    latents: Annotated[int, typer.Option(help="Latent variables.")] = DEFAULTS.latents,
    steps: Annotated[int, typer.Option(help="Training steps of each run.")] = DEFAULTS.steps,
    batch_size: Annotated[int, typer.Option(help="Samples of a training batch.")] = DEFAULTS.batch_size,
    lr: Annotated[float, typer.Option(help="Adam's learning rate.")] = DEFAULTS.lr,
    seeds: Annotated[int, typer.Option(help="How many seeds: 0, 1, ...")] = DEFAULTS.seeds,
    arms: Annotated[str, typer.Option(help="Which arms; differences are to the first.")] = ",".join(ARMS),
    likelihood: Annotated[
        str, typer.Option(help="p(x | z): vae (its own, else Gaussian), discretized_logistic, bernoulli_logits, ...")
    ] = DEFAULTS.likelihood,
    preprocess: Annotated[str, typer.Option(help="logit, standardize or none.")] = DEFAULTS.preprocess,
    lam: Annotated[float, typer.Option(help="Lambda of the logit (Eq. 19).")] = DEFAULTS.lam,
    prior: Annotated[str, typer.Option(help="vae (its own), coupling or maf.")] = DEFAULTS.prior,
    core_flow: Annotated[str, typer.Option(help="none, coupling or maf.")] = DEFAULTS.core_flow,
    importance_samples: Annotated[
        int, typer.Option(help="Draws for the marginal of each test sample.")
    ] = DEFAULTS.importance_samples,
    test_limit: Annotated[
        int, typer.Option(help="Test samples, drawn with a fixed seed; 0: all.")
    ] = DEFAULTS.test_limit,
    bins: Annotated[
        int | None, typer.Option(help="Levels of a value, where they cannot be told; 1: continuous.")
    ] = DEFAULTS.bins,
    condition: Annotated[
        str, typer.Option(help="What a conditional VAE is told of the labels: none, labels (numbers) or one_hot.")
    ] = DEFAULTS.condition,
    device: Annotated[str, typer.Option(help="auto, cpu, cuda, cuda:N or mps.")] = DEFAULTS.device,
    out: Annotated[Path, typer.Option(help="Folder for the results.")] = Path("vae2aef-compare"),
    overwrite: Annotated[
        bool, typer.Option("--overwrite", help="Throw away another comparison in the folder; the same one goes on.")
    ] = False,
) -> None:
    """Train a VAE and its AEFs on the same data; show which is better, with error bars and pictures.

    Stopped in any way, the same command goes on where it was. Writes results.json, report.html and pictures.
    """
    console = Console()
    try:
        options = Options(
            data=data,
            vae=vae,
            latents=latents,
            steps=steps,
            batch_size=batch_size,
            lr=lr,
            seeds=seeds,
            arms=tuple(name.strip() for name in arms.split(",") if name.strip()),
            likelihood=likelihood,
            preprocess=preprocess,
            lam=lam,
            prior=prior,
            core_flow=core_flow,
            importance_samples=importance_samples,
            test_limit=test_limit,
            bins=bins,
            condition=condition,
            device=device,
        )
        with terminable():
            _compare(options, out, console, overwrite)
    except InputError as problem:
        _fail(problem)
    except KeyboardInterrupt as stop:
        console.print(f"Stopped; all work so far is in {out}. Run the same command again to go on.", style="yellow")
        raise typer.Exit(TERMINATED if isinstance(stop, Terminated) else INTERRUPTED) from None


def _compare(options: Options, out: Path, console: Console, overwrite: bool) -> None:
    with console.status("loading Lightning and what draws"):
        from vae2aef.comparison.compare import compare as run
    from vae2aef.errors import NonFiniteError

    try:
        run(options, out, console, overwrite)
    except NonFiniteError as problem:
        _fail(problem)


@app.command()
def check(
    vae: Annotated[str, typer.Argument(help=YOURS)],
    data: Annotated[str, typer.Option(help=f"What it is for: {ACCEPTED}.")] = DEFAULTS.data,
    latents: Annotated[int, typer.Option(help="Latent variables, if the factory takes them.")] = DEFAULTS.latents,
    preprocess: Annotated[str, typer.Option(help="logit, standardize or none.")] = DEFAULTS.preprocess,
    prior: Annotated[str, typer.Option(help="vae (its own), coupling or maf.")] = DEFAULTS.prior,
    bins: Annotated[
        int | None, typer.Option(help="Levels of a value, where they cannot be told; 1: continuous.")
    ] = DEFAULTS.bins,
) -> None:
    """Report all that matters before training a VAE as an AEF: every problem at once, worst first, with its fix.

    Exits with 0 if there is no error, with 1 if there is one, and with 2 if the VAE or the data cannot be loaded.
    """
    console = Console(highlight=False)
    try:
        with console.status(f"reading {data}, importing and calling {vae}"):
            import torch

            from vae2aef.comparison.data import load
            from vae2aef.comparison.factory import make_vae
            from vae2aef.diagnostics import check as run
            from vae2aef.preprocess import dequantize

            dataset = load(data, bins)
            dataset.require_range(preprocess, data)
            torch.manual_seed(0)
            made = make_vae(vae, dataset.event_shape, latents)
            x = dataset.x_train[:CHECKED]
            x = x if dataset.bins == 1 else dequantize(x, dataset.bins)
            report = run(
                made.pop("vae"), example=x, preprocess=None if preprocess == "none" else preprocess,
                prior=None if prior == "vae" else prior, **made,
            )  # fmt: skip
    except InputError as problem:
        _fail(problem)
    for line, style in report.styled():
        console.print(Text(line, style=style), soft_wrap=True)
    raise typer.Exit(0 if report.ok else 1)


@app.command()
def evaluate(
    vae: Annotated[str, typer.Option(help=YOURS)],
    data: Annotated[str, typer.Option(help=f"What to score, its test part: {ACCEPTED}.")],
    weights: Annotated[Path | None, typer.Option(help="A state_dict to load into it (weights only).")] = None,
    likelihood: Annotated[
        str, typer.Option(help="p(x | z): vae (its own), the scale of a Gaussian as a number, bernoulli, ...")
    ] = "vae",
    fit_scale: Annotated[
        bool, typer.Option("--fit-scale", help="Fit a Gaussian's scale to the training data.")
    ] = False,
    bins: Annotated[
        int | None, typer.Option(help="Levels of a value, where they cannot be told; 1: continuous.")
    ] = None,
    latents: Annotated[int, typer.Option(help="Latent variables, if the factory takes them.")] = DEFAULTS.latents,
    test_limit: Annotated[
        int, typer.Option(help="Test samples, drawn with a fixed seed; 0: all.")
    ] = DEFAULTS.test_limit,
    importance_samples: Annotated[
        int, typer.Option(help="Draws for the marginal of each test sample.")
    ] = DEFAULTS.importance_samples,
    seed: Annotated[int, typer.Option(help="Of all draws.")] = 0,
    fid_extractor: Annotated[
        str | None,
        typer.Option(help="For FID: a TorchScript file of yours, package.module:factory or file.py:factory."),
    ] = None,
    out: Annotated[Path, typer.Option(help="File for the result.")] = Path("vae2aef-evaluate.json"),
) -> None:
    """Score any VAE as it is: log p(x) with what speaks for the number, its latents, its draws. Writes JSON.

    Exits with 2 if the VAE, its weights or the data cannot be used.
    """
    try:
        console = Console(highlight=False)
        with console.status("loading torchmetrics"):
            from vae2aef.comparison.evaluation_report import run
            from vae2aef.comparison.subject import EvaluateOptions

        options = EvaluateOptions(
            vae, data, weights, likelihood, fit_scale, bins, latents, test_limit, importance_samples, seed,
            fid_extractor,
        )  # fmt: skip
        run(options, out, console)
    except InputError as problem:
        _fail(problem)


def _fail(problem: Exception) -> None:
    """Say what is wrong in one line; no traceback, it is not a bug."""
    text = Text.assemble(("error ", "bold red"), " ".join(str(problem).split()))
    Console(stderr=True).print(text, soft_wrap=True, highlight=False)
    raise typer.Exit(FAILED)
