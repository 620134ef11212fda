"""The contract of adapters for VAEs of several latents."""

import abc
import math
from typing import Any, NamedTuple

import torch
from torch import Tensor

from vae2aef.parts import Decoded, Posterior, VAEParts
from vae2aef.protocols import Place
from vae2aef.tensors import sum_event


class VAEProgram(VAEParts):
    """A VAE of several latents, read top to bottom: `run` calls `place` for each.

    Example:
        Two levels, the lower one given the upper::

            def infer(self, x):
                d1 = self.vae.up1(x)
                return d1, self.vae.up2(d1)                       # bottom-up features, batch first

            def run(self, place, state):
                q2 = None if state is None else posterior(self.vae.top(state[1]))
                z2 = place("z2", StandardNormal((8,)), q2)
                p1 = self.vae.prior_of_z1(z2)
                q1 = None if state is None else posterior(self.vae.ladder(state[0], z2))
                z1 = place("z1", Gaussian(p1.loc, p1.scale), q1)
                return Decoded(self.vae.decode(z1))
    """

    @abc.abstractmethod
    def infer(self, x: Tensor, *cond: Any, **kwargs: Any) -> Any:
        """See `VAEParts.infer`."""

    @abc.abstractmethod
    def run(self, place: Place, state: Any, *cond: Any, **kwargs: Any) -> Decoded:
        """See `VAEParts.run`."""

    def outer_dims(self, name: str) -> int:
        """Return how many leading dimensions of a latent the core flow takes for rows: 0 maps all of it at once."""
        return 0

    def encode(self, x: Tensor, *cond: Any, **kwargs: Any) -> Posterior:
        """Refuse: the posterior of a latent depends on those placed before it."""
        raise TypeError(f"{type(self).__name__} has several latents: use infer and run")

    def decode(self, z: Tensor, *cond: Any, **kwargs: Any) -> Decoded:
        """Refuse: see `encode`."""
        raise TypeError(f"{type(self).__name__} has several latents: use infer and run")


class Gaussian(NamedTuple):
    """A prior of each row its own, N(loc, scale^2): what a hierarchical VAE's generator says of the next latent.

    Attributes:
        loc: shape `(batch, *latent)`.
        scale: positive, the same shape.
    """

    loc: Tensor
    scale: Tensor

    def log_prob(self, z: Tensor) -> Tensor:
        """Log density in nats, `(batch, *latent)` to `(batch,)`."""
        unit = (z - self.loc) / self.scale
        return sum_event(-0.5 * (unit.square() + math.log(2 * math.pi)) - self.scale.log())

    def expected_log_prob(self, loc: Tensor, scale: Tensor) -> Tensor:
        """Average the log density over z of N(loc, scale^2), each `(batch, *latent)`: `(batch,)`, nats."""
        return self.log_prob(loc) - 0.5 * sum_event((scale / self.scale).square())

    def sample(self, n: int, temperature: float = 1.0) -> Tensor:
        """Draw one latent a row, shape `(batch, *latent)`; `n` is the number of rows."""
        return self.loc + temperature * self.scale * torch.randn_like(self.loc)
