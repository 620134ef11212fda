"""An evaluation in words: one sentence, a table, and JSON."""

from __future__ import annotations

import math
from dataclasses import asdict
from pathlib import Path
from typing import Any, NamedTuple

import torch
from rich.console import Console
from rich.table import Table
from rich.text import Text
from torch import Tensor

from vae2aef.certificate import Certificate
from vae2aef.comparison.data import Dataset, load
from vae2aef.comparison.errors import InputError
from vae2aef.comparison.evaluation import Evaluation, evaluate
from vae2aef.comparison.files import read_json, write_json
from vae2aef.comparison.latent_use import ACTIVE
from vae2aef.comparison.machine import machine, versions
from vae2aef.comparison.subject import EvaluateOptions
from vae2aef.evidence import LARGEST_K
from vae2aef.preprocess import bits_per_dim
from vae2aef.tensors import numel

COMMAND = "vae2aef evaluate"

MOST_UNCERTAIN = 0.05
"""Share of test data whose estimate may be uncertain before the mean is doubted."""


class Line(NamedTuple):
    """One number, or two that belong together.

    Attributes:
        name: in JSON.
        text: what it is.
        value: for JSON.
        shown: for people.
    """

    name: str
    text: str
    value: Any
    shown: str


def run(options: EvaluateOptions, out: Path, console: Console) -> None:
    """Evaluate, show the result and write it to `out`; only a file of an earlier evaluation is overwritten.

    Raises:
        InputError: something cannot be used; nothing was written.
    """
    _check_out(out)
    with (
        torch.random.fork_rng(devices=range(torch.cuda.device_count())),
        console.status(f"reading {options.data}, importing {options.vae}") as doing,
    ):
        dataset = load(options.data, options.bins)
        doing.update(f"scoring {options.vae} on {options.data}")
        found = evaluate(options, dataset)
    write_json(out, content(found, options, dataset))
    console.print(Text(f"{verdict(found)}.", style="bold"), soft_wrap=True)
    console.print(table(found))
    for note in notes(found, options):
        console.print(Text(note), soft_wrap=True)
    console.print(Text(str(out)), soft_wrap=True)


def _check_out(out: Path) -> None:
    if not out.parent.is_dir():
        raise InputError(f"--out {out}: there is no folder {out.parent}")
    if out.is_dir():
        raise InputError(f"--out {out}: this is a folder, expected a file for the result")
    try:
        ours = not out.exists() or read_json(out)["command"] == COMMAND
    except (ValueError, TypeError, KeyError, OSError):
        ours = False
    if not ours:
        raise InputError(f"--out {out}: the file is there already and no result of an evaluation; choose another")


def verdict(found: Evaluation) -> str:
    """Say in one sentence what log p(x) is and whether the number can be trusted."""
    n, (mean, error) = len(found.log_prob.value), _mean(found.log_prob.value)
    bits, bits_error = _bits(found)
    said = f"log p(x) is {mean:.2f} ± {error:.2f} nats a datum ({bits:.4f} ± {bits_error:.4f} bits per dimension)"
    doubts, uncertain = [], int(found.log_prob.uncertain.sum())
    if uncertain > MOST_UNCERTAIN * n:
        doubts.append(f"{uncertain} of {n} values rest on a few importance weights")
    if isinstance(found.certificate, Certificate):
        gap = found.certificate.gap
        if gap.value - 2 * gap.std_error > error:
            doubts.append(f"on the model's own draws it may be {gap.value:.2f} ± {gap.std_error:.2f} nats too low")
    if found.log_prob.bound:
        doubts.append("no proposal was fitted to each datum")
    if doubts:
        return f"{said}, but it is probably too low: {'; '.join(doubts)}; raise --importance-samples"
    return f"{said}, and nothing measured here speaks against the number"


def lines(found: Evaluation) -> list[Line]:
    """Return every number with what it means."""
    return [*_of_the_estimate(found), *_of_the_model(found)]


def _of_the_estimate(found: Evaluation) -> list[Line]:
    scores, n = found.log_prob, len(found.log_prob.value)
    mean, bits = _mean(scores.value), _bits(found)
    exact = found.subject.bins == 1
    heavy = int((scores.pareto_k > LARGEST_K).sum())
    effective = float(scores.effective_sample_size.median())
    made = [
        _both("log_prob_nats", "log p(x), nats a datum; error over data", *mean, 3),
        _both("bits_per_dim", f"bits per dimension{'' if exact else ', dequantised'}", *bits, 4),
        Line("rows_k_above_0.7", "data with k-hat above 0.7", heavy, f"{heavy} of {n}"),
        Line("rows_uncertain", "data whose estimate is uncertain", int(scores.uncertain.sum()),
             f"{int(scores.uncertain.sum())} of {n}"),
        Line("ess_median", "median effective sample size", effective, f"{effective:.1f}"),
    ]  # fmt: skip
    if isinstance(found.certificate, Certificate):
        return [*made, _both("gap_nats", "certificate: log p(x) too low by at most, nats", *found.certificate.gap, 3)]
    return [*made, Line("gap_nats", "certificate", {"value": None, "why": found.certificate}, found.certificate)]


def _of_the_model(found: Evaluation) -> list[Line]:
    use = found.latents
    total, far = len(use.mean), (use.mean - use.prior_mean) / use.prior_std
    wide = use.std / use.prior_std
    made = [
        Line("reconstruction_mse", "reconstruction, mean squared error", found.mse,
             "none, of classes" if found.mse is None else f"{found.mse:.5f}"),
        Line("active_units", f"latents in use (variance of the posterior mean above {ACTIVE})",
             {"value": use.active, "of": total}, f"{use.active} of {total}"),
        Line("aggregate_mean", "q(z), mean, in the prior's standard deviations", _ends(far), _span(far)),
        Line("aggregate_std", "q(z), standard deviation over the prior's", _ends(wide), _span(wide)),
    ]  # fmt: skip
    if math.isfinite(use.rate):
        made.append(
            Line("aggregate_kl_nats", "q(z) from the prior, as Gaussians, nats",
                 {"value": use.rate, "by_chance": use.by_chance}, f"{use.rate:.3f} ({use.by_chance:.3f} by chance)")
        )  # fmt: skip
    made += [
        _both("two_sample_model", "classifier: test data against draws, accuracy", *found.against_model, 3),
        _both("two_sample_control", "the same against training data (control)", *found.against_real, 3),
    ]
    if found.fid is not None:
        made.append(Line("fid", "FID of the means of draws", found.fid, f"{found.fid:.3f}"))
    return made


def table(found: Evaluation) -> Table:
    """Return the numbers as a table for the terminal."""
    made = Table(show_header=False)
    for line in lines(found):
        made.add_row(line.text, line.shown)
    return made


def notes(found: Evaluation, options: EvaluateOptions) -> list[str]:
    """Say what the numbers are of."""
    subject, draws = found.subject, options.importance_samples
    likelihood = subject.aef.likelihood
    density = "the VAE's own density of x given z" if likelihood is None else repr(likelihood).splitlines()[0]
    if subject.fitted:
        kind = {"learned": "one a feature", "channel": "one a channel"}.get(likelihood.kind, "one for all")
        density = f"a Gaussian, its scale ({kind}) fitted by us to {subject.fitted} training data"
    levels = f"integers of {subject.bins} levels, dequantised" if subject.bins > 1 else "scored as they are"
    weights = "as the factory made them" if options.weights is None else f"of {options.weights}"
    return [
        f"{type(subject.aef.vae).__name__} (--vae {options.vae}), weights {weights}; p(x | z): {density}",
        f"{len(subject.test)} test data of {options.data}, {levels}; "
        f"{draws} importance samples each, seed {options.seed}",
    ]


def content(found: Evaluation, options: EvaluateOptions, dataset: Dataset) -> dict[str, Any]:
    """Return what goes into the JSON file; what is not finite becomes null."""
    scores, use = found.log_prob, found.latents
    each = {"log_prob": scores.value, "std_error": scores.std_error, "pareto_k": scores.pareto_k,
            "effective_sample_size": scores.effective_sample_size}  # fmt: skip
    made = {
        "command": COMMAND,
        "verdict": verdict(found),
        "notes": notes(found, options),
        **{line.name: line.value for line in lines(found)},
        "options": {name: str(one) if name == "weights" and one else one for name, one in asdict(options).items()},
        "data": {"name": dataset.name, "digest": dataset.digest(), "event_shape": list(dataset.event_shape),
                 "bins": dataset.bins, "test": len(found.subject.test)},
        "scale_fitted_to": found.subject.fitted,
        "latents": {name: getattr(use, name) for name in ("mean_variance", "mean", "std", "prior_mean", "prior_std")},
        "test": each,
        "versions": versions(),
        "machine": machine(),
    }  # fmt: skip
    return _plain(made)


def _plain(value: Any) -> Any:
    if isinstance(value, Tensor):
        return _plain(value.tolist())
    if isinstance(value, dict):
        return {key: _plain(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_plain(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _mean(values: Tensor) -> tuple[float, float]:
    values = values.double()
    return float(values.mean()), float(values.std()) / math.sqrt(len(values))


def _bits(found: Evaluation) -> tuple[float, float]:
    event = found.subject.aef.event_shape
    mean, error = _mean(found.log_prob.value)
    bits = float(bits_per_dim(torch.tensor(mean, dtype=torch.float64), event, found.subject.bins))
    return bits, error / (numel(event) * math.log(2))


def _both(name: str, text: str, value: float, error: float, digits: int) -> Line:
    return Line(name, text, {"value": value, "std_error": error}, f"{value:.{digits}f} ± {error:.{digits}f}")


def _ends(values: Tensor) -> dict[str, float]:
    return {"smallest": float(values.min()), "median": float(values.median()), "largest": float(values.max())}


def _span(values: Tensor) -> str:
    return "{smallest:.3f} to {largest:.3f}, median {median:.3f}".format(**_ends(values))
