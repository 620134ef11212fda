"""Image data from the places people keep it, as tensors with a known number of grey levels.

The number of levels is part of the data: `bits_per_dim` is off by a constant without it.
"""

from __future__ import annotations

import hashlib
import math
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from vae2aef.comparison.errors import InputError
from vae2aef.comparison.grey_levels import to_levels
from vae2aef.comparison.readers import ACCEPTED, read

SPLIT_SEED = 0
LARGEST, MOST_LEVELS = 1e15, 2**24
SMALLEST = 10  # so that training, validation and test data are left


@dataclass(frozen=True)
class Dataset:
    """Training and test data.

    Attributes:
        name: what it was loaded from.
        x_train: (n, *event), `uint8` or `int32` in 0..bins-1, or `float32` when continuous.
        x_test: (m, *event), of the same type.
        bins: number of levels of a value; 1 means continuous.
    """

    name: str
    x_train: Tensor
    x_test: Tensor
    bins: int

    @property
    def event_shape(self) -> tuple[int, ...]:
        """Shape of one sample."""
        return tuple(self.x_train.shape[1:])

    def split_validation(self, fraction: float = 0.1, seed: int = SPLIT_SEED) -> tuple[Tensor, Tensor]:
        """Split the training data into (training, validation), shuffled by `seed` (paper D.4: 10 %)."""
        order = torch.randperm(len(self.x_train), generator=torch.Generator().manual_seed(seed))
        held_out = max(1, round(fraction * len(order)))
        return self.x_train[order[held_out:]], self.x_train[order[:held_out]]

    def some_test(self, limit: int) -> Tensor:
        """Return `limit` test samples, drawn with a fixed seed; all of them, shuffled, for 0."""
        order = torch.randperm(len(self.x_test), generator=torch.Generator().manual_seed(SPLIT_SEED))
        return self.x_test[order[: limit or None]]

    def digest(self) -> str:
        """Sixteen hexadecimal digits that change when the data change."""
        sha = hashlib.sha256(repr((self.bins, self.x_train.shape, self.x_test.shape)).encode())
        for part in (self.x_train, self.x_test):
            sha.update(part.contiguous().numpy().tobytes())
        return sha.hexdigest()[:16]


def load(source: str, bins: int | None = None) -> Dataset:
    """Load a data set.

    Args:
        source: `"photographs"` (8x8 tiles of scikit-learn's two, in grey, 256 levels), `"digits"` (its 8x8 digits,
            17 levels), a `.npz` file (`x_train` and `x_test`, `train` and `test`, or one array, of which a fifth
            becomes the test set), a `.npy` file, an IDX file (`.gz` too; its `t10k` sibling is the test set), or a
            folder of images of one size (with `train` and `test` folders inside, or not).
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
        name, arrays, bins = source, [make()], bins or levels
    else:
        path = Path(source).expanduser()
        if not path.exists():
            raise InputError(f"no such file or folder: {source}. Accepted: {ACCEPTED}")
        name, arrays = path.name, read(path)
    arrays = [_channels_first(a, source) for a in arrays]
    if len(arrays) == 1:
        arrays = _split(arrays[0], source)
    train, test = arrays
    if train.shape[1:] != test.shape[1:]:
        raise InputError(
            f"{source}: training samples have shape {train.shape[1:]}, test samples {test.shape[1:]}; "
            "they must be the same"
        )
    for part, smallest, what in ((train, 8, "training"), (test, 2, "test")):
        if len(part) < smallest or not part[0].size:
            raise InputError(
                f"{source}: {len(part)} {what} samples of shape {part.shape[1:]}, "
                f"at least {smallest} that are not empty are needed"
            )
    _require_moderate(source, train, test)
    (train, test), bins = to_levels([train, test], bins, source)
    return Dataset(name, torch.from_numpy(train), torch.from_numpy(test), bins)


def _require_moderate(source: str, *arrays: np.ndarray) -> None:
    """Refuse values that float32 cannot square, and integers that it cannot tell apart."""
    for part in arrays:
        most = {"f": LARGEST, "i": MOST_LEVELS, "u": MOST_LEVELS}.get(part.dtype.kind)
        largest = 0.0 if most is None else max(abs(float(part.max())), abs(float(part.min())))
        if most is not None and most < largest < math.inf:
            raise InputError(
                f"{source}: values up to {largest:.3g}, which float32 cannot square or tell apart; scale the data"
            )


def _digits() -> np.ndarray:
    from sklearn.datasets import load_digits

    return load_digits().images.astype(np.uint8)


def _photographs(tile: int = 8) -> np.ndarray:
    """Cut the photographs into tiles that do not overlap."""
    from sklearn.datasets import load_sample_images

    found = []
    for image in load_sample_images().images:
        grey = np.rint(image @ np.array([0.299, 0.587, 0.114])).astype(np.uint8)  # ITU-R BT.601
        rows, columns = (side // tile for side in grey.shape)
        tiles = grey[: rows * tile, : columns * tile].reshape(rows, tile, columns, tile)
        found.append(tiles.swapaxes(1, 2).reshape(-1, tile, tile))
    return np.concatenate(found)


BUILT_IN = {"photographs": (_photographs, 256), "digits": (_digits, 17)}
"""Data that come with scikit-learn: how they are made, and their number of levels."""


def _split(array: np.ndarray, source: str) -> list[np.ndarray]:
    """A fifth, drawn with a fixed seed, becomes the test set."""
    if len(array) < SMALLEST:
        raise InputError(f"{source}: {len(array)} samples, at least {SMALLEST} are needed to split off a test set")
    order = np.random.RandomState(SPLIT_SEED).permutation(len(array))
    cut = round(0.2 * len(array))
    return [array[order[cut:]], array[order[:cut]]]


def _channels_first(array: np.ndarray, source: str) -> np.ndarray:
    if array.ndim == 2:
        return array
    if array.ndim == 3:
        return array[:, None]
    if array.ndim == 4 and array.shape[-1] in (1, 3, 4):
        return np.moveaxis(array, -1, 1)
    if array.ndim == 4 and array.shape[1] in (1, 3, 4):
        return array
    raise InputError(
        f"{source}: an array of shape {array.shape} is not (n, features), (n, height, width), "
        "(n, height, width, channels) or (n, channels, height, width) with 1, 3 or 4 channels"
    )
