"""The two effect handlers of `AEF_ELBO`: one gives the guide's sites their values, one watches the model's data."""

from collections.abc import Callable
from typing import Any

import pyro.distributions as dist
import torch
from pyro.distributions.torch_distribution import MaskedDistribution
from pyro.poutine.messenger import Messenger
from torch import Tensor

from vae2aef.errors import WrapError
from vae2aef.residual import Residual
from vae2aef.svi.cores import SiteCore, perturb
from vae2aef.svi.sites import CoreSite, LocationScale, read_site

Core = Callable[[str, SiteCore, LocationScale, int, Tensor], tuple[Tensor, Tensor]]
"""`(name, cores, site, batch_dims, h(x))` gives w and an entropy (or minus a log density of w), `(*batch)`."""


class UnknownSite(Exception):
    """A site of the guide was met for the first time: look at the guide before going on."""


def noisy_core(noise: float) -> Core:
    """Return the core variables of the loss: h(x) + sigma epsilon, with the entropy of it."""

    def core(_name: str, _cores: SiteCore, site: LocationScale, dims: int, w: Tensor) -> tuple[Tensor, Tensor]:
        return perturb(w, site, noise, dims)

    return core


class GuideHandler(Messenger):
    """Give every AEF site of a guide the value g_m + g_s n^-1(w) instead of a draw.

    Args:
        cores: h and n^-1 for the sites that are mapped; None for those that are left to Pyro.
        data: what h reads, shape `(rows, *event)`.
        core: makes w of h(x).
    """

    def __init__(self, cores: dict[str, SiteCore | None], data: Tensor, core: Core) -> None:
        super().__init__()
        self.cores, self.data, self.core = cores, data, core
        self.indices: dict[str, Tensor] = {}
        self.seen: dict[str, Tensor] = {}

    def _pyro_sample(self, msg: Any) -> None:
        if msg["is_observed"] or msg["done"] or is_subsample(msg["fn"]):
            return
        name, fn = msg["name"], msg["fn"]
        if name not in self.cores:
            raise UnknownSite(name)
        cores = self.cores[name]
        if cores is None:
            return
        site = read_site(fn)
        if site is None:
            raise WrapError(
                f'site "{name}": it was a location-scale family before, and is a {type(fn).__name__} now; give '
                "different sites different names"
            )
        dims = len(fn.batch_shape)
        w = cores.core(self.rows(cores), site.loc.shape)
        w, entropy = self.core(name, cores, site, dims, w)
        value, log_det = cores(site, w, dims)
        self.seen[name] = value
        replaced = CoreSite(fn, value, (log_det + entropy).expand(fn.batch_shape))
        msg["fn"] = replaced if site.mask is None else replaced.mask(mask_of_batch(name, site.mask, dims))
        msg["value"] = value
        msg["done"] = True

    def _pyro_post_sample(self, msg: Any) -> None:
        if is_subsample(msg["fn"]):
            self.indices[msg["name"]] = msg["value"]

    def rows(self, cores: SiteCore) -> Tensor:
        """Return the rows of the data that the site's plate has drawn."""
        index = self.indices.get(cores.placement.plate or "")
        if index is None or len(index) == self.data.shape[0]:
            return self.data
        return self.data[index]


def is_subsample(fn: Any) -> bool:
    """Whether it is the pretended distribution by which Pyro's plates draw their rows."""
    return type(fn).__name__ == "_Subsample"


def gaussian_scale(values: Tensor, event_shape: torch.Size) -> Residual:
    """Return the residual of an observed site made Gaussian: a learned scale a feature, from the data's spread on."""
    spread = float(values.std(correction=0).clamp(1e-2, 1e2)) if values.numel() else 1.0
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


def mask_of_batch(name: str, mask: Any, batch_dims: int) -> Any:
    """Bring a mask to the batch dimensions of a site.

    `Normal(...).mask(m).to_event(1)` masks each latent dimension, as Pyro's deep Markov model tutorial writes it, with
    a mask that is the same for all dimensions of a row.

    Raises:
        WrapError: if it is not the same: the core flow mixes the dimensions, so they have no terms of their own.
    """
    if isinstance(mask, bool) or mask.dim() <= batch_dims:
        return mask
    flat = mask.flatten(batch_dims)
    if not torch.equal(flat.all(-1), flat.any(-1)):
        raise WrapError(
            f'site "{name}": its mask differs between the dimensions of one event, which have no terms of their own '
            "under a flow; mask whole events: Normal(...).to_event(1).mask(m), with one m a row"
        )
    return flat.all(-1)
