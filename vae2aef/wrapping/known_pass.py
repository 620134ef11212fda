"""One pass of a VAE's own forward with its noise known, and comparisons of what is made of it."""

from typing import Any, NamedTuple

import torch
from torch import Tensor

from vae2aef.batch import Batch
from vae2aef.parts import VAEParts

ROWS = 8


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
    touched = [t for t in record.touched.values() if t is not None]
    made = [record.noise, *touched, *record.values.values()]
    return Pass(record.u.detach(), [t.detach() for t in made], [value.detach() for _, _, value in found])


def alike(t: Any, like: Tensor) -> bool:
    """Whether a tensor has the rows and values of another, whatever its shape."""
    return isinstance(t, Tensor) and t.numel() == like.numel() and t.shape[:1] == like.shape[:1]


def close(a: Tensor, b: Tensor) -> bool:
    """Whether two results are one up to rounding."""
    from vae2aef.tracing import other_data

    return other_data.close(a.to(b), b)


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
