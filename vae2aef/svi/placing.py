"""The two effect handlers that place the sites of a Pyro guide and model, and the sites as posteriors and priors."""

from typing import Any, NamedTuple

import torch
from pyro.distributions.util import scale_and_mask
from pyro.poutine.messenger import Messenger
from torch import Tensor

from vae2aef.errors import WrapError
from vae2aef.interop.densities import density, draw
from vae2aef.parts import Decoded
from vae2aef.protocols import Place
from vae2aef.svi.cores import SiteCore
from vae2aef.svi.handlers import is_subsample, mask_of_batch
from vae2aef.svi.sites import LocationScale, push, read_site, sum_after
from vae2aef.tensors import sum_event

Sites = dict[str, SiteCore]
"""The mapped sites of a guide by name; of each, where the data's batch is."""


class GuidePlaces(Messenger):
    """Place every latent site of a guide."""

    def __init__(self, sites: Sites, place: Place, rows: int) -> None:
        super().__init__()
        self.sites, self.place, self.rows = sites, place, rows
        self.indices: dict[str, Tensor] = {}

    def _pyro_sample(self, msg: Any) -> None:
        if msg["is_observed"] or is_subsample(msg["fn"]):
            return
        name = msg["name"]
        site, cores = read_site(msg["fn"]), self.sites.get(name)
        if site is None or cores is None:
            raise WrapError(
                f'site "{name}" of the guide was not there, or of another kind, when the pair was converted: the '
                "example must show every site"
            )
        msg["value"] = self.place(name, None, SitePosterior.of(name, msg, site, cores, self.rows))
        msg["done"] = True

    def _pyro_post_sample(self, msg: Any) -> None:
        if is_subsample(msg["fn"]):
            self.indices[msg["name"]] = msg["value"]


class SitePosterior(NamedTuple):
    """A site of a guide as the posterior of one latent; the batch comes first. See `vae2aef.chain.Posterior`.

    Attributes:
        name: of the site.
        loc: g_m, shape `(batch, *latent)`.
        scale: g_s, likewise; the diagonal of a matrix.
        site: the site taken apart, in Pyro's own dimensions.
        axis: where the batch is in these.
        dims: how many of them are batch dimensions of the site.
        mask: which rows have the site, `(batch,)`, or None.
        standard: what u is drawn from, if not standard normal.
    """

    name: str
    loc: Tensor
    scale: Tensor
    site: LocationScale
    axis: int
    dims: int
    mask: Tensor | None
    standard: Any

    @property
    def free(self) -> bool:
        """See `vae2aef.protocols.Posterior`."""
        return not self.site.transforms

    @classmethod
    def of(cls, name: str, msg: Any, site: LocationScale, cores: SiteCore, rows: int) -> "SitePosterior":
        """Read a site as it is met in a run of the guide on `rows` rows."""
        shape, axis = site.loc.shape, site.loc.dim() + cores.placement.data
        cores.require_shape(shape, rows)
        dims = len(msg["fn"].batch_shape)
        scale = site.scale.diagonal(dim1=-2, dim2=-1) if site.triangular else site.scale
        mask = _mask(name, msg, site, dims, axis, rows)
        normal = isinstance(site.standard, torch.distributions.Normal)
        standard = None if normal else _RowsFirst(site.standard, axis)
        return cls(name, site.loc.movedim(axis, 0), scale.movedim(axis, 0), site, axis, dims, mask, standard)

    def push(self, u: Tensor) -> tuple[Tensor, Tensor]:
        """Return z in the shape of the site, and log|det dz/du| summed for each row, `(batch,)`."""
        z, log_det = push(self.name, self.site, u.movedim(0, self.axis), self.dims)
        if self.axis >= self.dims:  # the batch is inside the event
            raise WrapError(
                f'site "{self.name}": a density of each datum needs it inside the data\'s plate, '
                'with pyro.plate("data", x.shape[0])'
            )
        return z, sum_event(log_det.movedim(self.axis, 0))


class _RowsFirst:
    """A standard distribution in the dimensions of a site, with the batch first."""

    def __init__(self, standard: Any, axis: int) -> None:
        self.standard, self.axis = standard, axis

    def rsample(self) -> Tensor:
        return self.standard.rsample().movedim(self.axis, 0)

    def entropy(self) -> Tensor:
        return self.standard.entropy().expand(self.standard.batch_shape).movedim(self.axis, 0)


def _mask(name: str, msg: Any, site: LocationScale, dims: int, axis: int, rows: int) -> Tensor | None:
    """Bring the masks of a site, its own and those around it, to one truth a row."""
    mask = None
    for part in (site.mask, msg["mask"]):
        part = part if part is None else mask_of_batch(name, part, dims)
        mask = part if mask is None else mask if part is None else mask & part
    if mask is None or mask is True:
        return None
    if isinstance(mask, bool):
        mask = torch.tensor(mask, device=site.loc.device)
    per_row = mask.expand(msg["fn"].batch_shape).movedim(axis, 0).reshape(rows, -1)
    if not torch.equal(per_row.all(1), per_row.any(1)):
        raise WrapError(
            f'site "{name}": its mask differs between elements of one datum, which from_pyro takes as one latent; use '
            "a site for each of them"
        )
    return per_row.all(1)


class ModelPlaces(Messenger):
    """Give latent sites of a model their placed values with their priors; note the observed ones."""

    def __init__(self, sites: Sites, place: Place, rows: int, indices: dict[str, Tensor]) -> None:
        super().__init__()
        self.sites, self.place, self.rows, self.indices = sites, place, rows, indices
        self.observed: dict[str, Any] = {}

    def _pyro_sample(self, msg: Any) -> None:
        name = msg["name"]
        if is_subsample(msg["fn"]):
            if name in self.indices:
                msg["value"], msg["done"] = self.indices[name], True
        elif msg["is_observed"]:
            if not msg["infer"].get("_deterministic"):
                self.observed[name] = SitePrior(self.sites, dict(msg), self.rows)
        else:
            msg["value"], msg["done"] = self.place(name, SitePrior(self.sites, dict(msg), self.rows), None), True

    def decoded(self, x: Tensor) -> Decoded:
        """Return the means of the observed sites, and their joint density."""
        means = {name: _mean(site.msg["fn"]) for name, site in self.observed.items()}
        mean: Any = means
        if len(means) == 1:
            (only,) = means.values()
            mean = only.reshape(x.shape) if only is not None and only.numel() == x.numel() else means
        return Decoded(mean, None, _Observed(self.observed, x))


def _mean(fn: Any) -> Any:
    try:
        return fn.mean
    except NotImplementedError:
        return None


class SitePrior:
    """The density of a site of the model, row by row. See `vae2aef.chain.Density`."""

    def __init__(self, sites: Sites, msg: dict[str, Any], rows: int) -> None:
        self.sites, self.msg, self.rows = sites, msg, rows

    def log_prob(self, z: Tensor) -> Tensor:
        """Log density in nats of each row, masks honoured, weights not."""
        value = scale_and_mask(density(self.msg["fn"], z), 1.0, self.msg["mask"])
        frames = [f for f in self.msg["cond_indep_stack"] if f.vectorized and f.size == self.rows]
        plates = {cores.placement.plate for cores in self.sites.values()}
        frames = [f for f in frames if f.name in plates] or frames
        if len(frames) != 1 or value.dim() < -frames[0].dim or value.shape[frames[0].dim] != self.rows:
            raise WrapError(
                f'site "{self.msg["name"]}": a density of each datum needs it inside the data\'s plate, '
                'with pyro.plate("data", x.shape[0])'
            )
        return sum_after(value.movedim(frames[0].dim, 0), 1)

    def sample(self, n: int, temperature: float = 1.0) -> Tensor:
        """Draw the site; `n` is the number of rows."""
        return draw(self.msg["fn"], torch.Size(), temperature)


class _Observed:
    """All observed sites: the density of x given z, at the values the model has given them."""

    def __init__(self, sites: dict[str, SitePrior], x: Tensor) -> None:
        self.sites, self.x = sites, x

    def log_prob(self, x: Tensor) -> Tensor:
        """Log density in nats, `(batch,)`, of the data the model was run on."""
        return torch.stack([site.log_prob(site.msg["value"]) for site in self.sites.values()]).sum(0)

    def sample(self) -> Any:
        """Draw the data; a dict by site for several."""
        values = {name: site.msg["fn"].sample() for name, site in self.sites.items()}
        (first, *more) = values.values()
        return first.reshape(self.x.shape) if not more and first.numel() == self.x.numel() else values
