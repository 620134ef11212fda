"""What `print(aef)` says of how it was made."""

from typing import Any

from torch import nn

from vae2aef.parts import VAEParts
from vae2aef.residual import Residual
from vae2aef.wrapping.look import Seen


def summarise(
    vae: Any, parts: VAEParts, seen: Seen, prior: nn.Module | None, residual: nn.Module | None, options: dict[str, Any]
) -> str:
    """Return what was taken from the VAE, assumed and added, a line each.

    Args:
        vae: the user's VAE.
        parts: its parts.
        seen: what the example showed.
        prior: the module made of `options["prior"]`.
        residual: the module made of `options["residual"]`.
        options: `core`, `core_flow`, `prior`, `residual` and `preprocess` as given to `wrap`.
    """
    added = {name.replace("_", " "): _name(option) for name, option in options.items()}
    if residual is None:
        added["residual"] = "none (the VAE's own density of x given z)"
    elif options["residual"] is None:
        added["residual"] = "learned"
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
        *_prior_lines(parts, prior, options),
        *(f"  assumed: {line}" for line in parts.assumed),
        *_residual_lines(parts, seen, residual, options["residual"]),
        "  added: " + ", ".join(f"{name} {value}" for name, value in added.items()),
    ]
    return "\n".join(lines)


def _name(option: Any) -> str:
    if isinstance(option, str):
        return option
    if isinstance(option, (list, tuple)):
        return " + ".join(map(_name, option))
    if isinstance(option, dict):
        return ", ".join(f"{name}: {_name(value)}" for name, value in option.items())
    return f"{option:g}" if isinstance(option, (int, float)) else type(option).__name__


def _prior_lines(parts: VAEParts, prior: nn.Module | None, options: dict[str, Any]) -> list[str]:
    if options["prior"] is not None or prior is None:
        return []
    if parts.prior is not None:
        return [f"  taken from the VAE: prior {type(prior).__name__}"]
    return ["  assumed: prior standard normal (no other was found or given)"]


def _residual_lines(parts: VAEParts, seen: Seen, residual: nn.Module | None, option: Any) -> list[str]:
    lines = []
    starts = residual is not None and (option is None or (isinstance(option, str) and option != "decoder"))
    if starts:
        lines.append(f"  assumed: residual scale starts at {seen.spread:.3g}, the standard deviation of the example")
    unused = seen.scale_range is not None and isinstance(residual, Residual) and residual.kind != "decoder"
    if unused and not parts.says_scale_is_unused:
        lines.append('  assumed: the decoder\'s second output is not used; residual="decoder" takes it as a scale')
    return lines
