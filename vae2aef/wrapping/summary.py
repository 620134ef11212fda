"""What `print(aef)` says of how it was made."""

from typing import Any

from torch import nn

from vae2aef.parts import VAEParts
from vae2aef.residual import Residual
from vae2aef.wrapping.look import Seen


def summarise(
    vae: Any, parts: VAEParts, seen: Seen, core: Any, core_flow: Any, prior: Any, the_prior: nn.Module,
    the_residual: nn.Module, residual: Any, preprocess: Any,
) -> str:  # fmt: skip
    """Return what was taken from the VAE, assumed and added, a line each.

    Args:
        vae: the user's VAE.
        parts: its parts.
        seen: what the example showed.
        core: as given to `wrap`; so are `core_flow`, `prior`, `residual` and `preprocess`.
        core_flow: see `core`.
        prior: see `core`.
        the_prior: the module made of it.
        the_residual: the module made of `residual`.
        residual: see `core`.
        preprocess: see `core`.
    """

    def name(option: Any) -> str:
        if isinstance(option, str):
            return option
        if isinstance(option, (list, tuple)):
            return " + ".join(map(name, option))
        return f"{option:g}" if isinstance(option, (int, float)) else type(option).__name__

    own = prior is None
    idle = seen.scale_range is not None and isinstance(the_residual, Residual) and the_residual.kind != "decoder"
    idle = idle and not any("scale is not used" in line for line in parts.assumed)
    lines = [
        f"AEF of {type(vae).__name__}: data {tuple(seen.event_shape)}, latent {tuple(seen.latent_shape)}",
        *(f"  taken from the VAE: {line}" for line in parts.taken),
        *([f"  taken from the VAE: prior {type(the_prior).__name__}"] if own and parts.prior is not None else []),
        *(["  assumed: prior standard normal (no other was found or given)"] if own and parts.prior is None else []),
        *(f"  assumed: {line}" for line in parts.assumed),
        *(
            [f"  assumed: residual scale starts at {seen.spread:.3g}, the standard deviation of the example"]
            if isinstance(residual, str) and residual != "decoder"
            else []
        ),
        *(
            ['  assumed: the decoder\'s second output is not used; residual="decoder" takes it as a scale']
            if idle
            else []
        ),
        f"  added: core {name(core)}, core flow {name(core_flow)}, residual {name(residual)}"
        + ("" if own else f", prior {name(prior)}")
        + ("" if preprocess is None else f", preprocessing {name(preprocess)}"),
    ]
    return "\n".join(lines)
