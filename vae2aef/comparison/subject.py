"""What `vae2aef evaluate` is asked, and the VAE and data that it is asked of."""

from __future__ import annotations

import contextlib
import math
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from vae2aef.aef import AEF
from vae2aef.batch import Batch
from vae2aef.comparison.batches import continuous
from vae2aef.comparison.data import Dataset
from vae2aef.comparison.errors import InputError
from vae2aef.comparison.factory import make_vae
from vae2aef.comparison.likelihoods import CHOICES, is_discrete, values
from vae2aef.errors import WrapError, WrapWarning
from vae2aef.likelihood import Likelihood
from vae2aef.modes import evaluation_mode, own_random_state, parameters
from vae2aef.wrapping.score import as_it_is

FIT_LIMIT = 2000


@dataclass(frozen=True)
class EvaluateOptions:
    """The options of `vae2aef evaluate`; the command line's help says what each means.

    Raises:
        InputError: lists every value that cannot be used.
    """

    vae: str
    data: str
    weights: Path | None = None
    likelihood: str = "vae"
    fit_scale: bool = False
    bins: int | None = None
    latents: int = 16
    test_limit: int = 1000
    importance_samples: int = 128
    seed: int = 0
    fid_extractor: str | None = None

    def __post_init__(self) -> None:
        problems = []
        if self.importance_samples < 2:
            problems.append(f"--importance-samples must be at least 2, got {self.importance_samples}")
        if self.test_limit and self.test_limit < 10:
            problems.append(f"--test-limit must be 0 (all) or at least 10, got {self.test_limit}")
        if self.latents < 1:
            problems.append(f"--latents must be at least 1, got {self.latents}")
        if self.likelihood not in CHOICES and not (self.number and self.number > 0 and math.isfinite(self.number)):
            problems.append(
                f"--likelihood must be a positive number (the scale of a Gaussian) or one of {', '.join(CHOICES)}, got "
                f"{self.likelihood}"
            )
        if problems:
            raise InputError("; ".join(problems))

    @property
    def number(self) -> float | None:
        """The scale of a Gaussian, if `likelihood` is one."""
        try:
            return float(self.likelihood)
        except ValueError:
            return None


class Subject(NamedTuple):
    """What is evaluated.

    Attributes:
        aef: the VAE, wrapped as it is.
        test: data as they are scored, `(n, *event)`.
        train: likewise, as many or fewer.
        bins: levels that data were dequantised from; 1 if they are scored as they are.
        fitted: data that the scale of p(x | z) was fitted to; 0 if it was not.
    """

    aef: AEF
    test: Tensor
    train: Tensor
    bins: int
    fitted: int


def load_subject(options: EvaluateOptions, dataset: Dataset) -> Subject:
    """Make the VAE, load its weights, wrap it as it is, and bring the data into the form that it scores.

    Raises:
        InputError: one of these cannot be done; says why.
    """
    torch.manual_seed(0)
    made = make_vae(options.vae, dataset.event_shape, options.latents)
    vae = made.pop("vae").to("cuda" if torch.cuda.is_available() else "cpu")
    if options.weights is not None:
        _load_weights(vae, options.weights)
    device = next(iter(parameters(vae)), torch.zeros(())).device
    train = dataset.x_train[:FIT_LIMIT].to(device)
    bins = dataset.bins
    try:
        with warnings.catch_warnings():  # a trial: what turns out a density is refused, or gets dequantised data
            warnings.filterwarnings("ignore", "the example holds grey levels", WrapWarning)
            aef, levels = _wrapped(vae, train, bins, options, made)
    except (WrapError, ValueError, TypeError) as problem:
        raise InputError(f"--vae {options.vae}: {_of_command(str(problem))}") from problem
    as_they_are = _scores_levels(aef, levels(train[:2]))

    def scored(x: Tensor, part: str) -> Tensor:
        if not as_they_are:
            return _dequantised(x, bins, options.seed, part)
        x = levels(x)
        return aef.likelihood.read(x) if isinstance(aef.likelihood, Likelihood) else x

    test = scored(dataset.some_test(options.test_limit).to(device), "test")
    return Subject(
        aef, test, scored(train[: len(test)], "train"), 1 if as_they_are else bins, len(train) * options.fit_scale
    )


def _dequantised(x: Tensor, bins: int, *names: object) -> Tensor:
    return continuous(x.cpu(), bins, "evaluate", *names).to(x.device)


def _levels(x: Tensor, bins: int, name: str) -> Tensor:
    """Data as they are, grey levels from 0 to 1: bits stay bits, and counts, classes and floats what they are."""
    unit = (name == "vae" or name.startswith("bernoulli")) and bins > 1 and not x.is_floating_point()
    return x / (bins - 1) if unit else values(x, bins, name)


def _whole(x: Tensor) -> Tensor:
    return x.to(torch.get_default_dtype())


def _wrapped(
    vae: nn.Module, train: Tensor, bins: int, options: EvaluateOptions, made: dict[str, Any]
) -> tuple[AEF, Callable[[Tensor], Tensor]]:
    """Return the VAE as it is, and what makes of data what it scores, should it score them as they are."""
    name = options.likelihood
    given = {"likelihood": options.number or (None if name == "vae" else name), "fit_scale": options.fit_scale, **made}
    levels = partial(_levels, bins=bins, name=name)
    if options.fit_scale or not (name == "vae" or (name in CHOICES and is_discrete(name))):  # a density
        return as_it_is(vae, _dequantised(train, bins, options.seed, "fit"), **given), levels
    try:
        aef = as_it_is(vae, levels(train), **given)
    except WrapError:
        if name != "vae" or bins <= 2:
            raise
        with contextlib.suppress(WrapError):  # counts have no fractions
            aef = as_it_is(vae, _whole(train), **given)
            if aef.discrete:
                return aef, _whole
        raise
    return aef, _whole if aef.discrete and aef.likelihood is None else levels


@torch.no_grad()
def _scores_levels(aef: AEF, x: Tensor) -> bool:
    """Whether p(x | z) is a probability of data as they are; an adapter's own density may not say so itself."""
    if aef.discrete or aef.likelihood is not None:
        return aef.discrete
    with evaluation_mode(aef), own_random_state(x.device):
        core, shell = aef.split(aef.to_latent_side(x)[0])
        density = aef.chain(Batch(shell), core).decoded.density
    return not isinstance(density, torch.distributions.Distribution) and getattr(density, "levels", 256) is not None


def _load_weights(vae: nn.Module, path: Path) -> None:
    try:
        found = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as problem:  # pickle has many ways to fail
        raise InputError(f"--weights {path}: not a file of tensors ({problem}); expected a state_dict") from problem
    state = found.get("state_dict", found) if isinstance(found, dict) else found
    try:
        vae.load_state_dict(state)
    except (RuntimeError, TypeError, AttributeError) as problem:
        raise InputError(f"--weights {path}: does not fit {type(vae).__name__}: {problem}") from problem


def _of_command(message: str) -> str:
    """Say the options of `log_prob` in the words of the command line."""
    for code, flag in (("likelihood=", "--likelihood "), ("fit_scale=True", "--fit-scale")):
        message = message.replace(code, flag)
    return message
