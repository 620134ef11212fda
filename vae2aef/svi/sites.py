"""Latent sites of a Pyro guide as maps: z = transform(loc + scale * u), with the log-determinant of all of it."""

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from pyro.distributions.torch_distribution import MaskedDistribution
from torch import Tensor

from vae2aef.errors import WrapError
from vae2aef.interop.densities import is_transformed
from vae2aef.interop.torch_transforms import apply

ELEMENTWISE = (
    torch.distributions.Normal,
    torch.distributions.Laplace,
    torch.distributions.StudentT,
    torch.distributions.Cauchy,
)
TRIANGULAR = (torch.distributions.MultivariateNormal, torch.distributions.LowRankMultivariateNormal)


class LocationScale(NamedTuple):
    """A reparameterised site taken apart.

    Attributes:
        loc: g_m, shape `(*batch, *core)`, where `*batch` is the batch shape of the site.
        scale: g_s, the same shape; or a lower-triangular matrix for each, `(*batch, D, D)`.
        family: of the site.
        df: degrees of freedom, shaped like `loc`, where the family is Student's t.
        transforms: a posterior flow after it, in order.
        mask: from `fn.mask(...)`, or None.
    """

    loc: Tensor
    scale: Tensor
    family: type = torch.distributions.Normal
    df: Tensor | None = None
    transforms: tuple[Any, ...] = ()
    mask: Any = None

    @property
    def triangular(self) -> bool:
        """Whether the scale is a matrix."""
        return self.scale.dim() > self.loc.dim()

    @property
    def diagonal(self) -> Tensor:
        """The scale, or the diagonal of its matrix: shape `(*batch, *core)`."""
        return self.scale.diagonal(dim1=-2, dim2=-1) if self.triangular else self.scale

    def expand(self, batch_shape: torch.Size, batch_dims: int) -> "LocationScale":
        """Bring the first `batch_dims` dimensions to a batch shape; the mask stays as it is."""

        def to(value: Tensor) -> Tensor:
            return value.expand(*batch_shape, *value.shape[batch_dims:])

        return self._replace(loc=to(self.loc), scale=to(self.scale), df=None if self.df is None else to(self.df))

    @property
    def standard(self) -> Any:
        """The site's distribution at location 0 and scale 1, `(*batch, *core)`: what u is drawn from in the VAE."""
        zero, one = torch.zeros_like(self.loc), torch.ones_like(self.loc)
        return self.family(*([] if self.df is None else [self.df]), zero, one, validate_args=False)


def read_site(fn: Any) -> LocationScale | None:
    """Take a distribution apart; None if it is no location-scale family nor a transform of one, or not to be mapped.

    Args:
        fn: Normal, Laplace, StudentT, Cauchy, MultivariateNormal or LowRankMultivariateNormal, also under
            `to_event`, `mask`, `expand`, and as the base of a TransformedDistribution (LogNormal is one). One whose
            `has_rsample` is off is none: the user wants it drawn with a score-function gradient.
    """
    if not getattr(fn, "has_rsample", True):
        return None
    if isinstance(fn, MaskedDistribution):
        inner = read_site(fn.base_dist)
        return None if inner is None else inner._replace(mask=fn._mask)
    if isinstance(fn, torch.distributions.Independent):
        return read_site(fn.base_dist)
    if isinstance(fn, torch.distributions.TransformedDistribution) and (
        is_transformed(fn) or isinstance(fn, torch.distributions.LogNormal)
    ):
        inner = read_site(fn.base_dist)
        return None if inner is None else inner._replace(transforms=(*inner.transforms, *fn.transforms))
    if isinstance(fn, TRIANGULAR):
        return LocationScale(fn.loc, fn.scale_tril)  # computed from the covariance where it is of low rank
    family = next((family for family in ELEMENTWISE if isinstance(fn, family)), None)
    if family is None:
        return None
    loc, scale = torch.broadcast_tensors(fn.loc, fn.scale)
    return LocationScale(loc, scale, family, fn.df if family is torch.distributions.StudentT else None)


def flow_core(
    flow: Callable[[Tensor], tuple[Tensor, Tensor]], core: Tensor, batch_dims: int, data_axis: int
) -> tuple[Tensor, Tensor]:
    """Apply n^-1 to the core variables of every element of the batch, each on its own.

    Args:
        flow: n^-1, or its inverse.
        core: w, shape `(*batch, *core)`.
        batch_dims: how many dimensions are batch.
        data_axis: the axis of the data's batch; where it is not among these, it is a batch here all the same.

    Returns:
        u, shaped like w, and log|det|, shape `(*batch)`, nats.
    """
    batch = core.shape[:batch_dims]
    inside = data_axis >= batch_dims
    w = core.movedim(data_axis, batch_dims) if inside else core
    rows = batch_dims + inside
    u, log_det = flow(w.flatten(0, rows - 1) if rows else w.unsqueeze(0))
    u = u.reshape(w.shape)
    return (u.movedim(batch_dims, data_axis) if inside else u), sum_after(log_det.reshape(w.shape[:rows]), len(batch))


def push(name: str, site: LocationScale, u: Tensor) -> tuple[Tensor, list[Tensor]]:
    """Map u to the latent of one site, z = T(loc + scale u).

    Args:
        name: the site, for the errors.
        site: from `read_site`.
        u: shape `(*batch, *core)`.

    Returns:
        z, shape `(*batch, *event)`, and the terms of log|det dz/du|, nats, each with as many dimensions as it can be
        told apart in: `(*batch, ...)`.

    Raises:
        WrapError: for a transform whose log-determinant is not known; names the site.
    """
    if site.triangular:
        z = site.loc + (site.scale @ u.unsqueeze(-1)).squeeze(-1)
    else:
        z = site.loc + site.scale * u
    changes = [site.diagonal.log()]
    for transform in site.transforms:
        try:
            z, change = apply(transform, z)
        except WrapError as error:
            raise WrapError(f'site "{name}": {str(error).removesuffix(error.fix)}', error.fix) from error
        changes.append(change)
    return z, changes


def pull(name: str, site: LocationScale, z: Tensor) -> tuple[Tensor, list[Tensor]]:
    """Undo `push`: return u, and the terms of log|det dz/du| there, as `push` gives them.

    Raises:
        WrapError: for a transform that has no inverse; names the site.
    """
    changes = [site.diagonal.log()]
    for transform in reversed(site.transforms):
        try:
            z, change = apply(transform, z, inverse=True)
        except WrapError as error:
            raise WrapError(f'site "{name}": {str(error).removesuffix(error.fix)}', error.fix) from error
        changes.append(-change)
    centred = z - site.loc
    if site.triangular:
        u = torch.linalg.solve_triangular(site.scale, centred.unsqueeze(-1), upper=False).squeeze(-1)
    else:
        u = centred / site.scale
    return u, changes


def sum_after(values: Tensor, dims: int) -> Tensor:
    """Sum over all but the first `dims` dimensions."""
    return values.flatten(dims).sum(-1) if values.dim() > dims else values


def is_subsample(fn: Any) -> bool:
    """Whether it is the pretended distribution by which Pyro's plates draw their rows."""
    return type(fn).__name__ == "_Subsample"


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
            "under a flow; ",
            "mask whole events: Normal(...).to_event(1).mask(m), with one m a row",
        )
    return flat.all(-1)


def kind_of(site: Any) -> str:
    """Return the name of the family of a site."""
    fn = site["fn"]
    while hasattr(fn, "base_dist") and type(fn).__name__ in (
        "Independent",
        "MaskedDistribution",
        "ExpandedDistribution",
    ):
        fn = fn.base_dist
    return type(fn).__name__


def store_key(kind: str, name: str) -> str:
    """A name for the parameter store: no dots, which ModuleDict does not take."""
    return f"{kind}_{name}".replace(".", "__")
