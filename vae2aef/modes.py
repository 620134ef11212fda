"""The modes a model is run in: evaluation mode, torch's random state, inference mode."""

import contextlib
from collections.abc import Callable, Iterator
from functools import wraps
from typing import Any, ParamSpec, TypeVar

import torch
from torch import Tensor, nn

P = ParamSpec("P")
R = TypeVar("R")


def without_gradients(function: Callable[P, R]) -> Callable[P, R]:
    """Run a function without gradients, and outside inference mode: fits need gradients with respect to latents."""

    @wraps(function)
    def run(*args: P.args, **kwargs: P.kwargs) -> R:
        with torch.inference_mode(False), torch.no_grad():
            return function(*map(_plain, args), **{name: _plain(value) for name, value in kwargs.items()})

    return run


def _plain(value: Any) -> Any:
    """Copy tensors that were made in inference mode, which autograd does not take; inside tuples and dicts too."""
    if isinstance(value, Tensor):
        return value.clone() if value.is_inference() else value
    if type(value) is tuple:  # and not a Proposal
        return tuple(map(_plain, value))
    return {name: _plain(item) for name, item in value.items()} if isinstance(value, dict) else value


@contextlib.contextmanager
def evaluation_mode(module: nn.Module) -> Iterator[None]:
    """Put every submodule in `eval()`, and back into its own mode afterwards."""
    modes = [(m, m.training) for m in module.modules()]
    try:
        for m, _ in modes:
            m.training = False  # and not eval(), which a class may have overridden: a loss of pixyz wants data
        yield
    finally:
        for m, mode in modes:
            m.training = mode


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
