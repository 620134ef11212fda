"""`--vae`: the VAE to compare, by name."""

from __future__ import annotations

import hashlib
import importlib
import importlib.util
import inspect
import os
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

from torch import nn

from vae2aef.comparison.errors import InputError
from vae2aef.comparison.nets import MLPVAE, ConvVAE

BUILT_IN: dict[str, Callable[..., nn.Module]] = {"mlp": MLPVAE, "conv": ConvVAE}
EXPECTED = "mlp, conv, package.module:factory, or file.py:factory"
# What the comparison varies or sets itself; a factory that fixed them would make the arms differ in more.
OURS = {"core", "core_flow", "prior", "likelihood", "residual", "preprocess", "noise", "example"}


def find_factory(spec: str) -> Callable[..., Any]:
    """Find the callable that `spec` names.

    Args:
        spec: `"mlp"`, `"conv"`, `"package.module:factory"`, looked up from the working folder too, or
            `"file.py:factory"`.

    Raises:
        InputError: no such module or name, or it cannot be called.
    """
    return BUILT_IN[spec] if spec in BUILT_IN else load_factory(spec, "--vae", EXPECTED, "a VAE")


def load_factory(
    spec: str, flag: str, expected: str = "package.module:factory or file.py:factory", what: str = "a module"
) -> Callable[..., Any]:
    """Import the callable `"package.module:factory"`, looked up from the working folder too, or `"file.py:factory"`.

    A file is run as a module of its own, once, unless a module of this process was made of it: a script finds itself.

    Args:
        spec: its name.
        flag: the option of the command line, for messages.
        expected: what the option takes.
        what: what the callable returns.

    Raises:
        InputError: no such module or name, or it cannot be called.
    """
    module_name, _, name = spec.rpartition(":")
    if not module_name or not name:
        raise InputError(f"{flag} {spec}: expected {expected}")
    if os.getcwd() not in sys.path:
        sys.path.insert(0, os.getcwd())
    try:
        found: Any = _of_file(module_name) if module_name.endswith(".py") else importlib.import_module(module_name)
    except Exception as problem:  # the user's module may fail in any way
        raise InputError(f"{flag} {spec}: importing {module_name} failed: {_say(problem)}") from problem
    for part in name.split("."):
        if not hasattr(found, part):
            raise InputError(f"{flag} {spec}: {module_name} has no {name}")
        found = getattr(found, part)
    if not callable(found) or isinstance(found, nn.Module):
        raise InputError(
            f"{flag} {spec}: {name} is a {type(found).__name__}; expected a function or class that "
            f"returns {what} when called"
        )
    return found


def _of_file(name: str) -> ModuleType:
    path = Path(name).expanduser().resolve()
    for module in list(sys.modules.values()):
        if (file := getattr(module, "__file__", None)) and file.endswith(path.name) and Path(file).resolve() == path:
            return module
    own = f"{path.stem}_{hashlib.sha256(str(path).encode()).hexdigest()[:8]}"
    spec = importlib.util.spec_from_file_location(own, path)
    if spec is None or spec.loader is None or not path.is_file():
        raise FileNotFoundError(f"there is no file {path}")
    if str(path.parent) not in sys.path:  # as for a script: it may import what lies beside it
        sys.path.insert(0, str(path.parent))
    module = sys.modules[own] = importlib.util.module_from_spec(spec)
    try:
        spec.loader.exec_module(module)
    except BaseException:
        del sys.modules[own]
        raise
    return module


def name_of(factory: Callable[..., Any]) -> str:
    """Return the spec by which the command line finds a factory from the working folder: by module or by file.

    Args:
        factory: that can be reached from its module by its name.

    Returns:
        `"module:name"` of what is in the working folder or installed; else, as of a script that is run, the file; and
        `"__main__:name"` where there is no file, as in a notebook.
    """
    module, name = sys.modules[factory.__module__], factory.__qualname__
    if module.__name__ == "__main__" and module.__spec__ is not None:  # python -m package.module
        return f"{module.__spec__.name}:{name}"
    file = getattr(module, "__file__", None)
    if file is None:
        return f"{module.__name__}:{name}"
    path, within = Path(file).resolve(), module.__name__.split(".")
    place = path.parent if path.name == "__init__.py" else path.with_suffix("")
    # A module that was made of a file's path may have any name, under which no import finds it.
    own = module.__name__ != "__main__" and list(place.parts[-len(within) :]) == within
    root = place.parents[len(within) - 1] if own else None
    if own and (len(within) > 1 or root == Path.cwd() or "site-packages" in path.parts):
        return f"{module.__name__}:{name}"
    shown = path.relative_to(Path.cwd()) if path.is_relative_to(Path.cwd()) else path
    return f"{shown}:{name}"


def make_vae(spec: str, event_shape: tuple[int, ...], latents: int, classes: int = 0) -> dict[str, Any]:
    """Call the factory once.

    `event_shape`, `latents` and `classes` are handed over where its signature names them.

    Args:
        spec: as in `find_factory`.
        event_shape: shape of one sample.
        latents: number of latent variables asked for.
        classes: number of classes that the labels of the data have; 0 for data without labels.

    Returns:
        Keyword arguments for `wrap`, `vae` among them.

    Raises:
        InputError: the factory cannot be called like this, fails, or returns something else.
    """
    factory = find_factory(spec)
    wanted, offered = _parameters(factory), _offered(event_shape, latents, classes)
    needed = [
        p.name
        for p in wanted.values()
        if p.default is p.empty and p.kind not in (p.VAR_POSITIONAL, p.VAR_KEYWORD) and p.name not in offered
    ]
    if needed:
        raise InputError(
            f"--vae {spec}: the factory needs {', '.join(needed)}; only event_shape, latents and "
            "classes are handed over, give the others a default"
        )
    try:
        made = factory(**{key: value for key, value in offered.items() if key in wanted})
    except InputError:
        raise
    except Exception as problem:  # the user's code may fail in any way
        raise InputError(f"--vae {spec}: calling the factory failed: {_say(problem)}") from problem
    arguments = made if isinstance(made, dict) else {"vae": made}
    if not isinstance(arguments.get("vae"), nn.Module):
        raise InputError(
            f"--vae {spec}: the factory returned {type(made).__name__}; expected an nn.Module, or a "
            'dict of arguments for wrap with an nn.Module under "vae"'
        )
    if taken := sorted(OURS & arguments.keys()):
        raise InputError(f"--vae {spec}: {', '.join(taken)} cannot be set by the factory, the comparison sets it")
    vae = arguments["vae"]
    if type(vae) in BUILT_IN.values() and len(arguments) == 1:
        return {"vae": vae, "encoder": vae.encode, "decoder": vae.decode, "encoder_scale": "log_var"}
    return dict(arguments)


def called(spec: str, event_shape: tuple[int, ...], latents: int, classes: int = 0) -> str:
    """Return the call of the factory that `make_vae` does, in code, by the name that it has in its module."""
    wanted = _parameters(find_factory(spec))
    given = {key: value for key, value in _offered(event_shape, latents, classes).items() if key in wanted}
    return f"{spec.rpartition(':')[2]}({', '.join(f'{key}={value}' for key, value in given.items())})"


def _offered(event_shape: tuple[int, ...], latents: int, classes: int) -> dict[str, Any]:
    return {"event_shape": event_shape, "latents": latents, "classes": classes}


def takes_latents(spec: str) -> bool:
    """Whether the factory uses `--latents`."""
    return "latents" in _parameters(find_factory(spec))


def _parameters(factory: Callable[..., Any]) -> dict[str, inspect.Parameter]:
    try:
        return dict(inspect.signature(factory).parameters)
    except (TypeError, ValueError):  # some callables of C code do not say
        return {}


def _say(problem: Exception) -> str:
    return f"{type(problem).__name__}: {problem}"
