"""Feature expansions h(x) of the expanded family (Eq. 9)."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from vae2aef.fan_in import FAN_IN, fan_in_scale, start_at_one
from vae2aef.grids import Grid
from vae2aef.tensors import full_precision, numel, with_older_buffers

STORED_ROWS = 128
"""Most rows of an example that `NormalizedFeatures` measures its spread on."""


class LinearFeatures(nn.Module):
    """The feature expansion of the paper: h(x) = W x + b, in the parametrisation h(x) = W' (x - center) scale + b'.

    With an example, x is centred and brought to unit spread, whatever its range. Each of n values is then multiplied by
    min(1, sqrt(16 / n), 256 / n) (and W' starts larger by as much), so that one step moves h by no more than 256 values
    that count in full would (Adam) or 16 (SGD), however many x has: maximal-update scaling (Yang & Hu, *Feature
    Learning in Infinite-Width Neural Networks*, ICML 2021). Over the example, h starts with unit spread. Without one,
    center is 0, scale 1, and W' starts as torch's linear layer does.

    Args:
        event_shape: shape of one event of data.
        latent_shape: shape of one latent.
        read: what is done to x first, `(batch, *event)` to `(batch, ...)`: such as one-hot classes. None for nothing.
        example: data, `(batch, *event)`.

    Example:
        >>> features = LinearFeatures((2,), (1,), example=torch.tensor([[0.0, 10.0], [2.0, 12.0]]))
        >>> features.center, features.scale
        (tensor([ 1., 11.]), tensor(1.))
    """

    center: Tensor
    scale: Tensor

    def __init__(
        self,
        event_shape: Sequence[int],
        latent_shape: Sequence[int],
        read: nn.Module | None = None,
        example: Tensor | None = None,
    ) -> None:
        super().__init__()
        self.latent_shape = torch.Size(latent_shape)
        self.read = read
        seen = numel(event_shape) if read is None else read(torch.zeros(1, *event_shape)).numel()
        self.linear = nn.Linear(seen, numel(latent_shape))
        self.register_buffer("center", torch.zeros(seen))
        self.register_buffer("scale", torch.ones(()))
        if example is not None:
            self._fit(example)

    def forward(self, x: Tensor) -> Tensor:
        """Map data `(batch, *event)` to features `(batch, *latent)`."""
        with full_precision(x):
            return self.linear(self._unit(x)).reshape(x.shape[0], *self.latent_shape)

    @torch.no_grad()
    def set_map(self, weight: Tensor, bias: Tensor) -> None:
        """Make h the map `weight @ x + bias`, whatever center and scale are.

        Args:
            weight: W, shape `(D, values of x)`.
            bias: b, shape `(D,)`.
        """
        self.linear.weight.copy_(weight / self.scale)
        self.linear.bias.copy_(bias + weight @ self.center)

    @torch.no_grad()
    def map(self) -> tuple[Tensor, Tensor]:
        """Return W, `(D, values of x)`, and b, `(D,)`, of h(x) = W x + b."""
        weight = self.linear.weight * self.scale
        return weight, self.linear.bias - weight @ self.center

    def _unit(self, x: Tensor) -> Tensor:
        """Return u = (x - center) scale, `(batch, values)`; the difference is new, and is scaled where it lies."""
        return (self._flat(x) - self.center).mul_(self.scale)

    def _flat(self, x: Tensor) -> Tensor:
        x = x if self.read is None else self.read(x).to(self.linear.weight.dtype)
        return x.reshape(x.shape[0], self.linear.in_features)

    @torch.no_grad()
    def _fit(self, example: Tensor) -> None:
        """Take center and spread of x from an example; from all its values together if the rows are alike."""
        seen = self._flat(example.cpu()).double()
        smallest = 1e-6 * seen.abs().max()
        center = seen.mean(0)
        if not (seen - center).std(correction=0) > smallest:
            center = seen.mean().expand_as(self.center)
        seen = seen - center
        spread = seen.std(correction=0)
        share = self._share()
        self.center.copy_(center)
        varied = bool(spread > smallest)
        self.scale.fill_(share / float(spread) if varied else share)
        self._start(seen / spread * share if varied else None, share)

    def _share(self) -> float:
        return fan_in_scale(self.linear.in_features)

    def _start(self, unit: Tensor | None, share: float) -> None:
        """Scale W' for (x - center) scale, `(batch, values)`, on the CPU; None if x does not vary."""
        weight = self.linear.weight.detach().cpu().double()
        start_at_one(self.linear.weight, None if unit is None else nn.functional.linear(unit, weight), share)

    def _load_from_state_dict(self, state_dict: dict, prefix: str, *args: object) -> None:
        none = torch.zeros_like(self.center)
        state_dict = with_older_buffers(state_dict, prefix + "linear.weight", prefix, center=none, scale=1.0)
        super()._load_from_state_dict(state_dict, prefix, *args)


class NormalizedFeatures(LinearFeatures):
    """Linear features of held scale: each has unit spread on stored data, whatever its weights are.

    h(x) = W' u / s + b' with u = (x - center) scale and s the root mean square of W' u over the stored rows. The scale
    of h is then no free parameter: sigma is a signal-to-noise ratio, and at sigma = 0 the loss cannot fall by letting h
    shrink (docs/mathematics.md, the gauge of sigma).

    Args:
        event_shape: shape of one event of data.
        latent_shape: shape of one latent.
        read: as for `LinearFeatures`.
        example: data, `(batch, *event)`, two rows or more; up to 128 are stored.

    Raises:
        ValueError: without an example that varies.
    """

    rows: Tensor

    def __init__(
        self,
        event_shape: Sequence[int],
        latent_shape: Sequence[int],
        read: nn.Module | None = None,
        example: Tensor | None = None,
    ) -> None:
        super().__init__(event_shape, latent_shape, read, example)
        if example is None or len(example) < 2:
            raise ValueError("normalized features need an example of at least two rows, to know the spread of the data")
        kept = (self._flat(example[:STORED_ROWS].cpu()) - self.center) * self.scale
        if not kept.std() > 0:
            raise ValueError("normalized features need an example whose values vary")
        self.register_buffer("rows", kept - kept.mean(0))

    def forward(self, x: Tensor) -> Tensor:
        """Map data `(batch, *event)` to features `(batch, *latent)`."""
        with full_precision(x):
            h = nn.functional.linear(self._unit(x), self._weight(), self.linear.bias)
            return h.reshape(x.shape[0], *self.latent_shape)

    @torch.no_grad()
    def set_map(self, weight: Tensor, bias: Tensor) -> None:
        """Make h the map `weight @ x + bias`, if its rows have unit spread on the stored data.

        Raises:
            ValueError: if they have not: this h cannot be that map.
        """
        super().set_map(weight, bias)
        spread = self._spread()
        if not torch.allclose(spread, torch.ones_like(spread), rtol=1e-3):
            raise ValueError(
                'the scale of normalized features is held at 1, and this map has another; use core="linear"'
            )

    @torch.no_grad()
    def map(self) -> tuple[Tensor, Tensor]:
        """Return W, `(D, values of x)`, and b, `(D,)`, of h(x) = W x + b."""
        weight = self._weight() * self.scale
        return weight, self.linear.bias - weight @ self.center

    def _load_from_state_dict(self, state_dict: dict, prefix: str, *args: object) -> None:
        """Take stored rows of any number: those of the example that it was wrapped with."""
        rows = state_dict.get(prefix + "rows")
        if rows is not None and rows.shape[1:] == self.rows.shape[1:]:
            self.rows = self.rows.new_empty(rows.shape)
        super()._load_from_state_dict(state_dict, prefix, *args)

    def _share(self) -> float:
        """Of 256 values on alone: h, whose scale is held, does not start small, and a larger W' would turn slower."""
        return min(1.0, FAN_IN / self.linear.in_features)

    def _start(self, unit: Tensor | None, share: float) -> None:
        self.linear.weight.div_(share)

    def _spread(self) -> Tensor:
        """Root mean square of each feature over the stored rows, `(D,)`."""
        square = nn.functional.linear(self.rows, self.linear.weight).square().mean(0)
        return (square + torch.finfo(square.dtype).tiny).sqrt()

    def _weight(self) -> Tensor:
        return self.linear.weight / self._spread()[:, None]


class NoFeatures(nn.Module):
    """h(x) = 0. With sigma = 1 the core variables are white noise and the AEF is the VAE itself.

    Args:
        latent_shape: shape of one latent.
        grid: how the grid of the latent lies on that of the data, if it has one: data on another grid then have zeros
            of the grid that belongs to it.
    """

    def __init__(self, latent_shape: Sequence[int], grid: Grid | None = None) -> None:
        super().__init__()
        self.latent_shape = torch.Size(latent_shape)
        self.grid = grid

    def forward(self, x: Tensor) -> Tensor:
        """Return zeros of shape `(batch, *latent)`."""
        dtype = x.dtype if x.is_floating_point() else torch.get_default_dtype()
        shape = self.latent_shape
        if self.grid is not None:
            shape = torch.Size((shape[0], *self.grid.latent(x.shape[2:])))
        return x.new_zeros(x.shape[0], *shape, dtype=dtype)
