"""What adapters share: trying a part of a VAE without leaving a trace, and saying why one cannot be taken."""

import contextlib
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn

from vae2aef.errors import WrapError
from vae2aef.marginal import evaluation_mode, own_random_state


@contextlib.contextmanager
def trial(vae: Any, x: Tensor) -> Iterator[None]:
    """Run parts of `vae` in `eval()`, without gradients, leaving its modes and torch's random state as they were."""
    modules = [m for m in (vae, *getattr(vae, "__dict__", {}).values()) if isinstance(m, nn.Module)]
    with contextlib.ExitStack() as stack:
        for module in modules:
            stack.enter_context(evaluation_mode(module))
        stack.enter_context(torch.no_grad())
        stack.enter_context(own_random_state(x.device))
        yield


def refusal(vae: Any, reason: str, remedy: str) -> WrapError:
    """Return the error for a VAE that has no AEF: what it is, why, and what to do instead."""
    return WrapError(f"{type(vae).__module__}.{type(vae).__qualname__} cannot be wrapped: {reason}. {remedy}")


NO_POSTERIOR = "its encoder is deterministic: there is no posterior scale for z = g_m(x) + g_s(x) * u"
QUANTISED = "its latents are discrete (vector-quantised), and an AEF needs a continuous latent"
SEVERAL_LATENTS = "it has several latents, one conditioned on another, and this adapter reads one"
GIVE_SCALE = (
    "Give it one: vae2aef.wrap(vae, example=x, encoder=lambda x: (vae.encoder(x), log_scale.expand(...)), "
    'decoder=..., encoder_scale="log_std")'
)
USE_GAUSSIAN = "Use a model with a Gaussian posterior"
