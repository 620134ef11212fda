"""What holds tensors: functions of a user that hold a module, which no copy would copy, and modules to be moved."""

import inspect
from collections.abc import Callable, Iterator
from types import FunctionType, ModuleType
from typing import Any, TypeVar

from torch import Tensor, nn

M = TypeVar("M", bound=nn.Module)


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


def convert(module: M, change: Callable[[Tensor], Tensor]) -> M:
    """Move or convert all tensors of a module, as `to` and `double` do, and return it.

    A class's own `_apply` is called, as recurrent networks have one; `children`, by which torch's goes, is not.
    """
    for child in module._modules.values():
        if child is not None:
            convert(child, change) if type(child)._apply is nn.Module._apply else child._apply(change)
    return nn.Module._apply(module, change, recurse=False)
