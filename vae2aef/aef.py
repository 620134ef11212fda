"""The AutoEncoder within Flows: Eq. 4-10 and Algorithms 1-3 of the paper."""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, Literal, overload

import torch
from torch import Tensor

from vae2aef.batch import Batch, map_rows
from vae2aef.chain import Generate, Infer, Perturb, Temperature
from vae2aef.core import Partition
from vae2aef.errors import describe, how_many, not_data, require_finite, require_finite_data
from vae2aef.estimates import Estimates
from vae2aef.modes import evaluation_mode
from vae2aef.program import VAEProgram
from vae2aef.terms import Joint, LossTerms


class AEF(Estimates):
    """A VAE's encoder, decoder and prior inside an invertible map. Made by `vae2aef.wrap`.

    `aef(x)` is the loss. In the expanded family it is an upper bound on -log p(x) for `noise > 0`, 0.3 by default. With
    `noise = 0` it is the paper's objective, the negative log-likelihood of (x, h(x)) in the expanded space: **not a
    likelihood of x**, and unbounded below. In the partition family it is the exact -log p(x).

    A VAE of several latents is mapped latent by latent. What has a value for each latent (`encode`, `core`,
    `core_flow`, `latent_shape`, `noise` where they differ) is then a dict by name.

    Attributes:
        vae: the user's module, untouched.
        sites: what is added for each latent, by name: its core (h and sigma) and its core flow. One entry, "z", for
            a plain VAE.
        prior: the density of z; None where a VAE of several latents brings its own.
        likelihood: p(x | z), of which the density r of x - f(z) is one case; None where the decoder returns densities.
        event_shape: shape of one event of data, that of the example.
        grids: how the grid of each latent lies on that of the data, if data on other grids may come; else empty.
    """

    # ------------------------------------------------------------------ the loss

    if TYPE_CHECKING:  # nn.Module says that a call may return anything

        @overload
        def __call__(self, x: Tensor, *cond: Any, terms: Literal[False] = False, **kwargs: Any) -> Tensor: ...
        @overload
        def __call__(self, x: Tensor, *cond: Any, terms: Literal[True], **kwargs: Any) -> LossTerms: ...
        def __call__(self, *args: Any, **kwargs: Any) -> Any: ...  # noqa: D102

    def forward(self, x: Tensor, *cond: Any, terms: bool = False, **kwargs: Any) -> "Tensor | LossTerms":
        """Return the loss, averaged over the batch, in nats (Eq. 7, 10; Algorithm 1).

        Args:
            x: data, shape `(batch, *event)`.
            *cond: conditions, handed to encoder, decoder and prior.
            terms: return all terms of the loss, with gradients, as `LossTerms`.
            **kwargs: conditions by name.

        Raises:
            NonFiniteError: if the data or the loss are NaN or infinite; names rows and term. Nothing has changed then:
                data are looked at before any network runs, and there are no gradients. Not under `torch.compile`.
            ValueError: if `x` does not have the shape of the data the AEF was made for.
            TypeError: if `x` holds integers, the likelihood is a density, and no preprocessing dequantises it.
        """
        if not isinstance(x, Tensor):
            raise TypeError(not_data(x))
        if self.training and not torch.compiler.is_compiling():
            require_finite_data(x)  # before the networks see them: batch normalisation would keep what it saw
        joint = self.log_joint(Batch(x, cond, kwargs), self.noisy)
        per_sample = joint.prior + joint.residual + joint.log_det + joint.entropy
        loss = per_sample.sum() / -max(x.shape[0], 1)  # an empty batch costs nothing
        if not torch.compiler.is_compiling():
            require_finite(loss.detach(), x, **joint.terms, preprocessing=joint.log_det, entropy=joint.entropy)
        if not terms:
            return loss
        reconstruction = self.to_data(self.with_core(joint.decoded, joint.core))
        return LossTerms(
            loss, joint.prior, joint.residual, joint.log_det, joint.entropy, self._one_or_all(joint.z), reconstruction
        )

    def log_joint(self, batch: Batch, perturb: Perturb | None = None) -> Joint:
        """Algorithm 1: log p(x, w) for the core variables w that `perturb` makes of h(x); None for w = h(x).

        With `kl="analytic"` log p0(z) is averaged over the noise of `noisy` where prior and posterior are Gaussian.
        """
        y, log_det = self.to_latent_side(batch.x)  # Eq. 19
        core, shell = self.split(y)  # Eq. 9: h(y), y; Eq. 4: the core and the shell of y
        joint = self.chain(Batch(shell, batch.cond, batch.kwargs), core, perturb)
        return joint._replace(log_det=joint.log_det + log_det, core=core, terms={"preprocess": y, **joint.terms})

    def chain(self, batch: Batch, core: dict[str, Tensor], perturb: Perturb | None = None) -> Joint:
        """Algorithm 1 from the split on: w -> z -> f(z), for a batch of shells and the h(x) of each latent."""
        if not batch.size and self.parts.needs_rows:  # one row in place of none, and nothing of what comes of it
            one = map_rows((tuple(batch), core), 0, lambda rows: rows.new_zeros(1, *rows.shape[1:]))
            with evaluation_mode(self):  # batch normalisation would count the row
                return map_rows(self.chain(Batch(*one[0]), one[1], perturb), 1, lambda row: row[:0])
        place = Infer(batch.size, self.flows, core, perturb or self.still, self.priors(batch), self.averaged(perturb))
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
            residual: draw x from p(x | z), which adds the noise of r; without it, its mean is returned: delta = 0.
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
        batch = Batch(rows, cond, kwargs)
        return self.to_data(self.generate(Generate(batch.size, z, priors=self.priors(batch)), batch, residual))

    def generate(self, place: Generate, batch: Batch, residual: bool) -> Any:
        """Algorithms 2 and 3 in the caller's mode, a step for other code (`sample` and `decode` are for users).

        `place` has the priors, as `Generate(n, None, priors=self.priors(batch))`; of the batch, with as many rows, the
        conditions are used. With `residual` x is drawn, else its mean; preprocessed, `(batch, *event)`.
        """
        decoded = self.parts.run(place, None, *batch.cond, **batch.kwargs)
        y = self.observed(decoded, place.size).sample() if residual else self.mean(decoded, place.size)
        return y if self.partition is None else self._with_generated_core(self.partition, place.z["z"], y, batch)

    def _with_generated_core(self, parted: Partition, z: Tensor, y: Tensor, batch: Batch) -> Tensor:
        """Algorithm 2: the core that belongs to a latent and a shell."""
        shell = parted.shell(y)
        posterior = self.parts.encode(shell, *batch.cond, **batch.kwargs)
        if posterior.transform is not None:
            raise ValueError("a partition core cannot be generated through a posterior flow: use core='linear'")
        core = self.site("z").flow.inverse((z - posterior.loc) / posterior.scale)[0]
        return parted.join(core, shell)

    def reconstruct(self, x: Tensor, *cond: Any, **kwargs: Any) -> Tensor:
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
    def sample(
        self,
        n: int,
        *cond: Any,
        temperature: Temperature = 1.0,
        residual: bool = False,
        event_shape: Sequence[int] | None = None,
        **kwargs: Any,
    ) -> Tensor:
        """Draw `n` events of data, shape `(n, *event)` (Algorithms 2 and 3).

        Runs in `eval()` mode, so that BatchNorm neither mixes samples nor learns from them.

        Args:
            n: how many.
            *cond: conditions, `n` of each.
            temperature: factor on the standard deviation of the prior's base distribution; for several latents one
                number, or a dict by name.
            residual: draw x from p(x | z); without it, the mean of x is returned.
            event_shape: of the data to draw, if they are to be on another grid than the example.
            **kwargs: conditions by name.

        Raises:
            ValueError: if `temperature` is not 1, or another grid is asked for, and the prior's `sample` does not take
                it; or `n` is negative.
            TypeError: if `n` is no whole number, as the shapes of torch, or for `generator=`.
        """
        n = how_many(n, kwargs)
        batch = Batch(torch.empty(n), cond, kwargs)
        place = Generate(n, None, temperature, self.priors(batch), self._latents_of(event_shape))
        with evaluation_mode(self):
            return self.to_data(self.generate(place, batch, residual))

    def _latents_of(self, event_shape: Sequence[int] | None) -> dict[str, tuple[int, ...]]:
        """Return the shapes of latents of data on another grid; none for the grid of the example."""
        if event_shape is None:
            return {}
        if isinstance(event_shape, str) or not isinstance(event_shape, Sequence):
            raise TypeError(f"expected event_shape as a tuple such as {tuple(self.event_shape)}, got {event_shape!r}")
        if tuple(event_shape) == tuple(self.event_shape):
            return {}
        self._require_shape(torch.empty(0, *event_shape))
        if isinstance(self.parts, VAEProgram):
            raise ValueError("the latents of a VAE of several are drawn on the grid of the example alone")
        return {
            name: (*self.site(name).core.latent_shape[:1], *grid.latent(tuple(event_shape)[1:]))
            for name, grid in self.grids.items()
        }

    # ------------------------------------------------------------------ likelihoods

    def expanded_log_prob(self, x: Tensor, *cond: Any, **kwargs: Any) -> Tensor:
        """Return log p(x, h(x)), shape `(batch,)`, in nats: what the loss at `noise = 0` averages.

        In the expanded family this is no likelihood of `x` and is unbounded above: use it to train, never
        to compare models or to choose a checkpoint. In the partition family it is the exact log p(x).
        """
        joint = self.log_joint(Batch(x, cond, kwargs))
        return joint.prior + joint.residual + joint.log_det


def require_aef(model: Any) -> AEF:
    """Return `model`; a `TypeError` if it is no AEF."""
    if not isinstance(model, AEF):
        raise TypeError(f"expected an AEF, got {describe(model)}: wrap it first, vae2aef.wrap(vae, example=x)")
    return model
