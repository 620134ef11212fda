"""Observe a VAE at work: with its errors turned into refusals, and with those modules awake that draw."""

import contextlib
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from vae2aef.batch import Batch
from vae2aef.modes import in_mode, named_modules
from vae2aef.tracing.decide import Elsewhere, Observation, decide
from vae2aef.tracing.hidden import hidden_noise
from vae2aef.tracing.outputs import leaves
from vae2aef.tracing.parts import awake, own_values
from vae2aef.tracing.recording import Draw, Record
from vae2aef.tracing.refusal import ENTRY, PARTS, Refusal


class Entry(NamedTuple):
    """What of a VAE is run.

    Attributes:
        vae: the user's module, or one that holds the user's modules.
        output: what to make of what its forward returns; None to look for the mean of the data in it.
        forward: what to call in the place of the module.
    """

    vae: nn.Module
    output: Callable[[Any], Any] | None = None
    forward: Callable[..., Any] | None = None

    def __call__(self, x: Tensor, *cond: Any, **kwargs: Any) -> Any:
        """Run it."""
        out = self.vae(x, *cond, **kwargs) if self.forward is None else self.forward(x, *cond, **kwargs)
        return out if self.output is None else self.output(out)


@contextlib.contextmanager
def refusing(what: str, fix: str = PARTS) -> Iterator[None]:
    """Turn any error of the user's code into a refusal."""
    try:
        yield
    except Refusal:
        raise
    except Exception as error:
        first_line = str(error).split("\n", 1)[0]
        if isinstance(error, TypeError) and "missing" in first_line:
            fix = "Pass example=(x, *conditions): it takes more than data"
        if "use_reentrant" in str(error):
            fix = "Set use_reentrant=False in torch.utils.checkpoint"
        raise Refusal(f"{what} fails with {type(error).__name__}: {first_line}", fix) from error


def record_pass(
    entry: Entry, batch: Batch, names: tuple[str, ...], place: int | None = None
) -> tuple[Record, list[tuple[tuple, Any, Tensor]]]:
    """Run forward under a fresh `Record` that follows the draw at `place`; return it with all that forward returned."""
    x = batch.x.detach().clone()
    record = Record(x, place)
    with refusing(f"its pass on data of shape {tuple(x.shape)}", fix=ENTRY):
        with awake(entry.vae, names), record:
            found = leaves(entry(x, *batch.cond, **batch.kwargs))
    if not torch.equal(x, batch.x):
        raise Refusal("it changes its input in place", "Pass forward=lambda x: vae(x.clone())")
    return record, found


@contextlib.contextmanager
def rows_of_their_own(entry: Entry, batch: Batch) -> Iterator[None]:
    """Where a pass over a few rows fails and one over the whole example does not, say that these are not its data."""
    try:
        yield
    except Refusal as reason:
        if reason.__cause__ is None:
            raise
        try:
            with own_values(entry.vae), torch.no_grad():
                entry(batch.x.detach().clone(), *batch.cond, **batch.kwargs)
        except Exception:
            raise reason from reason.__cause__
        raise Refusal(
            f"it takes the {batch.size} rows of the example together, but not a few of them alone ({reason}): they are "
            "no data of their own, but nodes of one graph, or parts of something else",
            "Pass example=(x, c) with one graph a row, such as adjacency (batch, nodes, nodes) and features (batch, "
            "nodes, features), and if forward does not take them so, encoder=lambda x, c: ..., decoder=lambda z, c: "
            "... that do",
        ) from reason.__cause__


def find_awake(entry: Entry, batch: Batch, draws: list[Draw]) -> tuple[str, ...]:
    """Return the modules that must be in training mode for the noise to be drawn: none, or the first that does it."""
    vae = entry.vae
    if record_pass(entry, batch, ())[0].draws:
        return ()
    with in_mode(True, vae), own_values(vae):
        draws_in_training = record_pass(entry, batch, ())[0].draws
    if not draws_in_training:
        raise hidden_noise(vae, entry.__call__, batch)
    own = [name for name, m in named_modules(vae) if not type(m).__module__.startswith("torch.nn")]
    for name in own:
        with own_values(vae):
            awake_draws = record_pass(entry, batch, (name,))[0].draws
        if awake_draws:
            return (name,)
    draws[:] = draws_in_training
    raise Refusal("it draws in training mode only, and no single module does it alone", "Draw z in eval mode too")


def observe(entry: Entry, batch: Batch, names: tuple[str, ...], draws: list[Draw]) -> Observation:
    """Record a pass and decide which call makes z and which output is the mean of the data."""
    place = None
    for _ in range(2):
        record, found = record_pass(entry, batch, names, place)
        draws[:] = record.draws
        try:
            return decide(record, found, batch.x, entry.output is not None)
        except Elsewhere as other:
            place = other.place
    raise Refusal("its draws come in another order in every pass")
