"""One batch for importance sampling: what does not change from draw to draw, and log p(x, w) at any w (Eq. 17)."""

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from vae2aef.batch import Batch, repeat_rows
from vae2aef.chain import Generate, Given, Infer, Perturb
from vae2aef.parts import Decoded
from vae2aef.program import VAEProgram
from vae2aef.residual import Residual
from vae2aef.tensors import numel

if TYPE_CHECKING:
    from vae2aef.aef import AEF
    from vae2aef.proposals import Proposal


class Case:
    """A batch, preprocessed and encoded once.

    A proposal sees its latents as D numbers a datum. Around h(x) these are the offsets of w (`log_weights`). For a
    fit to the posterior they are free coordinates v (`log_joint`): z itself for one latent; for several u, of which z
    is made by loc + scale u and posterior flows, so that every v is a point of the support.

    Args:
        aef: the model.
        batch: data as the user gives it, with conditions.
        at_once: most rows to decode at once; None for no limit.

    Attributes:
        size: how many data there are.
        dim: D, over all latents.
        log_det: of the preprocessing, `(batch,)`, nats.
    """

    def __init__(self, aef: "AEF", batch: Batch, at_once: int | None = None) -> None:
        self.aef, self.size = aef, batch.size
        self.draws_decoded = None if at_once is None else max(at_once // max(self.size, 1), 1)
        y, self.log_det = aef.to_latent_side(batch.x)
        self.batch = batch._replace(x=y)
        self.core, _ = aef.split(y)
        self.single = not isinstance(aef.parts, VAEProgram)
        infer = aef.parts.encode if self.single else aef.parts.infer
        self.state = infer(y, *batch.cond, **batch.kwargs)
        self.sizes = {name: numel(core.shape[1:]) for name, core in self.core.items()}
        self.dim = sum(self.sizes.values())

    # ------------------------------------------------------------------ around h(x)

    def log_weights(self, proposal: "Proposal", draws: int) -> Tensor:
        """Return log p(x, w_k) / q(w_k | x) for fresh draws: shape `(draws, batch)`, nats."""
        offsets, log_q = proposal.draw(draws * self.size)
        return self._log_joint(offsets, draws, flows=self.aef.flows, log_q=log_q).reshape(draws, -1) + self.log_det

    # ------------------------------------------------------------------ free coordinates

    def start(self) -> Tensor:
        """Return where the encoder, without noise, puts the batch in free coordinates: shape `(batch, D)`."""
        flows = self.aef.flows
        if not self.single:
            return torch.cat([flows[name](core)[0].flatten(1) for name, core in self.core.items()], dim=1)
        place = Infer(self.size, flows, self.core, self.aef.still, {})
        return place("z", None, self.state).flatten(1)

    def log_joint(self, v: Tensor, draws: int = 1) -> Tensor:
        """Return log p(x, v) in nats for free coordinates `(draws * batch, D)`, without the preprocessing."""
        return self._log_joint(v, draws, flows=None)

    def log_prior(self, v: Tensor) -> Tensor:
        """Return the part of `log_joint` that is not log p(x | z), for `(batch, D)`."""
        if self.single:
            return self._given(v, 1).prior
        place, _ = self._infer(v, 1, None, None)
        return place.prior + place.log_det

    def mean_and_scale(self, v: Tensor) -> tuple[Tensor, Tensor] | None:
        """Return mean and scale of the residual, shapes `(batch, *event)` and broadcastable; None if there is none."""
        residual = self.aef.residual
        if not isinstance(residual, Residual):
            return None
        decoded = (
            self._run(Generate(self.size, self._given(v, 1).z), None, 1)
            if self.single
            else self._infer(v, 1, None, None)[1]
        )
        mean, scale = self.aef.shaped(decoded, self.size)
        return mean, residual.scale(scale)

    # ------------------------------------------------------------------ steps

    def _log_joint(self, v: Tensor, draws: int, flows: Any, log_q: Tensor | None = None) -> Tensor:
        """Score coordinates of all latents, `(draws * batch, D)`, piece by piece where the decoder runs."""
        if self.single:  # flows and prior are cheap, and faster in large batches: only the decoder runs in pieces
            place = self._given(v, draws) if flows is None else self._placed(v, draws, flows, log_q)
            pieces = [
                self._log_residual(self._run(Generate(z.shape[0], {"z": z}), None, n), n)
                for z, n in self._pieces(place.z["z"], draws)
            ]
            return place.prior + torch.cat(pieces) + place.log_det + getattr(place, "entropy", 0.0)
        values = []
        log_q = v.new_zeros(v.shape) if log_q is None else log_q
        for both, n in self._pieces(torch.stack([v, log_q], 2), draws):
            place, decoded = self._infer(both[..., 0], n, flows, both[..., 1])
            values.append(place.prior + self._log_residual(decoded, n) + place.log_det + place.entropy)
        total = torch.cat(values)
        return torch.where(total.isnan(), -torch.inf, total)  # far-off draws may overflow: a weight of zero

    def _pieces(self, values: Tensor, draws: int) -> list[tuple[Tensor, int]]:
        pieces = values.split(max(self.draws_decoded or draws, 1) * max(self.size, 1))
        return [(piece, piece.shape[0] // max(self.size, 1)) for piece in pieces]

    def _infer(self, v: Tensor, draws: int, flows: Any, log_q: Tensor | None) -> tuple[Infer, Decoded]:
        place = self._place(v, draws, flows, log_q)
        return place, self._run(place, repeat_rows(self.state, draws, self.size), draws)

    def _placed(self, v: Tensor, draws: int, flows: Any, log_q: Tensor | None) -> Infer:
        place = self._place(v, draws, flows, log_q)
        place("z", None, repeat_rows(self.state, draws, self.size))
        return place

    def _place(self, v: Tensor, draws: int, flows: Any, log_q: Tensor | None) -> Infer:
        """Put w = h(x) + v (u = v without flows) in place; log q counts where the latent does."""
        sizes = list(self.sizes.values())
        offsets = dict(zip(self.sizes, v.split(sizes, dim=1), strict=True))
        densities = {} if log_q is None else dict(zip(self.sizes, log_q.split(sizes, dim=1), strict=True))
        core = repeat_rows(self.core, draws, self.size)
        if flows is None:
            core = {name: torch.zeros_like(value) for name, value in core.items()}
            flows = dict.fromkeys(core, lambda u: (u, 0.0))

        def shift(name: str, core: Tensor, posterior: Any) -> tuple[Tensor, Tensor]:
            gain = -densities[name].sum(1) if densities else core.new_zeros(())
            return core + offsets[name].reshape(core.shape).to(core.dtype), gain

        perturb: Perturb = shift
        return Infer(draws * self.size, flows, core, perturb, self.aef.priors(self.batch.repeat(draws)))

    def _given(self, v: Tensor, draws: int) -> Given:
        z = {"z": v.reshape(-1, *self.core["z"].shape[1:])}
        place = Given(z, draws * self.size, self.aef.priors(self.batch.repeat(draws)))
        place("z", None, None)
        return place

    def _run(self, place: Any, state: Any, draws: int) -> Decoded:
        batch = self.batch.repeat(draws)
        return self.aef.parts.run(place, state, *batch.cond, **batch.kwargs)

    def _log_residual(self, decoded: Decoded, draws: int) -> Tensor:
        return self.aef.log_residual(repeat_rows(self.batch.x, draws, self.size), decoded)
