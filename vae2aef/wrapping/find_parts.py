"""Find encoder and decoder of a VAE: what the user gave, an adapter, its traced forward, or the usual names."""

import inspect
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

from torch import nn

from vae2aef.batch import Batch
from vae2aef.errors import WrapError
from vae2aef.parts import CallableParts, VAEParts, require_scale
from vae2aef.registry import find_adapters
from vae2aef.tracing.refusal import NONE, OTHER_LATENT
from vae2aef.wrapping.refusal import no_parts
from vae2aef.wrapping.scales import ask_for_encoder_scale, check_encoder_scale, say_decoder_scale
from vae2aef.wrapping.trained_with import take_loss
from vae2aef.wrapping.trial import all_in_eval_mode, naming

PAIRS = (("encode", "decode"), ("encoder", "decoder"))


def find_parts(vae: Any, batch: Batch, given: dict[str, Any]) -> VAEParts:
    """Find the parts of a VAE.

    Args:
        vae: the user's VAE.
        batch: rows of the example, with conditions.
        given: what the user said: `encoder`, `decoder`, `encoder_scale`, `decoder_scale`, `output`, each may be None.

    Raises:
        WrapError: if they are not found, listing what was tried and the line to write; or if the meaning of the
            encoder's second output is not known, showing its range.
    """
    said = dict(given)
    decoder_scale = said.pop("decoder_scale", None)
    search = _Search(vae, batch, **said)
    parts = search.whole() or search.by_name()
    if parts is not None:
        say_decoder_scale(parts, decoder_scale)
        return parts
    raise no_parts(vae, search.tried, search.untraced)


def has_forward(vae: Any) -> bool:
    """Whether a VAE is a module with a forward of its own."""
    if not isinstance(vae, nn.Module):
        return False
    return "forward" in vae.__dict__ or getattr(type(vae), "forward", None) is not nn.Module.forward


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
        """Read the VAE by the adapter of its codebase, by tracing its forward, or by its style, if no part was given.

        An adapter's output is its own: with `output=`, which is of what forward returns, none is asked.
        """
        if self.encoder is not None or self.decoder is not None or self.vae is None:
            return None
        if self.scale is not None:
            require_scale("encoder_scale", self.scale)
        kind = type(self.vae)
        with naming(f"{kind.__name__} cannot be read with data of shape {tuple(self.batch.x.shape)}:"):
            parts = None if self.output is not None else self._adapted(self.vae, style=False)
        if parts is not None:
            return parts
        self.tried.append(f"an adapter for {kind.__module__}.{kind.__qualname__}: none is registered")
        parts = None
        if has_forward(self.vae):
            parts = self._traced()
        elif isinstance(self.vae, nn.Module):
            self.tried.append("tracing: it has no forward")
        if parts is not None or self.output is not None:
            return parts
        if self.untraced is not None and self.untraced.fix in (NONE, OTHER_LATENT):
            raise no_parts(self.vae, self.tried, self.untraced)  # its posterior is not what `encode` would be read as
        with naming(f"{kind.__name__} cannot be read with data of shape {tuple(self.batch.x.shape)}:"):
            return self._adapted(self.vae, style=True)

    def _traced(self) -> VAEParts | None:
        from vae2aef.tracing.flattened import trace_flattened
        from vae2aef.tracing.proof import trace

        try:
            parts = trace(self.vae, self.batch, self.output)
        except WrapError as error:
            flat = trace_flattened(self.vae, self.batch, self.output, error)
            if flat is None:
                self.untraced = error
                return None
            parts = flat
        take_loss(parts, self.vae, self.batch.x)
        if self.scale is not None:
            check_encoder_scale(self.vae, parts, self.batch, self.scale)
        return parts

    def by_name(self) -> VAEParts | None:
        """Take encoder and decoder as given, or under their usual names."""
        for first, second in PAIRS:
            encoder = self._named(first) if self.encoder is None else self.encoder
            decoder = self._named(second) if self.decoder is None else self.decoder
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
            with all_in_eval_mode(self.vae, pair):
                parts = self._adapted(pair)  # such as by the adapter for encoders that return a distribution
            if parts is not None:
                return parts
        if self.scale is None:
            raise ask_for_encoder_scale(self.vae, encoder, self.batch, encoder_name, self.untraced)
        read = CallableParts(encoder, decoder, self.scale)
        read.taken = (f"encoder: {encoder_name}, second output {self.scale} (as you said)", f"decoder: {decoder_name}")
        return read

    def _adapted(self, thing: Any, style: bool | None = None) -> VAEParts | None:
        for adapter in find_adapters(thing, style):
            if style and any(isinstance(self._named(name), _Bare) for pair in PAIRS for name in pair):
                return None  # it would hand the conditions on
            parts = adapter(thing, self.batch.x, *self.batch.cond, **self.batch.kwargs, **self.said)
            if parts is not None:
                return parts
        return None

    def _named(self, name: str) -> Callable[..., Any] | None:
        """Return a method of the VAE; conditions that only its forward takes do not go there."""
        part = getattr(self.vae, name, None)
        if not callable(part):
            return None
        return _Bare(part) if has_forward(self.vae) and not self._takes_conditions(part) else part

    def _takes_conditions(self, part: Callable[..., Any]) -> bool:
        try:
            inspect.signature(part).bind(None, *self.batch.cond, **self.batch.kwargs)
        except TypeError:
            return False
        except ValueError:  # it has no signature to be read
            return True
        return True

    def _name(self, part: str, name: str) -> str:
        return f"{part} given by you" if getattr(self, part) is not None else f"{type(self.vae).__name__}.{name}"


class _Bare:
    """A method that takes no conditions, of a VAE whose forward does.

    Args:
        part: the method.
    """

    def __init__(self, part: Callable[..., Any]) -> None:
        self.part = part

    def __call__(self, value: Any, *cond: Any, **kwargs: Any) -> Any:
        """Call it without the conditions."""
        return self.part(value)
