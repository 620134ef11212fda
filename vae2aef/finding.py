"""Finds where the mass of each datum's posterior is: modes from several starts, fitted, and weighed on a pilot.

Starts are where the encoder puts the datum, and the best of draws from the prior, which need no good encoder. What
leads to one mode is one component, moved on by variational inference. A pilot of draws, independent of those of the
estimate, says how much each component counts (population Monte Carlo: Cappe, Douc, Guillin, Marin, Robert, Statistics
and Computing 2008). Nothing that is done to a datum depends on another.
"""

import math
from typing import NamedTuple

import torch
from torch import Tensor

from vae2aef.draws import IMPROVING, PILOT, STARTS
from vae2aef.laplace import Laplace, fit, with_gradient
from vae2aef.mixture import Mixture, Shape
from vae2aef.protocols import Target
from vae2aef.variational import Gaussians, Moments, improve

SHAPES = (Shape(1.05, 0), Shape(1.15, 8), Shape(1.6, 5))
PRIOR_SHARE = 0.05
"""Least weight of the prior."""

FEW = 4
"""Latents that are few: modes are then cheap to look for, and many of them can be told apart."""

PRIOR_DRAWS, PRIOR_DRAWS_OF_FEW, PILOT_DRAWS, PILOT_ROUNDS, WEIGHING = 64, 512, 64, 2, 5
GROUPS, CLIMBING, CLIMBING_RATE = 16, 25, 0.1
MISSED = math.log(3.0)
"""A draw at which the fits give less than a third of the density is a start."""

SAME = 1.0
"""Modes closer than this, in the standard deviations of the better one, are one."""

WIDEST = 1e4
"""Largest spread of a prior that a fit begins with."""

NEGLIGIBLE = 12.0
"""Modes of a mass this many nats below the best are not moved on."""

TRUST = 8.0
"""How many effective draws of a pilot weigh as much as what was believed before it."""


def laplace_mixture(target: Target) -> Mixture:
    """Return one Gaussian for each datum, around the mode that the encoder leads to; drawn a little wider than it."""
    start = target.start()
    found = fit(target, start, _spread(target)[0])
    return Mixture(found.mode[None], found.factor[None], torch.zeros_like(found.log_mass)[None], (Shape(1.1, 0),))


def find_mass(target: Target) -> Mixture:
    """Return a proposal for each datum, over all of the mass of its posterior that the search meets."""
    start = target.start()
    spread, draws = _spread(target)
    found = _merged([fit(target, start, spread, rounds=1)])
    candidates = None if draws is None else _candidates(target, draws, spread)
    if candidates is None:
        mixture = _weighed(_sound(_moved_on(target, found)), False)
    else:  # what moves on may leave mass behind
        found = _searched(target, _moved_on(target, _searched(target, found, candidates, spread)), candidates, spread)
        mixture = _weighed(_sound(found), True)
    for number in range(PILOT_ROUNDS):
        mixture = _reweighed(mixture, target, PILOT + 8 * number)
    return mixture


def _spread(target: Target) -> tuple[Tensor, Tensor | None]:
    """Return the spread of the prior, `(batch, D)`, and draws from it, if there are any."""
    draws = target.prior_draws(PRIOR_DRAWS if target.dim > FEW else PRIOR_DRAWS_OF_FEW, STARTS)
    if draws is None:
        return torch.ones_like(target.start()), None
    return draws.std(0).nan_to_num(nan=1.0, posinf=WIDEST).clamp(1e-3, WIDEST), draws


def _sound(found: Laplace) -> Laplace:
    """Put a standard normal of no weight in the place of fits that overflowed: the others, or the prior, then count."""
    good = found.mode.isfinite().all(2) & found.factor.isfinite().flatten(2).all(2)
    eye = torch.eye(found.mode.shape[2]).to(found.factor)
    return Laplace(
        torch.where(good[..., None], found.mode, 0.0),
        torch.where(good[..., None, None], found.factor, eye),
        torch.where(good & found.log_mass.isfinite(), found.log_mass, -math.inf),
    )


class _Candidates(NamedTuple):
    """Places to start from, `(draws, batch, D)`, with log p(x, v) and log p0(v) there, `(draws, batch)`."""

    v: Tensor
    joint: Tensor
    prior: Tensor


def _candidates(target: Target, draws: Tensor, spread: Tensor) -> _Candidates:
    """Return draws from the prior, and where the best of them lead to if there are few latents."""
    joint, prior = _densities(target, draws)
    if target.dim > FEW:
        return _Candidates(draws, joint, prior)
    climbed = _climbed(target, draws, joint, spread)
    both = _densities(target, climbed)
    return _Candidates(torch.cat([draws, climbed]), torch.cat([joint, both[0]]), torch.cat([prior, both[1]]))


def _searched(target: Target, found: Laplace, candidates: _Candidates, spread: Tensor) -> Laplace:
    """Add modes where a candidate has far more density than the fits so far give it."""
    draws, joint, prior = candidates
    for _ in range(3 * FEW if target.dim <= FEW else FEW if target.dim <= 4 * FEW else 1):
        missed = joint - _weighed(found, True).log_density(draws, prior) - found.log_mass.logsumexp(0)
        worst, index = missed.nan_to_num(nan=-math.inf).max(0)
        wanting = worst > MISSED
        if not bool(wanting.any()):
            break
        start = draws.gather(0, index[None, :, None].expand(1, *draws.shape[1:]))[0]
        rows = wanting.nonzero().flatten()
        fitted = fit(target.rows(rows), start[rows], spread[rows], rounds=1)
        more = Laplace(found.mode[0], found.factor[0], torch.full_like(found.log_mass[0], -math.inf))
        more = Laplace(*(old.index_copy(0, rows, new) for old, new in zip(more, fitted, strict=True)))
        found = _merged([Laplace(*each) for each in zip(*found, strict=True)] + [more])
        joint = joint.scatter(0, index[None], -math.inf)
    return found


def _densities(target: Target, v: Tensor) -> tuple[Tensor, Tensor]:
    """Return log p(x, v) and log p0(v), `(draws, batch)`, float64."""
    joint, prior = target.joint_and_prior(v.flatten(0, 1), len(v))
    return joint.reshape(v.shape[:2]).double(), prior.reshape(v.shape[:2]).double()


def _climbed(target: Target, draws: Tensor, joint: Tensor, spread: Tensor) -> Tensor:
    """Climb a little from the best of each of a few groups of draws, and from as many far apart: `(n, batch, D)`."""
    best = [
        own.gather(0, density.argmax(0)[None, :, None].expand(1, *own.shape[1:]))
        for own, density in zip(draws.chunk(GROUPS), joint.chunk(GROUPS), strict=True)
    ]
    v = torch.cat([*best, _far_apart(draws, spread)])
    adam = Moments(v)
    for number in range(CLIMBING):
        slope = with_gradient(lambda z: target.log_joint(z, 2 * GROUPS), v.flatten(0, 1))[1].reshape(v.shape)
        rate = CLIMBING_RATE * (1 - number / CLIMBING)
        v = v + rate * spread * adam.step((spread * slope).nan_to_num(0.0, 0.0, 0.0))
    return v


def _far_apart(draws: Tensor, spread: Tensor) -> Tensor:
    """Take draws each as far as can be from those before it: a net over all that the prior reaches."""
    distance = draws.new_full(draws.shape[:2], math.inf)
    taken = [draws[:1]]
    for _ in range(GROUPS - 1):
        distance = torch.minimum(distance, ((draws - taken[-1]) / spread).square().sum(2))
        index = distance.argmax(0)[None, :, None].expand(1, *draws.shape[1:])
        taken.append(draws.gather(0, index))
    return torch.cat(taken)


def _merged(found: list[Laplace]) -> Laplace:
    """Put fits in falling order of mass, `(modes, batch, ...)`; of several of one mode, one keeps its mass."""
    mode, factor, log_mass = (torch.stack(each) for each in zip(*found, strict=True))
    log_mass = log_mass.nan_to_num(nan=-math.inf)
    order = log_mass.argsort(0, descending=True)
    mode = mode.gather(0, order[:, :, None].expand_as(mode))
    factor = factor.gather(0, order[:, :, None, None].expand_as(factor))
    log_mass = log_mass.gather(0, order)
    for later in range(1, len(mode)):
        offset = (mode[later] - mode[:later]).double().unsqueeze(2)
        distance = (offset @ factor[:later]).square().sum((2, 3))
        same = (distance < SAME**2) & (log_mass[:later] > -math.inf)
        log_mass[later] = torch.where(same.any(0), -math.inf, log_mass[later])
    return Laplace(mode, factor, log_mass)


def _moved_on(target: Target, found: Laplace) -> Laplace:
    """Improve those modes that count, and estimate their masses anew."""
    counts = found.log_mass > found.log_mass[0] - NEGLIGIBLE
    counts[0] = True
    parts = []
    for mode in range(len(found.mode)):
        one = Laplace(*(each[mode] for each in found))
        rows = counts[mode].nonzero().flatten()
        if len(rows) == target.size:
            one = _improved(target, one)
        elif len(rows):
            moved = _improved(target.rows(rows), Laplace(*(each[rows] for each in one)))
            one = Laplace(*(old.index_copy(0, rows, new) for old, new in zip(one, moved, strict=True)))
        parts.append(one)
    return Laplace(*(torch.stack(each) for each in zip(*parts, strict=True)))


def _improved(target: Target, old: Laplace) -> Laplace:
    """Return the Gaussian of `improve`; where it came to no good, the old one."""
    white = torch.linalg.inv(old.factor).mT.to(old.mode.dtype)  # v = mode + A y makes the fit white

    def log_joint(y: Tensor) -> Tensor:
        offset = torch.einsum("rij,nrj->nri", white, y.reshape(-1, *old.mode.shape))
        return target.log_joint((old.mode + offset).flatten(0, 1), len(offset))

    start = Gaussians(torch.zeros_like(old.mode), torch.eye(target.dim).to(old.mode).expand_as(white), old.log_mass)
    new = improve(log_joint, start, target.random, IMPROVING)
    # The precision is L T^-T T^-1 L^T, and T is upper triangular: its factor is at hand.
    factor = torch.linalg.solve_triangular(new.root.double(), old.factor.mT, upper=True).mT
    log_mass = new.bound.double() + 0.5 * target.dim * math.log(2 * math.pi)
    log_mass = log_mass - old.factor.diagonal(dim1=1, dim2=2).log().sum(1)
    good = log_mass.isfinite() & factor.isfinite().flatten(1).all(1)
    return Laplace(
        torch.where(good[:, None], old.mode + torch.einsum("rij,rj->ri", white, new.mean), old.mode),
        torch.where(good[:, None, None], factor, old.factor),
        torch.where(good, log_mass, old.log_mass),
    )


def _weighed(found: Laplace, prior: bool) -> Mixture:
    share = found.log_mass.log_softmax(0).nan_to_num(nan=-math.log(len(found.log_mass)))
    each = share.unsqueeze(1).expand(-1, len(SHAPES), -1).flatten(0, 1) - math.log(len(SHAPES))
    if prior:
        each = torch.cat([each + math.log1p(-PRIOR_SHARE), torch.full_like(each[:1], math.log(PRIOR_SHARE))])
    return Mixture(found.mode, found.factor, each, SHAPES)


def _reweighed(mixture: Mixture, target: Target, stream: int) -> Mixture:
    """Weigh the components by what they hold of a pilot's weights, by expectation maximisation."""
    v = mixture.draw(target, stream, 0, PILOT_DRAWS)
    joint, prior = _densities(target, v)
    components = mixture.components(v, prior)
    weight = mixture.log_weight.unsqueeze(1)
    importance = (joint - torch.logsumexp(components + weight, 0)).softmax(0).nan_to_num(nan=1 / len(v))
    effective = 1 / importance.square().sum(0)
    for _ in range(WEIGHING):
        mixed = torch.logsumexp(components + weight, 0)
        weight = ((components + weight - mixed).exp() * importance).sum(1).log().unsqueeze(1)
    held = (effective * weight.squeeze(1).exp() + TRUST * mixture.log_weight.exp()) / (effective + TRUST)
    if mixture.has_prior:
        held[-1] = held[-1].clamp(min=PRIOR_SHARE)
    log_held = (held / held.sum(0)).log()
    # A pilot of which nothing has a density says nothing.
    log_held = torch.where(log_held.isnan().any(0), mixture.log_weight, log_held)
    return Mixture(mixture.mode, mixture.factor, log_held, mixture.shapes)
