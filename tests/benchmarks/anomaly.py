"""Anomaly scores: log p(x) of a VAE and of AEFs beside IsolationForest and PyOD's VAE; resumable.

    python tests/benchmarks/anomaly.py --shuttle shuttle-anomalies.npz --out docs/results/other/anomaly.json

Shuttle: trained on 10,000 normal rows, tested on 1000 other normal ones and 1000 anomalies. Digits: one class of three
is left out of the training and is the anomaly among held-out data of the other nine. Nothing is tuned; each model has
its defaults, but for PyOD's VAE, which gets 64 units a layer and 4 latents, as the others have, and the steps: 2000.
"""

from __future__ import annotations

import argparse
import json
import time
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from sklearn.datasets import load_digits
from sklearn.ensemble import IsolationForest
from sklearn.metrics import average_precision_score, roc_auc_score

from vae2aef import AEFEstimator

STEPS, LATENTS, BATCH = 2000, 4, 128
DIGITS = (0, 1, 8)
Score = Callable[[np.ndarray, np.ndarray, int], np.ndarray]
"""(training data, test data, seed) to scores, higher for what is more of an anomaly."""


def ours(**options: Any) -> Score:
    def score(train: np.ndarray, test: np.ndarray, seed: int) -> np.ndarray:
        model = AEFEstimator(n_components=LATENTS, max_iter=STEPS, batch_size=BATCH, random_state=seed, **options)
        return -model.fit(train).score_samples(test)

    return score


def forest(train: np.ndarray, test: np.ndarray, seed: int) -> np.ndarray:
    return -IsolationForest(random_state=seed).fit(train).score_samples(test)


def pyod(train: np.ndarray, test: np.ndarray, seed: int) -> np.ndarray:
    from pyod.models.vae import VAE

    epochs = max(1, STEPS * BATCH // len(train))
    layers = {"encoder_neuron_list": [64, 64], "decoder_neuron_list": [64, 64], "latent_dim": LATENTS}
    model = VAE(epoch_num=epochs, batch_size=BATCH, random_state=seed, verbose=0, **layers)
    return model.fit(train).decision_function(test)


MODELS: dict[str, Score] = {
    "IsolationForest": forest,
    "PyOD's VAE": pyod,
    "VAE, log p(x)": ours(core="noise", core_flow="none"),
    "AEF, σ = 0.3, log p(x)": ours(),
    "the paper's AEF (σ = 0), log p(x)": ours(noise=0.0),
}


def problems(shuttle: Path) -> Iterator[tuple[str, np.ndarray, np.ndarray, np.ndarray]]:
    """Yield name, training data, test data and 1 for each anomaly among these."""
    with np.load(shuttle) as arrays:
        normal, bad = (arrays[name] for name in ("normal", "anomalies"))
    order, some = np.random.default_rng(0).permutation(len(normal)), np.random.default_rng(1).permutation(len(bad))
    normal, bad = normal[order[:11_000]], bad[some[:1000]]
    yield "shuttle", normal[:10_000], np.concatenate([normal[10_000:], bad]), np.repeat([0, 1], [1000, len(bad)])
    x, y = load_digits(return_X_y=True)
    held = np.random.default_rng(2).random(len(x)) < 0.3
    x = (x + np.random.default_rng(3).random(x.shape)) / 17  # grey levels have no density
    for digit in DIGITS:
        test = np.concatenate([x[held & (y != digit)], x[y == digit]])
        yield (
            f"digits without {digit}",
            x[~held & (y != digit)],
            test,
            np.arange(len(test)) >= (held & (y != digit)).sum(),
        )


def table(runs: list[dict[str, Any]]) -> str:
    """AUROC and average precision, means over the seeds that every model has, a row a model."""
    data = list(dict.fromkeys(run["data"] for run in runs))
    known = {(run["data"], run["model"], run["seed"]) for run in runs}
    seeds = {name: [s for s in range(9) if all((name, model, s) in known for model in MODELS)] for name in data}
    heads = [f"{name}, {len(seeds[name])} seed" + "s" * (len(seeds[name]) > 1) for name in data]
    rows = ["| AUROC, average precision | " + " | ".join(heads) + " |"]
    rows.append("|---|" + "---:|" * len(data))
    for model in MODELS:
        cells = []
        for name in data:
            own = [r for r in runs if (r["data"], r["model"]) == (name, model) and r["seed"] in seeds[name]]
            means = (np.mean([run[what] for run in own]) for what in ("auroc", "average_precision"))
            cells.append(", ".join(f"{mean:.3f}" for mean in means))
        rows.append(f"| {model} | " + " | ".join(cells) + " |")
    return "\n".join(rows)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shuttle", type=Path, required=True, help="arrays `normal` and `anomalies`")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--seeds", type=int, default=3)
    options = parser.parse_args()
    torch.set_num_threads(1)
    options.out.parent.mkdir(parents=True, exist_ok=True)
    done = json.loads(options.out.read_text()) if options.out.exists() else []
    seen = {(row["data"], row["model"], row["seed"]) for row in done}
    for seed in range(options.seeds):
        for data, train, test, anomaly in problems(options.shuttle):
            for name, score in MODELS.items():
                if (data, name, seed) in seen:
                    continue
                start = time.perf_counter()
                with warnings.catch_warnings():
                    warnings.simplefilter("ignore")
                    scores = score(train.astype(np.float32), test.astype(np.float32), seed)
                row = {"data": data, "model": name, "seed": seed, "seconds": round(time.perf_counter() - start, 1)}
                row["auroc"] = round(float(roc_auc_score(anomaly, scores)), 5)
                row["average_precision"] = round(float(average_precision_score(anomaly, scores)), 5)
                done.append(row)
                print(row, flush=True)
                options.out.write_text(json.dumps(done, indent=0, ensure_ascii=False) + "\n", encoding="utf-8")
    print(table(done))


if __name__ == "__main__":
    main()
