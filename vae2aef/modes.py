"""The modes a model is run in: evaluation mode, random states, inference mode; and how it is left as it was.

Nothing is called that a user's class may have overridden (`eval`, `train`, `modules`, `parameters`): a loss of pixyz,
for one, has an `eval` that wants data.
"""

import collections
import contextlib
import inspect
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor, nn

from vae2aef.generators import as_they_were, everywhere, seed_torch
from vae2aef.generators import seed as seed_generator


def named_modules(module: nn.Module, prefix: str = "") -> Iterator[tuple[str, nn.Module]]:
    """Yield a module and all inside it, each once, with dotted names, as torch's own `named_modules` does."""
    seen: set[int] = set()
    todo = [(prefix, module)]
    while todo:
        name, m = todo.pop()
        if id(m) in seen:
            continue
        seen.add(id(m))
        yield name, m
        inside = [(f"{name}.{key}" if name else key, child) for key, child in m._modules.items() if child is not None]
        todo += reversed(inside)


def modules(module: nn.Module) -> list[nn.Module]:
    """Return a module and all inside it, each once."""
    return [m for _, m in named_modules(module)]


def named_parameters(module: nn.Module) -> Iterator[tuple[str, nn.Parameter]]:
    """Yield all parameters of a module, each once, with dotted names."""
    seen: set[int] = set()
    for name, m in named_modules(module):
        for key, p in m._parameters.items():
            if p is not None and id(p) not in seen:
                seen.add(id(p))
                yield f"{name}.{key}" if name else key, p


def named_buffers(module: nn.Module) -> Iterator[tuple[str, Tensor]]:
    """Yield all buffers of a module, with dotted names."""
    for name, m in named_modules(module):
        for key, b in m._buffers.items():
            if b is not None:
                yield f"{name}.{key}" if name else key, b


def parameters(module: nn.Module) -> list[nn.Parameter]:
    """Return all parameters of a module, each once."""
    return [p for _, p in named_parameters(module)]


def set_mode(module: nn.Module, mode: bool) -> None:
    """Put a module in training or evaluation mode.

    Its own `train` is called if that takes a mode, such as one that keeps parts in evaluation mode.
    """
    if type(module).train is nn.Module.train:
        module.training = mode
        for child in module._modules.values():
            if child is not None:
                set_mode(child, mode)
        return
    if _takes_a_mode(inspect.signature(module.train)):
        module.train(mode)
        return
    for m in modules(module):
        m.training = mode


def _takes_a_mode(train: inspect.Signature) -> bool:
    """Whether a `train` is that of `nn.Module`, and not one that trains on data."""
    named = [p for p in train.parameters.values() if p.kind is not p.VAR_KEYWORD]
    if not named or any(p.default is p.empty and p.kind is not p.VAR_POSITIONAL for p in named[1:]):
        return False
    first = named[0]
    return first.name == "mode" or first.kind is first.VAR_POSITIONAL or first.annotation in (bool, "bool")


@contextlib.contextmanager
def in_mode(training: bool, module: nn.Module) -> Iterator[None]:
    """Put every submodule in training or evaluation mode, and back into its own afterwards."""
    modes = [(m, m.training) for m in modules(module)]
    try:
        for m, _ in modes:
            m.training = training
        yield
    finally:
        for m, mode in modes:
            m.training = mode


def evaluation_mode(module: nn.Module) -> contextlib.AbstractContextManager[None]:
    """Put every submodule in evaluation mode, and back into its own mode afterwards."""
    return in_mode(False, module)


@contextlib.contextmanager
def untouched(*outermost: nn.Module) -> Iterator[None]:
    """Leave modules as they were, whatever they keep in attributes, containers and buffers when they are run.

    Buffers are written back where they have changed, and are the same tensors before, inside and afterwards. Lists,
    dicts and sets among the attributes get their contents back. What other objects keep is theirs.
    """
    found = {id(m): m for module in outermost for m in modules(module)}
    # Of scripted modules the attributes are fixed.
    back = [_remember(m) for m in found.values() if not isinstance(m, torch.jit.ScriptModule)]
    try:
        yield
    finally:
        for put_back in reversed(back):
            put_back()


@contextlib.contextmanager
def same_parameters(*outermost: nn.Module) -> Iterator[None]:
    """Leave parameters as they were that a forward may change in place: codebooks, moving averages.

    Those are embeddings, what is not trained, and what is held by other modules than torch's own layers.
    """
    every = [m for module in outermost for m in modules(module)]
    held = {id(p): p for m in every for p in m._parameters.values() if p is not None and _may_change(m, p)}
    values = [(p, p.detach().clone()) for p in held.values()]
    try:
        yield
    finally:
        with torch.no_grad():
            for p, value in values:
                if p.shape == value.shape and not torch.equal(p, value):
                    p.copy_(value)


def _may_change(m: nn.Module, p: nn.Parameter) -> bool:
    uninitialized = isinstance(p, nn.parameter.UninitializedParameter)
    layer = type(m).__module__.startswith("torch.nn") and not isinstance(m, (nn.Embedding, nn.EmbeddingBag))
    return not uninitialized and not (layer and p.requires_grad)


def _remember(m: nn.Module) -> Callable[[], None]:
    """Return a function that makes one module, without those inside it, what it is now."""
    attributes, buffers = dict(m.__dict__), dict(m._buffers)
    values = [(b, b.detach().clone()) for b in buffers.values() if b is not None]
    own = [value for name, value in attributes.items() if name not in _TORCHS_OWN]
    contents = [pair for value in own for pair in _contents(value, DEPTH)]

    def put_back() -> None:
        m.__dict__.clear()
        m.__dict__.update(attributes)
        m._buffers.clear()
        m._buffers.update(buffers)
        for buffer, value in values:
            if not torch.equal(buffer, value):  # batch normalisation does not count its changes as versions
                with torch.no_grad():
                    buffer.copy_(value)
        for container, items in contents:
            _refill(container, items)

    return put_back


DEPTH = 3
"""How far inside one another containers are looked into."""

_CONTAINERS = (list, dict, set, collections.deque, collections.OrderedDict, collections.defaultdict)
_TORCHS_OWN = frozenset(vars(nn.Module()))


def _contents(value: Any, depth: int) -> list[tuple[Any, Any]]:
    """Return the containers in an attribute with a copy of what they hold."""
    if not depth or type(value) not in _CONTAINERS:
        return []
    inside = value.values() if isinstance(value, dict) else value
    return [(value, value.copy()), *(pair for item in inside for pair in _contents(item, depth - 1))]


def _refill(container: Any, items: Any) -> None:
    container.clear()
    container.extend(items) if isinstance(container, (list, collections.deque)) else container.update(items)


@contextlib.contextmanager
def own_random_state(device: torch.device) -> Iterator[None]:
    """Leave torch's random states, of the CPU and of the accelerators, as they were."""
    if device.type in ("cpu", "cuda"):
        devices = list(range(torch.cuda.device_count())) if torch.cuda.is_initialized() else []
        with torch.random.fork_rng(devices=devices):
            yield
    else:
        with torch.random.fork_rng(devices=[device], device_type=device.type):
            yield


@contextlib.contextmanager
def own_random_states(device: torch.device, *outermost: nn.Module) -> Iterator[Callable[[int], None]]:
    """Leave the random states of torch, Python, NumPy and of what modules hold as they were.

    Args:
        device: of the data.
        *outermost: modules, whose own generators count too, those of the modules inside them included.

    Yields:
        A function that seeds them all.
    """
    generators = generators_of(*outermost)

    def seed(number: int) -> None:
        seed_torch(number)
        for one in generators:
            seed_generator(one, number)

    with own_random_state(device), as_they_were(generators):
        yield seed


def generators_of(*outermost: nn.Module) -> list[Any]:
    """Return Python's and NumPy's generators, and those of modules and the modules inside them."""
    return everywhere(*(m for module in outermost for m in modules(module)))
