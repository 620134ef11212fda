"""Runs of a user's model and guide that leave nothing behind: no parameter, buffer, attribute or random number."""

import contextlib
import functools
import types
from collections.abc import Iterator
from typing import Any

import pyro
import pyro.poutine as poutine
import torch
from pyro.poutine.runtime import _DIM_ALLOCATOR
from torch import nn

from vae2aef.errors import WrapError
from vae2aef.modes import own_random_states, untouched

DEPTH = 4
"""How far functions, containers and objects inside one another are looked into."""


@contextlib.contextmanager
def quiet(device: torch.device, *functions: Any) -> Iterator[None]:
    """Run model and guide without a trace, outside all of Pyro's handlers.

    Random numbers are those that would come next, and come again afterwards. Modules keep their buffers (of batch
    normalisation) and attributes, objects their attributes, functions the variables that they have closed over, and
    Pyro's store its parameters. What a function prints, or writes to a file, it does.

    Args:
        device: of the data.
        *functions: model and guide.
    """
    owners = Owners(*functions)
    store = pyro.get_param_store()
    with contextlib.ExitStack() as stack:
        stack.enter_context(torch.inference_mode(False))
        stack.enter_context(own_random_states(device))
        stack.enter_context(untouched(*owners.modules))
        stack.enter_context(owners.kept())
        stack.enter_context(store.scope(store.get_state()))
        stack.enter_context(_plates_of_its_own())
        stack.enter_context(poutine.block())
        yield


@contextlib.contextmanager
def _plates_of_its_own() -> Iterator[None]:
    """Forget the plates around: the guide may be inside those that it is about to enter again."""
    kept, _DIM_ALLOCATOR._stack = _DIM_ALLOCATOR._stack, []
    try:
        yield
    finally:
        _DIM_ALLOCATOR._stack = kept


def kept_by_pyro(error: WrapError) -> WrapError:
    """Return an error as one that Pyro's traces, which make a new one of the type from its text, leave as it is."""

    class Kept(type(error)):  # type: ignore[misc]
        def __init__(self, *text: str) -> None:
            ValueError.__init__(self, str(error))
            self.reason, self.fix = error.reason, error.fix

        def __reduce__(self) -> Any:
            return error.__reduce__()  # a class of this function cannot be pickled

    Kept.__name__, Kept.__qualname__, Kept.__module__ = "WrapError", "WrapError", WrapError.__module__
    return Kept().with_traceback(error.__traceback__)


class Owners:
    """What functions can change: the modules, objects and variables that they reach.

    Args:
        *functions: functions, bound methods, partials of them, or modules.

    Attributes:
        modules: the outermost modules reached.
    """

    def __init__(self, *functions: Any) -> None:
        self.modules: list[nn.Module] = []
        self._cells: list[Any] = []
        self._objects: list[Any] = []
        self._containers: list[Any] = []
        self._seen: set[int] = set()
        for function in functions:
            self._reach(function, DEPTH)

    @contextlib.contextmanager
    def kept(self) -> Iterator[None]:
        """Leave variables, objects and containers as they were."""
        cells = [(cell, cell.cell_contents) for cell in self._cells]
        attributes = [(thing, dict(vars(thing))) for thing in self._objects]
        contents = [(container, container.copy()) for container in self._containers]
        try:
            yield
        finally:
            for cell, value in cells:
                cell.cell_contents = value
            for thing, values in attributes:
                vars(thing).clear()
                vars(thing).update(values)
            for container, items in contents:
                container.clear()
                container.extend(items) if isinstance(container, list) else container.update(items)

    def _reach(self, value: Any, depth: int) -> None:
        if not depth or id(value) in self._seen:
            return
        self._seen.add(id(value))
        if isinstance(value, nn.Module):
            self.modules.append(value)
        elif isinstance(value, (list, dict, set)):
            self._containers.append(value)
            self._all(value.values() if isinstance(value, dict) else value, depth)
        elif isinstance(value, functools.partial):  # Pyro's handlers around a function are partials
            self._all((value.func, *value.args, *value.keywords.values()), depth + 1)
        elif isinstance(value, types.MethodType):
            self._all((value.__self__, value.__func__), depth)
        elif isinstance(value, types.FunctionType):
            self._function(value, depth)
        elif hasattr(value, "__dict__") and not isinstance(value, (type, types.ModuleType, torch.Tensor)):
            self._objects.append(value)
            methods = [] if _is_library(type(value).__module__) else list(vars(type(value)).values())
            self._all([v for v in methods if isinstance(v, types.FunctionType)], depth)
            self._all(list(vars(value).values()), depth - 1)

    def _function(self, value: types.FunctionType, depth: int) -> None:
        filled = [cell for cell in value.__closure__ or () if _is_filled(cell)]
        self._cells += filled
        used = (value.__globals__.get(name) for name in value.__code__.co_names)
        held = [v for v in used if isinstance(v, (nn.Module, list, dict, set, types.FunctionType))]
        inside = _is_library(value.__globals__.get("__name__", ""))
        self._all([*(cell.cell_contents for cell in filled), *([] if inside else held)], depth - 1)

    def _all(self, values: Any, depth: int) -> None:
        for value in list(values):
            self._reach(value, depth)


def _is_library(module: str) -> bool:
    return module.partition(".")[0] in ("pyro", "torch", "builtins")


def _is_filled(cell: Any) -> bool:
    try:
        cell.cell_contents  # noqa: B018
    except ValueError:
        return False
    return True
