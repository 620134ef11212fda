"""The traced adapter: a VAE nobody has described, run as a whole by its own forward.

The draw of Gaussian noise inside `forward` returns u = n^-1(w) instead; z is what the forward makes of it, its scale
is dz/du by autograd in the same pass, and the mean of the data is what the forward returns. To decode other latents,
they are put in the place of z in a pass over placeholder data. `vae2aef.tracing.proof.trace` proves once that this is
right, or refuses.
"""

import contextlib
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from vae2aef.batch import Batch
from vae2aef.errors import WrapError
from vae2aef.grids import find_grid
from vae2aef.modes import modules
from vae2aef.parts import Decoded, Posterior, VAEParts
from vae2aef.protocols import Place
from vae2aef.tensors import at_least_float32, map_tensors, sum_event
from vae2aef.tracing.noise import Follow, LatentCall
from vae2aef.tracing.outputs import pick


class TracedParts(VAEParts):
    """Parts of a VAE known only by its forward. `vae2aef.tracing.proof.trace` makes it, and proves what it assumes.

    Args:
        vae: the user's module; `vae(x, *cond)` encodes, draws once, and decodes.
        latent_calls: which call makes z, in eval and in training mode.
        outputs: where the mean of the data is in what forward returns, likewise.
        placeholder: one event of data, `(1, *event)`, to run the encoder on when only the decoder is wanted.
        latent_shape: shape of one latent.
        awake: dotted names of modules that draw only in training mode: these are always in it, alone.
        lean: whether decoding works with one row of placeholder data for any number of latents.
        output: what to make of forward's output, inside the same pass: then all of it is read as by a decoder.
        forward: what to call in the place of `vae`.
    """

    known, decoder_scale, needs_rows = False, None, True

    def __init__(
        self,
        vae: nn.Module,
        latent_calls: dict[bool, LatentCall],
        outputs: dict[bool, tuple],
        placeholder: Tensor,
        latent_shape: Sequence[int],
        awake: tuple[str, ...] = (),
        lean: bool = False,
        output: Callable[[Any], Any] | None = None,
        forward: Callable[..., Any] | None = None,
    ) -> None:
        self.vae = vae
        self.latent_calls = latent_calls
        self.outputs = outputs
        self.placeholder = placeholder
        self.latent_shape = torch.Size(latent_shape)
        self.awake = awake
        self.lean = lean
        self.output = output
        self.forward = forward
        self.floor = 0.0

    def infer(self, x: Tensor, *cond: Any, **kwargs: Any) -> "OnePass":
        """See `VAEParts.infer`: the pass waits for u, and then encodes and decodes at once."""
        return OnePass(self, Batch(x, cond, kwargs))

    def run(self, place: Place, state: Any, *cond: Any, **kwargs: Any) -> Decoded:
        """See `VAEParts.run`. The pass that has made z has decoded it too."""
        z = place("z", self.prior, state)
        return state.decoded if isinstance(state, OnePass) and state.z is z else self.decode(z, *cond, **kwargs)

    def encode(self, x: Tensor, *cond: Any, **kwargs: Any) -> Posterior:
        """See `VAEParts.encode`. The decoder runs too; statistics of batch normalisation are left as they are."""
        dtype = x.dtype if x.is_floating_point() else torch.get_default_dtype()
        grid = find_grid(self.placeholder.shape[1:], self.latent_shape)
        latent = self.latent_shape
        if grid is not None and x.shape[1:] != self.placeholder.shape[1:]:
            latent = torch.Size((latent[0], *grid.latent(x.shape[2:])))
        u = torch.zeros(x.shape[0], *latent, dtype=dtype, device=x.device)
        with own_buffers(self.vae):
            follow, _ = self.follow(Batch(x, cond, kwargs), u)
        return _posterior(follow)

    def decode(self, z: Tensor, *cond: Any, **kwargs: Any) -> Decoded:
        """See `VAEParts.decode`. The encoder runs on placeholder data, without effect on the result."""
        rows = 1 if self.lean and not any(m.training for m in modules(self.vae)) else z.shape[0]
        like = self.placeholder.to(z) if self.placeholder.is_floating_point() else self.placeholder.to(z.device)
        if z.shape[1:] != self.latent_shape and z.dim() == 1 + len(self.latent_shape):
            like = self._on_grid(like, z.shape[2:])
        x = like.expand(rows, *like.shape[1:])
        with own_buffers(self.vae):
            return self.follow(Batch(x.clone(), cond, kwargs), replacement=z)[1]

    def _on_grid(self, like: Tensor, latent: torch.Size) -> Tensor:
        """Return placeholder data for latents on another grid: the same values over again."""
        grid = find_grid(like.shape[1:], self.latent_shape)
        if grid is None:
            return like
        for dim, n in enumerate(grid.data(latent), start=2):
            like = like.index_select(dim, torch.arange(n, device=like.device) % like.shape[dim])
        return like

    # The compiler does not see through a function mode; it breaks its graph here.
    @torch.compiler.disable
    def follow(
        self, batch: Batch, u: Tensor | None = None, replacement: Tensor | None = None
    ) -> tuple[Follow, Decoded]:
        """Run one pass; return what was followed, and what forward says of the data."""
        if torch.is_inference_mode_enabled():  # where autograd cannot say dz/du
            with torch.inference_mode(False), torch.no_grad():
                return self.follow(*map_tensors((batch, u, replacement), Tensor.clone))
        training = self.vae.training
        follow = Follow(u, self.latent_calls[training], replacement, self.floor)
        forward = self.vae if self.forward is None else self.forward
        with awake(self.vae, self.awake), follow:
            # In an object of its own: pixyz keeps what it has computed of a tensor, with the graph.
            out = forward(batch.x.view_as(batch.x), *batch.cond, **batch.kwargs)
            decoded = self.decoded(pick(out, self.outputs[training])) if follow.done else Decoded(None)
        if not follow.done:
            drew = "did not draw" if not follow.drew else "took another path after its draw"
            raise WrapError(
                f"the forward of {type(self.vae).__name__} {drew} in this pass, unlike when it was wrapped. ",
                "Wrap it anew if it was changed; describe a VAE with branches by encoder=, decoder=, encoder_scale=",
            )
        return follow, decoded


class OnePass:
    """The posterior of a VAE that is run as a whole: location and scale are known once u is placed.

    Args:
        parts: of the VAE.
        batch: data `(batch, *event)` with conditions.
    """

    mask = standard = transform = None
    free = True

    def __init__(self, parts: TracedParts, batch: Batch) -> None:
        self.parts, self.batch = parts, batch
        self.z: Tensor | None = None

    def push(self, u: Tensor) -> tuple[Tensor, Tensor]:
        """See `vae2aef.Posterior.push`."""
        follow, self.decoded = self.parts.follow(self.batch, u)
        self.loc, self.scale, _ = _posterior(follow)
        self.z = at_least_float32(follow.z)
        return self.z, sum_event(self.scale.log().expand_as(self.z))


def _posterior(follow: Follow) -> Posterior:
    """Read location and scale from a pass; a scale that is not positive becomes NaN, which the loss reports."""
    z, scale, u = at_least_float32(follow.z), at_least_float32(follow.scale), follow.u
    return Posterior(z - scale * u, torch.where(scale < 0, torch.nan, scale) if follow.low else scale)


@contextlib.contextmanager
def awake(vae: nn.Module, names: Sequence[str]) -> Iterator[None]:
    """Put single modules, not their children, in training mode, and back afterwards."""
    modules = [vae.get_submodule(name) for name in names]
    modes = [m.training for m in modules]
    for m in modules:
        m.training = True
    try:
        yield
    finally:
        for m, mode in zip(modules, modes, strict=True):
            m.training = mode


@contextlib.contextmanager
def own_buffers(vae: nn.Module) -> Iterator[None]:
    """Let modules in training mode work on copies of their buffers, so that the pass leaves no trace in them."""
    saved = [(m, dict(m._buffers)) for m in modules(vae) if m.training and m._buffers]
    for m, buffers in saved:
        m._buffers.update({name: None if b is None else b.detach().clone() for name, b in buffers.items()})
    try:
        yield
    finally:
        for m, buffers in saved:
            m._buffers.update(buffers)


@contextlib.contextmanager
def own_values(vae: nn.Module) -> Iterator[None]:
    """Let a pass work on copies of all that a forward may change: buffers, embeddings, parameters that it replaces.

    A codebook of a VQ-VAE is kept as any of the three.
    """
    every, kinds = modules(vae), (nn.Embedding, nn.EmbeddingBag)
    books = [m for m in every if isinstance(m, kinds) or not type(m).__module__.startswith("torch.nn")]
    values = [(p, p.detach().clone()) for m in books for p in m.parameters(recurse=False)]
    held = [(m, dict(m._parameters), dict(m._buffers)) for m in every]
    for m, _, buffers in held:
        m._buffers.update({name: None if b is None else b.detach().clone() for name, b in buffers.items()})
    try:
        yield
    finally:
        for m, parameters, buffers in held:
            m._parameters.update(parameters)
            m._buffers.update(buffers)
        with torch.no_grad():
            for p, value in values:
                if not torch.equal(p, value):
                    p.copy_(value)
