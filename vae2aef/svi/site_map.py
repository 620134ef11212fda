"""The maps of the latent sites of a Pyro guide, h and n^-1: made once, from the shapes seen."""

import zlib
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from vae2aef.core import LinearFeatures, NoFeatures
from vae2aef.errors import WrapError
from vae2aef.fan_in import FanInLinear
from vae2aef.flows import Bijection
from vae2aef.protocols import Features
from vae2aef.svi.batch_axis import BatchAxis
from vae2aef.svi.sites import LocationScale, flow_core, pull, push, sum_after
from vae2aef.svi.time_steps import AllSteps, LogCounts, TimeStep
from vae2aef.tensors import numel
from vae2aef.wrapping.options import build_flow

CORES = ("linear", "step", "sum", "log")
PARTITION = ("center", "corner", "random")

GUIDES_OWN = "; the guide's own, sigma = 1"

LARGE = 100.0
"""Beyond this, print(elbo) says that h reads large values."""


class SiteMap(nn.Module):
    """What is added for one site: h and n^-1.

    Args:
        features: h, maps data `(batch, *event)` to `(batch, *latent)`.
        flow: n^-1.
        batch: where the data's batch is in the site.

    Attributes:
        sigma: 1 where there is no h, and the site is the guide's own; None where the noise may be chosen.
    """

    features: Features
    flow: Bijection

    def __init__(self, features: Features, flow: Bijection, batch: BatchAxis) -> None:
        super().__init__()
        self.features = features
        self.flow = flow
        self.batch = batch
        self.sigma = 1.0 if isinstance(features, NoFeatures) else None

    def core(self, data: Tensor, shape: torch.Size) -> Tensor:
        """Return h(x) in the shape of the site, `(*batch, *core)`.

        Raises:
            WrapError: if it has another shape than when the site was first met.
        """
        latent = self.batch.latent_shape
        extra = self.batch.require_shape(shape, data.shape[0])
        w = self.features(data)
        if w.shape != (data.shape[0], *latent):
            raise WrapError(
                f'site "{self.batch.site}": expected the core module to return {(data.shape[0], *latent)}, one value '
                f"for each latent dimension, got {tuple(w.shape)}"
            )
        return w.to(data.dtype).movedim(0, len(shape) + self.batch.axis - extra).expand(shape)

    def forward(self, site: LocationScale, core: Tensor, batch_dims: int) -> tuple[Tensor, Tensor]:
        """Map w, `(*batch, *core)`, to z, with log|det dz/dw|, `(*batch)` in nats."""
        axis = core.dim() + self.batch.axis
        u, log_det = flow_core(self.flow, core, batch_dims, axis)
        z, changes = push(self.batch.site, site, u)
        return z, log_det + sum(sum_after(change, batch_dims) for change in changes)

    def back(self, site: LocationScale, z: Tensor, batch_dims: int) -> tuple[Tensor, Tensor]:
        """Map z to w, `(*batch, *core)`, with log|det dz/dw|, `(*batch)` in nats: the inverse of `forward`.

        Raises:
            WrapError: for a posterior transform without an inverse; names the site.
        """
        axis = site.loc.dim() + self.batch.axis
        u, changes = pull(self.batch.site, site, z)
        w, log_det = flow_core(self.flow.inverse, u, batch_dims, axis)
        return w, sum((sum_after(change, batch_dims) for change in changes), -log_det)


def build_map(
    options: Any,
    data: Tensor,
    site: LocationScale,
    batch_dims: int,
    batch: BatchAxis,
    step: int | None = None,
    varying: str | None = None,
) -> tuple[SiteMap, str]:
    """Make h and n^-1 for a site; say what h reads where that is not all of the data.

    Args:
        options: with `core` and `core_flow`, as `vae2aef.aef_guide` takes them.
        data: what h reads.
        site: from `read_site`.
        batch_dims: how many of the site's dimensions are batch.
        batch: where the data's batch is, and the site's name.
        step: the time step of the site, if it is one of a sequence.
        varying: how sequences differ in length: "ragged", "masked", or None.

    Raises:
        WrapError: for an option that has no meaning for a site; names the site.
    """
    core = _for_site(batch.site, "core", options.core)
    core_flow = _for_site(batch.site, "core_flow", options.core_flow)
    core_flow = "none" if core_flow is None else core_flow
    features, reads = _features(core, data, batch, step, varying)
    axis = site.loc.dim() + batch.axis
    inner = [size for i, size in enumerate(site.loc.shape) if i >= batch_dims and i != axis]
    flow = build_flow(core_flow, numel(inner))
    # Permutations and gains are no parameters, so Pyro's store does not save them: the first follow from the site's
    # name instead, the second are 1.
    for i, layer in enumerate(flow.modules()):
        if isinstance(layer, FanInLinear) and isinstance(core_flow, str):
            layer.fold()
        order = getattr(layer, "permutation", None)
        if isinstance(order, Tensor) and isinstance(core_flow, str):
            generator = torch.Generator().manual_seed(zlib.crc32(f"{batch.site}/{i}".encode()))
            order.copy_(torch.randperm(len(order), generator=generator))
    return SiteMap(features, flow, batch).to(device=site.loc.device, dtype=site.loc.dtype), reads


def _features(core: Any, data: Tensor, batch: BatchAxis, step: int | None, varying: str | None) -> tuple[Features, str]:
    """Return h of a site, and what it reads where that is not all of the data."""
    latent, event = batch.latent_shape, data.shape[1:]
    if isinstance(core, nn.Module):
        return core, ""
    if isinstance(core, str) and core == "noise":
        return NoFeatures(latent), GUIDES_OWN
    _require_readable(core, data, batch.site, step, varying)
    if core == "linear":
        core = _linear(step, varying)
    if core == "step":
        return TimeStep(LinearFeatures(event[1:], latent), int(step or 0)), f"; h reads time step {step}"
    if core == "sum":
        return AllSteps(LinearFeatures(event[1:], latent)), "; h reads the sum over time steps"
    if core == "log":
        return LogCounts(LinearFeatures(event, latent)), "; h reads log(1 + x)"
    return LinearFeatures(event, latent), _of_large(data)


def _linear(step: int | None, varying: str | None) -> str:
    """Return what `"linear"` reads: of sequences that differ in length, a time step or the sum."""
    if varying is not None and step is not None:
        return "step"
    return "sum" if varying == "ragged" else "linear"


def _require_readable(core: Any, data: Tensor, site: str, step: int | None, varying: str | None) -> None:
    if isinstance(core, Tensor) or core in PARTITION:
        raise WrapError(
            f'site "{site}": a core that is part of the data is exact for one latent, and needs an AEF; ',
            "use vae2aef.from_pyro(model, guide, ..., core=...)",
        )
    if core not in CORES:
        listed = ", ".join(f'"{word}"' for word in CORES)
        raise WrapError(f'site "{site}": expected core {listed}, "noise" or a module, got {core!r}')
    if core == "step" and step is None:
        raise WrapError(
            f'site "{site}": core="step" is for sites z_1, z_2, ..., one for each of the {tuple(data.shape[1:2])} time '
            "steps of the data; ",
            'use core="linear" for this one',
        )
    if core == "sum" and step is None and varying is None and data.dim() < 3:
        raise WrapError(
            f'site "{site}": core="sum" is of the time steps of sequences, (rows, steps, ...), and the data have the '
            f"shape {tuple(data.shape)}; ",
            'use core="linear"',
        )
    if core == "log" and bool((data < 0).any()):
        raise WrapError(
            f'site "{site}": core="log" reads log(1 + x) of counts, and the data go below 0; ', 'use core="linear"'
        )


def _of_large(data: Tensor) -> str:
    large = float(data.detach().abs().max()) if data.numel() else 0.0
    return f'; h reads values up to {large:.4g}: of counts, core="log" reads log(1 + x)' if large > LARGE else ""


def _for_site(name: str, option: str, value: Any) -> Any:
    if not isinstance(value, Mapping) or isinstance(value, nn.Module):
        return value
    if name not in value:
        raise WrapError(f'site "{name}": {option}= is a dict without it; it has {sorted(value)}')
    return value[name]
