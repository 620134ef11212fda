"""The AutoEncoder within Flows: Eq. 4-10 and Algorithms 1-3 of the paper."""

from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from vae2aef import marginal
from vae2aef.core import Expansion, Partition
from vae2aef.errors import require_finite
from vae2aef.flows import Bijection
from vae2aef.marginal import LogProb, Proposal
from vae2aef.parts import Decoded, Posterior, VAEParts
from vae2aef.preprocess import require_continuous
from vae2aef.tensors import at_least_float32, sum_event
from vae2aef.wrapper import Wrapper


class LossTerms(NamedTuple):
    """The loss and what it is made of; `loss = -(prior + residual + log_det + entropy).mean()`.

    Attributes:
        loss: scalar, nats.
        prior: log p0(z), shape `(batch,)`, nats.
        residual: log r(x - f(z)), shape `(batch,)`, nats.
        log_det: log-determinant of core flow, encoder scale, posterior flow and preprocessing, `(batch,)`.
        entropy: D/2 log(2 pi e sigma^2), a scalar in nats; zero at sigma = 0.
        z: latents, shape `(batch, *latent)`.
        reconstruction: f(z) in the space of the data, shape `(batch, *event)`; in the partition family the
            core is the data's own.
    """

    loss: Tensor
    prior: Tensor
    residual: Tensor
    log_det: Tensor
    entropy: Tensor
    z: Tensor
    reconstruction: Tensor


class Joint(NamedTuple):
    """Algorithm 1 for one batch: log p(x, w) is the sum of the first three, each `(batch,)` in nats."""

    prior: Tensor
    residual: Tensor
    log_det: Tensor
    z: Tensor
    mean: Tensor
    posterior: Posterior


class AEF(Wrapper):
    """A VAE's encoder, decoder and prior inside an invertible map. Made by `vae2aef.wrap`.

    `aef(x)` is the loss. For the expanded family with `noise = 0` it is the paper's objective, the negative
    log-likelihood of (x, h(x)) in the expanded space: **not a likelihood of x**, and unbounded below. With
    `noise > 0` it is an upper bound on -log p(x). In the partition family it is the exact -log p(x).

    Attributes:
        vae: the user's module, untouched.
        event_shape: shape of one event of data.
        latent_shape: shape of one latent.
    """

    def __init__(
        self,
        vae: Any,
        parts: VAEParts,
        *,
        core: Expansion | Partition,
        core_flow: Bijection,
        prior: nn.Module,
        residual: nn.Module,
        preprocess: Bijection,
        event_shape: torch.Size,
        outside: dict[str, nn.Module] | None = None,
        prior_takes_conditions: bool = False,
        summary: str = "",
    ) -> None:
        super().__init__(vae, parts, outside or {}, summary)
        self.core = core
        self.core_flow = core_flow
        self.prior = prior
        self.residual = residual
        self.preprocess = preprocess
        self.event_shape = torch.Size(event_shape)
        self.latent_shape = core.latent_shape
        self._prior_takes_conditions = prior_takes_conditions

    # ------------------------------------------------------------------ the loss

    def forward(self, x: Tensor, *cond: Any, terms: bool = False, **kwargs: Any) -> "Tensor | LossTerms":
        """Return the loss, averaged over the batch, in nats (Eq. 7, 10; Algorithm 1).

        Args:
            x: data, shape `(batch, *event)`.
            *cond: conditions, handed to encoder, decoder and prior.
            terms: return all terms of the loss, with gradients, as `LossTerms`.
            **kwargs: conditions by name.

        Raises:
            NonFiniteError: if the loss is NaN or infinite; names the term. Not under `torch.compile`.
            ValueError: if `x` does not have the shape of the data the AEF was made for.
            TypeError: if `x` holds integers and no preprocessing dequantises it.
        """
        y, log_det_y = self._preprocess(x)  # Eq. 19
        core, shell = self.core(y)  # Eq. 9: h(y), y; Eq. 4: the core and the shell of y
        w = self.core.perturb(core)  # Eq. 11
        joint = self._joint(shell, w, self._posterior(shell, cond, kwargs), cond, kwargs)
        entropy = self.core.entropy()
        log_det = joint.log_det + log_det_y
        per_sample = joint.prior + joint.residual + log_det + entropy
        loss = -per_sample.sum() / max(x.shape[0], 1)  # an empty batch costs nothing
        if not torch.compiler.is_compiling():
            require_finite(
                loss.detach(), x, preprocess=y, core=w, encoder_location=joint.posterior.loc,
                encoder_scale=joint.posterior.scale, z=joint.z, decoder=joint.mean, prior=joint.prior,
                residual=joint.residual, log_det=log_det, entropy=entropy,
            )  # fmt: skip
        if not terms:
            return loss
        reconstruction = self.preprocess.inverse(self._join(core, joint.mean))[0]
        return LossTerms(loss, joint.prior, joint.residual, log_det, entropy, joint.z, reconstruction)

    def _posterior(self, shell: Tensor, cond: tuple, kwargs: dict) -> Posterior | None:
        """Encode; None if that happens together with decoding, in one pass of the VAE's own forward."""
        return None if self.parts.one_pass else self.parts.encode(shell, *cond, **kwargs)

    def _joint(self, shell: Tensor, w: Tensor, posterior: Posterior | None, cond: tuple, kwargs: dict) -> Joint:
        """Algorithm 1: log p0(z), log r(delta) and log|det J| for shell `(batch, *event)`, core w."""
        if posterior is None:  # the VAE's own forward encodes and decodes in one pass
            u, log_det = self.core_flow(w)
            posterior, z, decoded = self.parts.run(shell, u, *cond, **kwargs)
            log_det = log_det + sum_event(posterior.scale.log().expand_as(z))
            mean, scale = self._shaped(decoded, z.shape[0])
        else:
            z, log_det = self._latent(w, posterior)
            mean, scale = self._decode(z, cond, kwargs)
        log_r = self._residual_log_prob(shell, mean, scale)
        return Joint(self._prior_log_prob(z, cond, kwargs), log_r, log_det, z, mean, posterior)

    def _latent(self, w: Tensor, posterior: Posterior) -> tuple[Tensor, Tensor]:
        """Return z for core variables w, `(batch, *latent)`, and log|det dz/dw|, `(batch,)`."""
        u, log_det = self.core_flow(w)  # u = n^-1(w)
        z = posterior.loc + posterior.scale * u  # Eq. 4, 9
        log_det = log_det + sum_event(posterior.scale.log().expand_as(z))
        if posterior.transform is None:
            return z, log_det
        z, log_det_transform = posterior.transform(z)
        return z, log_det + log_det_transform

    def _residual_log_prob(self, shell: Tensor, mean: Tensor, scale: Tensor | None) -> Tensor:
        """Return log r(delta), `(batch,)`, of the shell, whose core counts nothing."""
        delta = shell - self.core.shell(mean)  # Eq. 5
        return sum_event(self.core.shell(self.residual.log_prob(delta, scale)))  # type: ignore[operator]

    # ------------------------------------------------------------------ encoding, decoding, sampling

    def encode(self, x: Tensor, *cond: Any, **kwargs: Any) -> Tensor:
        """Return the latents of `x`, `(batch, *event)` to `(batch, *latent)`: Eq. 4, 9 without noise."""
        core, shell = self.core(self._preprocess(x)[0])
        posterior = self.parts.encode(shell, *cond, **kwargs)
        return self._latent(core, posterior)[0]

    def decode(self, z: Tensor, *cond: Any, residual: bool = False, **kwargs: Any) -> Tensor:
        """Return data `(batch, *event)` for latents `(batch, *latent)` (Eq. 8; Algorithms 2 and 3).

        Args:
            z: latents.
            *cond: conditions.
            residual: add residual noise drawn from r; without it, delta = 0.
            **kwargs: conditions by name.
        """
        y, scale = self._decode(z, cond, kwargs)
        if residual:
            y = y + self.residual.sample(y, scale)  # type: ignore[operator]
        if isinstance(self.core, Partition):
            shell = self.core.shell(y)
            posterior = self.parts.encode(shell, *cond, **kwargs)
            if posterior.transform is not None:
                raise ValueError("a partition core cannot be generated through a posterior flow: use core='linear'")
            core = self.core_flow.inverse((z - posterior.loc) / posterior.scale)[0]  # Algorithm 2
            y = self.core.join(core, shell)
        return self.preprocess.inverse(y)[0]

    def reconstruct(self, x: Tensor, *cond: Any, **kwargs: Any) -> Tensor:
        """Encode and decode: shape `(batch, *event)` to the same. What the latent keeps of `x`."""
        return self.decode(self.encode(x, *cond, **kwargs), *cond, **kwargs)

    def denoise(self, x: Tensor, *cond: Any, **kwargs: Any) -> Tensor:
        """Return `x` without what the model takes for noise: its reconstruction, shape `(batch, *event)`.

        Expanded family only: a core that is part of the data keeps its noise (paper, section 3.2).

        Raises:
            ValueError: in the partition family.
        """
        if isinstance(self.core, Partition):
            raise ValueError('a partition core keeps the noise of its part of x; to denoise, wrap with core="linear"')
        return self.reconstruct(x, *cond, **kwargs)

    @torch.no_grad()
    def sample(self, n: int, *cond: Any, temperature: float = 1.0, residual: bool = False, **kwargs: Any) -> Tensor:
        """Draw `n` events of data, shape `(n, *event)` (Algorithms 2 and 3).

        Runs in `eval()` mode, so that BatchNorm neither mixes samples nor learns from them.

        Args:
            n: how many.
            *cond: conditions, `n` of each.
            temperature: factor on the standard deviation of the prior's base distribution.
            residual: add residual noise; without it, the decoder's mean is returned.
            **kwargs: conditions by name.

        Raises:
            ValueError: if `temperature` is not 1 and the prior's `sample` does not take it.
        """
        args, named = (cond, kwargs) if self._prior_takes_conditions else ((), {})
        if temperature != 1.0:
            named = {**named, "temperature": temperature}
        with marginal.evaluation_mode(self):
            try:
                z = self.prior.sample(n, *args, **named)  # type: ignore[operator]
            except TypeError as error:
                if temperature != 1.0 and "temperature" in str(error):
                    raise ValueError(f"the prior {type(self.prior).__name__} has no temperature: {error}") from error
                raise
            return self.decode(z, *cond, residual=residual, **kwargs)

    # ------------------------------------------------------------------ likelihoods

    def expanded_log_prob(self, x: Tensor, *cond: Any, **kwargs: Any) -> Tensor:
        """Return log p(x, h(x)), shape `(batch,)`, in nats: what the loss at `noise = 0` averages.

        In the expanded family this is no likelihood of `x` and is unbounded above: use it to train, never
        to compare models or to choose a checkpoint. In the partition family it is the exact log p(x).
        """
        y, log_det = self._preprocess(x)
        core, shell = self.core(y)
        joint = self._joint(shell, core, self._posterior(shell, cond, kwargs), cond, kwargs)
        return joint.prior + joint.residual + joint.log_det + log_det

    def log_prob(
        self,
        x: Tensor,
        *cond: Any,
        num_samples: int = 128,
        proposal: Proposal | str | None = None,
        chunk_size: int | None = None,
        **kwargs: Any,
    ) -> LogProb:
        """Estimate the marginal log p(x) in nats (Eq. 17-18); exact in the partition family.

        This is the number to report, and to compare a VAE and an AEF by. See `vae2aef.marginal.log_prob`.

        Args:
            x: data, shape `(batch, *event)`.
            *cond: conditions.
            num_samples: K, importance samples for each datum.
            proposal: from `tune_proposal`; None tunes one on the first rows of `x` itself; `"laplace"` fits one to
                each datum: slower, and far more accurate for up to a few hundred latents.
            chunk_size: most decoder rows in memory at once; see `vae2aef.marginal.log_prob`.
            **kwargs: conditions by name.
        """
        self._require_shape(x)
        return marginal.log_prob(self, x, cond, kwargs, num_samples, proposal, chunk_size)

    def tune_proposal(self, x: Tensor, *cond: Any, **kwargs: Any) -> Proposal | None:
        """Tune the importance sampling of `log_prob` on held-out data; see `vae2aef.marginal.tune`."""
        self._require_shape(x)
        return marginal.tune(self, x, cond, kwargs)

    @property
    def noise(self) -> float:
        """The noise sigma on the core variables (Eq. 11). May be changed at any time while training."""
        return self.core.noise

    @noise.setter
    def noise(self, value: float) -> None:
        if isinstance(self.core, Partition):
            raise ValueError("the partition family has an exact likelihood and takes no noise")
        self.core.noise = value

    def __repr__(self) -> str:
        return f"{super().__repr__()}\n  noise: sigma = {self.noise:g}"

    # ------------------------------------------------------------------ small steps

    def _require_shape(self, x: Tensor) -> None:
        if x.dim() < 1 or x.shape[1:] != self.event_shape:
            raise ValueError(f"expected data of shape (batch, {_csv(self.event_shape)}), got {tuple(x.shape)}")

    def _preprocess(self, x: Tensor) -> tuple[Tensor, Tensor]:
        self._require_shape(x)
        y, log_det = self.preprocess(at_least_float32(x))
        require_continuous(y)
        return y, log_det

    def _decode(self, z: Tensor, cond: tuple, kwargs: dict) -> tuple[Tensor, Tensor | None]:
        return self._shaped(self.parts.decode(z, *cond, **kwargs), z.shape[0])

    def _shaped(self, decoded: Decoded, batch: int) -> tuple[Tensor, Tensor | None]:
        mean, scale = decoded
        shape = (batch, *self.event_shape)
        return mean.reshape(shape), None if scale is None else scale.expand_as(mean).reshape(shape)

    def _join(self, core: Tensor, mean: Tensor) -> Tensor:
        return self.core.join(core, mean) if isinstance(self.core, Partition) else mean

    def _prior_log_prob(self, z: Tensor, cond: tuple, kwargs: dict) -> Tensor:
        if self._prior_takes_conditions:
            return self.prior.log_prob(z, *cond, **kwargs)  # type: ignore[operator]
        return self.prior.log_prob(z)  # type: ignore[operator]


def _csv(shape: torch.Size) -> str:
    return ", ".join(map(str, shape))
