"""`aef_guide`: a Pyro guide whose sites are placed by an AEF, for any of Pyro's losses and for predictions."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from vae2aef.errors import WrapError
from vae2aef.svi.data import as_data
from vae2aef.svi.elbo_handlers import GuideHandler, ModelHandler
from vae2aef.svi.guide_maps import GuideMaps
from vae2aef.svi.mapped import ENTROPIES
from vae2aef.svi.quiet import kept_by_pyro
from vae2aef.svi.reading import bind
from vae2aef.svi.survey import survey


def aef_guide(
    model: Callable[..., Any],
    guide: Callable[..., Any],
    *,
    core: Any = "linear",
    core_flow: Any = None,
    noise: float | None = None,
    data: "str | Callable[..., Any] | None" = None,
    plate: str | None = None,
    observed: "str | dict[str, str] | None" = None,
    name: str | None = None,
    entropy: str = "sampled",
) -> "AEFGuide":
    """Return a guide that any loss of Pyro can use, `Predictive` and `Importance` too.

    `SVI(model, aef_guide(model, guide), optim, loss=Trace_ELBO())` trains the AEF, and so does any other loss.

    Each latent site of the guide that is reparameterised by location and scale (Normal, Laplace, StudentT, Cauchy,
    MultivariateNormal, LowRankMultivariateNormal, also under `to_event` and `mask`, and a TransformedDistribution
    over one) and sees the data takes the value loc + scale * n^-1(h(x) + sigma epsilon) instead of a draw (Eq. 9, 11).
    All else is the guide's: other sites, plates, enumeration, `infer=`, parameters. After the first call with data, one
    without observed data, such as for a prediction from conditions alone, is the guide itself.

    With `noise > 0` a loss is what it is for any guide. With `noise=0` it is the negative log-likelihood in the
    expanded space: a training objective, unbounded below, and **no likelihood of x**; `RenyiELBO` and `Importance`,
    whose weights must be of several values, are of no use then.

    h and n are made when a site is first met, and registered in Pyro's parameter store.

    Args:
        model: the model.
        guide: the guide, of the same arguments; `config_enumerate` may be around it, or around the result.
        core: `"linear"`: h(x) = W x + b. Of sequences that come as a list or packed, h reads the time step of the
            site, where the sites are numbered like the steps (z_1, z_2, ...), else the sum over time steps; of padded
            ones with a mask around the site, its time step where they are numbered so, else all values.
            `"step"`: W x_t + b of the site's time step, `"sum"`: of the sum over time steps, the second dimension,
            `"log"`: W log(1 + x) + b, for large counts, `"noise"`: h = 0 and sigma = 1, the guide itself; a module
            from data `(rows, *event)` to `(rows, *latent)`; or a dict of these by site.
        core_flow: None, the default, is `"none"`; `"coupling"`, `"maf"`, a bijection or transform (`vae2aef.wrap`), or
            a dict of these by site.
        noise: sigma of Eq. 11; None for 0.3, as in `vae2aef.wrap` and `from_pyro` (1 with `core="noise"`). 0 is the
            paper's loss. May be changed while training: `guide.noise = 0.1`.
        data: what h reads: None for what the observed sites score (the largest tensor, if there are several), the name
            of an argument, or a callable of the arguments. Integers are read as numbers, if a discrete site scores
            them; packed and ragged sequences are filled up with zeros.
        plate: the name of the data's plate, where sizes do not tell.
        observed: None keeps the densities that the model has; `"gaussian"`, or a dict of `"gaussian"` and `"keep"` by
            site, as in `vae2aef.AEF_ELBO`. It is a change of the model, which a guide cannot make: give the loss, and
            `Predictive`, `aef.model` in the place of the model, `SVI(aef.model, aef, ...)`.
        name: prefix in the parameter store; by default "aef", or "aef_2" while another uses that.
        entropy: at `noise > 0`, `"sampled"` gives losses the log density of z, `"closed"` its mean over epsilon, with
            less spread: not for `RenyiELBO` and `Importance`, whose weights it would falsify.

    Raises:
        ValueError: for an option that has no meaning.
        WrapError: at the first call, where model and guide make no AEF; names the site and the fix.

    References:
        Silvestri, Roos, Ambrogioni, *Deterministic training of generative autoencoders using invertible layers*,
        ICLR 2023.
    """
    return AEFGuide(model, guide, GuideMaps(core, core_flow, noise, data, plate, observed, name), entropy)


class AEFGuide(nn.Module):
    """A guide whose sites are placed by an AEF; see `aef_guide`.

    Its `state_dict` has h and n of each site, and the guide's own parameters if that is a module. It may be loaded
    before the first call.

    Args:
        model: the model, which is looked at and not kept as part of this module.
        guide: the guide.
        maps: what is known of its sites.
        entropy: see `aef_guide`.
    """

    guide: Callable[..., Any]
    _model: Callable[..., Any]

    def __init__(self, model: Any, guide: Any, maps: GuideMaps, entropy: str = "sampled") -> None:
        if entropy not in ENTROPIES:
            raise ValueError(f'expected entropy "sampled" or "closed", got {entropy!r}')
        super().__init__()
        self.entropy = entropy
        if isinstance(guide, nn.Module):
            self.guide = guide
        else:
            self.__dict__["guide"] = guide
        self.__dict__["_model"] = model
        self.maps = maps
        self.added = maps.added

    @property
    def model(self) -> Any:
        """The model, with a Gaussian in the place of what `observed="gaussian"` names."""
        return ModelHandler(self.maps.scales)(self._model) if self.maps.observed else self._model

    @property
    def noise(self) -> float:
        """The noise sigma on the core variables (Eq. 11)."""
        return self.maps.noise

    @noise.setter
    def noise(self, value: float | None) -> None:
        self.maps.noise = value

    def trained(self) -> dict[str, dict[str, Any]]:
        """Return h and n of each mapped site: `vae2aef.from_pyro(model, guide, x, **aef.trained())`."""
        return self.maps.trained()

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """Run the guide, and return what it returns.

        Raises:
            WrapError: for a call of new structure that makes no AEF; names the site and the fix.
        """
        try:
            return self._run(args, kwargs)
        except WrapError as error:
            raise kept_by_pyro(error) from error.__cause__

    def _run(self, args: tuple, kwargs: dict[str, Any]) -> Any:
        maps = self.maps
        named = bind(self.guide, args, kwargs)
        start = torch.get_rng_state()
        if maps.structure(named) not in maps.structures:
            survey(maps, self._model, self.guide, args, kwargs)
            maps.structures.add(maps.structure(named))
        data = self._data(args, kwargs, named)
        if data is None:
            return self.guide(*args, **kwargs)
        maps.register()

        def meet(site: str) -> None:
            survey(maps, self._model, self.guide, args, kwargs, start)
            if site not in maps.maps:
                raise WrapError(
                    f'site "{site}" of the guide was not there when the guide was run again with the same arguments '
                    "and random numbers; ",
                    "let the sites of a guide depend on these alone",
                )
            maps.register()

        with GuideHandler(maps, data, meet, self.entropy):
            return self.guide(*args, **kwargs)

    def _data(self, args: tuple, kwargs: dict[str, Any], named: dict[str, Any]) -> Tensor | None:
        """Return what h reads in a call; None if the call has no data."""
        maps = self.maps
        if maps.source is None:
            return None
        unit = maps.source.read(args, kwargs, named)
        return None if unit is None else as_data(unit, maps.data is not None, maps.discrete)

    def __repr__(self) -> str:
        return f"AEF guide: {self.maps!r}"
