"""Priors over the latent: the standard normal, and a density made by a flow."""

import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from vae2aef.flows import Bijection
from vae2aef.tensors import sum_event


class StandardNormal(nn.Module):
    """The standard normal on events of shape `shape`: the prior of most VAEs.

    Args:
        shape: the shape of one event.
    """

    zero: Tensor

    def __init_subclass__(cls) -> None:
        """Let a class with a `log_prob` of its own not inherit the expectation of another."""
        super().__init_subclass__()
        if "log_prob" in vars(cls) and "expected_log_prob" not in vars(cls):
            setattr(cls, "expected_log_prob", None)  # noqa: B010 - a type checker takes it for a mistake

    def __init__(self, shape: Sequence[int]) -> None:
        super().__init__()
        self.register_buffer("zero", torch.zeros(tuple(shape)), persistent=False)

    def log_prob(self, z: Tensor) -> Tensor:
        """Log density in nats: `z` of shape `(batch, *event)` gives `(batch,)`."""
        return -0.5 * sum_event(z * z + math.log(2 * math.pi))

    def expected_log_prob(self, loc: Tensor, scale: Tensor) -> Tensor:
        """Average the log density over z of N(loc, scale^2), each `(batch, *event)`: `(batch,)`, nats."""
        return -0.5 * sum_event(loc * loc + scale * scale + math.log(2 * math.pi))  # a square goes back through pow

    def sample(self, n: int, temperature: float = 1.0, shape: Sequence[int] | None = None) -> Tensor:
        """Draw `n` events, shape `(n, *event)`, or `(n, *shape)`, with the standard deviation `temperature`."""
        shape = self.zero.shape if shape is None else shape
        return temperature * torch.randn(n, *shape, dtype=self.zero.dtype, device=self.zero.device)


class FunctionPrior(nn.Module):
    """A density that is known by its logarithm alone: nothing can be sampled from it.

    Args:
        function: log p(z) in nats, `(batch, *latent)` to `(batch,)`, such as the VAE's own method.
    """

    def __init__(self, function: Callable[..., Tensor]) -> None:
        super().__init__()
        self.function = function

    def log_prob(self, z: Tensor, *cond: Any, **kwargs: Any) -> Tensor:
        """Log density in nats: `z` of shape `(batch, *latent)` gives `(batch,)`."""
        return self.function(z, *cond, **kwargs)

    def sample(self, n: int, *cond: Any, **kwargs: Any) -> Tensor:
        """Refuse.

        Raises:
            ValueError: says what to pass.
        """
        raise ValueError(
            "the prior was given as a function of z, from which nothing can be sampled: to sample, pass prior= a "
            "module with log_prob(z) and sample(n)"
        )


class FlowPrior(nn.Module):
    """A density made by a flow: z = flow^-1(e), e standard normal.

    Args:
        flow: maps latents to noise in `forward`.
        shape: the shape of one latent.
    """

    def __init__(self, flow: Bijection, shape: Sequence[int]) -> None:
        super().__init__()
        self.flow = flow
        self.base = StandardNormal(shape)

    def log_prob(self, z: Tensor) -> Tensor:
        """Log density in nats: `z` of shape `(batch, *latent)` gives `(batch,)`."""
        noise, log_det = self.flow(z)
        return self.base.log_prob(noise) + log_det

    def sample(self, n: int, temperature: float = 1.0, shape: Sequence[int] | None = None) -> Tensor:
        """Draw `n` latents, shape `(n, *latent)`, or `(n, *shape)`; `temperature` scales the base noise."""
        return self.flow.inverse(self.base.sample(n, temperature, shape))[0]
