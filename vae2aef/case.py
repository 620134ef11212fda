"""One batch for importance sampling: what does not change from draw to draw, and log p(x, w) at any w (Eq. 17)."""

import math
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from vae2aef.batch import Batch, repeat_rows
from vae2aef.chain import Generate, Given, Infer
from vae2aef.draws import preprocessed
from vae2aef.likelihood.base import information
from vae2aef.parts import Decoded
from vae2aef.prior_draws import prior_draws
from vae2aef.program import VAEProgram
from vae2aef.tensors import numel

if TYPE_CHECKING:
    from vae2aef.aef import AEF
    from vae2aef.proposals import Proposal


class Case:
    """A batch, preprocessed and encoded once: a `vae2aef.protocols.Target`, and log p(x, w) around h(x) besides.

    A proposal sees its latents as D numbers a datum. Around h(x) these are the offsets of w (`around`). For a fit to
    the posterior they are free coordinates v (`start`, then `log_joint`): the latents themselves; where a latent has
    a bounded support u, of which it is made by loc + scale u and transforms, so that every v is a point of it.

    Args:
        aef: the model.
        batch: data as the user gives it, with conditions.
        at_once: most rows to decode at once; None for no limit.
        random: the numbers that draws are made of; None for torch's own.
        log_det: of the preprocessing, where the data are preprocessed already.
        observed: which values are there, `(batch, *event)`; None for all. Others count nothing.

    Attributes:
        size: how many data there are.
        dim: D, over all latents.
        log_det: of the preprocessing, `(batch,)`, nats.
    """

    def __init__(
        self,
        aef: "AEF",
        batch: Batch,
        at_once: int | None = None,
        random: Any = None,
        log_det: Any = None,
        observed: Tensor | None = None,
    ) -> None:
        self.aef, self.size, self.at_once = aef, batch.size, at_once
        self.random, self.observed = random, observed
        self.draws_decoded = None if at_once is None else max(at_once // max(self.size, 1), 1)
        if log_det is None:
            y, log_det = preprocessed(aef, batch.x, random) if observed is None else aef.fill_in(batch.x, observed)
            batch = batch._replace(x=y)
        self.batch, self.log_det = batch, log_det
        self.core, _ = aef.split(batch.x)
        self.single = not isinstance(aef.parts, VAEProgram)
        infer = aef.parts.encode if self.single else aef.parts.infer
        self.state = infer(batch.x, *batch.cond, **batch.kwargs)
        self.sizes = {name: numel(core.shape[1:]) for name, core in self.core.items()}
        self.dim = sum(self.sizes.values())
        # Shapes of the latents, where these are the free coordinates; which rows have them.
        self.given: dict[str, torch.Size] | None = None
        self.started = self.prior_apart = False
        self.masks: dict[str, Tensor] = {}

    # ------------------------------------------------------------------ around h(x)

    def log_weights(self, proposal: "Proposal", draws: int, noise: Tensor | None = None) -> Tensor:
        """Return log p(x, w_k) / q(w_k | x) for fresh draws: shape `(draws, batch)`, nats; `noise` as in `draw`."""
        return self.around(*proposal.draw(draws * self.size, noise), draws)

    def around(self, offsets: Tensor, log_q: Tensor, draws: int) -> Tensor:
        """Return log p(x, h(x) + offset) - log q: shape `(draws, batch)`, nats.

        Args:
            offsets: `(draws * batch, D)`.
            log_q: the density of each number of an offset given those before it, likewise.
            draws: how many.
        """
        flows = self.aef.flows
        if self.single:
            place = self._infer(offsets, draws, flows, log_q)
            place("z", None, repeat_rows(self.state, draws, self.size))
            total = self._decoded_in_pieces(place, draws)
        else:
            values = []
            for both, n in self._pieces(torch.stack([offsets, log_q], 2), draws):
                place = self._infer(both[..., 0], n, flows, both[..., 1])
                values.append(self._score(place, self._run(place, repeat_rows(self.state, n, self.size), n), n))
            total = torch.cat(values)
        return total.reshape(draws, self.size) + self.log_det

    # ------------------------------------------------------------------ free coordinates

    def start(self) -> Tensor:
        """Return where the encoder, without noise, puts the batch in free coordinates: shape `(batch, D)`."""
        place = Infer(self.size, self.aef.flows, self.core, self.aef.still, {})
        if self.single:
            place("z", None, self.state)
        else:
            self._run(place, self.state, 1)
        self.masks, self.started = place.masks, True
        if place.free:
            self.prior_apart = self.single  # no decoder pass
            rows = {name: self.aef.parts.rows_first(name, z) for name, z in place.z.items()}
            self.given = {name: z.shape[1:] for name, z in rows.items()}
            return torch.cat([_flat(z) for z in rows.values()], dim=1)
        self.given = None
        return torch.cat([_flat(self.aef.flows[name](core)[0]) for name, core in self.core.items()], dim=1)

    def log_joint(self, v: Tensor, draws: int = 1) -> Tensor:
        """Return log p(x, v) in nats for free coordinates `(draws * batch, D)`, without the preprocessing."""
        return self.joint_and_prior(v, draws)[0]

    def joint_and_prior(self, v: Tensor, draws: int = 1) -> tuple[Tensor, Tensor]:
        """Return log p(x, v) and its part log p0(v) for free coordinates `(draws * batch, D)`, nats."""
        if self.prior_apart:
            place = self._given(v, draws)
            return self._decoded_in_pieces(place, draws), _no_nan(place.prior)
        joints, priors = [], []
        for piece, n in self._pieces(v, draws):
            place, decoded = self._at(piece, n)
            joints.append(self._score(place, decoded, n))
            priors.append(place.prior + place.log_det)
        absent = self._absent(v, draws)
        return torch.cat(joints) + absent, _no_nan(torch.cat(priors) + absent)

    def prior_draws(self, count: int, stream: int) -> Tensor | None:
        """Draw free coordinates from the prior, `(count, batch, D)`; None where it cannot be drawn from in them."""
        return prior_draws(self, count, stream)

    def rows(self, take: Tensor) -> "Case":
        """Return some of the data as a case of their own, encoded anew."""
        numbers = None if self.random is None else self.random.rows(take)
        mask = None if self.observed is None else self.observed[take]
        case = Case(self.aef, self.batch.rows(take), self.at_once, numbers, self.log_det[take], mask)
        if self.started:
            case.start()
        return case

    def log_prior(self, v: Tensor, draws: int = 1) -> Tensor:
        """Return the part of `log_joint` that is not log p(x | z), for `(draws * batch, D)`."""
        place = self._given(v, draws) if self.prior_apart else self._at(v, draws)[0]
        return place.prior + place.log_det + self._absent(v, draws)

    def mean_and_scale(self, v: Tensor, draws: int = 1) -> tuple[Tensor, Tensor] | None:
        """Return a parameter of p(x | z), for `(draws * batch, D)`, and the scale to measure it by; None if not known.

        See `vae2aef.likelihood.base.information`.
        """
        found = information(self.aef.observed(self._decoded(v, draws), draws * self.size))
        if found is None or self.observed is None:
            return found
        (parameter, scale), there = found, repeat_rows(self.observed, draws, self.size)
        there = there.reshape(there.shape + (1,) * (parameter.dim() - there.dim()))
        return parameter, torch.where(there, scale.expand_as(parameter), 1e12)

    def decoded(self, v: Tensor) -> tuple[Any, Tensor]:
        """Return p(x | z) at free coordinates `(batch, D)`, and its mean, `(batch, *event)`; of preprocessed data."""
        decoded = self._decoded(v, 1)
        return self.aef.observed(decoded, self.size), self.aef.mean(decoded, self.size)

    def _decoded(self, v: Tensor, draws: int) -> Decoded:
        if not self.single or self.given is None:
            return self._at(v, draws)[1]
        z = self.aef.parts.rows_back("z", v.reshape(-1, *self.given["z"]))
        return self._run(Generate(draws * self.size, {"z": z}), None, draws)

    def _absent(self, v: Tensor, draws: int) -> Tensor:
        """Stand in for the density of latents that rows do not have: any that integrates to one leaves p(x)."""
        total = v.new_zeros(v.shape[0])
        names = self.sizes if self.given is None else {name: numel(shape) for name, shape in self.given.items()}
        for name, own in zip(names, v.split(list(names.values()), dim=1), strict=True):
            if name in self.masks:
                missing = repeat_rows(~self.masks[name], draws, self.size)
                total = total + torch.where(missing, -0.5 * (own.square() + math.log(2 * math.pi)).sum(1), 0.0)
        return total

    def _at(self, v: Tensor, draws: int) -> tuple[Any, Decoded]:
        """Run a program of several latents at free coordinates, `(draws * batch, D)`."""
        state = repeat_rows(self.state, draws, self.size)
        if self.given is None:
            place: Any = self._infer(v, draws, dict.fromkeys(self.core, lambda u: (u, 0.0)), None, scale=0.0)
            return place, self._run(place, state, draws)
        place = self._given(v, draws)
        return place, self._run(place, self.aef.parts.state_of_given(state), draws)

    def _given(self, v: Tensor, draws: int) -> Given:
        shapes = self.given or {}
        pieces = v.split([numel(shape) for shape in shapes.values()], dim=1)
        z = {
            name: self.aef.parts.rows_back(name, piece.reshape(-1, *shape))
            for (name, shape), piece in zip(shapes.items(), pieces, strict=True)
        }
        place = Given(z, draws * self.size, self.aef.priors(self.batch.repeat(draws)))
        if self.single:
            place("z", None, None)  # the prior is cheap: it is not run in pieces
        return place

    # ------------------------------------------------------------------ steps

    def _infer(self, v: Tensor, draws: int, flows: Any, log_q: Tensor | None, scale: float = 1.0) -> Infer:
        """Return the place of w = scale h(x) + v. The density log q of a draw counts where its latent does."""
        sizes = list(self.sizes.values())
        offsets = dict(zip(self.sizes, v.split(sizes, dim=1), strict=True))
        densities = {} if log_q is None else dict(zip(self.sizes, log_q.split(sizes, dim=1), strict=True))

        def shift(name: str, core: Tensor, posterior: Any) -> tuple[Tensor, Tensor]:
            gain = -densities[name].sum(1) if densities else core.new_zeros(())
            return scale * core + offsets[name].reshape(core.shape).to(core.dtype), gain

        core = repeat_rows(self.core, draws, self.size)
        return Infer(draws * self.size, flows, core, shift, self.aef.priors(self.batch.repeat(draws)))

    def _decoded_in_pieces(self, place: Any, draws: int) -> Tensor:
        """Add log p(x | z) to what a place has gathered; flows and prior were faster in one large batch."""
        pieces = [
            self._log_residual(self._run(Generate(z.shape[0], {"z": z}), None, n), n)
            for z, n in self._pieces(place.z["z"], draws)
        ]
        return _no_nan(place.prior + torch.cat(pieces) + place.log_det + place.entropy)

    def _pieces(self, values: Tensor, draws: int) -> list[tuple[Tensor, int]]:
        pieces = values.split(max(self.draws_decoded or draws, 1) * max(self.size, 1))
        return [(piece, piece.shape[0] // max(self.size, 1)) for piece in pieces]

    def _score(self, place: Any, decoded: Decoded, draws: int) -> Tensor:
        return _no_nan(place.prior + self._log_residual(decoded, draws) + place.log_det + place.entropy)

    def _run(self, place: Any, state: Any, draws: int) -> Decoded:
        batch = self.batch.repeat(draws)
        return self.aef.parts.run(place, state, *batch.cond, **batch.kwargs)

    def _log_residual(self, decoded: Decoded, draws: int) -> Tensor:
        x, there = repeat_rows((self.batch.x, self.observed), draws, self.size)
        return self.aef.log_residual(x, decoded, there)


def _no_nan(log_density: Tensor) -> Tensor:
    return torch.where(log_density.isnan(), -torch.inf, log_density)  # far-off draws may overflow: a weight of zero


def _flat(values: Tensor) -> Tensor:
    return values.reshape(values.shape[0], numel(values.shape[1:]))
