"""A finished comparison made by hand, for tests of its report."""

import numpy as np
import torch

from vae2aef.comparison import wording
from vae2aef.comparison.data import Dataset
from vae2aef.comparison.options import Options
from vae2aef.comparison.outcome import Outcome
from vae2aef.comparison.run import RunData
from vae2aef.comparison.summary import summarise

ARMS = ("vae", "aef-noise")
TEST = 20


def finished(out, kind):
    """Write the arrays of two runs to `out` and return their comparison.

    Args:
        out: a folder.
        kind: `"images"` with two latents, `"deep"`: with 300 and two seeds, `"table"`: of vectors with three, or
            `"earlier"`: images by an earlier version.
    """
    random = np.random.RandomState(0)
    event, bins = ((5,), 1) if kind == "table" else ((1, 6, 6), 16)
    latents, seeds = {"table": 3, "deep": 300}.get(kind, 2), 2 if kind == "deep" else 1
    test = torch.tensor(random.rand(TEST, *event) if bins > 1 else random.randn(TEST, *event)).float()
    options = Options(arms=ARMS, steps=10, data="d", importance_samples=100, seeds=seeds)
    runs = [{**run(k, arm, kind), "seed": seed} for k, arm in enumerate(ARMS) for seed in range(seeds)]
    for arm in ARMS:
        folder = out / "runs" / f"seed0-{arm}"
        folder.mkdir(parents=True)
        np.savez(folder / "pictures.npz", **arrays(random, test.numpy(), latents, kind))
    rows = summarise(runs, ARMS, event, bins, 100)
    data = RunData(test, test[:4], test, test[:16], bins)
    notes = [*wording.warnings(rows, options), *wording.certificates(rows)]
    return Outcome(options, Dataset("d", test, test, bins), data, runs, rows, notes, "In all arms: a VAE.")


def run(k, arm, kind):
    times = {} if kind == "earlier" else {"validation_seconds": [2.0, 4.0]}
    return {
        "arm": arm,
        "seed": 0,
        "parameters": {"total": 12_345, "vae": 12_300, "added": {"core": 45}},
        "best_step": 10,
        "seconds": 4.0,
        "reconstruction_mse": 0.01,
        "gauge": {"z": {"core_std": 0.3 * k, "log_scale": -1.5, "core_share": 0.5 * k}},
        "validation_bits_per_dim": [[5, 3.0 - 0.5 * k], [10, 2.5 - 0.5 * k]],
        "training_loss": [[1, 10.0], [10, -9.0]],
        "test": {
            "log_prob": [-10.0 - i + 2 * k for i in range(TEST)][:3] + [-13.0 + 2 * k] + [-10.0 + 4.0 * k] * (TEST - 4),
            "std_error": [0.2] * TEST,
            "effective_sample_size": [50.0] * TEST,
            "uncertain": 1,
        },
        "certificate": {"gap": 0.5, "std_error": 0.1},
        **times,
    }


def arrays(random, test, latents, kind):
    made = {"reconstructions": test[:16] + 0.1, "samples": test[:16]}
    if kind == "earlier":
        return made
    walk = (13, 13) if latents == 2 else (3, 9)
    return {
        **made,
        "draws": test[:16] * 0.9,
        "hardest": np.arange(8),
        "easiest": np.arange(8)[::-1],
        "hardest_reconstructions": test[:8],
        "easiest_reconstructions": test[:8],
        "mean_variance": np.tile([0.9, 0.001, 0.5], latents)[:latents],
        "posterior_mean": random.randn(latents) * 0.1,
        "posterior_std": np.ones(latents),
        "prior_mean": np.zeros(latents),
        "prior_std": np.ones(latents),
        "rate": np.array(0.2),
        "rate_by_chance": np.array(0.1),
        "walk": random.rand(*walk, *test.shape[1:]),
        "walk_units": np.arange(min(walk[0], latents)),
        **({"z": random.randn(len(test), 2)} if latents == 2 else {}),
    }


def nothing_drawn(patch):
    """Leave Vega out of pages, which takes seconds to bundle."""
    patch.setattr("vae2aef.comparison.page.library", lambda: "")
