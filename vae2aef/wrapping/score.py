"""`log_prob`: the marginal likelihood of any VAE as it is, trained by us or not."""

import math
from collections.abc import Callable
from typing import Any, NoReturn

import torch
from torch import Tensor, nn

from vae2aef.aef import AEF
from vae2aef.batch import Batch
from vae2aef.errors import WrapError
from vae2aef.likelihood.base import MIN_SCALE, SPEED
from vae2aef.marginal import LogProb
from vae2aef.modes import evaluation_mode, own_random_state
from vae2aef.registry import unwrap
from vae2aef.residual import Residual
from vae2aef.tensors import numel, without_gradients
from vae2aef.wrapping.wrap import wrap

READ = ("encoder", "decoder", "encoder_scale", "decoder_scale", "output", "prior", "preprocess")
"""The options of `wrap` that say how a VAE is read; all else that it takes is what an AEF adds."""

SAMPLING = ("proposal", "chunk_size", "target_error", "max_samples", "method")
"""The options of `AEF.log_prob` that are handed on; what is in neither list is a condition."""

DRAWS, PIECE = 16, 128
"""Draws of z for each datum, and data at once, that a scale is fitted on."""


def log_prob(
    vae: Any,
    x: Tensor,
    *cond: Any,
    likelihood: "str | float | nn.Module | Callable[..., Any] | None" = None,
    fit_scale: bool = False,
    num_samples: int = 128,
    seed: int | None = None,
    **options: Any,
) -> LogProb:
    """Estimate log p(x) of any VAE, in nats. The VAE is used as it is: weights, modes and gradients stay as they were.

    Encoder, decoder and prior are found as by `wrap`, and the estimate is that of `AEF.log_prob`. The encoder only
    places the importance samples.

    Args:
        vae: the VAE, or an AEF, whose own `log_prob` is then taken.
        x: data as the VAE is trained on, `(batch, *event)`.
        *cond: conditions.
        likelihood: p(x | z), as for `wrap`; None for what the decoder or the codebase brings. **It must be known**:
            a scale that nobody has trained would give a number that means nothing.
        fit_scale: fit the scale of a Gaussian p(x | z) to `x`; see `as_it_is`. The number is then that of a model
            fitted, in its scale, to the data it is asked about: pass held-out data through `as_it_is` to avoid that.
        num_samples: K, importance samples for each datum.
        seed: makes a datum's number the same at each call, whatever the batch. torch's random state is then left
            alone; without it, draws are taken from there.
        **options: of `wrap`, how the VAE is read: `encoder`, `decoder`, `encoder_scale`, `decoder_scale`, `output`,
            `prior`, `preprocess`; those of `AEF.log_prob`: `proposal`, `chunk_size`, `target_error`, `max_samples`,
            `method`; and conditions by name.

    Raises:
        WrapError: if parts of the VAE are not found, or p(x | z) is not known; it says what to pass.
        ValueError: if `x` has no likelihood under p(x | z), such as grey values under a Bernoulli.

    Warns:
        EstimateWarning: if there are rows whose estimate cannot be trusted.

    Example:
        >>> _ = torch.manual_seed(0)
        >>> encoder, decoder = nn.Linear(6, 4), nn.Linear(2, 6)
        >>> estimate = log_prob(
        ...     nn.ModuleList([encoder, decoder]),
        ...     torch.rand(8, 6),
        ...     encoder=lambda x: encoder(x).chunk(2, dim=1),
        ...     decoder=decoder,
        ...     encoder_scale="log_var",
        ...     likelihood=1.0,  # trained with half the sum of squares
        ...     seed=0,
        ... )
        >>> estimate.value.shape, bool(estimate.uncertain.any())
        (torch.Size([8]), False)
    """
    read = {name: options.pop(name) for name in READ if name in options}
    conditions = {name: value for name, value in options.items() if name not in SAMPLING}
    aef = as_it_is(vae, x, *cond, likelihood=likelihood, fit_scale=fit_scale, conditions=conditions, **read)
    return aef.log_prob(x, *cond, num_samples=num_samples, seed=seed, **options)


def as_it_is(
    vae: Any,
    x: Tensor,
    *cond: Any,
    likelihood: Any = None,
    fit_scale: bool = False,
    conditions: dict[str, Any] | None = None,
    **read: Any,
) -> AEF:
    """Wrap a VAE as it is: h = 0, sigma = 1, no core flow, nothing to train. An AEF is returned unchanged.

    Args:
        vae: the VAE, or an AEF.
        x: data to read shapes from, `(batch, *event)`; a scale is fitted on all of it.
        *cond: conditions.
        likelihood: as for `log_prob`.
        fit_scale: fit the scale of a Gaussian p(x | z): the root mean squared residual x - f(z), z drawn from the
            posterior of each datum. That is the scale of the highest ELBO, in closed form but for the 16 draws of z,
            which have a random state of their own. One a feature, or, with `likelihood="channel"` or `"shared"`,
            one a channel or one in all.
        conditions: by name.
        **read: options of `wrap`; see `READ`.

    Raises:
        WrapError: as `log_prob` says.
        TypeError: if an AEF comes with a likelihood.
    """
    vae = unwrap(vae)
    own = vae if isinstance(vae, AEF) else getattr(vae, "aef", None)
    if isinstance(own, AEF):
        if likelihood is not None or fit_scale or read:
            raise TypeError(
                "an AEF has its likelihood, encoder, decoder and prior: pass it alone, or the VAE inside it (aef.vae)"
            )
        return own
    _require_known(likelihood, fit_scale, read.get("prior"))
    example = (x, *cond, conditions or {})
    likelihood = "learned" if fit_scale and likelihood is None else likelihood
    with own_random_state(x.device):
        aef = wrap(vae, example=example, likelihood=likelihood, core="noise", core_flow="none", **read)
        if fit_scale:
            _fit(aef, Batch(x, cond, conditions or {}))
    if "likelihood" in aef.added and not isinstance(likelihood, nn.Module):
        for parameter in aef.likelihood.parameters():
            parameter.requires_grad_(False)  # of nobody's concern: no optimizer will be asked for them
        if not fit_scale:
            _refuse(aef)
    return aef


def _require_known(likelihood: Any, fit_scale: bool, prior: Any) -> None:
    """Refuse a prior that is a fresh flow, and a fit of what has no fit."""
    if isinstance(prior, str):
        raise WrapError(
            f'prior="{prior}" would be a flow that nobody has trained: ',
            "leave it out, for the VAE's own, or pass the trained one",
        )
    if fit_scale and likelihood not in (None, "gaussian", "learned", "channel", "shared"):
        raise WrapError(
            f"fit_scale=True fits the scale of a Gaussian, and likelihood={likelihood!r}: ",
            'leave one of the two out, or pass likelihood="gaussian", "channel" or "shared"',
        )


def _refuse(aef: AEF) -> NoReturn:
    """Say what a likelihood lacks, and how to find it in the loss that the VAE was trained with."""
    values = numel(aef.event_shape)
    name = type(aef.likelihood).__name__
    gaussian = isinstance(aef.likelihood, Residual) and aef.likelihood.family == "gaussian"
    what = "Gaussian p(x | z), the default where a VAE brings none," if gaussian else f"{name} p(x | z)"
    raise WrapError(
        f"log_prob needs a p(x | z) that is known, and the {what} would have a learned scale (or other parameters of "
        "its own) that nobody has trained: log p(x) would be a number of nothing. ",
        "Pass one of: the scale that the VAE was trained with, likelihood=1.0 for a loss of 0.5 * (the sum of "
        "squares), likelihood=0.7071 for the sum of squares (and for the mean over values times their number), "
        f"likelihood={math.sqrt(values / 2):.4g} for the mean over the {values} values of x; with a weight beta on "
        'the KL, sqrt(beta) times that; likelihood="decoder" if the decoder returns its scale; another likelihood, '
        'such as "bernoulli" for binary cross-entropy of bits, or a vae2aef.likelihood module with trained '
        "parameters; or fit_scale=True, which fits a Gaussian's scale to the data",
    )


@without_gradients
def _fit(aef: AEF, batch: Batch) -> None:
    """Set the scale of the residual to its maximum of the ELBO."""
    residual = aef.likelihood
    total, draws = torch.zeros(aef.event_shape, dtype=torch.float64, device=batch.x.device), 0
    torch.manual_seed(0)
    with evaluation_mode(aef):
        for first in range(0, batch.size, PIECE):
            rows = batch.rows(slice(first, first + PIECE))
            for _ in range(DRAWS):
                y = aef.to_latent_side(rows.x)[0]
                core, _ = aef.split(y)
                decoded = aef.chain(rows._replace(x=y), core, aef.noisy).decoded
                total += (y - aef.mean(decoded, rows.size)).double().square().sum(0)
                draws += rows.size
    shape = residual.raw_scale.shape
    pooled = [d for d, n in enumerate(shape) if n == 1]
    mean = (total / draws).reshape(aef.event_shape or (1,))
    scale = (mean.mean(pooled, keepdim=True) if pooled else mean).sqrt().clamp(min=2 * MIN_SCALE) - MIN_SCALE
    residual.raw_scale.copy_((scale + torch.log(-torch.expm1(-scale))) / SPEED)  # the inverse of `Scaled.scale`
