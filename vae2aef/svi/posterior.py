"""A latent site of a Pyro guide as the posterior of one latent, row by row."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from vae2aef.errors import WrapError
from vae2aef.parts import to_scale
from vae2aef.svi.batch_axis import BatchAxis, outside_plate
from vae2aef.svi.sites import LocationScale, mask_of_batch, push
from vae2aef.tensors import at_least_float32, sum_event


@dataclass(frozen=True)
class SitePosterior:
    """A site of a guide as the posterior of one latent; the batch comes first. See `vae2aef.protocols.Posterior`.

    Attributes:
        site: the site taken apart, in Pyro's own dimensions.
        batch: where the data's batch is in these.
        mask: which rows have the site, `(batch,)`, or None.
        rows_first: whether z has the batch first too, rather than the shape of the site.
    """

    site: LocationScale
    batch: BatchAxis
    mask: Tensor | None
    rows_first: bool = False

    @classmethod
    def of(cls, msg: Any, site: LocationScale, batch: BatchAxis, rows: int) -> "SitePosterior":
        """Read a site as it is met in a run of the guide on `rows` rows."""
        batch.require_shape(site.loc.shape, rows)
        mask = _mask(msg, site, batch, rows)
        scale = at_least_float32(site.scale) if site.triangular else to_scale(site.scale, "std")
        return cls(site._replace(loc=at_least_float32(site.loc), scale=scale), batch, mask)

    @property
    def loc(self) -> Tensor:
        """g_m, shape `(batch, *latent)`."""
        return self.batch.first(self.site.loc)

    @property
    def scale(self) -> Tensor:
        """g_s, likewise; the diagonal of a matrix."""
        return self.batch.first(self.site.diagonal)

    @property
    def standard(self) -> Any:
        """What u is drawn from, if not standard normal."""
        if self.site.family is torch.distributions.Normal:
            return None
        df = None if self.site.df is None else self.batch.first(self.site.df)
        return self.site._replace(loc=self.loc, df=df).standard

    @property
    def free(self) -> bool:
        """Whether z ranges over all real numbers: transforms may end on a part of them, as that of a LogNormal does."""
        return not self.site.transforms

    @property
    def transform(self) -> Callable[[Tensor], tuple[Tensor, Tensor]] | None:
        """All that follows loc + scale * u, `(batch, *latent)` to z and log|det|, `(batch,)`; None if nothing does."""
        if not (self.site.triangular or self.site.transforms):
            return None
        loc, scale = self.loc, self.scale

        def transform(v: Tensor) -> tuple[Tensor, Tensor]:
            z, log_det = self.push((v - loc) / scale)
            return z, log_det - sum_event(scale.log())

        return transform

    def push(self, u: Tensor) -> tuple[Tensor, Tensor]:
        """Return z, in the shape of the site unless `rows_first`, and log|det dz/du| of each row, `(batch,)`."""
        axis = self.site.loc.dim() + self.batch.axis
        z, changes = push(self.batch.site, self.site, self.batch.back(u))
        if any(change.dim() <= axis for change in changes):
            raise outside_plate(self.batch.site)  # a transform takes the rows together
        log_det = torch.stack([sum_event(change.movedim(axis, 0)) for change in changes]).sum(0)
        return self.batch.first(z) if self.rows_first else z, log_det

    def map_rows(self, size: int, change: Callable[[Tensor], Tensor]) -> "SitePosterior":
        """Change the rows of the batch; see `vae2aef.batch.map_rows`."""
        axis = self.site.loc.dim() + self.batch.axis

        def rows(value: Tensor) -> Tensor:
            return change(value.movedim(axis, 0)).movedim(0, axis)

        loc, scale, df = self.site.loc, self.site.scale, self.site.df
        site = self.site._replace(loc=rows(loc), scale=rows(scale), df=None if df is None else rows(df))
        return replace(self, site=site, mask=None if self.mask is None else change(self.mask))


def _mask(msg: Any, site: LocationScale, batch: BatchAxis, rows: int) -> Tensor | None:
    """Bring the masks of a site, its own and those around it, to one truth a row."""
    mask, shape = None, msg["fn"].batch_shape
    for part in (site.mask, msg["mask"]):
        part = part if part is None else mask_of_batch(batch.site, part, len(shape))
        mask = part if mask is None else mask if part is None else mask & part
    if mask is None or mask is True:
        return None
    if isinstance(mask, bool):
        mask = torch.tensor(mask, device=site.loc.device)
    per_row = mask.expand(shape).movedim(site.loc.dim() + batch.axis, 0).reshape(rows, -1)
    if not torch.equal(per_row.all(1), per_row.any(1)):
        raise WrapError(
            f'site "{batch.site}": its mask differs between elements of one datum, which from_pyro takes as one '
            "latent; ",
            "use a site for each of them",
        )
    return per_row.all(1)
