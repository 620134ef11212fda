"""`wrap(forward=)`: a VAE that is entered by another function than its module's forward, or that is no module."""

from collections.abc import Callable
from typing import Any

from torch import nn

from vae2aef.batch import Batch
from vae2aef.errors import WrapError, describe
from vae2aef.modes import modules, parameters
from vae2aef.parts import VAEParts
from vae2aef.wrapping.trained_with import take_loss
from vae2aef.wrapping.trial import modules_of


def enter(vae: Any, batch: Batch, given: dict[str, Any], forward: Callable[..., Any]) -> VAEParts:
    """Trace what the user says is the VAE's forward.

    Args:
        vae: the user's module, or any object; its modules, and those that `forward` refers to, are looked for in it.
        batch: rows of the example, with conditions.
        given: what else the user said; of it only `output` goes with `forward`.
        forward: called as `forward(x, *cond, **kwargs)` with data `(batch, *event)`.

    Raises:
        WrapError: if it cannot be traced, if parts are given beside it, or if no module is found behind it.
        TypeError: if it is no function.
    """
    from vae2aef.tracing.proof import trace

    if not callable(forward):
        raise TypeError(f"expected forward= as a function of the data, got {describe(forward)}")
    beside = [name for name in ("encoder", "decoder", "encoder_scale") if given.get(name) is not None]
    if beside:
        raise WrapError(
            f"forward= is the whole VAE, from the data to their mean, and {', '.join(beside)} a part of one: ",
            f"leave {' and '.join(beside)} out",
        )
    module = vae if isinstance(vae, nn.Module) else nn.ModuleList(modules_of(vae, forward))
    if not modules(module)[1:] and not parameters(module):
        raise WrapError(
            f"no module is found in {describe(vae)}, nor behind forward=: ",
            "pass vae=nn.ModuleList([...]) that holds the networks which forward uses",
        )
    parts = trace(module, batch, given.get("output"), forward)
    take_loss(parts, vae, batch.x)
    if module is not vae:
        parts.beside = (module,)
    return parts
