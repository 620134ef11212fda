"""Images inside the report: whether data are images at all, and image files as text."""

from __future__ import annotations

import base64
import io
import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from vae2aef.comparison.plots import tile

SHORTEST = 4
"""Pixels along the shorter side of an image at least; a table of three columns is none."""
SQUARE = 8
"""Vectors of levels are images where their length is the square of this or more: flattened ones."""
LOSSLESS = 40_000
"""Bytes up to which a picture is a PNG; larger ones are WebP of high quality, a tenth of that."""
THUMBNAIL = 64
"""Pixels along the longer side of a thumbnail at most."""


def are_images(event_shape: Sequence[int], bins: int, low: float, high: float) -> bool:
    """Say whether data can be looked at.

    Values of levels can; continuous ones within 0 and 1, if they have the shape of images. Sequences and tables that
    look like that by chance are shown as images, and nothing else depends on it.

    Args:
        event_shape: of one event of data.
        bins: number of levels; 1 for continuous values.
        low: the smallest value.
        high: the largest.
    """
    if len(event_shape) == 1:
        side = math.isqrt(event_shape[0])
        return bins > 1 and side * side == event_shape[0] and side >= SQUARE
    within = bins > 1 or (low >= 0 and high <= 1)
    return within and len(event_shape) == 3 and event_shape[0] in (1, 3, 4) and min(event_shape[1:]) >= SHORTEST


def picture(samples: np.ndarray, columns: int) -> str:
    """Return samples (n, *event), side by side with open gaps and at their own size, as a `data:` address."""
    image = _pixels(tile(samples, columns, transparent=True))
    found = _file(image, format="PNG", optimize=True)
    return (
        _address(found, "png") if len(found) <= LOSSLESS else _address(_file(image, format="WEBP", quality=90), "webp")
    )


def thumbnails(samples: np.ndarray, budget: int) -> list[str]:
    """Return a `data:` address for each sample, or none at all if they take more than `budget` characters."""
    found, spent = [], 0
    for sample in samples:
        image = _pixels(tile(sample[None], 1))
        image.thumbnail((THUMBNAIL, THUMBNAIL))
        found.append(_address(_file(image, format="WEBP", quality=80), "webp"))
        spent += len(found[-1])
        if spent > budget:
            return []
    return found


def _pixels(sheet: np.ndarray) -> Any:
    from PIL import Image

    return Image.fromarray(np.rint(255 * sheet).astype(np.uint8))


def _file(image: Any, **how: Any) -> bytes:
    file = io.BytesIO()
    image.save(file, **how)
    return file.getvalue()


def _address(content: bytes, kind: str) -> str:
    return f"data:image/{kind};base64,{base64.b64encode(content).decode()}"
