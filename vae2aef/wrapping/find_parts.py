"""Find encoder and decoder of a VAE: what the user gave, an adapter, or parts with the usual names."""

from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

from torch import nn

from vae2aef.batch import Batch
from vae2aef.errors import WrapError
from vae2aef.parts import SCALES, CallableParts, VAEParts, two_tensors
from vae2aef.registry import find_adapters
from vae2aef.wrapping.refusal import no_parts
from vae2aef.wrapping.trial import evaluation, naming, trial

PAIRS = (("encode", "decode"), ("encoder", "decoder"))


def find_parts(vae: Any, batch: Batch, given: dict[str, Any]) -> VAEParts:
    """Find the parts of a VAE.

    Args:
        vae: the user's VAE.
        batch: rows of the example, with conditions.
        given: what the user said: `encoder`, `decoder`, `encoder_scale`, `output`, each may be None.

    Raises:
        WrapError: if they are not found, listing what was tried and the line to write; or if the meaning of the
            encoder's second output is not known, showing its range.
    """
    search = _Search(vae, batch, **given)
    parts = search.whole() or search.pair()
    if parts is not None:
        return parts
    raise no_parts(vae, search.tried, search.untraced)


class _Search:
    """One search, with what was tried in vain."""

    def __init__(
        self, vae: Any, batch: Batch, encoder: Any, decoder: Any, encoder_scale: str | None, output: Any
    ) -> None:
        self.vae, self.batch, self.output = vae, batch, output
        self.encoder, self.decoder, self.scale = encoder, decoder, encoder_scale
        self.said = {} if encoder_scale is None else {"encoder_scale": encoder_scale}
        self.tried: list[str] = []
        self.untraced: WrapError | None = None

    def whole(self) -> VAEParts | None:
        """Read the VAE by an adapter, or by tracing its forward, if no part was given."""
        if self.encoder is not None or self.decoder is not None or self.vae is None:
            return None
        kind = type(self.vae)
        if self.output is None:  # which is of forward's output, that no adapter reads
            with naming(f"{kind.__name__} cannot be read with data of shape {tuple(self.batch.x.shape)}:"):
                parts = self._adapted(self.vae)
            if parts is not None:
                return parts
        self.tried.append(f"an adapter for {kind.__module__}.{kind.__qualname__}: none is registered")
        pairs = any(_callable(self.vae, first) and _callable(self.vae, second) for first, second in PAIRS)
        if not isinstance(self.vae, nn.Module) or (self.scale is not None and pairs):
            return None
        if getattr(self.vae.forward, "__name__", "") == "_forward_unimplemented":
            self.tried.append("tracing: it has no forward")
            return None
        from vae2aef.tracing.proof import trace

        try:
            return trace(self.vae, *self.batch, self.output)
        except WrapError as error:
            self.untraced = error
            self.tried.append(f"tracing: {error}")
            return None

    def pair(self) -> VAEParts | None:
        """Take encoder and decoder as given, or under their usual names."""
        for first, second in PAIRS:
            encoder = self.encoder or _callable(self.vae, first)
            decoder = self.decoder or _callable(self.vae, second)
            if encoder is None or decoder is None:
                self.tried.append(f"`{first}` and `{second}`: not both there")
                continue
            parts = self._read_pair(encoder, decoder, self._name("encoder", first), self._name("decoder", second))
            parts.output = self.output
            return parts
        return None

    def _read_pair(self, encoder: Callable, decoder: Callable, encoder_name: str, decoder_name: str) -> VAEParts:
        if self.encoder is not None or self.decoder is not None:
            pair = SimpleNamespace(encoder=encoder, decoder=decoder)
            with evaluation(self.vae, pair):
                parts = self._adapted(pair)  # such as by the adapter for encoders that return a distribution
            if parts is not None:
                return parts
        if self.scale is None:
            raise _ask_for_scale(self.vae, encoder, self.batch, encoder_name, self.untraced)
        read = CallableParts(encoder, decoder, self.scale)
        read.taken = (f"encoder: {encoder_name}, second output {self.scale} (as you said)", f"decoder: {decoder_name}")
        return read

    def _adapted(self, thing: Any) -> VAEParts | None:
        for adapter in find_adapters(thing):
            parts = adapter(thing, self.batch.x, *self.batch.cond, **self.batch.kwargs, **self.said)
            if parts is not None:
                return parts
        return None

    def _name(self, part: str, name: str) -> str:
        return f"{part} given by you" if getattr(self, part) is not None else f"{type(self.vae).__name__}.{name}"


def _callable(vae: Any, name: str) -> Callable[..., Any] | None:
    part = getattr(vae, name, None)
    return part if callable(part) else None


def _ask_for_scale(
    vae: Any, encoder: Callable, batch: Batch, name: str, untraced: WrapError | None
) -> WrapError:  # fmt: skip
    x, cond, kwargs = batch
    with trial(x.device, vae, encoder):
        try:
            with naming(f"{name} fails on data of shape {tuple(x.shape)}; pass encoder=lambda x: ... that takes it:"):
                raw = two_tensors(encoder(x, *cond, **kwargs))[1]
        except WrapError as error:
            return error if untraced is None else no_parts(vae, [f"{name}: {error.reason}"], untraced)
    tried = "" if untraced is None else f"\nTracing was tried: {untraced.reason}"
    return WrapError(
        f"what is the second output of {name}? On the example it ranges from {raw.min().item():.4g} to "
        f"{raw.max().item():.4g}, and it cannot be told from that alone. ",
        f"Pass encoder_scale=, one of {', '.join(map(repr, SCALES))}{tried}",
    )
