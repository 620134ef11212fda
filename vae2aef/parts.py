"""The one contract of all adapters: what an AEF needs from a VAE."""

import abc
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from vae2aef.errors import WrapError, describe
from vae2aef.protocols import Place
from vae2aef.tensors import at_least_float32, mean_of, sum_event

MIN_SCALE = 1e-6
"""Floor of the encoder's scale. A log variance clamped at -30 or a half precision zero ends here."""

SCALES = ("std", "log_std", "var", "log_var")


class Posterior(NamedTuple):
    """What the encoder says of a batch: z = transform(loc + scale * u).

    Attributes:
        loc: g_m(x), shape `(batch, *latent)`.
        scale: g_s(x), positive, likewise.
        transform: for VAEs with a posterior flow after the affine map: maps `(batch, *latent)` to
            `(z, log|det|)`, shapes `(batch, *latent)` and `(batch,)`. None if there is none. It is also called with
            rows repeated whole batch after whole batch.
    """

    loc: Tensor
    scale: Tensor
    transform: Callable[[Tensor], tuple[Tensor, Tensor]] | None = None

    @property
    def mask(self) -> None:
        """Every row has this latent."""

    @property
    def standard(self) -> None:
        """In the VAE u is standard normal."""

    @property
    def free(self) -> bool:
        """Whether z ranges over all real numbers."""
        return True

    def push(self, u: Tensor) -> tuple[Tensor, Tensor]:
        """Return z for u of shape `(batch, *latent)`, and log|det dz/du|, `(batch,)` in nats (Eq. 4, 9).

        Raises:
            ValueError: if u is of another shape than the location: the two would broadcast.
        """
        if u.shape != self.loc.shape:
            raise ValueError(
                f"the encoder returned a latent of shape {tuple(self.loc.shape)}, where the features have "
                f"{tuple(u.shape)}"
            )
        z = self.loc + self.scale * u
        log_det = sum_event(self.scale.log().expand_as(z))
        if self.transform is None:
            return z, log_det
        z, change = self.transform(z)
        return z, log_det + change


class Decoded(NamedTuple):
    """What the decoder says of a batch of latents.

    Attributes:
        mean: f(z), shape `(batch, *event)` or flattened; or what else the likelihood takes, such as logits.
        scale: its second output, if it has one, of the same shape: mostly its own scale, positive.
        density: the VAE's own density of x given z, in the place of a likelihood: a `torch.distributions` object, or
            one with `log_prob(x)`, `(batch, *event)` to `(batch,)` or `(batch, *event)` in nats, and `sample()`.
        more: its further outputs.
    """

    mean: Any
    scale: Tensor | None = None
    density: Any = None
    more: tuple[Tensor, ...] = ()

    @property
    def outputs(self) -> tuple[Tensor, ...]:
        """All that the decoder returns, for a likelihood."""
        return (self.mean,) if self.scale is None else (self.mean, self.scale, *self.more)


class VAEParts(abc.ABC):
    """Encoder, decoder and prior of a VAE with one latent (of several: `vae2aef.VAEProgram`), whatever the codebase.

    An adapter derives from it, keeps a reference to the user's module, and changes nothing in it.

    Attributes:
        prior: module with `log_prob(z) -> (batch,)` and `sample(n)`; None for the standard normal.
        likelihood: what the VAE is trained with, as for `wrap`; None if unknown, or the decoder returns densities.
        taken, assumed: what was taken from the VAE, and what was assumed, a line each; shown by `print(aef)`.
        beside: modules of the VAE that are not inside it: trained, moved and saved with it.
        needs_rows: whether it cannot be run on an empty batch.
        output: applied to what the VAE returns for the data, before it is read; None for nothing.
        known: whether an adapter was written for the VAE's class, so that what it does not read is not there.
        compared: what came of comparing it with the VAE's own forward; empty if it is that.
        decoder_scale: what its decoder's second output is, one of `SCALES`; None if it is not known.
        aef_class: a class derived from `AEF`, where data come in another form than one tensor; None for `AEF`.
    """

    prior: Any = None
    output: Callable[[Any], Any] | None = None
    known: bool = True
    compared: str = ""
    decoder_scale: str | None = "std"
    likelihood: Any = None
    needs_rows: bool = False
    aef_class: Any = None
    beside: tuple[nn.Module, ...] = ()
    taken: tuple[str, ...] = ()
    assumed: tuple[str, ...] = ()

    @abc.abstractmethod
    def encode(self, x: Tensor, *cond: Any, **kwargs: Any) -> Posterior:
        """Encode data `(batch, *event)`; conditions are handed on."""

    @abc.abstractmethod
    def decode(self, z: Tensor, *cond: Any, **kwargs: Any) -> Decoded:
        """Decode latents `(batch, *latent)`; conditions are handed on."""

    def read(self, x: Tensor) -> Tensor:
        """Return data `(batch, *event)` as h and a density of the VAE's own read them: whole numbers as numbers."""
        return x

    def decoded(self, out: Any) -> Decoded:
        """Read what the VAE returned for the data, through `output`; see `to_decoded`. A scale becomes a "std"."""
        decoded = to_decoded(out if self.output is None else self.output(out))
        if decoded.scale is None or self.decoder_scale in (None, "std"):
            return decoded
        return decoded._replace(scale=to_scale(decoded.scale, str(self.decoder_scale)))

    def infer(self, x: Tensor, *cond: Any, **kwargs: Any) -> Any:
        """Run the bottom-up pass, once a datum, and return what `run` needs of it: tensors with the batch first."""
        return self.encode(x, *cond, **kwargs)

    def run(self, place: Place, state: Any, *cond: Any, **kwargs: Any) -> Decoded:
        """Place the latents one by one, then decode.

        Args:
            place: called as `place(name, prior, posterior)` for each latent, gives z.
            state: from `infer`; None when data are generated, and posteriors then are None too.
            *cond: conditions.
            **kwargs: conditions by name.
        """
        return self.decode(place("z", self.prior, state), *cond, **kwargs)

    def rows_first(self, name: str, z: Tensor) -> Tensor:
        """Return a latent, in the VAE's own shape, with the batch as its first dimension."""
        return z

    def rows_back(self, name: str, z: Tensor) -> Tensor:
        """Undo `rows_first`."""
        return z

    def state_of_given(self, state: Any) -> Any:
        """Return what `run` needs of the state to decode latents that are given: mostly nothing."""
        return None


class CallableParts(VAEParts):
    """The parts of a VAE given as two callables.

    Args:
        encoder: `encoder(x, *cond)` returns two tensors, location and scale, of shape `(batch, *latent)`.
        decoder: `decoder(z, *cond)` returns what `to_decoded` reads.
        encoder_scale: what the encoder's second output is: `"std"`, `"log_std"`, `"var"` or `"log_var"`.
        flatten: hand the data to the encoder as `(batch, N)`.

    Raises:
        WrapError: for an unknown `encoder_scale`, or outputs of another kind, when they are first seen.
    """

    known, decoder_scale = False, None

    def __init__(
        self,
        encoder: Callable[..., Any],
        decoder: Callable[..., Any],
        encoder_scale: str,
        flatten: bool = False,
    ) -> None:
        require_scale("encoder_scale", encoder_scale)
        self.encoder = encoder
        self.decoder = decoder
        self.encoder_scale = encoder_scale
        self.flatten = flatten

    def encode(self, x: Tensor, *cond: Any, **kwargs: Any) -> Posterior:
        """See `VAEParts.encode`."""
        out = self.encoder(x.flatten(1) if self.flatten else x, *cond, **kwargs)
        loc, raw = two_tensors(out)
        return Posterior(at_least_float32(loc), to_scale(raw, self.encoder_scale))

    def decode(self, z: Tensor, *cond: Any, **kwargs: Any) -> Decoded:
        """See `VAEParts.decode`."""
        return self.decoded(self.decoder(z, *cond, **kwargs))


def require_scale(option: str, kind: Any) -> None:
    """Raise a `WrapError` for what is not one of `SCALES`; it names the option."""
    if kind not in SCALES:
        raise WrapError(f"expected {option} to be one of {', '.join(map(repr, SCALES))}; got {kind!r}")


def to_scale(raw: Tensor, kind: str) -> Tensor:
    """Convert an encoder's second output to a scale (standard deviation), at least 1e-6, float32 or wider.

    A negative `"std"` or `"var"` becomes NaN, which the loss reports by name. `kind` is one of `SCALES`.
    """
    raw = at_least_float32(raw)
    if kind in ("log_var", "log_std"):
        return (0.5 * raw if kind == "log_var" else raw).exp().clamp(min=MIN_SCALE)
    raw = torch.where(raw < 0, torch.nan, raw)
    return raw.clamp(min=MIN_SCALE**2).sqrt() if kind == "var" else raw.clamp(min=MIN_SCALE)


def two_tensors(out: Any) -> tuple[Tensor, Tensor]:
    """Unpack an encoder's output; raise a `WrapError` that says what it is if it is not a pair of tensors."""
    if isinstance(out, (tuple, list)) and len(out) == 2 and all(isinstance(t, Tensor) for t in out):
        return out[0], out[1]
    raise WrapError(
        f"expected the encoder to return two tensors (location, scale), got {describe(out)}; ",
        "pass encoder=lambda x: (loc, scale) that picks them out",
    )


def to_decoded(out: Any) -> Decoded:
    """Read a decoder's output: a tensor, several, mean and scale first, or a distribution: its own density of x.

    Raises:
        WrapError: for anything else; the message says what it is and what to pass instead.
    """
    if isinstance(out, Tensor):
        return Decoded(at_least_float32(out))
    if isinstance(out, (tuple, list)) and len(out) > 1 and all(isinstance(t, Tensor) for t in out):
        mean, scale, *more = map(at_least_float32, out)
        return Decoded(mean, scale, None, tuple(more))
    if isinstance(out, torch.distributions.Distribution):
        return Decoded(mean_of(out), density=out)
    raise WrapError(
        f"expected the decoder to return a tensor shaped like the data, (mean, scale) or a distribution, got "
        f"{describe(out)}; ",
        "pass decoder=lambda z: ... that picks it out",
    )
