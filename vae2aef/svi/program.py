"""A Pyro model and guide as a program: the sites of the guide are placed, then the model runs at these values."""

from typing import Any, NamedTuple

import pyro
import pyro.poutine as poutine
import torch
from pyro.distributions.util import scale_and_mask
from pyro.poutine.messenger import Messenger
from torch import Tensor

from vae2aef.chain import Place
from vae2aef.errors import WrapError
from vae2aef.interop.distributions import density, draw
from vae2aef.modes import own_random_state
from vae2aef.parts import Decoded, VAEProgram
from vae2aef.svi.cores import SiteCore
from vae2aef.svi.elbo import AEF_ELBO
from vae2aef.svi.handlers import ModelHandler, is_subsample, mask_of_batch
from vae2aef.svi.pair import PyroPair
from vae2aef.svi.parts import same_density
from vae2aef.svi.sites import LocationScale, push, read_site, sum_after
from vae2aef.svi.survey import survey
from vae2aef.tensors import sum_event


class PyroProgram(VAEProgram):
    """The parts of a pair with any number of latent sites, and any observed ones.

    Weights of `poutine.scale` and of subsampling are left out: every term counts once. Masks are honoured.

    Args:
        pair: model and guide.
        x: example of the data, shape `(batch, *event)`.
        cond: conditions.
        kwargs: conditions by name.
        observed: as in `vae2aef.AEF_ELBO`.

    Raises:
        WrapError: for anything that makes no density of each datum; names the site and the fix.
    """

    def __init__(self, pair: PyroPair, x: Tensor, cond: tuple, kwargs: dict[str, Any], observed: Any = None) -> None:
        self.pair = pair
        self.event_shape = x.shape[1:]
        args, named = pair.arguments(x, cond, kwargs)
        # The loss looks at the sites; its own h and n are not used.
        elbo = AEF_ELBO(core="noise", core_flow="none", data=lambda *a, **k: x, observed=observed)
        survey(elbo, pair.own(pair.model), pair.own(pair.guide), args, named, x)
        left = [name for name, cores in elbo.cores.items() if cores is None]
        if left:
            raise WrapError(
                "from_pyro needs every latent site to be mapped, for a density of each datum; left to Pyro would be: "
                + "; ".join(f'"{name}", {elbo.notes[name]}' for name in left)
                + ". Train with SVI(..., loss=vae2aef.AEF_ELBO())"
            )
        self.sites: dict[str, SiteCore] = {name: cores for name, cores in elbo.cores.items() if cores is not None}
        self.scales = elbo.scales
        self.beside = tuple(elbo.scales.values())
        self.taken = tuple(f'site "{name}": {note}' for name, note in elbo.notes.items())
        self.outer: dict[str, int] = {}
        self._require_equal_weights(args, named)
        self._independent = self._model_ignores_data(x, cond, kwargs)

    # ------------------------------------------------------------------ the program

    def infer(self, x: Tensor, *cond: Any, **kwargs: Any) -> Tensor:
        """See `VAEParts.infer`: a guide runs together with the placing of its sites."""
        return x

    def run(self, place: Place, state: Any, *cond: Any, **kwargs: Any) -> Decoded:
        """See `VAEParts.run`: the guide places its sites, then the model adds their priors and decodes."""
        # Far-off draws may overflow a scale: that is a weight of zero, and no reason for Pyro's validation to stop.
        with pyro.validation_enabled(False), poutine.block():
            indices: dict[str, Tensor] = {}
            if state is None:
                self._require_independent()
                x = self._blank(place.size)
            else:
                x = state
                args, named = self.pair.arguments(x, cond, kwargs)
                with _Guide(self, place, x.shape[0]) as guide:
                    self.pair.own(self.pair.guide)(*args, **named)
                indices = guide.indices
            args, named = self.pair.arguments(x, cond, kwargs)
            with _Model(self, place, x.shape[0], indices) as model:
                ModelHandler(self.scales)(self.pair.own(self.pair.model))(*args, **named)
        return model.decoded(x)

    def outer_dims(self, name: str) -> int:
        """See `VAEProgram.outer_dims`: batch dimensions of a site beside the data's are mapped each on its own."""
        return self.outer[name]

    def rows_first(self, name: str, z: Tensor) -> Tensor:
        """See `VAEProgram.rows_first`."""
        if name not in self.sites:
            raise WrapError(f'expected latents of the sites {", ".join(self.sites)}, got "{name}"')
        return z.movedim(z.dim() + self.sites[name].placement.data, 0)

    # ------------------------------------------------------------------ small steps

    def _blank(self, n: int) -> Tensor:
        like = next(self.pair.parameters(), torch.zeros(()))
        return torch.zeros(n, *self.event_shape, dtype=like.dtype, device=like.device)

    def _require_independent(self) -> None:
        if not self._independent:
            raise ValueError(
                "the model's prior or observation depends on the data themselves (a prior or decoder that reads x): "
                "there is nothing to generate from. Make what it reads an argument of its own"
            )

    def _require_equal_weights(self, args: tuple, named: dict[str, Any]) -> None:
        with torch.no_grad(), own_random_state(self._blank(0).device), poutine.block():
            guide = poutine.trace(self.pair.own(self.pair.guide)).get_trace(*args, **named)
            model = poutine.trace(poutine.replay(self.pair.own(self.pair.model), trace=guide)).get_trace(*args, **named)
        weights = {
            f"{name} of the {what}": float(site["scale"])
            for what, trace in (("model", model), ("guide", guide))
            for name, site in trace.nodes.items()
            if site["type"] == "sample" and not is_subsample(site["fn"])
        }
        if len({round(w, 6) for w in weights.values()}) > 1:
            raise WrapError(
                f"the sites have different weights, {weights}, from poutine.scale or plates: their sum is no density "
                "of the data. Train with SVI(..., loss=vae2aef.AEF_ELBO()), which honours weights, and convert a model "
                "without them"
            )

    @torch.no_grad()
    def _model_ignores_data(self, x: Tensor, cond: tuple, kwargs: dict[str, Any]) -> bool:
        """Whether, at the same latents, the model's densities are the same for other data; makes `outer` known."""
        with own_random_state(x.device), poutine.block():
            args, named = self.pair.arguments(x, cond, kwargs)
            guide = poutine.trace(self.pair.own(self.pair.guide)).get_trace(*args, **named)
            for name, cores in self.sites.items():
                dims, axis = len(guide.nodes[name]["fn"].batch_shape), cores.placement.data
                core_dims = read_site(guide.nodes[name]["fn"]).loc.dim()  # type: ignore[union-attr]
                extra = core_dims - 1 - len(cores.placement.latent_shape)  # particles
                self.outer[name] = dims - extra - (1 if core_dims + axis < dims else 0)
            here, there = (
                poutine.trace(poutine.replay(self.pair.own(self.pair.model), trace=guide)).get_trace(*a, **k)
                for a, k in ((args, named), self.pair.arguments(torch.zeros_like(x), cond, kwargs))
            )
        return all(
            same_density(site["fn"], there.nodes[name]["fn"], site["value"])
            for name, site in here.nodes.items()
            if site["type"] == "sample" and not is_subsample(site["fn"]) and name not in self.scales
        )


class _Guide(Messenger):
    """Place every latent site of a guide."""

    def __init__(self, program: PyroProgram, place: Place, rows: int) -> None:
        super().__init__()
        self.program, self.place, self.rows = program, place, rows
        self.indices: dict[str, Tensor] = {}

    def _pyro_sample(self, msg: Any) -> None:
        if msg["is_observed"] or is_subsample(msg["fn"]):
            return
        name = msg["name"]
        site, cores = read_site(msg["fn"]), self.program.sites.get(name)
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


class _Model(Messenger):
    """Give latent sites of a model their placed values with their priors; note the observed ones."""

    def __init__(self, program: PyroProgram, place: Place, rows: int, indices: dict[str, Tensor]) -> None:
        super().__init__()
        self.program, self.place, self.rows, self.indices = program, place, rows, indices
        self.observed: dict[str, Any] = {}

    def _pyro_sample(self, msg: Any) -> None:
        name = msg["name"]
        if is_subsample(msg["fn"]):
            if name in self.indices:
                msg["value"], msg["done"] = self.indices[name], True
        elif msg["is_observed"]:
            if not msg["infer"].get("_deterministic"):
                self.observed[name] = SitePrior(self.program, dict(msg), self.rows)
        else:
            msg["value"], msg["done"] = self.place(name, SitePrior(self.program, dict(msg), self.rows), None), True

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

    def __init__(self, program: PyroProgram, msg: dict[str, Any], rows: int) -> None:
        self.program, self.msg, self.rows = program, msg, rows

    def log_prob(self, z: Tensor) -> Tensor:
        """Log density in nats of each row, masks honoured, weights not."""
        value = scale_and_mask(density(self.msg["fn"], z), 1.0, self.msg["mask"])
        frames = [f for f in self.msg["cond_indep_stack"] if f.vectorized and f.size == self.rows]
        plates = {cores.placement.plate for cores in self.program.sites.values()}
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
