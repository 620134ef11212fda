"""Whether a function of a user holds a module, which no copy of the function would copy."""

import inspect
from collections.abc import Iterator
from types import FunctionType, ModuleType
from typing import Any

from torch import nn


def holds_module(function: FunctionType) -> bool:
    """Whether a function uses a module from outside, so that a copy of it would go on using the same one."""
    return any(isinstance(held, nn.Module) for held in _holds(function))


def _holds(function: FunctionType) -> Iterator[Any]:
    """Yield what a function refers to from outside, its closure, defaults and globals; and what such objects hold."""
    held = inspect.getclosurevars(function)
    for value in (*held.nonlocals.values(), *held.globals.values(), *(function.__defaults__ or ())):
        yield value
        if not isinstance(value, (type, ModuleType, FunctionType, nn.Module)):
            yield from getattr(value, "__dict__", {}).values()
