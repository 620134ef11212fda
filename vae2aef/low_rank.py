"""Proposals for many latents: for each datum a Gaussian whose widths are known along the directions that matter most.

The curvature of log p(x, v) in hundreds of latents is known in full by no cheap means, but a decoder bends few
directions strongly. From the best diagonal Gaussian a gradient ascent finds the mode; subspace iteration with products
of the curvature and vectors, by differences of gradients, finds the leading directions and their curvature (the
Laplace approximation in a subspace, as of Ritter, Botev, Barber, ICLR 2018, for weights); along all others the mean of
what is left of it is taken. Variational inference then moves mean and widths on, and a pilot decides, datum by datum,
whether that is better than the diagonal Gaussian it began with.
"""

import math
from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from vae2aef.case import Case
from vae2aef.draws import ESTIMATE, IMPROVING, PILOT, STARTS
from vae2aef.laplace import with_gradient
from vae2aef.variational import Gaussians, Moments, improve

RANK, ROUNDS, PROBES = 64, 3, 8
"""Directions, rounds of subspace iteration, and random directions that measure the curvature of the rest."""

CLIMBING, RATE = 80, 0.1
"""Steps to the mode, and the first rate, in units of the first fit."""

NEWTON, HALVINGS = 6, 3
"""Steps to the mode once the directions are known, and how often one that leads down is halved."""

STEP = 0.1
"""How far gradients are compared, in units of the first fit: over the kinks of a ReLU, within one bend."""

NARROWEST, WIDEST = 1e-3, 30.0
"""Widths, in units of the first fit."""

LATENT_BLOCK = 8
"""How many times more latents than data are held at once."""

PILOT_DRAWS = 8


class Frame(NamedTuple):
    """v = center + scale * A (mean + root * e), A = 1 + Q (widths - 1) Q^T, e standard normal; all for each datum.

    Attributes:
        center: `(batch, D)`.
        scale: likewise.
        basis: Q, `(batch, D, R)`, with orthonormal columns.
        widths: `(batch, R)`.
        mean: `(batch, D)`.
        root: likewise.
    """

    center: Tensor
    scale: Tensor
    basis: Tensor
    widths: Tensor
    mean: Tensor
    root: Tensor

    def bent(self, y: Tensor, widths: Tensor) -> Tensor:
        """Return A y for rows `(draws, batch, D)`; with 1 / widths its inverse."""
        along = torch.einsum("bdr,nbd->nbr", self.basis, y)
        return y + torch.einsum("bdr,nbr->nbd", self.basis, (widths - 1) * along)

    def place(self, e: Tensor) -> tuple[Tensor, Tensor]:
        """Return v, `(draws, batch, D)`, and its log density, `(draws, batch)`."""
        v = self.center + self.scale * self.bent(self.mean + self.root * e, self.widths)
        logs = self.scale.log().sum(1) + self.root.log().sum(1) + self.widths.log().sum(1)
        return v, -0.5 * (e.square().sum(2) + e.shape[2] * math.log(2 * math.pi)) - logs

    def noise_of(self, v: Tensor) -> Tensor:
        """Return the e of v, `(draws, batch, D)`."""
        return (self.bent((v - self.center) / self.scale, 1 / self.widths) - self.mean) / self.root


class LowRank:
    """Draws around h(x) by a `Frame`.

    Args:
        case: the batch.
        frame: of the offsets from h(x).
    """

    def __init__(self, case: Case, frame: Frame) -> None:
        self.case, self.frame = case, frame
        self.block = LATENT_BLOCK * (case.draws_decoded or 1)

    @classmethod
    def fitted(cls, case: Case, mean: Tensor, scale: Tensor) -> "LowRank":
        """Fit a frame, from a diagonal Gaussian for each datum: mean and scale of the offset, `(batch, D)`."""
        none, one = torch.zeros_like(mean), torch.ones_like(mean)
        # One unit for all latents of a datum: a diagonal Gaussian of least KL is far too narrow where they depend on
        # each other, and in its units the directions along which nothing bends would stand out.
        unit = scale.log().mean(1, keepdim=True).exp().expand_as(scale)

        def log_joint(y: Tensor) -> Tensor:
            return _log_joint(case, mean + unit * y)

        center = _climb(log_joint, none)
        basis, curvature, rest = _leading(log_joint, center, case)
        flat = rest.clamp(WIDEST**-2, NARROWEST**-2).rsqrt()[:, None]
        widths = curvature.clamp(WIDEST**-2, NARROWEST**-2).rsqrt() / flat
        frame = Frame(mean + unit * center, unit * flat, basis, widths, none, one)

        def log_joint_white(y: Tensor) -> Tensor:
            rows = y.reshape(-1, *mean.shape)
            return _log_joint(case, frame.center + frame.scale * frame.bent(rows, widths)).flatten()

        frame = frame._replace(mean=_newton(log_joint_white, none))
        moved = improve(log_joint_white, Gaussians(frame.mean, one, none[:, 0]), case.random, IMPROVING + 8)
        plain = Frame(mean, scale, basis, torch.ones_like(widths), none, one)
        found = [plain, frame, frame._replace(mean=moved.mean, root=moved.root)]
        bounds = torch.stack([cls(case, one)._bound() for one in found])
        best = bounds.nan_to_num(nan=-math.inf).argmax(0)
        chosen = (torch.stack(parts)[best, torch.arange(len(best))] for parts in zip(*found, strict=True))
        return cls(case, Frame(*chosen))

    def _bound(self) -> Tensor:
        return self._log_weights(self.case.random.normal(PILOT + 16, 0, PILOT_DRAWS, self.case.dim)).logsumexp(0)

    def _log_weights(self, noise: Tensor) -> Tensor:
        v, log_q = self.frame.place(noise.to(self.frame.scale))
        return _log_joint(self.case, v) - log_q

    def log_weights(self, first: int, count: int) -> Tensor:
        """Return log weights of draws `first` to `first + count`: `(count, batch)`, nats."""
        return self._log_weights(self.case.random.normal(ESTIMATE, first, count, self.case.dim))

    def log_weights_at(self, v: Tensor) -> Tensor:
        """Return the log weights of one given offset from h(x) a datum, `(batch,)`."""
        return self._log_weights(self.frame.noise_of(v.unsqueeze(0)))[0]

    def rows(self, take: Tensor) -> "LowRank":
        """Return a sampler for some of the data."""
        return LowRank(self.case.rows(take), Frame(*(part[take] for part in self.frame)))


def _log_joint(case: Case, v: Tensor) -> Tensor:
    """Log p(x, h(x) + v) of rows `(draws, batch, D)`, or `(batch, D)`: `(draws, batch)`, or `(batch,)`."""
    rows = v if v.dim() == 3 else v.unsqueeze(0)
    flat = rows.flatten(0, 1)
    found = case.around(flat, torch.zeros_like(flat), len(rows))
    return found if v.dim() == 3 else found[0]


def _climb(log_joint: Callable[[Tensor], Tensor], start: Tensor) -> Tensor:
    adam, y = Moments(start), start
    for number in range(CLIMBING):
        slope = with_gradient(log_joint, y)[1].nan_to_num(0.0, 0.0, 0.0)
        y = y + RATE * (1 - number / CLIMBING) * adam.step(slope)
    return y


def _newton(log_joint: Callable[[Tensor], Tensor], y: Tensor) -> Tensor:
    """Take steps to the mode where the curvature is about one: by the whole gradient, or less if that leads down."""
    value, slope = with_gradient(log_joint, y)
    for _ in range(NEWTON):
        size = torch.ones_like(value)
        for _ in range(HALVINGS):
            tried = y + (size[:, None] * slope).nan_to_num(0.0, 0.0, 0.0)
            new, new_slope = with_gradient(log_joint, tried)
            better = new > value
            y, slope = torch.where(better[:, None], tried, y), torch.where(better[:, None], new_slope, slope)
            value, size = torch.where(better, new, value), torch.where(better, 0.0, 0.5 * size)
    return y


def _leading(
    log_joint: Callable[[Tensor], Tensor], y: Tensor, case: Case
) -> tuple[Tensor, Tensor, Tensor]:  # fmt: skip
    """Return the leading directions of the curvature at y, their curvature, and the mean of the rest: one a datum."""
    at_once = max(1, (case.draws_decoded or 2) // 2)

    def curved(directions: Tensor) -> Tensor:
        """Minus the Hessian times directions `(batch, D, n)`."""
        found = []
        for some in directions.permute(2, 0, 1).split(at_once):
            both = torch.cat([y + STEP * some, y - STEP * some])
            slope = with_gradient(log_joint, both)[1].nan_to_num(0.0, 0.0, 0.0)
            found.append((slope[len(some) :] - slope[: len(some)]) / (2 * STEP))
        return torch.cat(found).permute(1, 2, 0)

    rank = min(RANK, y.shape[1])
    noise = case.random.normal(STARTS + 8, 0, rank + PROBES, y.shape[1]).to(y).permute(1, 2, 0)
    basis = torch.linalg.qr(noise[..., :rank])[0]
    for _ in range(ROUNDS):
        basis = torch.linalg.qr(curved(basis))[0]
    small = basis.mT @ curved(basis)
    curvature, turn = torch.linalg.eigh(0.5 * (small + small.mT))
    basis = basis @ turn
    probes = noise[..., rank:]
    probes = probes - basis @ (basis.mT @ probes)
    rest = (probes * curved(probes)).sum((1, 2)) / probes.square().sum((1, 2)).clamp(min=1e-12)
    return basis, curvature, rest
