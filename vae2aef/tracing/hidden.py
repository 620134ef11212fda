"""Noise that no function mode sees: whether there is any in a forward, and where it comes from."""

import random
import re
import sys
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from vae2aef.batch import Batch
from vae2aef.generators import used_by
from vae2aef.modes import named_modules
from vae2aef.tracing.outputs import leaves
from vae2aef.tracing.parts import own_values
from vae2aef.tracing.refusal import DRAW, Refusal

_DRAWS = re.compile(r"aten::(rand|normal|bernoulli|uniform|exponential|multinomial|poisson)")


def hidden_noise(vae: nn.Module, entry: Callable[..., Any], batch: Batch) -> Refusal:
    """Say why no draw was seen in a forward: there is none, or it is made where it cannot be seen.

    Args:
        vae: the user's module.
        entry: what runs it.
        batch: data as the VAE sees it, `(batch, *event)`, with conditions.
    """
    before = _states()
    passes = []
    for _ in range(2):  # in eval mode, with the same buffers
        with own_values(vae), torch.no_grad():
            passes.append([t for _, _, t in leaves(entry(batch.x.detach().clone(), *batch.cond, **batch.kwargs))])
    moved = [name for name, state in _states().items() if state != before[name]]
    if moved and moved[0] != "torch":
        return Refusal(
            f"its output is random, but no draw is seen: {moved[0]} draws the noise, which cannot be replaced there",
            DRAW,
        )
    if not moved and all(map(_same, *passes)):
        return Refusal(
            "it draws no noise, neither in eval mode nor in training mode. A deterministic or vector-quantised "
            "autoencoder has no posterior scale, and an AEF needs one",
            "Pass forward=lambda x: ... that does what it is trained with, if z is drawn there; there is no other way",
        )
    scripted = _scripted(vae)
    if scripted:
        return Refusal(
            f"its output is random, but no draw is seen: `{scripted}` is scripted, and draws in it cannot be seen",
            "Run Python with the environment variable PYTORCH_JIT=0, by which scripted functions stay Python",
        )
    return Refusal(
        "its output is random, but no draw is seen: noise from compiled code, from dropout, or kept between calls, "
        "cannot be replaced",
        DRAW,
    )


def _same(a: Tensor, b: Tensor) -> bool:
    return a.shape == b.shape and torch.equal(a, b)


def _states() -> dict[str, Any]:
    """Return the states of all generators of random numbers; torch's last, since it alone can be followed."""
    numpy = sys.modules.get("numpy")
    states = (
        {} if numpy is None else {"NumPy": numpy.random.get_state()[1].tobytes() + bytes(numpy.random.get_state()[2])}
    )
    return {**states, "Python": random.getstate(), "torch": torch.get_rng_state().numpy().tobytes()}


def _scripted(vae: nn.Module) -> str | None:
    """Return the name of a scripted function that a module's methods refer to, or that is in it."""
    kinds = (torch.jit.ScriptFunction, torch.jit.ScriptModule)
    for name, m in named_modules(vae):
        if isinstance(m, kinds):
            return name
        held = {**used_by(type(m)), **vars(m)}
        found = [name for name, value in held.items() if isinstance(value, kinds)]
        drawing = [name for name in found if _DRAWS.search(str(getattr(held[name], "graph", "")))]
        if found:
            return (drawing or found)[0]
    return None
