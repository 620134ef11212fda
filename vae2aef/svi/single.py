"""Whether a Pyro pair is of the simple kind: one mapped latent site, one observed site around a mean."""

from typing import Any, NamedTuple

import pyro.poutine as poutine
import torch
from pyro.distributions.torch_distribution import MaskedDistribution
from torch import Tensor

from vae2aef.errors import WrapError
from vae2aef.modes import own_random_state
from vae2aef.svi.elbo import AEF_ELBO
from vae2aef.svi.pair import PyroPair
from vae2aef.svi.survey import latent_sites, survey


class NotSingle(WrapError):
    """The pair is sound, but not of the simple kind: one mapped latent, one observed site around a mean."""


class Shape(NamedTuple):
    """What was found about a pair: its two sites, where the data's batch is in z, and the family of x given z."""

    latent: str
    observed: str
    latent_axis: int
    event_shape: torch.Size
    discrete: bool
    family: str
    df: float = 4.0


def base(fn: Any) -> Any:
    """Return the distribution inside Independent and masks."""
    while isinstance(fn, (torch.distributions.Independent, MaskedDistribution)):
        fn = fn.base_dist
    return fn


def _masked(fn: Any) -> bool:
    return isinstance(fn, MaskedDistribution) or (hasattr(fn, "base_dist") and _masked(fn.base_dist))


def examine(pair: PyroPair, x: Tensor, cond: tuple, kwargs: dict[str, Any], observed: Any) -> Shape:
    """Find the two sites of a simple pair.

    Raises:
        NotSingle: says what is not simple.
    """
    args, named = pair.arguments(x, cond, kwargs)
    model, guide = pair.own(pair.model), pair.own(pair.guide)
    elbo = AEF_ELBO(core_flow="none", data=lambda *a, **k: x, observed=observed)
    survey(elbo, model, guide, args, named, x)
    with own_random_state(x.device), torch.no_grad(), poutine.block():
        guide_trace = poutine.trace(guide).get_trace(*args, **named)
        replayed = poutine.replay(model, trace=guide_trace)
        trace = poutine.trace(replayed).get_trace(*args, **named)
        blank = pair.arguments(torch.zeros_like(x), cond, kwargs)
        without = poutine.trace(replayed).get_trace(*blank[0], **blank[1])
    latent, data = _only_sites(elbo, trace)
    sites = {"guide": latent_sites(guide_trace)[latent], "prior": trace.nodes[latent], "data": trace.nodes[data]}
    _require_plain(sites, data, x)
    for name in (latent, data):
        if not same_density(trace.nodes[name]["fn"], without.nodes[name]["fn"], trace.nodes[name]["value"]):
            raise NotSingle(f'site "{name}" of the model, which depends on the data itself')
    target, discrete = base(sites["data"]["fn"]), data in elbo.scales
    family = _family(target)
    if not discrete and family is None:
        raise NotSingle(
            f'an observed density that is no Normal, Laplace, nor Student\'s t of fixed degrees of freedom: "{data}"'
        )
    df = float(target.df.flatten()[0]) if family == "student_t" else 4.0
    axis = elbo.cores[latent].placement.data  # type: ignore[union-attr]
    return Shape(latent, data, axis, x.shape[1:], discrete, family or "gaussian", df)


def _only_sites(elbo: AEF_ELBO, trace: Any) -> tuple[str, str]:
    """Return the names of the one latent and the one observed site."""
    (latent, cores), *more = elbo.cores.items()
    if more or cores is None:
        raise NotSingle("several latent sites: " + ", ".join(f'"{name}"' for name in elbo.cores))
    seen = [
        name
        for name, site in trace.nodes.items()
        if site["type"] == "sample" and site["is_observed"] and not (site["infer"] or {}).get("_deterministic")
    ]
    if len(seen) != 1:
        raise NotSingle("several observed sites: " + ", ".join(f'"{name}"' for name in seen))
    return latent, seen[0]


def _require_plain(sites: dict[str, Any], data: str, x: Tensor) -> None:
    """Refuse sites that are masked or weighted, or that observe something else than the data as it is."""
    values = sites["data"]["value"]
    if values.numel() != x.numel() or not torch.equal(values.reshape(x.shape), x):
        raise NotSingle(f'the observed site "{data}" is not the data as it was given')
    if any(site["mask"] is not None or _masked(site["fn"]) for site in sites.values()):
        raise NotSingle("a mask")
    if len({float(site["scale"]) for site in sites.values()}) > 1:
        raise NotSingle("terms of different weight (poutine.scale)")


def _family(target: Any) -> str | None:
    """Return the residual family of an observed distribution; None if `Residual` has none for it."""
    if isinstance(target, torch.distributions.Normal):
        return "gaussian"
    if isinstance(target, torch.distributions.Laplace):
        return "laplace"
    fixed = isinstance(target, torch.distributions.StudentT) and not target.df.requires_grad
    return "student_t" if fixed and bool((target.df == target.df.flatten()[0]).all()) else None


def same_density(first: Any, second: Any, value: Any) -> bool:
    """Whether two distributions give a value the same density."""
    return first.batch_shape == second.batch_shape and torch.allclose(first.log_prob(value), second.log_prob(value))
