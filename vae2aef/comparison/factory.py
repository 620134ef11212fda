"""`--vae`: the VAE to compare, by name."""

from __future__ import annotations

import importlib
import inspect
import os
import sys
from collections.abc import Callable
from typing import Any

from torch import nn

from vae2aef.comparison.errors import InputError
from vae2aef.comparison.nets import MLPVAE, ConvVAE

BUILT_IN: dict[str, Callable[..., nn.Module]] = {"mlp": MLPVAE, "conv": ConvVAE}
EXPECTED = "mlp, conv, or package.module:factory"
# What the comparison varies or sets itself; a factory that fixed them would make the arms differ in more.
OURS = {"core", "core_flow", "prior", "likelihood", "residual", "preprocess", "noise", "example"}


def find_factory(spec: str) -> Callable[..., Any]:
    """Find the callable that `spec` names.

    Args:
        spec: `"mlp"`, `"conv"` or `"package.module:factory"`, looked up from the working folder too.

    Raises:
        InputError: no such module or name, or it cannot be called.
    """
    return BUILT_IN[spec] if spec in BUILT_IN else load_factory(spec, "--vae", EXPECTED, "a VAE")


def load_factory(
    spec: str, flag: str, expected: str = "package.module:factory", what: str = "a module"
) -> Callable[..., Any]:
    """Import the callable `"package.module:factory"`, looked up from the working folder too.

    Args:
        spec: its name.
        flag: the option of the command line, for messages.
        expected: what the option takes.
        what: what the callable returns.

    Raises:
        InputError: no such module or name, or it cannot be called.
    """
    module_name, _, name = spec.partition(":")
    if not module_name or not name:
        raise InputError(f"{flag} {spec}: expected {expected}")
    if os.getcwd() not in sys.path:
        sys.path.insert(0, os.getcwd())
    try:
        found: Any = importlib.import_module(module_name)
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
    offered = {"event_shape": event_shape, "latents": latents, "classes": classes}
    wanted = _parameters(factory)
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
