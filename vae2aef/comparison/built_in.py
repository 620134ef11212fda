"""Data that come with scikit-learn."""

from __future__ import annotations

import numpy as np


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
"""How they are made, and their number of levels."""
