"""Prove that p(x | z) is a density of x given z: for given z the decoder sees neither the data nor another row.

What is proved at wrap, on a few rows of the example, however the parts were found:

- for a given z the decoder's output is the same whatever data were encoded before it, and no gradient leads from it to
  them. That catches features kept in an attribute by the encoder and read by the decoder, which the graph of calls of
  neither shows. In eval mode, and in training mode with the same random state (of torch, Python and NumPy) for both;
- location, scale, z after a posterior flow, and all outputs of the decoder for one row do not move with the data or
  latents of another, in eval mode; in training mode too, but for modules that keep statistics of the batch in buffers,
  batch normalisation above all: these mix rows there on purpose, and are left in eval mode for this. `check` says that
  they do.

A traced forward has its own, stricter proof of the first (`vae2aef.tracing.proof`). A Pyro program of several sites may
score each part of x given the parts before it, so that its densities may see x: of it is proved here that they do not
move with what the guide was run on, nor with the data and latents of another row.
"""

import contextlib
from typing import Any

import torch
from torch import Tensor

from vae2aef.batch import Batch
from vae2aef.errors import WrapError
from vae2aef.modes import in_mode, modules, named_modules, own_random_states, untouched
from vae2aef.parts import VAEParts
from vae2aef.program import VAEProgram
from vae2aef.wrapping.look import Seen
from vae2aef.wrapping.reruns import Reruns, moved, other
from vae2aef.wrapping.trial import modules_of, naming, trial

ROWS, TRIES = 3, 3
MANY = 8
"""So many values are a multiple of others by no chance."""


def prove_no_leak(vae: Any, parts: VAEParts, batch: Batch, seen: Seen, raw: Tensor) -> None:
    """Prove what this module's docstring says; the VAE, its modes and random states are left as they were.

    Args:
        vae: the user's VAE.
        parts: its parts.
        batch: rows of the example, with conditions.
        seen: what a look at the example showed.
        raw: the data as they are given, `(batch, *event)`.

    Raises:
        WrapError: says what reaches what, by which attribute or module if that is known.
    """
    if any(isinstance(c, (list, tuple)) for c in (*batch.cond, *batch.kwargs.values())):
        few = batch.detach()  # which rows of a list belong to which datum is not ours to say
    else:
        few = batch.head(ROWS).detach()
    owners = modules_of(vae, parts)
    with trial(few.x.device, vae, parts), untouched(*owners), own_random_states(few.x.device, *owners) as seed:
        reruns = Reruns(parts, few, seen, owners, seed)
        try:
            reruns.decode(reruns.z, few, reruns.infer(few))
        except Exception:  # a VAE for one batch size, of which `vae2aef.wrapping.contract` has more to say
            return
        with naming("encoder or decoder fails on other data in the range of the example:"):
            if not reruns.by_itself:
                _data(reruns, "")
                _gradient(reruns)
            if reruns.pyro:
                _sites(reruns, "")
            _conditions(reruns, batch, raw[: batch.size])
            _rows(reruns, "in eval mode ")
        _in_training(reruns, owners)


def _data(reruns: Reruns, mode: str) -> None:
    """For given z, the output must not move with the data that were encoded before."""
    results, kept = [], set()
    for batch in (reruns.batch, reruns.batch._replace(x=other(reruns.batch.x))):
        with reruns.afresh():
            before = [(m, dict(m.__dict__)) for owner in reruns.owners for m in modules(owner)]
            state = reruns.infer(batch)
            kept |= {k for m, old in before for k, v in m.__dict__.items() if old.get(k, reruns) is not v}
            results.append(reruns.decode(reruns.z, reruns.batch, state))
    name = moved(*results)
    if name:
        reruns.require_repeatable(mode)
        by = f" (by what it keeps in {', '.join(f'`{k}`' for k in sorted(kept))})" if kept else ""
        raise _leak(f"{mode}for given z the decoder's {name} moves with the data that were encoded before{by}")


def _gradient(reruns: Reruns) -> None:
    """No gradient may lead from the output for given z to the data, not even one that is zero at these weights."""
    x = reruns.batch.x
    if not x.is_floating_point() or torch.is_inference_mode_enabled():
        return
    with reruns.afresh(), torch.enable_grad():
        x = x.clone().requires_grad_()
        state = reruns.infer(reruns.batch._replace(x=x.clone()))
        outputs = [t for t in reruns.decode(reruns.z, reruns.batch, state).values() if t.requires_grad]
        total = sum((t.sum() for t in outputs), x.new_zeros(()))
        if total.requires_grad and torch.autograd.grad(total, x, allow_unused=True)[0] is not None:
            raise _leak("for given z a gradient leads from the decoder's output to the data that were encoded before")


def _conditions(reruns: Reruns, batch: Batch, raw: Tensor) -> None:
    """A condition that is the data must have no effect on the decoder."""
    for i, c in enumerate(batch.cond):
        if _is_data(c, batch.x, raw):
            cond = tuple(other(c) if k == i else c for k, c in enumerate(reruns.batch.cond))
            _without_effect(reruns, f"condition {i + 1}", reruns.batch._replace(cond=cond))
    for name, c in batch.kwargs.items():
        if _is_data(c, batch.x, raw):
            kwargs = {k: other(c) if k == name else c for k, c in reruns.batch.kwargs.items()}
            _without_effect(reruns, f"the condition `{name}`", reruns.batch._replace(kwargs=kwargs))


def _is_data(c: Any, *data: Tensor) -> bool:
    """Whether a condition is the data, as given or as the VAE sees them, or scaled; one value may be a label."""
    shaped = [x for x in data if isinstance(c, Tensor) and c.numel() == x.numel() and c.shape[:1] == x.shape[:1]]
    return any(x[:1].numel() > 1 and _scaled(c.reshape(x.shape), x) for x in shaped)


def _scaled(c: Tensor, x: Tensor) -> bool:
    """Whether c is a x + b for numbers a other than 0 and b."""
    if torch.equal(c.to(x), x) or x.numel() < MANY:  # of a few values nearly all are
        return torch.equal(c.to(x), x)
    c, x = (t.double() - t.double().mean() for t in (c, x))
    slope = (c * x).sum() / x.square().sum().clamp(min=1e-300)
    return bool(slope != 0) and bool((c - slope * x).abs().max() <= 1e-6 * c.abs().max())


def _without_effect(reruns: Reruns, what: str, changed: Batch) -> None:
    batches = (reruns.batch, changed)
    results = [reruns.decode(reruns.z, b, None if reruns.by_itself else reruns.infer(b)) for b in batches]
    if moved(*results):
        raise WrapError(
            f"{what} is the data, as they are or scaled, and the decoder's output moves with it: there is no density "
            "of x given z in a decoder that is told x. ",
            "Leave it out of example=, or give in its place what is known of a datum beside z (a label)",
        )


def _sites(reruns: Reruns, mode: str) -> None:
    """Of a Pyro program, the density of the same data must not move with what the guide was run on, nor by rows."""
    batch, rows = reruns.batch, slice(0, reruns.batch.size - 1)
    x, z = _last_row_changed(reruns)
    results = [
        reruns.score(reruns.z, batch, batch),
        reruns.score(reruns.z, batch, batch._replace(x=other(batch.x))),
        reruns.score(z, batch._replace(x=x), batch._replace(x=x)),
    ]
    if moved({"density": results[0]}, {"density": results[1]}):
        raise _leak(f"{mode}for given z the model's density of x moves with the data that the guide was run on before")
    if batch.size > 1 and moved({"density": results[0][rows]}, {"density": results[2][rows]}):
        raise _mixed(f"{mode}the model's density for one row moves with another row{_mixer(reruns)}")


def _last_row_changed(reruns: Reruns) -> tuple[Tensor, dict[str, Tensor]]:
    x = torch.cat([reruns.batch.x[:-1], other(reruns.batch.x)[-1:]])
    return x, {name: torch.cat([value[:-1], 1 - value[-1:]]) for name, value in reruns.z.items()}


def _mixed(what: str) -> WrapError:
    return WrapError(
        f"{what}: the loss of a row is then no density of one x. ",
        "Normalise within a row (nn.GroupNorm, nn.LayerNorm), or with running statistics",
    )


def _rows(reruns: Reruns, mode: str, number: int = 0) -> None:
    """One row's results must not move with another row."""
    if reruns.pyro or reruns.batch.size < 2:
        return
    batch = reruns.batch
    x, z = _last_row_changed(reruns)
    reruns.number = number
    with reruns.afresh():
        state = reruns.infer(batch)
        pairs = [("decoder", reruns.decode(reruns.z, batch, state), reruns.decode(z, batch, state))]
    if not isinstance(reruns.parts, VAEProgram):
        with reruns.afresh():
            pairs.insert(0, ("encoder", reruns.encode(batch), reruns.encode(batch._replace(x=x))))
    for what, first, second in pairs:
        rows = ({k: t[:-1] for k, t in found.items() if t.shape[:1] == (batch.size,)} for found in (first, second))
        name = moved(*rows)
        if name:
            reruns.require_repeatable(mode)
            raise _mixed(f"{mode}the {what}'s {name} for one row moves with another row{_mixer(reruns)}")


def _mixer(reruns: Reruns) -> str:
    """Name the batch normalisation without running statistics, if there is one."""
    kind = torch.nn.modules.batchnorm._BatchNorm
    every = (pair for owner in reruns.owners for pair in named_modules(owner))
    name = next((n for n, m in every if isinstance(m, kind) and m.running_mean is None), None)
    return "" if name is None else f" (`{name}` has no running statistics)"


def _in_training(reruns: Reruns, owners: list[Any]) -> None:
    """The same in training mode; what fails there for another reason fails in training, with its own error."""
    with contextlib.ExitStack() as stack:
        for module in owners:
            stack.enter_context(in_mode(True, module))
        try:
            with reruns.afresh():
                keepers, draws = _keepers(reruns)
            if not reruns.by_itself:
                _data(reruns, "in training mode ")
            if reruns.pyro:
                for m in keepers:
                    m.training = False
                _sites(reruns, "in training mode ")
            for m in keepers:
                m.training = False
            for number in range(TRIES if draws else 1):  # rows may be mixed by chance
                _rows(reruns, "in training mode ", number)
        except WrapError:
            raise
        except Exception:
            return


def _keepers(reruns: Reruns) -> tuple[list[Any], bool]:
    """Return the modules that keep statistics of the batch, whose own buffers change; and whether a pass draws."""
    every = [m for owner in reruns.owners for m in modules(owner)]
    before = [{k: b.clone() for k, b in m._buffers.items() if b is not None} for m in every]
    state = reruns.infer(reruns.batch)
    draws = reruns.has_drawn()
    if hasattr(state, "push"):  # of a traced forward this is the pass, and `decode` leaves no trace in buffers
        state.push(torch.zeros_like(reruns.z["z"]))
    reruns.decode(reruns.z, reruns.batch, state)
    draws = draws or reruns.has_drawn()
    pairs = zip(every, before, strict=True)
    batch_norm = torch.nn.modules.batchnorm._BatchNorm
    keepers = [
        m for m, old in pairs
        if isinstance(m, batch_norm) or any(not torch.equal(b, getattr(m, k)) for k, b in old.items() if hasattr(m, k))
    ]  # fmt: skip
    return keepers, draws


def _leak(what: str) -> WrapError:
    return WrapError(
        f"{what}: the decoder sees the data beside z, and log p(x) would come out too high. ",
        "Take out what leads from encoder to decoder beside z (skip connections), or hand over what the decoder may "
        "know as a condition: example=(x, c)",
    )
