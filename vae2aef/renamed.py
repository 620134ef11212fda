"""Modules of 0.1 that have another name today: theirs stay, and warn with it."""

import importlib
import warnings
from collections.abc import Callable, Mapping
from typing import Any


def warns(module: str, successor: str, names: Mapping[str, str] | None = None) -> Callable[[str], Any]:
    """Return the `__getattr__` of a module that is called otherwise today; every use of it is a `DeprecationWarning`.

    Args:
        module: its name.
        successor: the module that has what it had.
        names: what is called otherwise there, by its older name.
    """
    names = names or {}

    def get(name: str) -> Any:
        there, today = importlib.import_module(successor), names.get(name, name)
        if name.startswith("_") or not hasattr(there, today):
            raise AttributeError(f"module {module!r} has no attribute {name!r}")
        old, new = (f"{module}.{name}", f"{successor}.{today}") if name in names else (module, successor)
        warnings.warn(f"{old} is now {new}", DeprecationWarning, stacklevel=2)
        return getattr(there, today)

    return get
