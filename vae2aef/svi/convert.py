"""`from_pyro`: a Pyro model and guide as a module whose forward is the loss."""

from collections.abc import Mapping
from typing import Any

from vae2aef.aef import AEF
from vae2aef.batch import Batch
from vae2aef.errors import WrapError
from vae2aef.svi.pair import PyroPair
from vae2aef.svi.program import PyroProgram
from vae2aef.svi.reading import with_defaults
from vae2aef.svi.sequences import core_of_sequences, reads
from vae2aef.svi.single import SinglePyro, read_pair
from vae2aef.wrapping import wrap
from vae2aef.wrapping.choices import CoreOption, FlowOption, PriorOption, one_of


def from_pyro(
    model: Any,
    guide: Any,
    *args: Any,
    core: CoreOption = "linear",
    core_flow: FlowOption = None,
    prior: PriorOption = None,
    likelihood: Any = None,
    residual: Any = None,
    preprocess: Any = None,
    noise: float | None = None,
    data: Any = None,
    observed: Any = None,
    plate: str | None = None,
    **kwargs: Any,
) -> AEF:
    """Convert a Pyro model and guide to a module whose forward is the loss, in nats, averaged over the batch.

    The result is the same as `vae2aef.wrap` returns. With one latent site and one observed site, the data, likelihood
    and prior are the model's own or may be chosen; with several, the model's own are taken, and latents come as a dict
    by site, in the shapes the guide has.

    Args:
        model: the model.
        guide: the guide.
        *args: an example of their arguments, the data (a mini-batch, all rows of which are used) among them. Data may
            be sequences of different length, a `PackedSequence` or a list: results then have a value a sequence, in the
            order in which they were packed, and padded data with lengths, `aef(x, lengths)`, are taken too. Whole
            numbers may come as integers where a discrete site scores them.
        core: as in `vae2aef.wrap`, and not the words for sequences and counts of `vae2aef.aef_guide`; a dict by site
            for several latents.
        core_flow: likewise.
        prior: None for the model's own; else as in `wrap` (one latent only).
        likelihood: None for the model's own observed density; else as in `wrap` (one latent only).
        residual: the older name of `likelihood`.
        preprocess: as in `wrap` (one latent only).
        noise: sigma of Eq. 11; None as in `wrap`. A site that is `"noise"` in a dict `core` keeps its own, 1.
        data: which argument is the data, which h reads: None for what the observed sites score (the largest tensor,
            if there are several), or a name.
        observed: as in `vae2aef.AEF_ELBO`.
        plate: the name of the data's plate, where sizes do not tell.
        **kwargs: an example of their arguments by name.

    Raises:
        WrapError: if model and guide make no AEF; names the site and the fix.
        DataTypeError: if data and networks are of different number types; names both.
    """
    args, kwargs = with_defaults(guide, args, kwargs, model)
    pair = PyroPair(model, guide, args, kwargs, data, observed=observed, plate=plate)
    x, *cond, named = pair.example(args, kwargs)
    likelihood = one_of(likelihood, residual)
    parts = read_pair(pair, Batch(x, tuple(cond), named))
    if isinstance(parts, PyroProgram) and pair.sequences is not None:
        core = core_of_sequences(core, parts.axes, x)
    if isinstance(parts, SinglePyro):
        if isinstance(core, Mapping):
            core = core[parts.latent]
            noise = None if isinstance(core, str) and core == "noise" else noise  # its own, as beside others
        core_flow = core_flow[parts.latent] if isinstance(core_flow, Mapping) else core_flow
    elif likelihood is not None:
        raise WrapError(f"likelihood= needs a pair with one latent and one observed site; this has {parts.not_single}")
    options: dict[str, Any] = {"core": core, "core_flow": core_flow, "preprocess": preprocess, "noise": noise}
    aef = wrap(pair, example=(x, *cond, named), prior=prior, likelihood=likelihood, **options)
    if pair.sequences is not None:
        aef.say(reads(aef.by_latent()))
    return aef
