"""Tensors that are no buffers, so that `.double()` and `.to()` leave them as they were: named where a part fails."""

import contextlib
import re
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn

from vae2aef.errors import WrapError
from vae2aef.modes import named_modules, parameters

TYPES = re.compile(r"dtype|scalar type|same device|Float and Double|Double and Float", re.IGNORECASE)
"""What torch says of tensors of two types, or on two devices."""


@contextlib.contextmanager
def naming_stray_tensors(vae: Any) -> Iterator[None]:
    """Where tensors of two types meet, name those that the VAE holds outside its parameters and buffers.

    Args:
        vae: the user's VAE, whose tensors are left as they are.

    Raises:
        WrapError: with the line that moves the tensor.
    """
    try:
        yield
    except WrapError as error:
        found = stray(vae) if says_types(error.__cause__ or error) else None
        if found is None:
            raise
        name, held, like = found
        to = like.dtype if held.device == like.device else torch.device(like.device)
        raise WrapError(
            f"{error.reason}\n`{name}` is a tensor of {held.dtype} on {held.device} that is no buffer of its module: "
            ".double() and .to() leave it as it was. Write once: ",
            f"vae.{name} = vae.{name}.to({to!r})".replace("device(", "torch.device("),
        ) from error


def says_types(error: BaseException) -> bool:
    """Whether an error is of tensors of two types, or on two devices."""
    return TYPES.search(str(error)) is not None


def stray(vae: Any) -> tuple[str, Tensor, Tensor] | None:
    """Return the dotted name of a tensor that `.to()` has left, itself, and a parameter that it is unlike."""
    if not isinstance(vae, nn.Module):
        return None
    like = next((p for p in parameters(vae) if p.is_floating_point()), None)
    for path, module in named_modules(vae):
        for name, held in vars(module).items():
            if like is None or not isinstance(held, Tensor) or not held.is_floating_point():
                continue
            if (held.dtype, held.device) != (like.dtype, like.device):
                return (f"{path}.{name}" if path else name), held, like
    return None
