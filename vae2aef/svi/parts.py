"""Encoder, decoder and prior of a Pyro model and guide with one latent site, for `wrap` and `from_pyro`."""

from typing import Any

import pyro
import pyro.poutine as poutine
import torch
from pyro.poutine.messenger import Messenger
from torch import Tensor, nn

from vae2aef.interop.densities import density, draw
from vae2aef.interop.torch_transforms import apply
from vae2aef.parts import Decoded, Posterior, VAEParts, to_scale
from vae2aef.svi.handlers import is_subsample
from vae2aef.svi.pair import PyroPair
from vae2aef.svi.single import base, examine
from vae2aef.svi.sites import read_site, sum_after
from vae2aef.tensors import at_least_float32, sum_event


class _Found(Exception):
    """The site that was looked for has been reached: the rest of the run is not needed."""


class _Put(Messenger):
    """Record the distributions of sites, and give latent ones a value; stop at a site if asked."""

    def __init__(self, values: dict[str, Tensor], stop: str | None = None) -> None:
        super().__init__()
        self.values, self.stop = values, stop
        self.fns: dict[str, Any] = {}

    def _pyro_sample(self, msg: Any) -> None:
        name = msg["name"]
        if is_subsample(msg["fn"]):
            return
        self.fns[name] = msg["fn"]
        if name == self.stop:
            raise _Found
        if name in self.values and not msg["is_observed"]:
            msg["value"], msg["done"] = self.values[name], True

    def run(self, part: Any, args: tuple, kwargs: dict[str, Any]) -> dict[str, Any]:
        """Run model or guide, hidden from handlers outside; return the distributions by site.

        Without Pyro's validation: the AEF's loss names what is not finite, and far-off importance samples may be.
        """
        try:
            with pyro.validation_enabled(False), poutine.block(), self:
                part(*args, **kwargs)
        except _Found:
            pass
        return self.fns


class PyroParts(VAEParts):
    """The parts of a pair with one latent site z and one observed site x.

    Args:
        pair: model and guide.
        example: data, shape `(batch, *event)`.
        cond: conditions.
        kwargs: conditions by name.
        observed: `"gaussian"` to take the mean of a discrete observed site.

    Raises:
        WrapError: for anything that makes no AEF; names the site and the fix.
        NotSingle: if there are several latent sites, or the observed density is not one around a mean.
    """

    def __init__(
        self, pair: PyroPair, example: Tensor, cond: tuple, kwargs: dict[str, Any], observed: Any = None
    ) -> None:
        self.pair = pair
        self.shape = examine(pair, example, cond, kwargs, observed)
        self.prior = PyroPrior(self)
        s = self.shape
        self.taken = (
            f'encoder: site "{s.latent}" of the Pyro guide',
            f'decoder: mean of site "{s.observed}" of the Pyro model',
            f'prior: site "{s.latent}" of the Pyro model',
        )
        if s.discrete:
            self.assumed = (f'the mean of the discrete site "{s.observed}" with a Gaussian residual, as you said',)

    def encode(self, x: Tensor, *cond: Any, **kwargs: Any) -> Posterior:
        """See `VAEParts.encode`."""
        args, named = self.pair.arguments(x, cond, kwargs)
        put = _Put({}, stop=self.shape.latent)
        fn = put.run(self.pair.own(self.pair.guide), args, named)[self.shape.latent]
        return self.posterior(fn)

    def posterior(self, fn: Any) -> Posterior:
        """Read a site of the guide as a posterior; the batch comes first."""
        site: Any = read_site(fn)
        axis = site.loc.dim() + self.shape.latent_axis
        loc = at_least_float32(site.loc.movedim(axis, 0))
        if not site.triangular and not site.transforms:
            return Posterior(loc, to_scale(site.scale.movedim(axis, 0), "std"))
        lower = site.scale if site.triangular else None

        def flow(v: Tensor) -> tuple[Tensor, Tensor]:
            """Apply scale matrix and posterior flow, for rows repeated as importance sampling repeats them."""
            log_det = v.new_zeros(v.shape[0])
            if lower is not None:
                matrix = lower.movedim(axis, 0)
                matrix = matrix.repeat(v.shape[0] // max(matrix.shape[0], 1), *[1] * (matrix.dim() - 1))
                mean = loc.repeat(v.shape[0] // max(loc.shape[0], 1), *[1] * (loc.dim() - 1))
                v = mean + (matrix @ v.unsqueeze(-1)).squeeze(-1)
                log_det = sum_after(matrix.diagonal(dim1=-2, dim2=-1).log(), 1)
            z = v.movedim(0, axis)
            for transform in site.transforms:
                z, change = apply(transform, z)
                log_det = log_det + sum_event(change.movedim(min(axis, change.dim() - 1), 0))
            return z.movedim(axis, 0), log_det

        kind = _Bounded if site.transforms else Posterior
        if lower is not None:
            return kind(torch.zeros_like(loc), torch.ones_like(loc), flow)
        return kind(loc, to_scale(site.scale.movedim(axis, 0), "std"), flow)

    def model_sites(self, z: Tensor | None, n: int, cond: tuple, kwargs: Any, stop: str | None) -> dict[str, Any]:
        """Run the model on `n` rows at the latents `z`, without data; return the distributions by site."""
        device_of = z if z is not None else next(self.pair.parameters(), torch.zeros(()))
        blank = torch.zeros(n, *self.shape.event_shape, device=device_of.device, dtype=device_of.dtype)
        args, named = self.pair.arguments(blank, cond, kwargs)
        values = {}
        if z is not None:
            axis = z.dim() + self.shape.latent_axis
            values[self.shape.latent] = z.movedim(0, axis)
        return _Put(values, stop).run(self.pair.own(self.pair.model), args, named)

    def decode(self, z: Tensor, *cond: Any, **kwargs: Any) -> Decoded:
        """See `VAEParts.decode`; the scale is the model's own, if the observed site has one."""
        fn = self.model_sites(z, z.shape[0], cond, kwargs, self.shape.observed)[self.shape.observed]
        inner = base(fn)
        if self.shape.discrete:
            return Decoded(at_least_float32(inner.mean))
        return Decoded(at_least_float32(inner.loc), at_least_float32(inner.scale.expand_as(inner.loc)))


class _Bounded(Posterior):
    """A posterior whose transforms may end on a part of the real numbers, as that of a LogNormal does."""

    @property
    def free(self) -> bool:
        """See `vae2aef.protocols.Posterior`."""
        return False


class PyroPrior(nn.Module):
    """The latent site of the model as a prior, which may depend on conditions."""

    def __init__(self, parts: PyroParts) -> None:
        super().__init__()
        self.parts = parts

    def _fn(self, n: int, cond: tuple, kwargs: dict[str, Any]) -> Any:
        name = self.parts.shape.latent
        return self.parts.model_sites(None, n, cond, kwargs, name)[name]

    def log_prob(self, z: Tensor, *cond: Any, **kwargs: Any) -> Tensor:
        """Log density in nats: `z` of shape `(batch, *latent)` gives `(batch,)`."""
        fn = self._fn(z.shape[0], cond, kwargs)
        axis = z.dim() + self.parts.shape.latent_axis
        value = density(fn, z.movedim(0, axis))
        return value if value.dim() == 1 else sum_event(value.movedim(axis, 0))

    def sample(self, n: int, *cond: Any, temperature: float = 1.0, **kwargs: Any) -> Tensor:
        """Draw `n` latents, shape `(n, *latent)`; `temperature` scales location-scale distributions."""
        value = draw(self._fn(n, cond, kwargs), torch.Size(), temperature)
        return value.movedim(value.dim() + self.parts.shape.latent_axis, 0)
