"""Calls of torch functions: their plain names, the tensors in their arguments, and what a draw asks for."""

import sys
from typing import Any

import torch
from torch import Tensor

SAME_NAME = {
    "multiply": "mul", "subtract": "sub", "divide": "div", "true_divide": "div", "negative": "neg",
}  # fmt: skip


# Functions that hand values to Python, which may branch on them.
TO_PYTHON = {
    "bool", "item", "tolist", "int", "float", "index", "numpy", "array", "equal", "allclose", "contains", "is_nonzero",
}  # fmt: skip


def plain_name(func: Any) -> str:
    """Return a function's name without its underscores, synonyms taken as one: `mul_`, `__imul__` are `mul`."""
    name = getattr(func, "__name__", type(func).__name__).strip("_")
    return SAME_NAME.get(name, name)


def tensors(value: Any) -> list[Tensor]:
    """List all tensors in nested lists, tuples and dicts."""
    if isinstance(value, Tensor):
        return [value]
    if isinstance(value, (list, tuple)):
        return [t for item in value for t in tensors(item)]
    if isinstance(value, dict):
        return [t for item in value.values() for t in tensors(item)]
    return []


def blank(func: Any, args: tuple, kwargs: dict) -> Tensor:
    """Return a tensor such as the draw would, without drawing: torch's random state stays as it was."""
    if func is torch.Tensor.normal_:
        return args[0]
    kwargs = {name: value for name, value in kwargs.items() if name != "generator"}
    if func is torch.randn:
        return torch.empty(*args, **kwargs)
    if func is torch.randn_like:
        return torch.empty_like(*args, **kwargs)
    mean, std = moments(func, args, kwargs)
    size = kwargs.get("size", next((a for a in args if isinstance(a, (tuple, list))), None))
    if size is not None:
        return torch.empty(size, **{k: v for k, v in kwargs.items() if k not in ("size", "mean", "std")})
    return torch.empty_like(mean + std)


def moments(func: Any, args: tuple, kwargs: dict) -> tuple[Any, Any]:
    """Mean and standard deviation that a draw asks for: floats or tensors."""
    if func not in (torch.normal, torch.Tensor.normal_):
        return 0.0, 1.0
    given = args[1:] if func is torch.Tensor.normal_ else args
    mean = given[0] if given else kwargs.get("mean", 0.0)
    std = given[1] if len(given) > 1 and not isinstance(given[1], (tuple, list)) else kwargs.get("std", 1.0)
    return _plain_float(mean), _plain_float(std)


def _plain_float(value: Any) -> Any:
    return float(value) if isinstance(value, (int, float)) else value


def in_torch() -> bool:
    """Whether a call comes from torch's own code, as the checks of its distributions do."""
    frame: Any = sys._getframe(2)
    return str(frame.f_globals.get("__name__", "")).split(".")[0] == "torch"


def in_checkpoint() -> bool:
    """Whether a call is made inside `torch.utils.checkpoint`."""
    frame = sys._getframe()
    while frame.f_back is not None:
        frame = frame.f_back
        if frame.f_code.co_filename.replace("\\", "/").endswith("torch/utils/checkpoint.py"):
            return True
    return False


def used_values(func: Any, args: tuple, kwargs: dict) -> list[Tensor]:
    """List the tensors whose values, and not only shapes, a call uses."""
    name = getattr(func, "__name__", "")
    if name.endswith("_like") or name.startswith("new_") or name == "new":
        return []
    if name.endswith("_as") or name == "to":
        return tensors(args[:1])
    return tensors((args, kwargs))
