"""How many grey levels the values of a data set have: told by their type and by where they lie, or asked for.

Discrete values taken as continuous give bits per dimension without meaning: a density can grow without bound on
them. So what looks discrete is never taken as continuous without the user's word, `--bins 1`.
"""

from __future__ import annotations

import math

import numpy as np

from vae2aef.comparison.errors import InputError

FEW = 1024  # as many distinct values, evenly spaced, are no coincidence ...
OFTEN = 4  # ... if each comes so often on average
FINEST = 2**16  # steps between the smallest and the largest value
LOOK = 2**20  # values that are looked at first
LARGEST, MOST_LEVELS = 1e15, 2**24


def to_levels(arrays: list[np.ndarray], bins: int | None, source: str) -> tuple[list[np.ndarray], int]:
    """Bring arrays to integers 0..bins-1, or to `float32` where they are continuous.

    Args:
        arrays: training and test data, any shapes.
        bins: number of levels, as the user says; 1 for continuous data; None to tell from the values: 2 for
            booleans and values 0 and 1, 256 for other whole numbers and for floats on the grid k/255, 1 for
            floats that are not evenly spaced.
        source: for messages.

    Returns:
        The arrays, `uint8`, `int32` or `float32`, and the number of levels.

    Raises:
        InputError: values are NaN, infinite, of a wrong type or outside 0..bins-1, or the number of levels
            cannot be told.
    """
    if all(a.dtype.kind == "f" for a in arrays):
        return _floats(arrays, bins, source)
    if not all(a.dtype.kind in "biu" for a in arrays):
        raise InputError(f"{source}: values of type {arrays[0].dtype}, expected integers or floats")
    if bins is None and all(a.dtype.kind == "b" for a in arrays):
        bins = 2
    if bins == 1:
        raise InputError(f"{source}: --bins 1 means continuous values, and these are integers; save them as floats")
    return _integers(arrays, bins, source, "integers")


def require_finite(arrays: list[np.ndarray], source: str) -> None:
    """Refuse floats that are no numbers.

    Raises:
        InputError: says so.
    """
    if not all(np.isfinite(a).all() for a in arrays):
        raise InputError(f"{source}: holds NaN or infinite values; remove these samples first")


def require_moderate(source: str, *arrays: np.ndarray) -> None:
    """Refuse values that float32 cannot square, and integers that it cannot tell apart.

    Raises:
        InputError: says the largest.
    """
    for part in arrays:
        most = {"f": LARGEST, "i": MOST_LEVELS, "u": MOST_LEVELS}.get(part.dtype.kind)
        largest = 0.0 if most is None else max(abs(float(part.max())), abs(float(part.min())))
        if most is not None and most < largest < math.inf:
            raise InputError(
                f"{source}: values up to {largest:.3g}, which float32 cannot square or tell apart; scale the data"
            )


def _floats(arrays: list[np.ndarray], bins: int | None, source: str) -> tuple[list[np.ndarray], int]:
    require_finite(arrays, source)
    if bins == 1:
        return _continuous(arrays)
    whole = all((a == np.rint(a)).all() for a in arrays)
    if whole and (bins is None or not _within_one(arrays)):
        return _integers(arrays, bins, source, "whole numbers", ", or --bins 1 if they are continuous")
    return _told_apart(arrays, source) if bins is None else _as_asked(arrays, bins, source)


def _as_asked(arrays: list[np.ndarray], bins: int, source: str) -> tuple[list[np.ndarray], int]:
    """Take floats as the levels that `--bins` means."""
    low, high = _range(arrays)
    # k/(bins - 1) reaches 1; k/bins stays below.
    for grid in (bins - 1, bins) if high < 1 else (bins - 1,):
        if _within_one(arrays) and all(on_grid(a, grid) for a in arrays):
            return _integers([np.rint(a * grid) for a in arrays], bins, source, "levels")
    raise InputError(
        f"{source}: floats from {low:g} to {high:g} that are not on the grid k/{bins - 1} which --bins {bins} "
        "means; leave --bins out, or use --bins 1 for continuous data"
    )


def _told_apart(arrays: list[np.ndarray], source: str) -> tuple[list[np.ndarray], int]:
    """Tell 8-bit levels and continuous values apart; ask where floats look discrete otherwise."""
    if _within_one(arrays) and all(on_grid(a, 255) for a in arrays):
        levels = [np.rint(a * 255).astype(np.uint8) for a in arrays]
        step = math.gcd(*np.unique(np.concatenate([np.unique(a) for a in levels])).tolist())
        if step <= 1:
            return levels, 256
        raise _ask(source, 255 // step + 1, arrays, 255 // step + 1, " (or --bins 256 for 8-bit values)")
    if found := evenly_spaced(arrays):
        distinct, spacing = found
        raise _ask(source, distinct, arrays, _number_of_levels(arrays, spacing))
    return _continuous(arrays)


def _number_of_levels(arrays: list[np.ndarray], spacing: float) -> int | None:
    """How many levels k/(levels - 1), or k/levels, of this spacing lie from 0 to 1; None if there is no such grid."""
    in_one = 1 / spacing
    if not _within_one(arrays) or abs(in_one - round(in_one)) >= 1e-3 * in_one:
        return None
    if not all(on_grid(a, round(in_one)) for a in arrays):
        return None
    return round(in_one) + bool(_range(arrays)[1] > 1 - spacing / 2)


def _continuous(arrays: list[np.ndarray]) -> tuple[list[np.ndarray], int]:
    return [a.astype(np.float32, order="C") for a in arrays], 1  # channels that came last are moved for good


def _ask(source: str, distinct: int, arrays: list[np.ndarray], bins: int | None, other: str = "") -> InputError:
    low, high = _range(arrays)
    line = f"--bins {bins}{other}" if bins else "the integers themselves, or floats k/(levels - 1) from 0 to 1"
    return InputError(
        f"{source}: floats from {low:g} to {high:g} that take only {distinct} distinct values, evenly spaced, so they "
        f"are discrete, and bits per dimension need the number of levels. Give {line}; or --bins 1 to take them as "
        "continuous all the same"
    )


def _integers(
    arrays: list[np.ndarray], bins: int | None, source: str, what: str, otherwise: str = ""
) -> tuple[list[np.ndarray], int]:
    low, high = (int(v) for v in _range(arrays))
    arrays, high = _on_steps(arrays, bins, (low, high), f"{source}: {what}", otherwise)
    if bins is None and low >= 0:
        if 1 < high < 128:
            raise InputError(
                f"{source}: {what} from {low} to {high}, which may be {high + 1} levels or dark 8-bit values; bits per "
                f"dimension need the number of levels. Give --bins {high + 1} or --bins 256{otherwise}"
            )
        bins = 2 if high <= 1 else 256
    bins = bins or 256
    if low < 0 or high >= bins:
        power = f"{2 ** high.bit_length()} ({high.bit_length()}-bit values) or --bins " if high & (high + 1) else ""
        advice = "shift them to start at 0" if low < 0 else f"give the number of levels with --bins {power}{high + 1}"
        raise InputError(f"{source}: {what} from {low} to {high}, expected 0 to {bins - 1}; {advice}{otherwise}")
    kind = np.uint8 if bins <= 256 else np.int32
    return [np.ascontiguousarray(a, dtype=kind) for a in arrays], bins


def _on_steps(
    arrays: list[np.ndarray], bins: int | None, ends: tuple[int, int], what: str, otherwise: str
) -> tuple[list[np.ndarray], int]:
    """Bring whole numbers with steps between them, such as bits in 0 and 255, to 0, 1, ...; ask if nobody said so."""
    low, high = ends
    if low < 0 or (high < 128 if bins is None else high < bins or bins < 2):
        return arrays, high
    step = math.gcd(*np.unique(np.concatenate([np.unique(a) for a in arrays])).astype(np.int64).tolist())
    if bins is not None:
        per, rest = divmod(high, bins - 1)
        return ([a // per for a in arrays], bins - 1) if not rest and step % per == 0 else (arrays, high)
    if step > 1:
        levels, most = high // step + 1, max(256, high + 1)
        raise InputError(
            f"{what} from 0 to {high} in steps of {step}, which may be {levels} levels or {most}; bits per dimension "
            f"need the number of levels. Give --bins {levels} or --bins {most}{otherwise}"
        )
    return arrays, high


def _range(arrays: list[np.ndarray]) -> tuple[float, float]:
    return min(a.min() for a in arrays), max(a.max() for a in arrays)


def _within_one(arrays: list[np.ndarray]) -> bool:
    low, high = _range(arrays)
    return bool(low >= 0 and high <= 1)


def on_grid(array: np.ndarray, grid: int) -> bool:
    """Whether all values are k/grid, as exactly as their type can say."""
    scaled = array.astype(np.float64) * grid
    close = max(1e-4, grid * float(np.finfo(array.dtype).eps))
    return close < 0.3 and bool(np.abs(scaled - np.rint(scaled)).max() < close)


def evenly_spaced(arrays: list[np.ndarray]) -> tuple[int, float] | None:
    """Return the number of distinct values and their spacing, gaps allowed; None if they are many or uneven."""
    size = sum(a.size for a in arrays)
    if len(np.unique(arrays[0].ravel()[:: max(1, arrays[0].size // LOOK)])) > FEW:
        return None
    values = np.unique(np.concatenate([np.unique(a) for a in arrays])).astype(np.float64)
    if len(values) > FEW:
        return None
    eps = float(max(np.finfo(a.dtype).eps for a in arrays)) * float(np.abs(values).max())
    values = values[np.concatenate([[True], np.diff(values) > 4 * eps])]  # 0.1 + 0.2 and 0.3 are one value
    if len(values) < 2 or size < OFTEN * len(values):
        return None
    gaps = np.diff(values)
    # Each gap is rounded by itself, so that the error of the smallest one does not add up.
    steps = np.concatenate([[0], np.cumsum(np.rint(gaps / gaps.min()))])
    spacing = float((values[-1] - values[0]) / steps[-1])
    off = float(np.abs((values - values[0]) / spacing - steps).max())
    close = max(1e-3, 4 * eps / spacing)
    return (len(values), spacing) if steps[-1] <= FINEST and off < close < 0.3 else None
