"""Where the data's batch is among the dimensions of a latent site of a Pyro guide."""

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from vae2aef.errors import WrapError

PARTICLES = "num_particles_vectorized"
"""The name of the plate that Pyro puts around model and guide for `vectorize_particles`."""


class BatchAxis(NamedTuple):
    """Where the data's batch is among the dimensions of a site's core variables.

    Attributes:
        site: the name of the site.
        axis: the axis of the batch, counted from the right.
        plate: the name of the plate it comes from; None if it was found by its size.
        latent_shape: the shape of the core variables of one datum: all other axes, particles left out.
    """

    site: str
    axis: int
    plate: str | None
    latent_shape: torch.Size

    def first(self, values: Tensor) -> Tensor:
        """Return values in the shape of the site with the batch as their first dimension."""
        return values.movedim(values.dim() + self.axis, 0)

    def back(self, values: Tensor) -> Tensor:
        """Undo `first`."""
        return values.movedim(0, values.dim() + self.axis)

    def require_shape(self, shape: torch.Size, rows: int) -> int:
        """Refuse a site whose shape is another than when it was first met; return how many dimensions are particles.

        Raises:
            WrapError: says both shapes.
        """
        axis = len(shape) + self.axis
        others = [i for i in range(len(shape)) if i != axis]
        extra = len(others) - len(self.latent_shape)  # particles, to the left of everything
        seen = torch.Size(shape[i] for i in others[extra:])
        if extra < 0 or seen != self.latent_shape or shape[axis] != rows:
            raise WrapError(
                f'site "{self.site}": its core variables had the shape {tuple(self.latent_shape)} for each datum when '
                f"it was first met, and now the site has the shape {tuple(shape)} for {rows} data; a site's shape "
                "must not change but in the batch: ",
                "use a name for each shape, or padding and a mask",
            )
        return extra


def find_batch_axis(
    name: str, core: Sequence[int], batch_dims: int, frames: Any, rows: int, plate: str | None
) -> BatchAxis:
    """Find the axis of the data's batch in a site.

    Args:
        name: the site.
        core: shape of its core variables.
        batch_dims: how many of these dimensions are batch.
        frames: `cond_indep_stack` of the site.
        rows: the leading size of the data.
        plate: the name of the data's plate, if the user gave it.

    Raises:
        WrapError: if the axis is not found, or there are several; names the site and the fix.
    """
    particles = [batch_dims + f.dim for f in frames if f.name == PARTICLES]
    frames = sized([f for f in frames if f.vectorized and f.name != PARTICLES], core[:batch_dims])
    frame = batch_frame(name, frames, rows, plate)
    axis = _axis_of_size(name, core, rows, particles, frames) if frame is None else batch_dims + frame.dim
    drop = {axis, *particles}
    latent = torch.Size(size for i, size in enumerate(core) if i not in drop)
    return BatchAxis(name, axis - len(core), None if frame is None else frame.name, latent)


def sized(frames: list[Any], batch_shape: Sequence[int]) -> list[Any]:
    """Give plates without a size that of the site at their dimension."""
    known = [f.size >= 0 or -f.dim > len(batch_shape) for f in frames]
    return [f if k else f._replace(size=batch_shape[f.dim]) for f, k in zip(frames, known, strict=True)]


def batch_frame(name: str, frames: list[Any], rows: int, plate: str | None) -> Any:
    """Find the plate of the data's batch: the one that was named, or the one of its size; None if there is none.

    Raises:
        WrapError: if several fit, or the one that was named does not; names the site and the fix.
    """
    named = frames if plate is None else [f for f in frames if f.name == plate]
    fitting = [f for f in named if f.size == rows] or [f for f in named if f.full_size == rows]
    if plate is not None and not fitting:
        raise WrapError(
            f'site "{name}": expected it inside the plate "{plate}" with {rows} rows, which is the leading size of '
            f"the data; its plates are {_listed(frames)}"
        )
    if len(fitting) > 1:
        raise WrapError(
            f'site "{name}": which plate holds the batch of {rows} data? {_listed(fitting)} all fit; ',
            'pass plate="..."',
        )
    return fitting[0] if fitting else None


def outside_plate(name: str) -> WrapError:
    """Return the error of a site whose density cannot be told apart by row."""
    return WrapError(
        f'site "{name}": a density of each datum needs it inside the data\'s plate, ',
        'with pyro.plate("data", x.shape[0])',
    )


def _axis_of_size(name: str, core: Sequence[int], rows: int, particles: list[int], frames: list[Any]) -> int:
    """Find the first axis that is as long as the data's batch."""
    sizes = [i for i, size in enumerate(core) if size == rows and i not in particles]
    if not sizes:
        raise WrapError(
            f'site "{name}": the batch dimension is not found. The data have {rows} rows, the site has the shape '
            f"{tuple(core)} and the plates {_listed(frames)}. ",
            'Put the site inside pyro.plate("data", x.shape[0]), or name the data it encodes with data=',
        )
    return sizes[0]


def _listed(frames: list[Any]) -> str:
    return ", ".join(f'"{f.name}" (size {f.size}, dim {f.dim})' for f in frames) or "none"
