"""What `print(aef)` says of how it was made."""

import inspect
from typing import Any

from torch import nn

from vae2aef.likelihood import Likelihood
from vae2aef.likelihood.base import Scaled
from vae2aef.parts import VAEParts
from vae2aef.residual import Residual
from vae2aef.wrapping.look import Seen


def describe_wrap(
    vae: Any,
    parts: VAEParts,
    seen: Seen,
    prior: nn.Module | None,
    likelihood: nn.Module | None,
    options: dict[str, Any],
    why: str | None = None,
) -> str:
    """Return what was taken from the VAE, assumed and added, a line each.

    Args:
        vae: the user's VAE.
        parts: its parts.
        seen: what the example showed.
        prior: the module made of `options["prior"]`.
        likelihood: the module made of `options["likelihood"]`.
        options: `core`, `core_flow`, `prior`, `likelihood` and `preprocess` as given to `wrap`.
        why: why this likelihood, if the user did not say.
    """
    option = options.pop("likelihood")
    added = {name.replace("_", " "): _name(option) for name, option in options.items()}
    added |= _likelihood(likelihood, option)
    added["prior"] = added.pop("prior")  # last, with the preprocessing
    if options["prior"] is None:
        del added["prior"]
    if options["preprocess"] is None:
        del added["preprocess"]
    else:
        added["preprocessing"] = added.pop("preprocess")
    latent = ", ".join(
        str(tuple(shape)) if name == "z" else f"{name} {tuple(shape)}" for name, shape in seen.latents.items()
    )
    lines = [
        f"AEF of {type(vae).__name__}: data {tuple(seen.event_shape)}, latent {latent}",
        *(f"  taken from the VAE: {line}" for line in parts.taken),
        *([f"  encoder and decoder: {parts.compared}"] if parts.compared else []),
        *_prior_lines(parts, prior, options),
        *(f"  assumed: {line}" for line in parts.assumed),
        *_likelihood_lines(seen, likelihood, option),
        *([] if why is None else [f"  assumed: {why}"]),
        "  added: " + ", ".join(f"{name} {value}" for name, value in added.items()),
    ]
    return "\n".join(lines)


def grid_line(seen: Seen, obstacle: str | None) -> str:
    """Say how latents that are grids lie on that of the data, and whether data on other grids are taken.

    Args:
        seen: what the example showed.
        obstacle: why they are not; None if they are.
    """
    patches = {f"{name}: " if name != "z" else "": str(grid) for name, grid in seen.grids.items()}
    what = ", ".join(f"{name}{patch}" for name, patch in patches.items())
    takes = "other grids of whole patches are taken" if obstacle is None else f"no other grid is taken ({obstacle})"
    return f"grid: each position of the latent belongs to a patch of the data, {what}; {takes}"


def _name(option: Any) -> str:
    if isinstance(option, str):
        return option
    if isinstance(option, (list, tuple)):
        return " + ".join(map(_name, option))
    if isinstance(option, dict):
        return ", ".join(f"{name}: {_name(value)}" for name, value in option.items())
    if inspect.isroutine(option):
        return option.__name__
    return f"{option:g}" if isinstance(option, (int, float)) else type(option).__name__


def _prior_lines(parts: VAEParts, prior: nn.Module | None, options: dict[str, Any]) -> list[str]:
    if options["prior"] is not None or prior is None:
        return []
    if parts.prior is not None:
        return [f"  taken from the VAE: prior {type(prior).__name__}"]
    return ["  assumed: prior standard normal (no other was found or given)"]


def _likelihood(likelihood: nn.Module | None, option: Any) -> dict[str, str]:
    """Name p(x | z): a residual, or a likelihood of another kind."""
    if likelihood is None:
        return {"residual": "none (the VAE's own density of x given z)"}
    if isinstance(likelihood, Likelihood) and not isinstance(likelihood, Residual):
        said = likelihood.extra_repr()
        return {"likelihood": type(likelihood).__name__ + (f" ({said})" if said else "")}
    if option is None:
        return {"residual": getattr(likelihood, "kind", "learned")}
    return {"residual": _name(option)}


def _likelihood_lines(seen: Seen, likelihood: nn.Module | None, option: Any) -> list[str]:
    lines = []
    if isinstance(likelihood, Residual) and not isinstance(option, nn.Module) and hasattr(likelihood, "raw_scale"):
        lines.append(f"  assumed: residual scale starts at {seen.spread:.3g}, the standard deviation of the example")
    unused = seen.scale_range is not None and isinstance(likelihood, Scaled) and likelihood.kind != "decoder"
    if unused:
        lines.append("  assumed: the decoder's second output is not used; decoder_scale= takes it as a scale")
    return lines
