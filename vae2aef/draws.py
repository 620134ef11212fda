"""Random numbers for each datum that are its own: the same whatever the batch, the order, the chunk or the device.

They are counted, not drawn from a state: number i of a stream is a hash of (key of the datum, stream, i). So the
hundredth draw of a datum is the same number whether it is asked for alone or with a thousand others.

References:
    Salmon, Moraes, Dror, Shaw, *Parallel random numbers: as easy as 1, 2, 3*, SC 2011; the hash is splitmix64's
    (Steele, Lea, Flood, *Fast splittable pseudorandom number generators*, OOPSLA 2014).
"""

import hashlib
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from vae2aef.batch import Batch
from vae2aef.modes import own_random_state

if TYPE_CHECKING:
    from vae2aef.aef import AEF

GOLDEN, MIX_1, MIX_2 = (constant - 2**64 for constant in (0x9E3779B97F4A7C15, 0xBF58476D1CE4E5B9, 0x94D049BB133111EB))
WIDEST = 2**24
"""More values than a draw has."""

PREPROCESSING, STARTS, IMPROVING, PILOT, ESTIMATE, ANNEALING, CHOICE = (1 << shift for shift in range(24, 31))
"""Streams: what is random in one place is independent of what is random in another."""


class Draws:
    """The random numbers of a batch.

    Args:
        keys: one 64-bit key a datum, `(batch,)`, on the CPU.
        seeded: whether the keys were made from the data and a seed: everything that is random then must be.
    """

    def __init__(self, keys: Tensor, seeded: bool) -> None:
        self.keys, self.seeded = keys, seeded

    @classmethod
    def of(cls, batch: Batch, seed: int | None) -> "Draws":
        """Return those of a batch: from a seed and the data's own bytes, conditions included, or new ones for None."""
        if seed is None:
            return cls(torch.randint(2**62, (batch.size,)), False)
        own = [hashlib.blake2b(str(seed).encode(), digest_size=8) for _ in range(batch.size)]
        for value in _tensors(tuple(batch)):
            has_rows = value.dim() > 0 and value.shape[0] == batch.size
            data = value.detach().cpu().contiguous()
            for row, hashed in enumerate(own):
                one = (data[row] if has_rows else data).reshape(-1)
                hashed.update(one.view(torch.uint8).numpy().tobytes())
        keys = [int.from_bytes(hashed.digest(), "little", signed=True) for hashed in own]
        return cls(torch.tensor(keys, dtype=torch.int64), True)

    def rows(self, take: "slice | Tensor") -> "Draws":
        """Return those of some rows."""
        return Draws(self.keys[take if isinstance(take, slice) else take.cpu()], self.seeded)

    def uniform(self, stream: int, first: int, count: int, width: int) -> Tensor:
        """Return numbers in (0, 1), float64 `(count, batch, width)`: draws `first` to `first + count` of a stream."""
        draw = torch.arange(first, first + count, dtype=torch.int64)[:, None, None]
        place = draw * WIDEST + torch.arange(width, dtype=torch.int64)
        key = self._stream(stream)[None, :, None]
        bits = _mix(_mix(key + GOLDEN * (place + 1)) ^ key)
        return (_shifted(bits, 11).double() + 0.5) * 2.0**-53

    def normal(self, stream: int, first: int, count: int, width: int) -> Tensor:
        """Return standard normal numbers, likewise."""
        return torch.special.ndtri(self.uniform(stream, first, count, width))

    def seed(self, row: int, stream: int) -> int:
        """Return a seed for torch's own generator: for densities that draw from it."""
        return int(self._stream(stream)[row]) & (2**63 - 1)

    def _stream(self, stream: int) -> Tensor:
        return _mix(self.keys + torch.tensor(stream + 1) * GOLDEN)  # in torch, whose integers wrap round


def preprocessed(aef: "AEF", x: Tensor, random: Draws | None, number: int = 0) -> tuple[Tensor, Tensor]:
    """Preprocess data `(batch, *event)`; return y and log|det dy/dx|, `(batch,)`.

    Noise in it, as that of dequantisation, is each datum's own if there is a seed; `number` says which.
    """
    if random is None or not random.seeded or not x.shape[0]:
        return aef.to_latent_side(x)
    with own_random_state(x.device):
        whole, again = aef.to_latent_side(x), aef.to_latent_side(x)[0]
        if torch.equal(whole[0].nan_to_num(), again.nan_to_num()):  # nothing random in it
            return whole
        rows = []
        for row in range(x.shape[0]):
            torch.manual_seed(random.seed(row, PREPROCESSING + number))
            rows.append(aef.to_latent_side(x[row : row + 1]))
    return torch.cat([y for y, _ in rows]), torch.cat([log_det for _, log_det in rows])


def _mix(value: Tensor) -> Tensor:
    value = (value ^ _shifted(value, 30)) * MIX_1
    value = (value ^ _shifted(value, 27)) * MIX_2
    return value ^ _shifted(value, 31)


def _shifted(value: Tensor, by: int) -> Tensor:
    """Shift to the right, zeros coming in, which torch's shift of signed integers does not do."""
    return (value >> by) & ((1 << (64 - by)) - 1)


def _tensors(value: Any) -> list[Tensor]:
    if isinstance(value, Tensor):
        return [value]
    if isinstance(value, (tuple, list)):
        return [tensor for item in value for tensor in _tensors(item)]
    return [tensor for key in sorted(value) for tensor in _tensors(value[key])] if isinstance(value, dict) else []
