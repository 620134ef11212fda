"""Annealed importance sampling: the slow reference for log p(x) on a few data.

A chain is drawn from a base density and led to the posterior through pi_b ~ base^(1-b) p(x, v)^b, b rising from 0 to 1,
with a transition of Hamiltonian Monte Carlo at each b. The product of the ratios on the way is an importance weight,
unbiased for p(x). The base is the prior, which knows nothing of encoder or fits; or a fitted proposal. Step sizes are
found for each datum and each b in a run of their own, so that those of the estimate depend on nothing it draws.

References:
    Neal, *Annealed importance sampling*, Statistics and Computing 2001.
    Wu, Burda, Salakhutdinov, Grosse, *On the quantitative analysis of decoder-based generative models*, ICLR 2017,
    whose schedule is taken.
"""

import itertools
import math
from collections.abc import Callable

import torch
from torch import Tensor

from vae2aef.draws import ANNEALING
from vae2aef.laplace import with_gradient
from vae2aef.mixture import Mixture
from vae2aef.protocols import Target

TEMPERATURES, LEAPFROGS = 500, 5
STEEPNESS = 4.0
"""Of the sigmoid on which temperatures lie: they are close where the base and where the posterior is left."""

PILOT_CHAINS, FIRST_STEP, TARGET, GAIN = 4, 0.3, 0.65, 0.3
"""Chains that find the step sizes, where they begin, the acceptance they aim at, and how fast they learn."""

PILOT_STREAMS = 1 << 22

Both = Callable[[Tensor, int], tuple[Tensor, Tensor]]
"""Base density and log p(x, v) at `(chains * batch, D)`."""


def log_weights(target: Target, chains: int, mixture: Mixture | None = None) -> Tensor:
    """Return the log weights of annealed chains, `(chains, batch)`, nats.

    Args:
        target: the batch.
        chains: how many for each datum.
        mixture: the base; None for the prior.

    Raises:
        ValueError: if the prior cannot be drawn from in free coordinates, and there is no other base.
    """
    target.start()

    def both(v: Tensor, n: int) -> tuple[Tensor, Tensor]:
        joint, prior = target.joint_and_prior(v, n)
        if mixture is None:
            return prior, joint
        return mixture.log_density(v.reshape(n, target.size, -1), prior.reshape(n, -1)).flatten().to(joint.dtype), joint

    def start(stream: int, count: int) -> Tensor:
        found = target.prior_draws(count, stream) if mixture is None else mixture.draw(target, stream, 0, count)
        if found is None:
            raise ValueError(
                'method="ais" begins at draws from the prior, which this model does not give in its latents\' own '
                'coordinates; pass proposal="laplace" to begin at a fit'
            )
        return found

    levels = torch.linspace(-STEEPNESS, STEEPNESS, TEMPERATURES + 1, dtype=torch.float64).sigmoid()
    levels = (levels - levels[0]) / (levels[-1] - levels[0])
    first, v = ANNEALING + PILOT_STREAMS, start(ANNEALING + PILOT_STREAMS, PILOT_CHAINS)
    steps = _anneal(target, both, v, levels.tolist(), first + 8, None, 0)[1]
    v = start(ANNEALING, chains)
    blocks, done = [], 0
    for block in v.split(max(target.draws_decoded or chains, 1)):
        blocks.append(_anneal(target, both, block, levels.tolist(), ANNEALING + 8, steps, done)[0])
        done += len(block)
    return torch.cat(blocks) + target.log_det


def _anneal(
    target: Target, both: Both, v: Tensor, levels: list[float], stream: int, steps: Tensor | None, first: int
) -> tuple[Tensor, Tensor]:
    """Lead chains `(chains, batch, D)` from the base to the posterior.

    Args:
        target: the batch.
        both: see `Both`.
        v: draws from the base.
        levels: of b, from 0 to 1.
        stream: of random numbers.
        steps: step sizes, `(levels, batch)`; None to find them.
        first: number of the first of the chains.

    Returns:
        Log weights `(chains, batch)`, and the step sizes.
    """
    total = v.new_zeros(v.shape[:2], dtype=torch.float64)
    size, used = v.new_full((target.size,), FIRST_STEP), []
    for number, (before, now) in enumerate(itertools.pairwise(levels)):
        base, joint = (each.reshape(total.shape).double() for each in both(v.flatten(0, 1), len(v)))
        # A chain at a place of no density, which the base may hold, ends there.
        total = total + (now - before) * torch.where(joint > -math.inf, joint - base, -math.inf)
        size = size if steps is None else steps[number]
        used.append(size)
        v, accepted = _transition(target, both, v, now, size, stream + 2 * number, first)
        if steps is None:
            size = size * (GAIN * (accepted - TARGET)).exp()
    return total, torch.stack(used)


def _transition(
    target: Target, both: Both, v: Tensor, level: float, size: Tensor, stream: int, first: int
) -> tuple[Tensor, Tensor]:
    """Return one step of Hamiltonian Monte Carlo at a level, and its acceptance for each datum."""
    chains, step = len(v), size[:, None]

    def tempered(flat: Tensor) -> Tensor:
        base, joint = both(flat, chains)
        return (1 - level) * base + level * joint

    def slope_at(place: Tensor) -> tuple[Tensor, Tensor]:
        value, slope = with_gradient(tempered, place.flatten(0, 1))
        return value.reshape(v.shape[:2]).double(), slope.reshape(v.shape).nan_to_num(0.0, 0.0, 0.0)

    momentum = target.random.normal(stream, first, chains, v.shape[2]).to(v)
    value, slope = slope_at(v)
    energy = value - 0.5 * momentum.double().square().sum(2)
    place = v
    for _ in range(LEAPFROGS):
        momentum = momentum + 0.5 * step * slope
        place = place + step * momentum
        new, slope = slope_at(place)
        momentum = momentum + 0.5 * step * slope
    gain = (new - 0.5 * momentum.double().square().sum(2) - energy).nan_to_num(nan=-math.inf)
    chance = gain.clamp(max=0.0).exp()
    taken = target.random.uniform(stream + 1, first, chains, 1)[..., 0].to(chance) < chance
    return torch.where(taken.unsqueeze(2), place, v), chance.mean(0).to(v.dtype)
