"""Moves a Gaussian for each datum closer to its posterior: a few steps of variational inference from a first fit.

The Laplace approximation sees the mode alone. Where the decoder bends within the posterior's width, the Gaussian of
least KL(q || p) is far nearer. It is climbed to in coordinates y that the first fit has made white, v = mode + A y,

    q(y) = N(m, T T^T),    gradients of log p(x, v) - log q(v) along y = m + T e,    e standard normal, in pairs +-e

where the density q is held fixed in the gradient (sticking the landing: Roeder, Wu, Duvenaud, NeurIPS 2017), so that
the noise of the gradient dies out as q meets the posterior. Adam's steps, each datum on its own.
"""

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from vae2aef.draws import Draws
from vae2aef.laplace import with_gradient

STEPS, PAIRS, RATE, LAST_RATE = 80, 2, 0.05, 0.1
"""Adam's steps, pairs of draws in each, the first rate and the part of it that is left at the end."""

NARROWEST, WIDEST = 0.02, 50.0
"""Of T's diagonal, in units of the first fit."""

AVERAGED = 10
"""Last steps over which the bound is averaged."""


class Gaussians(NamedTuple):
    """What was fitted.

    Attributes:
        mean: m, `(batch, D)`.
        root: T, upper triangular `(batch, D, D)`, or its diagonal `(batch, D)`.
        bound: E_q[log p(x, v) - log q(v)] near the end, `(batch,)`; its q(v) leaves out log|det A|.
    """

    mean: Tensor
    root: Tensor
    bound: Tensor


def improve(log_joint: Callable[[Tensor], Tensor], start: Gaussians, random: Draws, stream: int) -> Gaussians:
    """Take the steps.

    Args:
        log_joint: log p(x, v) at white coordinates: `(draws * batch, D)` to `(draws * batch,)`.
        start: m and T of the first fit.
        random: numbers of the batch.
        stream: which of them.
    """
    mean, root = start.mean, start.root
    full = root.dim() == 3
    moments = [Moments(mean), Moments(root)]
    bounds = []
    for number in range(STEPS):
        half = random.normal(stream, PAIRS * number, PAIRS, mean.shape[1]).to(mean)
        noise = torch.cat([half, -half])
        offset = torch.einsum("rij,nrj->nri", root, noise) if full else root * noise
        value, slope = with_gradient(log_joint, (mean + offset).flatten(0, 1))
        slope = slope.reshape(noise.shape).nan_to_num(0.0, 0.0, 0.0)
        diagonal = root.diagonal(dim1=1, dim2=2) if full else root
        log_q = -0.5 * noise.square().sum(2) - diagonal.log().sum(1)
        if number >= STEPS - AVERAGED:
            bounds.append((value.reshape(log_q.shape) - log_q).mean(0))
        slope = slope + (_solved(root, noise) if full else noise / root)  # minus the gradient of log q
        turn = torch.einsum("nri,nrj->rij", slope, noise).triu() if full else (slope * noise).sum(0)
        rate = RATE * (1 - (1 - LAST_RATE) * number / STEPS)
        mean = mean + rate * moments[0].step(slope.mean(0))
        root = root + rate * moments[1].step(turn / len(noise))
        diagonal = root.diagonal(dim1=1, dim2=2) if full else root
        narrow = diagonal.clamp(NARROWEST, WIDEST)
        root = root + torch.diag_embed(narrow - diagonal) if full else narrow
    return Gaussians(mean, root, torch.stack(bounds).mean(0))


def _solved(root: Tensor, noise: Tensor) -> Tensor:
    return torch.linalg.solve_triangular(root.mT, noise.permute(1, 2, 0), upper=False).permute(2, 0, 1)


class Moments:
    """Adam, for parameters of each datum; its floor is large, so that what has no slope stays."""

    FIRST, SECOND, FLOOR = 0.8, 0.95, 0.1

    def __init__(self, like: Tensor) -> None:
        self.mean, self.square, self.steps = torch.zeros_like(like), torch.zeros_like(like), 0

    def step(self, slope: Tensor) -> Tensor:
        """Return the next step up, in units of the rate, for a slope."""
        self.steps += 1
        self.mean = self.FIRST * self.mean + (1 - self.FIRST) * slope
        self.square = self.SECOND * self.square + (1 - self.SECOND) * slope.square()
        size = (self.square / (1 - self.SECOND**self.steps)).sqrt()
        return self.mean / (1 - self.FIRST**self.steps) / (size + self.FLOOR)
