"""Real images for the adapter tests, in the shape that a codebase's VAE needs."""

from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

SHARED = Path(__file__).parents[3] / "shared" / "data" / "mnist.npz"


def images(shape: tuple[int, ...], count: int = 256, symmetric: bool = False) -> Tensor:
    """Return dequantised images, `(count, *shape)`, in [0, 1], or in [-1, 1] if `symmetric`.

    MNIST where it is at hand, otherwise scikit-learn's digits. Sequences get the pixels in a row, volumes the
    image at every depth, colours the image in every channel.
    """
    numpy = pytest.importorskip("numpy")
    if SHARED.is_file():
        with numpy.load(SHARED) as file:
            key = next(name for name in file.files if file[name].ndim >= 3)
            grey = torch.from_numpy(file[key][:count]).float().reshape(-1, 1, 28, 28)
    else:
        datasets = pytest.importorskip("sklearn.datasets", reason="needs shared/data/mnist.npz or scikit-learn")
        grey = torch.from_numpy(datasets.load_digits().images[:count] / 16 * 255).float().unsqueeze(1)
    grey = (grey + torch.rand(grey.shape, generator=torch.Generator().manual_seed(0))) / 256
    if len(shape) == 2:
        side = round(shape[1] ** 0.5)
        x = F.interpolate(grey, size=(side, side), mode="area").reshape(len(grey), 1, -1).expand(-1, *shape)
    else:
        x = F.interpolate(grey, size=shape[-2:], mode="area")
        x = x.reshape(len(grey), 1, *(1,) * (len(shape) - 3), *shape[-2:]).expand(-1, *shape)
    x = x.clamp(0, 1).contiguous()
    return 2 * x - 1 if symmetric else x
