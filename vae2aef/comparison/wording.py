"""What a reader of the report must know, in words."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from vae2aef.aef import AEF
from vae2aef.comparison.arms import ARMS
from vae2aef.comparison.options import Options
from vae2aef.comparison.run import GRADIENT_CLIP, VALIDATION_SAMPLES
from vae2aef.comparison.summary import Row
from vae2aef.gauge import drift
from vae2aef.likelihood import Likelihood
from vae2aef.priors import StandardNormal
from vae2aef.residual import Residual
from vae2aef.tensors import numel

MEANING = (
    "The number compared is the marginal log p(x), the same quantity for every arm, estimated by one method: "
    "importance sampling. Encoder, features and core flow only place its draws. It is given in bits per "
    "dimension; lower is better.",
    "Training losses of different arms are different quantities and must not be compared. The loss of the "
    "deterministic AEF (σ = 0) is an exact log-likelihood in the expanded space of x and its features. It is not "
    "a likelihood of x and is unbounded below, so no weights were chosen by it. With σ > 0 the loss is an upper "
    "bound on −log p(x).",
    "The importance-sampling estimate is too low in expectation (bits too high), the more so the smaller the "
    "effective sample size: the log of an average lies below the average of the log's argument. An arm with few "
    "effective draws may be better than its number says.",
)


RESIDUALS = {
    "learned": "with one learned scale a feature",
    "shared": "with one learned scale",
    "channel": "with one learned scale a channel",
    "fixed": "with a fixed scale",
    "decoder": "with the decoder's own scale",
}


def arm(name: str, core_flow: str) -> str:
    """Say what an arm is, its core flow included.

    Args:
        name: in `ARMS`.
        core_flow: as in `Options`.
    """
    if core_flow == "none" or not ARMS[name].flow:
        return ARMS[name].text
    return f"{ARMS[name].text}; with the {core_flow} core flow"


def arms(options: Options) -> list[tuple[str, str]]:
    """Return the name of each arm of a comparison, and what it is."""
    return [(name, arm(name, options.core_flow)) for name in options.arms]


def model(aef: AEF, options: Options) -> str:
    """Say what all arms have in common.

    Args:
        aef: any arm.
        options: of the comparison.
    """
    residual, shapes = aef.likelihood, [site.core.latent_shape for site in aef.by_latent().values()]
    latents = " + ".join(str(numel(shape)) for shape in shapes)
    latents += f" in the shape {tuple(shapes[0])}" if len(shapes) == 1 and len(shapes[0]) > 1 else ""
    prior = f"a learned {options.prior} flow"
    if options.prior == "vae":
        own = "standard normal" if isinstance(aef.prior, StandardNormal) else type(aef.prior).__name__
        own = "of each latent given those before it" if aef.prior is None else own
        prior = f"the VAE's own ({own})"
    density = "none, the VAE's own density of x given z" if residual is None else type(residual).__name__
    if isinstance(residual, Likelihood) and residual.extra_repr():
        density += f" ({residual.extra_repr()})"
    if isinstance(residual, Residual):
        family = {"gaussian": "Gaussian", "laplace": "Laplace", "student_t": "Student's t"}[residual.family]
        density = f"{family} {RESIDUALS[residual.kind]}"
    what = "residual" if residual is None or isinstance(residual, Residual) else "likelihood"
    flow = "none" if options.core_flow == "none" else f"{options.core_flow}, but for the plain VAE"
    return (
        f"In all arms: {type(aef.vae).__name__} (--vae {options.vae}) with {latents} latent variables; "
        f"prior: {prior}; core flow: {flow}; {what}: {density}."
    )


def protocol(options: Options, sizes: dict[str, int], bins: int, shared: str) -> list[str]:
    """Say how the numbers were made, one line each, what the arms are and what ± means included.

    Args:
        options: of the comparison.
        sizes: number of training, validation and test samples.
        bins: number of levels of the data.
        shared: from `model`.
    """
    said = method(options, sizes, bins, shared)
    each = [f"Arm {name}: {text}." for name, text in arms(options)]
    return [*said[:2], *each, *said[2:], f"{plus_minus(options)} {MEASURED}"]


MEASURED = (
    "Reconstruction error is the mean squared error in the space of the data, encoding without noise. Seconds are "
    "those in training steps."
)


def plus_minus(options: Options) -> str:
    """Say what ± is."""
    return (
        "± is half of a 95 % interval, over test samples "
        + ("and between seeds, by Student's t" if options.seeds > 1 else "alone: one seed says nothing of others")
        + "; differences are paired sample by sample."
    )


def key(rows: Sequence[Row], options: Options) -> list[str]:
    """Say what the columns of the report's table are."""
    first = rows[0].arm
    return [
        plus_minus(options),
        f"Equal to {first} after: when the arm was first as good on validation data as {first} ever was. Training: "
        "seconds spent in steps. Squared error: of reconstructions, the mean over the values of the data, encoded "
        "without noise.",
    ]


def method(options: Options, sizes: dict[str, int], bins: int, shared: str) -> list[str]:
    """Say how the numbers were made, one line each, without what the arms are and what ± means.

    Args:
        options: of the comparison.
        sizes: number of training, validation and test samples.
        bins: number of levels of the data.
        shared: from `model`.
    """
    levels = f"integers of {bins} levels, dequantised with uniform noise" if bins > 1 else "continuous values"
    if options.discrete:
        levels = f"{bins} levels, scored as they are by {options.likelihood}" if bins > 1 else "scored as they are"
    steps = {
        "logit": f"logit with λ = {options.lam:g} (Eq. 19), then each feature standardised on the training data",
        "standardize": "each feature standardised on the training data",
        "none": "none",
    }
    seeds = f"{options.seeds} seed" + ("s" if options.seeds > 1 else "")
    return [
        f"Data: {options.data}, {levels}. {sizes['train']} training, {sizes['validation']} validation, "
        f"{sizes['test']} test samples. "
        + (
            "No preprocessing."
            if options.discrete
            else f"Preprocessing: {steps[options.preprocess]}; its log-determinant is counted."
        ),
        shared,
        f"The arms share networks, initial weights and order of the data"
        f"{'' if options.discrete else ', and dequantisation noise'}. {seeds}, "
        f"{options.steps} steps of Adam at {options.lr:g}, "
        f"batches of {options.batch_size}, gradients clipped at norm {GRADIENT_CLIP:g}.",
        "Weights were chosen by the marginal on validation data, measured up to ten times in a run by importance "
        f"sampling with {VALIDATION_SAMPLES} draws.",
        f"Test: marginal by importance sampling with {options.importance_samples} draws for each sample (Eq. 17-18 "
        "with −log K), placed by a mixture fitted to each sample's posterior; the same random numbers for all arms.",
    ]


def nats(rows: Sequence[Row], options: Options, event_shape: Sequence[int]) -> list[str]:
    """Say the log-likelihood of a discrete likelihood in nats, as papers on bits do."""
    if not options.discrete:
        return []
    unit = numel(event_shape) * math.log(2)
    each = ", ".join(f"{row.arm} {_number(-row.bits_per_dim * unit)} ± {row.interval * unit:.2f}" for row in rows)
    return [f"log p(x) in nats: {each}"]


def _number(value: float) -> str:
    """A number of two decimals with the true minus sign."""
    return f"{value:.2f}".replace("-", "\u2212")


def certificates(rows: Sequence[Row]) -> list[str]:
    """Say how far the numbers can be from the truth, in one line."""
    each = ", ".join(f"{row.arm} {_number(row.gap)} ± {row.gap_std_error:.2f}" for row in rows)
    found = [f"certificate, on samples of the model: the marginal is too low by at most, in nats: {each}"]
    if many := [f"{row.arm} {row.uncertain:.1%}" for row in rows if row.uncertain > 0]:
        found.append(
            f"test samples whose estimate is uncertain (Pareto k-hat above 0.7, few effective draws): {', '.join(many)}"
        )
    return found


def drifts(results: Sequence[dict[str, Any]], event_shape: Sequence[int], bins: int) -> list[str]:
    """Say of which deterministic runs the loss fell on while the model was no better, with the gauge meter.

    Args:
        results: contents of `result.json` of every run.
        event_shape: shape of one event of data.
        bins: number of levels of the data.
    """
    unit = numel(event_shape) * math.log(2)
    found = []
    for run in results:
        if ARMS[run["arm"]].noise:
            continue
        nats = [(step, -(bits - math.log2(bins)) * unit) for step, bits in run["validation_bits_per_dim"]]
        said = drift([(step, loss) for step, loss in run["training_loss"]], nats)
        if said is not None:
            meters = "; ".join(
                f"spread of h {meter['core_std']:.2g}, mean log scale of the encoder {meter['log_scale']:.2g}"
                for meter in run.get("gauge", {}).values()
            )
            found.append(f"{run['arm']}, seed {run['seed']}: {said}: σ = 0 drifts ({meters}). Try σ > 0.")
    return found


def warnings(rows: Sequence[Row], options: Options) -> list[str]:
    """Say what stands against taking the table at its word."""
    found = []
    for row in rows:
        if row.few_draws:
            found.append(
                f"{row.arm}: the median effective sample size is {row.ess_median:.1f} of "
                f"{options.importance_samples} draws, below a tenth. Its true bits per dimension are likely "
                "lower; raise --importance-samples."
            )
    if late := [row.arm for row in rows if max(row.best_steps) >= options.steps]:
        found.append(
            f"{', '.join(late)}: the last step was the best on validation data, so training had not converged; "
            "raise --steps."
        )
    return found
