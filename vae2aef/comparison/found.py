"""What a source of data holds, before anything is made of it."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field

import numpy as np

SPLITS = {
    "train": ("train", "training"),
    "validation": ("val", "valid", "validation", "dev"),
    "test": ("test", "testing"),
}
"""The names that parts of data go by."""


@dataclass
class Found:
    """Arrays as they were read.

    Attributes:
        parts: by `"train"`, `"validation"` and `"test"`, or `"all"` where the source does not say; each (n, *event).
        labels: of some of these parts, as they were read; see `labels.clean_labels`.
        bins: number of levels of a value, where the source says it.
        notes: what whoever reads the numbers must know of how the data were read.
        columns: names of the features of a table.
        labels_problem: why labels that are there could not be read.
    """

    parts: dict[str, np.ndarray]
    labels: dict[str, np.ndarray] = field(default_factory=dict)
    bins: int | None = None
    notes: list[str] = field(default_factory=list)
    columns: list[str] = field(default_factory=list)
    labels_problem: str = ""


def split_of(name: str) -> str | None:
    """Return the part that a folder or column value names: `"train"`, `"validation"`, `"test"`; None for none."""
    return next((part for part, names in SPLITS.items() if name.lower() in names), None)


def without_test(splits: Iterable[str]) -> tuple[dict[str, str], list[str]]:
    """Say which split stands for which part, where some are missing.

    Args:
        splits: among `"train"`, `"validation"` and `"test"`.

    Returns:
        The part that each split is used as, and a note where it is another one than its name says.
    """
    there = set(splits)
    if "train" in there and "validation" in there and "test" not in there:
        note = "there is validation and no test data: the validation data are the test data, and validation data are "
        return {"train": "train", "validation": "test"}, [note + "a tenth of the training data"]
    return {part: part for part in there}, []
