"""`wrap`: find the parts of a VAE, check them on an example, add what an AEF needs."""

import inspect
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from vae2aef.aef import AEF
from vae2aef.contract import prove
from vae2aef.core import Expansion, LinearFeatures, NoFeatures, Partition, partition_mask
from vae2aef.errors import WrapError
from vae2aef.find import find_parts
from vae2aef.flows import Bijection, FlowPrior, StandardNormal, build_flow
from vae2aef.interop import as_prior
from vae2aef.marginal import own_random_state
from vae2aef.optimizers import watch
from vae2aef.parts import VAEParts, describe
from vae2aef.preprocess import build_preprocess, require_continuous
from vae2aef.probe import Seen, look, require_decoder_scale, require_integers
from vae2aef.registry import unwrap
from vae2aef.residual import build_residual
from vae2aef.summary import summarise
from vae2aef.tensors import at_least_float32, numel

PROBE_ROWS = 128


def wrap(
    vae: Any,
    *,
    example: Any = None,
    encoder: Callable[..., Any] | None = None,
    decoder: Callable[..., Any] | None = None,
    encoder_scale: str | None = None,
    core: "str | nn.Module | Tensor" = "linear",
    core_flow: Any = "coupling",
    prior: Any = None,
    residual: "str | float | nn.Module" = "learned",
    preprocess: Any = None,
    noise: float = 0.0,
) -> AEF:
    """Wrap a VAE as an AutoEncoder within Flows. The VAE is used as it is: nothing in it is changed or copied.

    Args:
        vae: the VAE. Its class is known to an adapter, or it has `encoder` and `decoder` (or `encode` and
            `decode`), or the two are given; None if `encoder` and `decoder` are all there is, an `nn.ModuleList`
            of the networks if these are functions. Of a compiled or DDP module the inner one is taken.
        example: a batch of data, `(batch, *event)`, to read shapes from and to check the parts on; a tuple
            `(x, *conditions)`, whose last item may be a dict of conditions by name, for a conditional VAE.
        encoder: callable `x -> (location, scale)`, if the VAE's own is not to be used.
        decoder: callable `z -> mean` or `z -> (mean, scale)`, likewise.
        encoder_scale: what the encoder's second output is: `"std"`, `"log_std"`, `"var"` or `"log_var"`.
        core: `"linear"` (h(x) = W x + b), a module (your own h, data to latent shape), `"noise"` (the VAE
            itself: the loss is its negative ELBO), or, for the partition family, `"center"`, `"corner"`,
            `"random"` or a boolean mask of the event's shape.
        core_flow: n^-1: `"none"`, `"coupling"`, `"maf"`, a `vae2aef.Bijection`, or a transform of torch, Pyro, zuko or
            nflows, applied in its own forward direction.
        prior: None for the VAE's own, `"coupling"`, `"maf"`, a module with `log_prob` and `sample`, a
            `torch.distributions` object, or a transform or flow of Pyro, zuko or nflows.
        residual: `"learned"`, `"shared"`, `"decoder"`, a number, `"laplace"`, `"student_t"`, or a module; see
            `vae2aef.Residual`.
        preprocess: None, `"dequantize"`, `"logit"`, `"standardize"`, a `vae2aef.Bijection`, or a list of these.
        noise: sigma of Eq. 11; 0 is the paper's loss, more makes the loss a bound on -log p(x).

    Returns:
        A module whose forward is the loss.

    Raises:
        WrapError: if the VAE's parts are not found or do not fit together, or if a part, run on rows of the example,
            fails, returns another shape than it should, or uses trainable tensors that no optimizer would see; it is
            a `ValueError`.
        TypeError: if `vae` is an AEF already, an option is of the wrong type, or the example holds integers that no
            preprocessing dequantises.
        ValueError: for an unknown option.

    Example:
        >>> _ = torch.manual_seed(0)
        >>> encoder, decoder = nn.Linear(6, 4), nn.Linear(2, 6)
        >>> x = torch.rand(8, 6)
        >>> aef = wrap(
        ...     nn.ModuleList([encoder, decoder]),
        ...     example=x,
        ...     encoder=lambda x: encoder(x).chunk(2, dim=1),
        ...     decoder=decoder,
        ...     encoder_scale="log_var",
        ... )
        >>> loss = aef(x)
        >>> loss.backward()
        >>> aef.sample(3).shape
        torch.Size([3, 6])
    """
    vae = unwrap(vae)
    if isinstance(vae, AEF) or isinstance(getattr(vae, "aef", None), AEF):
        raise TypeError("this is an AEF already; to wrap its VAE anew, pass aef.vae")
    x, cond, kwargs = _example(example)
    noise, core = _number(noise), _tensor(core)
    given = {"encoder": encoder, "decoder": decoder, "encoder_scale": encoder_scale}
    bijection = build_preprocess(preprocess, x)
    require_integers(bijection, x)
    y, cond, kwargs = _rows(x, cond, kwargs, bijection)
    parts = find_parts(vae, y, cond, kwargs, given)
    seen = look(vae, parts, y, cond, kwargs)
    event, latent = seen.event_shape, seen.latent_shape
    the_residual = build_residual(residual, event, seen.spread)
    require_decoder_scale(the_residual, seen)
    the_prior, takes_conditions = _prior(prior, parts, latent, kwargs)
    aef = AEF(
        vae,
        parts,
        core=_core(core, seen, noise),
        core_flow=_flow(core_flow, latent),
        prior=the_prior,
        residual=the_residual,
        preprocess=bijection,
        event_shape=event,
        outside=_outside(vae, parts),
        prior_takes_conditions=takes_conditions,
        summary=summarise(vae, parts, seen, core, core_flow, prior, the_prior, the_residual, residual, preprocess),
    )
    made = {"core": core, "core_flow": core_flow, "prior": prior, "residual": residual}
    for name, option in made.items():
        part = getattr(aef, name)
        # What the user made keeps its dtype; what was made here takes that of the data, for a VAE in float64.
        if (option is None or isinstance(option, (str, float, int, Tensor))) and part is not parts.prior:
            part.to(y.dtype)
    aef = aef.to(x.device)
    prove(aef, y, cond, kwargs, seen)
    watch(aef)  # warns if an optimizer leaves out what was added
    return aef


def _example(example: Any) -> tuple[Tensor, tuple, dict[str, Any]]:
    if isinstance(example, Tensor):
        return example, (), {}
    if isinstance(example, (tuple, list)) and example and isinstance(example[0], Tensor):
        x, *cond = example
        kwargs = cond.pop() if cond and isinstance(cond[-1], dict) else {}
        return x, tuple(cond), kwargs
    raise WrapError(
        "expected example=x, a batch of data of shape (batch, *event), or (x, *conditions): shapes are read from it "
        f"and the parts are checked on it; got {'nothing' if example is None else describe(example)}"
    )


def _rows(x: Tensor, cond: tuple, kwargs: dict, preprocess: Bijection) -> tuple[Tensor, tuple, dict]:
    """Return the first rows of the example as the VAE will see them, preprocessed, with their conditions."""
    if x.dim() < 1 or not x.shape[0]:
        raise WrapError(f"expected an example of at least one row, got shape {tuple(x.shape)}")
    full, x = x.shape[0], x[:PROBE_ROWS]
    with torch.no_grad(), own_random_state(x.device):
        y, log_det = preprocess(at_least_float32(x))
    require_continuous(y)
    if y.shape != x.shape or log_det.shape != x.shape[:1]:
        raise WrapError(
            f"`preprocess`: expected data of shape {tuple(x.shape)} and log|det J|, summed over each row, of shape "
            f"{tuple(x.shape[:1])}; got {tuple(y.shape)} and {tuple(log_det.shape)}"
        )
    if not bool(y.isfinite().all()):
        raise WrapError(
            f"the example, ranging from {x.min().item():.4g} to {x.max().item():.4g}, is not finite after "
            "preprocessing: it holds NaN or lies outside [0, 1], where the logit is defined"
        )
    batch = x.shape[0]
    return y, tuple(_head(c, full, batch) for c in cond), {name: _head(c, full, batch) for name, c in kwargs.items()}


def _head(value: Any, full: int, batch: int) -> Any:
    has_batch = isinstance(value, Tensor) and value.dim() > 0 and value.shape[0] == full
    return value[:batch] if has_batch else value


def _number(noise: Any) -> float:
    if isinstance(noise, (str, bytes, bool)) or not hasattr(noise, "__float__"):
        raise TypeError(f"expected noise as a number >= 0, got {noise!r}")
    return float(noise)


def _tensor(core: Any) -> Any:
    """Take a mask of numpy, or of anything that says how to become an array, as a tensor."""
    is_array = hasattr(core, "__array__") and not isinstance(core, (Tensor, str))
    return torch.as_tensor(core) if is_array else core


def _core(core: Any, seen: Seen, noise: float) -> Expansion | Partition:
    event, latent = seen.event_shape, seen.latent_shape
    partition = isinstance(core, Tensor) or core in ("center", "corner", "random")
    if partition:
        if noise:
            raise ValueError(f"the partition family has an exact likelihood and takes no noise, got noise={noise}")
        if seen.flow:
            raise WrapError(
                "a partition core cannot be generated through a posterior flow, and this VAE's posterior has one: use "
                'core="linear"'
            )
        mask = core if isinstance(core, Tensor) else partition_mask(core, event, numel(latent))
        if mask.shape != event:
            raise WrapError(f"expected a core mask of the data's shape {tuple(event)}, got {tuple(mask.shape)}")
        return Partition(mask, latent)
    if isinstance(core, nn.Module):
        return Expansion(core, latent, noise)
    if core == "linear":
        return Expansion(LinearFeatures(event, latent), latent, noise)
    if core == "noise":
        if noise not in (0.0, 1.0):
            raise ValueError(f'core="noise" is the VAE itself, whose noise is 1 by definition; got noise={noise}')
        return Expansion(NoFeatures(latent), latent, 1.0)
    raise ValueError(f'expected core "linear", "noise", "center", "corner", "random", a mask or a module; got {core!r}')


def _flow(flow: Any, latent: torch.Size) -> Bijection:
    return build_flow(flow, numel(latent))


def _prior(prior: Any, parts: VAEParts, latent: torch.Size, kwargs: dict[str, Any]) -> tuple[nn.Module, bool]:
    """Make the prior; say whether it takes conditions."""
    if isinstance(prior, (str, Bijection)):
        return FlowPrior(build_flow(prior, numel(latent)), latent), False
    if prior is None:
        prior = parts.prior if parts.prior is not None else StandardNormal(latent)
    outside = as_prior(prior, latent)  # distributions, transforms and flows of torch, Pyro, zuko, nflows
    prior = prior if outside is None else outside
    if not (isinstance(prior, nn.Module) and callable(getattr(prior, "log_prob", None)) and hasattr(prior, "sample")):
        raise TypeError(
            'expected prior None, "coupling", "maf", a torch distribution, or a module with log_prob(z) -> (batch,) '
            f"and sample(n); got {describe(prior)}"
        )
    return prior, _takes_conditions(prior.log_prob, kwargs)


def _takes_conditions(log_prob: Any, kwargs: dict[str, Any]) -> bool:
    """Whether `log_prob` asks for more than z: by parameters without a default, `*args`, or the conditions' names."""
    parameters = inspect.signature(log_prob).parameters
    needed = [p for p in parameters.values() if p.default is p.empty or p.kind in (p.VAR_POSITIONAL, p.VAR_KEYWORD)]
    return len(needed) > 1 or (bool(kwargs) and kwargs.keys() <= parameters.keys())


def _outside(vae: Any, parts: VAEParts) -> dict[str, nn.Module]:
    """Modules among the parts that are not inside `vae`, so that they are trained, moved and saved."""
    inside = {id(m) for m in vae.modules()} if isinstance(vae, nn.Module) else set()
    found = {}
    for name in ("encoder", "decoder"):
        part = getattr(parts, name, None)
        part = part if isinstance(part, nn.Module) else getattr(part, "__self__", None)
        if isinstance(part, nn.Module) and id(part) not in inside:
            found[name] = part
    return found
