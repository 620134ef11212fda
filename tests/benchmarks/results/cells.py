"""The data of the results page: what is trained on, what is tested, and the likelihood that fits it."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from vae2aef.comparison.batches import continuous
from vae2aef.comparison.likelihoods import values

VALIDATION = 256
SHARE = 5
"""One in so many training data is kept for validation, and 256 at most."""


@dataclass(frozen=True)
class Cell:
    """A data set with a likelihood and a number of latents.

    Attributes:
        file: name of the `.npz` in the folder of data.
        values: how many values a datum has.
        latents: D.
        likelihood: as `vae2aef compare --likelihood`; `"vae"` is the Gaussian of learned scale.
        bins: levels; 1 for data that are continuous already.
        steps: of training.
        test: most test data.
        about: one line for the page.
    """

    file: str
    values: int
    latents: int
    likelihood: str
    bins: int
    steps: int
    test: int
    about: str

    @property
    def unit(self) -> str:
        """Bits per dimension for grey levels, nats for all else."""
        return "bits" if self.bins > 2 else "nats"


GREY = "discretized_logistic"
CELLS = {
    "mnist": Cell("mnist", 784, 32, GREY, 256, 2000, 500, "MNIST, 32 latents, discretised logistic"),
    "mnist-gaussian": Cell("mnist", 784, 32, "vae", 256, 2000, 500, "MNIST, 32 latents, Gaussian on logits"),
    "cifar10": Cell("cifar10", 3072, 64, GREY, 256, 2000, 250, "CIFAR-10 subset, 64 latents, discretised logistic"),
    "cifar10-gaussian": Cell(
        "cifar10", 3072, 64, "vae", 256, 2000, 250, "CIFAR-10 subset, 64 latents, Gaussian on logits"
    ),
    "digits": Cell("digits", 64, 8, GREY, 17, 1200, 300, "scikit-learn's digits, 8 latents, discretised logistic"),
    "fashion": Cell("fashion", 784, 32, GREY, 256, 2000, 500, "FashionMNIST, 32 latents, discretised logistic"),
    "mnist-bits": Cell("mnist-bits", 784, 32, "bernoulli_logits", 2, 2000, 500, "MNIST as bits, 32 latents, Bernoulli"),
    "mnist2": Cell("mnist", 784, 2, GREY, 256, 2000, 500, "MNIST, 2 latents, discretised logistic"),
    "patches": Cell("patches", 64, 16, GREY, 256, 2000, 500, "8x8 patches of photographs, 16 latents, discr. logistic"),
    "shuttle": Cell("shuttle", 9, 4, "vae", 1, 1500, 500, "Shuttle, 9 measurements, 4 latents, Gaussian"),
    "power": Cell("power", 24, 4, "vae", 1, 600, 200, "Italian power demand, 24 hours, 4 latents, Gaussian"),
    "genes": Cell("genes", 765, 10, "vae", 1, 600, 150, "blood cells, 765 genes, 10 latents, Gaussian"),
}


class Data(NamedTuple):
    """Tensors `(n, *event)`, on the CPU; `train` as it is on disk, the others as the likelihood reads them."""

    train: Tensor
    validation: Tensor
    test: Tensor


def load(cell: Cell, folder: Path) -> Data:
    """Read the arrays of a cell and split validation data off; the same for every arm and seed.

    Raises:
        FileNotFoundError: if the data are not there; `prepare.py` makes them.
    """
    with np.load(folder / f"{cell.file}.npz", allow_pickle=False) as arrays:
        train, test = (torch.from_numpy(arrays[name]) for name in ("x_train", "x_test"))
    order = torch.randperm(len(train), generator=torch.Generator().manual_seed(0))
    kept = min(VALIDATION, len(train) // SHARE)
    some = torch.randperm(len(test), generator=torch.Generator().manual_seed(1))[: cell.test]
    return Data(train[order[kept:]], scored(cell, train[order[:kept]], "validation"), scored(cell, test[some], "test"))


def dequantised(cell: Cell, x: Tensor, *names: object) -> Tensor:
    """Return values from 0 to 1 of levels, or of what `scored` made of them; continuous data as they are."""
    if cell.bins == 1 or (cell.likelihood == "vae" and x.is_floating_point()):
        return x.float()
    levels = (x * (cell.bins - 1)).round().to(torch.uint8) if x.is_floating_point() else x
    return continuous(levels, cell.bins, "results", *names)


def as_density(cell: Cell, data: Data) -> tuple[Cell, Data, float]:
    """Return a cell and data for a model that is a density, and what its nats are more than those of levels.

    By one draw of the noise of dequantisation, so that the result is a bound from below.
    """
    if cell.likelihood == "vae":
        return cell, data, 0.0
    held = (dequantised(cell, x, name) for x, name in ((data.validation, "validation"), (data.test, "test")))
    return replace(cell, likelihood="vae"), Data(data.train, *held), cell.values * math.log(cell.bins)


def scored(cell: Cell, x: Tensor, name: str) -> Tensor:
    """Return data as the likelihood reads them; dequantised, with noise of the stream `name`, for a density."""
    if cell.bins == 1:
        return x.float()
    if cell.likelihood == "vae":
        return continuous(x, cell.bins, "results", name)
    return values(x, cell.bins, cell.likelihood)
