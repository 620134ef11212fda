"""Find encoder and decoder of a VAE: what the user gave, an adapter, or parts with the usual names."""

from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

from torch import Tensor, nn

from vae2aef.errors import WrapError
from vae2aef.parts import SCALES, CallableParts, VAEParts, two_tensors
from vae2aef.registry import find_adapters
from vae2aef.wrapping.trial import evaluation, naming, trial

PAIRS = (("encode", "decode"), ("encoder", "decoder"))


def find_parts(vae: Any, x: Tensor, cond: tuple, kwargs: dict[str, Any], given: dict[str, Any]) -> VAEParts:
    """Find the parts of a VAE.

    Args:
        vae: the user's VAE.
        x: an example, shape `(batch, *event)`.
        cond: conditions.
        kwargs: conditions by name.
        given: what the user said: `encoder`, `decoder`, `encoder_scale`, each may be None.

    Raises:
        WrapError: if they are not found, listing what was tried and the line to write; or if the meaning of the
            encoder's second output is not known, showing its range.
    """
    encoder, decoder, scale = given["encoder"], given["decoder"], given["encoder_scale"]
    tried, untraced = [], ""
    said = {} if scale is None else {"encoder_scale": scale}
    if encoder is None and decoder is None and vae is not None:
        for adapter in find_adapters(vae):
            with naming(f"{type(vae).__name__} cannot be read with data of shape {tuple(x.shape)}:"):
                parts = adapter(vae, x, *cond, **kwargs, **said)
            if parts is not None:
                return parts
        tried.append(f"an adapter for {type(vae).__module__}.{type(vae).__qualname__}: none is registered")
        described = scale is not None and any(_callable(vae, a) and _callable(vae, b) for a, b in PAIRS)
        if isinstance(vae, nn.Module) and not described:
            from vae2aef.tracing.proof import trace

            try:
                return trace(vae, x, cond, kwargs)
            except WrapError as error:
                untraced = str(error)
                tried.append(f"tracing: {untraced}")
    for first, second in PAIRS:
        found = [given or _callable(vae, name) for given, name in ((encoder, first), (decoder, second))]
        if found[0] is None or found[1] is None:
            tried.append(f"`{first}` and `{second}`: not both there")
            continue
        names = [
            f"{part} given by you" if given is not None else f"{type(vae).__name__}.{name}"
            for part, given, name in (("encoder", encoder, first), ("decoder", decoder, second))
        ]
        if encoder is not None or decoder is not None:
            pair = SimpleNamespace(encoder=found[0], decoder=found[1])
            with evaluation(vae, pair):
                for adapter in find_adapters(pair):  # such as the one for encoders that return a distribution
                    parts = adapter(pair, x, *cond, **kwargs, **said)
                    if parts is not None:
                        return parts
        if scale is None:
            asked = _ask_for_scale(vae, found[0], x, cond, kwargs, names[0])
            raise WrapError(asked + (f"\nTracing was tried: {untraced}" if untraced else ""))
        parts = CallableParts(found[0], found[1], scale)
        parts.taken = (f"encoder: {names[0]}, second output {scale} (as you said)", f"decoder: {names[1]}")
        return parts
    raise WrapError(
        f"no encoder and decoder found in {type(vae).__name__}. Tried:\n  "
        + "\n  ".join(tried)
        + "\nPass them: vae2aef.wrap(vae, example=x, encoder=lambda x: (loc, log_var), decoder=lambda z: mean, "
        'encoder_scale="log_var")'
    )


def _callable(vae: Any, name: str) -> Callable[..., Any] | None:
    part = getattr(vae, name, None)
    return part if callable(part) else None


def _ask_for_scale(vae: Any, encoder: Callable, x: Tensor, cond: tuple, kwargs: dict, name: str) -> str:
    with trial(x.device, vae, encoder):
        try:
            with naming(f"{name} fails on data of shape {tuple(x.shape)}; pass encoder=lambda x: ... that takes it:"):
                raw = two_tensors(encoder(x, *cond, **kwargs))[1]
        except WrapError as error:
            return str(error)
    return (
        f"what is the second output of {name}? On the example it ranges from {raw.min().item():.4g} to "
        f"{raw.max().item():.4g}, and it cannot be told from that alone. Pass encoder_scale=, one of "
        f"{', '.join(map(repr, SCALES))}"
    )
