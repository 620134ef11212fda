"""How the grid of a latent lies on the grid of the data: which sizes belong to which."""

from collections.abc import Sequence
from typing import NamedTuple

import torch


class Grid(NamedTuple):
    """A latent `(channels, *grid)` of data `(channels, *grid)`, each position of it a patch of the data.

    Attributes:
        factor: size of a patch, along each dimension.
        front: how many values more than the data have the first patch takes, along each dimension: causal video
            autoencoders map 1 + 4 n frames to 1 + n, their first patch being the first frame repeated. Else 0.
    """

    factor: tuple[int, ...]
    front: tuple[int, ...]

    @property
    def dims(self) -> int:
        """How many dimensions the grid has."""
        return len(self.factor)

    def latent(self, data: Sequence[int]) -> tuple[int, ...]:
        """Return the latent's grid for one of the data.

        Raises:
            ValueError: if the patches do not cover it exactly.
        """
        if len(data) != self.dims or any(
            n < 1 or (n + front) % factor for n, factor, front in zip(data, self.factor, self.front, strict=True)
        ):
            raise ValueError(f"expected a grid of patches {self}, got {' x '.join(map(str, data))}")
        return tuple((n + front) // factor for n, factor, front in zip(data, self.factor, self.front, strict=True))

    def data(self, latent: Sequence[int]) -> tuple[int, ...]:
        """Return the grid of the data for one of the latent."""
        return tuple(n * factor - front for n, factor, front in zip(latent, self.factor, self.front, strict=True))

    def __str__(self) -> str:
        """Say the size of a patch, such as 8 x 8."""
        return " x ".join(map(str, self.factor))


def find_grid(event: Sequence[int], latent: Sequence[int]) -> Grid | None:
    """Return how a latent's grid lies on that of the data; None if it has none, or one that does not divide it.

    Both are `(channels, *grid)` with a grid of one, two or three dimensions; that of the latent has more than one
    position. Along the first of three dimensions, time, the patches may also be those of a causal autoencoder.
    """
    spaces = tuple(event[1:]), tuple(latent[1:])
    dims = len(spaces[0])
    if dims != len(spaces[1]) or not 1 <= dims <= 3 or not torch.Size(event).numel() or not latent[0]:
        return None
    if torch.Size(spaces[1]).numel() < 2:
        return None
    factor, front = [], []
    for i, (n, m) in enumerate(zip(*spaces, strict=True)):
        causal = dims == 3 and i == 0 and m > 1 and n % m != 0 and (n - 1) % (m - 1) == 0
        if n % m and not causal:
            return None
        factor.append((n - 1) // (m - 1) if causal else n // m)
        front.append(factor[-1] - 1 if causal else 0)
    return Grid(tuple(factor), tuple(front))
