"""A transform of torch.distributions, Pyro's and zuko's among them: applied past its cache, kept and rebuilt."""

import contextlib
import copy
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributions import Transform
from torch.distributions.transforms import _InverseTransform
from torch.overrides import TorchFunctionMode

from vae2aef.errors import WrapError
from vae2aef.interop.tensor_state import TensorState

_FACTORIES = {torch.zeros, torch.ones, torch.empty, torch.full}


class _FactoriesIn(TorchFunctionMode):
    """Make `torch.zeros(...)` and the like return this dtype: Pyro's MAF inverse makes float32 zeros otherwise."""

    def __init__(self, dtype: torch.dtype) -> None:
        super().__init__()
        self.dtype = dtype

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if func in _FACTORIES and kwargs.get("dtype") is None:
            kwargs["dtype"] = self.dtype
        return func(*args, **kwargs)


def _factories_like(value: Tensor) -> contextlib.AbstractContextManager[Any]:
    same = value.dtype == torch.get_default_dtype() or not value.is_floating_point()
    return contextlib.nullcontext() if same else _FactoriesIn(value.dtype)


def apply(transform: Any, x: Tensor, inverse: bool = False) -> tuple[Tensor, Tensor]:
    """Apply a torch transform (Pyro's and zuko's are some) in one pass, past its cache.

    Args:
        transform: a `torch.distributions.Transform`.
        x: shape `(*batch, *event)`.
        inverse: apply the inverse.

    Returns:
        The value and its log-determinant in nats; the latter lacks the transform's event dimensions.

    Raises:
        WrapError: if the transform has no inverse, or no known log-determinant.
    """
    # Caches compare by identity, not by value: after a parameter update, the same tensor would get the old
    # log-determinant. A fresh view is never in a cache.
    fresh = x.view_as(x)
    kind = type(transform).__name__
    try:
        with _factories_like(x):
            # zuko computes both in one pass only here; it gives this method to every transform of torch, too.
            if hasattr(transform, "call_and_ladj") and type(transform).__module__.startswith("zuko."):
                return (transform.inv if inverse else transform).call_and_ladj(fresh)
            if inverse:
                y = transform.inv(fresh)
                return y, -transform.log_abs_det_jacobian(y, fresh)
            y = transform(fresh)
            return y, transform.log_abs_det_jacobian(fresh, y)
    except (NotImplementedError, KeyError) as error:
        what = "no inverse, or no known log-determinant of it" if inverse else "no known log-determinant"
        raise WrapError(
            f"the transform {kind} has {what}; ", "use one that implements `_inverse` and `log_abs_det_jacobian`"
        ) from error
    finally:
        forget(transform)


def forget(transform: Any) -> None:
    """Empty the caches of a transform: they hold tensors of a graph, which can be neither copied nor pickled."""
    inner = [*getattr(transform, "parts", ()), getattr(transform, "base_transform", None)]
    if isinstance(transform, _InverseTransform):
        inner.append(transform._inv)
    if isinstance(transform, nn.Module):
        inner += transform.children()
    for part in inner:
        if isinstance(part, (Transform, nn.ModuleList)):
            forget(part)
    for name in [n for n in vars(transform) if n.startswith("_cached") or n == "_cache_log_detJ"]:
        setattr(transform, name, (None, None) if name == "_cached_x_y" else None)


class TransformState(TensorState):
    """The tensors of a torch transform; `build` makes the transform anew from their present values."""

    def __init__(self, transform: Transform) -> None:
        super().__init__()
        self.children_of: dict[str, int] = {}  # attribute -> how many transforms, -1 for one that is no list
        if isinstance(transform, nn.Module):  # Pyro's learnable ones look after their tensors themselves
            forget(transform)
            self.module = transform
            return
        self._inverted = isinstance(transform, _InverseTransform)
        if self._inverted:
            self._add("_inv", -1, [transform._inv])
            return
        self._template = copy.copy(transform)
        forget(self._template)
        self._template._inv = None  # the inverse refers back to the original; not all versions drop it in a copy
        for name, value in list(vars(self._template).items()):
            if isinstance(value, Tensor):
                self.keep(name, value, type(transform).__name__)
            elif isinstance(value, Transform):
                self._add(name, -1, [value])
            elif isinstance(value, (list, tuple)) and value and all(isinstance(v, Transform) for v in value):
                self._add(name, len(value), value)
            else:
                continue
            setattr(self._template, name, None)

    def _add(self, name: str, count: int, transforms: Any) -> None:
        self.children_of[name] = count
        for i, transform in enumerate(transforms):
            self.add_module(f"{name}_{i}", TransformState(transform))

    def _child(self, name: str, i: int) -> Any:
        return getattr(self, f"{name}_{i}").build()

    def build(self) -> Any:
        """Return the transform, made of the tensors as they are now."""
        if "module" in self._modules:
            return self.module
        if self._inverted:
            return self._child("_inv", 0).inv
        transform = copy.copy(self._template)
        for name in self.shapes:
            setattr(transform, name, self.kept(name))
        for name, count in self.children_of.items():
            parts = [self._child(name, i) for i in range(abs(count))]
            setattr(transform, name, parts[0] if count < 0 else parts)
        return transform
