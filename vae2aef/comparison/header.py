"""Whether the first line of a CSV names the columns or is a datum."""

from __future__ import annotations

import math

from vae2aef.comparison.errors import InputError

COUNTED = 8
"""From so many columns on, a first line 0, 1, 2, ... or 1, 2, 3, ... is a header and no datum."""
LABELS = ("label", "labels", "target", "class", "y")
"""Columns that are labels, and no features, whatever they hold."""
SPLIT = "split"
KNOWN = {"", *LABELS, SPLIT}
"""Words beside numbers in a header that counts the features: of row numbers, labels and parts."""


def read_header(first: list[str], name: str) -> tuple[bool, list[str]]:
    """Say whether the first line names the columns.

    Args:
        first: its cells as text; empty for a table that has names of its own.
        name: of the file, for messages.

    Returns:
        Whether it does, and a note where a reader must know.

    Raises:
        InputError: it cannot be told: a datum would be lost, or a header be taken for one.
    """
    numbers, words = _parted(first)
    if not numbers or (words and words <= KNOWN and _counts(numbers)):
        return True, []
    shown = _shown(first)
    if not words and _counts(numbers) and len(numbers) >= COUNTED:
        return True, [f"the first line, {shown}, counts the columns and is no datum"]
    if words or numbers == sorted(set(numbers)):
        why = "holds numbers beside words" if words else "holds rising numbers"
        raise InputError(
            f"{name}: the first line, {shown}, {why}, and may be a datum or the names of the columns: put a line of "
            "names above it, such as x0,x1,... (and label, split), or in its place"
        )
    return False, [f"the first line, {shown}, holds numbers and no names, and is a datum"]


def _shown(first: list[str]) -> str:
    return ", ".join(first[:4]) + (", ..." if len(first) > 4 else "")


def _parted(first: list[str]) -> tuple[list[float], set[str]]:
    """The numbers of a line, and its words."""
    values = [(_number(cell), cell.strip().lower()) for cell in first]
    return [value for value, _ in values if value is not None], {cell for value, cell in values if value is None}


def _number(cell: str) -> float | None:
    try:
        return float({"true": "1", "false": "0"}.get(cell.strip().lower(), cell))
    except ValueError:
        return None


def _counts(numbers: list[float]) -> bool:
    """Whether numbers are 0, 1, 2, ... or 1, 2, 3, ..."""
    start = numbers[0]
    return start in (0, 1) and all(math.isclose(value, start + i) for i, value in enumerate(numbers))
