"""The lines to pass where parts and the VAE's own forward differ."""

from typing import Any

from torch import Tensor

from vae2aef.modes import named_modules
from vae2aef.wrapping.find_parts import has_forward
from vae2aef.wrapping.known_pass import alike, close

WRITTEN = {"std": "{}", "log_std": "{}.exp()", "var": "{}.sqrt()", "log_var": "(0.5 * {}).exp()"}
"""How a standard deviation is written for an output of each kind."""


def with_flow(vae: Any, kind: str, before: Tensor, later: Tensor) -> str:
    """Return the line that hands over the flow: a module that makes the later latent of z, and its log|det|."""
    general = "Pass encoder=lambda x: vae2aef.Posterior(loc, scale, flow), where flow(z) returns (z, log|det|)"
    name = next((name for name in ("encode", "encoder") if callable(getattr(vae, name, None))), None)
    for path, module in named_modules(vae):
        if name is None or kind not in WRITTEN or not path or not has_forward(module):
            continue
        try:
            z, change = module(before.clone())
        except Exception:  # it maps something else
            continue
        if alike(z, later) and close(z, later.reshape(z.shape)) and change.shape == z.shape[:1]:
            scale = WRITTEN[kind].format(f"vae.{name}(x)[1]")
            return f"Pass encoder=lambda x: vae2aef.Posterior(vae.{name}(x)[0], {scale}, vae.{path})"
    return general


def alone(vae: Any, given: dict[str, Any]) -> str:
    """Return the line by which the parts stand for themselves, and no forward is looked at."""
    named = [
        f"{part}=vae.{name}"
        for part, names in (("encoder", ("encode", "encoder")), ("decoder", ("decode", "decoder")))
        for name in [next((n for n in names if callable(getattr(vae, n, None))), None)]
        if given.get(part) is None and name is not None
    ]
    return "If they are meant as they are: Pass " + ", ".join(["vae=torch.nn.ModuleList([vae])", *named])
