"""Notes by the id of a tensor, which are good for as long as the tensor lives.

A recorded pass notes every tensor that it makes. Were they held for that, a pass over a large picture would take the
memory of all its layers at once, where the VAE itself takes that of one or two.
"""

import weakref
from typing import Any

from torch import Tensor


class Notes(dict[int, Any]):
    """What is known of tensors, by id: gone with the tensor, whose id another one may get then."""

    def __init__(self) -> None:
        super().__init__()
        self._alive: dict[int, weakref.ref] = {}

    def note(self, t: Tensor, what: Any) -> None:
        """Note something of a tensor, in the place of what was noted before."""
        self[id(t)] = what
        if id(t) not in self._alive:
            self._alive[id(t)] = weakref.ref(t, self._forget(id(t)))

    def _forget(self, key: int) -> Any:
        def forget(_: object) -> None:
            self.pop(key, None)
            self._alive.pop(key, None)

        return forget
