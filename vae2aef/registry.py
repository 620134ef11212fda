"""The registry of adapters: which class of VAE is read by which adapter, by name, without importing it.

Other packages add theirs without being imported either, by an entry point of the group `vae2aef.adapters` whose
name is the qualified name of the class. It is loaded only when such a VAE is wrapped::

    [project.entry-points."vae2aef.adapters"]
    "mylibrary.models.VAE" = "mylibrary.aef:adapt"
"""

import functools
import importlib
from collections.abc import Callable, Iterator
from importlib.metadata import EntryPoint, entry_points
from typing import Any

from torch import nn

from vae2aef.errors import WrapError
from vae2aef.parts import VAEParts

Adapter = Callable[..., VAEParts | None]
"""Called as `adapter(vae, x, *conditions, **conditions)` with the example's data `x`, and with `encoder_scale=` if
the user gave it. Returns the parts, or None to leave the VAE to the next adapter."""

GROUP = "vae2aef.adapters"

_by_name: dict[str, Adapter] = {}
_by_shape: list[tuple[Callable[[Any], bool], Adapter, bool]] = []


def register_adapter(
    *names: str, matches: Callable[[Any], bool] | None = None, style: bool = False
) -> Callable[[Adapter], Adapter]:
    """Register an adapter for classes with these qualified names, or for objects that `matches` accepts.

    A name is found through the whole inheritance of the VAE's class, the nearest class first, so subclasses are
    known too. Names come before `matches`. A name registered again is replaced.

    Args:
        *names: such as `"pythae.models.vae.vae_model.VAE"`; the class's `__module__` and `__qualname__`.
        matches: for code that is copied rather than imported, whose module has any name.
        style: whether `matches` knows a way of writing rather than a codebase. A forward of the VAE's own then says
            more than the names of its methods, and is traced first.

    Returns:
        A decorator that returns the adapter unchanged.

    Raises:
        TypeError: if neither a name nor `matches` is given, as in `@register_adapter` without parentheses.
    """
    if not all(isinstance(name, str) for name in names) or not (names or matches):
        raise TypeError(
            'expected @register_adapter("package.module.Class", ...) or @register_adapter(matches=...), got '
            f"{', '.join(map(repr, names)) or 'nothing'}"
        )

    def register(adapter: Adapter) -> Adapter:
        _by_name.update(dict.fromkeys(names, adapter))
        if matches is not None:
            _by_shape.append((matches, adapter, style))
        return adapter

    return register


def find_adapters(vae: Any, style: bool | None = None) -> Iterator[Adapter]:
    """Yield the adapters for an object, the best first: by class name, then by `matches`.

    Args:
        vae: the object.
        style: True for those alone that know a way of writing, False for those that know a codebase, None for both.

    Raises:
        WrapError: if an entry point names the class but cannot be loaded.
    """
    importlib.import_module("vae2aef.adapters")
    installed = _installed()
    for cls in type(vae).__mro__ if not style else ():
        name = f"{cls.__module__}.{cls.__qualname__}"
        if name in _by_name:
            yield _by_name[name]
        elif name in installed:
            yield _load(installed[name])
    yield from (adapter for matches, adapter, is_style in _by_shape if style in (None, is_style) and matches(vae))


def unwrap(vae: Any) -> Any:
    """Return the module inside `torch.compile`, `DistributedDataParallel` or `DataParallel`, or `vae` itself.

    The parts of a VAE are called one by one, which these wrappers do not pass on; wrap the AEF in them instead.
    """
    while True:
        kind = {f"{cls.__module__}.{cls.__qualname__}" for cls in type(vae).__mro__}
        if "torch._dynamo.eval_frame.OptimizedModule" in kind:
            vae = vae._orig_mod
        elif kind & _PARALLEL and isinstance(vae.module, nn.Module):
            vae = vae.module
        else:
            return vae


_PARALLEL = {
    "torch.nn.parallel.distributed.DistributedDataParallel",
    "torch.nn.parallel.data_parallel.DataParallel",
}


@functools.cache
def _installed() -> dict[str, EntryPoint]:
    """Return entry points of installed packages by class name; read once, since it walks all of `sys.path`."""
    return {point.name: point for point in entry_points(group=GROUP)}


def _load(point: EntryPoint) -> Adapter:
    try:
        return point.load()
    except Exception as error:
        raise WrapError(
            f'the adapter "{point.value}", installed as entry point of {GROUP} for {point.name}, cannot be loaded: '
            f"{type(error).__name__}: {error}"
        ) from error
