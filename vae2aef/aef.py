"""The AutoEncoder within Flows: Eq. 4-10 and Algorithms 1-3 of the paper."""

from collections.abc import Mapping
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from vae2aef import marginal
from vae2aef.batch import Batch
from vae2aef.chain import Conditioned, Density, Generate, Infer, Perturb, Site, Temperature
from vae2aef.core import Partition
from vae2aef.errors import require_finite
from vae2aef.flows import Bijection
from vae2aef.marginal import LogProb, Proposal
from vae2aef.parts import Decoded, VAEParts, VAEProgram
from vae2aef.preprocess import require_continuous
from vae2aef.tensors import at_least_float32, sum_event
from vae2aef.wrapper import Wrapper


class LossTerms(NamedTuple):
    """The loss and what it is made of; `loss = -(prior + residual + log_det + entropy).mean()`.

    Attributes:
        loss: scalar, nats.
        prior: log p0(z), summed over the latents, shape `(batch,)`, nats.
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


class AEF(Wrapper):
    """A VAE's encoder, decoder and prior inside an invertible map. Made by `vae2aef.wrap`.

    `aef(x)` is the loss. For the expanded family with `noise = 0` it is the paper's objective, the negative
    log-likelihood of (x, h(x)) in the expanded space: **not a likelihood of x**, and unbounded below. With
    `noise > 0` it is an upper bound on -log p(x). In the partition family it is the exact -log p(x).

    A VAE of several latents is mapped latent by latent. What has a value for each latent (`encode`, `core`,
    `core_flow`, `latent_shape`, `noise` where they differ) is then a dict by name.

    Attributes:
        vae: the user's module, untouched.
        sites: what is added for each latent, by name: its core (h and sigma) and its core flow. One entry, "z", for
            a plain VAE.
        prior: the density of z; None where a VAE of several latents brings its own.
        residual: the density r of x - f(z); None where the VAE's own density of x given z is taken.
        event_shape: shape of one event of data.
    """

    def __init__(
        self,
        vae: Any,
        parts: VAEParts,
        *,
        sites: Mapping[str, Site],
        prior: nn.Module | None,
        residual: nn.Module | None,
        preprocess: Bijection,
        event_shape: torch.Size,
        outside: dict[str, nn.Module] | None = None,
        prior_takes_conditions: bool = False,
        summary: str = "",
    ) -> None:
        super().__init__(vae, parts, sites, outside or {}, summary)
        self.prior = prior
        self.residual = residual
        self.preprocess = preprocess
        self.event_shape = torch.Size(event_shape)
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
        joint = self.log_joint(Batch(x, cond, kwargs), self.noisy)
        per_sample = joint.prior + joint.residual + joint.log_det + joint.entropy
        loss = -per_sample.sum() / max(x.shape[0], 1)  # an empty batch costs nothing
        if not torch.compiler.is_compiling():
            require_finite(loss.detach(), x, **joint.terms, preprocessing=joint.log_det, entropy=joint.entropy)
        if not terms:
            return loss
        reconstruction = self.to_data(self.with_core(joint.decoded, joint.core))
        return LossTerms(
            loss, joint.prior, joint.residual, joint.log_det, joint.entropy, self._one_or_all(joint.z), reconstruction
        )

    def log_joint(self, batch: Batch, perturb: Perturb | None = None) -> Joint:
        """Algorithm 1: log p(x, w) for the core variables w that `perturb` makes of h(x); None for w = h(x)."""
        y, log_det = self.to_latent_side(batch.x)  # Eq. 19
        core, shell = self.split(y)  # Eq. 9: h(y), y; Eq. 4: the core and the shell of y
        joint = self.chain(batch._replace(x=shell), core, perturb)
        return joint._replace(log_det=joint.log_det + log_det, core=core, terms={"preprocess": y, **joint.terms})

    def chain(self, batch: Batch, core: dict[str, Tensor], perturb: Perturb | None = None) -> Joint:
        """Algorithm 1 from the split on: w -> z -> f(z), for a batch of shells and the h(x) of each latent."""
        place = Infer(batch.size, self.flows, core, perturb or self.still, self.priors(batch))
        state = self.parts.infer(batch.x, *batch.cond, **batch.kwargs)
        decoded = self.parts.run(place, state, *batch.cond, **batch.kwargs)
        log_r = self.log_residual(batch.x, decoded)
        mean = {"decoder": decoded.mean} if isinstance(decoded.mean, Tensor) else {}
        terms = {**place.terms, **mean, "prior": place.prior, "residual": log_r, "log_det": place.log_det}
        return Joint(place.prior, log_r, place.log_det, place.entropy, place.z, core, decoded, terms)

    # ------------------------------------------------------------------ encoding, decoding, sampling

    def encode(self, x: Tensor, *cond: Any, **kwargs: Any) -> "Any":
        """Return the latents of `x`: Eq. 4, 9 without noise.

        Args:
            x: data, shape `(batch, *event)`.
            *cond: conditions.
            **kwargs: conditions by name.

        Returns:
            Shape `(batch, *latent)`; for several latents a dict of them by name, in the VAE's own shapes.
        """
        if isinstance(self.parts, VAEProgram):
            return self.log_joint(Batch(x, cond, kwargs)).z
        core, shell = self.split(self.to_latent_side(x)[0])
        place = Infer(x.shape[0], self.flows, core, self.still, {})
        return place("z", None, self.parts.encode(shell, *cond, **kwargs))

    def decode(self, z: Any, *cond: Any, residual: bool = False, **kwargs: Any) -> Any:
        """Return data `(batch, *event)` for latents as `encode` returns them (Eq. 8; Algorithms 2 and 3).

        Args:
            z: latents; of several, those that are left out of the dict are drawn from their priors.
            *cond: conditions.
            residual: add residual noise drawn from r; without it, delta = 0.
            **kwargs: conditions by name.

        Raises:
            TypeError: if there are several latents and `z` is no dict of them, or the other way round.
        """
        if not isinstance(self.parts, VAEProgram):
            if not isinstance(z, Tensor):
                raise TypeError(f"expected latents as a tensor (batch, *latent), got {type(z).__name__}")
            z = {"z": z}
        elif not isinstance(z, Mapping) or not z:
            raise TypeError(f"expected latents as a dict by name ({', '.join(self.sites)}), got {type(z).__name__}")
        first = next(iter(z))
        rows = self.parts.rows_first(first, z[first])
        place = Generate(rows.shape[0], z, priors=self.priors(Batch(rows, cond, kwargs)))
        return self._generate(place, cond, kwargs, residual)

    def reconstruct(self, x: Tensor, *cond: Any, **kwargs: Any) -> Any:
        """Encode and decode: shape `(batch, *event)` to the same. What the latent keeps of `x`."""
        return self.decode(self.encode(x, *cond, **kwargs), *cond, **kwargs)

    def denoise(self, x: Tensor, *cond: Any, **kwargs: Any) -> Any:
        """Return `x` without what the model takes for noise: its reconstruction, shape `(batch, *event)`.

        Expanded family only: a core that is part of the data keeps its noise (paper, section 3.2).

        Raises:
            ValueError: in the partition family.
        """
        if self.partition is not None:
            raise ValueError('a partition core keeps the noise of its part of x; to denoise, wrap with core="linear"')
        return self.reconstruct(x, *cond, **kwargs)

    @torch.no_grad()
    def sample(self, n: int, *cond: Any, temperature: Temperature = 1.0, residual: bool = False, **kwargs: Any) -> Any:
        """Draw `n` events of data, shape `(n, *event)` (Algorithms 2 and 3).

        Runs in `eval()` mode, so that BatchNorm neither mixes samples nor learns from them.

        Args:
            n: how many.
            *cond: conditions, `n` of each.
            temperature: factor on the standard deviation of the prior's base distribution; for several latents one
                number, or a dict by name.
            residual: add residual noise; without it, the decoder's mean is returned.
            **kwargs: conditions by name.

        Raises:
            ValueError: if `temperature` is not 1 and the prior's `sample` does not take it.
        """
        priors = self.priors(Batch(torch.empty(n), cond, kwargs))
        with marginal.evaluation_mode(self):
            return self._generate(Generate(n, None, temperature, priors), cond, kwargs, residual)

    # ------------------------------------------------------------------ likelihoods

    def expanded_log_prob(self, x: Tensor, *cond: Any, **kwargs: Any) -> Tensor:
        """Return log p(x, h(x)), shape `(batch,)`, in nats: what the loss at `noise = 0` averages.

        In the expanded family this is no likelihood of `x` and is unbounded above: use it to train, never
        to compare models or to choose a checkpoint. In the partition family it is the exact log p(x).
        """
        joint = self.log_joint(Batch(x, cond, kwargs))
        return joint.prior + joint.residual + joint.log_det

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

    # ------------------------------------------------------------------ the steps

    def to_latent_side(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Preprocess data `(batch, *event)`; return y and log|det dy/dx|, `(batch,)`, nats."""
        self._require_shape(x)
        y, log_det = self.preprocess(at_least_float32(x))
        require_continuous(y)
        return y, log_det

    def to_data(self, y: Any) -> Any:
        """Undo the preprocessing of `(batch, *event)`; several observed sites come as a dict, unchanged."""
        return self.preprocess.inverse(y)[0] if isinstance(y, Tensor) else y

    def split(self, y: Tensor) -> tuple[dict[str, Tensor], Tensor]:
        """Return h(y) for each latent, `(batch, *latent)`, and what encoder and decoder see of y."""
        core = {}
        for name, site in self.sites.items():
            core[name], shell = site.core(y)
        return core, shell

    def priors(self, batch: Batch) -> dict[str, Density]:
        """Return the densities that stand for those of the VAE's program, with the conditions of a batch."""
        if self.prior is None:
            return {}
        takes = self._prior_takes_conditions
        return {"z": Conditioned(self.prior, batch.cond, batch.kwargs) if takes else self.prior}  # type: ignore[dict-item]

    def log_residual(self, shell: Tensor, decoded: Decoded) -> Tensor:
        """Return log r(delta), or the VAE's own log p(x | z), `(batch,)` in nats; a core counts nothing."""
        if self.residual is None:
            return sum_event(decoded.density.log_prob(shell))
        cut = self.partition.shell if self.partition is not None else (lambda values: values)
        mean, scale = self.shaped(decoded, shell.shape[0])
        delta = shell - cut(mean)  # Eq. 5
        return sum_event(cut(self.residual.log_prob(delta, scale)))  # type: ignore[operator]

    def shaped(self, decoded: Decoded, batch: int) -> tuple[Tensor, Tensor | None]:
        """Return the decoder's mean and scale in the shape of the data, `(batch, *event)`."""
        shape = (batch, *self.event_shape)
        mean, scale = decoded.mean.reshape(shape), decoded.scale
        return mean, None if scale is None else scale.expand_as(decoded.mean).reshape(shape)

    def with_core(self, decoded: Decoded, core: dict[str, Tensor]) -> Any:
        """Return the mean, `(batch, *event)`; in the partition family with the core of the data in its place."""
        if not isinstance(decoded.mean, Tensor):
            return decoded.mean
        mean = self.shaped(decoded, decoded.mean.shape[0])[0]
        return mean if self.partition is None else self.partition.join(core["z"], mean)

    def _generate(self, place: Generate, cond: tuple, kwargs: dict, residual: bool) -> Any:
        """Algorithms 2 and 3 from latents on."""
        decoded = self.parts.run(place, None, *cond, **kwargs)
        if residual and self.residual is None:
            return self.to_data(decoded.density.sample())
        if not isinstance(decoded.mean, Tensor):
            return decoded.mean
        y, scale = self.shaped(decoded, place.size)
        if residual:
            y = y + self.residual.sample(y, scale)  # type: ignore[union-attr, operator]
        return self.to_data(y if self.partition is None else self._with_generated_core(place.z["z"], y, cond, kwargs))

    def _with_generated_core(self, z: Tensor, y: Tensor, cond: tuple, kwargs: dict) -> Tensor:
        """Algorithm 2: the core that belongs to a latent and a shell."""
        site = self.site("z")
        shell = site.core.shell(y)
        posterior = self.parts.encode(shell, *cond, **kwargs)
        if posterior.transform is not None:
            raise ValueError("a partition core cannot be generated through a posterior flow: use core='linear'")
        core = site.flow.inverse((z - posterior.loc) / posterior.scale)[0]
        return site.core.join(core, shell)  # type: ignore[operator]

    @property
    def partition(self) -> Partition | None:
        """The core in the partition family; None in the expanded one."""
        core = next(iter(self.sites.values())).core
        return core if isinstance(core, Partition) else None

    def _require_shape(self, x: Tensor) -> None:
        if x.dim() < 1 or x.shape[1:] != self.event_shape:
            expected = ", ".join(map(str, self.event_shape))
            raise ValueError(f"expected data of shape (batch, {expected}), got {tuple(x.shape)}")
