"""What the report shows of a trained arm beside its numbers: draws, hardest and easiest data, and its latents."""

from __future__ import annotations

from statistics import NormalDist
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from vae2aef.aef import AEF
from vae2aef.batch import Batch
from vae2aef.comparison.batches import stream
from vae2aef.comparison.latent_use import LatentUse, latent_use
from vae2aef.modes import evaluation_mode, own_random_state
from vae2aef.tensors import numel

EXTREMES = 8
"""Test data at either end of log p(x) that are kept."""
SMALL = 256
"""Up to so many values an event, there are as many draws as test data, at most `DRAWS`; above, `FEW`."""
DRAWS, FEW = 500, 16
WALKED = 6
"""Latents that are traversed: those with the largest variance of the posterior mean."""
REACH, STEPS = 3.0, 9
"""A traversal goes this many standard deviations of the prior to either side of its mean, in so many steps."""
SIDE, SIDE_LARGE = 13, 7
"""Points along an edge of the latent plane; the second for events of more than `LARGE` values."""
LARGE = 4096


class Walk(NamedTuple):
    """Decoded latents.

    Attributes:
        x: means of x, (rows, columns, *event): the plane of two latents, or a latent a row.
        units: the latent of each row; of a plane, (0, 1).
    """

    x: Tensor
    units: list[int]


def quantiles(side: int) -> list[float]:
    """Points along an edge of the latent plane, in the prior's standard deviations: of a normal, at equal steps."""
    return [NormalDist().inv_cdf(p) for p in np.linspace(0.02, 0.98, side)]


@torch.no_grad()
def portrait(aef: AEF, test: Tensor, log_prob: Tensor) -> dict[str, np.ndarray]:
    """Return the arrays that the report needs; nothing of the random state is used up.

    Args:
        aef: the trained arm.
        test: test data, (n, *event).
        log_prob: of each, (n,), nats.

    Returns:
        `draws` of p(x), noise of p(x | z) included; `hardest` and `easiest`, places in `test`, with
        `hardest_reconstructions` and `easiest_reconstructions`; `mean_variance`, `posterior_mean`, `posterior_std`,
        `prior_mean`, `prior_std` (D,), `rate` and `rate_by_chance` (see `LatentUse`); `z` (n, 2) for two latents; and
        `walk` with `walk_units`, unless the VAE has several latent variables of different names.
    """
    with evaluation_mode(aef), own_random_state(test.device):
        order = log_prob.argsort().to(test.device)
        few = min(EXTREMES, len(test) // 2)
        ends = {"hardest": order[:few], "easiest": order.flip(0)[:few]}
        found = {name: places.cpu() for name, places in ends.items()}
        found |= {f"{name}_reconstructions": aef.reconstruct(test[places]) for name, places in ends.items()}
        torch.manual_seed(stream("draws"))
        found["draws"] = aef.sample(min(len(test), DRAWS) if numel(test.shape[1:]) <= SMALL else FEW, residual=True)
        use = latent_use(aef, test, stream("latents"))
        names = {"mean": "posterior_mean", "std": "posterior_std", "by_chance": "rate_by_chance"}
        found |= {names.get(name, name): torch.as_tensor(value) for name, value in use._asdict().items()}
        if len(use.mean) == 2:
            found["z"] = torch.cat([_latents(aef, piece) for piece in test[:DRAWS].split(128)])
        if (seen := _walk(aef, test[:1], use)) is not None:
            found |= {"walk": seen.x, "walk_units": torch.tensor(seen.units)}
    return {name: value.detach().cpu().numpy() for name, value in found.items()}


def _latents(aef: AEF, x: Tensor) -> Tensor:
    """All latents side by side, (n, D)."""
    z = aef.log_joint(Batch(x)).z
    return torch.cat([aef.parts.rows_first(name, one).flatten(1) for name, one in z.items()], dim=1)


def _walk(aef: AEF, x: Tensor, use: LatentUse) -> Walk | None:
    """Decode the plane of two latents, or move one latent at a time away from the code of a datum."""
    code = aef.encode(x)
    if isinstance(code, dict):
        return None
    size, shape = code[0].numel(), code.shape[1:]
    mean, std = use.prior_mean.to(code), use.prior_std.to(code)
    if size == 2:
        side = SIDE_LARGE if numel(x.shape[1:]) > LARGE else SIDE
        at = torch.tensor(quantiles(side)).to(code)
        grid = torch.cartesian_prod(at.flip(0), at).flip(1)  # rows from above: the second latent
        return Walk(aef.decode((mean + std * grid).reshape(-1, *shape)).unflatten(0, (side, side)), [0, 1])
    units = use.mean_variance.argsort(descending=True)[:WALKED].tolist()
    at = torch.linspace(-REACH, REACH, STEPS).to(code)
    z = code.flatten(1).expand(len(units) * STEPS, -1).clone().unflatten(0, (len(units), STEPS))
    for row, unit in zip(z, units, strict=True):
        row[:, unit] = mean[unit] + std[unit] * at
    return Walk(aef.decode(z.reshape(-1, *shape)).unflatten(0, (len(units), STEPS)), units)
