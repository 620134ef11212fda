"""Features that are the same in all data: channels and columns are left out, single pixels are named."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import numpy as np

from vae2aef.comparison.errors import InputError
from vae2aef.comparison.grey_levels import evenly_spaced

SAID = 6


def without_constants(arrays: list[np.ndarray], columns: list[str], source: str) -> tuple[list[np.ndarray], list[str]]:
    """Leave out what tells nothing: channels of images and columns of tables that have one value in all data.

    A density of a value that never changes can grow without bound, and in bits per dimension it dilutes the rest.

    Args:
        arrays: training, test, ... data, (n, channels, height, width) or (n, features).
        columns: names of the features, or none; those left out are taken from the list.
        source: for messages.

    Returns:
        The arrays, and what was left out or is constant still, in words.

    Raises:
        InputError: nothing is left.
    """
    first = arrays[0][:1]
    each = np.all([(a == first).all(axis=0) for a in arrays], axis=0)
    kept, said = varying(first, each, columns, source)
    if kept is not None:
        arrays, each = [np.ascontiguousarray(a[:, kept]) for a in arrays], each[kept]
    return arrays, [*said, *of_channels(arrays[0].shape, arrays), *of_pixels(each)]


def varying(
    first: np.ndarray, each: np.ndarray, columns: list[str], source: str
) -> tuple[np.ndarray | None, list[str]]:
    """Say which channels or columns are to be left out.

    Args:
        first: a datum, (1, *event).
        each: which of its values all data share, (*event).
        columns: names of the features, or none; those left out are taken from the list.
        source: for messages.

    Returns:
        A mask of those that are kept, None for all, and what was left out, in words.

    Raises:
        InputError: nothing is left.
    """
    axes = tuple(range(1, each.ndim))
    whole = each if not axes else each.all(axis=axes) & (first[0] == first[0, :, :1, :1]).all(axis=axes)
    if whole.all():
        raise InputError(f"{source}: all data are the same, so there is nothing to learn")
    if not whole.any():
        return None, []
    named = [_name(int(i), columns, first) for i in np.flatnonzero(whole)]
    columns[:] = [name for name, gone in zip(columns, whole, strict=False) if not gone]
    return ~whole, [f"left out, as it is the same in all data: {_some(named)}"]


def of_channels(shape: tuple[int, ...], arrays: Iterable[np.ndarray]) -> list[str]:
    """Say what the channels of images seem to be; `arrays` have shape (n, *shape[1:]) each."""
    if len(shape) == 4 and shape[1] == 4:
        return ["the fourth channel, alpha, varies and is scored as data; drop it if it is none"]
    if len(shape) == 4 and shape[1] == 3 and all((a == a[:, :1]).all() for a in arrays):
        return ["the three channels are equal: grey pictures stored as colour, and each value counts three times"]
    return []


def of_pixels(each: np.ndarray) -> list[str]:
    """Say how many values of a datum, (*event), are the same in all data."""
    if not each.any():
        return []
    return [
        f"{int(each.sum())} of {each.size} values of a datum are the same in all data: they cost few bits, and lower "
        "bits per dimension of every model"
    ]


def _some(names: list[str]) -> str:
    return ", ".join(names[:SAID]) + (f" and {len(names) - SAID} more" if len(names) > SAID else "")


def _name(index: int, columns: list[str], first: np.ndarray) -> str:
    if columns:
        return f"column {columns[index]}"
    if first.ndim == 2:
        return f"feature {index}"
    alpha = first.shape[1] in (2, 4) and index == first.shape[1] - 1
    return f"{'alpha' if alpha else f'channel {index}'} ({first[0, index].flat[0]})"


def require_no_discrete_columns(arrays: list[np.ndarray], columns: list[str], source: str) -> None:
    """Ask where single features of a table are discrete among continuous ones.

    Raises:
        InputError: names them, and what can be done.
    """
    if arrays[0].ndim == 2:
        refuse_discrete({i: [a[:, i] for a in arrays] for i in range(arrays[0].shape[1])}, columns, source)


def refuse_discrete(features: Mapping[int, list[np.ndarray]], columns: list[str], source: str) -> None:
    """Ask where features are discrete.

    Args:
        features: by their number, the values of each, in any number of arrays.
        columns: names of all features, or none.
        source: for messages.

    Raises:
        InputError: names them, and what can be done.
    """
    found = []
    for index, arrays in features.items():
        spaced = evenly_spaced(arrays)
        if spaced is not None:
            name = columns[index] if columns else f"feature {index}"
            found.append(f"{name} ({spaced[0]} values)")
    if found:
        raise InputError(
            f"{source}: discrete among continuous features: {_some(found)}. A density grows without "
            "bound on them, so that bits per dimension mean nothing. Leave these columns out; or add uniform noise as "
            "wide as their step; or say --bins 1 to take all as continuous all the same"
        )
