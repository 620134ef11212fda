"""Draws of a model against data: a classifier two-sample test, and FID."""

from __future__ import annotations

import math
import warnings
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from vae2aef.comparison.errors import InputError
from vae2aef.comparison.factory import load_factory

FOLDS, HIDDEN, EPOCHS = 5, 32, 60
PIECE = 128


class Accuracy(NamedTuple):
    """How often a classifier tells two samples apart, on data that it was not trained on.

    Attributes:
        value: between 0 and 1; one half if it cannot.
        std_error: binomial.
    """

    value: float
    std_error: float


def two_sample(a: Tensor, b: Tensor, seed: int = 0) -> Accuracy:
    """Train a small network to tell `a` from `b`, by five-fold cross-validation.

    Args:
        a: data, `(n, *event)`.
        b: data, `(m, *event)`; as many of both are used as the smaller has.
        seed: of folds and initial weights.

    Raises:
        InputError: if there are fewer than ten of either.

    References:
        Lopez-Paz, Oquab, *Revisiting classifier two-sample tests*, ICLR 2017.
    """
    from sklearn.exceptions import ConvergenceWarning
    from sklearn.model_selection import StratifiedKFold, cross_val_predict
    from sklearn.neural_network import MLPClassifier
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    n = min(len(a), len(b))
    if n < 2 * FOLDS:
        raise InputError(f"a classifier two-sample test needs at least {2 * FOLDS} data of each kind, got {n}")
    features = torch.cat([a[:n], b[:n]]).flatten(1).double().cpu().numpy()
    labels = np.repeat([0, 1], n)
    network = MLPClassifier((HIDDEN,), max_iter=EPOCHS, alpha=1e-2, random_state=seed)
    folds = StratifiedKFold(FOLDS, shuffle=True, random_state=seed)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)  # sixty epochs are what is asked for
        said = cross_val_predict(make_pipeline(StandardScaler(), network), features, labels, cv=folds)
    value = float((said == labels).mean())
    return Accuracy(value, math.sqrt(value * (1 - value) / len(labels)))


def load_extractor(spec: str) -> nn.Module:
    """Load a feature extractor from the user's disk; nothing is downloaded.

    Args:
        spec: a TorchScript file, `package.module:factory` or `file.py:factory`.

    Raises:
        InputError: if there is none, or it is no module.
    """
    if ":" in spec and not Path(spec).exists():
        factory = load_factory(spec, "--fid-extractor")
        try:
            made = factory()
        except Exception as problem:  # the user's code may fail in any way
            raise InputError(f"--fid-extractor {spec}: calling the factory failed: {problem!r}") from problem
    else:
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore", DeprecationWarning)  # torch advises against TorchScript
                made = torch.jit.load(spec, map_location="cpu")
        except (RuntimeError, ValueError, OSError) as problem:
            raise InputError(
                f"--fid-extractor {spec}: not a TorchScript file ({problem}); expected one, package.module:factory or "
                "file.py:factory"
            ) from problem
    if not isinstance(made, nn.Module):
        raise InputError(f"--fid-extractor {spec}: expected an nn.Module, got {type(made).__name__}")
    return made.eval()


@torch.no_grad()
def fid(extractor: nn.Module, real: Tensor, drawn: Tensor) -> float:
    """Return the Frechet distance of features, with torchmetrics.

    Args:
        extractor: maps images `(n, 3, height, width)`, floats from 0 to 1, to features `(n, F)`.
        real: images, `(n, channels, height, width)` with one or three channels.
        drawn: likewise.

    Raises:
        InputError: if data are no images, torchmetrics is missing, or the extractor fails on them.
    """
    if real.dim() != 4 or real.shape[1] not in (1, 3):
        raise InputError(f"--fid-extractor: FID is of images with 1 or 3 channels, got data {tuple(real.shape[1:])}")
    try:
        from torchmetrics.image.fid import FrechetInceptionDistance
    except ImportError as problem:
        raise InputError('--fid-extractor: FID needs torchmetrics: pip install "vae2aef[demo]"') from problem
    try:
        features = extractor(_colour(real[:2]))
        if features.dim() != 2:
            raise InputError(f"--fid-extractor: expected features (n, F), got {tuple(features.shape)}")
        metric: Any = FrechetInceptionDistance(_Sized(extractor, features.shape[1])).to(real.device)
        for images, is_real in ((real, True), (drawn, False)):
            for piece in images.split(PIECE):
                metric.update(_colour(piece), real=is_real)
        return float(metric.compute())
    except (RuntimeError, ValueError, TypeError) as problem:
        if isinstance(problem, InputError):
            raise
        raise InputError(
            f"--fid-extractor: it fails on images {tuple(_colour(real[:2]).shape)}: {problem}"
        ) from problem


class _Sized(nn.Module):
    """An extractor that says how many features it has, which torchmetrics would measure on images of 299 x 299."""

    def __init__(self, extractor: nn.Module, num_features: int) -> None:
        super().__init__()
        self.extractor, self.num_features = extractor, num_features

    def forward(self, images: Tensor) -> Tensor:
        return self.extractor(images)


def _colour(images: Tensor) -> Tensor:
    return images.float().clamp(0, 1).expand(-1, 3, -1, -1)
