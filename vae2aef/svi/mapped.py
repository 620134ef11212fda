"""A latent site after the change of variables, as a distribution that every loss of Pyro can use."""

from typing import Any

import torch
from pyro.distributions.torch_distribution import TorchDistribution
from torch import Tensor
from torch.distributions import kl_divergence, register_kl

from vae2aef.errors import WrapError
from vae2aef.flows import Identity
from vae2aef.svi.site_map import SiteMap
from vae2aef.svi.sites import LocationScale, sum_after

ENTROPIES = ("sampled", "closed")


class MappedSite(TorchDistribution):
    """What a site of the guide is drawn from: z = T(g_m + g_s n^-1(h(x) + sigma epsilon)), (Eq. 9, 11).

    `log_prob` is what Pyro's losses take from log p(z, x). At sigma = 0 that is -log|det dz/dw|, of the one value that
    the site has. At sigma > 0 it is the log density of z given x; or, with `entropy="closed"`, its mean over epsilon
    given z's own log-determinant, -(log|det dz/dw| + entropy of sigma epsilon): the same gradients and the same mean,
    without the spread of epsilon.

    Args:
        fn: the guide's distribution.
        site: the same, taken apart.
        site_map: h and n^-1.
        data: what h reads, the rows that the site has.
        noise: sigma.
        entropy: `"sampled"` or `"closed"`.
    """

    arg_constraints: dict[str, Any] = {}  # noqa: RUF012
    has_rsample = True

    def __init__(
        self, fn: Any, site: LocationScale, site_map: SiteMap, data: Tensor, noise: float, entropy: str = "sampled"
    ) -> None:
        self.original, self.site, self.site_map, self.data = fn, site, site_map, data
        self.noise, self.entropy_kind = noise, entropy
        self.value: Tensor | None = None
        self._log_prob: Tensor | None = None
        super().__init__(fn.batch_shape, fn.event_shape, validate_args=False)

    @property
    def support(self) -> Any:
        """The support of the guide's distribution."""
        return self.original.support

    def expand(self, batch_shape: Any, _instance: Any = None) -> "MappedSite":
        """Return the same site in a larger batch: what is to the left has the same h(x), and noise of its own."""
        batch_shape = torch.Size(batch_shape)
        if batch_shape == self.batch_shape:
            return self
        site = self.site.expand(batch_shape, len(self.batch_shape))
        fn = self.original.expand(batch_shape)
        return MappedSite(fn, site, self.site_map, self.data, self.noise, self.entropy_kind)

    def rsample(self, sample_shape: Any = torch.Size()) -> Tensor:  # noqa: B008
        """Place the site, `(*sample_shape, *batch, *event)`."""
        if len(sample_shape):
            return self.expand(torch.Size(sample_shape) + self.batch_shape).rsample()
        dims = len(self.batch_shape)
        h = self.site_map.core(self.data, self.site.loc.shape)
        epsilon = self.site.standard.rsample() if self.noise else None
        w = h if epsilon is None else h + self.noise * epsilon
        self.value, log_det = self.site_map(self.site, w, dims)
        self._log_prob = (self._of_noise(epsilon) - log_det).expand(self.batch_shape)
        return self.value

    def log_prob(self, value: Tensor) -> Tensor:
        """Return what the class says, shape `(*batch)`, in nats.

        Raises:
            WrapError: at sigma = 0, for a value that the site has not placed.
        """
        if value is self.value and self._log_prob is not None:
            return self._log_prob
        batch = torch.broadcast_shapes(value.shape[: value.dim() - len(self.event_shape)], self.batch_shape)
        if batch != self.batch_shape:  # several values for each row, as where TraceEnum_ELBO draws a site many times
            return self.expand(batch).log_prob(value)
        if not self.noise:
            if self.value is None:
                self.rsample()
            if self.value is not None and self._log_prob is not None and torch.equal(self.value, value):
                return self._log_prob
            raise WrapError(
                f'site "{self.site_map.batch.site}": at noise=0 the guide places one value, and has no density for '
                "another; ",
                "set noise > 0 to score values that come from elsewhere",
            )
        dims = len(self.batch_shape)
        w, log_det = self.site_map.back(self.site, value, dims)
        h = self.site_map.core(self.data, self.site.loc.shape)
        return (self._of_noise((w - h) / self.noise) - log_det).expand(self.batch_shape)

    def in_closed_form(self) -> Any:
        """Return the density of z given x where it is one of the site's own family; else None."""
        plain = not (self.site.transforms or self.site.triangular) and isinstance(self.site_map.flow, Identity)
        if not self.noise or not plain:
            return None
        h = self.site_map.core(self.data, self.site.loc.shape)
        degrees = [] if self.site.df is None else [self.site.df]
        loc, scale = self.site.loc + self.site.scale * h, self.noise * self.site.scale
        fn = self.site.family(*degrees, loc, scale, validate_args=False)
        return torch.distributions.Independent(fn, len(self.event_shape), validate_args=False)

    def _of_noise(self, epsilon: Tensor | None) -> Tensor:
        """Return log q(w | x), or its mean, `(*batch)`; zero at sigma = 0."""
        if epsilon is None:
            return self.site.loc.new_zeros(self.batch_shape)
        standard = self.site.standard
        value = standard.log_prob(epsilon) if self.entropy_kind == "sampled" else -standard.entropy()
        return sum_after(value - torch.log(value.new_tensor(self.noise)), len(self.batch_shape))


@register_kl(MappedSite, torch.distributions.Distribution)
def _rate(p: MappedSite, q: Any) -> Tensor:
    """KL divergence in closed form, for TraceMeanField_ELBO; which draws where there is none."""
    fn = p.in_closed_form()
    if fn is None:
        raise NotImplementedError
    return kl_divergence(fn, q)
