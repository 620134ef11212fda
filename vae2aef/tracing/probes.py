"""What a VAE is probed with: other data in the range of its own, and a comparison up to rounding."""

import torch
from torch import Tensor


def other_data(x: Tensor) -> Tensor:
    """Return other data in the same range: half each of the reversed data and noise."""
    low, high = x.min(), x.max()
    high = torch.where(high > low, high, low + 1)
    return 0.5 * x.flatten(1).flip(1).reshape(x.shape) + 0.5 * (low + (high - low) * torch.rand_like(x))


def close(a: Tensor, b: Tensor) -> bool:
    """Whether two results are one up to rounding."""
    if a.shape != b.shape:
        return False
    size = float(b.detach().abs().nan_to_num().amax()) if b.numel() else 0.0
    return torch.allclose(a, b, rtol=0.0, atol=1000 * torch.finfo(b.dtype).eps * (1 + size), equal_nan=True)
