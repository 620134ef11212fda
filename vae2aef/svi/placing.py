"""The two effect handlers that place the sites of a Pyro guide and model; the model's sites as densities."""

from collections.abc import Callable
from typing import Any

import torch
from pyro.distributions.torch_distribution import MaskedDistribution
from pyro.distributions.util import scale_and_mask
from pyro.poutine.messenger import Messenger
from torch import Tensor

from vae2aef.errors import WrapError
from vae2aef.interop.densities import density, draw
from vae2aef.protocols import Place
from vae2aef.svi.batch_axis import BatchAxis, batch_frame, outside_plate, sized
from vae2aef.svi.posterior import SitePosterior
from vae2aef.svi.sites import is_subsample, read_site
from vae2aef.tensors import mean_of, sum_event

Axes = dict[str, BatchAxis]
"""The mapped sites of a guide by name; of each, where the data's batch is."""


class GuidePlaces(Messenger):
    """Place every latent site of a guide."""

    def __init__(self, axes: Axes, place: Place, rows: int, labels: Callable[[str, Any], Tensor | None]) -> None:
        super().__init__()
        self.axes, self.place, self.rows, self.labels = axes, place, rows, labels
        self.indices: dict[str, Tensor] = {}
        self.met: set[str] = set()

    def _pyro_sample(self, msg: Any) -> None:
        if msg["is_observed"] or is_subsample(msg["fn"]):
            return
        name = msg["name"]
        label = self.labels(name, msg["fn"])
        if label is not None:
            msg["value"], msg["done"] = label, True
            return
        site, batch = read_site(msg["fn"]), self.axes.get(name)
        if site is None or batch is None:
            raise _unknown(name, "guide")
        self.met.add(name)
        msg["value"] = self.place(name, None, SitePosterior.of(msg, site, batch, self.rows))
        msg["done"] = True

    def _pyro_post_sample(self, msg: Any) -> None:
        if is_subsample(msg["fn"]):
            self.indices[msg["name"]] = msg["value"]


class ModelPlaces(Messenger):
    """Give latent sites of a model their placed values with their priors; note the observed ones."""

    def __init__(
        self,
        axes: Axes,
        place: Place,
        rows: int,
        indices: dict[str, Tensor],
        labels: Callable[[str, Any], Tensor | None],
    ) -> None:
        super().__init__()
        self.axes, self.place, self.rows, self.indices, self.labels = axes, place, rows, indices, labels
        self.observed: dict[str, SitePrior] = {}
        self.latent: dict[str, tuple[SitePrior, Tensor]] = {}

    def _pyro_sample(self, msg: Any) -> None:
        name = msg["name"]
        if is_subsample(msg["fn"]):
            if name in self.indices:
                msg["value"], msg["done"] = self.indices[name], True
        elif msg["is_observed"]:
            if not is_deterministic(msg):
                self.observed[name] = SitePrior(self.axes, dict(msg), self.rows)
        else:
            prior, label = SitePrior(self.axes, dict(msg), self.rows), self.labels(name, msg["fn"])
            if label is None and name not in self.axes:
                raise _unknown(name, "model")
            msg["value"], msg["done"] = self.place(name, prior, None) if label is None else label, True
            self.latent[name] = (prior, msg["value"])


def _unknown(name: str, part: str) -> WrapError:
    return WrapError(
        f'site "{name}" of the {part} was not there, or of another kind, when the pair was converted: ',
        "the example must show every site",
    )


def is_deterministic(site: Any) -> bool:
    """Whether it is a value that Pyro notes like a site, by `pyro.deterministic`."""
    return bool((site["infer"] or {}).get("_deterministic"))


def is_masked(msg: dict[str, Any]) -> bool:
    """Whether a site has a mask, around it or of its distribution."""
    fn = msg["fn"]
    while hasattr(fn, "base_dist") and not isinstance(fn, MaskedDistribution):
        fn = fn.base_dist
    return msg["mask"] is not None or isinstance(fn, MaskedDistribution)


class SitePrior:
    """The density of a site of the model, row by row. See `vae2aef.protocols.Density`."""

    def __init__(self, axes: Axes, msg: dict[str, Any], rows: int) -> None:
        self.axes, self.msg, self.rows = axes, msg, rows

    def log_prob(self, z: Tensor) -> Tensor:
        """Log density in nats of each row, masks honoured, weights not."""
        return self._by_row(self._terms(z))

    def log_prob_of_label(self, value: Tensor) -> Tensor:
        """Log probability of a discrete latent, likewise; its values share 1 also where a mask leaves none of it."""
        if not is_masked(self.msg):
            return self.log_prob(value)
        every = torch.stack([self._terms(one) for one in self.msg["fn"].enumerate_support(expand=True)])
        return self._by_row(self._terms(value) - every.logsumexp(0))

    def _terms(self, z: Tensor) -> Tensor:
        return scale_and_mask(density(self.msg["fn"], z), 1.0, self.msg["mask"])

    def _by_row(self, terms: Tensor) -> Tensor:
        axis = self.axis
        if axis is None or terms.dim() < -axis or axis >= 0 or terms.shape[axis] != self.rows:
            raise outside_plate(self.msg["name"])
        return sum_event(terms.movedim(axis, 0))

    @property
    def axis(self) -> int | None:
        """Where the batch is among the batch dimensions of the site, from the right; None if no plate says so."""
        name = self.msg["name"]
        if name in self.axes:
            return self.axes[name].axis + len(self.msg["fn"].event_shape)
        frames = [f for f in self.msg["cond_indep_stack"] if f.vectorized]
        plates = {batch.plate for batch in self.axes.values()}
        frames = sized([f for f in frames if f.name in plates] or frames, self.msg["fn"].batch_shape)
        frame = batch_frame(name, frames, self.rows, None)
        return None if frame is None else frame.dim

    def rows_first(self, values: Tensor) -> Tensor:
        """Return values in the shape of the site with the batch as their first dimension."""
        axis = self.axis
        return values if axis is None else values.movedim(axis - len(self.msg["fn"].event_shape), 0)

    def sample(self, n: int, temperature: float = 1.0) -> Tensor:
        """Draw the site; `n` is the number of rows."""
        return draw(self.msg["fn"], torch.Size(), temperature)


class Observed:
    """All observed sites: the density of x given z, at the values the model has given them.

    Args:
        sites: by name.
        fit: brings its values, rows first, to the shape of the data, if the one site is the data themselves.
    """

    def __init__(self, sites: dict[str, SitePrior], fit: Callable[[Tensor], Tensor] | None) -> None:
        self.sites, self.fit = sites, fit

    def log_prob(self, x: Tensor) -> Tensor:
        """Log density in nats, `(batch,)`, of the data the model was run on."""
        return torch.stack([site.log_prob(site.msg["value"]) for site in self.sites.values()]).sum(0)

    def sample(self) -> Any:
        """Draw the data; a dict by site where they are not one site's values."""
        return self._like_data({name: site.msg["fn"].sample() for name, site in self.sites.items()})

    def mean(self) -> Any:
        """Return the mean of each site, None where it has none, likewise."""
        return self._like_data({name: mean_of(site.msg["fn"]) for name, site in self.sites.items()})

    def is_data(self, x: Tensor) -> bool:
        """Whether there is one site, and its values are the data, `(batch, *event)`."""
        values = [site.rows_first(site.msg["value"]) for site in self.sites.values()]
        return len(values) == 1 and values[0].numel() == x.numel() and torch.equal(values[0].reshape(x.shape).to(x), x)

    def _like_data(self, values: dict[str, Any]) -> Any:
        if self.fit is None or any(value is None for value in values.values()):
            return values
        ((name, site),) = self.sites.items()
        return self.fit(site.rows_first(values[name]))
