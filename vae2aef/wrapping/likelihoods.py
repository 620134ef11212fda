"""The likelihood that `wrap` takes: the user's, the codebase's own, or one that fits the example."""

import numbers
from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

from torch import Tensor, nn

from vae2aef.errors import WrapError
from vae2aef.likelihood import (
    Bernoulli,
    Categorical,
    ContinuousBernoulli,
    DiscretizedGaussian,
    DiscretizedLogistic,
    Likelihood,
    LogisticMixture,
    NegativeBinomial,
    OfDistribution,
    Poisson,
)
from vae2aef.parts import VAEParts
from vae2aef.residual import FAMILIES, Residual
from vae2aef.wrapping.look import Seen
from vae2aef.wrapping.scales import require_decoder_scale


class Choice(NamedTuple):
    """What the user has said of the likelihood, before the decoder has been seen.

    Attributes:
        option: what was said; None for the VAE's own.
        build: makes it, once the decoder's output has been seen.
        read: makes of data what the encoder sees; see `Likelihood.read`.
        discrete: whether it is a probability of discrete data.
        like_data: whether the decoder's output is shaped like the data.
    """

    option: Any
    build: Callable[[Seen], Any]
    read: Callable[[Tensor], Tensor] = Likelihood().read
    discrete: bool = False
    like_data: bool = True


def residual(seen: Seen, **options: Any) -> Residual:
    """Make a density of residuals whose scale starts at the spread of the example."""
    return Residual(seen.event_shape, **{"scale": _scale(seen), "initial_scale": seen.spread, **options})


def _scale(seen: Seen) -> str:
    """Return where a scale comes from unasked: one a channel fixes no grid."""
    return "channel" if seen.local else "learned"


UNIT: dict[str, Callable[[Seen], Likelihood]] = {
    "bernoulli": lambda seen: Bernoulli(),
    "bernoulli_logits": lambda seen: Bernoulli(logits=True),
    "continuous_bernoulli": lambda seen: ContinuousBernoulli(),
    "continuous_bernoulli_logits": lambda seen: ContinuousBernoulli(logits=True),
}
COUNTS: dict[str, Callable[[Seen], Likelihood]] = {
    "poisson": lambda seen: Poisson(seen.event_shape),
    "poisson_log": lambda seen: Poisson(seen.event_shape, log=True),
    "zero_inflated_poisson": lambda seen: Poisson(seen.event_shape, zeros="learned"),
    "negative_binomial": lambda seen: NegativeBinomial(seen.event_shape, _scale(seen)),
    "negative_binomial_log": lambda seen: NegativeBinomial(seen.event_shape, _scale(seen), log=True),
    "zero_inflated_negative_binomial": lambda seen: NegativeBinomial(seen.event_shape, _scale(seen), zeros="learned"),
}
GRIDS: dict[str, type] = {"discretized_logistic": DiscretizedLogistic, "discretized_gaussian": DiscretizedGaussian}
GRID_START = 0.2
"""Where a grid's learned scale starts, in units of the data's spread: at 1, a short run on MNIST costs a few hundredths
of a bit more, since constant pixels want a far smaller one."""

SCALES = ("learned", "channel", "shared", "decoder")
NAMES = (*FAMILIES, *UNIT, "categorical", *COUNTS, *GRIDS, "logistic_mixture", *SCALES)


def read_likelihood(option: Any, x: Tensor) -> Choice:
    """Read `wrap(likelihood=)`.

    Args:
        option: None for the VAE's own, a name, a positive number (a Gaussian of that scale), a `Likelihood`, a module
            with `log_prob(delta, decoder_scale)` and `sample(mean, decoder_scale)`, or a callable of the decoder's
            outputs that returns a `torch.distributions` object.
        x: the example as the user gives it, `(batch, *event)`.

    Raises:
        ValueError: for an unknown name or a number that is not positive.
        TypeError: for an object of another kind.
    """
    if option is None:
        return Choice(None, residual)
    if isinstance(option, str):
        return _named(option, x)
    if isinstance(option, numbers.Real) and not isinstance(option, bool):
        return Choice(option, partial(residual, scale=float(option)))
    if isinstance(option, Likelihood):
        return Choice(option, lambda seen: option, option.read, option.discrete, option.per_value == 1)
    if isinstance(option, nn.Module) and callable(getattr(option, "log_prob", None)) and hasattr(option, "sample"):
        return Choice(option, lambda seen: option)
    if callable(option) and not isinstance(option, nn.Module):
        whole = not x.is_floating_point()
        return Choice(option, lambda seen: OfDistribution(option, seen.outputs), discrete=whole, like_data=False)
    raise TypeError(
        "expected a likelihood by name, a number, a vae2aef.likelihood.Likelihood, a module with log_prob(delta, "
        "decoder_scale) -> elementwise nats and sample(mean, decoder_scale), or a callable; got "
        f"{type(option).__name__}"
    )


def _named(name: str, x: Tensor) -> Choice:
    if name in FAMILIES:
        return Choice(name, partial(residual, family=name))
    if name in SCALES:
        return Choice(name, partial(residual, scale=name))
    if name in UNIT:
        return Choice(name, UNIT[name], Bernoulli().read, name.startswith("bernoulli"))
    if name in COUNTS:
        return Choice(name, COUNTS[name], Bernoulli().read, True)
    if name == "categorical":
        return Choice(name, _categorical, discrete=True, like_data=False)
    low = -1.0 if x.is_floating_point() and x.numel() and bool(x.min() < 0) else 0.0
    read = DiscretizedLogistic(x.shape[1:], low=low).read
    if name in GRIDS:
        return Choice(name, lambda seen: _grid(GRIDS[name], seen, low), read, True)
    if name == "logistic_mixture":
        return Choice(name, lambda seen: _mixture(seen, low), read, True, like_data=False)
    expected = ", ".join(f'"{known}"' for known in NAMES)
    raise ValueError(f"expected a likelihood {expected}, a number, a module or a callable; got {name!r}")


def _categorical(seen: Seen) -> Categorical:
    return Categorical.of(seen.event_shape, seen.outputs[0])


def _grid(kind: Any, seen: Seen, low: float) -> Likelihood:
    return kind(seen.event_shape, _scale(seen), low=low, initial_scale=GRID_START * min(seen.spread, 1.0))


def _mixture(seen: Seen, low: float) -> LogisticMixture:
    return LogisticMixture.of(seen.event_shape, seen.outputs[0], low, 1.0)


def build_likelihood(
    choice: Choice, parts: VAEParts, seen: Seen, x: Tensor, continuous: bool
) -> tuple[Any, str | None]:
    """Make the likelihood, and say why this one where the user did not.

    Args:
        choice: what the user has said.
        parts: of the VAE.
        seen: what a look at the example showed.
        x: the example as the VAE sees it, `(batch, *event)`.
        continuous: whether only a density will do: beside a preprocessing or a partition core.

    Returns:
        The likelihood, None where the decoder returns densities; and a line for `print`, or None.

    Raises:
        WrapError: if the example, or the decoder's output, is not what the likelihood takes.
    """
    option, why = choice.option, None
    if option is None or (option == "decoder" and seen.density is not None):  # whose scale is in its density
        option, why = _default(parts, seen, x, continuous)
        if option is None:
            return None, why
        choice = read_likelihood(option, x)
    made = choice.build(seen)
    if isinstance(option, (str, int, float)):  # what the user made keeps its dtype
        made.to(seen.dtype)
    require_decoder_scale(made, parts, seen)
    if isinstance(made, Likelihood):
        source = f" ({why.partition(';')[0]})" if why else ""
        try:
            made.check(x)
        except ValueError as error:
            raise WrapError(f"likelihood{source}: {error}") from error
        _require_probabilities(made, seen, source)
    return made, why


def _default(parts: VAEParts, seen: Seen, x: Tensor, continuous: bool) -> tuple[Any, str | None]:
    """Return the likelihood to take unasked, and why."""
    if seen.density is not None:
        return None, None
    if isinstance(parts.likelihood, Residual):  # of a density that `taken` names
        return parts.likelihood, None
    option, why = parts.likelihood, f"likelihood {parts.likelihood}, which its code trains with"
    if option is None and are_bits(x) and _within_unit(seen.outputs[0]):
        option = "bernoulli"
        why = "likelihood bernoulli: the example holds bits, and the decoder's output probabilities"
    if option is None:
        return _scale(seen), None
    if continuous and read_likelihood(option, x).discrete:
        return _scale(seen), f"a Gaussian residual instead of {option}: preprocess= or core= needs a density"
    if isinstance(option, str) and option.startswith("bernoulli") and not are_bits(x):
        why += (
            "; of grey values it is their cross-entropy and no density, so that log_prob refuses them: "
            'likelihood="continuous_bernoulli" is the density, x.bernoulli() draws bits'
        )
    return option, why


def bits_of(seen: Seen) -> str:
    """Name the likelihood that a decoder has for bits."""
    return "bernoulli" if _within_unit(seen.outputs[0]) else "bernoulli_logits"


def are_bits(x: Tensor) -> bool:
    """Whether all values are 0 and 1, and both are there."""
    return bool(((x == 0) | (x == 1)).all()) and bool((x == 1).any()) and bool((x == 0).any())


def _within_unit(output: Any) -> bool:
    return isinstance(output, Tensor) and bool(output.min() >= 0) and bool(output.max() <= 1)


def _require_probabilities(made: Likelihood, seen: Seen, source: str) -> None:
    if isinstance(made, (Bernoulli, ContinuousBernoulli)) and not made.logits and not _within_unit(seen.outputs[0]):
        name = "bernoulli" if isinstance(made, Bernoulli) else "continuous_bernoulli"
        low, high = seen.outputs[0].min().item(), seen.outputs[0].max().item()
        raise WrapError(
            f'likelihood="{name}" takes the decoder\'s output as probabilities{source}, but on the example it ranges '
            f"from {low:.4g} to {high:.4g}. If these are logits: ",
            f'Pass likelihood="{name}_logits"',
        )


def require_no_preprocessing(choice: Choice, preprocess: Any) -> None:
    """Refuse a preprocessing where x itself is scored.

    Raises:
        WrapError: says what to leave out.
    """
    if choice.discrete and preprocess is not None:
        raise WrapError(
            "preprocess= belongs to densities, and this likelihood is a probability of the data as they are (what the "
            "encoder wants of its input, it can do itself): ",
            "Pass preprocess=None",
        )
