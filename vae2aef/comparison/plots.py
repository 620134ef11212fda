"""The pictures of a comparison, as PNG files."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from vae2aef.comparison.files import write_atomic
from vae2aef.comparison.summary import Row

DPI = 150
GAP = 0.08  # between images, as a part of their width
SHOWN = 8
COLOURS = ("#4e79a7", "#59a14f", "#e15759", "#f28e2b", "#76b7b2", "#b07aa1")


def tile(samples: np.ndarray, columns: int, transparent: bool = False) -> np.ndarray:
    """Put samples side by side on white, or on nothing.

    Vectors are shown as square images where their length is a square, else as a strip.

    Args:
        samples: (n, *event) in the space of the data, where [0, 1] is black to white.
        columns: images in a row.
        transparent: leave the gaps open, for a page that is light or dark.

    Returns:
        (height, width, 3) in [0, 1]; 4 if transparent.
    """
    images = np.stack([_image(sample) for sample in samples])
    n, height, width, _ = images.shape
    gap = max(1, round(GAP * width))
    rows = math.ceil(n / columns)
    sheet = np.ones((rows * (height + gap) - gap, columns * (width + gap) - gap, 4 if transparent else 3))
    sheet[..., 3:] = 0
    for i, image in enumerate(images):
        top, left = i // columns * (height + gap), i % columns * (width + gap)
        sheet[top : top + height, left : left + width, :3] = image
        sheet[top : top + height, left : left + width, 3:] = 1
    return sheet


def _image(sample: np.ndarray) -> np.ndarray:
    if sample.ndim == 1:
        side = math.isqrt(sample.size)
        sample = sample.reshape(1, side, side) if side * side == sample.size else sample.reshape(1, 1, -1)
    image = np.moveaxis(np.clip(np.nan_to_num(sample), 0, 1), 0, -1)
    return image[..., :3] if image.shape[-1] >= 3 else np.repeat(image[..., :1], 3, axis=-1)


def save_sheet(path: Path, samples: np.ndarray, columns: int = SHOWN) -> None:
    """Write samples (n, *event) as one picture, enlarged without smoothing."""
    sheet = tile(samples, columns)
    factor = max(1, 1000 // sheet.shape[1])
    big = np.ascontiguousarray(sheet.repeat(factor, axis=0).repeat(factor, axis=1))
    write_atomic(path, lambda temporary: matplotlib.image.imsave(temporary, big))


def save_comparison(
    path: Path, originals: np.ndarray, pictures: Mapping[str, Mapping[str, np.ndarray]], rows: Sequence[Row]
) -> None:
    """Write one picture: originals, and under them each arm's reconstructions and samples.

    Args:
        path: the file.
        originals: test samples (n, *event): the first eight are reconstructed, the next eight stand above the
            samples.
        pictures: `reconstructions` and `samples` of each arm.
        rows: of the table, for order and labels.
    """
    lines = [("test data", originals[:SHOWN], originals[SHOWN : 2 * SHOWN])]
    for row in rows:
        label = f"{row.arm}\n{row.bits_per_dim:.3f} ± {row.interval:.3f} bits"
        shown = pictures[row.arm]
        lines.append((label, shown["reconstructions"][:SHOWN], shown["samples"][:SHOWN]))
    example = tile(originals[:SHOWN], SHOWN)
    height = 5.0 * example.shape[0] / example.shape[1]
    figure = Figure(figsize=(12, (height + 0.06) * len(lines) + 0.4), facecolor="white")
    grid = figure.subplots(len(lines), 2, squeeze=False, gridspec_kw={"wspace": 0.04, "hspace": 0.08})
    for axes, (label, *sheets) in zip(grid, lines, strict=True):
        for place, samples in zip(axes, sheets, strict=True):
            place.set_xticks([])
            place.set_yticks([])
            place.set_frame_on(False)
            if len(samples):
                place.imshow(tile(samples, SHOWN), interpolation="nearest")
        axes[0].set_ylabel(label, rotation=0, ha="right", va="center", labelpad=8, fontsize=11)
    grid[0][0].set_title("reconstructions of test data", fontsize=11)
    grid[0][1].set_title("samples", fontsize=11)
    figure.subplots_adjust(left=0.155, right=0.995, top=1 - 0.35 / figure.get_figheight(), bottom=0.01)
    _save(figure, path)


def save_curves(path: Path, results: Sequence[dict[str, Any]], arms: Sequence[str]) -> None:
    """Write the learning curves: validation marginals together, training losses apart.

    Losses have a panel each, since those of different arms are different quantities.

    Args:
        path: the file.
        results: contents of `result.json` of every run.
        arms: in the order of the table.
    """
    figure = Figure(figsize=(11, max(4.5, 1.25 * len(arms))), facecolor="white", layout="constrained")
    halves: Any = figure.subfigures(1, 2)
    left, right = halves
    together = left.subplots()
    apart = right.subplots(len(arms), 1, sharex=True, squeeze=False)[:, 0]
    for number, (arm, own) in enumerate(zip(arms, apart, strict=True)):
        colour = COLOURS[number % len(COLOURS)]
        runs = [r for r in results if r["arm"] == arm]
        for run in runs:
            label = arm if run is runs[0] else None
            together.plot(*_columns(run["validation_bits_per_dim"]), "o-", ms=3, color=colour, label=label)
            own.plot(*_columns(run["training_loss"]), color=colour, lw=1)
        own.set_title(arm, fontsize=9, loc="left", pad=2)
        own.tick_params(labelsize=8)
    together.set(xlabel="steps", ylabel="bits per dimension", title="validation marginal: comparable, lower is better")
    together.legend(frameon=False)
    together.grid(alpha=0.25)
    apart[-1].set_xlabel("steps")
    right.suptitle("training loss in nats: another quantity in each arm,\nnot to be compared", fontsize=11)
    _save(figure, path)


def _columns(points: Sequence[Sequence[float]]) -> tuple[list[float], list[float]]:
    return [p[0] for p in points], [p[1] for p in points]


def _save(figure: Figure, path: Path) -> None:
    FigureCanvasAgg(figure)  # no window system is asked for
    write_atomic(path, lambda temporary: figure.savefig(temporary, dpi=DPI))
