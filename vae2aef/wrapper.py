"""What an AEF is besides its mathematics: a module that holds a user's VAE and what was added to it."""

import copy
import inspect
from collections.abc import Iterator
from types import FunctionType
from typing import Any

from torch import nn

from vae2aef.parts import VAEParts


class Wrapper(nn.Module):
    """Hold a VAE without touching it; know which parameters were added, copy, print.

    Args:
        vae: the user's module or object.
        parts: its encoder, decoder and prior.
        outside: modules among the parts that are not inside `vae`, so that they are trained, moved and saved.
        summary: what was taken, added and assumed; for `print`.
    """

    def __init__(self, vae: Any, parts: VAEParts, outside: dict[str, nn.Module], summary: str) -> None:
        super().__init__()
        self.vae = vae
        self.outside = nn.ModuleDict(outside)
        self.parts = parts
        self._summary = summary

    def added_parameters(self) -> Iterator[nn.Parameter]:
        """Yield the parameters that are not the VAE's, for `optimizer.add_param_group`."""
        own = {id(p) for p in self.vae.parameters()} if isinstance(self.vae, nn.Module) else set()
        own |= {id(p) for p in self.outside.parameters()}
        return (p for p in self.parameters() if id(p) not in own)

    @property
    def added(self) -> dict[str, int]:
        """How many parameters each added part has, by name."""
        ids = {id(p) for p in self.added_parameters()}
        counts = {
            name: sum(p.numel() for p in part.parameters() if id(p) in ids)
            for name, part in self.named_children()
            if name not in ("vae", "outside")
        }
        return {name: count for name, count in counts.items() if count}

    def __deepcopy__(self, memo: dict[int, Any]) -> "Wrapper":
        """Copy all; refuse where the copy would go on using the networks of the original.

        Raises:
            TypeError: if the encoder or decoder was given as a function that holds a module, such as
                `lambda x: vae.encode(x)`.
        """
        for name, part in vars(self.parts).items():
            if isinstance(part, FunctionType) and any(isinstance(held, nn.Module) for held in _holds(part)):
                raise TypeError(
                    f"cannot copy this AEF: its {name} is a function that holds a module, and the copy's {name} would "
                    "go on using the original's. Pass a module, or a method of one (encoder=vae.encode)"
                )
        copied = type(self).__new__(type(self))
        memo[id(self)] = copied
        copied.__setstate__(copy.deepcopy(self.__dict__, memo))
        return copied

    def __repr__(self) -> str:
        added = ", ".join(f"{name} {count:,}" for name, count in self.added.items()) or "nothing"
        return f"{self._summary}\n  parameters added: {added}"


def _holds(function: FunctionType) -> Iterator[Any]:
    """Yield what a function refers to from outside: its closure, its defaults and its globals."""
    held = inspect.getclosurevars(function)
    yield from (*held.nonlocals.values(), *held.globals.values(), *(function.__defaults__ or ()))
