"""Warn of a loss of the VAE's own that is not taken: a scale of the data, as of the sigma-VAE, or a cross-entropy."""

import re
import warnings
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from vae2aef.aef import AEF
from vae2aef.batch import Batch
from vae2aef.errors import WrapWarning
from vae2aef.flows import Identity
from vae2aef.modes import evaluation_mode, named_parameters, own_random_state
from vae2aef.residual import Residual
from vae2aef.wrapping.trained_with import BERNOULLI, perhaps_trained_with

SCALE = re.compile(r"(^|_|\.)(log_?)?(sigma|scale|std|stddev|var|variance)s?($|_)", re.IGNORECASE)
"""What the name of a parameter that is a scale has in it."""

OTHER = re.compile(r"prior|logit|(^|_)(p|q|z|pz|qz|latent)($|_)", re.IGNORECASE)
"""What names of scales of something else have in them."""


def looks_like_scale(name: str, parameter: Tensor, event_shape: torch.Size) -> bool:
    """Whether a parameter may be the scale of the data: by its name, and because it broadcasts to one datum."""
    if OTHER.search(name) or not SCALE.search(name.rpartition(".")[2]):
        return False
    shape = list(parameter.shape)
    while shape and shape[0] == 1:
        shape.pop(0)
    try:
        return torch.broadcast_shapes(shape, event_shape) == event_shape
    except RuntimeError:
        return False


def warn_of_own_loss(aef: AEF, batch: Batch, given: Mapping[str, Any], likelihood: Any) -> None:
    """Warn of a loss that a VAE seems to have of its own, where nobody has said so and a Gaussian is taken.

    Args:
        aef: made of the user's VAE. If an adapter knows its class, there is nothing to warn of.
        batch: rows of the example, with conditions.
        given: what the user has said of the parts: what is not used of one that was replaced says nothing.
        likelihood: what the user has said of it; None for nothing.

    Warns:
        WrapWarning: ends in the line that takes it.
    """
    if likelihood is not None or given["encoder"] is not None or given["decoder"] is not None:
        return
    if aef.parts.known or not isinstance(aef.likelihood, Residual) or not isinstance(aef.vae, nn.Module):
        return
    _warn_of_scale(aef.vae, aef, batch)
    if type(aef.preprocess) is Identity and aef.partition is None:
        _warn_of_cross_entropy(aef.vae, aef, batch)


def _warn_of_scale(vae: nn.Module, aef: AEF, batch: Batch) -> None:
    """A scale of the data as a parameter, which has no part in the loss of the AEF."""
    scales = [
        (name, p) for name, p in named_parameters(vae) if p.requires_grad and looks_like_scale(name, p, aef.event_shape)
    ]
    if not scales:
        return
    with evaluation_mode(aef), own_random_state(batch.x.device), torch.enable_grad():
        loss = aef(batch.x, *batch.cond, **batch.kwargs)
        found = torch.autograd.grad(loss, [p for _, p in scales], allow_unused=True)
    unused = [name for (name, _), grad in zip(scales, found, strict=True) if grad is None]
    if unused:
        listed = ", ".join(f"`{name}`" for name in unused)
        message = WrapWarning(
            f"{listed} of {type(vae).__name__} seems to be the scale of the data, as it has no part in the loss; the "
            'AEF learns one of its own (likelihood="learned", or "shared" for all values, says that this is meant): ',
            f"Pass likelihood=lambda mean: torch.distributions.Normal(mean, {_as_scale(unused[0])})",
        )
        warnings.warn(message, stacklevel=4)


def _warn_of_cross_entropy(vae: nn.Module, aef: AEF, batch: Batch) -> None:
    """Code beside the class, which no call leads to from here, that trains with another loss than a Gaussian's."""
    name = perhaps_trained_with(vae, batch.x)
    if name is None:
        return
    with evaluation_mode(aef), own_random_state(batch.x.device), torch.no_grad():
        mean = aef.reconstruct(batch.x, *batch.cond, **batch.kwargs)
    if name == BERNOULLI and not (isinstance(mean, Tensor) and bool(((mean >= 0) & (mean <= 1)).all())):
        return
    message = WrapWarning(
        f"code beside {type(vae).__name__} seems to train it with a cross-entropy, and a Gaussian is taken "
        '(likelihood="learned" says that this is meant): ',
        f'Pass likelihood="{name}"',
    )
    warnings.warn(message, stacklevel=4)


def _as_scale(name: str) -> str:
    last = name.rpartition(".")[2].lower()
    value = f"vae.{name}"
    if "log" not in last:
        return f"{value}.sqrt()" if "var" in last else value
    return f"(0.5 * {value}).exp()" if "var" in last else f"{value}.exp()"
