"""The Laplace approximation of each datum's own posterior: its mode, and its precision there.

In free coordinates v (`Target`), the latent z itself where there is one, the posterior near a mode v* is about
N(v*, Lambda^-1). v* is climbed to from a start, and Lambda is the Gauss-Newton precision there: J^T S^-2 J from the
decoder's Jacobian J and the scale S of x given z, plus the curvature of the prior. Where x given z has a density of
another kind, Lambda is the curvature of all of log p(x, v). Derivatives are finite differences, a pass of the decoder
each, so that any decoder will do: 6 D passes for three Jacobians, and from 10 to 140 for the climb.
"""

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor

from vae2aef.protocols import Target

MAX_LATENTS = 256
"""Largest latent for which D decoder passes a Jacobian are worth while."""

ROUNDS, MORE_ROUNDS, STEPS, HALVINGS = 2, 4, 10, 6
FIRST_STEP = 0.05
"""Of the first differences, in units of the prior's standard deviation."""

PRIOR_VALUES = 2**20
"""Most values of z in one pass of the prior with gradients."""

CLOSE = 1e-6
"""A climb ends where the next step promises less than this many nats; LOST is a climb that goes on in more rounds."""
LOST = 0.05

LEAST_CURVATURE = 0.05
"""Eigenvalues of the prior's curvature are at least this part of their mean size: a flow's density is not concave."""


class Laplace(NamedTuple):
    """Fits for each datum.

    Attributes:
        mode: `(batch, D)`.
        factor: Cholesky factor of the precision, lower, `(batch, D, D)`, float64.
        log_mass: of the mode, nats: log p(x) if it were all, `(batch,)`, float64.
    """

    mode: Tensor
    factor: Tensor
    log_mass: Tensor


def fit(target: Target, start: Tensor, spread: Tensor, rounds: int = ROUNDS) -> Laplace:
    """Climb from `start` and fit.

    Args:
        target: the batch; made in `eval()` mode and without gradients.
        start: free coordinates, `(batch, D)`.
        spread: of the prior, `(batch, D)`, to begin finite differences with.
        rounds: how often the precision is taken anew on the way.

    Raises:
        ValueError: if the latents hold more than 256 values.
    """
    if target.dim > MAX_LATENTS:
        raise ValueError(
            f'proposal="laplace" costs about 6 decoder passes for each latent value, and there are {target.dim} of '
            f"them (at most {MAX_LATENTS}); leave proposal out, or use aef.tune_proposal(x)"
        )
    climber = _Climber(target)
    mode, step = climber.climb(start, FIRST_STEP * spread, rounds)
    precision = climber.precision(mode, step)
    factor, failed = torch.linalg.cholesky_ex(precision)
    plain = torch.diag_embed(1 / spread.double())  # where there is nothing finite to fit to
    factor = torch.where((failed > 0)[:, None, None] | ~factor.isfinite(), plain, factor)
    log_det = factor.diagonal(dim1=1, dim2=2).log().sum(1)
    return Laplace(mode, factor, target.log_joint(mode).double() - log_det + 0.5 * target.dim * math.log(2 * math.pi))


class _Climber:
    """Climbs to modes of one target. Nothing that is done to a datum depends on another."""

    def __init__(self, target: Target) -> None:
        self.target, self.dim = target, target.dim

    def climb(self, z: Tensor, step: Tensor, rounds: int) -> tuple[Tensor, Tensor]:
        """Return modes and the posterior's own widths, each `(batch, D)`; rows that are lost go on among themselves."""
        promise = z.new_zeros(z.shape[0])
        for _ in range(rounds):
            covariance = torch.linalg.inv_ex(self.precision(z, step))[0].to(z.dtype)
            z, promise = self._steps(z, covariance)
            width = covariance.diagonal(dim1=1, dim2=2).sqrt()
            step = torch.where(width.isfinite() & (width > 0), width, step)
        lost = (promise > LOST).nonzero().flatten()
        if rounds < MORE_ROUNDS and len(lost):
            own = _Climber(self.target.rows(lost)).climb(z[lost], step[lost], MORE_ROUNDS)
            z, step = z.index_copy(0, lost, own[0]), step.index_copy(0, lost, own[1])
        return z, step

    def _steps(self, z: Tensor, covariance: Tensor) -> tuple[Tensor, Tensor]:
        """Newton steps with the fixed matrix `covariance`, halved where they do not go up.

        Returns:
            Where they lead, and what the last one promised: the Newton decrement, nats.
        """
        promise = z.new_zeros(z.shape[0])
        stuck = torch.zeros_like(promise, dtype=torch.bool)
        for _ in range(STEPS):
            value, gradient = self._gradient(z)
            step = (covariance @ gradient.unsqueeze(2)).squeeze(2)
            promise = (step * gradient).sum(1)
            # Below the rounding of the value there is nothing to compare by.
            climbing = ~stuck & (promise > CLOSE + 8 * torch.finfo(z.dtype).eps * value.abs())
            if not bool(climbing.any()):
                break
            for halving in range(HALVINGS):
                if not bool(climbing.any()):
                    break
                candidate = z + 0.5**halving * step
                better = climbing & (self.target.log_joint(candidate) > value)
                z = torch.where(better.unsqueeze(1), candidate, z)
                climbing = climbing & ~better
            stuck = stuck | climbing  # the same step would fail again
        return z, promise

    def precision(self, z: Tensor, step: Tensor) -> Tensor:
        """Precision at `z`, shape `(batch, D, D)`, in float64: Gauss-Newton, or curvature of the whole."""
        here = self.target.mean_and_scale(z)
        shifts = torch.diag_embed(step).movedim(1, 0)  # (D, batch, D): one coordinate each
        up, down = z + shifts, z - shifts
        widths = 2 * step.mT.unsqueeze(2)
        log_density = self.target.log_joint if here is None else self.target.log_prior
        curvature = (self._slopes(log_density, down) - self._slopes(log_density, up)) / widths
        whole = _positive(curvature.movedim(0, 2).double())
        if here is None:
            return whole
        j = ((self._means(up) - self._means(down)) / here[1].expand_as(here[0]).flatten(1)) / widths
        j = j.movedim(0, 2).double()
        return j.mT @ j + whole

    def _slopes(self, log_density: Callable[..., Tensor], z: Tensor) -> Tensor:
        """Gradients of a log density at `(n, batch, D)`: the same shape; many points at once."""
        rows = z.shape[1]
        at_once = self._points_at_once(log_density == self.target.log_prior)
        pieces = [with_gradient(log_density, some.reshape(-1, self.dim), len(some))[1] for some in z.split(at_once)]
        return torch.cat(pieces).reshape(-1, rows, self.dim)

    def _points_at_once(self, prior: bool) -> int:
        """For how many points a datum something is computed at once: of the prior alone for more of them."""
        if prior and self.target.prior_apart:
            return max(PRIOR_VALUES // max(self.target.size * self.dim, 1), 1)
        return self.target.draws_decoded or 1

    def _means(self, z: Tensor) -> Tensor:
        """Means of x at `(n, batch, D)`: `(n, batch, values)`."""
        pieces = z.split(self._points_at_once(False))
        found = [self.target.mean_and_scale(some.reshape(-1, self.dim), len(some)) for some in pieces]
        return torch.cat([pair[0].reshape(-1, z.shape[1], pair[0][:1].numel()) for pair in found if pair is not None])

    def _gradient(self, z: Tensor) -> tuple[Tensor, Tensor]:
        return with_gradient(self.target.log_joint, z)


def with_gradient(function: Callable[..., Tensor], z: Tensor, *more: Any) -> tuple[Tensor, Tensor]:
    """Return `function(z, *more)`, `(batch,)`, and its gradient with respect to `z`."""
    with torch.enable_grad():
        z = z.detach().requires_grad_()
        value = function(z, *more)
        return value.detach(), torch.autograd.grad(value.sum(), z)[0]


def _positive(curvature: Tensor) -> Tensor:
    """Make curvatures `(batch, D, D)` symmetric, and their eigenvalues at least a part of their mean size."""
    values, vectors = torch.linalg.eigh((0.5 * (curvature + curvature.mT)).nan_to_num(0.0, 0.0, 0.0))
    floor = LEAST_CURVATURE * values.abs().mean(1, keepdim=True).clamp(min=1e-12)
    return vectors @ torch.diag_embed(torch.maximum(values, floor)) @ vectors.mT
