"""A likelihood given by a function of the decoder's output that returns a `torch.distributions` object."""

from collections.abc import Callable, Sequence
from typing import Any

from torch import Tensor
from torch.distributions import Distribution

from vae2aef.errors import WrapError
from vae2aef.likelihood.base import Likelihood, in_shape


class OfDistribution(Likelihood):
    """p(x | z) = function(*outputs), outputs being all that the decoder returns.

    Args:
        function: such as `lambda output: torch.distributions.Poisson(output.exp())`; its distribution is of data in
            their own shape or flattened.
        outputs: what the decoder returns on an example, to learn from whether x is discrete.

    Raises:
        WrapError: if the function returns no distribution.
    """

    per_value = None

    def __init__(self, function: Callable[..., Any], outputs: Sequence[Tensor]) -> None:
        super().__init__()
        self.function = function
        made = function(*outputs)
        if not isinstance(made, Distribution):
            raise WrapError(
                f"likelihood= is a callable, which must make a torch.distributions object of the decoder's output; it "
                f"returned an object of type {type(made).__qualname__}"
            )
        self.discrete = bool(getattr(made.support, "is_discrete", False))

    def given(self, shape: Sequence[int], output: Tensor, *more: Tensor) -> Any:
        """See `Likelihood.given`."""
        return in_shape(self.function(output, *more), shape)
