"""`AEF_ELBO`: the loss of an AEF for `pyro.infer.SVI`, in the place of `Trace_ELBO`."""

import math
import weakref
from collections.abc import Callable
from itertools import count
from typing import Any

import pyro
import torch
from pyro.infer import Trace_ELBO
from pyro.infer.elbo import ELBOModule
from pyro.infer.enum import get_importance_trace
from torch import Tensor, nn

from vae2aef.errors import NonFiniteError, WrapError
from vae2aef.residual import Residual
from vae2aef.svi.data import find_data
from vae2aef.svi.elbo_handlers import GuideHandler, ModelHandler, UnknownSite
from vae2aef.svi.site_map import SiteMap
from vae2aef.svi.survey import survey

_owners: "weakref.WeakValueDictionary[str, AEF_ELBO]" = weakref.WeakValueDictionary()


class AEF_ELBO(Trace_ELBO):
    """The loss of an AEF (Eq. 9-10) for a Pyro model and guide: `SVI(model, guide, optim, loss=AEF_ELBO())`.

    Each latent site of the guide that is reparameterised by location and scale (Normal, Laplace, StudentT, Cauchy,
    MultivariateNormal, LowRankMultivariateNormal, also under `to_event` and `mask`, and a TransformedDistribution
    over one) and sees the data takes the value loc + scale * n^-1(h(x) + sigma epsilon) instead of a draw. The loss
    is -(log p(z, x) + log-determinants + entropy of the noise), summed as Pyro sums: over all data, with plates,
    subsampling, `scale` and `mask` honoured. With several latent sites the map is triangular, and the log-
    determinants add. Other sites (global ones, discrete ones, other families) keep `Trace_ELBO`'s treatment:
    `print(elbo)` lists what became of each.

    At `noise=0` the loss is the exact negative log-likelihood in the expanded space: a training objective,
    unbounded below, and **no likelihood of x**. With `noise > 0` it is a bound on -log p(x), like every ELBO.

    h and n are made at the first call and registered in Pyro's parameter store.

    Args:
        core: `"linear"` (h(x) = W x + b), `"noise"` (the guide itself: the loss is its negative ELBO, with the
            entropy of the guide in closed form), a module, or a dict of these by site.
        core_flow: `"none"`, `"coupling"`, `"maf"`, a bijection or transform (`vae2aef.wrap`), or a dict by site.
        noise: sigma of Eq. 11. May be changed while training: `elbo.noise = 0.1`.
        data: what h reads: None for the guide's first tensor argument, the name of an argument, or a callable of
            the arguments.
        plate: the name of the data's plate, where sizes do not tell.
        observed: None keeps the densities that the model has, of discrete data too; `"gaussian"` gives discrete
            observed sites a Gaussian around their mean, with a learned scale a feature; or a dict of `"gaussian"` and
            `"keep"` by site.
        name: prefix in the parameter store; by default "aef", or "aef_2" while another loss uses that.
        **options: `num_particles`, `vectorize_particles`, `max_plate_nesting`, `retain_graph`: as in Pyro's ELBO.

    Raises:
        WrapError: at the first call, where model and guide make no AEF; names the site and the fix.
        NonFiniteError: if the loss is NaN or infinite; names the site.

    References:
        Silvestri, Roos, Ambrogioni, *Deterministic training of generative autoencoders using invertible layers*,
        ICLR 2023.
    """

    def __init__(
        self,
        core: Any = "linear",
        core_flow: Any = "coupling",
        noise: float = 0.0,
        *,
        data: "str | Callable[..., Tensor] | None" = None,
        plate: str | None = None,
        observed: "str | dict[str, str] | None" = None,
        name: str | None = None,
        **options: Any,
    ) -> None:
        super().__init__(**options)
        self.core, self.core_flow = core, core_flow
        self.data, self.plate, self.observed, self.name = data, plate, observed, name
        if core == "noise" and noise not in (0.0, 1.0):
            raise ValueError(f'core="noise" is the guide itself, whose noise is 1 by definition; got noise={noise}')
        if observed is not None and not isinstance(observed, dict) and observed != "gaussian":
            raise ValueError(f'expected observed None, "gaussian" or a dict by site; got {observed!r}')
        self.noise = 1.0 if core == "noise" else noise
        self.added = nn.ModuleDict()
        self.maps: dict[str, SiteMap | None] = {}
        self.scales: dict[str, Residual] = {}
        self.notes: dict[str, str] = {}
        self._prefix = ""

    @property
    def noise(self) -> float:
        """The noise sigma on the core variables (Eq. 11). May be changed at any time while training."""
        return self._noise

    @noise.setter
    def noise(self, value: float) -> None:
        if not (math.isfinite(value) and value >= 0):
            raise ValueError(f"expected noise >= 0, got {value}")
        self._noise = float(value)

    def __call__(self, model: Any, guide: Any, *args: Any, **kwargs: Any) -> Any:
        """Return a module whose forward is the loss, as Pyro's ELBO does; or the loss, if arguments are given.

        The parameters of h and n are among those of the module once it has been called.

        Args:
            model: the model.
            guide: the guide.
            *args: of model and guide.
            **kwargs: of model and guide.
        """
        if args or kwargs:
            return self.differentiable_loss(model, guide, *args, **kwargs)
        return _LossModule(model, guide, self)

    def trained(self) -> dict[str, dict[str, nn.Module]]:
        """Return h and n of each mapped site, to go on with: `vae2aef.from_pyro(model, guide, x, **elbo.trained())`."""
        maps = {name: site_map for name, site_map in self.maps.items() if site_map is not None}
        return {
            "core": {name: site_map.features for name, site_map in maps.items()},
            "core_flow": {name: site_map.flow for name, site_map in maps.items()},
        }

    def _get_trace(self, model: Any, guide: Any, args: tuple, kwargs: dict[str, Any]) -> tuple[Any, Any]:
        """Run the guide with mapped sites, and the model at their values: the one step that differs from Pyro's."""
        data = find_data(guide, args, kwargs, self.data)
        while True:
            # A structure met for the first time is looked at, and the run begins anew with the same random numbers.
            state = torch.get_rng_state()
            try:
                model_trace, guide_trace = self._run(model, guide, args, kwargs, data)
            except UnknownSite:
                torch.set_rng_state(state)
                survey(self, model, guide, args, kwargs, data)
            else:
                _require_finite(model_trace, guide_trace)
                return model_trace, guide_trace

    def _run(self, model: Any, guide: Any, args: tuple, kwargs: Any, data: Tensor) -> tuple[Any, Any]:
        def registered(*args: Any, **kwargs: Any) -> Any:
            self._register()
            return guide(*args, **kwargs)

        handler = GuideHandler(self.maps, data, self.noise)
        return get_importance_trace(
            "flat", self.max_plate_nesting, ModelHandler(self.scales)(model), handler(registered), args, kwargs
        )

    def _register(self) -> None:
        """Put the parameters into Pyro's store, or take them from it where it has others (loaded ones)."""
        if not self.maps:
            return
        if not self._prefix or _owners.get(self._prefix) is not self:
            self._prefix = self._claim()
        store = pyro.get_param_store()
        for key, parameter in self.added.named_parameters():
            full = f"{self._prefix}$$${key}"
            if full in store and store[full].shape != parameter.shape:
                raise WrapError(
                    f'the parameter store holds "{full}" of shape {tuple(store[full].shape)}, expected '
                    f"{tuple(parameter.shape)}: it is from another model. Call pyro.clear_param_store(), or pass "
                    "AEF_ELBO(name=...)"
                )
        pyro.module(self._prefix, self.added, update_module_params=True)

    def _claim(self) -> str:
        """Choose a prefix that no other living loss uses in the store as it is."""
        base = self.name or "aef"
        for number in count(1):
            prefix = base if number == 1 else f"{base}_{number}"
            owner = _owners.get(prefix)
            used = any(key.startswith(f"{prefix}$$$") for key in pyro.get_param_store())
            if owner is None or owner is self or not used:
                _owners[prefix] = self
                return prefix
            if self.name is not None:
                raise WrapError(f'the name "{self.name}" is used by another AEF_ELBO: choose another, or leave it out')
        raise AssertionError  # count does not end

    def __repr__(self) -> str:
        lines = [f"AEF_ELBO: noise sigma = {self.noise:g}"]
        if not self.notes:
            lines.append("  sites: read from model and guide at the first call")
        lines += [f'  site "{site}": {note}' for site, note in self.notes.items()]
        return "\n".join(lines)


class _LossModule(ELBOModule):
    """Pyro's module of model, guide and loss, which has the loss's own parameters too."""

    def __init__(self, model: Any, guide: Any, elbo: AEF_ELBO) -> None:
        super().__init__(model, guide, elbo)
        self.added = elbo.added


def _require_finite(model_trace: Any, guide_trace: Any) -> None:
    total = model_trace.log_prob_sum() - guide_trace.log_prob_sum()
    if bool(torch.as_tensor(total).isfinite()):
        return
    for trace, what in ((guide_trace, "log-determinant"), (model_trace, "log density")):
        for name, site in trace.nodes.items():
            if site["type"] == "sample" and not bool(torch.as_tensor(site["log_prob_sum"]).isfinite()):
                raise NonFiniteError(f'the {what} of site "{name}" is not finite')
    raise NonFiniteError("the loss is not finite, though each of its terms is: it overflowed when summed")
