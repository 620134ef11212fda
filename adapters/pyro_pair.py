"""Pyro VAEs: any object with `model` and `guide`, such as the class of Pyro's own VAE tutorial."""

import sys
from typing import Any

from torch import Tensor, nn

from vae2aef.batch import Batch
from vae2aef.errors import WrapError
from vae2aef.parts import VAEParts
from vae2aef.registry import register_adapter


def has_model_and_guide(vae: Any) -> bool:
    """Whether an object has callable `model` and `guide`, and Pyro is in use."""
    return "pyro" in sys.modules and all(callable(getattr(vae, name, None)) for name in ("model", "guide"))


@register_adapter(matches=has_model_and_guide)
def adapt(vae: Any, example: Tensor, *cond: Any, encoder_scale: str | None = None, **kwargs: Any) -> VAEParts:
    """Read the parts from model and guide: `model(x, *cond)` and `guide(x, *cond)`.

    Args:
        vae: the user's object, or a `vae2aef.svi.pair.PyroPair`.
        example: data, shape `(batch, *event)`.
        *cond: conditions.
        encoder_scale: refused: the guide's distribution says what its scale is.
        **kwargs: conditions by name.

    Raises:
        WrapError: if they make no AEF; names the site and the fix.
    """
    from vae2aef.svi.pair import PyroPair
    from vae2aef.svi.single import read_pair

    if encoder_scale is not None:
        raise WrapError(f'encoder_scale="{encoder_scale}": ', "leave it out, the guide's distribution says what it is")
    batch = Batch(example, cond, kwargs)
    if isinstance(vae, PyroPair):
        return read_pair(vae, batch)
    inside = vae if isinstance(vae, nn.Module) else None
    pair = PyroPair(vae.model, vae.guide, (example, *cond), kwargs, data=lambda *_, **__: example, inside=inside)
    parts = read_pair(pair, batch)
    if next(pair.parameters(), None) is not None:
        parts.beside += (pair,)  # parameters beside the user's module: trained, moved, saved
    return parts
