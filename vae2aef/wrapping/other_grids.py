"""Whether a VAE takes data on other grids than the example's: it is run on one."""

from collections.abc import Sequence

import torch
from torch import Tensor

from vae2aef.aef import AEF
from vae2aef.batch import Batch
from vae2aef.grids import Grid
from vae2aef.parts import VAEParts
from vae2aef.program import VAEProgram
from vae2aef.wrapping.trial import trial


def encodes_other_lengths(vae: object, parts: VAEParts, batch: Batch, grid: Grid) -> bool:
    """Whether the encoder makes of longer data the latent that belongs to them.

    Of a row of features, `(batch, 5, 8)` say, the shapes of data and latent alone do not tell whether it is a sequence.
    """
    other = _on_another_grid(batch, grid)
    with trial(batch.x.device, vae, parts):
        try:
            found = parts.encode(other.x, *other.cond, **other.kwargs).loc
        except Exception:  # whatever the user's code raises: it does not take it
            return False
    return found.shape[2:] == torch.Size(grid.latent(other.x.shape[2:]))


def allow_other_grids(aef: AEF, batch: Batch, grids: dict[str, Grid]) -> str | None:
    """Let an AEF take data on other grids if its whole loss, encodings and samples can be computed on one.

    Args:
        aef: as `wrap` has made it.
        batch: data as the VAE sees it, `(batch, *event)`, with conditions.
        grids: of each latent, all of whose features are local.

    Returns:
        Why it does not, in words; None if it does.
    """
    other = _on_another_grid(batch, next(iter(grids.values())))
    aef.grids = grids
    try:
        with trial(batch.x.device, aef, aef.parts):
            _run(aef, other)
    except Exception as error:  # of the user's networks or of a part that has a value for each position
        aef.grids = {}
        said = str(error).split("\n")[0]
        return f"{type(error).__name__}: {said[:120]}" if said else type(error).__name__
    return None


def _run(aef: AEF, other: Batch) -> None:
    for grid in aef.grids.values():
        grid.latent(other.x.shape[2:])
    core, shell = aef.split(other.x)
    joint = aef.chain(other._replace(x=shell), core, aef.noisy)
    for name, grid in aef.grids.items():
        _require_grid(f"the latent {name}", joint.z[name], grid.latent(other.x.shape[2:]))
    if isinstance(joint.decoded.mean, Tensor):
        _require_grid("the reconstruction", aef.mean(joint.decoded, other.size), other.x.shape[2:])
    if not isinstance(aef.parts, VAEProgram):
        decoded = aef.parts.decode(joint.z["z"], *other.cond, **other.kwargs)
        _require_grid("the decoded latent", aef.mean(decoded, other.size), other.x.shape[2:])


def _require_grid(what: str, values: object, grid: Sequence[int]) -> None:
    if isinstance(values, Tensor) and values.shape[2:] != torch.Size(grid):
        raise ValueError(f"{what} has the grid {tuple(values.shape[2:])}, expected {tuple(grid)}")


def _on_another_grid(batch: Batch, grid: Grid) -> Batch:
    """Return one row that is larger by one or two patches along each dimension, by repeating its beginning."""
    one = batch.head(1).detach()
    x = one.x
    for i, factor in enumerate(grid.factor):
        n = x.shape[2 + i]
        take = torch.arange(n + factor * (1 + i % 2), device=x.device) % n
        x = x.index_select(2 + i, take)
    return one._replace(x=x)
