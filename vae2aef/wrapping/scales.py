"""What the second outputs of encoder and decoder are: asked for, or held against what the VAE's own forward does."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from vae2aef.batch import Batch
from vae2aef.errors import WrapError
from vae2aef.likelihood import NegativeBinomial
from vae2aef.likelihood.base import Scaled
from vae2aef.parts import SCALES, VAEParts, require_scale, to_scale, two_tensors
from vae2aef.wrapping.look import Seen
from vae2aef.wrapping.refusal import no_parts
from vae2aef.wrapping.trial import naming, trial


def ask_for_encoder_scale(
    vae: Any, encoder: Callable, batch: Batch, name: str, untraced: WrapError | None
) -> WrapError:
    """Return the error that asks what an encoder's second output is, with its range on the example."""
    shape = tuple(batch.x.shape)
    with trial(batch.x.device, vae, encoder):
        try:
            with naming(f"{name} fails on data of shape {shape}:", "Pass encoder=lambda x: ... that takes it"):
                raw = two_tensors(encoder(batch.x, *batch.cond, **batch.kwargs))[1]
        except WrapError as error:
            return error if untraced is None else no_parts(vae, [f"{name}: {error.reason}"], untraced)
    tried = "" if untraced is None else f"\nTracing was tried: {untraced.reason}"
    return WrapError(
        f"what is the second output of {name}? On the example it ranges from {raw.min().item():.4g} to "
        f"{raw.max().item():.4g}, and it cannot be told from that alone. ",
        f"Pass encoder_scale=, one of {', '.join(map(repr, SCALES))}{tried}",
    )


def check_encoder_scale(vae: Any, parts: VAEParts, batch: Batch, said: str) -> None:
    """Hold what the user says of the encoder's second output against what its forward makes of it.

    Looked for are outputs of `encode` or `encoder`, and of forward, whose scale by one of `SCALES` is that of the
    traced forward.

    Args:
        vae: the user's VAE.
        parts: its forward, traced.
        batch: rows of the example, with conditions.
        said: `encoder_scale=`.

    Raises:
        WrapError: if there are such outputs, but of another kind; says which.
    """
    with trial(batch.x.device, vae):
        scale = parts.encode(batch.x, *batch.cond, **batch.kwargs).scale
        found = [kind for raw in _raw(vae, batch) if raw.shape == scale.shape for kind in kinds(raw, scale)]
    if found and said not in found:
        raise WrapError(
            f'encoder_scale="{said}", but the forward of {type(vae).__name__} takes that output as "{found[0]}"; ',
            f'Pass encoder_scale="{found[0]}"',
        )
    if not found:
        parts.assumed += (f'encoder_scale="{said}" is not used: the scale is that of its own forward',)


def kinds(raw: Tensor, scale: Tensor) -> list[str]:
    """Return what an output may be, of `SCALES`, if its scale is to be this one, up to rounding."""
    return [kind for kind in SCALES if torch.allclose(to_scale(raw, kind), scale, rtol=1e-4, atol=1e-7)]


def _raw(vae: Any, batch: Batch) -> list[Tensor]:
    """Return the tensors that encoder and forward return."""
    from vae2aef.tracing.outputs import leaves

    found: list[Tensor] = []
    parts: tuple[Any, ...] = (getattr(vae, "encode", None), getattr(vae, "encoder", None), vae)
    for part in parts:
        for cond, kwargs in ((batch.cond, batch.kwargs), ((), {})):
            try:
                out = part(batch.x, *cond, **kwargs)
            except Exception:  # it takes something else, or is no encoder: there is nothing to compare
                continue
            found += [value for _, _, value in leaves(out)]
            break
    return found


def say_decoder_scale(parts: VAEParts, said: str | None) -> None:
    """Tell the parts what the decoder's second output is.

    Raises:
        WrapError: if an adapter knows it to be another.
    """
    if said is None:
        return
    require_scale("decoder_scale", said)
    if parts.decoder_scale not in (None, said):
        raise WrapError(
            f'decoder_scale="{said}", but {type(parts).__name__} knows it to be a "{parts.decoder_scale}"; ',
            "Pass decoder_scale=None",
        )
    parts.decoder_scale = said


def require_decoder_scale(likelihood: nn.Module | None, parts: VAEParts, seen: Seen) -> None:
    """Refuse `likelihood="decoder"` for a decoder without a scale, with values that are none, or of unknown meaning.

    Raises:
        WrapError: says what came, and what to pass.
    """
    if not (isinstance(likelihood, Scaled) and likelihood.kind == "decoder"):
        return
    from vae2aef.tracing.parts import TracedParts

    if seen.scale_range is None and isinstance(parts, TracedParts) and parts.decoder_scale is not None:
        raise WrapError(
            f'decoder_scale="{parts.decoder_scale}", but what forward returns of the data is their mean alone. If '
            "a scale is among what it returns, output=lambda out: (out[0], out[1]) says which two they are; a "
            "decoder that returns both can be given by encoder= and decoder=; without either: ",
            "Pass decoder_scale=None",
        )
    if seen.scale_range is None:
        likelihood.scale(None)
        return
    low, high = seen.scale_range
    dispersion = isinstance(likelihood, NegativeBinomial)  # which is what its second output is, and no deviation
    if parts.decoder_scale is None and not dispersion:
        raise WrapError(
            f"what is the decoder's second output? On the example it ranges from {low:.4g} to {high:.4g}, and it "
            "cannot be told from that alone. ",
            f"Pass decoder_scale=, one of {', '.join(map(repr, SCALES))}",
        )
    if dispersion and not low > 0:
        raise WrapError(
            f"the decoder's second output ranges from {low:.4g} to {high:.4g} on the example, and the negative "
            "binomial takes it as its dispersion, which is positive; of its logarithm ",
            "pass decoder=lambda z: (mean, log_dispersion.exp())",
        )
    if not low > 0:  # nor NaN, which a negative standard deviation has become
        raise WrapError(
            f'decoder_scale="{parts.decoder_scale}", but on the example the scale that the decoder\'s second output '
            "then is, is not positive; with negative values it can only be a logarithm: ",
            'Pass decoder_scale="log_var"',
        )
