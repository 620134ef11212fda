"""Data from the places people keep them, as tensors with a known number of grey levels.

The number of levels is part of the data: `bits_per_dim` is off by a constant without it.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from vae2aef.comparison.built_in import BUILT_IN
from vae2aef.comparison.constants import require_no_discrete_columns, without_constants
from vae2aef.comparison.errors import InputError
from vae2aef.comparison.found import Found
from vae2aef.comparison.grey_levels import require_moderate, to_levels
from vae2aef.comparison.labels import clean_labels, number_labels
from vae2aef.comparison.readers import ACCEPTED
from vae2aef.comparison.rows import Rows, pieces, select
from vae2aef.comparison.sources import read_source
from vae2aef.comparison.streaming import streamed
from vae2aef.tensors import numel
from vae2aef.wrapping.room import free_memory

SPLIT_SEED = 0
SMALLEST = 10  # so that training, validation and test data are left


@dataclass(frozen=True)
class Dataset:
    """Training and test data.

    Attributes:
        name: what it was loaded from.
        x_train: (n, *event), `uint8` or `int32` in 0..bins-1, or `float32` when continuous; `Rows` of a file that is
            read as it is needed.
        x_test: (m, *event), likewise.
        bins: number of levels of a value; 1 means continuous.
        x_validation: (k, *event), where the source has validation data of its own; else None.
        labels: class numbers of `"train"`, `"test"` and, with `x_validation`, `"validation"`, `int64`, (n,); or empty.
        classes: what each class number stands for.
        notes: what whoever reads the numbers must know of how the data were read.
    """

    name: str
    x_train: Tensor | Rows
    x_test: Tensor | Rows
    bins: int
    x_validation: Tensor | None = None
    labels: Mapping[str, Tensor] = field(default_factory=dict)
    classes: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()

    @property
    def event_shape(self) -> tuple[int, ...]:
        """Shape of one sample."""
        return tuple(self.x_train.shape[1:])

    def require_range(self, preprocess: str, source: str) -> None:
        """Refuse continuous data that `--preprocess logit` does not take; `source` is `--data`.

        Raises:
            InputError: says what to do.
        """
        for x in (self.x_train, self.x_test) if preprocess == "logit" and self.bins == 1 else ():
            if x.min() < 0 or x.max() > 1:
                raise InputError(
                    f"--preprocess logit takes data within 0 and 1, {source} has values from {x.min():g} to "
                    f"{x.max():g}; scale them, or use --preprocess standardize or none"
                )

    def split_validation(self, fraction: float = 0.1, seed: int = SPLIT_SEED) -> tuple[Tensor | Rows, Tensor | Rows]:
        """Split the training data into (training, validation), shuffled by `seed` (paper D.4: 10 %).

        Where the source has validation data of its own, these are taken, and all training data are left.
        """
        if self.x_validation is not None:
            return self.x_train, self.x_validation
        kept, held_out = self._rows(fraction, seed)
        return select(self.x_train, kept), select(self.x_train, held_out)

    def split_labels(self, fraction: float = 0.1, seed: int = SPLIT_SEED) -> tuple[Tensor, Tensor]:
        """Return the labels of what `split_validation` returns."""
        if self.x_validation is not None:
            return self.labels["train"], self.labels["validation"]
        kept, held_out = self._rows(fraction, seed)
        return self.labels["train"][kept], self.labels["train"][held_out]

    def _rows(self, fraction: float, seed: int) -> tuple[Tensor, Tensor]:
        order = torch.randperm(len(self.x_train), generator=torch.Generator().manual_seed(seed))
        held_out = max(1, round(fraction * len(order)))
        return order[held_out:], order[:held_out]

    def some_test_labels(self, limit: int) -> Tensor:
        """Return the labels of what `some_test` returns."""
        return self.labels["test"][self._test_rows(limit)]

    def _test_rows(self, limit: int) -> Tensor:
        order = torch.randperm(len(self.x_test), generator=torch.Generator().manual_seed(SPLIT_SEED))
        return order[: limit or None]

    def some_test(self, limit: int) -> Tensor:
        """Return `limit` test samples, drawn with a fixed seed; all of them, shuffled, for 0.

        Raises:
            InputError: they are read from a file, and do not fit into memory.
        """
        rows = self._test_rows(limit)
        needed, free = len(rows) * numel(self.event_shape) * 4, free_memory(torch.device("cpu"))  # as float32
        if isinstance(self.x_test, Rows) and free is not None and needed > free:
            raise InputError(
                f"--test-limit {limit}: {len(rows):,} test samples of {self.name} take {needed:,} bytes of memory, and "
                f"{free:,} are free; give a number that fits"
            )
        return self.x_test[rows]

    def digest(self) -> str:
        """Sixteen hexadecimal digits that change when the data change."""
        return self._digest

    @cached_property
    def _digest(self) -> str:
        sha = hashlib.sha256(repr((self.bins, self.x_train.shape, self.x_test.shape)).encode())
        more = () if self.x_validation is None else (self.x_validation,)
        for piece in pieces(self.x_train, self.x_test, *more, *self.labels.values()):
            sha.update(piece.contiguous().numpy().tobytes())
        return sha.hexdigest()[:16]


def load(source: str, bins: int | None = None) -> Dataset:
    """Load a data set.

    Args:
        source: `"photographs"` (8x8 tiles of scikit-learn's two, in grey, 256 levels), `"digits"` (its 8x8 digits,
            17 levels), a `.npz` file (`x_train` and `x_test`, `train` and `test`, or one array, of which a fifth
            becomes the test set; `x_val`, `y_train` and `y_test` beside them), a `.npy` file (a large one is
            memory-mapped, and rows are read as they are needed), an IDX file (`.gz` too;
            its `t10k` sibling is the test set), a `.csv` or `.parquet` table, a folder of images of one size (with
            `train`, `val` and `test` folders inside, or not; the folders in these are classes), or a folder that
            Hugging Face's `datasets` saved.
        bins: number of levels of a value; 1 for continuous data; None to tell from the values, as
            `vae2aef.comparison.grey_levels.to_levels` does.

    Returns:
        The data, images as (channels, height, width), vectors as they are.

    Raises:
        InputError: the source is unknown, unreadable or empty, holds objects, NaN or infinite values, or
            values outside 0..bins-1, or it looks discrete and the number of levels cannot be told.
    """
    if bins is not None and bins < 1:
        raise InputError(f"bins is the number of levels and at least 1, got {bins}")
    if source in BUILT_IN:
        make, levels = BUILT_IN[source]
        name, found = source, Found({"all": make()}, bins=levels)
    else:
        path = Path(source).expanduser()
        if not path.exists():
            raise InputError(f"no such file or folder: {source}. Accepted: {ACCEPTED}")
        name, found = path.name, read_source(path)
    clean_labels(found)
    found.parts = {part: _channels_first(array, source) for part, array in found.parts.items()}
    if isinstance(whole := found.parts.get("all"), np.memmap):
        data, bins, notes = streamed(whole, bins, source)
        train, test = (Rows(data, rows) for rows in _split_rows(len(whole), source))
        return Dataset(name, train, test, bins, notes=tuple(notes))
    if "all" in found.parts:
        _split(found, source)
    _require_enough(found, source)
    parts = ("train", "test", *(("validation",) if "validation" in found.parts else ()))
    arrays, bins = [found.parts[part] for part in parts], bins or found.bins
    asked = bins
    require_moderate(source, *arrays)
    arrays, bins = to_levels(arrays, bins, source)
    arrays, notes = without_constants(arrays, found.columns, source)
    found.notes += notes
    if bins == 1 and asked is None:
        require_no_discrete_columns(arrays, found.columns, source)
    labels, classes = number_labels(found.labels)
    tensors = dict(zip(parts, map(torch.from_numpy, arrays), strict=True))
    return Dataset(
        name, tensors["train"], tensors["test"], bins, tensors.get("validation"), labels, classes, tuple(found.notes)
    )


def _require_enough(found: Found, source: str) -> None:
    shapes = {part: array.shape[1:] for part, array in found.parts.items()}
    for part in ("test", "validation"):
        if part in shapes and shapes[part] != shapes["train"]:
            raise InputError(
                f"{source}: training samples have shape {shapes['train']}, {part} samples {shapes[part]}; "
                "they must be the same"
            )
    for part, smallest, what in (("train", 8, "training"), ("test", 2, "test"), ("validation", 1, "validation")):
        array = found.parts.get(part)
        if array is not None and (len(array) < smallest or not array[0].size):
            raise InputError(
                f"{source}: {len(array)} {what} samples of shape {array.shape[1:]}, "
                f"at least {smallest} that are not empty are needed"
            )


def _split(found: Found, source: str) -> None:
    """A fifth, drawn with a fixed seed, becomes the test set."""
    train, test = _split_rows(len(found.parts["all"]), source)
    for arrays in (found.parts, found.labels):
        if "all" in arrays:
            whole = arrays.pop("all")
            arrays["train"], arrays["test"] = whole[train], whole[test]


def _split_rows(size: int, source: str) -> tuple[np.ndarray, np.ndarray]:
    if size < SMALLEST:
        raise InputError(f"{source}: {size} samples, at least {SMALLEST} are needed to split off a test set")
    order = np.random.RandomState(SPLIT_SEED).permutation(size)
    cut = round(0.2 * size)
    return order[cut:], order[:cut]


def _channels_first(array: np.ndarray, source: str) -> np.ndarray:
    if array.ndim == 2:
        return array
    if array.ndim == 3:
        return array[:, None]
    first, last = (array.ndim == 4 and array.shape[place] in (1, 3, 4) for place in (1, -1))
    # Where both could be channels, the fewer are: an image of four pixels a side has not four channels for that.
    if last and not (first and array.shape[1] < array.shape[-1]):
        return np.moveaxis(array, -1, 1)
    if first:
        return array
    raise InputError(
        f"{source}: an array of shape {array.shape} is not (n, features), (n, height, width), "
        "(n, height, width, channels) or (n, channels, height, width) with 1, 3 or 4 channels"
    )
