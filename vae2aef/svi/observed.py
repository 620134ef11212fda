"""What becomes of the observed sites of a Pyro model: kept as they are, or made Gaussian (`observed=`)."""

import re
from typing import Any

from vae2aef.errors import WrapError
from vae2aef.svi.elbo_handlers import gaussian_scale
from vae2aef.svi.guide_maps import GuideMaps
from vae2aef.svi.sites import is_subsample, kind_of, store_key


def note_observed(maps: GuideMaps, observed: dict[str, Any]) -> None:
    """Do what `observed=` says of each observed site, once.

    Raises:
        WrapError: for a word that has no meaning for a site, or a site without a mean.
    """
    for name, site in observed.items():
        fn = site["fn"]
        if name in maps.observed_names:
            continue
        maps.observed_names.add(name)
        named = isinstance(maps.observed, dict) and name in maps.observed
        choice = maps.observed.get(name) if isinstance(maps.observed, dict) else maps.observed
        if not is_discrete(fn) and choice == "gaussian" and named:
            raise WrapError(
                f'observed site "{name}": observed="gaussian" is for discrete sites, and this is a {kind_of(site)}; ',
                "leave it out of observed=",
            )
        if not is_discrete(fn) and (choice in (None, "keep") or not named):
            continue
        if choice in (None, "keep"):
            maps.notes[name] = f"observed {kind_of(site)}, kept as it is"
        elif choice == "gaussian":
            mean = fn.mean
            if not bool(mean.isfinite().all()):
                raise WrapError(f'observed site "{name}": a {kind_of(site)} has no mean to put a Gaussian around')
            scale = gaussian_scale(site["value"].to(mean), fn.event_shape)
            maps.scales[name] = scale
            maps.added.add(store_key("observed", name), scale)
            maps.notes[name] = f"observed {kind_of(site)}, replaced by a Gaussian around its mean, scale learned"
        else:
            raise WrapError(
                f'observed site "{name}": expected observed "gaussian" or "keep" for it, got {choice!r}; ',
                "leave observed= out to keep the density that the model has",
            )


def require_known(maps: GuideMaps, trace: Any) -> None:
    """Refuse names in `observed` that are no site of the model; those of later time steps may come.

    Raises:
        WrapError: names them, and the sites that the model has.
    """
    sites = [name for name, site in trace.nodes.items() if site["type"] == "sample" and not is_subsample(site["fn"])]
    stems = {re.sub(r"\d+$", "", name) for name in sites if name[-1:].isdigit()}
    chosen_names = maps.observed if isinstance(maps.observed, dict) else {}
    unknown = [n for n in chosen_names if n not in sites and not (n[-1:].isdigit() and re.sub(r"\d+$", "", n) in stems)]
    if unknown and not maps.observed_names:
        raise WrapError(
            f"observed= names {', '.join(map(repr, unknown))}, and the model has no such site; ",
            f"name one of its sites: {', '.join(sites)}",
        )


def is_discrete(fn: Any) -> bool:
    """Whether a distribution is one of whole numbers or classes."""
    try:
        return bool(getattr(fn.support, "is_discrete", False))
    except NotImplementedError:
        return False
