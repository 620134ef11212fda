"""The two effect handlers of an AEF guide: one gives the guide's sites their values, one watches the model's data."""

from collections.abc import Callable
from typing import Any

import pyro.distributions as dist
import torch
from pyro.distributions.torch_distribution import MaskedDistribution
from pyro.poutine.messenger import Messenger
from torch import Tensor

from vae2aef.errors import WrapError
from vae2aef.residual import Residual
from vae2aef.svi.guide_maps import GuideMaps
from vae2aef.svi.mapped import MappedSite
from vae2aef.svi.sites import is_subsample, mask_of_batch, read_site


class GuideHandler(Messenger):
    """Draw every AEF site of a guide from its `MappedSite`.

    What Pyro does to a site from outside, it does to that: more particles, enumeration, a value from elsewhere.

    Args:
        maps: what is known of the guide's sites.
        data: what h reads, shape `(rows, *event)`.
        meet: called with the name of a site that is not known yet, to make it known.
        entropy: what the sites' log densities are; see `MappedSite`.
    """

    def __init__(self, maps: GuideMaps, data: Tensor, meet: Callable[[str], None], entropy: str) -> None:
        super().__init__()
        self.maps, self.data, self.meet, self.entropy = maps, data, meet, entropy
        self.indices: dict[str, Tensor] = {}

    def _pyro_sample(self, msg: Any) -> None:
        if msg["is_observed"] or msg["done"] or is_subsample(msg["fn"]):
            return
        name, fn = msg["name"], msg["fn"]
        if name not in self.maps.maps:
            self.meet(name)
        site_map = self.maps.maps[name]
        if site_map is None:
            return
        site = read_site(fn)
        if site is None:
            raise WrapError(
                f'site "{name}": it was a location-scale family before, and is a {type(fn).__name__} now; ',
                "give different sites different names",
            )
        rows = self.rows(site_map.batch.plate)
        if {rows.dtype, site.loc.dtype} == {torch.float32, torch.float64}:  # h computes as the site does
            rows = rows.to(site.loc.dtype)
        sigma = self.maps.noise if site_map.sigma is None else site_map.sigma
        mapped = MappedSite(fn, site, site_map, rows, sigma, self.entropy)
        msg["fn"] = mapped if site.mask is None else mapped.mask(mask_of_batch(name, site.mask, len(fn.batch_shape)))

    def _pyro_post_sample(self, msg: Any) -> None:
        if is_subsample(msg["fn"]):
            self.indices[msg["name"]] = msg["value"]

    def rows(self, plate: str | None) -> Tensor:
        """Return the rows of the data that a plate has drawn."""
        index = self.indices.get(plate or "")
        if index is None or len(index) == self.data.shape[0]:
            return self.data
        return self.data[index]


def gaussian_scale(values: Tensor, event_shape: torch.Size) -> Residual:
    """Return the residual of an observed site made Gaussian: a learned scale a feature, from the data's spread on."""
    spread = float(values.detach().std(correction=0).clamp(1e-2, 1e2)) if values.numel() else 1.0
    return Residual(event_shape, initial_scale=spread).to(values)


class ModelHandler(Messenger):
    """Replace the density of chosen observed sites by a Gaussian around its mean (`observed="gaussian"`).

    Args:
        scales: the residual density of each of these sites, whose learned scale is taken.
    """

    def __init__(self, scales: dict[str, Residual]) -> None:
        super().__init__()
        self.scales = scales

    def _pyro_sample(self, msg: Any) -> None:
        if msg["is_observed"] and msg["name"] in self.scales:
            msg["fn"] = gaussian_around_mean(msg["fn"], self.scales[msg["name"]].scale())
            msg["value"] = msg["value"].to(msg["fn"].mean)


def gaussian_around_mean(fn: Any, scale: Tensor) -> Any:
    """Return a Gaussian with the mean of `fn`, its shapes, and its masks where it has them."""
    if isinstance(fn, torch.distributions.Independent):
        return gaussian_around_mean(fn.base_dist, scale).to_event(fn.reinterpreted_batch_ndims)
    if isinstance(fn, MaskedDistribution):
        return gaussian_around_mean(fn.base_dist, scale).mask(fn._mask)
    return dist.Normal(fn.mean, scale.expand_as(fn.mean), validate_args=False)
