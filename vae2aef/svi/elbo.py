"""`AEF_ELBO`: the loss of an AEF for `pyro.infer.SVI`, in the place of `Trace_ELBO`."""

from collections.abc import Callable
from typing import Any

import pyro.poutine as poutine
import torch
from pyro.infer import Trace_ELBO
from pyro.infer.elbo import ELBOModule
from pyro.infer.enum import get_importance_trace
from torch import nn

from vae2aef.errors import NonFiniteError, WrapError
from vae2aef.residual import Residual
from vae2aef.svi.guide import AEFGuide
from vae2aef.svi.guide_maps import GuideMaps
from vae2aef.svi.site_map import SiteMap


class AEF_ELBO(Trace_ELBO):
    """The loss of an AEF (Eq. 9-10) for a Pyro model and guide: `SVI(model, guide, optim, loss=AEF_ELBO())`.

    Each latent site of the guide that is reparameterised by location and scale (Normal, Laplace, StudentT, Cauchy,
    MultivariateNormal, LowRankMultivariateNormal, also under `to_event` and `mask`, and a TransformedDistribution
    over one) and sees the data takes the value loc + scale * n^-1(h(x) + sigma epsilon) instead of a draw. The loss
    is -(log p(z, x) + log-determinants + entropy of the noise), summed as Pyro sums: over all data, with plates,
    subsampling, `scale` and `mask` honoured. With several latent sites the map is triangular, and the log-
    determinants add. Other sites (global ones, discrete ones, other families) keep `Trace_ELBO`'s treatment:
    `print(elbo)` lists what became of each.

    With `noise > 0` the loss is a bound on -log p(x), like every ELBO. At `noise=0` it is the exact negative log-
    likelihood in the expanded space (Eq. 10): a training objective, unbounded below, and **no likelihood of x**.

    h and n are made at the first call and registered in Pyro's parameter store.

    Args:
        core: `"linear"`, `"step"`, `"sum"`, `"log"`, `"noise"`, a module, or a dict of these by site, as in
            `vae2aef.aef_guide`. With `"noise"` and `core_flow="none"` the loss is the guide's negative ELBO, with its
            entropy in closed form.
        core_flow: None, the default, is `"none"`; `"coupling"`, `"maf"`, a bijection or transform (`vae2aef.wrap`), or
            a dict of these by site.
        noise: sigma of Eq. 11; None for 0.3, as in `vae2aef.wrap` and `from_pyro` (1 with `core="noise"`). 0 is the
            paper's loss. May be changed while training: `elbo.noise = 0.1`.
        data: what h reads: None for what the observed sites score (the largest tensor, if there are several), the
            name of an argument, or a callable of the arguments.
        plate: the name of the data's plate, where sizes do not tell.
        observed: None keeps the densities that the model has, of discrete data too; `"gaussian"` gives discrete
            observed sites a Gaussian around their mean, with a learned scale a feature; or a dict (any mapping) of
            `"gaussian"` and `"keep"` by site, of which some may be left out.
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
        core_flow: Any = None,
        noise: float | None = None,
        *,
        data: "str | Callable[..., Any] | None" = None,
        plate: str | None = None,
        observed: "str | dict[str, str] | None" = None,
        name: str | None = None,
        **options: Any,
    ) -> None:
        super().__init__(**options)
        self._maps = GuideMaps(core, core_flow, noise, data, plate, observed, name)
        self.core, self.core_flow, self.data, self.plate, self.observed = core, core_flow, data, plate, observed
        self.name = name

    @property
    def added(self) -> nn.ModuleDict:
        """The modules that are added, by site."""
        return self._maps.added

    @property
    def maps(self) -> dict[str, SiteMap | None]:
        """The maps, h and n, of each latent site that is mapped; None for those left to Pyro."""
        return self._maps.maps

    @property
    def scales(self) -> dict[str, Residual]:
        """The residual of each observed site made Gaussian."""
        return self._maps.scales

    @property
    def notes(self) -> dict[str, str]:
        """What became of each site, in words."""
        return self._maps.notes

    @property
    def noise(self) -> float:
        """The noise sigma on the core variables (Eq. 11). May be changed at any time while training."""
        return self._maps.noise

    @noise.setter
    def noise(self, value: float | None) -> None:
        self._maps.noise = value

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

    def trained(self) -> dict[str, dict[str, Any]]:
        """Return h and n of each mapped site, to go on with: `vae2aef.from_pyro(model, guide, x, **elbo.trained())`."""
        return self._maps.trained()

    def guide(self, model: Any, guide: Any) -> AEFGuide:
        """Return the guide with what this loss has added: for `Predictive`, `Importance`, or any other loss of Pyro.

        At `noise > 0` its sites have the log density of z, which such weights need; the loss itself takes its mean
        over epsilon, with the same gradients and less spread.
        """
        return AEFGuide(model, guide, self._maps)

    def _get_trace(self, model: Any, guide: Any, args: tuple, kwargs: dict[str, Any]) -> tuple[Any, Any]:
        """Run the AEF guide, and the model at its values."""
        if isinstance(poutine.unwrap(guide), AEFGuide):
            raise WrapError(
                "the guide is an AEF guide already; ",
                "use it with Pyro's own losses, or give AEF_ELBO its `.guide`",
            )
        aef = AEFGuide(model, guide, self._maps, entropy="closed")
        model_trace, guide_trace = get_importance_trace("flat", self.max_plate_nesting, aef.model, aef, args, kwargs)
        _no_enumeration(guide_trace, model_trace)
        _require_finite(model_trace, guide_trace)
        return model_trace, guide_trace

    def __repr__(self) -> str:
        return f"AEF_ELBO: {self._maps!r}"


class _LossModule(ELBOModule):
    """Pyro's module of model, guide and loss, which has the loss's own parameters too."""

    def __init__(self, model: Any, guide: Any, elbo: AEF_ELBO) -> None:
        super().__init__(model, guide, elbo)
        self.added = elbo.added


def _no_enumeration(*traces: Any) -> None:
    for trace in traces:
        for name, site in trace.nodes.items():
            if site["type"] == "sample" and not site["is_observed"] and (site["infer"] or {}).get("enumerate"):
                raise WrapError(
                    f'site "{name}": it is marked for enumeration, and AEF_ELBO draws discrete sites as Trace_ELBO '
                    "does, by the score function; ",
                    "use loss=TraceEnum_ELBO() with vae2aef.aef_guide(model, guide), or remove "
                    "infer={'enumerate': ...} (config_enumerate) from it",
                )


def _require_finite(model_trace: Any, guide_trace: Any) -> None:
    total = model_trace.log_prob_sum() - guide_trace.log_prob_sum()
    if bool(torch.as_tensor(total).isfinite()):
        return
    for trace, what in ((guide_trace, "log-determinant"), (model_trace, "log density")):
        for name, site in trace.nodes.items():
            if site["type"] == "sample" and not bool(torch.as_tensor(site["log_prob_sum"]).isfinite()):
                raise NonFiniteError(f'the {what} of site "{name}" is not finite')
    raise NonFiniteError("the loss is not finite, though each of its terms is: it overflowed when summed")
