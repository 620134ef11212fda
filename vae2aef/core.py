"""Where the core variables w come from: a feature expansion (Eq. 9), noise, or a part of the data (Eq. 4)."""

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from vae2aef.errors import WrapError
from vae2aef.features import LinearFeatures, NoFeatures
from vae2aef.patches import PatchFeatures
from vae2aef.protocols import Features
from vae2aef.tensors import numel, sum_event

__all__ = [
    "DEFAULT_NOISE", "MIN_NOISE", "Expansion", "LinearFeatures", "NoFeatures", "Partition", "PatchFeatures",
    "partition_mask",
]  # fmt: skip

DEFAULT_NOISE = 0.3
"""What sigma is in the expanded family if `wrap(noise=)` says nothing.

On nearly every data set of docs/results.md it ends at or below sigma = 0, and on none much above.
"""

MIN_NOISE = 1e-30
"""Smallest sigma above zero: its square logarithm must exist in float32."""

MAX_NOISE = 1e15
"""Largest sigma: its square must exist in float32."""


class Expansion(nn.Module):
    """Expanded family: w = h(x) + sigma * epsilon (Eq. 11), and the shell is all of x.

    Args:
        features: h, maps data `(batch, *event)` to `(batch, *latent)`.
        latent_shape: shape of one latent.
        noise: sigma; 0 is the paper's deterministic loss.

    Attributes:
        noisy: whether sigma is above 0: what the loss branches on, so that compiled code is not made anew for each
            sigma.
    """

    exact = False
    features: Features
    sigma: Tensor

    def __init__(self, features: Features, latent_shape: Sequence[int], noise: float = 0.0) -> None:
        super().__init__()
        self.features = features
        self.latent_shape = torch.Size(latent_shape)
        self.register_buffer("sigma", torch.zeros(()))
        self.noise = noise

    @property
    def noise(self) -> float:
        """The standard deviation sigma of the noise on the core variables. May be changed while training."""
        return self._noise

    @noise.setter
    def noise(self, value: float) -> None:
        if isinstance(value, (str, bytes, bool)) or not hasattr(value, "__float__"):
            raise TypeError(f"expected noise as a number, got {value!r}")
        if value != 0 and not MIN_NOISE <= value <= MAX_NOISE:  # NaN neither
            raise ValueError(
                f"expected noise 0 (the paper's loss) or at least {MIN_NOISE:g} and at most {MAX_NOISE:g}, got {value}"
            )
        self._noise = float(value)
        self.noisy = self._noise > 0
        with torch.no_grad():
            self.sigma.fill_(value)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Split data `(batch, *event)` into the core h(x) `(batch, *latent)`, without noise, and the shell x."""
        core = self.features(x)
        if core.dtype is not x.dtype and x.is_floating_point():
            core = core.to(x.dtype)
        return core, x

    def perturb(self, core: Tensor, standard: Any = None) -> Tensor:
        """Add sigma * epsilon; nothing is drawn at sigma = 0. Shape `(batch, *latent)`.

        Args:
            core: h(x).
            standard: what epsilon is drawn from, with `rsample()` of the shape of h(x); None for the standard normal.
                With the posterior's own, h = 0 and sigma = 1 is the VAE itself, whatever its family.
        """
        if not self.noisy:
            return core
        return core + self.sigma * (torch.randn_like(core) if standard is None else standard.rsample())

    def entropy(self, standard: Any = None, core: Tensor | None = None) -> Tensor:
        """Return the entropy of w given x in nats, D/2 log(2 pi e sigma^2); zero at sigma = 0.

        A scalar for Gaussian noise, else `(batch,)`. D is that of `core`, h(x), which may have another grid than the
        example; without it that of the example.
        """
        if not self.noisy:
            return torch.zeros_like(self.sigma)
        if standard is not None:
            return sum_event(standard.entropy() + self.sigma.log())
        latent = self.latent_shape if core is None else core.shape[1:]
        return numel(latent) * (0.5 * math.log(2 * math.pi * math.e) + self.sigma.log())

    def shell(self, values: Tensor) -> Tensor:
        """Keep the shell of `values`, shape `(batch, *event)`: here everything."""
        return values

    def _load_from_state_dict(self, state_dict: dict, prefix: str, *args: object) -> None:
        super()._load_from_state_dict(state_dict, prefix, *args)
        self._noise = float(f"{float(self.sigma):.7g}")  # 0.3, not the 0.30000001192 of its float32
        self.noisy = self._noise > 0

    def __setstate__(self, state: dict[str, Any]) -> None:
        """Take up pickles of release 0.1, too."""
        super().__setstate__(state)
        self.noisy = self._noise > 0

    def extra_repr(self) -> str:
        """Say sigma."""
        return f"noise={self._noise:g}"


class Partition(nn.Module):
    """Partition family: the core is a fixed subset of x, the shell is the rest (Eq. 4).

    Args:
        mask: boolean, shape `(*event)`, True where x is core; as many as the latent has values.
        latent_shape: shape of one latent.

    Raises:
        WrapError: if the mask does not select as many values as the latent holds.
    """

    exact = True
    noise, noisy = 0.0, False
    mask: Tensor
    core_index: Tensor

    def __init__(self, mask: Tensor, latent_shape: Sequence[int]) -> None:
        super().__init__()
        mask = mask.bool()
        if int(mask.sum()) != numel(latent_shape):
            raise WrapError(
                f"the mask selects {int(mask.sum())} core variables, but the latent of shape "
                f"{tuple(latent_shape)} holds {numel(latent_shape)}: they must be equal"
            )
        self.latent_shape = torch.Size(latent_shape)
        self.register_buffer("mask", mask)
        # Saved too: a random mask that is loaded from a checkpoint must bring its index along.
        self.register_buffer("core_index", mask.flatten().nonzero().flatten())

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Split data `(batch, *event)` into core `(batch, *latent)` and shell `(batch, *event)`, core zeroed."""
        flat = x.reshape(x.shape[0], self.mask.numel())
        return flat[:, self.core_index].reshape(x.shape[0], *self.latent_shape), self.shell(x)

    def join(self, core: Tensor, shell: Tensor) -> Tensor:
        """Put core `(batch, *latent)` and shell `(batch, *event)` together to data `(batch, *event)`."""
        flat = shell.reshape(shell.shape[0], self.mask.numel())
        joined = flat.index_copy(
            1, self.core_index, core.reshape(core.shape[0], self.core_index.numel()).to(flat.dtype)
        )
        return joined.reshape(shell.shape)

    def perturb(self, core: Tensor, standard: Any = None) -> Tensor:
        """Return the core as it is: an exact likelihood has no noise."""
        return core

    def entropy(self, standard: Any = None, core: Tensor | None = None) -> Tensor:
        """Return zero: nothing is drawn."""
        return torch.zeros((), device=self.mask.device)

    def shell(self, values: Tensor) -> Tensor:
        """Keep the shell of `values`, shape `(batch, *event)`, with zeros at the core."""
        return torch.where(self.mask, 0.0, values)

    def extra_repr(self) -> str:
        """Say the sizes."""
        return f"core={self.core_index.numel()}, shell={self.mask.numel() - self.core_index.numel()}"


def partition_mask(kind: str, event_shape: Sequence[int], core_size: int) -> Tensor:
    """Choose the core variables of the partition family (paper, section 3.2).

    Args:
        kind: `"center"` (values nearest to the middle), `"corner"` (nearest to the first corner) or
            `"random"` (drawn once from torch's generator).
        event_shape: shape of one event. With three dimensions or more the first one is channels, which are
            taken together.
        core_size: how many values to take.

    Returns:
        Boolean mask of shape `(*event)`.

    Raises:
        WrapError: if more values are asked for than there are.
    """
    total = numel(event_shape)
    if core_size > total:
        raise WrapError(
            f"a partition needs a latent no larger than the data: {core_size} core variables of {total} values; ",
            'use core="linear"',
        )
    if kind == "random":
        order = torch.randperm(total)
    else:
        channels, space = (event_shape[:1], event_shape[1:]) if len(event_shape) > 2 else ((), event_shape)
        grids = torch.meshgrid(*(torch.arange(n) for n in space), indexing="ij") if space else (torch.zeros(()),)
        steps = [2 * g - (n - 1) for g, n in zip(grids, space, strict=False)] if kind == "center" else grids
        distance = torch.stack([s.abs() for s in steps]).amax(0) if space else torch.zeros(())
        # A stable sort breaks ties in reading order; channels of a position stay together.
        rank = distance.expand((*channels, *space))
        if channels:
            rank = rank.movedim(0, -1)
        index = torch.arange(total).reshape(tuple(event_shape))
        index = index.movedim(0, -1) if channels else index
        order = index.flatten()[rank.flatten().sort(stable=True).indices]
    mask = torch.zeros(total, dtype=torch.bool)
    mask[order[:core_size]] = True
    return mask.reshape(tuple(event_shape))
