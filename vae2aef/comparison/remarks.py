"""What a reader of a comparison must know of data and factory, beside what the numbers say."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from rich.console import Console
from rich.text import Text

from vae2aef.aef import AEF
from vae2aef.comparison.data import Dataset
from vae2aef.comparison.errors import InputError
from vae2aef.comparison.factory import BUILT_IN
from vae2aef.comparison.options import Options
from vae2aef.comparison.summary import Row
from vae2aef.tensors import numel
from vae2aef.wrapping.trained_with import cross_entropy


def of_data(dataset: Dataset, options: Options) -> list[str]:
    """Say how the data were read, and that they are the default ones where a factory of the user's own is given."""
    said = list(dataset.notes)
    if options.data == Options.data and options.vae not in BUILT_IN:
        said.append(f"--data is {options.data}, the default: {options.vae} is trained on scikit-learn's, not on yours")
    if options.vae.startswith("__main__:"):
        name = options.vae.removeprefix("__main__:")
        said.append(
            f"{name} was defined in a notebook or at a prompt, where no other process finds it: to give the command "
            f"line of this comparison, write it to a file and name that, --vae file.py:{name}"
        )
    if dataset.labels and options.condition == "none":
        said.append(
            f"labels of {len(dataset.classes)} classes are there and not used; --condition labels, or one_hot, hands "
            "them to a conditional VAE"
        )
    return said


def of_loss(vae: Any, options: Options) -> list[str]:
    """Say that the VAE's own code trains it with another loss than the one that all arms have here."""
    own = None if options.vae in BUILT_IN or options.likelihood != "vae" else cross_entropy(vae, torch.zeros(1))
    if own is None:
        return []
    return [
        f"the code of {options.vae} trains it with a cross-entropy (likelihood={own}); here every arm, the VAE too, is "
        "trained with a Gaussian of learned scale, since a cross-entropy of grey values is no density; of bits, "
        f"--bins 2 --likelihood {own} is it"
    ]


@contextmanager
def naming(notes: Sequence[str]) -> Iterator[None]:
    """Add to an error how the data were read: what was left out may be what the VAE misses."""
    try:
        yield
    except InputError as problem:
        if not notes:
            raise
        raise InputError(f"{problem} (of the data: {'; '.join(notes)})") from problem


def say(notes: Sequence[str], console: Console) -> None:
    """Print notes as the terminal shows them."""
    for note in notes:
        console.print(Text.assemble(("note", "yellow"), f" {note}"), soft_wrap=True)


def of_latents(aef: AEF) -> list[str]:
    """Say where the latents have more values than the data."""
    latents = sum(numel(site.core.latent_shape) for site in aef.by_latent().values())
    values = numel(aef.event_shape)
    if latents <= values:
        return []
    return [
        f"{latents} latent variables for data of {values} values: the latent can hold all of x, so that a good "
        "reconstruction says nothing; fewer latents are usual"
    ]


def of_bits(rows: Sequence[Row], levels: int) -> list[str]:
    """Say which arms are worse than no model at all.

    Args:
        rows: of the table.
        levels: of the data; 1 for continuous data, of which no such bound is known.
    """
    most = math.log2(levels)
    worse = [f"{row.arm} {row.bits_per_dim:.2f}" for row in rows if levels > 1 and row.bits_per_dim > most]
    if not worse:
        return []
    return [
        f"worse than uniform noise, which has {most:g} {'bit' if most == 1 else 'bits'} per dimension: "
        f"{', '.join(worse)}. The model has not learned the data: train longer, check --preprocess against the "
        "decoder's range, or choose another --likelihood"
    ]
