"""Run a new AEF once on a few rows of the example, and compare what each part returns with its contract.

Shapes that broadcast, a log-determinant left elementwise or a module that no optimizer sees cost no error later: they
train, silently, to something else.
"""

import contextlib
import itertools
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from vae2aef.aef import AEF
from vae2aef.batch import Batch
from vae2aef.errors import WrapError
from vae2aef.likelihood import Likelihood
from vae2aef.program import VAEProgram
from vae2aef.tensors import numel
from vae2aef.wrapping.look import Seen
from vae2aef.wrapping.trial import modules_of, naming, trial


def prove(aef: AEF, batch: Batch, seen: Seen) -> None:
    """Run core, core flow, prior, residual and the whole of Algorithm 1 on a few rows; check shapes and parameters.

    The number of rows is no dimension of the data or the latent, so that nothing fits by accident.

    Args:
        aef: as `wrap` has made it.
        batch: data as the VAE sees it, `(batch, *event)`, with conditions.
        seen: what `look` has shown.

    Raises:
        WrapError: names the part that fails or returns another shape; or says that a tensor that requires gradients
            is not among `aef.parameters()`.
    """
    few = _unlike(aef, batch, seen)
    with trial(batch.x.device, aef, aef.parts), torch.enable_grad():
        features, leaves, shell = _prove_sites(aef, few, seen)
        _prove_densities(aef, few, seen)
        with naming(
            f"encoder and decoder work on {batch.size} rows of the example but fail on {few.size}; an AEF needs a VAE "
            "that takes any batch size. They said:"
        ):
            if not isinstance(aef.parts, VAEProgram):
                _prove_transform(aef, few._replace(x=shell), seen)
            joint = aef.chain(few._replace(x=shell), leaves)
        if aef.partition is not None and aef.likelihood is None:
            _require("own", "log_prob", aef.observed(joint.decoded, few.size).log_prob(shell), shell.shape)
        for what, value in (("prior", joint.prior), ("residual", joint.residual), ("log|det J|", joint.log_det)):
            _require("whole", what, value, (few.size,))
    mean = [joint.decoded.mean] if isinstance(joint.decoded.mean, Tensor) else []
    outputs = [*features, joint.prior, joint.residual, joint.log_det, *joint.z.values(), *mean]
    _require_all_parameters(aef, list(leaves.values()), outputs)


def _prove_sites(aef: AEF, few: Batch, seen: Seen) -> tuple[list[Tensor], dict[str, Tensor], Tensor]:
    """Run core and core flow of each latent; return the features, leaves in their place, and the shell."""
    features, leaves = [], {}
    shell = few.x
    for name, latent in seen.latents.items():
        site, of = aef.site(name), "" if name == "z" else f" of {name}"
        with _part(f"core{of}", f"data of shape {tuple(few.x.shape)}"):
            core, shell = site.core(few.x)
        _require("core", "features", core, (few.size, *latent), of)
        features.append(core)
        # A leaf of our own: a traced VAE would make one of noise that has no gradient.
        leaves[name] = core.detach().clone().requires_grad_()
        with _part(f"core_flow{of}", f"core variables of shape {tuple(core.shape)}"):
            u, log_det = site.flow(leaves[name])
        _require("core_flow", "u", u, (few.size, *latent), of)
        _require("core_flow", "log|det J|", log_det, (few.size,), of)
    return features, leaves, shell


def _prove_densities(aef: AEF, few: Batch, seen: Seen) -> None:
    """Run a prior and a residual that stand for the VAE's own."""
    rows, event = few.size, aef.event_shape
    for name, prior in aef.priors(few).items():
        zeros = few.x.new_zeros(rows, *seen.latents[name])
        with _part("prior", f"latents of shape {tuple(zeros.shape)}"):
            density = prior.log_prob(zeros)
        _require("prior", "log_prob", density, (rows,))
    if aef.likelihood is None or isinstance(aef.likelihood, Likelihood):
        return
    delta = few.x.new_zeros(rows, *event)
    with _part("residual", f"residuals of shape {tuple(delta.shape)}"):
        each = aef.likelihood.log_prob(delta, None if seen.scale_range is None else torch.ones_like(delta))
    whole = aef.partition is not None or not isinstance(each, Tensor) or each.shape[:1] != (rows,)
    _require("residual", "log_prob", each, (rows, *event) if whole else each.shape)


def _prove_transform(aef: AEF, few: Batch, seen: Seen) -> None:
    """Run the posterior flow of a VAE with one latent; without one the posterior must be loc + scale * u."""
    posterior = aef.parts.encode(few.x, *few.cond, **few.kwargs)
    if posterior.transform is None:
        u = torch.ones_like(posterior.loc)
        if posterior.standard is None and not torch.allclose(posterior.push(u)[0], posterior.loc + posterior.scale * u):
            raise WrapError(
                "the posterior's push(u) is another z than loc + scale * u, and it has no transform; ",
                "return what follows the affine map as its transform",
            )
        return
    with _part("posterior", f"latents of shape {tuple(posterior.loc.shape)}"):
        z, change = posterior.transform(posterior.loc)
    _require("posterior", "z", z, (few.size, *seen.latents["z"]))
    _require("posterior", "log|det|", change, (few.size,))


def _unlike(aef: AEF, batch: Batch, seen: Seen) -> Batch:
    """Take rows of the example, as many as no dimension has; detached, since conditions may have a graph."""
    batch = batch.detach()
    for value in (*batch.cond, *batch.kwargs.values()):
        plain = isinstance(value, (Tensor, str, dict)) or not hasattr(value, "__len__")
        if not plain and not any(isinstance(item, Tensor) for item in value) and len(value) == batch.size:
            return batch  # a list with one item a row: which rows of it are meant is not ours to say
    taken = {numel(aef.event_shape), *aef.event_shape}
    for latent in seen.latents.values():
        taken |= {numel(latent), *latent}
    return batch.head(next(n for n in itertools.count(2) if n not in taken))


def _part(name: str, given: str) -> contextlib.AbstractContextManager[None]:
    return naming(f"`{name}` fails on {given}, of the example:")


CONTRACT = {
    "core": "it maps data (batch, *event) to (batch, *latent)",
    "core_flow": "forward(w) returns (u, log|det J|), the second summed over each row",
    "prior": "log_prob(z) sums over the latent: one number a row",
    "own": "a core that is part of the data needs the density of each value of x by itself",
    "residual": "log_prob(delta, decoder_scale) returns the density of each value, not summed",
    "whole": "every term of the loss is one number a row",
    "posterior": "Posterior.transform returns (z, log|det|), the second summed over each row",
}


def _require(name: str, what: str, value: Any, shape: Sequence[int], of: str = "") -> None:
    if not isinstance(value, Tensor) or value.shape != torch.Size(shape):
        got = tuple(value.shape) if isinstance(value, Tensor) else f"an object of type {type(value).__qualname__}"
        raise WrapError(
            f"`{name}{of}`: expected {what} of shape {tuple(shape)} for {shape[0] if shape else 0} rows, got {got}: "
            f"{CONTRACT[name]}"
        )


def _require_all_parameters(aef: AEF, own: Sequence[Tensor], outputs: Sequence[Tensor]) -> None:
    """Refuse trainable tensors that the loss uses and `aef.parameters()` does not hold."""
    known = {id(p) for p in aef.parameters()} | set(map(id, own))
    hidden = [leaf for leaf in leaves_of(outputs) if id(leaf) not in known]
    if hidden:
        shapes = ", ".join(str(tuple(leaf.shape)) for leaf in hidden[:4]) + (", ..." if len(hidden) > 4 else "")
        said, fix = _whose(aef, hidden)
        raise WrapError(
            f"the loss uses {len(hidden)} trainable tensors (of shapes {shapes}) that are not in aef.parameters(): no "
            f"optimizer, checkpoint or .to() would see them. {said} ",
            fix,
        )


def _whose(aef: AEF, hidden: Sequence[Tensor]) -> tuple[str, str]:
    """Say what hidden tensors belong to, and what to do: modules and loose tensors go into containers of their kind."""
    found = modules_of(aef.parts, aef.prior, aef.likelihood, *(site.core for site in aef.by_latent().values()))
    owned = {id(p) for module in found for p in module.parameters()}
    if all(id(leaf) in owned for leaf in hidden):
        return "They belong to modules that encoder, decoder or prior only refer to:", (
            "pass vae=nn.ModuleList([...]) that holds these; with Pyro, register them by pyro.module"
        )
    return "They are loose tensors, which belong to no module:", (
        "make each an nn.Parameter, and hold them by vae.extra = nn.ParameterList([...])"
        if isinstance(aef.vae, nn.Module)
        else "pass vae=nn.ParameterList([...]) that holds these, each an nn.Parameter"
    )


def leaves_of(outputs: Sequence[Tensor]) -> list[Tensor]:
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
