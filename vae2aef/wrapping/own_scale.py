"""Warn of a scale of the data that a VAE learns by itself, as the sigma-VAE does, where an AEF would learn another."""

import re
import warnings
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from vae2aef.aef import AEF
from vae2aef.batch import Batch
from vae2aef.errors import WrapWarning
from vae2aef.modes import evaluation_mode, named_parameters, own_random_state
from vae2aef.residual import Residual

SCALE = re.compile(r"(^|_|\.)(log_?)?(sigma|scale|std|stddev|var|variance)s?($|_)", re.IGNORECASE)
"""What the name of a parameter that is a scale has in it."""


def looks_like_scale(name: str, parameter: Tensor, event_shape: torch.Size) -> bool:
    """Whether a parameter may be the scale of the data: by its name, and because it broadcasts to one datum."""
    if "prior" in name.lower() or not SCALE.search(name.rpartition(".")[2]):
        return False
    if parameter.numel() == 1:
        return True
    try:
        return torch.broadcast_shapes(parameter.shape, event_shape)[-len(event_shape) :] == event_shape
    except RuntimeError:
        return False


def warn_of_own_scale(aef: AEF, batch: Batch, given: Mapping[str, Any], likelihood: Any) -> None:
    """Warn of a parameter that seems to be the scale of the data and has no part in the loss of the AEF.

    Args:
        aef: made of the user's VAE. If an adapter knows its class, there is nothing to warn of.
        batch: rows of the example, with conditions.
        given: what the user has said of the parts: what is not used of one that was replaced says nothing.
        likelihood: what the user has said of it; None for nothing.

    Warns:
        WrapWarning: ends in the line that takes it.
    """
    vae = aef.vae
    if likelihood is not None or given["encoder"] is not None or given["decoder"] is not None:
        return
    if aef.parts.known or not isinstance(aef.likelihood, Residual) or not isinstance(vae, nn.Module):
        return
    scales = [
        (name, p) for name, p in named_parameters(vae) if p.requires_grad and looks_like_scale(name, p, aef.event_shape)
    ]
    if not scales:
        return
    with evaluation_mode(aef), own_random_state(batch.x.device), torch.enable_grad():
        loss = aef(batch.x, *batch.cond, **batch.kwargs)
        found = torch.autograd.grad(loss, [p for _, p in scales], allow_unused=True)
    unused = [name for (name, _), grad in zip(scales, found, strict=True) if grad is None]
    if len(unused) == 1:
        name = unused[0]
        message = WrapWarning(
            f"`{name}` of {type(vae).__name__} seems to be the scale of the data, as it has no part in the loss; the "
            'AEF learns one of its own (likelihood="learned", or "shared" for all values, says that this is meant): ',
            f"Pass likelihood=lambda mean: torch.distributions.Normal(mean, {_as_scale(name)})",
        )
        warnings.warn(message, stacklevel=4)


def _as_scale(name: str) -> str:
    last = name.rpartition(".")[2].lower()
    value = f"vae.{name}"
    if "log" not in last:
        return f"{value}.sqrt()" if "var" in last else value
    return f"(0.5 * {value}).exp()" if "var" in last else f"{value}.exp()"
