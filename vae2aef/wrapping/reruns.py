"""Encoder and decoder of a VAE as functions of a few rows, with the same random state at every call."""

import contextlib
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor

from vae2aef.batch import Batch
from vae2aef.errors import WrapError
from vae2aef.generators import next_one
from vae2aef.modes import generators_of, untouched
from vae2aef.parts import VAEParts
from vae2aef.program import VAEProgram
from vae2aef.wrapping.known_pass import close
from vae2aef.wrapping.look import Seen


class Reruns:
    """Encoder and decoder as functions of a few rows, each with the same random state at every call.

    Args:
        parts: of the VAE.
        batch: a few rows.
        seen: what a look at the example showed.
        owners: the modules behind the parts.
        seed: sets all random states.

    Attributes:
        number: which random state.
        by_itself: whether the parts have another proof, or need none, that the decoder does not see the data.
        z: latents by name, for the decoder.
    """

    def __init__(
        self, parts: VAEParts, batch: Batch, seen: Seen, owners: list[Any], seed: Callable[[int], None]
    ) -> None:
        from vae2aef.tracing.parts import TracedParts

        self.parts, self.batch, self.owners, self.seed = parts, batch, owners, seed
        self.pyro = hasattr(parts, "independent")
        self.by_itself = isinstance(parts, TracedParts) or self.pyro
        self.number = 0
        seed(0)
        like = batch.x if batch.x.is_floating_point() else torch.empty(0)
        self.z = {
            name: torch.randn(batch.size, *shape, dtype=like.dtype, device=batch.x.device)
            for name, shape in seen.latents.items()
        }

    def infer(self, batch: Batch) -> Any:
        """Encode: what the decoder might see of the data, beside z."""
        self.seed(self.number)
        return self.parts.infer(batch.x, *batch.cond, **batch.kwargs)

    def encode(self, batch: Batch) -> dict[str, Tensor]:
        """Return location, scale, and z at u = 0, `(batch, *latent)` each; of one latent."""
        self.seed(self.number)
        posterior = self.parts.encode(batch.x, *batch.cond, **batch.kwargs)
        return {"location": posterior.loc, "scale": posterior.scale, "z": posterior.push(posterior.loc.detach() * 0)[0]}

    def decode(self, z: dict[str, Tensor], batch: Batch, state: Any = None) -> dict[str, Tensor]:
        """Return what the decoder says of latents: its outputs, and the log density of the same x under its own."""
        self.seed(self.number)
        if isinstance(self.parts, VAEProgram):
            place = _Fixed(z, batch.size)
            decoded = self.parts.run(place, state, *batch.cond, **batch.kwargs)
        else:
            decoded = self.parts.decode(z["z"].clone(), *batch.cond, **batch.kwargs)
        found = dict(zip(("mean", "scale", "third output"), decoded.outputs, strict=False))
        if decoded.density is not None:
            with contextlib.suppress(Exception):  # whether x is in its support is not asked here
                found["log density"] = decoded.density.log_prob(self.batch.x)
        return {name: t for name, t in found.items() if isinstance(t, Tensor)}

    def has_drawn(self) -> bool:
        """Whether random numbers have been drawn since the last of the methods above began."""
        next_ones = self._next_ones()
        self.seed(self.number)
        return next_ones != self._next_ones()

    def _next_ones(self) -> list[float]:
        """Draw a number from each of the generators that `seed` seeds."""
        found = [torch.rand((), device=where).item() for where in {torch.device("cpu"), self.batch.x.device}]
        return [*found, *map(next_one, generators_of(*self.owners))]

    def require_repeatable(self, mode: str) -> None:
        """Refuse parts that return something else of the same data, latents and random state: nothing can be proved.

        Args:
            mode: in words, for the message.
        """
        passes = []
        for _ in range(2):
            with self.afresh():
                found = self.decode(self.z, self.batch, self.infer(self.batch))
                passes.append(found if isinstance(self.parts, VAEProgram) else {**self.encode(self.batch), **found})
        name = moved(*passes)
        if name:
            raise WrapError(
                f"{mode}the {name} is another at each call, with the same data, latents and random state: it cannot be "
                "proved that it moves with nothing else. ",
                "Draw random numbers from torch's, Python's or NumPy's own generator, or from one that is an attribute "
                "of the module which draws",
            )

    def score(self, z: dict[str, Tensor], batch: Batch, seen: Batch) -> Tensor:
        """Return a Pyro program's log density of data for given latents, `(batch,)`, after its guide was run on some.

        Args:
            z: latents by name, `(batch, *latent)`.
            batch: the data that are scored.
            seen: those that the guide is run on before.
        """
        program: Any = self.parts
        place = _Fixed({name: program.rows_back(name, value) for name, value in z.items()}, batch.size)
        with self.afresh():
            self.seed(self.number)
            indices = program.run_guide(place, seen)
            self.seed(self.number)
            return program.run_model(place, batch, indices).density.log_prob(batch.x)

    @contextlib.contextmanager
    def afresh(self) -> Iterator[None]:
        """Begin with what the modules keep as it was."""
        with untouched(*self.owners):
            yield


class _Fixed:
    """Give every latent a known value."""

    def __init__(self, z: dict[str, Tensor], size: int) -> None:
        self.z, self.size = z, size

    def __call__(self, name: str, prior: Any, posterior: Any) -> Tensor:
        return self.z[name].clone()


def moved(first: dict[str, Tensor], second: dict[str, Tensor]) -> str:
    """Return the name of the first result that is another; empty if all are the same."""
    return next((k for k, t in first.items() if k not in second or not close(second[k], t)), "")


def other(x: Tensor) -> Tensor:
    """Return other data in the range of the example: of integers the same values in another order."""
    from vae2aef.tracing.other_data import other_data

    if x.dim() < 2:
        x = x.unsqueeze(1)
        return other(torch.cat([x, x], 1))[:, 0]
    return other_data(x) if x.is_floating_point() else x.flatten(1).flip(1).reshape(x.shape).roll(1, 0)
