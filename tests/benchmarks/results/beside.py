"""What the VAEs stand beside on the results page: one Gaussian and one flow on x itself, which have no latents.

Grey levels are dequantised, so that log p of their levels is bounded from below; both see x through the logit, each
value standardised.
"""

from __future__ import annotations

import abc
import copy
from typing import Any

import torch
from cells import Cell, Data, dequantised
from torch import Tensor, nn

from vae2aef.comparison.batches import stream
from vae2aef.flows import AffineCoupling, Chain
from vae2aef.preprocess import Logit, Standardize
from vae2aef.priors import StandardNormal
from vae2aef.tensors import numel

COUPLINGS, HIDDEN = 8, 256
CHECKS, BATCH, RATE, CLIP = 10, 128, 1e-3, 200.0
FITTED = 5000
"""Data that the standardisation is fitted to."""


class Whole(nn.Module, abc.ABC):
    """A density on `(batch, *event)`, of whole levels or of continuous values."""

    def __init__(self, cell: Cell, x: Tensor) -> None:
        super().__init__()
        self.cell, self.size = cell, numel(x.shape[1:])
        y = dequantised(cell, x[:FITTED], "fit")
        if cell.bins > 1:
            logit = Logit(0.05)
            self.preprocess = Chain(logit, Standardize.fit(logit(y)[0], per="feature"))
        else:
            self.preprocess = Standardize.fit(y, per="feature")

    def log_prob(self, x: Tensor, *names: object) -> Tensor:
        """Return log p(x), `(batch,)`, nats, of levels by one draw of the noise of dequantisation."""
        y, log_det = self.preprocess(dequantised(self.cell, x, *names).to(next(self.buffers()).device))
        return self.density(y.flatten(1)) + log_det

    @abc.abstractmethod
    def density(self, y: Tensor) -> Tensor:
        """Return log p of preprocessed data `(batch, values)`, `(batch,)`, nats."""


class Gaussian(Whole):
    """Mean and covariance of the training data, the covariance shrunk."""

    def __init__(self, cell: Cell, x: Tensor) -> None:
        from sklearn.covariance import LedoitWolf

        super().__init__(cell, x)
        y = self.preprocess(dequantised(cell, x, "train"))[0].flatten(1).double()
        found = LedoitWolf().fit(y.numpy())
        self.normal = torch.distributions.MultivariateNormal(
            torch.from_numpy(found.location_), torch.from_numpy(found.covariance_), validate_args=False
        )

    def density(self, y: Tensor) -> Tensor:
        return self.normal.log_prob(y.double())


class Flow(Whole):
    """Affine couplings on random halves."""

    def __init__(self, cell: Cell, x: Tensor) -> None:
        super().__init__(cell, x)
        self.flow = Chain(*(AffineCoupling(self.size, hidden=HIDDEN) for _ in range(COUPLINGS)))
        self.base = StandardNormal((self.size,))

    def density(self, y: Tensor) -> Tensor:
        u, log_det = self.flow(y)
        return self.base.log_prob(u) + log_det


def run(cell: Cell, name: str, seed: int, data: Data, steps: int, more: float, device: str) -> dict[str, Any]:
    """Fit, and test; return what goes into the JSON, with no entry of what only latents have.

    Args:
        more: what the nats of the density are more than those of the data's levels (`cells.as_density`).
        device: where the flow is; the Gaussian is on the CPU.
    """
    torch.manual_seed(seed)
    model = {"gaussian": Gaussian, "flow": Flow}[name](cell, data.train)
    if name == "flow":
        model.to(device)
    curve, best, weights = [], float("inf"), {}
    if name == "gaussian":
        with torch.no_grad():
            curve.append([0, more - float(model.log_prob(data.validation, "validation").mean()), 0.0])
    else:
        for step, held_out in _trained(model, data, seed, steps):
            curve.append([step, held_out + more, 0.0])
            if held_out < best:
                best, weights = held_out, copy.deepcopy(model.state_dict())
        model.load_state_dict(weights)
    with torch.no_grad():
        found = model.log_prob(data.test, "test")
    return {
        "arm": name, "seed": seed, "steps": steps, "validation_nats": curve, "best": min(point[1] for point in curve),
        "gauge": None, "parameters": sum(p.numel() for p in model.parameters()), "graph": False,
        "log_prob": [round(v - more, 3) for v in found.tolist()], "uncertain": 0, "certificate": 0.0,
    }  # fmt: skip


def _trained(model: Whole, data: Data, seed: int, steps: int) -> Any:
    """Yield step and nats of the validation data, ten times."""
    optimizer = torch.optim.Adam(model.parameters(), lr=RATE)
    size = min(BATCH, len(data.train))
    order = torch.Generator().manual_seed(stream("order", seed))
    for step in range(1, steps + 1):
        rows = torch.randint(len(data.train), (size,), generator=order)
        optimizer.zero_grad()
        (-model.log_prob(data.train[rows], seed, step)).mean().backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), CLIP)
        optimizer.step()
        if step % max(1, steps // CHECKS) == 0:
            with torch.no_grad():
                yield step, float(-model.log_prob(data.validation, "validation").mean())
