"""From the name of a source to its arrays and labels, whatever the format."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from vae2aef.comparison.found import Found, without_test
from vae2aef.comparison.images import read_folder
from vae2aef.comparison.readers import UNREADABLE, read
from vae2aef.comparison.tables import TABLES, is_saved_dataset, read_saved_dataset, read_table

VALIDATION = ("x_val", "x_valid", "x_validation", "val", "valid", "validation")
LABELS = {
    "all": ("y", "y_train", "labels"),
    "train": ("y_train",),
    "validation": ("y_val", "y_valid", "y_validation"),
    "test": ("y_test", "y_val", "y_valid", "y_validation"),  # validation data may stand for those of the test
}


def read_source(path: Path) -> Found:
    """Read a file or folder: parts, labels, and what must be said of them.

    Raises:
        InputError: the format is unknown or the content unreadable.
    """
    if path.is_dir():
        return read_saved_dataset(path) if is_saved_dataset(path) else read_folder(path)
    if path.suffix in TABLES:
        return read_table(path)
    arrays = read(path)
    names = ("train", "test") if len(arrays) == 2 else ("all",)
    found = Found(dict(zip(names, arrays, strict=True)))
    if path.suffix == ".npz":
        _more_of_npz(path, found)
    return found


def _more_of_npz(path: Path, found: Found) -> None:
    """Validation data and labels beside the arrays: `x_val`, `y_train`, `y_val`, `y_test`; `y` of a single array."""
    with np.load(path, allow_pickle=False) as file:
        _take_validation(file, found)
        for part in found.parts:
            names = LABELS[part]
            name = next((name for name in names if name in file.files), None)
            if name is not None:
                try:
                    found.labels[part] = file[name]
                except UNREADABLE:
                    found.labels_problem = f"{name} holds Python objects, never unpickled, or is damaged"


def _take_validation(file: Any, found: Found) -> None:
    key = next((name for name in VALIDATION if name in file.files), None)
    if key is None or not {"x_train", "train"} & set(file.files):
        return
    found.parts["validation"] = file[key]
    if "all" in found.parts:
        found.parts["train"] = found.parts.pop("all")
        used, notes = without_test(found.parts)
        found.parts = {used[part]: array for part, array in found.parts.items()}
        found.notes += notes
