"""Transforms of torch.distributions, Pyro, zuko and nflows as bijections of ours.

No library but torch is imported: the others are known by the names of their classes. Each has a trap (DESIGN,
section 4), and each trap is handled here and in `vae2aef.interop.torch_transforms`, and nowhere else.
"""

from collections.abc import Callable
from typing import Any

from torch import Tensor
from torch.distributions import Transform

from vae2aef.errors import WrapError
from vae2aef.flows import Bijection
from vae2aef.interop.torch_transforms import TransformState, apply
from vae2aef.tensors import full_precision, sum_event


def library_class(value: Any, name: str) -> bool:
    """Whether a class of this qualified name is among the bases of the type of `value`; imports nothing."""
    return any(f"{cls.__module__}.{cls.__qualname__}" == name for cls in type(value).__mro__)


class _Outside(Bijection):
    """What all bijections from outside share: they see flat vectors, in full precision."""

    event_dim = 1

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Apply the transform; see `Bijection.forward` for shapes."""
        return self._run(x, inverse=False)

    def inverse(self, y: Tensor) -> tuple[Tensor, Tensor]:
        """Undo it; see `Bijection.inverse` for shapes.

        Raises:
            WrapError: if the transform has no inverse.
        """
        return self._run(y, inverse=True)

    def _run(self, x: Tensor, inverse: bool) -> tuple[Tensor, Tensor]:
        # Elementwise transforms and those of vectors see (batch, D), whatever the shape of the latent; only a
        # transform of images or the like (event_dim > 1) sees the shape itself.
        with full_precision(x):
            y, log_det = self._map(x if self.event_dim > 1 else x.reshape(x.shape[0], x.shape[1:].numel()), inverse)
            return y.reshape(x.shape), sum_event(log_det)

    def _map(self, x: Tensor, inverse: bool) -> tuple[Tensor, Tensor]:
        raise NotImplementedError


class TorchTransform(_Outside):
    """A transform of torch.distributions or Pyro; its tensors become buffers and parameters.

    Args:
        transform: applied as it is in `forward`; learnable ones of Pyro are trained.

    Raises:
        WrapError: if it is not bijective on the reals.
    """

    def __init__(self, transform: Transform) -> None:
        super().__init__()
        if not transform.bijective:
            raise WrapError(f"the transform {type(transform).__name__} is not bijective, so it has no log-determinant")
        self.event_dim = max(transform.domain.event_dim, transform.codomain.event_dim)
        self.state = TransformState(transform)

    def _map(self, x: Tensor, inverse: bool) -> tuple[Tensor, Tensor]:
        return apply(self.state.build(), x, inverse)


class ZukoTransform(_Outside):
    """A lazy transform of zuko, or the transform inside a zuko flow, without context.

    zuko's direction is ours: from data to noise.
    """

    transform: Callable[[], Any]

    def __init__(self, transform: Any) -> None:
        super().__init__()
        self.transform = transform.transform if library_class(transform, "zuko.lazy.Flow") else transform

    def _map(self, x: Tensor, inverse: bool) -> tuple[Tensor, Tensor]:
        transform = self.transform()
        return (transform.inv if inverse else transform).call_and_ladj(x)


class NflowsTransform(_Outside):
    """A transform of nflows, without context. nflows' direction is ours: from data to noise."""

    transform: Any

    def __init__(self, transform: Any) -> None:
        super().__init__()
        self.transform = transform

    def _map(self, x: Tensor, inverse: bool) -> tuple[Tensor, Tensor]:
        if not inverse:
            return self.transform(x)
        try:
            return self.transform.inverse(x)
        except Exception as error:
            if type(error).__name__ == "InverseNotAvailable":
                raise WrapError(f"the nflows transform {type(self.transform).__name__} has no inverse") from error
            raise


def outside_bijection(transform: Any) -> Bijection | None:
    """Make a bijection of an outside transform; None if it is of no known kind.

    `forward` of the bijection is the transform's own forward, in every library. As a core flow n^-1 it is applied
    to the core variables as it is.

    Raises:
        WrapError: if it is a transform that is not bijective.
    """
    if library_class(transform, "zuko.lazy.LazyTransform") or library_class(transform, "zuko.lazy.Flow"):
        return ZukoTransform(transform)
    if library_class(transform, "nflows.transforms.base.Transform"):
        return NflowsTransform(transform)
    if library_class(transform, "nflows.flows.base.Flow"):
        return NflowsTransform(transform._transform)
    if isinstance(transform, Transform):
        return TorchTransform(transform)
    return None
