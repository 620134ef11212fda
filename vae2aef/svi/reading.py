"""The tensors among the arguments of a model and guide, wherever they are; and which of them h reads."""

import dataclasses
import inspect
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple, TypeGuard

import pyro.poutine as poutine
import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import PackedSequence, pad_packed_sequence, pad_sequence

from vae2aef.tensors import map_tensors

Path = tuple[Any, ...]
"""Where a value is: the name of an argument, and the keys inside it."""


class Unit(NamedTuple):
    """A tensor among the arguments, or what stands for one: a packed sequence, or a list of sequences.

    Attributes:
        path: where it is.
        value: as given.
    """

    path: Path
    value: Any

    @property
    def tensors(self) -> list[Tensor]:
        """The tensors that hold the numbers."""
        if isinstance(self.value, PackedSequence):
            return [self.value.data]
        return list(self.value) if isinstance(self.value, list) else [self.value]

    @property
    def floating(self) -> bool:
        """Whether they are floating point numbers."""
        return any(tensor.is_floating_point() for tensor in self.tensors)

    @property
    def ragged(self) -> bool:
        """Whether rows may be of different length."""
        return not isinstance(self.value, Tensor)

    def padded(self) -> Tensor:
        """Return it as one tensor, `(rows, *event)`; sequences are filled up with zeros."""
        if isinstance(self.value, PackedSequence):
            return pad_packed_sequence(self.value, batch_first=True)[0]
        return pad_sequence(self.value, batch_first=True) if isinstance(self.value, list) else self.value


def bind(function: Any, args: tuple, kwargs: dict[str, Any]) -> dict[str, Any]:
    """Return arguments by name, defaults and those of `**kwargs` among them; by number where names are not known."""
    bound = _bound(function, args, kwargs)
    if bound is None:
        return {**{str(i): value for i, value in enumerate(args)}, **kwargs}
    bound.apply_defaults()
    arguments = dict(bound.arguments)
    for parameter in bound.signature.parameters.values():
        if parameter.kind is parameter.VAR_KEYWORD:
            arguments.update(arguments.pop(parameter.name, {}))
    return arguments


def with_defaults(
    function: Any, args: tuple, kwargs: dict[str, Any], other: Any = None
) -> tuple[tuple, dict[str, Any]]:
    """Return the arguments of a call, with those defaults that hold tensors written out.

    Args:
        function: the one with the defaults.
        args: of the call.
        kwargs: likewise.
        other: a function that is called alike; only defaults that it has too, or needs, are written out then.
    """
    bound, theirs = _bound(function, args, kwargs), _signature(function if other is None else other)
    if bound is None or theirs is None:
        return args, kwargs
    args = (*args, *_by_place(bound.signature, theirs, len(args)))
    by_name = [p for p in _of_kind(bound.signature, *_NAMED) if p.name not in bound.arguments and any(units(p.default))]
    others = {p.name: p for p in _of_kind(theirs, *_NAMED)}
    shared = [p for p in by_name if p.name in others and _takes(others[p.name], p)]
    return args, {**kwargs, **{p.name: p.default for p in shared}}


def _by_place(signature: inspect.Signature, theirs: inspect.Signature, given: int) -> list[Any]:
    """Return the defaults that can be given by position only, up to the last with tensors, after those given."""
    own = _of_kind(signature, inspect.Parameter.POSITIONAL_ONLY)[given:]
    while own and not any(units(own[-1].default)):
        own.pop()
    others = _of_kind(theirs, *_PLACED)[given:][: len(own)]
    return [p.default for p in own] if len(others) == len(own) and all(map(_takes, others, own)) else []


def _of_kind(signature: inspect.Signature, *kinds: Any) -> list[inspect.Parameter]:
    return [p for p in signature.parameters.values() if p.kind in kinds]


_PLACED = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)
_NAMED = (inspect.Parameter.POSITIONAL_OR_KEYWORD, inspect.Parameter.KEYWORD_ONLY)


def _takes(theirs: inspect.Parameter, own: inspect.Parameter) -> bool:
    """Whether a parameter of another function needs a value, or has the same default."""
    a, b = theirs.default, own.default
    if isinstance(a, Tensor) and isinstance(b, Tensor):
        return a is b or ((a.dtype, a.device) == (b.dtype, b.device) and torch.equal(a, b))
    return a is b or a is inspect.Parameter.empty or (isinstance(a, (int, float, str)) and a == b)


def _signature(function: Any) -> inspect.Signature | None:
    try:
        function = poutine.unwrap(function)
        return inspect.signature(function.forward if isinstance(function, nn.Module) else function)
    except (TypeError, ValueError):
        return None


def _bound(function: Any, args: tuple, kwargs: dict[str, Any]) -> inspect.BoundArguments | None:
    signature = _signature(function)
    try:
        return None if signature is None else signature.bind(*args, **kwargs)
    except TypeError:
        return None


def units(value: Any, path: Path = (), ragged: Path | None = None) -> Iterator[Unit]:
    """Yield what is inside nested tuples, lists, dicts and dataclasses, in order.

    Args:
        value: the arguments by name, or what is at a path in them.
        path: where that is.
        ragged: where a list is known to be one of sequences, one a row, whatever their length.
    """
    if isinstance(value, (Tensor, PackedSequence)) or _is_sequences(value, path == ragged):
        yield Unit(path, value)
    elif isinstance(value, dict):
        for key, item in value.items():
            yield from units(item, (*path, key), ragged)
    elif isinstance(value, (tuple, list)):
        for key, item in zip(getattr(value, "_fields", range(len(value))), value, strict=True):
            yield from units(item, (*path, key), ragged)
    elif _is_data(value):
        for field in dataclasses.fields(value):
            yield from units(getattr(value, field.name), (*path, field.name), ragged)


def alike(value: Any) -> TypeGuard[list[Tensor]]:
    """Whether it is a list of tensors that differ in length at most."""
    if not isinstance(value, list) or not value or not all(isinstance(v, Tensor) and v.dim() for v in value):
        return False
    return len({(v.dtype, v.shape[1:]) for v in value}) == 1


def _is_sequences(value: Any, known: bool) -> bool:
    """Whether it is a list of sequences, one a row: it is known, or they are of different length."""
    return alike(value) and (known or len({len(v) for v in value}) > 1)


def _is_data(value: Any) -> bool:
    return dataclasses.is_dataclass(value) and not isinstance(value, type)


def substitute(value: Any, old: Tensor, new: Tensor) -> Any:
    """Put `new` where `old` is, in nested tuples, lists, dicts and dataclasses."""
    return changed(value, lambda tensor: new if tensor is old else tensor)


def changed(value: Any, change: Callable[[Tensor], Tensor]) -> Any:
    """Change every tensor in nested tuples, lists, dicts and dataclasses."""

    def other(one: Any) -> Any:
        if isinstance(one, PackedSequence):
            return one._replace(data=change(one.data))
        if _is_data(one):
            return dataclasses.replace(one, **{f.name: changed(getattr(one, f.name), change) for f in _settable(one)})
        return one

    return map_tensors(value, change, other)


def _settable(value: Any) -> list[Any]:
    return [field for field in dataclasses.fields(value) if field.init]


def at(value: Any, path: Path) -> Any:
    """Return what is at a path; None if it is not there."""
    for key in path:
        if isinstance(value, dict):
            value = value.get(key)
        elif isinstance(value, (tuple, list)) and isinstance(key, int):
            value = value[key] if key < len(value) else None
        else:
            value = getattr(value, str(key), None)
    return value


def written(path: Path) -> str:
    """Write a path as code: `batch["x"]`."""
    return str(path[0]) + "".join(f"[{key!r}]" for key in path[1:])


def structure(value: Any, path: Path = (), ragged: Path | None = None) -> Any:
    """Return what tells calls of different structure apart: which arguments are there, of what type; not their size.

    Args:
        value: as in `units`, like the others.
        path: likewise.
        ragged: likewise.
    """
    if isinstance(value, Tensor):
        return value.dtype, value.dim()
    if value is None or isinstance(value, (bool, str)):
        return value
    if _is_sequences(value, path == ragged) or isinstance(value, PackedSequence):
        return type(value).__name__
    if isinstance(value, dict):
        return tuple((key, structure(item, (*path, key), ragged)) for key, item in value.items())
    if isinstance(value, (tuple, list)):
        return tuple(structure(item, (*path, i), ragged) for i, item in enumerate(value))
    if _is_data(value):
        names = [field.name for field in dataclasses.fields(value)]
        return tuple(structure(getattr(value, name), (*path, name), ragged) for name in names)
    return type(value)
