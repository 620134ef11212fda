"""`check`: everything about a VAE that matters before it is trained as an AEF, all at once."""

import contextlib
import inspect
import warnings
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from vae2aef.aef import AEF
from vae2aef.diagnostics import measurements
from vae2aef.diagnostics.findings import Finding, Report
from vae2aef.errors import Remedied, WrapWarning
from vae2aef.modes import named_modules, named_parameters, own_random_state, parameters, untouched
from vae2aef.registry import unwrap
from vae2aef.wrapping import wrap

DESCRIBE = (
    'vae2aef.wrap(vae, example=x, encoder=lambda x: (loc, log_var), decoder=lambda z: mean, encoder_scale="log_var")'
)
SHOWN = 6
"""How many dotted names are listed before "and more"."""

RANDOM = ("Dropout", "AlphaDropout", "FeatureAlphaDropout", "RReLU", "DropPath", "StochasticDepth")


def check(vae: Any, *, example: Any = None, **options: Any) -> Report:
    """Report all that matters before training, without wrapping: nothing of the VAE is changed.

    It looks at the module (batch normalisation, dropout, frozen and non-finite parameters), the example (type, range,
    grey levels), what each output means and how that was decided, the ranges of data and decoder, the posterior's
    scale, the aggregate posterior against the prior, and what would be added.

    Args:
        vae: as for `vae2aef.wrap`.
        example: as for `vae2aef.wrap`; the more rows (up to 128 are used), the more can be said.
        **options: all other options of `vae2aef.wrap`, to check the VAE as it would be wrapped.

    Returns:
        A report; `report.ok` says whether there is no error, `print(report)` shows all, worst first.

    Raises:
        TypeError: for an option that `wrap` does not have. A bad VAE raises nothing: it is in the report.
    """
    inspect.signature(wrap).bind(vae, example=example, **options)
    vae = unwrap(vae)
    found: list[Finding] = []
    x = example[0] if isinstance(example, (tuple, list)) and example else example
    module = vae if isinstance(vae, nn.Module) else nn.Module()
    for look in (_modules, _parameters, _devices):
        _collect(found, look, module, x)
    if isinstance(x, Tensor):
        _collect(found, _example, x)
    if isinstance(vae, AEF):
        found.append(Finding("error", "vae", "this is an AEF already", "vae2aef.check(aef.vae, example=x)"))
    elif not any(f.severity == "error" and f.place == "device" for f in found):
        with contextlib.ExitStack() as stack:
            for m in _owners(vae, options):
                stack.enter_context(untouched(m))
            stack.enter_context(own_random_state(x.device if isinstance(x, Tensor) else torch.device("cpu")))
            _collect(found, _wrapped, vae, example, options)
    return Report(type(vae).__name__, _without_false_alarms(found))


def _without_false_alarms(found: list[Finding]) -> list[Finding]:
    """Leave out that values are few, or large, where x is discrete: so they should be."""
    if not any(f.topic == "discrete data" for f in found):
        return found
    return [f for f in found if f.place != "example" or f.severity != "warning"]


def _collect(found: list[Finding], look: Callable[..., Iterator[Finding]], *args: Any) -> None:
    """Add what `look` finds; if it fails, say so rather than raise."""
    try:
        for finding in look(*args):
            found.append(finding)
    except Exception as error:
        name = look.__name__.strip("_").replace("_", " ")
        found.append(Finding("warning", name, f"could not be looked at: {type(error).__name__}: {error}"))


def _owners(vae: Any, options: dict[str, Any]) -> list[nn.Module]:
    parts = [vae, *(options.get(name) for name in ("encoder", "decoder"))]
    owners = [p if isinstance(p, nn.Module) else getattr(p, "__self__", None) for p in parts]
    return [m for m in owners if isinstance(m, nn.Module)]


def _modules(vae: nn.Module, x: Any) -> Iterator[Finding]:
    """Modules that make a row's density depend on chance or on other rows."""
    names: dict[str, list[str]] = {"coupling": [], "random": []}
    for name, m in named_modules(vae):
        kind = type(m).__name__
        if isinstance(m, nn.modules.batchnorm._BatchNorm):
            names["coupling"].append(name)
        elif kind.rstrip("123d") in RANDOM and getattr(m, "p", getattr(m, "drop_prob", 1)) != 0:
            names["random"].append(name)
    if names["coupling"]:
        yield Finding(
            "warning", _listed(names["coupling"]),
            "batch normalisation: in training mode the loss of a row depends on the other rows, so that it is no "
            "density of one x, and it differs from the one in eval mode",
            "report numbers in aef.eval() (log_prob does that itself); or train with nn.GroupNorm",
        )  # fmt: skip
    if names["random"]:
        yield Finding(
            "warning", _listed(names["random"]),
            "dropout: in training mode the map is random, and its log-determinant is that of one draw",
            "set p = 0 in the encoder at least: the noise sigma (0.3 by default) does its work with the right bound",
        )  # fmt: skip


def _parameters(vae: nn.Module, x: Any) -> Iterator[Finding]:
    """Parameters that are not finite, frozen, or of too few digits."""
    named = list(named_parameters(vae))
    bad = [name for name, p in named if not bool(p.isfinite().all())]
    if bad:
        yield Finding("error", _listed(bad), "holds NaN or infinite values", "load a sound checkpoint")
    frozen = [name for name, p in named if not p.requires_grad]
    if frozen:
        everything = len(frozen) == len(named)
        yield Finding(
            "warning" if everything else "note", _listed(frozen),
            ("all parameters are" if everything else f"{len(frozen)} of {len(named)} parameters are")
            + " frozen, and stay so: only what an AEF adds trains with them",
            "vae.requires_grad_(True), if that is not meant" if everything else "",
        )  # fmt: skip
    half = [name for name, p in named if p.dtype in (torch.float16, torch.bfloat16)]
    if half:
        yield Finding(
            "warning", _listed(half), "half precision parameters: scales below 6e-8 become zero (float16), and steps "
            "of the optimizer are lost", "vae.float(), and train under torch.autocast",
        )  # fmt: skip


def _devices(vae: nn.Module, x: Any) -> Iterator[Finding]:
    places = {p.device for p in parameters(vae)}
    if isinstance(x, Tensor) and places and places != {x.device}:
        yield Finding(
            "error", "device", f"the example is on {x.device}, the VAE on {', '.join(map(str, places))}",
            "vae.to(x.device)",
        )  # fmt: skip


def _example(x: Tensor) -> Iterator[Finding]:
    """What the data look like, as given."""
    if not x.numel():
        return
    if not x.is_floating_point():
        yield Finding("note", "example", f"{x.dtype} from {x.min().item()} to {x.max().item()}")
        return
    if not bool(x.isfinite().all()):
        yield Finding("error", "example", "holds NaN or infinite values", "remove these rows")
        return
    low, high = x.min().item(), x.max().item()
    yield Finding("note", "example", f"{x.shape[0]} rows of shape {tuple(x.shape[1:])}, from {low:.4g} to {high:.4g}")
    levels = x.unique().numel()
    if levels <= 257 and x.numel() >= 4 * levels and x.numel() >= 256:
        yield Finding(
            "warning", "example",
            f"its {x.numel()} values take only {levels} different ones: a density of continuous data can grow without "
            "bound on them",
            "pass the integers, and preprocess=[\"dequantize\", ...]; or x = vae2aef.dequantize(x, bins); or say by "
            "likelihood= what they are (bits, counts, grey levels)",
            topic="few values",
        )  # fmt: skip
    if high > 2 and low >= 0:
        yield Finding(
            "warning", "example", f"values up to {high:.4g}: grey levels? bits_per_dim counts from data in [0, 1]",
            "x = vae2aef.dequantize(x, bins=256)",
        )  # fmt: skip


class _Wrapping(NamedTuple):
    aef: AEF | None
    error: Exception | None
    warned: list[WrapWarning]


def _try(vae: Any, example: Any, options: dict[str, Any]) -> _Wrapping:
    aef, failed = None, None
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always", WrapWarning)
        try:
            aef = wrap(vae, example=example, **options)
        except Exception as error:  # the user's code may fail in any way
            failed = error
    for other in caught:
        if not isinstance(other.message, WrapWarning):
            warnings.warn_explicit(other.message, other.category, other.filename, other.lineno)
    return _Wrapping(aef, failed, [one.message for one in caught if isinstance(one.message, WrapWarning)])


def _wrapped(vae: Any, example: Any, options: dict[str, Any]) -> Iterator[Finding]:
    """Everything that needs the parts."""
    aef, error, warned = _try(vae, example, options)
    for one in warned:
        yield Finding("warning", "vae", one.reason, one.fix)
    if aef is None:
        reason, fix = f"{type(error).__name__}: {error}", DESCRIBE
        if isinstance(error, Remedied):
            reason, fix = error.reason, error.fix or DESCRIBE
        elif isinstance(error, (ValueError, TypeError)):
            reason = str(error)
        yield Finding("error", "vae", f"it cannot be wrapped: {reason}", fix)
        return
    for line in aef.parts.taken:
        place, _, what = line.partition(": ")
        yield Finding("note", place, what)
    for line in aef.parts.assumed:
        yield Finding("note", "assumed", line)
    if aef.discrete:
        kind = "its own" if aef.likelihood is None else type(aef.likelihood).__name__
        yield Finding("note", "likelihood", f"{kind}: x is discrete, and scored as it is", topic="discrete data")
    yield Finding(
        "note", "added", ", ".join(f"{name} {count:,}" for name, count in aef.added.items()) + " parameters",
        "optimizer.add_param_group({\"params\": list(aef.added_parameters())}), or an optimizer of aef.parameters()",
    )  # fmt: skip
    for look in measurements.ALL:
        found: list[Finding] = []
        _collect(found, look, aef, example)
        yield from found


def _listed(names: list[str]) -> str:
    more = f" and {len(names) - SHOWN} more" if len(names) > SHOWN else ""
    return ", ".join(name or "the module itself" for name in names[:SHOWN]) + more
