"""`wrap`: find the parts of a VAE, check them on an example, add what an AEF needs."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from vae2aef.aef import AEF
from vae2aef.batch import Batch
from vae2aef.generators import as_they_were
from vae2aef.modes import generators_of, modules, same_parameters, untouched
from vae2aef.parts import VAEParts
from vae2aef.registry import unwrap
from vae2aef.wrapping.choices import KL, CoreOption, FlowOption, PreprocessOption, PriorOption, ScaleName, Start, one_of
from vae2aef.wrapping.contract import prove
from vae2aef.wrapping.cores import build_sites, flow_of, is_partition, read_core, resolve_core
from vae2aef.wrapping.entry import enter
from vae2aef.wrapping.example import example_rows, naming_labels, read_example
from vae2aef.wrapping.find_parts import find_parts
from vae2aef.wrapping.integers import require_integers, require_no_tokens, warn_of_grey_levels
from vae2aef.wrapping.leaks import prove_no_leak
from vae2aef.wrapping.likelihoods import bits_of, build_likelihood, read_likelihood, require_no_preprocessing
from vae2aef.wrapping.look import Seen, look
from vae2aef.wrapping.meaning import warn_of_logits
from vae2aef.wrapping.optimizer_warning import watch
from vae2aef.wrapping.options import build_preprocess, build_prior
from vae2aef.wrapping.other_grids import allow_other_grids
from vae2aef.wrapping.own_loss import warn_of_own_loss
from vae2aef.wrapping.own_prior import warn_of_prior
from vae2aef.wrapping.parity import compare_with_forward
from vae2aef.wrapping.sigma import read_noise, warn_of_learned_prior
from vae2aef.wrapping.start import begin
from vae2aef.wrapping.stray import naming_stray_tensors
from vae2aef.wrapping.summary import describe_wrap, grid_line
from vae2aef.wrapping.trial import modules_of


def wrap(
    vae: Any,
    *,
    example: Any = None,
    encoder: Callable[..., Any] | None = None,
    decoder: Callable[..., Any] | None = None,
    encoder_scale: ScaleName | None = None,
    decoder_scale: ScaleName | None = None,
    output: Callable[[Any], Any] | None = None,
    forward: Callable[..., Any] | None = None,
    core: CoreOption = None,
    core_flow: FlowOption = None,
    prior: PriorOption = None,
    likelihood: "str | float | nn.Module | Callable[..., Any] | None" = None,
    residual: "str | float | nn.Module | None" = None,
    preprocess: PreprocessOption = None,
    noise: float | None = None,
    kl: KL = "analytic",
    start: Start = "random",
    added: "str | Path | None" = None,
) -> AEF:
    """Wrap a VAE as an AutoEncoder within Flows. The VAE is used as it is: nothing in it is changed or copied.

    Args:
        vae: the VAE. Its class is known to an adapter, or it has `encoder` and `decoder` (or `encode` and
            `decode`), or the two are given; None if `encoder` and `decoder` are all there is, an `nn.ModuleList`
            of the networks if these are functions. Of a compiled or DDP module the inner one is taken.
        example: a batch of data, `(batch, *event)`, to read shapes from and to check the parts on; a tuple
            `(x, *conditions)`, whose last item may be a dict of conditions by name, for a conditional VAE.
        encoder: callable `x -> (location, scale)`, if the VAE's own is not to be used.
        decoder: callable `z -> mean` or `z -> (mean, scale)`, likewise. Of parts that are given or found by name, z and
            output are compared with the VAE's own forward, if it has one that draws once.
        encoder_scale: what the encoder's second output is: `"std"`, `"log_std"`, `"var"` or `"log_var"`. Where the
            VAE's own forward is traced, it says that itself.
        decoder_scale: what the decoder's second output is, of the same four: p(x | z) then has that scale.
        output: what the data's mean is in what the VAE's forward (or, where there is none in use, its decoder) returns,
            as a function of that: `lambda out: torch.tanh(out[0])`; (mean, scale), or all that a likelihood takes.
        forward: what to run in the place of the VAE's forward, where that is not what it is trained with (or `vae` is
            no module): a function of x, and of conditions, that encodes, draws and decodes, such as
            `lambda x: vae.decode(vae.encode_dists(x)[0].rsample())`. It is traced.
        core: None takes `"patch"` where the latent `(channels, *grid)` is a grid that divides that of the data (h of a
            position is a linear map of its patch of x), else `"linear"` (h(x) = W x + b). `"normalized"` is the linear
            one with its scale held on the example's rows. Or a module (your own h, data to latent shape), `"noise"`
            (the VAE itself: the loss is its negative ELBO), or, for the partition family, `"center"`, `"corner"`,
            `"random"` or a boolean mask of the event's shape. For several latents, one for all or a dict by name.
        core_flow: n^-1: `"none"`, `"coupling"` (of a grid, but with a dense core: of channels and of a checkerboard's
            colours, with convolutions), `"maf"`, a `vae2aef.Bijection`, or a transform of torch, Pyro, zuko or nflows,
            applied in its own forward direction. For several latents, one for all or a dict by name. None is `"none"`
            in the expanded family, where a flow did not win at equal seconds (docs/results.md), and `"coupling"` in the
            partition family, whose core has no other map.
        prior: None for the VAE's own, `"coupling"`, `"maf"`, a module with `log_prob` and `sample`, a
            `torch.distributions` object, a transform or flow of Pyro, zuko or nflows, or a function `z -> log p(z)`,
            `(batch, *latent)` to `(batch,)` in nats, of which nothing can be sampled.
        likelihood: p(x | z) for what the decoder returns. Densities of x - f(z): `"gaussian"`, `"laplace"`,
            `"student_t"`, and for a Gaussian's scale `"learned"` (one a feature), `"channel"`, `"shared"`, `"decoder"`
            or a number. Values from 0 to 1: `"bernoulli"`, `"continuous_bernoulli"`, both also with `_logits`. Classes:
            `"categorical"`. Counts: `"poisson"`, `"negative_binomial"`, either also with `zero_inflated_` before or
            `_log` behind (for the log of the mean). Grey levels: `"discretized_logistic"`, `"discretized_gaussian"`,
            `"logistic_mixture"`. Or a module of `vae2aef.likelihood`, or a callable of the decoder's outputs that
            returns a `torch.distributions` object. None for what the decoder or the codebase brings; else the
            Bernoulli if the example holds bits and the decoder returns probabilities, else a Gaussian residual.
        residual: the older name of `likelihood`.
        preprocess: None, `"dequantize"`, `"logit"`, `"standardize"`, a `vae2aef.Bijection`, or a list of these.
        noise: sigma of Eq. 11. None is 0.3 in the expanded family, chosen by docs/results.md, and there the loss is a
            bound on -log p(x); 0 in the partition family, which is exact; 1 of `core="noise"`. `noise=0` is the paper's
            deterministic loss (Eq. 10), no likelihood of x.
        kl: with noise and no core flow, z given x is Gaussian: `"analytic"` then averages log p0(z) over it where the
            prior is Gaussian too, which takes noise out of the gradients; `"sampled"` takes log p0 at the z drawn.
        start: `"exact"` begins as the VAE, for one that is trained: with the noise its loss is the VAE's ELBO, and
            reconstructions and samples are its own, whatever flow and sigma > 0. `"random"` begins with h at random.
        added: a file of `aef.save_added`, to go on with what was added to this VAE before, wrapped with these options.

    Returns:
        A module whose forward is the loss.

    Warns:
        WrapWarning: if something of the VAE seems to be misread, such as logits for means, or if `noise=0` meets a
            prior that is learned; the line to write is its end.

    Raises:
        WrapError: if the VAE's parts are not found or do not fit together, or if a part, run on rows of the example,
            fails, returns another shape than it should, or uses trainable tensors that no optimizer would see; if
            encoder and decoder are not what the VAE's own forward does, or the decoder sees the data beside z. It is a
            `ValueError`.
        TypeError: if `vae` is an AEF already, an option is of the wrong type, or the example holds integers that no
            preprocessing dequantises.
        ValueError: for an unknown option, or a file of `added` that does not fit.

    Example:
        >>> import torch
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
    given_batch = read_example(example)
    given = {"encoder": encoder, "decoder": decoder, "encoder_scale": encoder_scale, "decoder_scale": decoder_scale,
             "output": output, "forward": forward}  # fmt: skip
    likelihood = one_of(likelihood, residual)
    if likelihood is None and decoder_scale is not None:
        likelihood = "decoder"
    options = {"core": read_core(core), "core_flow": core_flow, "prior": prior, "preprocess": preprocess}
    sigma = read_noise(noise)
    owners = modules_of(vae, encoder, decoder, forward)
    states, values = as_they_were(generators_of(*owners)), same_parameters(*owners)
    with naming_labels(given_batch), naming_stray_tensors(vae), states, values, untouched(*owners):
        aef = _wrapped(vae, given_batch, given, options, sigma, likelihood, start)
    aef.kl = kl
    said = {**given, "core": core, "core_flow": core_flow, "prior": prior, "likelihood": likelihood, "kl": kl,
            "preprocess": preprocess, "noise": sigma, "start": start}  # fmt: skip
    aef.remember(given_batch, {name: value for name, value in said.items() if value is not None})
    if added is not None:
        aef.load_added(added)
    watch(aef)  # warns if an optimizer leaves out what was added
    return aef


def _wrapped(
    vae: Any,
    given_batch: Batch,
    given: dict[str, Any],
    options: dict[str, Any],
    noise: float | None,
    likelihood: Any,
    start: str,
) -> AEF:
    """Make the AEF, and prove it on the example."""
    x, preprocess = given_batch.x, options["preprocess"]
    choice = read_likelihood(likelihood, x)
    require_no_preprocessing(choice, preprocess)
    bijection = build_preprocess(preprocess, x)
    require_integers(bijection, x)
    require_no_tokens(vae, x, said=choice.discrete or preprocess is not None)
    batch = example_rows(given_batch._replace(x=choice.read(x)), bijection, choice.discrete)
    parts, seen = _read(vae, batch, given, choice.like_data, x)
    continuous = preprocess is not None or is_partition(options["core"])
    core, seen = resolve_core(options["core"], parts, seen)
    the_likelihood, why = build_likelihood(choice, parts, seen, batch.x, continuous)
    told = warn_of_logits(parts, seen, the_likelihood, batch.x, continuous)
    the_prior, takes_conditions = build_prior(options["prior"], parts, seen, batch.kwargs)
    if options["prior"] is None:
        warn_of_prior(vae, parts, batch, seen, whole=given["encoder"] is given["decoder"] is None)
    core_flow = flow_of(options["core_flow"], core)
    sites = build_sites(core, core_flow, noise, parts, seen, batch.x, the_likelihood)
    said = {**options, "core": core, "core_flow": core_flow, "likelihood": choice.option}
    aef = (parts.aef_class or AEF)(
        vae,
        parts,
        sites=begin(start, sites),
        prior=the_prior,
        likelihood=the_likelihood,
        preprocess=bijection,
        event_shape=seen.event_shape,
        outside=_outside(vae, parts),
        prior_takes_conditions=takes_conditions,
        discrete=seen.discrete if the_likelihood is None else getattr(the_likelihood, "discrete", False),
        summary=describe_wrap(vae, parts, seen, the_prior, the_likelihood, said, why),
    )
    _move_added(aef, x.device)
    prove(aef, batch, seen)
    warn_of_own_loss(aef, batch, given, choice.option)
    warn_of_learned_prior(aef, batch, seen)
    if not told:  # one remedy at a time
        warn_of_grey_levels(aef.discrete or aef.likelihood is None, None if continuous else bits_of(seen), bijection, x)
    if seen.local:
        aef.say(grid_line(seen, allow_other_grids(aef, batch, seen.grids)))
    return aef


def _move_added(aef: AEF, device: torch.device) -> None:
    """Move all but the VAE, which is where it is."""
    for name, part in aef._modules.items():
        if part is not None and name not in ("vae", "outside"):
            part.to(device)


def _read(vae: Any, batch: Batch, given: dict[str, Any], like_data: bool, raw: Tensor) -> tuple[VAEParts, Seen]:
    """Find the parts, look at what they return, and prove that they are the VAE's own and leak nothing."""
    said = dict(given)
    forward = said.pop("forward")
    parts = find_parts(vae, batch, said) if forward is None else enter(vae, batch, said, forward)
    seen = look(vae, parts, batch, like_data)
    prove_no_leak(vae, parts, batch, seen, raw)
    parts.compared = compare_with_forward(vae, parts, batch, given)
    return parts, seen


def _outside(vae: Any, parts: VAEParts) -> dict[str, nn.Module]:
    """Modules among the parts that are not inside `vae`, so that they are trained, moved and saved."""
    inside = {id(m) for m in modules(vae)} if isinstance(vae, nn.Module) else set()
    found = {f"beside_{i}": module for i, module in enumerate(parts.beside)}
    for name in ("encoder", "decoder"):
        part = getattr(parts, name, None)
        part = part if isinstance(part, nn.Module) else getattr(part, "__self__", None)
        if isinstance(part, nn.Module) and id(part) not in inside:
            found[name] = part
    return found
