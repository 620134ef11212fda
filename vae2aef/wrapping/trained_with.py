"""The likelihood that a VAE is trained with, where the code of its class, or beside it, says so."""

import ast
import functools
import inspect
import re
import sys
import types
from collections.abc import Iterable, Iterator
from typing import Any, NamedTuple

from torch import Tensor, nn

from vae2aef.modes import named_modules
from vae2aef.parts import VAEParts

BERNOULLI, LOGITS = "bernoulli", "bernoulli_logits"

LOSSES = {
    "binary_cross_entropy": BERNOULLI, "BCELoss": BERNOULLI,
    "binary_cross_entropy_with_logits": LOGITS, "BCEWithLogitsLoss": LOGITS,
}  # fmt: skip
"""Losses of torch that are a likelihood other than what is taken where nothing is said."""

OTHERS = {"mse_loss", "MSELoss", "l1_loss", "L1Loss", "smooth_l1_loss", "SmoothL1Loss", "huber_loss", "HuberLoss",
          "gaussian_nll_loss", "GaussianNLLLoss", "poisson_nll_loss", "cross_entropy", "CrossEntropyLoss", "nll_loss",
          "log_prob"}  # fmt: skip
"""Names of what may be another reconstruction term."""

KL = re.compile(r"(^|_)(kl|kld|elbo)($|_|\d)|log_?var|log_?sigma|log_?std", re.IGNORECASE)
"""A name in the loss of a VAE that no other loss has."""

RIVAL = re.compile(r"disc|critic|advers|(^|_)(adv|gan|gen|generator|classifier)($|_)", re.IGNORECASE)
"""A name of what a cross-entropy may be of, in the place of the data."""


class Unit(NamedTuple):
    """The names in one piece of code: a function, or a script outside of its functions.

    Attributes:
        name: of the function; empty for a script.
        used: what it uses of elsewhere, and attributes.
        names: these, and its own variables.
    """

    name: str
    used: frozenset[str]
    names: frozenset[str]


def has_methods(vae: Any) -> bool:
    """Whether an object has callable `encode`, `reparameterize` and `decode`, as the VAE of pytorch/examples."""
    return all(callable(getattr(vae, name, None)) for name in ("encode", "reparameterize", "decode"))


def trained_with(vae: Any, x: Tensor) -> str | None:
    """Return the Bernoulli likelihood of the `loss_function` beside a class, as in `vae/main.py`; None if it has none.

    Of a class without the methods of that VAE it must name the KL term, and the data be between 0 and 1.

    Args:
        vae: the user's VAE.
        x: data, `(batch, *event)`.
    """
    beside = [unit for unit in _units(sys.modules.get(type(vae).__module__)) if unit.name == "loss_function"]
    if not has_methods(vae):
        beside = [unit for unit in beside if _is_of_a_vae(unit)] if _within_unit(x) else []
    return _one(beside, {})


def perhaps_trained_with(vae: Any, x: Tensor) -> str | None:
    """Return the Bernoulli likelihood that other code seems to train a class with; None if nothing says so.

    Looked at are methods of the class, functions of its module, and the script that is run.

    Args:
        vae: the user's VAE.
        x: data, `(batch, *event)`.
    """
    module = sys.modules.get(type(vae).__module__)
    if not _within_unit(x):
        return None
    methods = [_unit(function) for kind in type(vae).__mro__ for function in _functions(vars(kind))]
    inside = dict(named_modules(vae)) if isinstance(vae, nn.Module) else {}
    bound = _bound({**_names_of(module), **vars(type(vae)), **inside})
    for units in (methods, _units(module), _units(sys.modules.get("__main__"))):
        found = [unit for unit in units if _is_of_a_vae(unit) and unit.used & {*LOSSES, *OTHERS, *bound}]
        if found:
            return _one(found, bound)
    return None


def cross_entropy(vae: Any, x: Tensor) -> str | None:
    """Return the Bernoulli likelihood that code trains a class with, surely or perhaps."""
    return trained_with(vae, x) or perhaps_trained_with(vae, x)


def take_loss(parts: VAEParts, vae: Any, x: Tensor) -> None:
    """Give the parts of a traced VAE the likelihood that its code trains it with, and say what is not seen."""
    if parts.likelihood is None and parts.output is None:
        parts.likelihood = trained_with(vae, x)
    unseen = "prior and loss are" if parts.likelihood is None else "prior is"
    parts.assumed = (f"traced: VAE's own {unseen} not seen in its forward", *parts.assumed)


def _within_unit(x: Tensor) -> bool:
    return bool(x.numel()) and not x.is_complex() and bool(((x >= 0) & (x <= 1)).all())


def _is_of_a_vae(unit: Unit) -> bool:
    return any(KL.search(name) for name in unit.names)


def _one(units: list[Unit], bound: dict[str, str]) -> str | None:
    """Return the one likelihood of the losses that pieces of code use; None for several, or what may be of another."""
    known = {**LOSSES, **bound}
    found = {known[name] for unit in units for name in unit.used if name in known}
    if any(unit.used & OTHERS or any(map(RIVAL.search, unit.names)) for unit in units):
        return None
    return found.pop() if len(found) == 1 else None


def _bound(values: dict[str, Any]) -> dict[str, str]:
    """Return what a loss of torch is bound to, as in `criterion = nn.BCELoss()`, by its name without what it is of."""
    kinds = {name.rpartition(".")[2]: type(value) for name, value in values.items() if isinstance(value, nn.Module)}
    return {name: LOSSES[kind.__name__] for name, kind in kinds.items() if kind.__name__ in LOSSES}


def _units(module: Any) -> list[Unit]:
    """Return each function of a module, its own or imported, and what is outside; also what is defined further down."""
    return [*map(_unit, _functions(_names_of(module))), *_written(_source(module))]


def _names_of(module: Any) -> dict[str, Any]:
    return getattr(module, "__dict__", {})


def _functions(found: Any) -> Iterator[types.FunctionType]:
    values = (getattr(value, "__func__", value) for value in list(found.values()) if callable(value) or
              isinstance(value, (classmethod, staticmethod)))  # fmt: skip
    return (value for value in values if isinstance(value, types.FunctionType))


def _unit(function: types.FunctionType) -> Unit:
    used, names = _of_code(function.__code__)
    return Unit(function.__name__, frozenset(used), frozenset(names))


def _of_code(code: types.CodeType) -> tuple[set[str], set[str]]:
    used, names = set(code.co_names), {*code.co_names, *code.co_varnames}
    for inner in code.co_consts:
        if isinstance(inner, types.CodeType):
            more = _of_code(inner)
            used, names = used | more[0], names | more[1]
    return used, names


def _source(module: Any) -> str:
    """Return the text of a module that names a loss; nothing of others, and of a notebook, which has none."""
    try:
        source = inspect.getsource(module) if getattr(module, "__file__", None) else ""
    except Exception:  # it is not there any more
        return ""
    return source if any(name in source for name in LOSSES) else ""


@functools.lru_cache(maxsize=8)
def _written(source: str) -> tuple[Unit, ...]:
    """Return the functions in a text, and what is outside of them."""
    try:
        script = ast.parse(source)
    except Exception:  # it has changed, or is too deep
        return ()
    functions = [node for node in ast.walk(script) if isinstance(node, ast.FunctionDef)]
    inside = {id(node) for function in functions for node in ast.walk(function)}
    outside = [node for node in ast.walk(script) if id(node) not in inside]
    return (*(_of_nodes(node.name, ast.walk(node)) for node in functions), _of_nodes("", outside))


def _of_nodes(name: str, nodes: Iterable[ast.AST]) -> Unit:
    used, own = set(), set()
    for node in nodes:
        if isinstance(node, ast.Attribute):
            used.add(node.attr)
        elif isinstance(node, ast.arg):
            own.add(node.arg)
        elif isinstance(node, ast.Name):
            (used if isinstance(node.ctx, ast.Load) or not name else own).add(node.id)
    return Unit(name, frozenset(used - own), frozenset(used | own))
