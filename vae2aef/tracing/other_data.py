"""Other data than those at hand, to try a VAE on, and a comparison up to rounding."""

import torch
from torch import Tensor


def other_data(x: Tensor) -> Tensor:
    """Return other data in the same range: half each of reversed data and noise; of whole numbers, others of them."""
    if not x.is_floating_point():
        return x.flatten()[torch.randint(x.numel(), x.shape, device=x.device)]
    low, high = x.min(), x.max()
    high = torch.where(high > low, high, low + 1)
    return 0.5 * x.flatten(1).flip(1).reshape(x.shape) + 0.5 * (low + (high - low) * torch.rand_like(x))


def close(a: Tensor, b: Tensor) -> bool:
    """Whether two results are one up to rounding, of the narrower type of the two."""
    if a.shape != b.shape:
        return False
    if a.dtype != b.dtype:
        a, b = (a.to(b), b) if torch.finfo(b.dtype).eps > torch.finfo(a.dtype).eps else (a, b.to(a))
    size = float(b.detach().abs().nan_to_num().amax()) if b.numel() else 0.0
    return torch.allclose(a, b, rtol=0.0, atol=1000 * torch.finfo(b.dtype).eps * (1 + size), equal_nan=True)
