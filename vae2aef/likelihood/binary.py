"""Likelihoods of bits, of values between 0 and 1, and of classes."""

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, distributions, nn

from vae2aef.errors import WrapError
from vae2aef.likelihood.base import Likelihood
from vae2aef.tensors import numel


class _Unit(Likelihood):
    """A likelihood of values from 0 to 1, whose decoder returns probabilities or logits.

    Args:
        logits: whether the decoder returns logits; otherwise probabilities, such as those of a sigmoid.
    """

    def __init__(self, logits: bool = False) -> None:
        super().__init__()
        self.logits = logits

    def _density(self, family: Any, shape: Sequence[int], output: Tensor) -> Any:
        output = output.reshape(tuple(shape))
        return family(**{"logits" if self.logits else "probs": output}, validate_args=False)

    def read(self, x: Tensor) -> Tensor:
        """Return bits as floating point numbers."""
        return x if x.is_floating_point() else x.to(torch.get_default_dtype())

    def check(self, x: Tensor, exact: bool = False) -> None:
        """Refuse values outside of [0, 1]; see `Likelihood.check`."""
        if x.numel() and not (x.min() >= 0 and x.max() <= 1):
            raise ValueError(
                f"{type(self).__name__}: expected values from 0 to 1, got {x.min().item():.4g} to {x.max().item():.4g}"
                "; of grey levels 0 to 255, x / 255; of other data, another likelihood="
            )

    def extra_repr(self) -> str:
        """Say what the decoder returns."""
        return "logits" if self.logits else "probabilities"


class Bernoulli(_Unit):
    """Bits: log P(x | z) = x log p + (1 - x) log(1 - p), p the decoder's output.

    Of grey values between 0 and 1 this is the cross-entropy that many VAEs are trained with: the mean of log P over
    bits drawn with these probabilities, and no density of the grey values themselves (`ContinuousBernoulli` is one).
    The loss takes it; `AEF.log_prob` refuses.
    """

    discrete = True

    def check(self, x: Tensor, exact: bool = False) -> None:
        """Refuse values outside of [0, 1], and all but bits where a probability is asked for."""
        super().check(x)
        if exact and not bool(((x == 0) | (x == 1)).all()):
            raise ValueError(
                "Bernoulli: expected bits 0 and 1, got grey values between them, which have no probability under it, "
                'only a cross-entropy: draw bits by x.bernoulli(), or wrap with likelihood="continuous_bernoulli"'
            )

    def given(self, shape: Sequence[int], output: Tensor, *more: Tensor) -> "_Bits":
        """See `Likelihood.given`."""
        return self._density(_Bits, shape, output)


class _Bits(distributions.Bernoulli):
    def information(self) -> tuple[Tensor, Tensor]:
        """See `vae2aef.likelihood.base.information`: of the logits it is p (1 - p)."""
        logits = self.logits
        return logits, (torch.sigmoid(logits) * torch.sigmoid(-logits)).clamp(min=1e-12).rsqrt()


class ContinuousBernoulli(_Unit):
    """A density on [0, 1] with the parameter of a Bernoulli: for grey values and a decoder that ends in a sigmoid.

    References:
        Loaiza-Ganem, Cunningham, *The continuous Bernoulli: fixing a pervasive error in variational autoencoders*,
        NeurIPS 2019.
    """

    def given(self, shape: Sequence[int], output: Tensor, *more: Tensor) -> "_UnitInterval":
        """See `Likelihood.given`."""
        output = output.reshape(tuple(shape))
        return _UnitInterval(output if self.logits else distributions.utils.probs_to_logits(output, is_binary=True))


class _UnitInterval:
    """The density proportional to exp(l x) on [0, 1]; torch's own looks at its values, which the compiler refuses."""

    def __init__(self, logits: Tensor) -> None:
        # Around 0 the formulas are 0 / 0: there l stands for a small number.
        self.logits, near = logits, logits.abs() < 1e-3
        self.safe = torch.where(near, 1e-3, logits)

    def log_prob(self, x: Tensor) -> Tensor:
        """Log density of each value, `(batch, *event)`, nats."""
        log_constant = (self.safe / torch.tanh(0.5 * self.safe)).log()
        return x * self.logits - F.softplus(self.logits) + log_constant

    @property
    def mean(self) -> Tensor:
        """The mean, `(batch, *event)`; it lies nearer to 1/2 than the probability does."""
        return -1 / torch.expm1(-self.safe) - 1 / self.safe

    def sample(self) -> Tensor:
        """Draw values from 0 to 1, `(batch, *event)`, by the inverse of the cumulative function."""
        u = torch.rand_like(self.safe)
        up = self.safe.abs()  # mirrored, so that the exponential does not overflow
        x = 1 + torch.log(u + (1 - u) * (-up).exp()) / up
        return torch.where(self.safe > 0, x, 1 - x).clamp(0, 1)

    def information(self) -> tuple[Tensor, Tensor]:
        """See `vae2aef.likelihood.base.information`: of the logits it is the variance of x."""
        variance = self.safe.square().reciprocal() - (2 * torch.sinh((0.5 * self.safe).clamp(-40, 40))) ** -2
        return self.logits, variance.clamp(min=1e-8).rsqrt()


class Categorical(Likelihood):
    """Classes 0 .. C - 1: the decoder returns logits, the C of a value in the second dimension or in the last.

    Data are integers, handed to the encoder as they are, `(batch, *event)`. `mean` is the most probable class.

    Args:
        event_shape: shape of one event of data.
        classes: C.
        last: whether the classes are the last dimension of the decoder's output, rather than its second.
    """

    discrete = True

    def __init__(self, event_shape: Sequence[int], classes: int, last: bool = False) -> None:
        super().__init__()
        self.event_shape, self.classes, self.last = torch.Size(event_shape), classes, last
        self.per_value = classes

    @classmethod
    def of(cls, event_shape: Sequence[int], output: Tensor, last: bool | None = None) -> "Categorical":
        """Read the number of classes off a decoder's output, `(batch, C, *event)`, `(batch, *event, C)` or flat.

        Raises:
            WrapError: if it holds no whole number of values for each value of x.
        """
        event = torch.Size(event_shape)
        values, found = numel(event), numel(output.shape[1:])
        classes = found // max(values, 1)
        if classes * values != found or classes < 2:
            raise WrapError(
                f"Categorical: expected the decoder to return (batch, C, *event) or (batch, *event, C) for data "
                f"{tuple(event)}, C classes for each value; got {tuple(output.shape)}"
            )
        if last is None:
            last = output.shape[1:] != torch.Size((classes, *event)) and output.shape[-1] == classes
        return cls(event, classes, last)

    def given(self, shape: Sequence[int], output: Tensor, *more: Tensor) -> "_Classes":
        """See `Likelihood.given`."""
        rows, *event = shape
        if self.last:
            logits = output.reshape(rows, *event, self.classes)
        else:
            logits = output.reshape(rows, self.classes, *event).movedim(1, -1)
        return _Classes(logits=logits, validate_args=False)

    def check(self, x: Tensor, exact: bool = False) -> None:
        """Refuse what is no class; see `Likelihood.check`."""
        if x.is_floating_point() or (x.numel() and not (x.min() >= 0 and x.max() < self.classes)):
            raise ValueError(
                f"Categorical: expected integers 0 .. {self.classes - 1}, got {x.dtype} from {x.min().item()} to "
                f"{x.max().item()}; of one-hot data pass x.argmax(...)"
            )

    def features(self, event_shape: Sequence[int]) -> nn.Module:
        """Read classes one-hot."""
        return OneHot(self.classes)

    def extra_repr(self) -> str:
        """Say how many classes there are."""
        return f"classes={self.classes}"


class _Classes(distributions.Categorical):
    @property
    def mean(self) -> Tensor:
        """The most probable class."""
        return self.logits.argmax(-1)

    def information(self) -> tuple[Tensor, Tensor]:
        """See `vae2aef.likelihood.base.information`: 2 sqrt(p) has the information 1."""
        return 2 * self.probs.clamp(min=1e-12).sqrt(), torch.ones((), dtype=self.logits.dtype)


class OneHot(nn.Module):
    """Classes `(batch, *event)` as floating point numbers `(batch, *event, C)`."""

    def __init__(self, classes: int) -> None:
        super().__init__()
        self.classes = classes

    def forward(self, x: Tensor) -> Any:
        """Return one 1 for each value."""
        return nn.functional.one_hot(x.long(), self.classes).to(torch.get_default_dtype())
