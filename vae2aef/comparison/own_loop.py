"""The line that trains the user's VAE, in a loop of the user's own, as an arm of the comparison was trained."""

from __future__ import annotations

from typing import NamedTuple

from vae2aef.comparison.arms import ARMS, Recipe
from vae2aef.comparison.factory import BUILT_IN, called
from vae2aef.comparison.likelihoods import GRIDS, grid_start
from vae2aef.comparison.options import Options
from vae2aef.patches import PatchFeatures

LEVELS = 256
"""Of `Dequantize` and of the grids by name, where none are given."""


class Made(NamedTuple):
    """What the line takes from the comparison beside its options.

    Attributes:
        arguments: the first ones of `wrap`, in code: the VAE, with what the factory returned beside it.
        grid_start: where the learned scale of a grid of levels starts; None where the likelihood is none.
        local: whether the features are local: likelihoods that `wrap` makes by name have a scale a channel then.
    """

    arguments: str = "vae"
    grid_start: float | None = None
    local: bool = False


def of_recipe(recipe: Recipe) -> Made:
    """Read it from what all arms share.

    A factory that returns a dict for `wrap` is called in the line, since functions have no text; of the built-in
    networks, which the comparison makes, the line says what their encoder returns.
    """
    beside = recipe.make(0).keys() - {"vae"}
    arguments = "vae"
    if recipe.vae in BUILT_IN:
        arguments = 'vae, encoder_scale="log_var"'
    elif beside:
        arguments = f"**{called(recipe.vae, tuple(recipe.example.shape[1:]), recipe.latents, recipe.classes)}"
    if recipe.likelihood not in GRIDS:
        return Made(arguments)
    local = any(isinstance(part, PatchFeatures) for part in recipe.build("aef", 0).modules())
    return Made(arguments, grid_start(recipe.example), local)


def own_loop(arm: str, options: Options, bins: int, made: Made | None = None) -> str:
    """Return the call of `wrap`, with all that the comparison gave it and that is no default of `wrap`.

    Args:
        arm: a name in `ARMS`.
        options: of the comparison.
        bins: number of levels of the data; 1 for continuous data.
        made: what the factory made, and the data say; None for a VAE alone.

    Returns:
        Code of `vae`, of `x`, whose values a comment says, and of `y` where the VAE is conditional.
    """
    chosen, made = ARMS[arm], made or Made()
    flow = options.core_flow if chosen.flow else "none"
    said = [made.arguments, "example=x" if options.condition == "none" else "example=(x, y)", f"noise={chosen.noise:g}"]
    said += [f'core="{chosen.core}"'] if chosen.core else []
    said += [f'core_flow="{flow}"']
    said += [f'prior="{options.prior}"'] if options.prior != "vae" else []
    said += [f"likelihood={_likelihood(options.likelihood, bins, made)}"] if options.likelihood != "vae" else []
    steps = [] if options.discrete else _preprocess(options, bins)
    said += [f"preprocess={steps[0]}" if len(steps) == 1 else f"preprocess=[{', '.join(steps)}]"] if steps else []
    return f"vae2aef.wrap({', '.join(said)})  # x: {_values(options, bins)}"


def _values(options: Options, bins: int) -> str:
    """What the data are that the line takes."""
    if bins == 1:
        return "training data"
    if options.likelihood in (*GRIDS, "logistic_mixture"):
        return f"training data, levels / {bins - 1}"
    return f"training data, whole numbers 0 to {bins - 1}"


def _likelihood(name: str, bins: int, made: Made) -> str:
    if name not in GRIDS or (bins == LEVELS and not made.local):
        return f'"{name}"'
    start = "" if made.grid_start is None else f", initial_scale={made.grid_start:.6g}"
    return f"vae2aef.likelihood.{GRIDS[name].__name__}(x.shape[1:], bins={bins}{start})"


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
