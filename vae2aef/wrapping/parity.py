"""Hold parts, however they came, against the VAE's own forward: of the same noise, the same z and the same output."""

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

from vae2aef.batch import Batch
from vae2aef.errors import WrapError
from vae2aef.modes import named_modules, untouched
from vae2aef.parts import SCALES, CallableParts, VAEParts, to_scale, two_tensors
from vae2aef.program import VAEProgram
from vae2aef.tensors import at_least_float32
from vae2aef.tracing.refusal import CONDITION
from vae2aef.wrapping.find_parts import has_forward
from vae2aef.wrapping.known_pass import Pass, alike, close, few_rows, is_random, known_pass, of_one_order, stays_so
from vae2aef.wrapping.scales import WRITTEN
from vae2aef.wrapping.trial import trial


def compare_with_forward(vae: Any, parts: VAEParts, batch: Batch, given: dict[str, Any]) -> str:
    """Run the VAE's own forward with known noise u, and compare its z and output with those of the parts.

    Eval mode, a few rows of the example. Compared are z with loc + scale * u (through the posterior's transform, if
    it has one), and what forward returns with the decoder's output for that z. Of a decoder that the user gave, or an
    adapter wrote, the output may be another elementwise function of the same z, such as the sigmoid of logits.

    Args:
        vae: the user's VAE.
        parts: its parts.
        batch: rows of the example, with conditions.
        given: what the user said: `encoder`, `decoder`, `output`.

    Returns:
        A line for `print`: that they are the same, or why nothing was compared; empty where forward itself is run.

    Raises:
        WrapError: if they differ; says in what.
    """
    from vae2aef.tracing.parts import TracedParts

    if isinstance(parts, TracedParts):
        return ""
    if not has_forward(vae):
        return "not compared with a forward, which it does not have"
    if isinstance(parts, VAEProgram):
        return "not compared with its forward, which draws several latents"
    few = few_rows(batch)
    with trial(batch.x.device, vae, parts), untouched(vae):
        torch.manual_seed(0)
        seen = known_pass(vae, few, parts)
        if seen.why_not:
            return f"not compared with its forward: {seen.why_not}"
        return _Comparison(vae, parts, few, given, seen).verdict()


class _Comparison:
    """One comparison: of the same noise, forward's z and output with those of the parts.

    Args:
        vae: the user's VAE.
        parts: its parts.
        batch: rows of the example, with conditions.
        given: what the user said.
        seen: a pass of forward.
    """

    def __init__(self, vae: Any, parts: VAEParts, batch: Batch, given: dict[str, Any], seen: Pass) -> None:
        self.vae, self.parts, self.batch, self.given, self.seen = vae, parts, batch, given, seen
        self.posterior = parts.encode(batch.x, *batch.cond, **batch.kwargs)
        self.name = type(vae).__name__
        self.kind = parts.encoder_scale if isinstance(parts, CallableParts) else ""
        self.by_adapter = given.get("encoder") is None and given.get("decoder") is None

    def verdict(self) -> str:
        """See `compare_with_forward`."""
        loc, u = self.posterior.loc, self.seen.u
        if u.numel() != loc.numel():
            return (
                f"not compared with its forward, which draws noise of shape {tuple(u.shape)} for a latent of shape "
                f"{tuple(loc.shape)}"
            )
        self.u = self._signed(u.reshape(loc.shape).to(loc))
        self.z = self.posterior.push(self.u)[0]
        self.mean = self.decode(self.z)
        shaped = [v for v in self.seen.outputs if alike(v, self.mean)] if isinstance(self.mean, Tensor) else []
        same_z = self.is_latent(self.z)
        same_output = any(self.is_output(v, self.mean) and self.stays(v) for v in shaped)
        if same_z and (same_output or not shaped):
            what = "this z" if not shaped else "this z and this output"
            return f"compared: of the same noise, its own forward makes {what}"
        if same_output and not any(self.latents()) and self.moves():
            return "compared: of the same noise, its own forward makes this output"
        if is_random(self.vae, self.batch, self.parts, self.seen):
            return "not compared with its forward, which is random beyond its draw"
        raise self.refusal(same_z, shaped)

    def _signed(self, u: Tensor) -> Tensor:
        """Return the noise with the signs of what forward has made: those of u are as likely as of minus u."""
        if self.posterior.transform is not None:
            return u
        plain, other = (self.posterior.push(v)[0] for v in (u, -u))
        for t in self.seen.latents:
            if alike(t, plain):
                t = at_least_float32(t).reshape(plain.shape).to(plain)
                signed = torch.where((t - plain).abs() <= (t - other).abs(), u, -u)
                if close(t, self.posterior.push(signed)[0]):
                    return signed
        return u

    def decode(self, z: Tensor) -> Any:
        """Return the mean of the data for latents, `(batch, *event)`, or what else is first."""
        return self.parts.decode(z.clone(), *self.batch.cond, **self.batch.kwargs).mean

    def is_latent(self, z: Tensor) -> bool:
        """Whether forward has made this z."""
        return any(alike(t, z) and close(at_least_float32(t).reshape(z.shape), z) for t in self.seen.latents)

    def is_output(self, value: Tensor, mean: Tensor) -> bool:
        """Whether forward's output is the decoder's, or, if somebody wrote the decoder, of the same meaning."""
        value = at_least_float32(value).reshape(mean.shape)
        written = self.given.get("decoder") is not None or not isinstance(self.parts, CallableParts)
        return close(value, mean) or (written and of_one_order(value, mean))

    def stays(self, value: Tensor) -> bool:
        """Whether what is another function of the decoder's output is so over more draws, and not by chance."""
        if close(at_least_float32(value).reshape(self.mean.shape), self.mean):
            return True
        place = next(i for i, v in enumerate(self.seen.outputs) if v is value)
        sign = torch.where(self.u == self.seen.u.reshape(self.u.shape).to(self.u), 1.0, -1.0).to(self.u)

        def decode(u: Tensor) -> Tensor:
            return self.decode(self.posterior.push(sign * u.reshape(sign.shape).to(sign))[0])

        return stays_so(self.vae, self.batch, self.parts, place, decode)

    def latents(self) -> Iterator[tuple[str, Tensor]]:
        """Yield those of z, and of what it would be for another kind of scale, that forward has made; and the kind."""
        if self.is_latent(self.z):
            yield self.kind, self.z
        if not isinstance(self.parts, CallableParts):
            return
        x = self.batch.x.flatten(1) if self.parts.flatten else self.batch.x
        loc, raw = two_tensors(self.parts.encoder(x, *self.batch.cond, **self.batch.kwargs))
        for kind in SCALES:
            z = loc + to_scale(raw, kind) * self.u
            if kind != self.kind and self.is_latent(z):
                yield kind, z

    def moves(self) -> bool:
        """Whether the decoder's output depends on z at all."""
        return not close(self.decode(self.z + 1), self.mean)

    def refusal(self, same_z: bool, shaped: list[Tensor]) -> WrapError:
        """Say in what they differ, and what to pass."""
        other = self.other_latent(shaped)
        if other is not None:
            return other
        untraced = self.trace()
        if self.by_adapter and isinstance(untraced, WrapError) and untraced.fix == CONDITION:
            return WrapError(untraced.reason + "\n", untraced.fix)  # the true reason for another output
        if not same_z:
            return WrapError(
                f"of the same noise, the forward of {self.name} makes another z than loc + scale * u of the encoder. ",
                self.traced() or self.alone(),
            )
        off = min(float((at_least_float32(v).reshape(self.mean.shape) - self.mean).abs().max()) for v in shaped)
        return WrapError(
            f"of the same z, the forward of {self.name} returns another output than the decoder: off by up to "
            f"{off:.3g}. ",
            self.traced() or self.alone(),
        )

    def other_latent(self, shaped: list[Tensor]) -> WrapError | None:
        """Say which latent forward decodes in the place of theirs, if that is known."""
        for kind, z in self.latents():
            if kind != self.kind and (not shaped or any(self.is_output(v, self.decode(z)) for v in shaped)):
                return WrapError(
                    f'encoder_scale="{self.kind}", but the forward of {self.name} takes that output as "{kind}"; ',
                    f'Pass encoder_scale="{kind}"',
                )
            later = next((t for t in reversed(self.seen.latents) if self.is_decoded(t, z, shaped)), None)
            if later is not None:
                return WrapError(
                    f"the forward of {self.name} maps z = loc + scale * u further before it decodes it, and the "
                    "encoder says nothing of that: a posterior flow, or a projection, would be lost. ",
                    self.traced() or self.with_flow(kind, z, later),
                )
        return None

    def is_decoded(self, latent: Tensor, z: Tensor, shaped: list[Tensor]) -> bool:
        """Whether forward's output is the decoder's for a latent that is not z."""
        if not alike(latent, z) or close(at_least_float32(latent).reshape(z.shape), z):
            return False
        try:
            mean = self.decode(at_least_float32(latent).reshape(z.shape))
        except Exception:  # it is no latent
            return False
        return any(self.is_output(v, mean) for v in shaped)

    # ------------------------------------------------------------------ remedies

    def traced(self) -> str:
        """Return the line that has forward traced, if it can be."""
        from vae2aef.tracing.outputs import say_path

        parts = self.trace()
        if isinstance(parts, WrapError):
            return ""
        path = say_path(parts.outputs[False])[len("forward(x)") :]
        more = f", output=lambda out: out{path}" if self.by_adapter else ""
        return f"Pass encoder=None, decoder=None, encoder_scale=None{more}"

    def trace(self) -> Any:
        """Trace forward; return its parts, or why it cannot be."""
        from vae2aef.tracing.proof import trace

        try:
            return trace(self.vae, *self.batch)
        except WrapError as error:
            return error

    def with_flow(self, kind: str, before: Tensor, later: Tensor) -> str:
        """Return the line that hands over the flow: a module that makes the later latent of z, and its log|det|."""
        general = "Pass encoder=lambda x: vae2aef.Posterior(loc, scale, flow), where flow(z) returns (z, log|det|)"
        name = next((name for name in ("encode", "encoder") if callable(getattr(self.vae, name, None))), None)
        for path, module in named_modules(self.vae):
            if name is None or kind not in WRITTEN or not path or not has_forward(module):
                continue
            try:
                z, change = module(before.clone())
            except Exception:  # it maps something else
                continue
            if alike(z, later) and close(z, later.reshape(z.shape)) and change.shape == z.shape[:1]:
                scale = WRITTEN[kind].format(f"vae.{name}(x)[1]")
                return f"Pass encoder=lambda x: vae2aef.Posterior(vae.{name}(x)[0], {scale}, vae.{path})"
        return general

    def alone(self) -> str:
        """Return the line by which the parts stand for themselves, and no forward is looked at."""
        named = [
            f"{part}=vae.{name}"
            for part, names in (("encoder", ("encode", "encoder")), ("decoder", ("decode", "decoder")))
            for name in [next((n for n in names if callable(getattr(self.vae, n, None))), None)]
            if self.given.get(part) is None and name is not None
        ]
        return "If they are meant as they are: Pass " + ", ".join(["vae=torch.nn.ModuleList([vae])", *named])
