"""A finished comparison, and what it has to show."""

from __future__ import annotations

import functools
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from vae2aef.comparison import wording
from vae2aef.comparison.data import Dataset
from vae2aef.comparison.gallery import are_images
from vae2aef.comparison.options import Options
from vae2aef.comparison.own_loop import Made
from vae2aef.comparison.run import RunData
from vae2aef.comparison.summary import Row
from vae2aef.comparison.verdict import verdict


@dataclass(frozen=True)
class Outcome:
    """A finished comparison.

    Attributes:
        options: what was asked for.
        dataset: what it was asked of.
        data: the parts it was split into.
        runs: the result of each run, as `run_arm` returns it.
        rows: of the table.
        notes: what stands against taking the table at its word.
        shared: what all arms have in common.
        made: what the line for one's own loop takes from it.
    """

    options: Options
    dataset: Dataset
    data: RunData
    runs: list[dict[str, Any]]
    rows: list[Row]
    notes: list[str]
    shared: str
    made: Made | None = None

    @property
    def title(self) -> str:
        """The heading of table and report."""
        steps, draws = self.options.steps, self.options.importance_samples
        return f"VAE and AEF on {self.dataset.name}: {steps} steps, {draws} draws a test sample"

    @property
    def verdict(self) -> list[str]:
        """What to take away, and what to try next."""
        return verdict(self.rows, self.options, self.dataset.bins, self.made)

    @property
    def sizes(self) -> dict[str, int]:
        """How many samples each part of the data has."""
        return {
            "train": len(self.data.train), "validation": len(self.data.validation), "test": len(self.data.test),
        }  # fmt: skip

    @property
    def protocol(self) -> list[str]:
        """How the numbers were made, one line each."""
        return wording.protocol(self.options, self.sizes, self.dataset.bins, self.shared)

    def runs_of(self, arm: str) -> list[dict[str, Any]]:
        """The results of one arm, by seed."""
        return sorted((run for run in self.runs if run["arm"] == arm), key=lambda run: run["seed"])


class Material:
    """What there is to show: arrays in the space of the data, where [0, 1] is black to white if they are levels.

    Args:
        outcome: the comparison.
        out: its folder, which holds the arrays of every run.

    Attributes:
        outcome: the comparison.
        arms: in the order of the table.
        images: whether data can be looked at.
        arrays: of each arm, of its first seed: see `evaluate.Pictures` and `portrait`. Runs of earlier versions lack
            some.
    """

    def __init__(self, outcome: Outcome, out: Path) -> None:
        self.outcome, self.arms = outcome, list(outcome.options.arms)
        test, bins = outcome.data.test, outcome.dataset.bins
        # Some likelihoods score levels as whole numbers.
        self._factor = 1 / (bins - 1) if bins > 1 and test.max() > 1 else 1.0
        self.images = are_images(outcome.dataset.event_shape, bins, float(test.min()), float(test.max()))
        self.arrays = {arm: self._read(out / "runs" / f"seed0-{arm}" / "pictures.npz") for arm in self.arms}

    @functools.cached_property
    def test(self) -> np.ndarray:
        """Test data, (n, *event)."""
        return self._factor * self.outcome.data.test.double().numpy()

    @functools.cached_property
    def shown(self) -> np.ndarray:
        """The test data whose reconstructions each arm has under `reconstructions`."""
        return self._factor * self.outcome.data.shown.double().numpy()

    def having(self, name: str) -> list[str]:
        """The arms that have an array of this name."""
        return [arm for arm in self.arms if name in self.arrays[arm]]

    def _read(self, path: Path) -> dict[str, np.ndarray]:
        data = ("reconstructions", "samples", "draws", "hardest_reconstructions", "easiest_reconstructions", "walk")
        with np.load(path, allow_pickle=False) as file:
            return {name: self._factor * file[name] if name in data else file[name] for name in file.files}
