"""Run a new AEF once on a few rows of the example, and compare what each part returns with its contract.

Shapes that broadcast, a log-determinant left elementwise or a module that no optimizer sees cost no error later: they
train, silently, to something else.
"""

import contextlib
import itertools
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from vae2aef.aef import AEF
from vae2aef.core import Partition
from vae2aef.errors import WrapError
from vae2aef.tensors import numel
from vae2aef.tracing.cases import Case
from vae2aef.wrapping.look import Seen
from vae2aef.wrapping.trial import naming, trial


def prove(aef: AEF, y: Tensor, cond: tuple, kwargs: dict[str, Any], seen: Seen) -> None:
    """Run core, core flow, prior, residual and the whole of Algorithm 1 on a few rows; check shapes and parameters.

    The number of rows is no dimension of the data or the latent, so that nothing fits by accident.

    Args:
        aef: as `wrap` has made it.
        y: data as the VAE sees it, `(batch, *event)`.
        cond: conditions.
        kwargs: conditions by name.
        seen: what `look` has shown.

    Raises:
        WrapError: names the part that fails or returns another shape; or says that a tensor that requires gradients
            is not among `aef.parameters()`.
    """
    case = _unlike(aef, Case(y, cond, kwargs))
    rows, latent, event = case.x.shape[0], aef.latent_shape, aef.event_shape
    with trial(y.device, aef, aef.parts), torch.enable_grad():
        with _part("core", f"data of shape {tuple(case.x.shape)}"):
            core, shell = aef.core(case.x)
        _require("core", "features", core, (rows, *latent))
        # A leaf of our own: a traced VAE would make one of noise that has no gradient.
        w = core.detach().clone().requires_grad_()
        with _part("core_flow", f"core variables of shape {tuple(w.shape)}"):
            u, log_det = aef.core_flow(w)
        _require("core_flow", "u", u, (rows, *latent))
        _require("core_flow", "log|det J|", log_det, (rows,))
        zeros = y.new_zeros(rows, *latent)
        with _part("prior", f"latents of shape {tuple(zeros.shape)}"):
            density = aef._prior_log_prob(zeros, case.cond, case.kwargs)
        _require("prior", "log_prob", density, (rows,))
        delta = y.new_zeros(rows, *event)
        with _part("residual", f"residuals of shape {tuple(delta.shape)}"):
            each = aef.residual.log_prob(  # type: ignore[operator]
                delta, None if seen.scale_range is None else torch.ones_like(delta)
            )
        whole = isinstance(aef.core, Partition) or not isinstance(each, Tensor) or each.shape[:1] != (rows,)
        _require("residual", "log_prob", each, (rows, *event) if whole else each.shape)
        with naming(
            f"encoder and decoder work on {y.shape[0]} rows of the example but fail on {rows}; an AEF needs a VAE that "
            "takes any batch size. They said:"
        ):
            posterior = aef._posterior(shell, case.cond, case.kwargs)
            if posterior is not None and posterior.transform is not None:
                with _part("posterior", f"latents of shape {tuple(posterior.loc.shape)}"):
                    z, change = posterior.transform(posterior.loc)
                _require("posterior", "z", z, (rows, *latent))
                _require("posterior", "log|det|", change, (rows,))
            joint = aef._joint(shell, w, posterior, case.cond, case.kwargs)
    _require_all_parameters(aef, w, (core, *joint[:5]))


def _unlike(aef: AEF, case: Case) -> Case:
    """Take rows of the example, as many as no dimension has; detached, since conditions may have a graph."""

    def cut(value: Any) -> Any:
        return value.detach() if isinstance(value, Tensor) else value

    batch = case.x.shape[0]
    case = Case(case.x, tuple(map(cut, case.cond)), {name: cut(value) for name, value in case.kwargs.items()})
    for value in (*case.cond, *case.kwargs.values()):
        if not isinstance(value, (Tensor, str)) and hasattr(value, "__len__") and len(value) == batch:
            return case  # a list with one item a row: which rows of it are meant is not ours to say
    taken = {numel(aef.latent_shape), numel(aef.event_shape), *aef.latent_shape, *aef.event_shape}
    return case.rows(next(n for n in itertools.count(2) if n not in taken))


def _part(name: str, given: str) -> contextlib.AbstractContextManager[None]:
    return naming(f"`{name}` fails on {given}, of the example:")


CONTRACT = {
    "core": "it maps data (batch, *event) to (batch, *latent)",
    "core_flow": "forward(w) returns (u, log|det J|), the second summed over each row",
    "prior": "log_prob(z) sums over the latent: one number a row",
    "residual": "log_prob(delta, decoder_scale) returns the density of each value, not summed",
    "posterior": "Posterior.transform returns (z, log|det|), the second summed over each row",
}


def _require(name: str, what: str, value: Any, shape: Sequence[int]) -> None:
    if not isinstance(value, Tensor) or value.shape != torch.Size(shape):
        got = tuple(value.shape) if isinstance(value, Tensor) else f"an object of type {type(value).__qualname__}"
        raise WrapError(
            f"`{name}`: expected {what} of shape {tuple(shape)} for {shape[0] if shape else 0} rows, got {got}: "
            f"{CONTRACT[name]}"
        )


def _require_all_parameters(aef: AEF, own: Tensor, outputs: Sequence[Tensor]) -> None:
    """Refuse trainable tensors that the loss uses and `aef.parameters()` does not hold."""
    known = {id(p) for p in aef.parameters()} | {id(own)}
    hidden = [leaf for leaf in _leaves(outputs) if id(leaf) not in known]
    if hidden:
        shapes = ", ".join(str(tuple(leaf.shape)) for leaf in hidden[:4]) + (", ..." if len(hidden) > 4 else "")
        raise WrapError(
            f"the loss uses {len(hidden)} trainable tensors (of shapes {shapes}) that are not in aef.parameters(): no "
            "optimizer, checkpoint or .to() would see them. If they belong to modules that encoder, decoder or prior "
            "only refer to, pass vae=nn.ModuleList([...]) that holds these; requires_grad_(False) freezes them"
        )


def _leaves(outputs: Sequence[Tensor]) -> list[Tensor]:
    """Return the tensors that gradients of `outputs` accumulate in."""
    leaves = {id(t): t for t in outputs if t.requires_grad and t.grad_fn is None}
    todo: list[Any] = [t.grad_fn for t in outputs if t.grad_fn is not None]
    seen = set(todo)
    while todo:
        node = todo.pop()
        if type(node).__name__ == "AccumulateGrad":
            leaves[id(node.variable)] = node.variable
        fresh = {following for following, _ in node.next_functions if following is not None} - seen
        seen |= fresh
        todo += fresh
    return list(leaves.values())
