"""Local features h(x) of latents that are grids: a linear map of the patch that belongs to a position."""

import math
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vae2aef.fan_in import fan_in_scale, start_at_one
from vae2aef.grids import Grid
from vae2aef.tensors import full_precision

CONVOLUTIONS = {1: F.conv1d, 2: F.conv2d, 3: F.conv3d}


class PatchFeatures(nn.Module):
    """h(x) of each position of a latent's grid: a linear map of its patch of x, the same everywhere.

    A convolution whose kernel is its stride. It costs (values of a patch) x (channels of the latent) parameters,
    however large the data, and takes any grid that the patches cover. Parametrised as `LinearFeatures`: x is centred,
    channel by channel, and brought to unit spread by the example; of many values in a patch each counts for less; h
    starts with unit spread.

    Args:
        event_shape: shape of one event of data, `(channels, *grid)`.
        channels: of the latent.
        grid: how the two grids lie on each other.
        read: what is done to x first, `(batch, *event)` to the same, or `(batch, *event, n)`: such as one-hot classes.
            None for nothing.
        example: data, `(batch, *event)`.

    Example:
        >>> features = PatchFeatures((3, 64, 64), 4, Grid((8, 8), (0, 0)))
        >>> features(torch.zeros(2, 3, 64, 64)).shape, features(torch.zeros(2, 3, 128, 96)).shape
        (torch.Size([2, 4, 8, 8]), torch.Size([2, 4, 16, 12]))
    """

    center: Tensor
    scale: Tensor

    def __init__(
        self,
        event_shape: Sequence[int],
        channels: int,
        grid: Grid,
        read: nn.Module | None = None,
        example: Tensor | None = None,
    ) -> None:
        super().__init__()
        self.grid = grid
        self.read = read
        seen = self._read(torch.zeros(1, event_shape[0], *grid.data([1] * grid.dims), dtype=_dtype(example))).shape[1]
        self.fan_in = seen * math.prod(grid.factor)
        bound = self.fan_in**-0.5  # as torch.nn.Linear
        self.weight = nn.Parameter(torch.empty(channels, seen, *grid.factor).uniform_(-bound, bound))
        self.bias = nn.Parameter(torch.empty(channels).uniform_(-bound, bound))
        self.register_buffer("center", torch.zeros(seen, *(1 for _ in grid.factor)))
        self.register_buffer("scale", torch.ones(()))
        if example is not None:
            self._fit(example)

    def forward(self, x: Tensor) -> Tensor:
        """Map data `(batch, channels, *grid)` to features `(batch, channels of the latent, *its grid)`."""
        with full_precision(x):
            return self._of_patches(self._read(x) - self.center, self.weight * self.scale, self.bias)

    def _of_patches(self, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        if any(self.grid.front):
            x = F.pad(x, [n for front in reversed(self.grid.front) for n in (front, 0)], mode="replicate")
        return CONVOLUTIONS[self.grid.dims](x, weight, bias, stride=self.grid.factor)

    def _read(self, x: Tensor) -> Tensor:
        if self.read is None:
            return x
        seen = self.read(x)
        if seen.dim() > x.dim():  # a number of values for each of x: further channels
            seen = seen.movedim(-1, 2).flatten(1, 2)
        return seen.to(self.weight.dtype) if hasattr(self, "weight") else seen

    @torch.no_grad()
    def _fit(self, example: Tensor) -> None:
        """Take the center of each channel, and the spread of x around it, from an example."""
        seen = self._read(example.cpu()).double()
        smallest = 1e-6 * seen.abs().max()
        center = seen.transpose(0, 1).flatten(1).mean(1).reshape(self.center.shape)
        spread = (seen - center).std(correction=0)
        share = fan_in_scale(self.fan_in)
        self.center.copy_(center)
        varied = bool(spread > smallest)
        self.scale.fill_(share / float(spread) if varied else share)
        unit = (seen - center) / spread * share
        weight = self.weight.detach().cpu().double()
        start_at_one(self.weight, self._of_patches(unit, weight, None) if varied else None, share)

    def _load_from_state_dict(self, state_dict: dict, prefix: str, *args: object) -> None:
        errors = args[-1]
        if prefix + "linear.weight" in state_dict and isinstance(errors, list):
            errors.append(
                "the checkpoint holds the dense features of release 0.1, and these are local, the default for a latent "
                'that is a grid: wrap with core="linear"'
            )
        super()._load_from_state_dict(state_dict, prefix, *args)

    def extra_repr(self) -> str:
        """Say the size of a patch."""
        return f"patch={self.grid}, channels={self.weight.shape[1]} to {self.weight.shape[0]}"


def _dtype(example: Tensor | None) -> torch.dtype:
    return torch.get_default_dtype() if example is None or example.is_floating_point() else example.dtype
