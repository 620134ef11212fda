"""One run of the results page: one cell, one arm, one seed; trained, then tested."""

from __future__ import annotations

import copy
import functools
import time
import warnings
from collections.abc import Callable
from typing import Any

import beside
import torch
from arms import ARMS, DENSITIES, Arm, build
from captured import captured
from cells import Cell, Data, as_density, scored
from losses import Loss, loss_of, weighted
from torch import Tensor

import vae2aef
from vae2aef.comparison.batches import continuous, stream
from vae2aef.evidence import EstimateWarning
from vae2aef.flows import Chain
from vae2aef.preprocess import Logit, Standardize, bits_per_dim

BATCH, RATE, CLIP = 128, 1e-3, 200.0
EXAMPLE_ROWS = 512
CHECKS = 10
DRAWS = 200
CERTIFIED = 32


def run(
    cell: Cell, name: str, seed: int, data: Data, device: str, steps: int | None = None, graph: bool = True
) -> dict[str, Any]:
    """Train and test; return what goes into the JSON."""
    arm, steps = ARMS[name], steps or cell.steps
    if name in DENSITIES or name == "center":
        cell, data, more = as_density(cell, data)
        if name in DENSITIES:
            return beside.run(cell, name, seed, data, steps, more, device)
    else:
        more = 0.0
    example = scored(cell, data.train[:EXAMPLE_ROWS], "example")
    aef = build(name, seed, example, cell.latents, cell.likelihood, cell.bins, _preprocess(cell, data)).to(device)
    training = Training(aef, arm, cell, data.train.to(device), seed, graph)
    curve, best, weights = [], float("inf"), {}
    for check in range(1, CHECKS + 1):
        seconds = training.until(steps * check // CHECKS, steps)
        value = more - float(_estimate(aef, data.validation.to(device), 64, "laplace").value.mean())
        curve.append([steps * check // CHECKS, value, seconds])
        if value < best:
            best, weights = value, copy.deepcopy(aef.state_dict())
    drift = gauge(aef, data.validation.to(device))
    aef.load_state_dict(weights)
    found = _estimate(aef, data.test.to(device), DRAWS, None)
    return {
        "arm": name, "seed": seed, "steps": steps, "validation_nats": curve, "best": best, "gauge": drift,
        "parameters": sum(p.numel() for p in aef.parameters()), "graph": training.captured,
        "log_prob": [round(v - more, 3) for v in found.value.tolist()],
        "uncertain": int(found.uncertain.sum()), "certificate": _certificate(aef),
    }  # fmt: skip


def bits(cell: Cell, nats: Tensor, shape: tuple[int, ...]) -> Tensor:
    """Return bits per dimension of log p in nats."""
    return bits_per_dim(nats, shape, cell.bins if cell.likelihood == "vae" else 1)


class Training:
    """The loop of the README, with clipping, on batches and noise that the seed fixes; a captured graph on a GPU."""

    def __init__(self, aef: vae2aef.AEF, arm: Arm, cell: Cell, x: Tensor, seed: int, graph: bool = True) -> None:
        self.aef, self.arm, self.cell, self.x, self.seed = aef, arm, cell, x, seed
        self.step, self.seconds, self.captured = 0, 0.0, False
        self.weight = x.new_ones((), dtype=torch.float32)  # filled anew in each step: a captured graph reads it
        self.loss: Loss = loss_of(arm.loss, arm.decoder_noise)
        if arm.latent_weight is not None:
            self.loss = functools.partial(weighted, weight=self.weight)
        on_gpu = x.device.type == "cuda"
        self.optimizer = torch.optim.Adam(aef.parameters(), lr=RATE, capturable=on_gpu, foreach=True)
        self.batch = self._batch()
        self.replay: Callable[[], None] | None = None
        if on_gpu and graph:
            self.replay, self.captured = captured(self._update, aef, self.optimizer), True

    def until(self, step: int, steps: int) -> float:
        """Train to a step; return the seconds of training so far."""
        start = time.perf_counter()
        while self.step < step:
            if self.arm.sigma is not None:
                self.aef.noise = self.arm.sigma(self.step / steps)
            if self.arm.latent_weight is not None:
                self.weight.fill_(self.arm.latent_weight(self.step / steps))
            self.batch.copy_(self._batch())
            if self.replay is None:
                self._update()
            else:
                self.replay()
            self.step += 1
        if self.x.is_cuda:
            torch.cuda.synchronize()
        self.seconds += time.perf_counter() - start
        return round(self.seconds, 3)

    def _batch(self) -> Tensor:
        size = min(BATCH, len(self.x))
        per_epoch = len(self.x) // size
        if self.step % per_epoch == 0 or not hasattr(self, "order"):
            shuffle = torch.Generator().manual_seed(stream("order", self.seed, self.step // per_epoch))
            self.order = torch.randperm(len(self.x), generator=shuffle).to(self.x.device)
        first = self.step % per_epoch * size
        x = self.x[self.order[first : first + size]]
        if self.cell.likelihood == "vae" and self.cell.bins > 1:
            return (x + torch.rand(x.shape, device=x.device)) / self.cell.bins
        return scored(self.cell, x, "")

    def _update(self) -> None:
        self.optimizer.zero_grad(set_to_none=False)
        self.loss(self.aef, self.batch).backward()
        torch.nn.utils.clip_grad_norm_(self.aef.parameters(), CLIP, foreach=True)
        self.optimizer.step()


def gauge(aef: vae2aef.AEF, x: Tensor) -> dict[str, float]:
    """Return how h and the encoder's scale stand: std of h, mean log scale, var(scale u) against var(z)."""
    with torch.no_grad():
        core, shell = aef.split(aef.to_latent_side(x)[0])
        posterior = aef.parts.encode(shell)
        z, _ = posterior.push(aef.core_flow(core["z"])[0])
        part = (z - posterior.loc).var(0).sum() / z.var(0).sum().clamp(min=1e-30)
        return {
            "std_h": float(core["z"].std(0).mean()),
            "mean_log_scale": float(posterior.scale.log().mean()),
            "core_share_of_variance": float(part),
        }


def _preprocess(cell: Cell, data: Data) -> Any:
    if cell.likelihood != "vae" or cell.bins == 1:
        return None
    logit = Logit(0.05)
    x = continuous(data.train[:5000], cell.bins, "results", "fit")
    return Chain(logit, Standardize.fit(logit(x)[0], per="feature"))


def _estimate(aef: vae2aef.AEF, x: Tensor, draws: int, proposal: str | None) -> Any:
    aef.eval()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", EstimateWarning)
        found = aef.log_prob(x, num_samples=draws, proposal=None if aef.partition is not None else proposal, seed=0)
    aef.train()
    return found


def _certificate(aef: vae2aef.AEF) -> float | None:
    if aef.partition is not None:
        return 0.0
    aef.eval()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", EstimateWarning)
        return round(aef.check_log_prob(CERTIFIED, num_samples=DRAWS, seed=0).gap.value, 4)
