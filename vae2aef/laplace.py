"""Importance samples from a Gaussian fitted to each datum's own posterior (a Laplace approximation).

The proposal of `marginal.tune` is one shape for all data. Here every x gets its own, in the space of the latent:

    log p(x) ~ log 1/K sum_k p0(z_k) r(x - f(z_k)) / q(z_k | x),    z_k ~ q(z | x) = N(z*, c^2 Lambda^-1)

z* is climbed to from the encoder's z, and Lambda is the Gauss-Newton precision there: J^T S^-2 J from the decoder's
Jacobian J and the residual scale S, plus the curvature of the prior. Jacobians are finite differences, a pass of the
decoder each, so that any decoder will do. The cost before the first draw is 6 D decoder passes
for three Jacobians, and from 20 to 140 for the climb.
"""

import math
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from vae2aef.residual import Residual
from vae2aef.tensors import numel, repeat_batch

if TYPE_CHECKING:
    from vae2aef.marginal import Case

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
        ValueError: if the latent holds more than 256 values, or the residual density has no scale to read.
    """

    def __init__(self, case: "Case") -> None:
        self.case, self.aef = case, case.aef
        self.dim = numel(self.aef.latent_shape)
        if self.dim > MAX_LATENTS:
            raise ValueError(
                f'proposal="laplace" costs about 6 decoder passes for each latent value, and there are {self.dim} of '
                f"them (at most {MAX_LATENTS}); use aef.tune_proposal(x)"
            )
        if not isinstance(self.aef.residual, Residual):
            raise ValueError('proposal="laplace" needs a vae2aef.Residual, whose scale it can read')
        z = case.encode().reshape(case.batch, self.dim)
        # A first step for differences; from then on, the posterior's own width.
        step = torch.full_like(z, 0.05 * float(z.std(correction=0).clamp(min=1e-3)))
        for _ in range(ROUNDS):
            covariance = self._precision(z, step).inverse()
            z = self._climb(z, covariance.to(z.dtype))
            step = covariance.diagonal(dim1=1, dim2=2).sqrt().to(z.dtype)
        self.mode = z
        self.factor = torch.linalg.cholesky(self._precision(z, step))

    def log_weights(self, draws: int) -> Tensor:
        """Return log p0(z) r(x - f(z)) / q(z | x) for fresh draws: shape `(draws, batch)`, nats."""
        rows = draws * self.case.batch
        noise = torch.randn(rows, self.dim, dtype=self.factor.dtype, device=self.factor.device)
        factor = repeat_batch(self.factor, draws, self.case.batch)
        offset = torch.linalg.solve_triangular(factor.mT, noise.unsqueeze(2), upper=True).squeeze(2)
        z = repeat_batch(self.mode, draws, self.case.batch) + INFLATION * offset.to(self.mode.dtype)
        log_q = -0.5 * (noise.square() + math.log(2 * math.pi)).sum(1) - self.dim * math.log(INFLATION)
        log_q = log_q + factor.diagonal(dim1=1, dim2=2).log().sum(1)
        log_w = self._log_joint(z, draws) - log_q.to(z.dtype)
        return log_w.reshape(draws, self.case.batch) + self.case.log_det

    def _climb(self, z: Tensor, covariance: Tensor) -> Tensor:
        """Newton steps with the fixed matrix `covariance`, halved where they do not go up; `(batch, D)`."""
        for _ in range(STEPS):
            value, gradient = self._gradient(z)
            step = (covariance @ gradient.unsqueeze(2)).squeeze(2)
            climbing = torch.ones_like(value, dtype=torch.bool)
            for halving in range(HALVINGS):
                candidate = z + 0.5**halving * step
                better = climbing & (self._log_joint(candidate) > value)
                z = torch.where(better.unsqueeze(1), candidate, z)
                climbing = climbing & ~better
                if not bool(climbing.any()):
                    break
        return z

    def _precision(self, z: Tensor, step: Tensor) -> Tensor:
        """Gauss-Newton precision at `z`, shape `(batch, D, D)`, in float64."""
        jacobian, curvature = [], []
        scale = self._decode(z)[1]
        for i in range(self.dim):
            shift = torch.zeros_like(z)
            shift[:, i] = step[:, i]
            up, down = z + shift, z - shift
            width = 2 * step[:, i].unsqueeze(1)
            jacobian.append(((self._decode(up)[0] - self._decode(down)[0]) / scale).flatten(1) / width)
            curvature.append((self._prior_gradient(down) - self._prior_gradient(up)) / width)
        j = torch.stack(jacobian, dim=2).double()
        prior = torch.stack(curvature, dim=2).double()
        values, vectors = torch.linalg.eigh(0.5 * (prior + prior.mT))
        floor = LEAST_CURVATURE * values.abs().mean(1, keepdim=True).clamp(min=1e-12)
        prior = vectors @ torch.diag_embed(torch.maximum(values, floor)) @ vectors.mT
        return j.mT @ j + prior

    def _log_joint(self, z: Tensor, draws: int = 1) -> Tensor:
        """Log p0(z) + log r(x - f(z)) for `(draws * batch, D)`, nats."""
        case = self.case
        z = z.reshape(-1, *self.aef.latent_shape)
        cond, kwargs = case.conditions(draws)
        return case.log_residual(z, draws) + self.aef._prior_log_prob(z, cond, kwargs)

    def _gradient(self, z: Tensor) -> tuple[Tensor, Tensor]:
        with torch.enable_grad():
            z = z.detach().requires_grad_()
            value = self._log_joint(z)
            return value.detach(), torch.autograd.grad(value.sum(), z)[0]

    def _prior_gradient(self, z: Tensor) -> Tensor:
        cond, kwargs = self.case.conditions(1)
        with torch.enable_grad():
            z = z.detach().requires_grad_()
            value = self.aef._prior_log_prob(z.reshape(-1, *self.aef.latent_shape), cond, kwargs)
            return torch.autograd.grad(value.sum(), z)[0]

    def _decode(self, z: Tensor) -> tuple[Tensor, Tensor]:
        """Return mean and residual scale at `z`, `(batch, D)`: shapes `(batch, *event)` and broadcastable to it."""
        cond, kwargs = self.case.conditions(1)
        mean, scale = self.aef._decode(z.reshape(-1, *self.aef.latent_shape), cond, kwargs)
        return mean, self.aef.residual.scale(scale)  # type: ignore[operator]
