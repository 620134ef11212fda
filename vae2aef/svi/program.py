"""A Pyro model and guide as a program: the sites of the guide are placed, then the model runs at these values."""

from collections.abc import Callable, Container
from typing import Any

import pyro
import pyro.poutine as poutine
import torch
from torch import Tensor

from vae2aef.batch import Batch
from vae2aef.chain import Generate, Given
from vae2aef.errors import WrapError
from vae2aef.modes import own_random_state
from vae2aef.parts import Decoded
from vae2aef.program import VAEProgram
from vae2aef.protocols import Place
from vae2aef.svi.data import as_data
from vae2aef.svi.elbo_handlers import ModelHandler
from vae2aef.svi.guide_maps import GuideMaps
from vae2aef.svi.labels import Again, Labels, Scored, labels_of, summed
from vae2aef.svi.pair import PyroPair
from vae2aef.svi.placing import Axes, GuidePlaces, ModelPlaces, Observed, SitePrior, is_deterministic
from vae2aef.svi.reading import Unit
from vae2aef.svi.runs import at_latents, latent_sites
from vae2aef.svi.sequences import Absent, fitted
from vae2aef.svi.site_map import GUIDES_OWN
from vae2aef.svi.sites import is_subsample
from vae2aef.svi.survey import survey


class PyroProgram(VAEProgram):
    """The parts of a pair with any number of latent sites, and any observed ones.

    Weights of `poutine.scale` and of subsampling are left out: every term counts once. Masks are honoured.

    Args:
        pair: model and guide.
        batch: example of the data, with conditions.

    Attributes:
        axes: the latent sites by name; of each, where the data's batch is.
        scales: the residual of each observed site that was discrete (`observed="gaussian"`).
        dims: how many batch dimensions each of them has.
        labels: the discrete latents that are summed out, by name.
        not_single: why it is not of the simple kind; see `vae2aef.svi.single`.
        shows_data: whether there is one observed site, whose values are the data.
        independent: whether, at the same latents, the model's densities are the same for other data.

    Raises:
        WrapError: for anything that makes no density of each datum; names the site and the fix.
    """

    needs_rows = True  # pyro.plate takes no size of zero
    not_single: str

    def __init__(self, pair: PyroPair, batch: Batch) -> None:
        self.pair = pair
        self.event_shape = batch.x.shape[1:]
        args, named = pair.arguments(*batch)
        # A guide looks at the sites; its own h and n are not used.
        maps = GuideMaps("noise", "none", data=lambda *a, **k: batch.x, plate=pair.plate, observed=pair.observed)
        survey(maps, pair.own(pair.model), pair.own(pair.guide), args, named)
        self.discrete = maps.discrete
        if pair.whole is not None and not maps.discrete:
            as_data(Unit((), batch.x.to(pair.whole)), given=pair.said)  # says that whole numbers have no density
        self.axes: Axes = {name: site_map.batch for name, site_map in maps.maps.items() if site_map is not None}
        self.scales = maps.scales
        self.beside = tuple(maps.scales.values())
        with own_random_state(batch.x.device), torch.no_grad(), pyro.validation_enabled(False), poutine.block():
            guide: Any = poutine.trace(pair.own(pair.guide)).get_trace(*args, **named)
            replayed = poutine.trace(at_latents(self.model, guide))
            model = replayed.get_trace(*args, **named)
            blank, named = pair.arguments(torch.zeros_like(batch.x), *batch[1:])
            elsewhere = replayed.get_trace(*blank, **named)
        latent = {n: SitePrior(self.axes, s, batch.size) for n, s in latent_sites(model).items() if n not in self.axes}
        self.labels = labels_of(latent)
        _require_placed(maps, self.labels)
        notes = {name: note.removesuffix(GUIDES_OWN) for name, note in maps.notes.items()}  # h is chosen later
        notes |= {name: f"summed out, {label}" for name, label in self.labels.items()}
        self.taken = tuple(f'site "{name}": {note}' for name, note in notes.items())
        self.dims = {name: len(guide.nodes[name]["fn"].batch_shape) for name in self.axes}
        _require_equal_weights(guide, model)
        sites = _densities(model)
        self.independent = all(
            _same_density(site["fn"], elsewhere.nodes[name]["fn"], site["value"]) for name, site in sites.items()
        )
        seen = {n: SitePrior(self.axes, site, batch.size) for n, site in sites.items() if site["is_observed"]}
        self.shows_data = Observed(seen, None).is_data(batch.x)

    # ------------------------------------------------------------------ the program

    def infer(self, x: Tensor, *cond: Any, **kwargs: Any) -> Tensor:
        """See `VAEParts.infer`: a guide runs together with the placing of its sites."""
        return x

    def run(self, place: Place, state: Any, *cond: Any, **kwargs: Any) -> Decoded:
        """See `VAEParts.run`: the guide places its sites, then the model adds their priors and decodes."""
        indices: dict[str, Tensor] = {}
        if state is None:
            if not self.independent:
                raise ValueError(
                    "the model's prior or observation depends on the data themselves (a prior or decoder that reads "
                    "x): there is nothing to generate from. Make what it reads an argument of its own"
                )
            state = self.blank(place.size)
        elif not isinstance(place, Given):
            indices = self.run_guide(place, Batch(state, cond, kwargs))
        return self.run_model(place, Batch(state, cond, kwargs), indices)

    def run_guide(self, place: Place, batch: Batch) -> dict[str, Tensor]:
        """Place the sites of the guide; return the rows that its plates have drawn, by plate."""
        args, named = self.pair.arguments(*batch)
        # Far-off draws may overflow a scale: that is a weight of zero, and no reason for Pyro's validation to stop.
        guide = GuidePlaces(
            self.axes, place, batch.size, lambda n, fn: self.labels[n].value(fn, None) if n in self.labels else None
        )
        with pyro.validation_enabled(False), poutine.block(), guide:
            self.pair.own(self.pair.guide)(*args, **named)
        if self.pair.sequences is not None:
            for name in self.axes.keys() - guide.met:
                place(name, None, Absent(batch.x.new_zeros(batch.size, *self.axes[name].latent_shape), self.axes[name]))
        return guide.indices

    def read(self, x: Tensor) -> Tensor:
        """See `VAEParts.read`."""
        return self.pair.read(x, self.discrete)

    def run_model(self, place: Place, batch: Batch, indices: dict[str, Tensor]) -> Decoded:
        """Place the sites of the model again, now with their priors, on the rows that the guide has drawn."""
        fit = self._like_data(batch) if self.shows_data else None
        drawn = isinstance(place, Generate) and not all(name in place.z for name in self.axes)
        if not self.labels or drawn:
            once = self._model_run(place, batch, indices, lambda name, fn: fn.sample() if name in self.labels else None)
            observed = Observed(once.observed, fit)
            return Decoded(observed.mean(), None, observed)
        again = Again(place)

        def scored(numbers: Labels) -> Scored:
            run = self._model_run(
                again, batch, indices, lambda n, fn: self.labels[n].value(fn, numbers[n]) if n in numbers else None
            )
            return Scored(Observed(run.observed, fit), run.latent, numbers)

        return summed(scored, self.labels)

    def _model_run(
        self, place: Place, batch: Batch, indices: dict[str, Tensor], labels: Callable[[str, Any], Tensor | None]
    ) -> ModelPlaces:
        args, named = self.pair.arguments(*batch)
        run = ModelPlaces(self.axes, place, batch.size, indices, labels)
        with pyro.validation_enabled(False), poutine.block(), run:
            self.model(*args, **named)
        return run

    @property
    def model(self) -> Any:
        """The model, with a Gaussian for what was discrete."""
        return ModelHandler(self.scales)(self.pair.own(self.pair.model))

    def _like_data(self, batch: Batch) -> Callable[[Tensor], Tensor]:
        """Return what brings values of the observed site to the shape of the data."""
        if self.pair.sequences is not None:
            lengths = batch.cond[0]
            steps = max(batch.x.shape[1], int(lengths.max()))
            shape = torch.Size((batch.size, steps, *batch.x.shape[2:]))
            return lambda values: fitted(values, shape, lengths)
        return lambda values: values.reshape(batch.x.shape)

    def outer_dims(self, name: str) -> int:
        """See `VAEProgram.outer_dims`: batch dimensions of a site beside the data's are mapped each on its own."""
        dims, core_dims = self.dims[name], 1 + len(self.axes[name].latent_shape)
        return dims - (core_dims + self.axes[name].axis < dims)

    def rows_first(self, name: str, z: Tensor) -> Tensor:
        """See `VAEParts.rows_first`."""
        if name not in self.axes:
            raise WrapError(f'expected latents of the sites {", ".join(self.axes)}, got "{name}"')
        return self.axes[name].first(z)

    def rows_back(self, name: str, z: Tensor) -> Tensor:
        """See `VAEParts.rows_back`."""
        return self.axes[name].back(z)

    def state_of_given(self, state: Any) -> Any:
        """See `VAEParts.state_of_given`: the model scores the data it is run on."""
        return state

    # ------------------------------------------------------------------ small steps

    def blank(self, n: int) -> Tensor:
        """Return `n` rows of zeros in the place of data."""
        like = next(self.pair.parameters(), torch.zeros(()))
        return torch.zeros(n, *self.event_shape, dtype=like.dtype, device=like.device)


def _densities(trace: Any) -> dict[str, Any]:
    """Return the sites that have a density, by name."""
    return {
        name: site
        for name, site in trace.nodes.items()
        if site["type"] == "sample" and not is_subsample(site["fn"]) and not is_deterministic(site)
    }


def _require_placed(maps: GuideMaps, labels: Container[str]) -> None:
    left = [name for name, site_map in maps.maps.items() if site_map is None and name not in labels]
    if left:
        raise WrapError(
            "from_pyro needs every latent site to be mapped, or to be discrete and summed out, for a density of each "
            "datum; left to Pyro would be: " + "; ".join(f'"{name}", {maps.notes[name]}' for name in left) + ". ",
            "Train with SVI(..., loss=vae2aef.AEF_ELBO())",
        )


def _require_equal_weights(guide: Any, model: Any) -> None:
    weights = {
        f"{name} of the {what}": float(site["scale"])
        for what, trace in (("model", model), ("guide", guide))
        for name, site in _densities(trace).items()
    }
    if len({round(w, 6) for w in weights.values()}) > 1:
        raise WrapError(
            f"the sites have different weights, {weights}, from poutine.scale or plates: their sum is no density "
            "of the data. ",
            "Train with SVI(..., loss=vae2aef.AEF_ELBO()), which honours weights, and convert a model without them",
        )


def _same_density(first: Any, second: Any, value: Any) -> bool:
    """Whether two distributions give a value the same density."""
    return first.batch_shape == second.batch_shape and torch.allclose(first.log_prob(value), second.log_prob(value))
