"""Look at the example and run the parts of a VAE on it, without a trace: modes and random state stay as they were."""

from collections.abc import Sequence
from typing import Any, NamedTuple, NoReturn

import torch
from torch import Tensor

from vae2aef.batch import Batch
from vae2aef.errors import WrapError
from vae2aef.grids import Grid, find_grid
from vae2aef.parts import CallableParts, Decoded, VAEParts
from vae2aef.program import VAEProgram
from vae2aef.tensors import numel
from vae2aef.wrapping.other_grids import encodes_other_lengths
from vae2aef.wrapping.trial import naming, trial


class Seen(NamedTuple):
    """What a look at the example showed.

    Attributes:
        event_shape: shape of one event.
        latents: shape of each latent, by name; "z" for a VAE of one.
        spread: standard deviation of the (preprocessed) data, within 0.01 and 100.
        flow: whether the posterior has a transform after its affine map.
        scale_range: smallest and largest of the decoder's own scale; None if it returns none.
        density: the VAE's own density of x given z, if it has one.
        dtype: of the (preprocessed) data, or torch's default if they are integers.
        outputs: what the decoder returned.
        grids: of each latent that is a grid that divides that of the data: how it lies on it.
        local: whether the features of all latents are local, so that other grids may come.
    """

    event_shape: torch.Size
    latents: dict[str, torch.Size]
    spread: float
    flow: bool
    scale_range: tuple[float, float] | None
    density: Any = None
    dtype: torch.dtype = torch.float32
    outputs: tuple[Any, ...] = ()
    grids: dict[str, Grid] = {}  # noqa: RUF012 -- never written to
    local: bool = False

    @property
    def discrete(self) -> bool:
        """Whether the VAE's own density is a probability of discrete data."""
        return bool(getattr(getattr(self.density, "support", None), "is_discrete", False))


# ---------------------------------------------------------------------- the VAE's parts


def look(vae: Any, parts: VAEParts, batch: Batch, like_data: bool = True) -> Seen:
    """Run encoder and decoder once on the example and check what they return.

    Args:
        vae: the user's VAE.
        parts: its parts.
        batch: data as the VAE sees it, `(batch, *event)`, with conditions.
        like_data: whether the decoder's first output must be shaped like the data.

    Raises:
        WrapError: if a part fails, or returns another shape, or what is not finite.
    """
    if isinstance(parts, VAEProgram):
        return _look_at_program(vae, parts, batch, like_data)
    y = batch.x
    shape = tuple(y.shape)
    with trial(y.device, vae, parts):
        with naming(
            f"the encoder fails on data of shape {shape}. It said:",
            "Pass encoder=lambda x: ... that takes it (x.flatten(1), say), and conditions as example=(x, *conditions)",
        ):
            posterior = parts.encode(y, *batch.cond, **batch.kwargs)
        loc, scale = posterior.loc, posterior.scale
        if loc.shape != scale.shape or loc.shape[:1] != (batch.size,):
            raise WrapError(
                f"expected location and scale of one shape (batch, *latent) with batch = {batch.size}, got "
                f"{tuple(loc.shape)} and {tuple(scale.shape)}"
            )
        if not bool(scale.isfinite().all()):
            _refuse_scale(parts, batch)
        z = loc
        if posterior.transform is not None:
            with naming(f"the posterior's transform, loc -> (z, log|det|), fails on shape {tuple(loc.shape)}:"):
                z, _ = posterior.transform(loc)
        with naming(
            f"the decoder fails on latents of shape {tuple(z.shape)}, which is what the encoder returns for data "
            f"of shape {shape}; encoder and decoder must agree on the latent shape. The decoder said:"
        ):
            decoded = parts.decode(z, *batch.cond, **batch.kwargs)
        _require_decoded(decoded, y, like_data, place_of(parts))
    seen = _seen(y, {"z": loc.shape[1:]}, decoded, posterior.transform is not None)
    grid = seen.grids.get("z")
    if grid is not None and grid.dims == 1 and not encodes_other_lengths(vae, parts, batch, grid):
        return seen._replace(grids={})
    return seen


def _require_decoded(decoded: Decoded, y: Tensor, like_data: bool, place: str = "") -> None:
    mean, own = decoded.mean, decoded.scale
    if not isinstance(mean, Tensor):
        return
    if like_data:
        if decoded.more:
            raise WrapError(
                "expected the decoder to return a tensor shaped like the data, or (mean, scale), got a tuple of "
                f"{len(decoded.outputs)}: ",
                "pass output=lambda out: ... that picks it out of what the decoder returns, or a likelihood= that "
                "takes all",
            )
        _require_like_data(mean, y, place)
    if decoded.density is None and not bool(mean.isfinite().all()):
        raise WrapError("the decoder's mean is not finite on the example")
    if own is not None and like_data:
        with naming(f"the decoder's scale {tuple(own.shape)} does not broadcast to its mean {tuple(mean.shape)}:"):
            own.expand_as(mean)


def _seen(y: Tensor, latents: dict[str, torch.Size], decoded: Decoded, flow: bool = False) -> Seen:
    own = decoded.scale
    ends = None if own is None else (own.min().item(), own.max().item())
    dtype = y.dtype if y.is_floating_point() else torch.get_default_dtype()
    grids = {name: find_grid(y.shape[1:], latent) for name, latent in latents.items()}
    found = {name: grid for name, grid in grids.items() if grid is not None}
    return Seen(y.shape[1:], latents, _spread(y), flow, ends, decoded.density, dtype, decoded.outputs, found)


def _spread(y: Tensor) -> float:
    """Return what a decoder that knows nothing leaves over: a start for a learned residual scale."""
    return float(y.to(torch.get_default_dtype()).std(correction=0).clamp(1e-2, 1e2))


class _Meet:
    """Meet the latents of a program: at u = 0, noting their names and shapes."""

    def __init__(self, size: int) -> None:
        self.size = size
        self.z: dict[str, Tensor] = {}
        self.latents: dict[str, torch.Size] = {}

    def __call__(self, name: str, prior: Any, posterior: Any) -> Tensor:
        if posterior is not None:
            if name in self.latents:
                raise WrapError(f'the latent "{name}" is placed twice: ', "give every latent a name of its own")
            if not name or "." in name:
                raise WrapError(f'the name "{name}" of a latent: expected one that is not empty and has no dot')
            loc, scale = posterior.loc, posterior.scale
            if loc.shape != scale.shape or loc.shape[:1] != (self.size,):
                raise WrapError(
                    f'latent "{name}": expected location and scale of one shape (batch, *latent) with batch = '
                    f"{self.size}, got {tuple(loc.shape)} and {tuple(scale.shape)}"
                )
            if not bool((scale > 0).all() & scale.isfinite().all()):
                raise WrapError(f'latent "{name}": the posterior\'s scale is not positive and finite on the example')
            self.latents[name] = loc.shape[1:]
            self.z[name] = posterior.push(torch.zeros_like(loc))[0]
        return self.z[name]


def _look_at_program(vae: Any, parts: VAEProgram, batch: Batch, like_data: bool) -> Seen:
    """Run a program once on the example: its latents one by one, then the data."""
    y, cond, kwargs = batch
    meet = _Meet(y.shape[0])
    with trial(y.device, vae, parts):
        with naming(f"{type(vae).__name__} fails on data of shape {tuple(y.shape)}:"):
            decoded = parts.run(meet, parts.infer(y, *cond, **kwargs), *cond, **kwargs)
        _require_decoded(decoded, y, like_data)
    if not meet.latents:
        raise WrapError(f"{type(parts).__name__}.run places no latent on the example")
    seen = _seen(y, meet.latents, decoded)
    return seen._replace(grids={name: grid for name, grid in seen.grids.items() if grid.dims > 1})


def _refuse_scale(parts: VAEParts, batch: Batch) -> NoReturn:
    reason = "the encoder's scale is not positive and finite on the example"
    if not isinstance(parts, CallableParts):
        raise WrapError(reason)
    raise WrapError(
        f"{reason}: {_raw_range(parts, batch)}; with negative values it can only be a logarithm: ",
        'Pass encoder_scale="log_var", or "log_std"',
    )


def _raw_range(parts: CallableParts, batch: Batch) -> str:
    x = batch.x.flatten(1) if parts.flatten else batch.x
    raw = parts.encoder(x, *batch.cond, **batch.kwargs)[1]
    return (
        f'encoder_scale="{parts.encoder_scale}" says that the second output is a {parts.encoder_scale}, but it '
        f"ranges from {raw.min().item():.4g} to {raw.max().item():.4g}"
    )


def _require_like_data(mean: Tensor, y: Tensor, place: str) -> None:
    """Refuse a mean whose values would be put in another order by a reshape, such as channels last."""

    def plain(shape: Sequence[int]) -> list[int]:
        return [n for n in shape if n != 1]

    batch, event = mean.shape[:1] == y.shape[:1], mean.shape[1:]
    if batch and (plain(event) == plain(y.shape[1:]) or event == (numel(y.shape[1:]),)):
        return
    turned = batch and sorted(plain(event)) == sorted(plain(y.shape[1:]))
    said, fix = "", ""
    if turned:
        said, fix = "; its dimensions stand in another order: ", "pass decoder=lambda z: ... that permutes them"
    elif batch and place and numel(event) == numel(y.shape[1:]):
        said, fix = (
            "; if its values stand in the order of the data's: ",
            f"Pass output=lambda out: {place}.reshape({', '.join(map(str, (-1, *y.shape[1:])))})",
        )
    raise WrapError(
        f"expected the decoder to return {tuple(y.shape)}, shaped like the data (or flattened), got "
        f"{tuple(mean.shape)}{said}",
        fix,
    )


def place_of(parts: VAEParts) -> str:
    """Say where in `out`, what the VAE, or its decoder, returns, the mean of the data is."""
    from vae2aef.tracing.outputs import say_path
    from vae2aef.tracing.parts import TracedParts

    return "out" + (say_path(parts.outputs[False])[len("forward(x)") :] if isinstance(parts, TracedParts) else "")
