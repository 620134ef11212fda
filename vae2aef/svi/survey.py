"""A look at a Pyro model and guide before the loss is computed: what each site is, and whether it makes an AEF."""

import re
from typing import Any

import pyro.poutine as poutine
import torch
from pyro.poutine.messenger import Messenger
from torch import Tensor

from vae2aef.errors import WrapError
from vae2aef.svi.batch_axis import find_batch_axis
from vae2aef.svi.data import Source, as_data, chosen, depends, score_of
from vae2aef.svi.dtypes import naming_dtypes
from vae2aef.svi.find_data import device_of, source_of
from vae2aef.svi.guide_maps import GuideMaps
from vae2aef.svi.observed import is_discrete, note_observed, require_known
from vae2aef.svi.proof import other_values, prove_no_leak
from vae2aef.svi.quiet import quiet
from vae2aef.svi.reading import Unit, bind, units
from vae2aef.svi.runs import Runs, latent_sites, observed_sites
from vae2aef.svi.site_map import build_map
from vae2aef.svi.sites import ELEMENTWISE, TRIANGULAR, kind_of, read_site, store_key
from vae2aef.svi.time_steps import time_steps


def survey(
    maps: GuideMaps, model: Any, guide: Any, args: tuple, kwargs: dict[str, Any], start: Tensor | None = None
) -> None:
    """Meet the sites of model and guide, and make h and n for those that have none yet.

    Nothing is trained or kept but these; see `vae2aef.svi.quiet` for what is left as it was.

    Args:
        maps: what is known, to which the rest is added.
        model: the model.
        guide: the guide.
        args: of both.
        kwargs: of both.
        start: the random state to begin with; None for the present one.

    Raises:
        WrapError: for anything that makes no AEF; names the site and the fix.
    """
    if isinstance(poutine.unwrap(guide), Messenger):
        raise WrapError(
            f"the guide {type(poutine.unwrap(guide)).__name__} is an effect handler that runs the model itself; ",
            "an AEF needs a guide that is a function or PyroModule of the data",
        )
    named = bind(guide, args, kwargs)
    given = None if maps.source else chosen(maps.data, named)
    every = list(units(named))
    if not every and given is None and not maps.maps:
        as_data(None, given=False)  # says that there is nothing to encode
    try:
        floating = [u for u in every if u.floating]
        naming = naming_dtypes(floating, model, guide, args, kwargs)
        with naming, quiet(device_of(every), model, guide):
            if start is not None:
                torch.set_rng_state(start)
            runs = Runs(model, guide, args, kwargs, named)
            _same_names(runs, maps.observed_names)
            source = maps.source or source_of(runs, given)
            _add(maps, runs, source)
    except RuntimeError as error:
        if _of_dtype(error, every):
            as_data(every[0], given is not None)  # says that whole numbers are no data
        raise


def _of_dtype(error: RuntimeError, every: list[Unit]) -> bool:
    """Whether torch says that whole numbers came where others were expected."""
    said = re.search(r"\bdtype\b|scalar type|[Ii]nput type|'(Long|Int|Short|Char|Byte|Bool)'", str(error))
    return bool(every and said) and not any(unit.floating for unit in every)


def _add(maps: GuideMaps, runs: Runs, source: Source | None) -> None:
    """Add what two runs show; see `survey`."""
    unit = None
    if source is not None:
        runs.group(source.list_at)
        unit = source.read(*runs.arguments, runs.named)
    observed = observed_sites(runs.model_trace)
    require_known(maps, runs.model_trace)
    note_observed(maps, observed)
    if unit is None and (source is not None or not observed):
        return  # a call without data, such as for a prediction: the guide is run as it is
    maps.discrete = maps.discrete or any(is_discrete(site["fn"]) for site in observed.values())
    data = as_data(unit, maps.data is not None, maps.discrete)
    maps.source = source
    scored = [other for other in runs.units if score_of(other, runs.leaves(other), observed)]
    prove_no_leak(runs, scored)
    latent = {n: s for n, s in latent_sites(runs.guide_trace).items() if n not in maps.maps}
    sees = _sees(latent, runs, _inputs(runs, source, [unit, *scored]), len(data))
    _require_amortised(maps, latent, sees)
    steps = time_steps(latent_sites(runs.guide_trace), data.shape[1] if data.dim() > 1 else 0)
    for name, site in latent.items():
        _meet(maps, name, site, sees[name], data, steps.get(name), unit is not None and unit.ragged)
    _require_mapped(maps, latent)


def _inputs(runs: Runs, source: Source | None, seen: list[Unit | None]) -> list[Tensor]:
    """Return what autograd follows in the place of the data."""
    found = [leaf for unit in seen if unit is not None for leaf in runs.leaves(unit)]
    if found or source is None or source.make is None:
        return found
    return [leaf for unit in runs.units for leaf in runs.leaves(unit)]  # made of the arguments: all of them count


def _sees(latent: dict[str, Any], runs: Runs, inputs: list[Tensor], rows: int) -> dict[str, bool]:
    """Whether the location or scale of each site depends on the data: by autograd or, past `detach`, by trial."""
    if not runs.units:
        # The data come from outside the arguments: all that can be told is whether there is a row for each.
        return {n: any(f.vectorized and f.size == rows for f in s["cond_indep_stack"]) for n, s in latent.items()}
    found = {name: depends(_parameters(site), inputs) for name, site in latent.items()}
    doubtful = [name for name, sees in found.items() if not sees and read_site(latent[name]["fn"]) is not None]
    if doubtful:
        again = runs.guide_on(other_values).nodes
        found.update({name: name in again and _moved(latent[name], again[name]) for name in doubtful})
    return found


def _parameters(site: Any) -> list[Tensor]:
    """Return the location and scale of a site; its value where it has none."""
    read = read_site(site["fn"])
    outputs = [site["value"]] if read is None else [read.loc, read.scale]
    return [o for o in outputs if isinstance(o, Tensor) and o.is_floating_point()]


def _moved(site: Any, other: Any) -> bool:
    pairs = zip(_parameters(site), _parameters(other), strict=False)
    return not all(torch.equal(first, second) for first, second in pairs)


def _meet(maps: GuideMaps, name: str, site: Any, sees: bool, data: Tensor, step: int | None, ragged: bool) -> None:
    fn = site["fn"]
    read = read_site(fn)
    if read is None or not sees:
        maps.maps[name] = None
        drawn = "is not reparameterised (has_rsample is off)" if _reparameterised_else(fn) else ""
        why = "does not see the data" if read is not None else drawn or "is no location-scale family"
        how = "a reparameterised draw" if getattr(fn, "has_rsample", False) else "a draw with a score-function gradient"
        if site["infer"].get("enumerate"):
            how = "enumerated by TraceEnum_ELBO"
        if site["infer"].get("baseline"):
            how += ", its baseline used by TraceGraph_ELBO alone"
        maps.notes[name] = f"{kind_of(site)}, left to Pyro ({how}): it {why}"
        return
    batch = find_batch_axis(name, read.loc.shape, len(fn.batch_shape), site["cond_indep_stack"], len(data), maps.plate)
    masked = read.mask is not None or site["mask"] is not None
    varying = "ragged" if ragged else "masked" if masked else None
    site_map, reads = build_map(maps, data, read, len(fn.batch_shape), batch, step, varying)
    maps.maps[name] = site_map
    maps.added.add(store_key("site", name), site_map)
    flow = f", posterior flow of {len(read.transforms)}" if read.transforms else ""
    maps.notes[name] = (
        f"{kind_of(site)}{flow}, mapped; core variables {tuple(batch.latent_shape)} for each datum{reads}"
    )


def _reparameterised_else(fn: Any) -> bool:
    """Whether a distribution would be mapped if it were reparameterised."""
    while hasattr(fn, "base_dist"):
        fn = fn.base_dist
    return not fn.has_rsample and isinstance(fn, (*ELEMENTWISE, *TRIANGULAR))


def _require_amortised(maps: GuideMaps, latent: dict[str, Any], sees: dict[str, bool]) -> None:
    if not any(sees.values()) and not any(m is not None for m in maps.maps.values()):
        raise WrapError(
            "no site of the guide sees the data, so there is nothing to encode: "
            + (", ".join(f'"{name}" ({kind_of(site)})' for name, site in latent.items()) or "it has no latent sites")
            + ". ",
            "An AEF needs an amortised guide, whose location and scale are computed from the data",
        )


def _require_mapped(maps: GuideMaps, latent: dict[str, Any]) -> None:
    if not any(m is not None for m in maps.maps.values()):
        raise WrapError(
            "no site of the guide can be mapped: "
            + ", ".join(f'"{name}" is a {kind_of(site)}' for name, site in latent.items())
            + ". ",
            "An AEF needs at least one site of a location-scale family (Normal, Laplace, StudentT, Cauchy, "
            "MultivariateNormal) or a TransformedDistribution over one; discrete and other sites may come beside it",
        )


def _same_names(runs: Runs, observed: set[str]) -> None:
    if not observed_sites(runs.model_trace):
        return  # a call without data, in which the model draws what it observes in others
    found = latent_sites(runs.guide_trace)
    guide = {name for name, site in found.items() if not site["infer"].get("is_auxiliary")}
    drawn = latent_sites(runs.model_trace)
    model = {n for n, s in drawn.items() if n in found or s["infer"].get("enumerate") != "parallel"}
    problems = [
        f'"{name}" is in the {here} and not in the {there}'
        for names, here, there in (
            (guide - model, "guide", "model"),
            (model - found.keys() - observed, "model", "guide"),
        )
        for name in sorted(names)
    ]
    if problems:
        raise WrapError(
            "the latent sites of model and guide must have the same names: " + "; ".join(problems) + ". ",
            "Rename them, or mark a helper site of the guide infer={'is_auxiliary': True}",
        )
