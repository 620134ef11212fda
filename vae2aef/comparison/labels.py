"""Labels beside the data: class numbers where they can be counted; where they cannot, left out and named."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor

from vae2aef.comparison.found import Found


class _Unusable(ValueError):
    """Why labels are left out."""


def clean_labels(found: Found) -> None:
    """Bring the labels of every part to shape (n,); leave all out, with a note, if those of one part cannot be used.

    Nobody may have asked for them, so that they are no reason to refuse the data.

    Args:
        found: its `labels` and `notes` are changed.
    """
    problems = [found.labels_problem] if found.labels_problem else []
    for part, labels in found.labels.items():
        try:
            found.labels[part] = _of_rows(np.asarray(labels), len(found.parts[part]))
        except _Unusable as problem:
            problems.append(f"those of the {'data' if part == 'all' else part + ' data'} {problem}")
    if missing := [part for part in found.parts if found.labels and part not in found.labels]:
        problems.append(f"there are none of the {' and '.join(missing)} data")
    if problems:
        found.labels = {}
        found.notes.append(f"labels are left out: {'; '.join(problems)}")


def number_labels(labels: Mapping[str, np.ndarray]) -> tuple[dict[str, Tensor], tuple[str, ...]]:
    """Count the classes through; numbers in their order, text in that of the alphabet.

    Args:
        labels: of each part, (n,), from `clean_labels`.

    Returns:
        Class numbers of each part, `int64`, (n,), and what each stands for.
    """
    if not labels:
        return {}, ()
    values, numbers = np.unique(np.concatenate(list(labels.values())), return_inverse=True)
    ends = np.cumsum([len(part) for part in labels.values()])[:-1]
    found = dict(zip(labels, map(torch.from_numpy, np.split(numbers.astype(np.int64), ends)), strict=True))
    return found, tuple(str(value) for value in values)


def _of_rows(labels: np.ndarray, rows: int) -> np.ndarray:
    """Return labels of shape (rows,): as they are, from a column, or from one-hot rows."""
    shape = labels.shape
    if labels.ndim > 1 and labels.size == len(labels):
        labels = labels.reshape(-1)
    if labels.ndim == 2 and labels.dtype.kind in "biuf" and _one_hot(labels):
        labels = labels.argmax(1)
    if labels.shape != (rows,):
        raise _Unusable(f"have shape {shape}, expected one a row: ({rows},)")
    if labels.dtype.kind == "O":
        labels = _of_objects(labels)
    missing = np.isnan(labels) if labels.dtype.kind in "fc" else np.isnat(labels) if labels.dtype.kind in "mM" else None
    if labels.dtype.kind == "V":
        raise _Unusable(f"are of {labels.dtype}")
    if missing is not None and missing.any():
        raise _Unusable(f"are missing in {int(missing.sum())} rows")
    return labels


def _one_hot(labels: np.ndarray) -> bool:
    return bool(((labels == 0) | (labels == 1)).all() and (labels.sum(1) == 1).all())


def _of_objects(labels: np.ndarray) -> np.ndarray:
    """Numbers or text of a column that may hold anything."""
    if missing := sum(map(_missing, labels)):
        raise _Unusable(f"are missing in {missing} rows")
    kinds = {type(one) for one in labels}
    if other := [kind.__name__ for kind in kinds if not issubclass(kind, (str, bytes, bool, int, float, np.generic))]:
        raise _Unusable(f"are objects ({', '.join(sorted(other))}), expected numbers or text")
    same = len(kinds) == 1 or not any(issubclass(kind, (str, bytes)) for kind in kinds)
    return np.array(labels.tolist() if same else [str(one) for one in labels])


def _missing(one: Any) -> bool:
    return one is None or type(one).__name__ in ("NAType", "NaTType") or (isinstance(one, float) and one != one)
