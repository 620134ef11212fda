"""What is added for each latent: which core `wrap(core=...)` names, made into a module, with its core flow."""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from vae2aef.chain import Site
from vae2aef.core import Expansion, LinearFeatures, NoFeatures, Partition, PatchFeatures, partition_mask
from vae2aef.errors import WrapError
from vae2aef.features import NormalizedFeatures
from vae2aef.flows import Each
from vae2aef.grids import Grid
from vae2aef.likelihood import Likelihood
from vae2aef.parts import VAEParts
from vae2aef.program import VAEProgram
from vae2aef.tensors import numel
from vae2aef.wrapping.look import Seen
from vae2aef.wrapping.options import build_flow, is_ours
from vae2aef.wrapping.room import require_memory
from vae2aef.wrapping.sigma import sigma_of


def read_core(core: Any) -> Any:
    """Take a mask of numpy, or of anything that says how to become an array, as a tensor."""
    is_array = hasattr(core, "__array__") and not isinstance(core, (Tensor, str))
    return torch.as_tensor(core) if is_array else core


def build_sites(
    core: Any, core_flow: Any, noise: float | None, parts: VAEParts, seen: Seen, x: Tensor, likelihood: Any = None
) -> dict[str, Site]:
    """Make what is added for each latent.

    Args:
        core: as in `wrap`; for several latents it may be a dict by name.
        core_flow: likewise.
        noise: sigma; None for the default of each core.
        parts: of the VAE.
        seen: what a look at the example showed.
        x: the example as the VAE sees it.
        likelihood: of the AEF.

    Raises:
        WrapError: for a dict that leaves a latent out, or a partition where there are several latents or x is discrete.
    """
    several = isinstance(parts, VAEProgram)
    sites = {}
    for name, latent in seen.latents.items():
        own_core = _of_latent(core, name, "core", several)
        own_flow = flow_of(_of_latent(core_flow, name, "core_flow", several), own_core)
        outer = parts.outer_dims(name) if isinstance(parts, VAEProgram) else 0
        grid = seen.grids.get(name) if is_local(own_core) and not outer else None
        if several and is_partition(own_core):
            raise WrapError(
                f"core={own_core!r}: the partition family takes its one latent out of the data, and this VAE has "
                f"{len(seen.latents)} latents; ",
                'use core="linear"',
            )
        if is_partition(own_core) and getattr(likelihood, "discrete", seen.discrete):
            raise WrapError(
                f"core={own_core!r}: a core that is part of the data needs continuous data, and the likelihood is of "
                "discrete ones; ",
                'use core="linear"',
            )
        read = likelihood.features(seen.event_shape) if isinstance(likelihood, Likelihood) else None
        sigma = sigma_of(own_core, None if _is_vae(core, own_core) else noise, is_partition(own_core))
        the_core = build_core(own_core, seen, latent, sigma, read, x, grid)
        flow = build_flow(own_flow, numel(latent[outer:]), channels=None if grid is None else (latent[0], grid.dims))
        sites[name] = Site(the_core, Each(flow, outer) if outer else flow)
        # What the user made keeps its dtype; what was made here takes that of the data, for a VAE in float64.
        for part, option in ((sites[name].core, own_core), (sites[name].flow, own_flow)):
            if is_ours(option):
                part.to(seen.dtype)
    return sites


def _is_vae(core: Any, own_core: Any) -> bool:
    """Whether a latent of several is the VAE's own, whatever the noise of the others."""
    return isinstance(core, Mapping) and isinstance(own_core, str) and own_core == "noise"


def _of_latent(option: Any, name: str, what: str, several: bool) -> Any:
    if not several or not isinstance(option, Mapping) or isinstance(option, nn.Module):
        return option
    if name not in option:
        raise WrapError(f'latent "{name}": {what}= is a dict without it; it has {sorted(option)}')
    return option[name]


def flow_of(core_flow: Any, core: Any) -> Any:
    """Return the core flow as given, also by name; without one `"coupling"` in the partition family, else `"none"`."""
    if isinstance(core_flow, Mapping):
        return {
            name: flow_of(flow, core.get(name) if isinstance(core, Mapping) else core)
            for name, flow in core_flow.items()
        }
    return core_flow if core_flow is not None else "coupling" if is_partition(core) else "none"


def resolve_core(core: Any, parts: VAEParts, seen: Seen) -> tuple[Any, Seen]:
    """Say which features None stands for: local ones for a latent that is a grid, else the dense map of the paper.

    Returns:
        The option, a dict by name where latents differ or it was one; and what was seen, with `local` set.
    """
    program = parts if isinstance(parts, VAEProgram) else None
    grids = {name: grid for name, grid in seen.grids.items() if program is None or not program.outer_dims(name)}
    found = {}
    for name in seen.latents:
        own = _of_latent(core, name, "core", program is not None)
        found[name] = own if own is not None else ("patch" if name in grids else "linear")
    local = all(name in grids and is_local(own) for name, own in found.items())
    alike = not isinstance(core, Mapping) and all(own is next(iter(found.values())) for own in found.values())
    return (next(iter(found.values())) if alike else found), seen._replace(grids=grids, local=local)


def is_local(core: Any) -> bool:
    """Whether an option leaves a latent that is a grid its grid: dense maps and the partition do not."""
    return not is_partition(core) and not (isinstance(core, str) and core in ("linear", "normalized"))


def is_partition(core: Any) -> bool:
    """Whether an option names the partition family."""
    return isinstance(core, Tensor) or (isinstance(core, str) and core in ("center", "corner", "random"))


def build_core(
    core: Any,
    seen: Seen,
    latent: torch.Size,
    noise: float,
    read: nn.Module | None = None,
    x: Tensor | None = None,
    grid: Grid | None = None,
) -> Expansion | Partition:
    """Make the core that `wrap(core=...)` names, for a latent of shape `latent`.

    Linear and local features are of `read(x)`; their center and scale are those of the example x. `grid` says how the
    latent lies on the data.
    """
    event = seen.event_shape
    if is_partition(core):
        if noise:
            raise ValueError(f"the partition family has an exact likelihood and takes no noise, got noise={noise}")
        if seen.flow:
            raise WrapError(
                "a partition core cannot be generated through a posterior flow, and this VAE's posterior has one: ",
                'use core="linear"',
            )
        mask = core if isinstance(core, Tensor) else partition_mask(core, event, numel(latent))
        if mask.shape != event:
            raise WrapError(f"expected a core mask of the data's shape {tuple(event)}, got {tuple(mask.shape)}")
        return Partition(mask, latent)
    if isinstance(core, nn.Module):
        return Expansion(core, latent, noise)
    if core == "linear":
        require_memory(numel(event), numel(latent), x)
        return Expansion(LinearFeatures(event, latent, read, x), latent, noise)
    if core == "normalized":
        require_memory(numel(event), numel(latent), x)
        return Expansion(NormalizedFeatures(event, latent, read, x), latent, noise)
    if core == "patch":
        if grid is None:
            raise WrapError(
                f'core="patch" needs a latent (channels, *grid) whose grid divides that of the data; here the latent '
                f"has the shape {tuple(latent)}, the data {tuple(event)}; ",
                'use core="linear", or a module of your own',
            )
        return Expansion(PatchFeatures(event, latent[0], grid, read, x), latent, noise)
    if core == "noise":
        if noise not in (0.0, 1.0):
            raise ValueError(f'core="noise" is the VAE itself, whose noise is 1 by definition; got noise={noise}')
        return Expansion(NoFeatures(latent, grid), latent, 1.0)
    expected = (
        'expected core "linear", "patch", "normalized", "noise", "center", "corner", "random", a mask or a module'
    )
    raise ValueError(f"{expected}; got {core!r}")
