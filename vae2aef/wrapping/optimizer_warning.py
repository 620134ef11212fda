"""A warning when training steps are taken that leave out the parameters an AEF has added.

The usual mistake: the optimizer was made from `vae.parameters()` before wrapping, so that the expansion, the core
flow and the residual scale never train, and nothing else shows it.

`torch.optim` can say when a step was taken, but only to a hook for all optimizers of the process. One is set, at the
first `wrap`; it reads parameter lists, changes nothing, and forgets an AEF after its verdict or when it is gone. It is
never removed but by `watch_optimizers(False)`: garbage collection can strike while torch goes through its hooks, and a
hook less would break the step.
Comparing parameter versions in `AEF.forward` instead would need no hook, but fused optimizers do not count versions,
and compiled models do not run Python.
"""

import warnings
import weakref
from typing import TYPE_CHECKING, Any

from torch.optim import Optimizer
from torch.optim.optimizer import register_optimizer_step_post_hook
from torch.utils.hooks import RemovableHandle

if TYPE_CHECKING:
    from vae2aef.aef import AEF


class OptimizerWarning(UserWarning):
    """The optimizer trains the VAE, but not all that the AEF has added to it."""


def watch(aef: "AEF") -> None:
    """Look at the optimizers that train `aef` until they are seen to hold all of it, or warned of once.

    The verdict comes at the second step of an optimizer, so that a loop with one optimizer for the VAE and
    another for the rest has shown both. Parameters with `requires_grad=False` are nobody's concern.
    """
    if _off or not any(p.requires_grad for p in aef.added_parameters()):
        return
    if not _hook:
        _hook.append(register_optimizer_step_post_hook(_note_step))
    _alive.add(aef)
    _watches[:] = [one for one in _watches if not one.done and one.aef() is not None]
    _watches.append(_Watch(aef))


def stop_watching() -> None:
    """Take the hook off `torch.optim`: nothing is watched until the next `wrap`. Not from within a step.

    `vae2aef.watch_optimizers(False)` calls this, and keeps `wrap` from setting the hook again.
    """
    for hook in _hook:
        hook.remove()
    _hook.clear()
    _watches.clear()


def watch_optimizers(on: bool = True) -> None:
    """Say whether `wrap` watches optimizers, to warn of one that leaves out what an AEF has added (it does).

    For this one hook is set on `torch.optim`, at the first `wrap`, which reads the parameter lists of optimizers as
    they step, and changes nothing.

    Args:
        on: False takes the hook off, for good; True has the next `wrap` set it again.
    """
    _off[:] = [] if on else [True]
    if not on:
        stop_watching()


def _note_step(optimizer: Optimizer, args: Any, kwargs: Any) -> None:
    for one in list(_watches):
        one.note(optimizer)


class _Watch:
    """What is known of the optimizers of one AEF."""

    def __init__(self, aef: "AEF") -> None:
        self.done = False
        self.held: set[int] = set()
        self.steps: dict[int, int] = {}
        self.aef = weakref.ref(aef)

    def note(self, optimizer: Optimizer) -> None:
        """Take note of a step; warn at the second one, if parameters are left out."""
        aef = None if self.done else self.aef()
        if aef is None:
            return
        held = {id(p) for group in optimizer.param_groups for p in group["params"]}
        added = [p for p in aef.added_parameters() if p.requires_grad]
        if not self._concerned(aef, added, held):
            return
        self.held |= held
        self.steps[id(optimizer)] = self.steps.get(id(optimizer), 0) + 1
        missing = [p for p in added if id(p) not in self.held]
        self.done = not missing or self.steps[id(optimizer)] > 1
        if missing and self.done:
            _warn(optimizer, aef, missing)

    def _concerned(self, aef: "AEF", added: list[Any], held: set[int]) -> bool:
        """Whether an optimizer trains this AEF: not a discriminator, nor another AEF of the same VAE."""
        if held.isdisjoint(map(id, aef.parameters())):
            return False
        if not held.isdisjoint(map(id, added)):
            return True
        others = (one for one in list(_alive) if one is not aef)
        if any(not held.isdisjoint(map(id, other.added_parameters())) for other in others):
            return False
        return any(p.grad is not None for p in added)  # by a loss of this AEF


def _warn(optimizer: Optimizer, aef: "AEF", missing: list[Any]) -> None:
    ids = set(map(id, missing))
    names = sorted(name for name, some in aef.added_by_part().items() if any(id(p) in ids for p in some))
    warnings.warn(
        f"{type(optimizer).__name__} trains the VAE but not {len(missing)} parameters that the AEF has added "
        f"({', '.join(names)}): make the optimizer from aef.parameters() after wrapping, or call "
        'optimizer.add_param_group({"params": list(aef.added_parameters())}). If they are to stay as they '
        "are, set requires_grad_(False) on them",
        OptimizerWarning,
        stacklevel=5,
    )


_watches: list[_Watch] = []
_alive: "weakref.WeakSet[AEF]" = weakref.WeakSet()
_hook: list[RemovableHandle] = []
_off: list[bool] = []
