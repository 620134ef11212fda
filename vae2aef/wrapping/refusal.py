"""Why a VAE cannot be wrapped: all that was tried, the true reason first, and one remedy."""

from typing import Any

from torch import nn

from vae2aef.errors import WrapError
from vae2aef.wrapping.trial import modules_of

DESCRIBE = (
    "Pass them: vae2aef.wrap(vae, example=x, encoder=lambda x: (loc, log_var), decoder=lambda z: mean, "
    'encoder_scale="log_var")'
)
"""The line to write where nothing is known of a VAE."""

ENTER = "Pass forward=lambda x: ... that runs it as it is trained, from data to their mean"
"""The line to write for an object that holds networks and is none."""


def no_parts(vae: Any, tried: list[str], untraced: WrapError | None = None) -> WrapError:
    """Return the error of a search that found no parts.

    Args:
        vae: the user's VAE.
        tried: what was tried in vain, in order, beside tracing its forward.
        untraced: why its forward could not be traced, if it has one: the reason that counts, since it was run.
    """
    if untraced is None:
        said = f"no encoder and decoder found in {type(vae).__name__}. Tried:\n  " + "\n  ".join(tried) + "\n"
        inside = not isinstance(vae, nn.Module) and modules_of(vae)
        return WrapError(said, ENTER if inside else DESCRIBE)
    listed = "".join(f"\n  {one}" for one in tried)
    return WrapError(f"{untraced.reason}\nTried besides:{listed}\n", untraced.fix)
