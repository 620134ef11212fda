"""Hold parts, however they came, against the VAE's own forward: of the same noise, the same z and the same output."""

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

from vae2aef.batch import Batch
from vae2aef.errors import WrapError
from vae2aef.modes import untouched
from vae2aef.parts import SCALES, CallableParts, VAEParts, to_scale, two_tensors
from vae2aef.program import VAEProgram
from vae2aef.tensors import at_least_float32
from vae2aef.tracing.refusal import CONDITION
from vae2aef.wrapping.find_parts import has_forward
from vae2aef.wrapping.known_pass import Pass, alike, close, few_rows, known_pass, of_one_order
from vae2aef.wrapping.parity_remedies import alone, with_flow
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
        same_output = any(self.is_output(v, self.mean) and self.stays_so(v) for v in shaped)
        if same_z and (same_output or not shaped):
            what = "this z" if not shaped else "this z and this output"
            return f"compared: of the same noise, its own forward makes {what}"
        if same_output and not any(self.latents()) and self.moves():
            return "compared: of the same noise, its own forward makes this output"
        if self.is_random():
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

    def stays_so(self, value: Tensor) -> bool:
        """Whether forward's output is a function of the decoder's with other noise, too: few rows are so by chance."""
        index = next(i for i, one in enumerate(self.seen.outputs) if one is value)
        values, means = [at_least_float32(value).reshape(self.mean.shape)], [self.mean]
        if close(values[0], self.mean):
            return True
        signs = torch.where(self.u == self.seen.u.reshape(self.u.shape).to(self.u), 1.0, -1.0).to(self.u)
        for size in (1.0, 1.0, 3.0, 3.0):
            u = size * torch.randn_like(self.seen.u)
            again = known_pass(self.vae, self.batch, self.parts, u)
            if len(again.outputs) != len(self.seen.outputs) or not alike(again.outputs[index], self.mean):
                return False
            values.append(at_least_float32(again.outputs[index]).reshape(self.mean.shape))
            means.append(self.decode(self.posterior.push(signs * u.reshape(self.u.shape).to(self.u))[0]))
        return of_one_order(torch.cat(values), torch.cat(means))

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

    def is_random(self) -> bool:
        """Whether forward returns something else of the same data and noise."""
        torch.manual_seed(1)
        again = known_pass(self.vae, self.batch, self.parts, self.seen.u)
        pairs = zip(again.outputs, self.seen.outputs, strict=False)
        return any(a.shape != b.shape or not close(a, b) for a, b in pairs)

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
                self.traced() or alone(self.vae, self.given),
            )
        off = min(float((at_least_float32(v).reshape(self.mean.shape) - self.mean).abs().max()) for v in shaped)
        return WrapError(
            f"of the same z, the forward of {self.name} returns another output than the decoder: off by up to "
            f"{off:.3g}. ",
            self.traced() or alone(self.vae, self.given),
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
                    self.traced() or with_flow(self.vae, kind, z, later),
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
            return trace(self.vae, self.batch)
        except WrapError as error:
            return error
