"""What h reads of the data: of a sequence, the time step of the site, or all; of counts, their logarithms."""

import re
from collections.abc import Iterable

from torch import Tensor, nn

from vae2aef.protocols import Features


def time_steps(names: Iterable[str], length: int) -> dict[str, int]:
    """Return the time step of each site that is one of a sequence: as many as the data have, numbered at the end.

    Args:
        names: the latent sites of a guide.
        length: how many time steps the data have.

    Example:
        >>> time_steps(["z_1", "z_2", "global"], 2)
        {'z_1': 0, 'z_2': 1}
    """
    groups: dict[str, list[tuple[int, str]]] = {}
    for name in names:
        match = re.fullmatch(r"(.*?)(\d+)", name)
        if match:
            groups.setdefault(match[1], []).append((int(match[2]), name))
    found = {}
    for group in groups.values():
        if len(group) == length:
            found.update({name: step for step, (_, name) in enumerate(sorted(group))})
    return found


class TimeStep(nn.Module):
    """Features of one time step: h(x) = inner(x[:, step]).

    Args:
        inner: maps one step, `(batch, *event)`, to `(batch, *latent)`.
        step: which.
    """

    def __init__(self, inner: Features, step: int) -> None:
        super().__init__()
        self.inner, self.step = inner, step

    def forward(self, x: Tensor) -> Tensor:
        """Map sequences `(batch, steps, *event)` to features `(batch, *latent)`."""
        return self.inner(x[:, self.step])


class LogCounts(nn.Module):
    """Features of counts: h(x) = inner(log(1 + x)). A step of an optimizer moves W x by thousands where x is so large.

    Args:
        inner: maps `(batch, *event)` to `(batch, *latent)`.
    """

    def __init__(self, inner: Features) -> None:
        super().__init__()
        self.inner = inner

    def forward(self, x: Tensor) -> Tensor:
        """Map counts `(batch, *event)` to features `(batch, *latent)`."""
        return self.inner(x.log1p())


class AllSteps(nn.Module):
    """Features of a sequence of any length: h(x) = inner(sum over time steps), to which filled-up steps add nothing.

    Args:
        inner: maps one step, `(batch, *event)`, to `(batch, *latent)`.
    """

    def __init__(self, inner: Features) -> None:
        super().__init__()
        self.inner = inner

    def forward(self, x: Tensor) -> Tensor:
        """Map sequences `(batch, steps, *event)` to features `(batch, *latent)`."""
        return self.inner(x.sum(1))
