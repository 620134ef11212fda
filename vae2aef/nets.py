"""The name of 0.1 for `vae2aef.comparison.nets`; every use of it warns."""

import importlib
import warnings
from typing import Any

SUCCESSOR = "vae2aef.comparison.nets"


def __getattr__(name: str) -> Any:
    module = importlib.import_module(SUCCESSOR)
    if name.startswith("_") or not hasattr(module, name):
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    warnings.warn(f"{__name__} is now {SUCCESSOR}", DeprecationWarning, stacklevel=2)
    return getattr(module, name)
