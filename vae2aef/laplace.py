"""Importance samples from a Gaussian fitted to each datum's own posterior (a Laplace approximation).

The proposal of `marginal.tune` is one shape for all data. Here every x gets its own,
in free coordinates v of its latents (`Case`): z itself where there is one latent,

    log p(x) ~ log 1/K sum_k p0(z_k) r(x - f(z_k)) / q(z_k | x),    z_k ~ q(z | x) = N(z*, c^2 Lambda^-1)

z* is climbed to from the encoder's z, and Lambda is the Gauss-Newton precision there: J^T S^-2 J from the decoder's
Jacobian J and the residual scale S, plus the curvature of the prior. Where x given z has a density of another kind,
Lambda is the curvature of all of log p(x, v). Derivatives are finite differences, a pass of the decoder each, so that
any decoder will do. The cost before the first draw is 6 D decoder passes for three Jacobians, and from 20 to 140 for
the climb.
"""

import math
from collections.abc import Callable

import torch
from torch import Tensor

from vae2aef.batch import repeat_rows
from vae2aef.case import Case

MAX_LATENTS = 256
"""Largest latent for which D decoder passes a Jacobian are worth while."""

ROUNDS, STEPS, HALVINGS = 2, 10, 6
INFLATION = 1.1
"""Draws are spread a little wider than the fit: too narrow a proposal is the costlier error."""

LEAST_CURVATURE = 0.05
"""Eigenvalues of the prior's curvature are at least this part of their mean size: a flow's density is not concave."""


class LaplaceSampler:
    """Draws from the Laplace approximation at every datum of a case.

    Args:
        case: the batch; made in `eval()` mode and without gradients.

    Raises:
        ValueError: if the latents hold more than 256 values.
    """

    def __init__(self, case: Case) -> None:
        self.case, self.dim = case, case.dim
        if self.dim > MAX_LATENTS:
            raise ValueError(
                f'proposal="laplace" costs about 6 decoder passes for each latent value, and there are {self.dim} of '
                f"them (at most {MAX_LATENTS}); use aef.tune_proposal(x)"
            )
        z = case.start()
        # A first step for differences; from then on, the posterior's own width.
        step = torch.full_like(z, 0.05 * float(z.std(correction=0).clamp(min=1e-3)))
        for _ in range(ROUNDS):
            covariance = self._precision(z, step).inverse()
            z = self._climb(z, covariance.to(z.dtype))
            step = covariance.diagonal(dim1=1, dim2=2).sqrt().to(z.dtype)
        self.mode = z
        self.factor = torch.linalg.cholesky(self._precision(z, step))

    def log_weights(self, draws: int) -> Tensor:
        """Return log p(x, v) / q(v | x) for fresh draws: shape `(draws, batch)`, nats."""
        rows = draws * self.case.size
        noise = torch.randn(rows, self.dim, dtype=self.factor.dtype, device=self.factor.device)
        factor, mode = repeat_rows((self.factor, self.mode), draws, self.case.size)
        offset = torch.linalg.solve_triangular(factor.mT, noise.unsqueeze(2), upper=True).squeeze(2)
        z = mode + INFLATION * offset.to(mode.dtype)
        log_q = -0.5 * (noise.square() + math.log(2 * math.pi)).sum(1) - self.dim * math.log(INFLATION)
        log_q = log_q + factor.diagonal(dim1=1, dim2=2).log().sum(1)
        log_w = self.case.log_joint(z, draws) - log_q.to(z.dtype)
        return log_w.reshape(draws, self.case.size) + self.case.log_det

    def _climb(self, z: Tensor, covariance: Tensor) -> Tensor:
        """Newton steps with the fixed matrix `covariance`, halved where they do not go up; `(batch, D)`."""
        for _ in range(STEPS):
            value, gradient = self._gradient(z)
            step = (covariance @ gradient.unsqueeze(2)).squeeze(2)
            climbing = torch.ones_like(value, dtype=torch.bool)
            for halving in range(HALVINGS):
                candidate = z + 0.5**halving * step
                better = climbing & (self.case.log_joint(candidate) > value)
                z = torch.where(better.unsqueeze(1), candidate, z)
                climbing = climbing & ~better
                if not bool(climbing.any()):
                    break
        return z

    def _precision(self, z: Tensor, step: Tensor) -> Tensor:
        """Precision at `z`, shape `(batch, D, D)`, in float64: Gauss-Newton, or curvature of the whole."""
        jacobian, curvature = [], []
        here = self.case.mean_and_scale(z)
        slope = self._gradient if here is None else self._prior_gradient
        for i in range(self.dim):
            shift = torch.zeros_like(z)
            shift[:, i] = step[:, i]
            up, down = z + shift, z - shift
            width = 2 * step[:, i].unsqueeze(1)
            if here is not None:
                jacobian.append(((self._mean(up) - self._mean(down)) / here[1]).flatten(1) / width)
            curvature.append((slope(down)[1] - slope(up)[1]) / width)
        whole = _positive(torch.stack(curvature, dim=2).double())
        if here is None:
            return whole
        j = torch.stack(jacobian, dim=2).double()
        return j.mT @ j + whole

    def _mean(self, z: Tensor) -> Tensor:
        return self.case.mean_and_scale(z)[0]  # type: ignore[index]

    def _gradient(self, z: Tensor) -> tuple[Tensor, Tensor]:
        return _with_gradient(self.case.log_joint, z)

    def _prior_gradient(self, z: Tensor) -> tuple[Tensor, Tensor]:
        return _with_gradient(self.case.log_prior, z)


def _with_gradient(function: Callable[[Tensor], Tensor], z: Tensor) -> tuple[Tensor, Tensor]:
    with torch.enable_grad():
        z = z.detach().requires_grad_()
        value = function(z)
        return value.detach(), torch.autograd.grad(value.sum(), z)[0]


def _positive(curvature: Tensor) -> Tensor:
    """Make curvatures `(batch, D, D)` symmetric, and their eigenvalues at least a part of their mean size."""
    values, vectors = torch.linalg.eigh(0.5 * (curvature + curvature.mT))
    floor = LEAST_CURVATURE * values.abs().mean(1, keepdim=True).clamp(min=1e-12)
    return vectors @ torch.diag_embed(torch.maximum(values, floor)) @ vectors.mT
