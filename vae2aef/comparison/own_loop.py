"""The line that trains the user's VAE, in a loop of the user's own, as an arm of the comparison was trained."""

from __future__ import annotations

from vae2aef.comparison.arms import ARMS
from vae2aef.comparison.likelihoods import GRIDS
from vae2aef.comparison.options import Options

LEVELS = 256
"""Of `Dequantize` and of the grids by name, where none are given."""


def own_loop(arm: str, options: Options, bins: int) -> str:
    """Return the call of `wrap`, with all that the comparison gave it and that is no default of `wrap`.

    Args:
        arm: a name in `ARMS`.
        options: of the comparison.
        bins: number of levels of the data; 1 for continuous data.

    Returns:
        Code of `vae`, of `x`, whose values a comment says, and of `y` where the VAE is conditional.
    """
    chosen = ARMS[arm]
    flow = options.core_flow if chosen.flow else "none"
    said = ["vae", "example=x" if options.condition == "none" else "example=(x, y)", f"noise={chosen.noise:g}"]
    said += [f'core="{chosen.core}"'] if chosen.core else []
    said += [f'core_flow="{flow}"']
    said += [f'prior="{options.prior}"'] if options.prior != "vae" else []
    said += [f"likelihood={_likelihood(options.likelihood, bins)}"] if options.likelihood != "vae" else []
    steps = [] if options.discrete else _preprocess(options, bins)
    said += [f"preprocess=[{', '.join(steps)}]"] if steps else []
    return f"vae2aef.wrap({', '.join(said)})  # x: {_values(options, bins)}"


def _values(options: Options, bins: int) -> str:
    """What the data are that the line takes."""
    if bins == 1:
        return "training data"
    if options.likelihood in (*GRIDS, "logistic_mixture"):
        return f"training data, levels / {bins - 1}"
    return f"training data, whole numbers 0 to {bins - 1}"


def _likelihood(name: str, bins: int) -> str:
    if name not in GRIDS or bins == LEVELS:
        return f'"{name}"'
    return f"vae2aef.likelihood.{GRIDS[name].__name__}(x.shape[1:], bins={bins})"


def _preprocess(options: Options, bins: int) -> list[str]:
    """The steps of the comparison, which dequantises outside of the AEF: one mean and one scale a value of the data."""
    levels = "" if bins == LEVELS else str(bins)
    steps = [] if bins == 1 else [f"vae2aef.Dequantize({levels})"]
    seen = "x" if bins == 1 else f"vae2aef.dequantize(x{', ' * bool(levels)}{levels})"
    if options.preprocess == "logit":
        steps.append(f"vae2aef.Logit({options.lam})")
        seen = f"{steps[-1]}({seen})[0]"
    if options.preprocess != "none":
        steps.append(f'vae2aef.Standardize.fit({seen}, per="feature")')
    return steps
