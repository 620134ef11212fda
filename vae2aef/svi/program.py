"""A Pyro model and guide as a program: the sites of the guide are placed, then the model runs at these values."""

from typing import Any

import pyro
import pyro.poutine as poutine
import torch
from torch import Tensor

from vae2aef.chain import Given
from vae2aef.errors import WrapError
from vae2aef.modes import own_random_state
from vae2aef.parts import Decoded
from vae2aef.program import VAEProgram
from vae2aef.protocols import Place
from vae2aef.svi.cores import SiteCore
from vae2aef.svi.elbo import AEF_ELBO
from vae2aef.svi.handlers import ModelHandler, is_subsample
from vae2aef.svi.pair import PyroPair
from vae2aef.svi.placing import GuidePlaces, ModelPlaces
from vae2aef.svi.single import same_density
from vae2aef.svi.sites import read_site
from vae2aef.svi.survey import survey


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

    needs_rows = True  # pyro.plate takes no size of zero

    # ------------------------------------------------------------------ the program

    def infer(self, x: Tensor, *cond: Any, **kwargs: Any) -> Tensor:
        """See `VAEParts.infer`: a guide runs together with the placing of its sites."""
        return x

    def run(self, place: Place, state: Any, *cond: Any, **kwargs: Any) -> Decoded:
        """See `VAEParts.run`: the guide places its sites, then the model adds their priors and decodes."""
        # Far-off draws may overflow a scale: that is a weight of zero, and no reason for Pyro's validation to stop.
        with pyro.validation_enabled(False), poutine.block():
            indices: dict[str, Tensor] = {}
            x = state
            if state is None:
                self._require_independent()
                x = self._blank(place.size)
            elif not isinstance(place, Given):
                args, named = self.pair.arguments(x, cond, kwargs)
                with GuidePlaces(self.sites, place, x.shape[0]) as guide:
                    self.pair.own(self.pair.guide)(*args, **named)
                indices = guide.indices
            args, named = self.pair.arguments(x, cond, kwargs)
            with ModelPlaces(self.sites, place, x.shape[0], indices) as model:
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

    def rows_back(self, name: str, z: Tensor) -> Tensor:
        """See `VAEParts.rows_back`."""
        return z.movedim(0, z.dim() + self.sites[name].placement.data)

    def state_of_given(self, state: Any) -> Any:
        """See `VAEParts.state_of_given`: the model scores the data it is run on."""
        return state

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
                fn: Any = guide.nodes[name]["fn"]
                dims, axis = len(fn.batch_shape), cores.placement.data
                core_dims = read_site(fn).loc.dim()  # type: ignore[union-attr]
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
