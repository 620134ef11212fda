"""The paper's MNIST experiments by its own protocol (Table 1; the flows of Table 7, on MNIST): resumable, on a GPU.

    python tests/benchmarks/paper_protocol.py --images folder/with/mnist.npz --out runs [--runs both:aef:32:0 ...]
    python tests/benchmarks/paper_protocol.py --out runs --table docs/results/other/paper_protocol.json

As in its Appendix D: 54,000 images to train and 6000 to validate, dequantised, logit with lambda = 1e-6, one scale and
one shift; two convolutions and back; a Gaussian with a learned scale of each pixel; 100,000 steps of Adam 1e-3, batches
of 128, no clipping; the weights of the best of 100 looks at the validation loss. Other than there: scale and shift are
fitted to the data and not trained, MADE layers have two hidden layers of 256 without residual blocks and no ActNorm
between them, batches are drawn with replacement, and log p(x) is by this library's estimator on 500 test images
(the paper: 2560 draws around the encoding, on all).
"""

from __future__ import annotations

import argparse
import copy
import json
import math
import sys
import time
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

import vae2aef
from vae2aef.comparison.nets import ConvVAE
from vae2aef.comparison.summary import mean_and_error
from vae2aef.evidence import EstimateWarning
from vae2aef.flows import Chain
from vae2aef.preprocess import Logit, Standardize, bits_per_dim

sys.path.insert(0, str(Path(__file__).parent / "results"))
from captured import captured
from losses import plain

STEPS, LOOKS, BATCH, RATE, VALIDATION, TEST, DRAWS = 100_000, 100, 128, 1e-3, 6000, 500, 200
MODELS: dict[str, dict[str, Any]] = {
    "vae": {"core": "noise", "noise": 1.0},
    "aef": {"core": "linear", "noise": 0.0},
    "aef-noise": {"core": "linear", "noise": 0.3},
}
NAMES = {"vae": "VAE", "aef": "the paper's AEF (σ = 0)", "aef-noise": "AEF, σ = 0.3"}
FLOWS: dict[str, dict[str, str]] = {
    "none": {"core_flow": "none"},
    "posterior": {"core_flow": "maf"},
    "prior": {"core_flow": "none", "prior": "maf"},
    "both": {"core_flow": "maf", "prior": "maf"},
}
RUNS = [f"both:{model}:{latents}:0" for latents in (2, 32) for model in MODELS]
RUNS += [f"{flows}:{model}:32:0" for flows in ("none", "prior", "posterior") for model in MODELS]


def read(folder: Path) -> tuple[Tensor, Tensor, Tensor]:
    """Grey levels `(n, 1, 28, 28)`: to train, to validate, to test."""
    with np.load(folder / "mnist.npz") as arrays:
        train, test = (torch.from_numpy(arrays[name])[:, None] for name in ("x_train", "x_test"))
    order = torch.randperm(len(train), generator=torch.Generator().manual_seed(0))
    some = torch.randperm(len(test), generator=torch.Generator().manual_seed(1))[:TEST]
    return train[order[VALIDATION:]], train[order[:VALIDATION]], test[some]


def dequantised(levels: Tensor, seed: int) -> Tensor:
    """(level + u) / 256 with the noise of a seed."""
    noise = torch.rand(levels.shape, generator=torch.Generator().manual_seed(seed))
    return (levels + noise) / 256


class Training:
    """Adam on batches drawn with replacement; on a GPU a step with all that it draws is one captured graph."""

    def __init__(self, aef: vae2aef.AEF, levels: Tensor) -> None:
        self.aef, self.levels = aef, levels
        on_gpu = levels.is_cuda
        self.optimizer = torch.optim.Adam(aef.parameters(), lr=RATE, capturable=on_gpu, foreach=True)
        self.update = captured(self._update, aef, self.optimizer) if on_gpu else self._update

    def until(self, steps: int) -> None:
        """Take so many steps."""
        for step in range(steps):
            self.update()
            if self.levels.is_cuda and step % 50 == 49:  # sleeps where it would wait: other processes share the cores
                done = torch.cuda.Event(blocking=True)
                done.record()
                done.synchronize()

    def _update(self) -> None:
        rows = torch.randint(len(self.levels), (BATCH,), device=self.levels.device)
        levels = self.levels[rows]
        x = (levels + torch.rand(levels.shape, device=levels.device)) / 256
        self.optimizer.zero_grad(set_to_none=False)
        plain(self.aef, x).backward()
        self.optimizer.step()


@torch.no_grad()
def validation_loss(aef: vae2aef.AEF, x: Tensor) -> float:
    """The model's own loss, nats."""
    return float(plain(aef, x))


def bits(aef: vae2aef.AEF, x: Tensor) -> dict[str, Any]:
    """Bits per dimension of each datum, with how many estimates are in doubt."""
    aef.eval()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", EstimateWarning)
        found = aef.log_prob(x, num_samples=DRAWS, seed=0)
    aef.train()
    values = bits_per_dim(found.value, x.shape[1:], 256)
    return {"bits": [round(v, 4) for v in values.tolist()], "uncertain": int(found.uncertain.sum())}


def run(name: str, data: tuple[Tensor, Tensor, Tensor], device: str, steps: int, deadline: float) -> dict[str, Any]:
    """Train and test one model; a deadline ends the training early, and the steps taken are told."""
    flows, model, latents, seed = name.split(":")
    levels, validation, test = data
    held, tested = dequantised(validation, 1).to(device), dequantised(test, 2).to(device)
    logit, example = Logit(1e-6), dequantised(levels[:5000], 3)
    torch.manual_seed(int(seed))
    vae = ConvVAE((1, 28, 28), int(latents))
    preprocess = Chain(logit, Standardize.fit(logit(example)[0], per="channel"))
    aef = vae2aef.wrap(
        vae, example=example[:512], preprocess=preprocess, encoder=vae.encode, decoder=vae.decode,
        encoder_scale="log_var", **MODELS[model], **FLOWS[flows],
    ).to(device)  # fmt: skip
    training = Training(aef, levels.to(device))
    begin, curve, best, weights = time.perf_counter(), [], math.inf, copy.deepcopy(aef.state_dict())
    for look in range(1, LOOKS + 1):
        training.until(steps // LOOKS)
        loss = validation_loss(aef, held)
        curve.append([look * (steps // LOOKS), round(loss, 3)])
        if loss < best:
            best, weights = loss, copy.deepcopy(aef.state_dict())
        if not math.isfinite(loss) or time.time() > deadline:
            break
    seconds = time.perf_counter() - begin
    last = bits(aef, tested) if math.isfinite(curve[-1][1]) else None
    aef.load_state_dict(weights)
    return {
        "run": name, "steps": curve[-1][0], "curve": curve, "seconds": round(seconds, 1), "last": last,
        "best_step": min((loss, step) for step, loss in curve if loss == loss)[1], "best": bits(aef, tested),
        "parameters": sum(p.numel() for p in aef.parameters()), "std_z": float(aef.encode(tested).std(0).mean()),
        "machine": torch.cuda.get_device_name() if device.startswith("cuda") else "cpu", "torch": torch.__version__,
    }  # fmt: skip


def table(runs: list[dict[str, Any]]) -> str:
    """Bits per dimension, lower is better; the difference to the VAE with the same flows is paired by datum."""
    found = {one["run"]: one for one in runs}
    heads = (
        "D",
        "flows",
        "model",
        "bits per dimension",
        "against the VAE",
        "last step",
        "best step",
        "steps",
        "in doubt",
    )
    rows = [f"| {' | '.join(heads)} |", "|---:|---|---|---:|---:|---:|---:|---:|---:|"]
    for name in (name for name in RUNS if name in found):
        flows, model, latents, seed = name.split(":")
        one, vae = found[name], found.get(f"{flows}:vae:{latents}:{seed}")
        own = np.array(one["best"]["bits"])
        pair = mean_and_error((own - np.array(vae["best"]["bits"]))[None]) if vae and model != "vae" else None
        cells = [
            f"{own.mean():.3f}",
            "" if pair is None else f"{pair.mean:+.3f} ± {pair.interval:.3f}".replace("-", "−"),
            "diverged" if one["last"] is None else f"{np.mean(one['last']['bits']):.3f}",
            str(one["best_step"]), str(one["steps"]), f"{100 * one['best']['uncertain'] / len(own):.0f} %",
        ]  # fmt: skip
        rows.append(f"| {latents} | {flows} | {NAMES[model]} | " + " | ".join(cells) + " |")
    return "\n".join(rows)


def main() -> None:
    """Run what is not there yet, or print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=Path)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--runs", nargs="+", default=RUNS, help="flows:model:latents:seed")
    parser.add_argument("--steps", type=int, default=STEPS)
    parser.add_argument("--seconds", type=float, default=1e9, help="train no longer than that in all")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--table", type=Path, help="write all runs into one file, and print the table")
    options = parser.parse_args()
    if options.table:
        runs = [json.loads(path.read_text()) for path in sorted(options.out.glob("*.json"))]
        options.table.write_text(json.dumps(runs) + "\n")
        print(table(runs))
        return
    torch.set_num_threads(1)
    deadline = time.time() + options.seconds
    data = read(options.images)
    options.out.mkdir(parents=True, exist_ok=True)
    for name in options.runs:
        path = options.out / f"{name.replace(':', '-')}.json"
        if path.exists():
            continue
        result = run(name, data, options.device, options.steps, deadline)
        path.write_text(json.dumps(result))
        mean = np.mean(result["best"]["bits"])
        print(name, f"{mean:.3f} bits, {result['steps']} steps, {result['seconds']} s", flush=True)


if __name__ == "__main__":
    main()
