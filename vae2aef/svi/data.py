"""Which argument of a Pyro model is the data, and whether a site of the guide sees it."""

import inspect
from collections.abc import Callable, Iterator
from typing import Any

import pyro.poutine as poutine
import torch
from torch import Tensor, nn

from vae2aef.errors import WrapError


def find_data(guide: Any, args: tuple, kwargs: dict[str, Any], data: "str | Callable[..., Tensor] | None") -> Tensor:
    """Return the data that h reads.

    Args:
        guide: for the names of its arguments.
        args: of the guide.
        kwargs: of the guide.
        data: None for the first tensor among the arguments, the name of an argument, or a callable of them.

    Raises:
        WrapError: if there is none, or it holds no floating point numbers.
    """
    if callable(data):
        found: Any = data(*args, **kwargs)
    elif data is not None:
        found = _by_name(guide, data, args, kwargs)
    else:
        found = next(tensors_in((args, kwargs)), None)
    if not isinstance(found, Tensor) or found.dim() < 1:
        raise WrapError(
            "an AEF needs to see the data, and the guide gets no tensor to encode; pass it to model and guide, or "
            f"name it with data= (an argument's name, or a callable of the arguments); got "
            f"{type(found).__name__ if data is not None else 'no tensor argument'}"
        )
    if not found.is_floating_point():
        raise WrapError(
            f"expected floating point data, got {found.dtype}: a density needs continuous data. ",
            "For integers use vae2aef.dequantize(x); if another argument is the data, name it with data=",
        )
    return found


def _by_name(guide: Any, name: str, args: tuple, kwargs: dict[str, Any]) -> Any:
    function = poutine.unwrap(guide)
    signature = inspect.signature(function.forward if isinstance(function, nn.Module) else function)
    try:
        arguments = signature.bind(*args, **kwargs).arguments
    except TypeError:
        arguments = dict(kwargs)
    for parameter in signature.parameters.values():
        if parameter.kind is parameter.VAR_KEYWORD:
            arguments = {**arguments, **arguments.get(parameter.name, {})}
    if name not in arguments:
        raise WrapError(f'data="{name}" is no argument of the guide; it has {sorted(arguments)}')
    return arguments[name]


def tensors_in(value: Any) -> Iterator[Tensor]:
    """Yield the tensors in nested tuples, lists and dicts, in order."""
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, (tuple, list)):
        for item in value:
            yield from tensors_in(item)
    elif isinstance(value, dict):
        yield from tensors_in(list(value.values()))


def substitute(value: Any, old: Tensor, new: Tensor) -> Any:
    """Put `new` where `old` is, in nested tuples, lists and dicts."""
    if isinstance(value, Tensor):
        return new if value is old else value
    if isinstance(value, (tuple, list)):
        items = [substitute(item, old, new) for item in value]
        return type(value)(*items) if hasattr(value, "_fields") else type(value)(items)
    if isinstance(value, dict):
        return {key: substitute(item, old, new) for key, item in value.items()}
    return value


def depends(outputs: list[Tensor], inputs: list[Tensor]) -> bool:
    """Whether autograd finds a path from any input to any output."""
    outputs = [o for o in outputs if o.requires_grad]
    if not outputs:
        return False
    total = torch.stack([o.sum() for o in outputs]).sum()
    grads = torch.autograd.grad(total, inputs, allow_unused=True, retain_graph=True)
    return any(g is not None for g in grads)
