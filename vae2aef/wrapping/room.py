"""Whether what is to be added fits into memory: asked before it is made."""

from pathlib import Path

import torch
from torch import Tensor

from vae2aef.errors import WrapError

COPIES = 4
"""A parameter, its gradient, and the two moments of Adam."""


def require_memory(values: int, latents: int, x: Tensor | None) -> None:
    """Refuse a dense map from x to the latent that could not be trained in the memory there is.

    Args:
        values: how many values x has.
        latents: how many the latent has.
        x: the example, which says the device and the dtype; None for the CPU.

    Raises:
        WrapError: with the figures, and what to pass.
    """
    device = torch.device("cpu") if x is None else x.device
    dtype = x.dtype if x is not None and x.is_floating_point() else torch.get_default_dtype()
    parameters = values * latents
    needed, free = parameters * dtype.itemsize * COPIES, free_memory(device)
    if free is not None and needed > free:
        raise WrapError(
            f"the dense map of {values:,} values of x to {latents:,} latents has {parameters:,} parameters: with "
            f"gradients and the two moments of Adam {_size(needed)}, and {_size(free)} are free on {device}; ",
            'pass core="patch" if the latent is a grid, or a module of your own, data (batch, *event) to latent shape',
        )


def free_memory(device: torch.device) -> int | None:
    """Return how many bytes are free on a device; None if that is not known."""
    if device.type == "cuda":
        return torch.cuda.mem_get_info(device)[0]
    if device.type != "cpu":
        return None
    known = [_available(Path("/proc/meminfo")), _left(Path("/sys/fs/cgroup"))]
    return min((n for n in known if n is not None), default=None)


def _available(path: Path) -> int | None:
    """What Linux says is available."""
    try:
        lines = path.read_text().splitlines()
    except OSError:
        return None
    found = [line.split()[1] for line in lines if line.startswith("MemAvailable:")]
    return int(found[0]) * 1024 if found else None


def _left(folder: Path) -> int | None:
    """What the limit of a container leaves."""
    try:
        limit = (folder / "memory.max").read_text().strip()
        used = int((folder / "memory.current").read_text())
        stat = dict(line.split() for line in (folder / "memory.stat").read_text().splitlines())
    except (OSError, ValueError):
        return None
    used -= int(stat.get("inactive_file", 0))  # of files read before, which gives way
    return max(int(limit) - used, 0) if limit.isdigit() else None


def _size(n: int) -> str:
    return f"{n / 2**30:,.1f} GiB"
