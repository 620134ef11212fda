"""A linear layer on whose output one step of an optimizer has an effect that does not grow with its input."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vae2aef.tensors import with_older_buffers


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
