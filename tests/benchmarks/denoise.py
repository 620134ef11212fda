"""Denoising as in the paper's Appendix B, by pixels: trained on noisy images, tested against clean ones; resumable.

    python tests/benchmarks/denoise.py --images folder/with/mnist.npz --out docs/results/other/denoise.json

White noise on grey levels from 0 to 1, cut off there. One MLP for all: an autoencoder by least squares, the VAE by its
ELBO, AEFs of sigma = 0.3 and 0, all with a Gaussian of learned scale. The score is the mean squared error between the
reconstruction of a noisy test image and the clean image, per pixel: the paper takes features of an Inception network,
whose weights cannot be had here, on 100,000 steps of 1e-4.
"""

from __future__ import annotations

import argparse
import itertools
import json
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

import vae2aef
from vae2aef.comparison.batches import stream
from vae2aef.comparison.nets import MLPVAE

STEPS, BATCH, RATE, CLIP, TEST = 2000, 128, 1e-3, 200.0, 2000
NOISE, LATENTS = (0.5, 0.75, 1.0), (2, 32)
MODELS: dict[str, dict[str, Any]] = {
    "autoencoder, least squares": {"core": "noise"},
    "VAE": {"core": "noise"},
    "AEF, σ = 0.3": {},
    "the paper's AEF (σ = 0)": {"noise": 0.0},
}


def noisy(x: Tensor, spread: float, generator: torch.Generator) -> Tensor:
    """Add white noise, `(batch, *event)`, and cut off at 0 and 1."""
    return (x + spread * torch.randn(x.shape, generator=generator, device=x.device)).clamp(0, 1)


def error(name: str, latents: int, spread: float, seed: int, train: Tensor, test: Tensor) -> tuple[float, float]:
    """Train; return the mean squared error a pixel of what is denoised, and that of the noisy images themselves."""
    torch.manual_seed(seed)
    vae = MLPVAE(tuple(train.shape[1:]), latents).to(train.device)
    noise = torch.Generator(train.device).manual_seed(stream("noise", seed))
    example = noisy(train[:512], spread, noise)
    vae.standardise(example)
    aef = vae2aef.wrap(vae, example=example, encoder_scale="log_var", **MODELS[name])
    optimizer = torch.optim.Adam(aef.parameters(), lr=RATE)
    order = torch.Generator().manual_seed(stream("order", seed))
    for _ in range(STEPS):
        rows = torch.randint(len(train), (BATCH,), generator=order).to(train.device)
        x = noisy(train[rows], spread, noise)
        optimizer.zero_grad()
        if name.startswith("autoencoder"):
            loss = (vae.decode(vae.encode(x)[0]) - x).square().flatten(1).sum(1).mean()
        else:
            loss = aef(x)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(aef.parameters(), CLIP)
        optimizer.step()
    aef.eval()
    x = noisy(test, spread, torch.Generator(test.device).manual_seed(0))
    with torch.no_grad():
        found = aef.denoise(x)
    return float((found - test).square().mean()), float((x - test).square().mean())


def table(runs: list[dict[str, Any]]) -> str:
    """Mean squared error a pixel, means over the seeds that every model has, a row a model."""
    known = {(run["latents"], run["noise"], run["model"], run["seed"]) for run in runs}
    settings = [s for s in itertools.product(LATENTS, NOISE) if any((*s, m, 0) in known for m in MODELS)]
    seeds = {s: [i for i in range(9) if all((*s, m, i) in known for m in MODELS)] for s in settings}
    heads = [f"D = {d}, noise {n} ({(k := len(seeds[d, n]))} seed{'s' * (k > 1)})" for d, n in settings]
    rows = ["| squared error a pixel | " + " | ".join(heads) + " |", "|---|" + "---:|" * len(settings)]
    for model in ("the noisy image", *MODELS):
        cells = []
        for setting in settings:
            own = [r for r in runs if (r["latents"], r["noise"]) == setting and r["seed"] in seeds[setting]]
            own = [r for r in own if model in ("the noisy image", r["model"])]
            values = [r["noisy" if model == "the noisy image" else "error"] for r in own]
            spread = f" ± {np.std(values, ddof=1):.4f}" if len(values) > 1 and model in MODELS else ""
            cells.append(f"{np.mean(values):.4f}{spread}" if values else "")
        rows.append(f"| {model} | " + " | ".join(cells) + " |")
    return "\n".join(rows)


def main() -> None:
    """Run what is not there yet, and print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--first-seed", type=int, default=0)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--latents", type=int, nargs="+", default=LATENTS)
    parser.add_argument("--noise", type=float, nargs="+", default=NOISE)
    options = parser.parse_args()
    torch.set_num_threads(1)
    with np.load(options.images / "mnist.npz") as arrays:
        images = (torch.from_numpy(arrays[name])[:, None] for name in ("x_train", "x_test"))
        train, test = (levels.to(options.device) / 255 for levels in images)
    done = json.loads(options.out.read_text(encoding="utf-8")) if options.out.exists() else []
    seen = {(row["latents"], row["noise"], row["model"], row["seed"]) for row in done}
    for seed, (latents, spread), name in itertools.product(
        range(options.first_seed, options.seeds), itertools.product(options.latents, options.noise), MODELS
    ):
        if (latents, spread, name, seed) in seen:
            continue
        start = time.perf_counter()
        found, before = error(name, latents, spread, seed, train, test[:TEST])
        row = {"latents": latents, "noise": spread, "model": name, "seed": seed, "error": round(found, 6)}
        done.append({**row, "noisy": round(before, 6), "seconds": round(time.perf_counter() - start, 1)})
        print(done[-1], flush=True)
        options.out.write_text(json.dumps(done, indent=0, ensure_ascii=False) + "\n", encoding="utf-8")
    print(table(done))


if __name__ == "__main__":
    main()
