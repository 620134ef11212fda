"""A look at a Pyro model and guide before the loss is computed: what each site is, and whether it makes an AEF."""

from typing import TYPE_CHECKING, Any

import pyro.poutine as poutine
import torch
from pyro.poutine.messenger import Messenger
from torch import Tensor

from vae2aef.errors import WrapError
from vae2aef.modes import own_random_state
from vae2aef.svi.batch_axis import find_batch_axis
from vae2aef.svi.data import depends, substitute, tensors_in
from vae2aef.svi.elbo_handlers import gaussian_scale
from vae2aef.svi.site_map import build_map
from vae2aef.svi.sites import is_subsample, read_site

if TYPE_CHECKING:
    from vae2aef.svi.elbo import AEF_ELBO


def survey(elbo: "AEF_ELBO", model: Any, guide: Any, args: tuple, kwargs: dict[str, Any], data: Tensor) -> None:
    """Meet the sites of model and guide, and make h and n for those that have none yet.

    Nothing is trained or kept but these; torch's random state is left as it was.

    Args:
        elbo: the loss; its `maps`, `added`, `scales` and `notes` are filled.
        model: the model.
        guide: the guide.
        args: of both.
        kwargs: of both.
        data: what h reads.

    Raises:
        WrapError: for anything that makes no AEF; names the site and the fix.
    """
    if isinstance(poutine.unwrap(guide), Messenger):
        raise WrapError(
            f"the guide {type(poutine.unwrap(guide)).__name__} is an effect handler that runs the model itself; ",
            "an AEF needs a guide that is a function or PyroModule of the data",
        )
    with own_random_state(data.device), poutine.block():  # Pyro's handlers outside see nothing of it
        looked, inputs, again = _look(guide, args, kwargs, data)
        with torch.no_grad():
            model_trace = _replay(model, looked, args, kwargs)
    latent = {n: s for n, s in latent_sites(looked).items() if n not in elbo.maps}
    _same_names(looked, model_trace)
    _no_enumeration(looked, model_trace)
    sees = {name: _sees(name, site, inputs, again, data.shape[0]) for name, site in latent.items()}
    known = any(m is not None for m in elbo.maps.values())
    if not any(sees.values()) and not known:
        raise WrapError(
            "no site of the guide sees the data, so there is nothing to encode: "
            + (", ".join(f'"{name}" ({_kind(site)})' for name, site in latent.items()) or "it has no latent sites")
            + ". ",
            "An AEF needs an amortised guide, whose location and scale are computed from the data",
        )
    _observed(elbo, model_trace)
    for name, site in latent.items():
        _meet(elbo, name, site, sees[name], data)
    if not any(m is not None for m in elbo.maps.values()):
        raise WrapError(
            "no site of the guide can be mapped: "
            + ", ".join(f'"{name}" is a {_kind(site)}' for name, site in latent.items())
            + ". ",
            "An AEF needs at least one site of a location-scale family (Normal, Laplace, StudentT, Cauchy, "
            "MultivariateNormal) or a TransformedDistribution over one; discrete and other sites may come beside it",
        )


def latent_sites(trace: Any) -> dict[str, Any]:
    """Return the sites that are drawn, by name, in order."""
    return {
        name: site
        for name, site in trace.nodes.items()
        if site["type"] == "sample" and not site["is_observed"] and not is_subsample(site["fn"])
    }


def _look(guide: Any, args: tuple, kwargs: dict[str, Any], data: Tensor) -> tuple[Any, list[Tensor], Any]:
    """Trace the guide with gradients to the data; and again, without, with other data and the same random numbers."""
    leaf = data.detach().clone().requires_grad_()
    arguments = substitute((args, kwargs), data, leaf)
    inputs = [leaf]
    if not any(t is leaf for t in tensors_in(arguments)):  # data= made it of the arguments: all of these then count
        for old in list(tensors_in((args, kwargs))):
            if old.is_floating_point():
                inputs.append(old.detach().clone().requires_grad_())
                arguments = substitute(arguments, old, inputs[-1])
        inputs = inputs[1:]
    seed = torch.initial_seed() % 2**31
    with torch.enable_grad():
        torch.manual_seed(seed)
        looked = poutine.trace(guide).get_trace(*arguments[0], **arguments[1])
    for value in inputs:
        other = value.detach() + 0.1 * (value.detach().std(correction=0) + 1e-2) * torch.randn_like(value)
        arguments = substitute(arguments, value, other)
    with torch.no_grad():
        torch.manual_seed(seed)
        again = poutine.trace(guide).get_trace(*arguments[0], **arguments[1])
    return looked, inputs, again


def _sees(name: str, site: Any, inputs: list[Tensor], again: Any, rows: int) -> bool:
    """Whether a site's location or scale depends on the data: by autograd or, past `detach`, by trial."""
    if not inputs:  # the data come from outside the arguments: all that can be told is whether there is a row for each
        return any(frame.vectorized and frame.size == rows for frame in site["cond_indep_stack"])
    read = read_site(site["fn"])
    if read is None:
        value = site["value"]
        return isinstance(value, Tensor) and value.is_floating_point() and depends([value], inputs)
    if depends([read.loc, read.scale], inputs):
        return True
    other = read_site(again.nodes[name]["fn"]) if name in again.nodes else None
    return other is not None and not (torch.equal(read.loc, other.loc) and torch.equal(read.scale, other.scale))


def _meet(elbo: "AEF_ELBO", name: str, site: Any, sees: bool, data: Tensor) -> None:
    fn = site["fn"]
    read = read_site(fn)
    if read is None or not sees:
        elbo.maps[name] = None
        why = "does not see the data" if read is not None else "is no location-scale family"
        how = "a reparameterised draw" if getattr(fn, "has_rsample", False) else "a draw with a score-function gradient"
        elbo.notes[name] = f"{_kind(site)}, left to Pyro ({how}): it {why}"
        return
    batch_dims = len(fn.batch_shape)
    frames = site["cond_indep_stack"]
    batch = find_batch_axis(name, read.loc.shape, batch_dims, frames, data.shape[0], elbo.plate)
    site_map = build_map(elbo.core, elbo.core_flow, data.shape[1:], read, batch_dims, batch)
    elbo.added[_key("site", name)] = elbo.maps[name] = site_map
    flow = f", posterior flow of {len(read.transforms)}" if read.transforms else ""
    elbo.notes[name] = f"{_kind(site)}{flow}, mapped; core variables {tuple(batch.latent_shape)} for each datum"


def _observed(elbo: "AEF_ELBO", trace: Any) -> None:
    for name, site in trace.nodes.items():
        if site["type"] != "sample" or not site["is_observed"] or site["infer"].get("_deterministic"):
            continue
        fn = site["fn"]
        if name in elbo.notes or not _discrete(fn):
            continue
        choice = elbo.observed.get(name) if isinstance(elbo.observed, dict) else elbo.observed
        if choice in (None, "keep"):
            elbo.notes[name] = f"observed {_kind(site)}, kept as it is"
        elif choice == "gaussian":
            mean = fn.mean
            if not bool(mean.isfinite().all()):
                raise WrapError(f'observed site "{name}": a {_kind(site)} has no mean to put a Gaussian around')
            scale = gaussian_scale(site["value"].to(mean), fn.event_shape)
            elbo.added[_key("observed", name)] = elbo.scales[name] = scale
            elbo.notes[name] = f"observed {_kind(site)}, replaced by a Gaussian around its mean, scale learned"
        else:
            raise WrapError(
                f'observed site "{name}": expected observed "gaussian" or "keep" for it, got {choice!r}; ',
                "leave observed= out to keep the density that the model has",
            )


def _discrete(fn: Any) -> bool:
    try:
        return bool(getattr(fn.support, "is_discrete", False))
    except NotImplementedError:
        return False


def _replay(model: Any, guide_trace: Any, args: tuple, kwargs: dict[str, Any]) -> Any:
    try:
        return poutine.trace(poutine.replay(model, trace=guide_trace)).get_trace(*args, **kwargs)
    except RuntimeError:
        # Pyro cannot replay a site that the guide has as observed or deterministic: say which, if that is the cause.
        _same_names(guide_trace, poutine.trace(model).get_trace(*args, **kwargs))
        raise


def _same_names(guide_trace: Any, model_trace: Any) -> None:
    guide = {n for n, s in latent_sites(guide_trace).items() if not s["infer"].get("is_auxiliary")}
    model = set(latent_sites(model_trace))
    problems = [
        f'"{name}" is in the {here} and not in the {there}'
        for names, here, there in ((guide - model, "guide", "model"), (model - guide, "model", "guide"))
        for name in sorted(names)
    ]
    if problems:
        raise WrapError(
            "the latent sites of model and guide must have the same names: " + "; ".join(problems) + ". ",
            "Rename them, or mark a helper site of the guide infer={'is_auxiliary': True}",
        )


def _no_enumeration(*traces: Any) -> None:
    for trace in traces:
        for name, site in latent_sites(trace).items():
            if site["infer"].get("enumerate"):
                raise WrapError(
                    f'site "{name}": it is marked for enumeration, and AEF_ELBO draws discrete sites as Trace_ELBO '
                    "does, by the score function; ",
                    "remove infer={'enumerate': ...} (config_enumerate) from it",
                )


def _kind(site: Any) -> str:
    fn = site["fn"]
    while hasattr(fn, "base_dist") and type(fn).__name__ in (
        "Independent",
        "MaskedDistribution",
        "ExpandedDistribution",
    ):
        fn = fn.base_dist
    return type(fn).__name__


def _key(kind: str, name: str) -> str:
    """A name for the parameter store: no dots, which ModuleDict does not take."""
    return f"{kind}_{name}".replace(".", "__")
