"""Prove, once, that a VAE's own forward can be traced, or say why not.

What is proved, on a few rows of the example, in eval mode, and for the first and last point in training mode too:

1. forward draws noise once, Gaussian, of the batch's size, with gradients to the encoder, and nothing else is random;
2. z is elementwise affine in that noise: by the functions it went through, whatever the weights, and by numbers,
   with dz/du > 0;
3. data and noise reach the output through z alone: in the graph of calls, in autograd's graph, and by numbers: with
   z put in its place, other data give the same output;
4. exactly one output is shaped like the data and depends on z;
5. values and gradients do not change with the random state, as they would if a draw were repeated in the backward
   pass (checkpointing), and those of decoding alone are those of the whole pass.
"""

import contextlib
import warnings
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from vae2aef.batch import Batch
from vae2aef.errors import WrapError, describe
from vae2aef.generators import seed_torch
from vae2aef.modes import evaluation_mode, in_mode, named_modules, own_random_state, parameters, untouched
from vae2aef.parts import MIN_SCALE
from vae2aef.tracing.decide import Observation
from vae2aef.tracing.noise import Follow
from vae2aef.tracing.observe import Entry, find_awake, observe, refusing, rows_of_their_own
from vae2aef.tracing.other_data import close, other_data
from vae2aef.tracing.outputs import say_path
from vae2aef.tracing.parts import TracedParts
from vae2aef.tracing.recording import Draw
from vae2aef.tracing.refusal import CONDITION, DRAW, ONLY_Z, OUTSIDE, SEVERAL, Refusal

ROWS, TRAINING_ROWS = 3, 2
TRIES = 8


def trace(
    vae: Any,
    batch: Batch,
    output: Callable[[Any], Any] | None = None,
    forward: Callable[..., Any] | None = None,
) -> TracedParts:
    """Trace a VAE's forward. The VAE, its buffers and torch's random state are left as they were.

    Args:
        vae: the user's module, called as `vae(x, *cond, **kwargs)`.
        batch: example of the data as the VAE sees it, shape `(batch, *event)`, with conditions.
        output: what to make of what forward returns, as for `vae2aef.wrap`.
        forward: what to call in the place of the module, likewise.

    Raises:
        WrapError: if it cannot be proved that tracing is right; says which point fails, lists the random draws
            seen.
    """
    draws: list[Draw] = []
    try:
        _require_eager(vae)
        entry = Entry(vae, output, forward)
        with untouched(vae), own_random_state(batch.x.device), torch.enable_grad():
            with evaluation_mode(vae):
                with rows_of_their_own(entry, batch):
                    names = find_awake(entry, batch.head(ROWS), draws)
                seen = observe(entry, batch.head(ROWS), names, draws)
                parts = _parts(entry, seen, batch, names)
                with refusing("a pass with its noise replaced"):
                    _prove(parts, seen, batch.head(ROWS))
            _prove_training(parts, seen, batch.head(TRAINING_ROWS), draws, entry)
            parts.floor = MIN_SCALE  # what was proved is forward as it is
    except Refusal as reason:
        # What went wrong inside the user's code, if it did, is shown as the cause.
        listed = "; ".join(map(str, draws)) or "none"
        what = f"the forward of {type(vae).__name__}" if forward is None else "forward="
        said = f"{what} cannot be traced: {reason}. Random draws seen: {listed}\n"
        raise WrapError(said, reason.fix) from reason.__cause__
    return parts


def _require_eager(vae: Any) -> None:
    if not isinstance(vae, nn.Module):
        raise Refusal(f"expected an nn.Module, got {describe(vae)}")
    if isinstance(vae, torch.jit.ScriptModule):
        raise Refusal("it is scripted, and random draws in it cannot be seen", "Wrap the module it was made from")
    for name, m in named_modules(vae):
        if type(m).__name__ == "OptimizedModule" or getattr(m, "_compiled_call_impl", None) is not None:
            raise Refusal(
                f"`{name or 'the module'}` is compiled, and draws in it cannot be seen",
                "Wrap first, compile after: torch.compile(aef)",
            )


def _parts(entry: Entry, seen: Observation, batch: Batch, names: tuple[str, ...]) -> TracedParts:
    z = seen.record.values[len(seen.latent_call.calls)]
    calls, at, like = {False: seen.latent_call}, {False: seen.path}, other_data(batch.x[:1])
    parts = TracedParts(
        entry.vae, calls, at, like, z.shape[1:], names, output=entry.output, forward=entry.forward
    )  # fmt: skip
    parts.likelihood = seen.likelihood
    draw = seen.record.draws[seen.latent_call.place]
    parts.taken = (
        f"encoder: forward with {draw.name} replaced; z is what `{seen.latent_call.name}` makes of it, its scale dz/du",
        "decoder: what output= makes of forward(x)"
        if entry.output is not None
        else f"decoder: {say_path(seen.path)}, the only output shaped like the data that depends on the noise",
    )
    if len(seen.record.draws) > 1:
        beside = [d.name for i, d in enumerate(seen.record.draws) if i != seen.latent_call.place]
        parts.assumed += (f"it also draws by {' and '.join(beside)}, on which the mean of the data does not depend",)
    if seen.record.decided:
        parts.assumed += (
            f"its forward reads values into Python, by {' and '.join(sorted(seen.record.decided))}: where it branches "
            "on them, only the branches that the example takes are proved not to show the decoder the data",
        )
    if names:
        parts.assumed += (f"`{names[0] or 'the module'}` draws in training mode only, and is kept in it alone",)
    return parts


def _prove(parts: TracedParts, seen: Observation, batch: Batch) -> None:
    """Points 2, 3 and 5, by numbers and by autograd's graph."""
    u = seen.record.u
    z_seen = seen.record.values[len(seen.latent_call.calls)]
    seed_torch(0)
    first, mean, grads = _grads(parts, batch, u)
    if not (close(first.z, z_seen) and close(mean, seen.mean)):
        raise Refusal(
            "with the same noise it returns something else: it is random or remembers earlier calls",
            ONLY_Z,
        )
    scale = first.scale
    if not bool((scale > 0).all() & scale.isfinite().all()):
        raise Refusal(
            f"expected dz/du > 0, got values from {scale.min().item():.4g} to {scale.max().item():.4g}: the scale is "
            "negative, zero or not finite on the example",
            'Pass encoder=lambda x: (loc, scale.abs()), decoder=lambda z: mean, encoder_scale="std"',
        )
    loc = first.z - scale * u
    other_u = torch.randn_like(u)  # of the draw's own type, which may be narrower than that of the data
    second, _ = parts.follow(batch, other_u)
    if not close(second.z.to(u), (loc + scale * other_u).to(u)):
        raise Refusal("z is not loc + scale * u on the example")
    _same_gradients(parts, batch, seen)
    _prove_decoding(parts, first.z.detach(), mean, grads[0] / scale, batch)


def _grads(parts: TracedParts, batch: Batch, u: Tensor) -> tuple[Follow, Tensor, list[Tensor]]:
    """One pass with its gradients: to u of the output, to the parameters of output, z and scale."""
    follow, decoded = parts.follow(batch, u)
    mean = decoded.mean
    wanted = [p for p in parameters(parts.vae) if p.requires_grad]
    with refusing("its gradient"):
        (to_u,) = torch.autograd.grad(mean.sum(), follow.u, retain_graph=True, allow_unused=True)
        if to_u is None:
            raise Refusal("no gradient flows from the output to the noise", DRAW)
        total = mean.square().sum() + follow.z.square().sum() + follow.scale.sum()
        found = torch.autograd.grad(total, wanted, allow_unused=True) if wanted else ()
    return follow, mean.detach(), [to_u.detach(), *(g for g in found if g is not None)]


def _same_gradients(parts: TracedParts, batch: Batch, seen: Observation) -> None:
    """Where the output does not depend on the random state, as it does with dropout, gradients must not either."""
    results = []
    for seed in (0, 1):
        seed_torch(seed)
        results.append(_grads(parts, batch, seen.record.u))
    (_, mean, grads), (_, other_mean, other_grads) = results
    if close(mean, other_mean) and not all(close(a, b) for a, b in zip(grads, other_grads, strict=True)):
        raise Refusal(
            "its gradients change with the random state though its output does not: is a draw repeated in the "
            "backward pass?",
            OUTSIDE,
        )


def _prove_decoding(parts: TracedParts, z: Tensor, mean: Tensor, to_z: Tensor, batch: Batch) -> None:
    """With z in its place, other data and noise change nothing, and the decoder's gradient is that of the pass."""
    x = other_data(batch.x).requires_grad_(batch.x.is_floating_point())
    z = z.clone().requires_grad_()
    follow, out = parts.follow(batch._replace(x=x.clone()), replacement=z)
    decoded = out.mean
    wanted = [follow.u, z, x][: 3 if x.requires_grad else 2]
    to_u, found, to_x = (*torch.autograd.grad(decoded.sum(), wanted, allow_unused=True), None)[:3]
    if to_x is not None or to_u is not None:
        raise Refusal(f"the {'data' if to_u is None else 'noise'} reaches the decoder beside z", CONDITION)
    if found is None:
        raise Refusal("the output does not depend on z")
    if not close(decoded, mean):
        raise Refusal("with the same z, other data give another output: the decoder sees the data beside z", CONDITION)
    if not close(found, to_z):
        raise Refusal(
            "the gradient of decoding alone is not that of the whole pass: is z made inside a checkpoint?", OUTSIDE
        )
    _require_all_of_z(parts, z.detach(), batch)
    with contextlib.suppress(Exception), warnings.catch_warnings(), torch.no_grad():
        warnings.simplefilter("error")
        parts.lean = True
        parts.lean = close(parts.decode(z.detach(), *batch.cond, **batch.kwargs).mean, mean)
        return
    parts.lean = False


def _require_all_of_z(parts: TracedParts, z: Tensor, batch: Batch) -> None:
    """Every latent variable must move the output somewhere; of several samples, often one alone is decoded."""
    moves = torch.zeros(z.shape[1:], dtype=torch.bool, device=z.device)
    for _ in range(TRIES):
        z = torch.randn_like(z).requires_grad_()
        mean = parts.follow(batch, replacement=z)[1].mean
        (grad,) = torch.autograd.grad((mean * torch.randn_like(mean)).sum(), z)
        moves |= (grad != 0).any(0)
        if bool(moves.all()):
            return
    if bool(moves.any()):
        raise Refusal(
            f"only {int(moves.sum())} of {moves.numel()} latent variables have an effect on the output: are several "
            "samples drawn, and one decoded?",
            "Draw one sample of z for each datum",
        )


def _prove_training(parts: TracedParts, seen: Observation, batch: Batch, draws: list[Draw], entry: Entry) -> None:
    """In training mode the same call makes z; note where the mean is then."""
    try:
        with in_mode(True, parts.vae):
            again = observe(entry, batch, (), draws)
            parts.outputs[True], parts.latent_calls[True] = again.path, again.latent_call
            if again.latent_call.calls == seen.latent_call.calls:
                with refusing("a pass with its noise replaced"):
                    _same_gradients(parts, batch, again)
    except Refusal as reason:
        fix = ONLY_Z if reason.fix == SEVERAL else reason.fix  # there is one latent in eval mode
        raise Refusal(f"in training mode {reason}", fix) from reason.__cause__
    if again.latent_call.calls != seen.latent_call.calls:
        ways = (" and ".join(call.calls) for call in (seen.latent_call, again.latent_call))
        raise Refusal(
            "z is made by {} in eval mode and by {} in training mode".format(*ways), "Make z in one way in both modes"
        )
