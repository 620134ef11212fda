"""A torch distribution taken apart to tensors that a module keeps, and rebuilt from their present values."""

import inspect
from collections.abc import Iterable
from typing import Any, cast

from torch import Tensor, nn
from torch.distributions import (
    Distribution,
    Independent,
    MixtureSameFamily,
    TransformedDistribution,
)

from vae2aef.errors import WrapError
from vae2aef.interop.densities import is_transformed
from vae2aef.interop.tensor_state import TensorState
from vae2aef.interop.torch_transforms import TransformState


class FamilyState(TensorState):
    """A distribution with tensors as arguments: Normal, StudentT, MultivariateNormal, Categorical, ..."""

    def __init__(self, distribution: Distribution) -> None:
        super().__init__()
        self.kind = type(distribution)
        self.constants: dict[str, Any] = {}
        given = vars(distribution)
        for name, parameter in inspect.signature(self.kind.__init__).parameters.items():
            optional = parameter.default is not inspect.Parameter.empty
            if name in ("self", "validate_args") or (name not in given and optional):
                continue
            value = given.get(name, getattr(distribution, name, None))
            if value is None or parameter.kind in (parameter.VAR_POSITIONAL, parameter.VAR_KEYWORD):
                raise _unknown(distribution)
            # covariance, precision and scale_tril (probs and logits) say the same: one of them is taken
            if optional and parameter.default is None and any(n in self.shapes for n in _ALTERNATIVES.get(name, ())):
                continue
            if isinstance(value, Tensor):
                self.keep(name, value, self.kind.__name__)
            elif isinstance(value, (bool, int, float)):
                self.constants[name] = value
            else:
                raise _unknown(distribution)

    def build(self) -> Distribution:
        """Return the distribution, made of the tensors as they are now."""
        tensors = {name: self.kept(name) for name in self.shapes}
        kind: Any = self.kind
        return kind(**tensors, **self.constants, validate_args=False)


_MATRICES = ("covariance_matrix", "precision_matrix", "scale_tril")
_ALTERNATIVES = {**dict.fromkeys(_MATRICES, _MATRICES), **dict.fromkeys(("probs", "logits"), ("probs", "logits"))}


class CompoundState(nn.Module):
    """Independent, MixtureSameFamily and TransformedDistribution: made of distributions and transforms."""

    def __init__(self, distribution: Distribution) -> None:
        super().__init__()
        self.kind: type[Distribution] = type(distribution)
        self.dims = 0
        self.parts = nn.ModuleList()
        self.transforms = nn.ModuleList()
        if isinstance(distribution, Independent):
            self.parts.append(distribution_state(distribution.base_dist))
            self.dims = distribution.reinterpreted_batch_ndims
        elif isinstance(distribution, MixtureSameFamily):
            self.parts.append(distribution_state(distribution.mixture_distribution))
            self.parts.append(distribution_state(distribution.component_distribution))
        elif isinstance(distribution, TransformedDistribution):
            self.parts.append(distribution_state(distribution.base_dist))
            self.transforms.extend(TransformState(t) for t in distribution.transforms)

    def build(self) -> Distribution:
        """Return the distribution, made of the tensors as they are now."""
        kind: Any = self.kind
        arguments: list[Any] = [part.build() for part in cast("Iterable[DistributionState]", self.parts)]
        if len(self.transforms):
            arguments.append([t.build() for t in cast("Iterable[TransformState]", self.transforms)])
        elif self.dims:
            arguments.append(self.dims)
        return kind(*arguments, validate_args=False)


DistributionState = FamilyState | CompoundState


def distribution_state(distribution: Distribution) -> DistributionState:
    """Take a distribution apart: `build()` of what is returned makes it anew.

    Raises:
        WrapError: if it, or one that it is made of, is of a kind that cannot be rebuilt.
    """
    if isinstance(distribution, (Independent, MixtureSameFamily)) or is_transformed(distribution):
        if isinstance(distribution, Independent) and not distribution.reinterpreted_batch_ndims:
            return distribution_state(distribution.base_dist)
        return CompoundState(distribution)
    return FamilyState(distribution)


def _unknown(distribution: Distribution) -> WrapError:
    return WrapError(
        f"do not know how to rebuild a {type(distribution).__name__}; ",
        "pass a module with log_prob(z) -> (batch,) and sample(n) that makes it",
    )
