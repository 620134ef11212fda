"""Random numbers from elsewhere than torch's own generators: Python's, NumPy's, and generators that a model holds."""

import contextlib
import inspect
import random
import sys
import types
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import torch


def is_generator(value: Any) -> bool:
    """Whether an object is a generator of random numbers that can be seeded: of torch, Python or NumPy."""
    if isinstance(value, random.Random):
        return not isinstance(value, random.SystemRandom)
    numpy = sys.modules.get("numpy")
    kinds = (torch.Generator,) if numpy is None else (torch.Generator, numpy.random.RandomState, numpy.random.Generator)
    return isinstance(value, kinds)


def seed(generator: Any, number: int) -> None:
    """Seed a generator."""
    if isinstance(generator, torch.Generator):
        generator.manual_seed(number)
    elif hasattr(generator, "bit_generator"):
        generator.bit_generator.state = type(generator.bit_generator)(number).state
    else:
        generator.seed(number)


def seed_torch(number: int) -> None:
    """Seed torch's generators, those of accelerators that are in use included.

    `torch.manual_seed` also notes, with a stack trace each time, the seed of accelerators that nobody uses: that took
    half the time of wrapping a small VAE.
    """
    torch.default_generator.manual_seed(number)
    for kind in (torch.cuda, torch.xpu):
        if kind.is_initialized():
            kind.manual_seed_all(number)
    if torch.backends.mps.is_available():
        torch.mps.manual_seed(number)


def next_one(generator: Any) -> float:
    """Draw a number, from 0 to 1."""
    if isinstance(generator, torch.Generator):
        return torch.rand((), generator=generator, device=generator.device).item()
    return float(generator.random())


def remember(generator: Any) -> Callable[[], Any]:
    """Return a function that puts a generator back to where it is now."""
    if isinstance(generator, torch.Generator):
        state = generator.get_state()
        return lambda: generator.set_state(state)
    if isinstance(generator, random.Random):
        place = generator.getstate()
        return lambda: generator.setstate(place)
    if hasattr(generator, "bit_generator"):
        bits = generator.bit_generator.state
        return lambda: setattr(generator.bit_generator, "state", bits)
    arrays = generator.get_state()
    return lambda: generator.set_state(arrays)


def everywhere(*held: Any) -> list[Any]:
    """Return Python's and NumPy's own generators, and those that modules hold or whose methods take from globals.

    Args:
        *held: modules, without those inside them.
    """
    numpy = sys.modules.get("numpy")
    found = [random._inst] if numpy is None else [random._inst, numpy.random.mtrand._rand]
    used = [value for kind in {type(m) for m in held} for value in used_by(kind).values()]
    for value in (*used, *(value for m in held for value in vars(m).values())):
        inside = value.values() if isinstance(value, dict) else value if isinstance(value, (list, tuple)) else ()
        found += [one for one in (value, *inside) if is_generator(one)]
    return list({id(one): one for one in found}.values())


@contextlib.contextmanager
def as_they_were(generators: Iterable[Any]) -> Iterator[None]:
    """Leave generators where they were."""
    back = [remember(one) for one in generators]
    try:
        yield
    finally:
        for put_back in back:
            put_back()


def used_by(kind: type) -> dict[str, Any]:
    """Return the globals that the methods of a class use, and those of the helpers among these, by name."""
    methods = [f for base in kind.__mro__ for f in vars(base).values() if inspect.isfunction(f)]
    found: dict[str, Any] = {}
    for method in methods:
        found.update(_globals(method))
    for helper in [value for value in found.values() if inspect.isfunction(value)]:
        found.update(_globals(helper))
    return found


def _globals(function: types.FunctionType) -> dict[str, Any]:
    """Return what a function uses by name: globals, and what it takes out of modules among these."""
    names = _names(function.__code__)
    used = {name: function.__globals__[name] for name in names if name in function.__globals__}
    for value in [value for value in used.values() if inspect.ismodule(value) and value is not torch]:
        used.update((name, vars(value)[name]) for name in names if name in vars(value))
    return used


def _names(code: types.CodeType) -> tuple[str, ...]:
    """Return the names that a function uses, those of the functions in it included."""
    inner = [name for const in code.co_consts if inspect.iscode(const) for name in _names(const)]
    return (*code.co_names, *inner)
