"""The two effect handlers that place the sites of a Pyro guide and model; the model's sites as densities."""

from typing import Any

import torch
from pyro.distributions.util import scale_and_mask
from pyro.poutine.messenger import Messenger
from torch import Tensor

from vae2aef.errors import WrapError
from vae2aef.interop.densities import density, draw
from vae2aef.parts import Decoded
from vae2aef.protocols import Place
from vae2aef.svi.batch_axis import BatchAxis, batch_frame, outside_plate
from vae2aef.svi.posterior import SitePosterior
from vae2aef.svi.sites import is_subsample, read_site
from vae2aef.tensors import sum_event

Axes = dict[str, BatchAxis]
"""The mapped sites of a guide by name; of each, where the data's batch is."""


class GuidePlaces(Messenger):
    """Place every latent site of a guide."""

    def __init__(self, axes: Axes, place: Place, rows: int) -> None:
        super().__init__()
        self.axes, self.place, self.rows = axes, place, rows
        self.indices: dict[str, Tensor] = {}

    def _pyro_sample(self, msg: Any) -> None:
        if msg["is_observed"] or is_subsample(msg["fn"]):
            return
        name = msg["name"]
        site, batch = read_site(msg["fn"]), self.axes.get(name)
        if site is None or batch is None:
            raise WrapError(
                f'site "{name}" of the guide was not there, or of another kind, when the pair was converted: the '
                "example must show every site"
            )
        msg["value"] = self.place(name, None, SitePosterior.of(msg, site, batch, self.rows))
        msg["done"] = True

    def _pyro_post_sample(self, msg: Any) -> None:
        if is_subsample(msg["fn"]):
            self.indices[msg["name"]] = msg["value"]


class ModelPlaces(Messenger):
    """Give latent sites of a model their placed values with their priors; note the observed ones."""

    def __init__(self, axes: Axes, place: Place, rows: int, indices: dict[str, Tensor]) -> None:
        super().__init__()
        self.axes, self.place, self.rows, self.indices = axes, place, rows, indices
        self.observed: dict[str, SitePrior] = {}

    def _pyro_sample(self, msg: Any) -> None:
        name = msg["name"]
        if is_subsample(msg["fn"]):
            if name in self.indices:
                msg["value"], msg["done"] = self.indices[name], True
        elif msg["is_observed"]:
            if not is_deterministic(msg):
                self.observed[name] = SitePrior(self.axes, dict(msg), self.rows)
        else:
            msg["value"], msg["done"] = self.place(name, SitePrior(self.axes, dict(msg), self.rows), None), True

    def decoded(self, x: Tensor) -> Decoded:
        """Return the means of the observed sites, and their joint density."""
        means = {name: _mean(site.msg["fn"]) for name, site in self.observed.items()}
        mean: Any = means
        if len(means) == 1:
            (only,) = means.values()
            mean = only.reshape(x.shape) if only is not None and only.numel() == x.numel() else means
        return Decoded(mean, None, Observed(self.observed, x))


def is_deterministic(site: Any) -> bool:
    """Whether it is a value that Pyro notes like a site, by `pyro.deterministic`."""
    return bool((site["infer"] or {}).get("_deterministic"))


def _mean(fn: Any) -> Any:
    try:
        return fn.mean
    except NotImplementedError:
        return None


class SitePrior:
    """The density of a site of the model, row by row. See `vae2aef.protocols.Density`."""

    def __init__(self, axes: Axes, msg: dict[str, Any], rows: int) -> None:
        self.axes, self.msg, self.rows = axes, msg, rows

    def log_prob(self, z: Tensor) -> Tensor:
        """Log density in nats of each row, masks honoured, weights not."""
        value = scale_and_mask(density(self.msg["fn"], z), 1.0, self.msg["mask"])
        axis = self._axis()
        if axis is None or value.dim() < -axis or axis >= 0 or value.shape[axis] != self.rows:
            raise outside_plate(self.msg["name"])
        return sum_event(value.movedim(axis, 0))

    def _axis(self) -> int | None:
        """Where the batch is among the batch dimensions of the site, from the right."""
        name = self.msg["name"]
        if name in self.axes:
            return self.axes[name].axis + len(self.msg["fn"].event_shape)
        frames = [f for f in self.msg["cond_indep_stack"] if f.vectorized]
        plates = {batch.plate for batch in self.axes.values()}
        frame = batch_frame(name, [f for f in frames if f.name in plates] or frames, self.rows, None)
        return None if frame is None else frame.dim

    def sample(self, n: int, temperature: float = 1.0) -> Tensor:
        """Draw the site; `n` is the number of rows."""
        return draw(self.msg["fn"], torch.Size(), temperature)


class Observed:
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
