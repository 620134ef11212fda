"""Prove that what a model says at given latents is a density of the data: no site sees what it scores, or comes later.

The model is run once more at the same latents, on other data. If no density has moved, it is one of x given z. A model
may score the data piece by piece, each given those before it: a site for each time step, or one site whose every value
depends on those before it. So, where a density has moved, the data that the site itself and the later ones score are
changed alone; and then, inside the site, those from some place on.
"""

import copy
from typing import Any

import torch
from torch import Tensor

from vae2aef.errors import WrapError
from vae2aef.svi.reading import Unit, written
from vae2aef.svi.runs import Runs, latent_sites, observed_sites
from vae2aef.tracing.other_data import close, other_data

MOST_CUTS = 24
"""At how many places inside a site the order of its values is tried."""


def other_values(x: Tensor) -> Tensor:
    """Return other data that are as valid as these: the rows in another order, or other values where that is none."""
    if not x.numel() or not x.dim():
        return x
    x = x.detach()
    moved = x.roll(1, 0)
    if torch.equal(moved, x):
        moved = x.reshape(len(x), -1).flip(1).reshape(x.shape)
    if torch.equal(moved, x) and x.is_floating_point():
        moved = other_data(x.reshape(len(x), -1)).reshape(x.shape)
    return moved


def prove_no_leak(runs: Runs, scored: list[Unit]) -> None:
    """Prove what this module's docstring says.

    Args:
        runs: of model and guide.
        scored: the arguments that observed sites score.

    Raises:
        WrapError: names the site, and the data that it sees.
    """
    tensors = {id(t): (unit, other_values(t)) for unit in scored for t in unit.tensors}
    if not tensors:
        return
    try:
        elsewhere = runs.model_on(lambda t: tensors[id(t)][1] if id(t) in tensors else t).nodes
    except Exception:  # the model does not take other data, of which nothing can be said then
        return
    sites = {**latent_sites(runs.model_trace), **observed_sites(runs.model_trace)}
    order = [name for name in runs.model_trace.nodes if name in sites]
    for name in order:
        if name in elsewhere and not _same(_terms(sites[name]), _terms(elsewhere[name], sites[name]["value"])):
            _prove_order(runs, tensors, sites, order, name)


def _prove_order(runs: Runs, tensors: dict[int, Any], sites: dict[str, Any], order: list[str], name: str) -> None:
    """Prove that a site sees only what earlier sites score, and inside itself only earlier values."""
    later = [sites[other] for other in order[order.index(name) :] if sites[other]["is_observed"]]
    for key, (unit, moved) in tensors.items():
        (old,) = (t for t in unit.tensors if id(t) == key)
        own = _scored_by(runs, unit, old, [sites[name]] if sites[name]["is_observed"] else [])
        after = _scored_by(runs, unit, old, later)
        if _moves(runs, sites[name], old, torch.where(after & ~own, moved, old)):
            raise _leak(sites[name], unit, "what a later site scores")
        if own.any() and _moves(runs, sites[name], old, torch.where(after, moved, old)):
            if not any(_in_order(runs, sites[name], old, moved, own, back) for back in (False, True)):
                raise _leak(sites[name], unit, "the very values that it scores")


def _scored_by(runs: Runs, unit: Unit, tensor: Tensor, sites: list[Any]) -> Tensor:
    """Return which values of a tensor some sites score."""
    found = torch.zeros(tensor.shape, dtype=torch.bool, device=tensor.device)
    leaf = dict(zip(map(id, unit.tensors), runs.leaves(unit), strict=False)).get(id(tensor))
    for site in sites:
        value = site["value"]
        if leaf is not None and isinstance(value, Tensor) and value.requires_grad:
            grad = torch.autograd.grad(value.sum(), leaf, allow_unused=True, retain_graph=True)[0]
            found |= torch.zeros_like(found) if grad is None else grad != 0
        elif isinstance(value, Tensor):
            found |= _slices(tensor, value)
    return found


def _slices(tensor: Tensor, value: Tensor) -> Tensor:
    """Return where a value is in a tensor: all of it, or a time step."""
    found = torch.zeros(tensor.shape, dtype=torch.bool, device=tensor.device)
    if tensor.numel() == value.numel():
        return found | torch.equal(tensor.detach().reshape(-1).to(value), value.reshape(-1))
    for step in range(tensor.shape[1] if tensor.dim() > 1 else 0):
        part = tensor[:, step]
        if part.numel() == value.numel() and torch.equal(part.reshape(-1).to(value), value.reshape(-1)):
            found[:, step] = True
    return found


def _moves(runs: Runs, site: Any, old: Tensor, new: Tensor) -> bool:
    return not _same(_terms(site), _on(runs, site, old, new))


def _on(runs: Runs, site: Any, old: Tensor, new: Tensor) -> Tensor | None:
    trace = runs.model_on(lambda t: new if t is old else t)
    other = trace.nodes.get(site["name"])
    return None if other is None else _terms(other, site["value"])


def _in_order(runs: Runs, site: Any, old: Tensor, moved: Tensor, own: Tensor, back: bool) -> bool:
    """Whether each value of a site is scored given only those before it (or, backwards, after it)."""
    here = _terms(site)
    width = own.flatten(1).any(0).nonzero().flatten() if own.dim() > 1 else own.new_zeros(0, dtype=torch.long)
    if here is None or here.dim() < 2 or here[0].numel() != len(width):
        return False  # the density is one of all values together
    rank = torch.full((old[0].numel(),), -1, device=old.device)
    rank[width] = torch.arange(len(width), device=old.device)
    rank = rank.reshape(old.shape[1:]).expand_as(old)
    for cut in sorted({round(i * (len(width) - 1) / (MOST_CUTS - 1)) for i in range(MOST_CUTS)}):
        changed = own & ((rank <= cut) if back else (rank >= cut))
        there = _on(runs, site, old, torch.where(changed, moved, old))
        known = slice(cut, None) if back else slice(0, cut + 1)
        if (
            there is None
            or there.shape != here.shape
            or not close(here.flatten(1)[:, known], there.flatten(1)[:, known])
        ):
            return False
    return True


def _terms(site: Any, value: Any = None) -> Tensor | None:
    """Return the log density of each value of a site, or of each event where they are one; masks apart."""
    fn, value = site["fn"], site["value"] if value is None else value
    while hasattr(fn, "base_dist") and type(fn).__name__ in ("Independent", "MaskedDistribution"):
        fn = fn.base_dist
    fn = copy.copy(fn)
    fn._validate_args = False  # grey values of a Bernoulli have a cross-entropy, whatever Pyro validates
    with torch.no_grad():
        try:
            terms = fn.log_prob(value)
        except (ValueError, RuntimeError):
            return None
    return terms if isinstance(terms, Tensor) else None


def _same(first: Tensor | None, second: Tensor | None) -> bool:
    if first is None or second is None:
        return first is second
    return close(first, second)


def _leak(site: Any, unit: Unit, what: str) -> WrapError:
    kind = "observed site" if site["is_observed"] else "site"
    return WrapError(
        f'{kind} "{site["name"]}" of the model: at the same latents its density moves with {written(unit.path)}, '
        f"with {what}: it is no density of the data, and log p(x) would come out too high. ",
        "Compute it from the latents alone; what the model may know beside them is an argument of its own",
    )
