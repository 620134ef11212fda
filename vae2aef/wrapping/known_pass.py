"""One pass of a VAE's own forward with its noise known, and comparisons of what is made of it."""

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor

from vae2aef.batch import Batch
from vae2aef.parts import VAEParts

ROWS = 8
DRAWS = 16


class Pass(NamedTuple):
    """One pass of forward with its noise known.

    Attributes:
        u: standard noise, as forward drew it.
        latents: all that was made of it in a latent's shape, in order, `(batch, *latent)` each.
        outputs: the tensors that forward returned, with their values.
        why_not: why nothing can be compared; empty if something can.
    """

    u: Tensor
    latents: list[Tensor]
    outputs: list[Tensor]
    why_not: str = ""


def few_rows(batch: Batch) -> Batch:
    """Return a few rows of the example, repeated if there are fewer than three; all, if conditions are listed."""
    listed = any(isinstance(c, (list, tuple)) for c in (*batch.cond, *batch.kwargs.values()))
    return batch if listed else batch.head(max(3, min(ROWS, batch.size)))


def known_pass(vae: Any, batch: Batch, parts: VAEParts, u: Tensor | None = None) -> Pass:
    """Run forward with known noise."""
    from vae2aef.tracing.observe import Entry, find_awake
    from vae2aef.tracing.outputs import leaves
    from vae2aef.tracing.parts import awake
    from vae2aef.tracing.recording import Known
    from vae2aef.tracing.refusal import Refusal

    none = Pass(torch.empty(0), [], [])

    def run(names: tuple[str, ...]) -> tuple[Any, Any]:
        x = batch.x.detach().clone()
        record = Known(x, u)
        with awake(vae, names), record:
            return record, vae(x, *batch.cond, **batch.kwargs)

    try:
        record, out = run(())
        if not record.draws:
            record, out = run(find_awake(Entry(vae), batch, []))
    except Refusal as reason:
        return none._replace(why_not=str(reason).split(". ")[0])
    except Exception as error:  # it takes something else than the data, or runs elsewhere: adapters know how
        first_line = str(error).split("\n", 1)[0]
        return none._replace(why_not=f"it fails on the example with {type(error).__name__}: {first_line}")
    if len(record.draws) != 1 or not record.drew:
        return none._replace(why_not=f"it draws {len(record.draws)} times, and not once Gaussian noise")
    found = leaves(out)
    if parts.output is not None:
        try:
            found += leaves(parts.output(out))
        except Exception:  # which is of what the decoder returns, then
            pass
    made = [record.noise, *record.touched.values(), *record.values.values()]
    return Pass(record.u.detach(), [t.detach() for t in made], [value.detach() for _, _, value in found])


def is_random(vae: Any, batch: Batch, parts: VAEParts, seen: Pass) -> bool:
    """Whether forward returns something else than in a pass that was seen, of the same data and noise."""
    torch.manual_seed(1)
    pairs = zip(known_pass(vae, batch, parts, seen.u).outputs, seen.outputs, strict=False)
    return any(a.shape != b.shape or not close(a, b) for a, b in pairs)


def alike(t: Any, like: Tensor) -> bool:
    """Whether a tensor has the rows and values of another, whatever its shape."""
    return isinstance(t, Tensor) and t.numel() == like.numel() and t.shape[:1] == like.shape[:1]


def close(a: Tensor, b: Tensor) -> bool:
    """Whether two results are one up to rounding."""
    from vae2aef.tracing import probes

    return probes.close(a.to(b), b)


def of_one_order(a: Tensor, b: Tensor) -> bool:
    """Whether, of each value, the rows stand in one order in both, or in opposite ones: one is a function of the other.

    Shapes `(batch, *event)`. By chance that is so for all N values with a probability of (2 / batch!)^N.
    """
    if a.shape[0] < 3:
        return False
    a, b = a.double().flatten(1), b.double().flatten(1)
    steps = b.gather(0, a.argsort(0)).diff(dim=0)
    slack = 1e-6 * (1 + b.abs().max())
    return bool(((steps >= -slack).all(0) | (steps <= slack).all(0)).all())


def stays_so(vae: Any, batch: Batch, parts: VAEParts, place: int, decode: Callable[[Tensor], Tensor]) -> bool:
    """Whether one output of forward keeps the order of the decoder's, or its opposite, over rows of many draws.

    Of a few rows it is kept by chance where forward decodes a latent that is nearly the same.

    Args:
        vae: the user's VAE.
        batch: a few rows.
        parts: its parts.
        place: of the output in what a pass returns.
        decode: the decoder's mean, `(batch, *event)`, for the noise of a pass, as it was drawn.
    """
    values, means = [], []
    for seed in range(DRAWS):
        torch.manual_seed(seed)
        seen = known_pass(vae, batch, parts)
        means.append(decode(seen.u))
        values.append(seen.outputs[place].reshape(means[-1].shape))
    return of_one_order(torch.cat(values), torch.cat(means))
