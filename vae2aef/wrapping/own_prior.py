"""Warn of a prior that a VAE seems to have of its own, where nobody has said so and the standard normal is taken."""

import contextlib
import re
import warnings
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributions import Distribution
from torch.overrides import TorchFunctionMode

from vae2aef.batch import Batch
from vae2aef.errors import WrapWarning
from vae2aef.modes import named_buffers, named_modules, named_parameters, untouched
from vae2aef.parts import VAEParts
from vae2aef.priors import StandardNormal
from vae2aef.wrapping.look import Seen
from vae2aef.wrapping.own_loss import looks_like_scale
from vae2aef.wrapping.prior_in_forward import plain, returned
from vae2aef.wrapping.stray import says_types, stray
from vae2aef.wrapping.trial import trial

NAMES = (
    "log_p_z", "log_pz", "log_prob_z", "log_prior", "prior_log_prob", "log_prob_prior", "prior", "prior_z", "p_z", "pz",
)  # fmt: skip
"""What a density of z is called."""

PSEUDO = ("pseudo", "idle_input", "vamp")
"""What names of pseudo-inputs hold: data whose posteriors are the prior (Tomczak and Welling 2018, VampPrior)."""

ELSEWHERE = ("discriminator", "critic", "adversary", "classifier", "encoder", "decoder", "loss", "perceptual", "lpips",
             "teacher", "ema")  # fmt: skip
"""What parts of a VAE's training are called that are plainly no prior."""

ROWS, SHOWN = 5, 3


def warn_of_prior(vae: Any, parts: VAEParts, batch: Batch, seen: Seen, whole: bool) -> None:
    """Warn if a VAE has a density of z that is not the standard normal, pseudo-inputs, or parameters without effect.

    Args:
        vae: the user's VAE.
        parts: its parts. If an adapter knows the class, or brings a prior, there is nothing to warn of.
        batch: rows of the example, with conditions.
        seen: what a look at the example showed.
        whole: whether all of the parts are the VAE's own: what is not used of one that was replaced says nothing.

    Warns:
        WrapWarning: ends in the line that takes the prior.
    """
    if parts.known or parts.prior is not None or not isinstance(vae, nn.Module):
        return
    line = _method(vae, batch, seen)
    if line:
        reason = f"{type(vae).__name__} has a prior of its own, and the standard normal is taken: "
    else:
        reason, line = (
            _sign(vae, parts, batch, seen, whole),
            "prior=lambda z: log_p(z), with its log p(z) of shape (batch,)"
            ", or prior=torch.distributions.Normal(0.0, 1.0) if they are of something else",
        )
    if reason:
        warnings.warn(WrapWarning(reason, f"Pass {line}"), stacklevel=4)


def _method(vae: nn.Module, batch: Batch, seen: Seen) -> str:
    """Return the option that takes the VAE's own density of z; empty if it has none, or the standard normal."""
    shape = seen.latents["z"]
    like = batch.x if batch.x.is_floating_point() else torch.empty(0)
    with trial(batch.x.device, vae), untouched(vae):
        torch.manual_seed(0)
        z = torch.randn(ROWS, *shape, dtype=like.dtype, device=batch.x.device)
        standard = StandardNormal(shape).log_prob(z)
        for name in NAMES:
            for line, call, density in _densities(getattr(vae, name, None), f"vae.{name}"):
                with contextlib.suppress(Exception):  # it wants something else, and is no density of z
                    try:
                        value = density(z)
                    except RuntimeError as error:  # it is one, that reads a tensor which .double() has left behind
                        if says_types(error) and stray(vae) is not None and line == f"vae.{name}":
                            return f"prior={line}"
                        raise
                    if value.shape == z.shape and z.dim() > 1:
                        value, line = value.flatten(1).sum(1), f"lambda z: {call}.flatten(1).sum(1)"
                    if value.shape != (ROWS,):
                        continue
                    more = value - standard  # the same all over: the standard normal, with its constant left out
                    same = torch.allclose(more, more.mean().expand_as(more), rtol=1e-3, atol=1e-4)
                    return "" if same else f"prior={line}"
    return ""


def _densities(found: Any, name: str) -> Iterator[tuple[str, str, Callable[[Tensor], Tensor]]]:
    """Yield the ways in which something may be a density of z: written as a function, as a call, and itself."""
    if isinstance(found, Distribution) or (callable(getattr(found, "log_prob", None)) and hasattr(found, "sample")):
        ways: list[tuple[str, Callable[[Tensor], Tensor]]] = [(f"{name}.log_prob(z)", found.log_prob)]
    elif callable(found):
        ways = [(f"{name}(z)", found), (f"{name}().log_prob(z)", lambda z: found().log_prob(z))]
    else:
        return
    for call, density in ways:
        bare = density is found and not isinstance(found, nn.Module)
        yield (name if bare else f"lambda z: {call}"), call, density


def _sign(vae: nn.Module, parts: VAEParts, batch: Batch, seen: Seen, whole: bool) -> str:
    """Say what speaks for a prior of which no method is found; empty if nothing does."""
    names = [name for name, _ in named_modules(vae)] + [name for name, _ in named_parameters(vae)] + list(vars(vae))
    pseudo = next((n for n in names if any(sign in n.lower() for sign in PSEUDO)), None)
    if pseudo is not None:
        return (
            f"`{pseudo}` seems to be of pseudo-inputs, whose posteriors are the prior; the standard normal is taken: "
        )
    path, in_a_loss = returned(vae, parts, batch, seen)
    place = _prior_tensor(vae, seen) or path or _made(vae, seen, batch.x.device)
    if place:
        return f"{place} seems to be of a prior of {type(vae).__name__}'s own; the standard normal is taken: "
    left = _unused(vae, parts, batch, seen) if whole else []
    if left:
        return _are_not_seen(vae, left, "have no part in its outputs")
    left = _of_latents(vae, in_a_loss, batch, seen) if whole else []
    return _are_not_seen(vae, left, "have a part in its loss alone") if left else ""


def _prior_tensor(vae: nn.Module, seen: Seen) -> str:
    """Return the name of a tensor that is called a prior's, and is not what it is of the standard normal."""
    held = [(name, t) for name, t in (*named_buffers(vae), *vars(vae).items()) if isinstance(t, Tensor)]
    tensors = [(name, t) for name, t in held if any(n in t.shape for n in seen.latents["z"])]
    return next((f"`{name}`" for name, t in tensors if "prior" in name.lower() and not plain(t, name)), "")


def _made(vae: nn.Module, seen: Seen, device: torch.device) -> str:
    """Return the method, called as a prior, whose parameters are of another density of z than the standard normal."""
    with trial(device, vae), untouched(vae):
        for name in NAMES:
            with contextlib.suppress(Exception):  # it takes something, and is none
                made, again = getattr(vae, name)(), getattr(vae, name)()
                if not isinstance(made, (tuple, list)) or not all(map(torch.equal, made, again)):
                    continue  # one tensor says nothing, and what differs is a draw
                first, *others = [t for t in made if t.shape[t.dim() - len(seen.latents["z"]) :] == seen.latents["z"]]
                if not plain(first, "loc") or not all(plain(t, name) for t in others):
                    return f"`{name}()`"
    return ""


def _of_latents(vae: nn.Module, names: list[str], batch: Batch, seen: Seen) -> list[str]:
    """Keep parameters that may be of a density of z; none if no one has a dimension of z, such as a scale of x."""
    left = [name for name in names if not _plainly_no_prior(vae, name, set(names), batch.x, None)]
    shapes = [p.shape for name, p in named_parameters(vae) if name in left]
    return left if any(n in shape for shape in shapes for n in seen.latents["z"]) else []


def _are_not_seen(vae: nn.Module, names: list[str], what: str) -> str:
    listed = ", ".join(f"`{name}`" for name in names[:SHOWN]) + (", ..." if len(names) > SHOWN else "")
    return (
        f"{len(names)} trainable parameters of {type(vae).__name__} ({listed}) {what}. "
        "If they are of its prior, that is not seen, and the standard normal is taken: "
    )


def _unused(vae: nn.Module, parts: VAEParts, batch: Batch, seen: Seen) -> list[str]:
    """Return the names of trained parameters that no output uses, but for those that are plainly of no prior."""
    used = _Used()
    with trial(batch.x.device, vae, parts), untouched(vae):
        with used:
            z = parts.encode(batch.x, *batch.cond, **batch.kwargs).push(
                torch.zeros(batch.size, *seen.latents["z"]).to(batch.x)
            )
            parts.decode(z[0], *batch.cond, **batch.kwargs)
            with contextlib.suppress(Exception):  # a forward that takes something else shows nothing
                vae(batch.x, *batch.cond, **batch.kwargs)
        left = {name for name, p in named_parameters(vae) if p.requires_grad and id(p) not in used.ids}
        return [name for name, _ in named_parameters(vae) if name in left
                and not _plainly_no_prior(vae, name, left, batch.x, z[0])]  # fmt: skip


def _plainly_no_prior(vae: nn.Module, name: str, unused: set[str], x: Tensor, z: Tensor | None) -> bool:
    """Whether a parameter is of a part that is called otherwise, or is run on data and cannot be run on latents."""
    path = name.lower().split(".")
    if any("prior" in step for step in path):
        return False
    if looks_like_scale(name, dict(named_parameters(vae))[name], x.shape[1:]):  # of the data: `own_loss` speaks of it
        return True
    words = [word for step in path for word in re.split(r"[_\d]+", step)]  # short signs are whole words
    if any(sign in words or (len(sign) > 4 and any(sign in step for step in path)) for sign in ELSEWHERE):
        return True
    outer = _outermost(vae, name, unused)
    return outer is not None and _takes(outer, x) and (z is None or not _takes(outer, z))


def _outermost(vae: nn.Module, name: str, unused: set[str]) -> nn.Module | None:
    """Return the outermost submodule around a parameter of which no parameter has a part in the outputs."""
    names, steps = [n for n, _ in named_parameters(vae)], name.split(".")[:-1]
    for end in range(1, len(steps) + 1):
        within = ".".join(steps[:end])
        if all(n in unused for n in names if n.startswith(within + ".")):
            return dict(named_modules(vae))[within]
    return None


def _takes(module: nn.Module, value: Tensor) -> bool:
    with contextlib.suppress(Exception):
        module(value)
        return True
    return False


class _Used(TorchFunctionMode):
    """See which tensors are used; their ids stay theirs only while they are kept alive, as parameters are."""

    def __init__(self) -> None:
        super().__init__()
        self.ids: set[int] = set()

    def __torch_function__(self, func: Any, types: Any, args: tuple = (), kwargs: dict | None = None) -> Any:
        """Note what one call takes."""
        from vae2aef.tracing.calls import tensors

        self.ids |= {id(t) for t in tensors((args, kwargs or {}))}
        return func(*args, **(kwargs or {}))
