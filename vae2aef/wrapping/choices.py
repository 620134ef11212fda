"""The words that options take, for type checkers, and their older names."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal

from torch import Tensor, nn
from torch.distributions import Distribution, Transform

from vae2aef.flows import Bijection

CoreName = Literal["linear", "normalized", "patch", "noise", "center", "corner", "random"]
CoreOption = CoreName | nn.Module | Tensor | Mapping[str, Any] | None

FlowName = Literal["none", "coupling", "maf"]
FlowOption = FlowName | nn.Module | Transform | Mapping[str, Any] | None

PriorOption = Literal["coupling", "maf"] | nn.Module | Distribution | Transform | Callable[[Tensor], Tensor] | None

StepName = Literal["dequantize", "logit", "standardize"]
PreprocessOption = StepName | Bijection | Sequence[StepName | Bijection] | None

ScaleName = Literal["std", "log_std", "var", "log_var"]
KL = Literal["analytic", "sampled"]
Start = Literal["random", "exact"]


def one_of(likelihood: Any, residual: Any) -> Any:
    """Return the one that was given of an option and its older name.

    Raises:
        TypeError: if both were.
    """
    if likelihood is not None and residual is not None:
        raise TypeError("likelihood= and residual=, its older name, are one option: pass likelihood= alone")
    return residual if likelihood is None else likelihood
