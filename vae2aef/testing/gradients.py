"""Does the loss send a gradient to everything that is to be trained?"""

from fnmatch import fnmatch
from typing import Any

import torch
from torch import nn

from vae2aef.aef import AEF
from vae2aef.modes import evaluation_mode, own_random_state
from vae2aef.wrapping.example import read_example


def check_gradients(aef: AEF, example: Any, *, ignore: tuple[str, ...] = ()) -> dict[str, float]:
    """Check that the loss sends a finite gradient that is not zero to every parameter that is to be trained.

    Args:
        aef: the model itself; its `.grad` are not touched.
        example: data `(batch, *event)`, or `(x, *conditions)` as for `wrap`.
        ignore: patterns (as of a shell) of the names of parameters that need none.

    Returns:
        The norm of each gradient, by the parameter's name.

    Raises:
        AssertionError: names every parameter without a gradient, and every one whose gradient is not finite.
    """
    x, cond, kwargs = read_example(example)
    named = {name: p for name, p in aef.named_parameters() if _is_trained(name, p, ignore)}
    with evaluation_mode(aef), own_random_state(x.device), torch.enable_grad():
        grads = torch.autograd.grad(aef(x, *cond, **kwargs), list(named.values()), allow_unused=True)
    norms = {n: 0.0 if g is None else float(g.norm()) for n, g in zip(named, grads, strict=True)}
    dead = [name for name, norm in norms.items() if norm == 0]
    broken = [name for name, norm in norms.items() if norm - norm != 0]
    if dead or broken:
        raise AssertionError(
            (f"no gradient reaches: {', '.join(dead)}. " if dead else "")
            + (f"the gradient is not finite of: {', '.join(broken)}. " if broken else "")
            + "Freeze a parameter that is not to be trained (requires_grad_(False)), or name it in ignore="
        )
    return norms


def _is_trained(name: str, parameter: nn.Parameter, ignore: tuple[str, ...]) -> bool:
    ignored = any(fnmatch(name, pattern) for pattern in ignore)
    return parameter.requires_grad and parameter.numel() > 0 and not ignored
