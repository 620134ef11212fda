"""What a VAE is run on: data and conditions, and a few rows of them."""

from typing import Any, NamedTuple

import torch
from torch import Tensor


class Case(NamedTuple):
    """What a VAE is run on."""

    x: Tensor
    cond: tuple
    kwargs: dict[str, Any]

    def rows(self, n: int) -> "Case":
        """Return `n` rows, repeated if there are fewer."""
        batch = self.x.shape[0]

        def take(value: Any) -> Any:
            has_batch = isinstance(value, Tensor) and value.dim() > 0 and value.shape[0] == batch
            return value[torch.arange(n, device=value.device) % batch] if has_batch else value

        return Case(take(self.x), tuple(map(take, self.cond)), {name: take(v) for name, v in self.kwargs.items()})
