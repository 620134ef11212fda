"""The checks of `grey_levels` and `constants` on an array that stays on the disk, some MB at a time.

Levels are told from the set of the values, and each value is converted by itself. So the distinct values stand for all
of them: what is decided, and what is said, is what it would be if the array had been read as a whole.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from vae2aef.comparison.constants import of_channels, of_pixels, refuse_discrete, varying
from vae2aef.comparison.errors import InputError
from vae2aef.comparison.grey_levels import FEW, OFTEN, on_grid, require_finite, require_moderate, to_levels
from vae2aef.comparison.rows import Mapped

MOST_FLOATS = 2**17  # distinct floats that are kept; more are continuous
MOST_INTEGERS = 2**25 + 2  # one more than there are within the largest integers that are taken


def streamed(array: np.ndarray, bins: int | None, source: str) -> tuple[Mapped, int, list[str]]:
    """Look at all values of a mapped array, as `to_levels`, `without_constants` and those after them do.

    Args:
        array: memory-mapped booleans, integers or floats, (n, features) or (n, channels, height, width).
        bins: number of levels; 1 for continuous data; None to tell from the values.
        source: for messages.

    Returns:
        What reads the data, the number of levels, and what was left out or is constant still, in words.

    Raises:
        InputError: as these functions do.
    """
    asked = bins
    convert, bins = _levels(array, bins, source)
    data = Mapped(array, convert)
    first, each = _constants(data)
    kept, said = varying(first, each, [], source)
    if kept is not None:
        data, each = Mapped(array, convert, kept), each[kept]
    notes = [*said, *of_channels(data.read(slice(0, 1)).shape, data.chunks()), *of_pixels(each)]
    if bins == 1 and asked is None and array.ndim == 2:
        refuse_discrete(_few(data), [], source)
    return data, bins, notes


def _levels(array: np.ndarray, bins: int | None, source: str) -> tuple[Callable[[np.ndarray], np.ndarray], int]:
    """Return what converts values, and the number of levels."""
    values, looks_discrete = _distinct(array, source)
    require_moderate(source, values)
    if len(values) > MOST_FLOATS and array.dtype.kind == "f":
        if bins != 1 and (looks_discrete or bins is not None):
            raise InputError(
                f"{source}: floats that are to be levels, and take more than {MOST_FLOATS:,} distinct values; save the "
                "levels themselves, as integers, or use --bins 1 for continuous data"
            )
        return _to_float32, 1
    # Told apart by how often values come, too: as often as in the array, or as often as matters.
    stand_in = np.resize(values, max(len(values), min(array.size, OFTEN * FEW)))
    (levels,), bins = to_levels([stand_in], bins, source)
    levels = levels[: len(values)]
    if levels.dtype == np.float32:
        return _to_float32, bins
    kind = levels.dtype
    if np.array_equal(levels, values):
        return lambda rows: rows.astype(kind), bins
    return lambda rows: levels[np.searchsorted(values, rows)], bins


def _to_float32(rows: np.ndarray) -> np.ndarray:
    return rows.astype(np.float32)


def _distinct(array: np.ndarray, source: str) -> tuple[np.ndarray, bool]:
    """Return the distinct values, and whether all are whole, or all on the grid k/255.

    Of more floats than are kept, these are some, with the smallest and the largest of all.
    """
    floats, byte = array.dtype.kind == "f", array.dtype.itemsize == 1
    most = MOST_FLOATS if floats else MOST_INTEGERS
    values, whole, grid = np.empty(0, array.dtype), floats, floats
    for rows in Mapped(array, np.asarray).chunks():
        if floats:
            require_finite([rows], source)
            whole = whole and bool((rows == np.rint(rows)).all())
            grid = grid and bool(rows.min() >= 0 and rows.max() <= 1 and on_grid(rows, 255))
        if len(values) <= most:
            values = np.union1d(values, np.unique(rows))
        else:
            values[0], values[-1] = min(values[0], rows.min()), max(values[-1], rows.max())
        if byte and len(values) == 256:
            break  # there are no others
    return values, whole or grid


def _constants(data: Mapped) -> tuple[np.ndarray, np.ndarray]:
    """Return the first row, (1, *event), and which of its values all data share."""
    first = data.read(slice(0, 1))
    each = np.ones(first.shape[1:], bool)
    for rows in data.chunks():
        each &= (rows == first).all(axis=0)
        if not each.any():
            break
    return first, each


def _few(data: Mapped) -> dict[int, list[np.ndarray]]:
    """Return the values of those columns that have few distinct ones."""
    size = len(data.array)
    few: dict[int, np.ndarray] = {i: np.empty(0, np.float32) for i in range(data.read(slice(0, 1)).shape[1])}
    for rows in data.chunks():
        few = {i: np.union1d(values, rows[:, i]) for i, values in few.items()}
        few = {i: values for i, values in few.items() if len(values) <= FEW}
        if not few:
            break
    return {i: [np.resize(v, max(len(v), min(size, OFTEN * FEW)))] for i, v in few.items()}
