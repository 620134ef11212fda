"""The terms of the loss, and of Algorithm 1."""

from typing import Any, NamedTuple

from torch import Tensor

from vae2aef.parts import Decoded


class LossTerms(NamedTuple):
    """The loss and what it is made of; `loss = -(prior + residual + log_det + entropy).mean()`.

    Attributes:
        loss: scalar, nats.
        prior: log p0(z), summed over the latents, shape `(batch,)`, nats; with `kl="analytic"` averaged over the noise
            on w where prior and posterior are Gaussian.
        residual: log r(x - f(z)), or the VAE's own log p(x | z), shape `(batch,)`, nats.
        log_det: log-determinant of core flow, encoder scale, posterior flow and preprocessing, `(batch,)`.
        entropy: D/2 log(2 pi e sigma^2), a scalar in nats (`(batch,)` where rows differ); zero at sigma = 0.
        z: latents, shape `(batch, *latent)`; a dict by name for several.
        reconstruction: f(z) in the space of the data, shape `(batch, *event)`; in the partition family the
            core is the data's own.
    """

    loss: Tensor
    prior: Tensor
    residual: Tensor
    log_det: Tensor
    entropy: Tensor
    z: Any
    reconstruction: Any


class Joint(NamedTuple):
    """Algorithm 1 for one batch: log p(x, w) is the sum of the first three, each `(batch,)` in nats.

    Attributes:
        prior: log p0(z).
        residual: log r(delta), or log p(x | z).
        log_det: log|det J|, of the preprocessing too.
        entropy: of w given x; a scalar, or `(batch,)`.
        z: the latents by name.
        core: h(x) by name.
        decoded: what the decoder says.
        terms: all that was computed, by name, in order; for error messages.
    """

    prior: Tensor
    residual: Tensor
    log_det: Tensor
    entropy: Tensor
    z: dict[str, Tensor]
    core: dict[str, Tensor]
    decoded: Decoded
    terms: dict[str, Tensor]
