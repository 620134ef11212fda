"""A proposal for each datum: ellipsoids of several widths and tails around its modes, and the prior.

    q(v | x) = a_0 p0(v) + sum_m sum_s a_ms t_s(v; mode m, Lambda_m),    sum of all a = 1

Each shape s is a Student-t distribution of its own scale and degrees of freedom, or a Gaussian. Every draw is weighted
by the density of the whole mixture (the balance heuristic: Veach, Guibas, SIGGRAPH 1995). While a_0 > 0 weights are
bounded by p(x | z) / a_0 (a defensive mixture: Hesterberg, Technometrics 1995).
"""

import math
from typing import NamedTuple

import torch
from torch import Tensor

from vae2aef.protocols import Target

GOLDEN_RATIO = (math.sqrt(5) - 1) / 2


class Shape(NamedTuple):
    """A Student-t distribution around a mode.

    Attributes:
        scale: in units of the fit.
        df: degrees of freedom; 0 for a Gaussian.
    """

    scale: float
    df: int

    def log_density(self, squared: Tensor, dim: int) -> Tensor:
        """Return the log density at squared distances in units of the fit, but for the fit's own determinant."""
        squared = squared / self.scale**2
        constant = -dim * math.log(self.scale)
        if not self.df:
            return constant - 0.5 * (squared + dim * math.log(2 * math.pi))
        half = 0.5 * (self.df + dim)
        constant += math.lgamma(half) - math.lgamma(0.5 * self.df) - 0.5 * dim * math.log(math.pi * self.df)
        return constant - half * torch.log1p(squared / self.df)


class Mixture:
    """A mixture for each datum of a target.

    Args:
        mode: `(modes, batch, D)`.
        factor: Cholesky factors of their precisions, `(modes, batch, D, D)`, float64.
        log_weight: log a_ms in rows of modes, then log a_0 if the prior is one, `(modes * shapes [+ 1], batch)`.
        shapes: of every mode.
    """

    def __init__(self, mode: Tensor, factor: Tensor, log_weight: Tensor, shapes: tuple[Shape, ...]) -> None:
        self.mode, self.factor, self.shapes = mode, factor, shapes
        self.log_weight = log_weight
        self.log_det = factor.diagonal(dim1=2, dim2=3).log().sum(2)
        self.dim = mode.shape[2]

    @property
    def has_prior(self) -> bool:
        """Whether the prior is a component."""
        return len(self.log_weight) > len(self.mode) * len(self.shapes)

    def draw(self, target: Target, stream: int, first: int, count: int) -> Tensor:
        """Return draws `first` to `first + count` of a stream of random numbers, `(count, batch, D)`.

        Which component a draw comes from is spread evenly: each draw alone follows the mixture, and together they
        miss no component.
        """
        like, random = self.mode, target.random
        turn = GOLDEN_RATIO * torch.arange(first, first + count, dtype=torch.float64)[:, None]
        level = ((random.uniform(stream, 0, 1, 1)[0, :, 0] + turn) % 1.0).to(like.device)
        total = self.log_weight.exp().cumsum(0)
        chosen = (level.unsqueeze(0) * total[-1] >= total.unsqueeze(1)).sum(0).clamp(max=len(total) - 1)
        tails = max((shape.df for shape in self.shapes), default=0)
        noise = random.normal(stream + 1, first, count, self.dim + tails).to(like.device)
        noise, tail = noise[..., : self.dim], noise[..., self.dim :].square()
        stretch = torch.zeros_like(level)
        for s, shape in enumerate(self.shapes):
            one = (shape.df / tail[..., : shape.df].sum(2)).sqrt() if shape.df else torch.ones_like(level)
            stretch = torch.where(chosen % len(self.shapes) == s, shape.scale * one, stretch)
        noise = (stretch.unsqueeze(2) * noise).permute(1, 2, 0)
        v = like.new_zeros(count, *like.shape[1:])
        for m, (mode, factor) in enumerate(zip(self.mode, self.factor, strict=True)):
            offset = torch.linalg.solve_triangular(factor.mT, noise, upper=True).permute(2, 0, 1)
            v = torch.where((chosen // len(self.shapes) == m).unsqueeze(2), mode + offset.to(like.dtype), v)
        if self.has_prior:
            ours = chosen == len(total) - 1
            most = int(ours.sum(0).max()) if random.seeded is False else count
            fresh = target.prior_draws(max(most, 1), stream + 2 + first)
            if fresh is not None:
                index = (ours.cumsum(0) - 1).clamp(min=0)
                v = torch.where(ours.unsqueeze(2), fresh.gather(0, index.unsqueeze(2).expand(v.shape)), v)
        return v

    def components(self, v: Tensor, log_prior: Tensor) -> Tensor:
        """Return the log density of each component at `(draws, batch, D)`: `(components, draws, batch)`, float64."""
        found = []
        for mode, factor, log_det in zip(self.mode, self.factor, self.log_det, strict=True):
            offset = (v - mode).double().permute(1, 0, 2)
            squared = (offset @ factor).square().sum(2).T
            found += [log_det + shape.log_density(squared, self.dim) for shape in self.shapes]
        return torch.stack(found + [log_prior.double()] * self.has_prior)

    def log_density(self, v: Tensor, log_prior: Tensor) -> Tensor:
        """Return log q(v | x), `(draws, batch)`, float64, given log p0(v)."""
        return torch.logsumexp(self.components(v, log_prior) + self.log_weight.unsqueeze(1), 0)

    def rows(self, take: Tensor) -> "Mixture":
        """Return the mixtures of some of the data."""
        return Mixture(self.mode[:, take], self.factor[:, take], self.log_weight[:, take], self.shapes)
