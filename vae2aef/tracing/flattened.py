"""A VAE whose forward takes flattened data, where they come as pictures: as scripts flatten them in their loop."""

from collections.abc import Callable
from typing import Any

from torch import Tensor, nn

from vae2aef.batch import Batch
from vae2aef.errors import WrapError
from vae2aef.tracing.parts import TracedParts
from vae2aef.tracing.proof import trace

FAILS = (RuntimeError, ValueError, IndexError, AssertionError)
"""What a forward raises on data of another shape than it takes."""


class Flattened:
    """The forward of a module, on flattened data.

    Args:
        vae: the user's module.
    """

    def __init__(self, vae: nn.Module) -> None:
        self.vae = vae

    def __call__(self, x: Tensor, *cond: Any, **kwargs: Any) -> Any:
        """Run it on data `(batch, *event)`."""
        return self.vae(x.flatten(1), *cond, **kwargs)


def trace_flattened(
    vae: nn.Module, batch: Batch, output: Callable[[Any], Any] | None, refusal: WrapError
) -> TracedParts | None:
    """Trace a forward on flattened data, after it has failed on the data as they are.

    Args:
        vae: the user's module.
        batch: example of the data as the VAE sees it, with conditions.
        output: what to make of what forward returns.
        refusal: why it could not be traced on the data as they are.

    Returns:
        The parts; None if the data are flat, if it was no error of the forward's own, or if that fails as well.
    """
    if batch.x.dim() < 3 or not isinstance(refusal.__cause__, FAILS):
        return None
    try:
        parts = trace(vae, batch, output, Flattened(vae))
    except WrapError:
        return None
    parts.taken = (*parts.taken, "data: flattened, (batch, values), for its forward")
    return parts
