"""The maps of the latent sites of a Pyro guide, h and n^-1: made once, from the shapes seen."""

import zlib
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from vae2aef.core import LinearFeatures, NoFeatures
from vae2aef.errors import WrapError
from vae2aef.fan_in import FanInLinear
from vae2aef.svi.batch_axis import BatchAxis
from vae2aef.svi.sites import LocationScale, flow_core, push, sum_after
from vae2aef.tensors import numel
from vae2aef.wrapping.options import build_flow


class SiteMap(nn.Module):
    """What is added for one site: h and n^-1.

    Args:
        features: h, maps data `(batch, *event)` to `(batch, *latent)`.
        flow: n^-1.
        batch: where the data's batch is in the site.
    """

    def __init__(self, features: nn.Module, flow: nn.Module, batch: BatchAxis) -> None:
        super().__init__()
        self.features = features
        self.flow = flow
        self.batch = batch

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
        u, log_det = flow_core(self.flow, core, batch_dims, axis)  # type: ignore[arg-type]
        z, changes = push(self.batch.site, site, u)
        return z, log_det + sum(sum_after(change, batch_dims) for change in changes)


def perturb(core: Tensor, site: LocationScale, noise: float, batch_dims: int) -> tuple[Tensor, Tensor]:
    """Add noise to core variables: w + sigma epsilon, epsilon from the site's own standard distribution (Eq. 11).

    With the site's own distribution instead of a Gaussian, h = 0 and sigma = 1 is the guide itself, whatever its
    family.

    Args:
        core: w, shape `(*batch, *core)`.
        site: from `read_site`.
        noise: sigma.
        batch_dims: how many of the dimensions are batch.

    Returns:
        The noisy w, and its entropy given x in nats, shape `(*batch)`; zero at sigma = 0.
    """
    if not noise:
        return core, core.new_zeros(core.shape[:batch_dims])
    epsilon = site.standard.rsample()
    entropy = (site.standard.entropy() + torch.log(core.new_tensor(noise))).expand(core.shape)
    return core + noise * epsilon, sum_after(entropy, batch_dims)


def build_map(
    core: Any, core_flow: Any, event: Sequence[int], site: LocationScale, batch_dims: int, batch: BatchAxis
) -> SiteMap:
    """Make h and n^-1 for a site.

    Args:
        core: `"linear"`, `"noise"` or a module, or a dict of these by site.
        core_flow: anything `vae2aef.wrap(core_flow=)` takes, or a dict of these by site.
        event: shape of one datum.
        site: from `read_site`.
        batch_dims: how many of the site's dimensions are batch.
        batch: where the data's batch is, and the site's name.

    Raises:
        WrapError: for an option that has no meaning for a site; names the site.
    """
    name, latent = batch.site, batch.latent_shape
    core, core_flow = _for_site(name, "core", core), _for_site(name, "core_flow", core_flow)
    if isinstance(core, nn.Module):
        features = core
    elif core == "linear":
        features = LinearFeatures(event, latent)
    elif core == "noise":
        features = NoFeatures(latent)
    else:
        raise WrapError(
            f'site "{name}": expected core "linear", "noise" or a module, got {core!r}. The partition family '
            '("center", "corner", "random", a mask) needs an AEF: vae2aef.from_pyro(model, guide, ..., core=...)'
        )
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
            generator = torch.Generator().manual_seed(zlib.crc32(f"{name}/{i}".encode()))
            order.copy_(torch.randperm(len(order), generator=generator))
    return SiteMap(features, flow, batch).to(device=site.loc.device, dtype=site.loc.dtype)


def _for_site(name: str, option: str, value: Any) -> Any:
    if not isinstance(value, Mapping) or isinstance(value, nn.Module):
        return value
    if name not in value:
        raise WrapError(f'site "{name}": {option}= is a dict without it; it has {sorted(value)}')
    return value[name]
