"""The likelihood that a VAE is trained with, where the code of its class, or beside it, says so."""

import ast
import inspect
import re
import sys
import types
from collections.abc import Iterable, Iterator
from typing import Any

from torch import Tensor, nn

from vae2aef.modes import named_modules
from vae2aef.parts import VAEParts

BERNOULLI, LOGITS = "bernoulli", "bernoulli_logits"

LOSSES = {
    "binary_cross_entropy": BERNOULLI,
    "binary_cross_entropy_with_logits": LOGITS,
    "mse_loss": "gaussian",
    "l1_loss": "laplace",
}
"""Losses of torch by what they are the likelihood of; the last two are what is taken where nothing is said."""

MODULES = {"BCELoss": BERNOULLI, "BCEWithLogitsLoss": LOGITS, "MSELoss": "gaussian", "L1Loss": "laplace"}

KL = re.compile(r"kl|log_?_?var|log_?sigma|log_?std|elbo", re.IGNORECASE)
"""A name in the loss of a VAE that no other loss has."""

Unit = set[str]
"""All names in one piece of code: a function, or a script outside of its functions."""


def has_methods(vae: Any) -> bool:
    """Whether an object has callable `encode`, `reparameterize` and `decode`, as the VAE of pytorch/examples."""
    return all(callable(getattr(vae, name, None)) for name in ("encode", "reparameterize", "decode"))


def trained_with(vae: Any, x: Tensor) -> str | None:
    """Return the Bernoulli likelihood that a class is trained with; None if no code says so, or several say several.

    Looked at are `loss_function` beside the class, as in `vae/main.py`; then, for data between 0 and 1, what has both a
    loss of torch and a name of the KL term in it: methods of the class, its module, the script that is run.

    Args:
        vae: the user's VAE.
        x: data, `(batch, *event)`.
    """
    module = sys.modules.get(type(vae).__module__)
    beside = _units(module)
    found = _said([names for name, names in beside if name == "loss_function"], {})
    if not found and bool(((x >= 0) & (x <= 1)).all()):
        for units in (_methods(type(vae)), [names for _, names in beside],
                      [names for _, names in _units(sys.modules.get("__main__"))]):  # fmt: skip
            of_vaes = [names for names in units if any(KL.search(name) for name in names)]
            found = found or _said(of_vaes, _bound_beside(vae, module))
    return next(iter(found)) if found in ({BERNOULLI}, {LOGITS}) else None


def take_loss(parts: VAEParts, vae: Any, x: Tensor) -> None:
    """Give the parts of a traced VAE the likelihood that its code trains it with, and say what is not seen."""
    if parts.likelihood is None and parts.output is None:
        parts.likelihood = trained_with(vae, x)
    unseen = "prior and loss are" if parts.likelihood is None else "prior is"
    parts.assumed = (f"traced: VAE's own {unseen} not seen in its forward", *parts.assumed)


def _said(units: list[Unit], bound: dict[str, str]) -> set[str]:
    """Return the likelihoods of the losses that pieces of code use."""
    known = {**LOSSES, **MODULES, **bound}
    return {known[name] for names in units for name in names if name in known}


def _bound_beside(vae: Any, module: Any) -> dict[str, str]:
    """Return what losses are bound to in the class, its module and the VAE itself."""
    inside = dict(named_modules(vae)) if isinstance(vae, nn.Module) else {}
    return _bound({**(vars(module) if module else {}), **vars(type(vae)), **inside})


def _bound(values: dict[str, Any]) -> dict[str, str]:
    """Return what a loss of torch is bound to, as in `criterion = nn.BCELoss()`, by its name without what it is of."""
    kinds = {name.rpartition(".")[2]: type(value) for name, value in values.items() if isinstance(value, nn.Module)}
    return {name: MODULES[kind.__name__] for name, kind in kinds.items() if kind.__name__ in MODULES}


def _units(module: Any) -> list[tuple[str, Unit]]:
    """Return each function of a module, its own or imported, by its name, and what is outside; also further down."""
    if module is None:
        return []
    units = [(function.__name__, _names(function.__code__)) for function in _functions(vars(module))]
    script = _script(module)
    if script is None:
        return units
    functions = [node for node in ast.walk(script) if isinstance(node, ast.FunctionDef)]
    inside = {id(node) for function in functions for node in ast.walk(function)}
    outside = [node for node in ast.walk(script) if id(node) not in inside]
    return [*units, *((node.name, _written(ast.walk(node))) for node in functions), ("", _written(outside))]


def _script(module: Any) -> ast.Module | None:
    """Return the code of a module that names a loss; None for a notebook, which has no text."""
    if not getattr(module, "__file__", None):
        return None
    try:
        source = inspect.getsource(module)
        return ast.parse(source) if any(name in source for name in (*LOSSES, *MODULES)) else None
    except (OSError, TypeError, SyntaxError):  # it is not there any more, or has changed
        return None


def _methods(kind: type) -> list[Unit]:
    return [_names(function.__code__) for one in kind.__mro__ for function in _functions(vars(one))]


def _functions(found: Any) -> Iterator[types.FunctionType]:
    return (value for value in list(found.values()) if isinstance(value, types.FunctionType))


def _written(nodes: Iterable[ast.AST]) -> Unit:
    names = set()
    for node in nodes:
        if isinstance(node, ast.Attribute):
            names.add(node.attr)
        elif isinstance(node, ast.Name):
            names.add(node.id)
        elif isinstance(node, ast.arg):
            names.add(node.arg)
    return names


def _names(code: types.CodeType) -> Unit:
    inner = (const for const in code.co_consts if isinstance(const, types.CodeType))
    return {*code.co_names, *code.co_varnames, *(name for each in inner for name in _names(each))}
