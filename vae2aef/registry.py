"""The registry of adapters: which class of VAE is read by which adapter, by name, without importing it."""

import importlib
from collections.abc import Callable
from typing import Any

from vae2aef.parts import VAEParts

Adapter = Callable[..., VAEParts]
"""Called with `(vae, example)` and, if the user gave it, `encoder_scale=`; returns the parts."""

_by_name: dict[str, Adapter] = {}
_by_shape: list[tuple[Callable[[Any], bool], Adapter]] = []


def register_adapter(*names: str, matches: Callable[[Any], bool] | None = None) -> Callable[[Adapter], Adapter]:
    """Register an adapter for classes with these qualified names, or for objects that `matches` accepts.

    A name is found through the whole inheritance of the VAE's class, so subclasses are known too. Names come
    before `matches`.

    Args:
        *names: such as `"pythae.models.vae.vae_model.VAE"`; the class's `__module__` and `__qualname__`.
        matches: for code that is copied rather than imported, whose module has any name.

    Returns:
        A decorator that returns the adapter unchanged.
    """

    def register(adapter: Adapter) -> Adapter:
        _by_name.update(dict.fromkeys(names, adapter))
        if matches is not None:
            _by_shape.append((matches, adapter))
        return adapter

    return register


def find_adapter(vae: Any) -> Adapter | None:
    """Return the adapter for an object, or None."""
    importlib.import_module("vae2aef.adapters")
    for cls in type(vae).__mro__:
        adapter = _by_name.get(f"{cls.__module__}.{cls.__qualname__}")
        if adapter is not None:
            return adapter
    return next((adapter for matches, adapter in _by_shape if matches(vae)), None)
