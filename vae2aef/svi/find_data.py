"""Find out which argument the observed sites score."""

from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor

from vae2aef.svi.data import Source, chosen, score_of
from vae2aef.svi.dtypes import naming_dtypes
from vae2aef.svi.proof import other_values
from vae2aef.svi.quiet import quiet
from vae2aef.svi.reading import Unit, alike, at, bind, units
from vae2aef.svi.runs import Runs, latent_sites, observed_sites


def find_source(model: Any, guide: Any, args: tuple, kwargs: dict[str, Any], data: Any) -> Source | None:
    """Return where the data are among the arguments of a pair; None if nothing is observed.

    Raises:
        WrapError: if `data` names no argument.
    """
    named = bind(guide, args, kwargs)
    given = chosen(data, named)
    every = list(units(named))
    with naming_dtypes(every, model, guide, args, kwargs), quiet(device_of(every), model, guide):
        return source_of(Runs(model, guide, args, kwargs, named), given)


def device_of(every: list[Unit]) -> torch.device:
    """Return the device of the first tensor among the arguments."""
    return every[0].tensors[0].device if every else torch.device("cpu")


def source_of(runs: Runs, given: Source | None) -> Source | None:
    """Return where h's data come from: what the user says; or of what the observed sites score, the largest tensor."""
    observed = observed_sites(runs.model_trace)
    found = (list(_scored(runs, observed)) or list(_moving(runs, observed))) if observed else []
    source = given or _largest(runs, observed, found)
    if source is None:
        return None
    args, kwargs = runs.arguments
    named = at(runs.named, source.path) if source.make is None else source.make(*args, **kwargs)
    if alike(named):
        return source._replace(ragged=_one_a_row(runs, named, found, observed))
    outer = source.path[:-1]
    sequences = at(runs.named, outer) if source.path else None
    if given is None and alike(sequences) and _one_a_row(runs, sequences, found, observed):
        return source._replace(path=outer, ragged=True)
    return source


def _one_a_row(runs: Runs, sequences: list[Tensor], found: "list[Scored]", observed: dict[str, Any]) -> bool:
    """Whether a list is one of sequences, one a row, and not of tensors that have a row for each datum."""
    if len({len(s) for s in sequences}) > 1:
        return True
    plates = _plate_sizes(runs)
    if len(sequences) > 1:  # what one site scores together are rows
        ours = {id(s) for s in sequences}
        scoring = [name for unit, names in found if id(unit.value) in ours for name in names]
        return len(set(scoring)) < len(scoring) and (not plates or len(sequences) in plates)
    values = [s["value"] for s in observed.values() if isinstance(s["value"], Tensor)]
    stacked = any(value.dim() > sequences[0].dim() for value in values)
    return 1 in plates and (stacked or len(sequences[0]) not in plates)


def _plate_sizes(runs: Runs) -> set[int]:
    sites = [*latent_sites(runs.guide_trace).values(), *observed_sites(runs.model_trace).values()]
    return {frame.size for site in sites for frame in site["cond_indep_stack"] if frame.vectorized}


def _largest(runs: Runs, observed: dict[str, Any], found: "list[Scored]") -> Source | None:
    """Return the tensor with most values of those that the observed sites score."""
    if not observed or not runs.units:
        return None
    if not found:
        return Source(runs.units[0].path, None, "the first tensor; no observed site scores an argument")
    unit, sites = max(found, key=lambda pair: sum(t.numel() for t in pair[0].tensors))
    listed = ", ".join(f'"{name}"' for name in sites[:3]) + (f" and {len(sites) - 3} more" * (len(sites) > 3))
    verb = f"sites {listed} score" if len(sites) > 1 else f"site {listed} scores"
    most = ", the largest of the tensors that are scored" if len(found) > 1 else ""
    return Source(unit.path, None, f"what the observed {verb}{most}")


Scored = tuple[Unit, list[str]]
"""An argument, and the observed sites that score it."""


def _scored(runs: Runs, observed: dict[str, Any]) -> Iterator[Scored]:
    """Yield the arguments that observed sites score, by autograd or because they are what is scored."""
    for unit in runs.units:
        sites = score_of(unit, runs.leaves(unit), observed)
        if sites:
            yield unit, sites


def _moving(runs: Runs, observed: dict[str, Any]) -> Iterator[Scored]:
    """Yield the arguments with which what is scored changes: where autograd is no help, after `x > 0`."""
    for unit in runs.units:
        moved = {id(t): other_values(t) for t in unit.tensors}
        try:
            others = runs.model_on(_instead(moved)).nodes
        except Exception:  # other values may be none that the model takes
            continue
        sites = [name for name, site in observed.items() if name in others and _differ(site, others[name])]
        if sites:
            yield unit, sites


def _instead(moved: dict[int, Tensor]) -> Callable[[Tensor], Tensor]:
    return lambda tensor: moved.get(id(tensor), tensor)


def _differ(site: Any, other: Any) -> bool:
    """Whether what a site scores is another; of `pyro.factor`, the factor itself."""
    first, second = _what(site), _what(other)
    return first.shape != second.shape or not torch.equal(first, second)


def _what(site: Any) -> Tensor:
    value = torch.as_tensor(site["value"])
    return value if value.numel() else torch.as_tensor(site["fn"].log_prob(value))
