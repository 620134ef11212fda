"""Run parts of a user's VAE on an example without a trace: modes and random state stay as they were."""

import contextlib
import functools
import inspect
import types
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn

from vae2aef.errors import WrapError
from vae2aef.modes import evaluation_mode, own_random_state

DEPTH, WIDTH = 4, 100
"""How far, and through how long containers, modules are looked for behind a callable."""


def modules_of(*things: Any) -> list[nn.Module]:
    """Find the modules behind callables: in bound methods, partials, closures, globals and attributes.

    Args:
        *things: modules, callables, or objects that hold them.

    Returns:
        The outermost modules, each once.
    """
    found: list[nn.Module] = []
    seen: dict[int, Any] = {}
    todo = [(thing, DEPTH) for thing in things]
    while todo:
        thing, depth = todo.pop()
        if id(thing) in seen:
            continue
        seen[id(thing)] = thing  # kept alive, so that an id stays that of one object
        if isinstance(thing, nn.Module):
            found.append(thing)
        elif depth:
            todo += [(inside, depth - 1) for inside in _inside(thing)]
    return found


def _inside(thing: Any) -> list[Any]:
    if inspect.ismethod(thing):
        return [thing.__self__, thing.__func__]
    if isinstance(thing, functools.partial):
        return [thing.func, *thing.args, *thing.keywords.values()]
    if inspect.isfunction(thing):
        cells = []
        for cell in thing.__closure__ or ():
            with contextlib.suppress(ValueError):  # a name that is not bound yet
                cells.append(cell.cell_contents)
        return cells + [thing.__globals__[name] for name in thing.__code__.co_names if name in thing.__globals__]
    if isinstance(thing, (list, tuple, dict)):
        values = list(thing.values()) if isinstance(thing, dict) else list(thing)
        return values if len(values) <= WIDTH else []
    if isinstance(thing, (type, types.ModuleType, Tensor)):
        return []
    return list(getattr(thing, "__dict__", {}).values())


@contextlib.contextmanager
def all_in_eval_mode(*things: Any) -> Iterator[None]:
    """Put every module behind `things` (see `modules_of`) in `eval()`, and back into its own mode afterwards."""
    with contextlib.ExitStack() as stack:
        for module in modules_of(*things):
            stack.enter_context(evaluation_mode(module))
        yield


@contextlib.contextmanager
def trial(device: torch.device, *things: Any) -> Iterator[None]:
    """Run parts in `eval()`, without gradients, leaving modes and torch's random state as they were."""
    with all_in_eval_mode(*things), torch.no_grad(), own_random_state(device):
        yield


@contextlib.contextmanager
def naming(what: str, fix: str = "") -> Iterator[None]:
    """Turn any error of the user's code into a WrapError that begins with `what` and has this fix; our own pass."""
    try:
        yield
    except WrapError:
        raise
    except Exception as error:
        raise WrapError(f"{what} {type(error).__name__}: {error}" + ("\n" if fix else ""), fix) from error
