"""Inspect the user's own VAE before it is trained: what `vae2aef.check` finds, and a decoder that cannot reach."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from vae2aef.aef import AEF
from vae2aef.batch import Batch
from vae2aef.chain import Generate
from vae2aef.comparison.arms import Recipe
from vae2aef.comparison.errors import InputError
from vae2aef.comparison.factory import BUILT_IN
from vae2aef.comparison.options import Options
from vae2aef.diagnostics import check
from vae2aef.diagnostics.findings import Topic
from vae2aef.modes import evaluation_mode

INSPECTED_ROWS = 128
DECODED = 32  # latents, to see what the decoder can reach
REFUSED_SHARE = 0.5  # of the values out of reach: beyond it a comparison would measure nothing
# What helps, in the words of the command line, where `check` says it in those of `wrap`.
FIXES: dict[Topic, str] = {
    "small scale": "check encoder_scale; compare the arm aef-noise; --prior coupling for an autoencoder trained with a "
    "tiny KL",
    "few values": "give the integers",
}
LAST = {
    (0.0, 1.0): "a sigmoid",
    (-1.0, 1.0): "a tanh",
    (0.0, math.inf): "a ReLU or softplus",
    (-1.0, math.inf): "an ELU",
}


def inspect_vae(recipe: Recipe, options: Options, x: Tensor) -> list[str]:
    """Say what a reader of the comparison must know about the user's VAE; nothing about the built-in ones.

    Args:
        recipe: how the arms are made.
        options: of the comparison.
        x: data, (batch, *event), dequantised and not preprocessed; at most 128 rows are used.

    Returns:
        Warnings and errors of `vae2aef.check` that concern a comparison, one line each.

    Raises:
        InputError: most values of the data, as the VAE sees them, are out of the decoder's reach.
    """
    if options.vae in BUILT_IN:
        return []
    x = x[:INSPECTED_ROWS]  # the rows of the recipe's conditions
    if options.discrete:  # what the decoder returns need not be shaped like the data, or in their range
        return _findings(recipe, options, x)
    aef = recipe.build("aef", 0)
    low, high = reach(aef, recipe.cond)
    with torch.no_grad():
        seen = aef.preprocess(x)[0]
    outside = float(((seen < low) | (seen > high)).double().mean())
    notes = []
    if outside:
        told = (
            f"--vae {options.vae}: the decoder stays {_interval(low, high)}, whatever its weights are"
            f"{_like(low, high)}; the data as it sees them, with --preprocess {options.preprocess}, lie from "
            f"{seen.min():.3g} to {seen.max():.3g}: {outside:.0%} of the values are out of its reach in every arm"
        )
        others = "leave out the decoder's last activation"
        others = (
            f"use --preprocess none, or {others}" if options.preprocess != "none" else f"scale the data, or {others}"
        )
        if outside > REFUSED_SHARE:
            raise InputError(f"{told}; {others}")
        notes.append(f"{told}; {others}")
    return notes + _findings(recipe, options, x)


@torch.no_grad()
def reach(aef: AEF, cond: tuple[Tensor, ...] = ()) -> tuple[float, float]:
    """Return the interval that the decoder cannot leave, among 0, 1 and -1 as its ends; infinite where unbounded.

    A last activation keeps the output within bounds whatever the weights are, so they are drawn anew: a network that
    has just been initialised, to zero even, is not taken for a bounded one.

    Args:
        aef: any arm. **Its weights are overwritten**: give one that is of no more use.
        cond: conditions, each with a row a datum.
    """
    for parameter in aef.parameters():
        parameter.normal_()
    with evaluation_mode(aef):
        x = torch.randn(DECODED, *aef.event_shape, device=next(aef.parameters()).device)
        known = tuple(one[torch.arange(DECODED) % len(one)] for one in cond)
        core, shell = aef.split(x)
        z = {name: torch.randn_like(value) for name, value in aef.chain(Batch(shell, known), core).z.items()}
        mean = aef.parts.run(Generate(DECODED, z), None, *known).mean
    low, high = float(mean.min()), float(mean.max())
    lower = 0.0 if low >= 0 else -1.0 if low >= -1 else -math.inf
    return lower, 1.0 if high <= 1 else math.inf


def _findings(recipe: Recipe, options: Options, x: Tensor) -> list[str]:
    arguments = recipe.wrap_arguments(0)
    report = check(
        arguments.pop("vae"), example=(x, *recipe.cond), core_flow=options.core_flow, **recipe.of_data(),
        prior=None if options.prior == "vae" else options.prior, **arguments,
    )  # fmt: skip
    notes = []
    for finding in report.findings:
        # The prior: the VAE is trained from here on. The decoder's range was measured above, at any weights. And
        # what the values are was settled when the data were loaded, if the user said so.
        settled = finding.place in ("prior", "example" if options.bins else "prior")
        if finding.severity == "note" or settled or finding.topic == "decoder reach":
            continue
        fix = FIXES.get(finding.topic, finding.fix)
        notes.append(f"--vae {options.vae}: {finding.place}: {finding.message}" + (f". Fix: {fix}" if fix else ""))
    return notes


def _like(low: float, high: float) -> str:
    return f", as {LAST[low, high]} does" if (low, high) in LAST else ""


def _interval(low: float, high: float) -> str:
    if math.isinf(low):
        return f"below {high:g}"
    return f"above {low:g}" if math.isinf(high) else f"within [{low:g}, {high:g}]"
