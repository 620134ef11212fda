"""Linear maps on whose output one step of an optimizer has an effect that is bounded, however large their input."""

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vae2aef.tensors import with_older_buffers

FAN_IN = 256
"""Up to how many values of x one step of Adam moves h by more, the more there are. Each weight moves by about the
learning rate a step whatever its gradient, and so h by the sum of |x| over all values: on a picture of 3 x 256 x 256
that is more than the whole spread of the latent. From 4096 values on it is this that says how much each counts."""

SQUARES = 16
"""Up to how many values of x one step of SGD moves h by more: such a step moves it by the sum of |x|^2. From this many
values on each counts for less."""


def fan_in_scale(values: int) -> float:
    """What each of so many values of unit spread is multiplied by before it enters h."""
    return min(1.0, math.sqrt(SQUARES / values), FAN_IN / values)


@torch.no_grad()
def start_at_one(weight: Tensor, h: Tensor | None, share: float) -> None:
    """Scale W', uniform in +-1/sqrt(n), so that h, of data of unit spread, starts with a root mean square of 1.

    So h starts where the noise of the VAE was, and z where its prior expects it; h of another spread makes all data
    want another g_s at once, which a large first step overshoots. A W that happens to say little of the example is
    scaled to at most twice what is expected, since it may say more of other data.

    Args:
        weight: W', of n inputs.
        h: of the example, without its bias; None to do what is expected.
        share: what each value of unit spread is multiplied by.
    """
    expected = math.sqrt(3) / share
    size = 0.0 if h is None else float(h.square().mean().sqrt())
    weight.mul_(min(1 / size, 2 * expected) if 0 < size < math.inf else expected)


class FanInLinear(nn.Linear):
    """W x + b with W = gain W', gain = min(1, base / in_features): maximal-update scaling.

    Adam moves each weight by about its learning rate, and so a sum over many inputs by that times their number; here no
    further than over `base` inputs. W starts as in `torch.nn.Linear`. Checkpoints of release 0.1, which have no gain,
    keep their map: theirs is 1.

    Args:
        in_features: how many inputs.
        out_features: how many outputs.
        base: up to how many inputs nothing changes.

    References:
        Yang, Hu, *Feature Learning in Infinite-Width Neural Networks*, ICML 2021.
    """

    gain: Tensor

    def __init__(self, in_features: int, out_features: int, base: int = 32) -> None:
        super().__init__(in_features, out_features)
        self.register_buffer("gain", torch.tensor(min(1.0, base / max(in_features, 1))))
        with torch.no_grad():
            self.weight.div_(self.gain)

    def forward(self, x: Tensor) -> Tensor:
        """Map `(..., in_features)` to `(..., out_features)`."""
        return F.linear(x * self.gain, self.weight, self.bias)

    @torch.no_grad()
    def fold(self) -> None:
        """Put the gain into the weights, for what stores no buffers: the map stays, its gain is 1."""
        self.weight.mul_(self.gain)
        self.gain.fill_(1.0)

    def _load_from_state_dict(self, state_dict: dict, prefix: str, *args: object) -> None:
        state_dict = with_older_buffers(state_dict, prefix + "weight", prefix, gain=1.0)
        super()._load_from_state_dict(state_dict, prefix, *args)
