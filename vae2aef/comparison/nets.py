"""Two small VAEs: the networks of `vae2aef compare`, and examples of what `wrap` takes."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from vae2aef.comparison.errors import InputError
from vae2aef.tensors import with_older_buffers


class _GaussianVAE(nn.Module):
    """What both share: a Gaussian posterior given by its mean and log-variance."""

    encoder: nn.Module
    decoder: nn.Module
    to_mean: nn.Module
    to_log_var: nn.Module
    center: Tensor
    spread: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("center", torch.zeros(()))
        self.register_buffer("spread", torch.ones(()))

    @torch.no_grad()
    def standardise(self, x: Tensor) -> None:
        """Have the encoder see data less the mean of x, in units of its standard deviation: one number each."""
        x = x.to(self.center.dtype)
        self.center.copy_(x.mean())
        self.spread.copy_(x.std(correction=0).clamp(min=1e-6))

    def encode(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Map data (batch, *event) to the mean and the log-variance of z, each (batch, latents)."""
        hidden = self.encoder((x - self.center) / self.spread)
        return self.to_mean(hidden), self.to_log_var(hidden)

    def reparameterize(self, mean: Tensor, log_var: Tensor) -> Tensor:
        """Draw z from N(mean, exp(log_var))."""
        return mean + torch.exp(0.5 * log_var) * torch.randn_like(mean)

    def decode(self, z: Tensor) -> Tensor:
        """Map latents (batch, latents) to the mean of the data, (batch, *event); any real number."""
        return self.decoder(z)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Return reconstruction, mean and log-variance."""
        mean, log_var = self.encode(x)
        return self.decode(self.reparameterize(mean, log_var)), mean, log_var

    def _load_from_state_dict(self, state_dict: dict, prefix: str, *args: object) -> None:
        state_dict = with_older_buffers(state_dict, prefix + "to_mean.weight", prefix, center=0.0, spread=1.0)
        super()._load_from_state_dict(state_dict, prefix, *args)


class MLPVAE(_GaussianVAE):
    """Two hidden layers each way, for data of any shape.

    Args:
        event_shape: shape of one sample.
        latents: number of latent variables.
        hidden: units of a hidden layer.
    """

    def __init__(self, event_shape: tuple[int, ...], latents: int, hidden: int = 400) -> None:
        super().__init__()
        features = math.prod(event_shape)
        self.encoder = nn.Sequential(
            nn.Flatten(), nn.Linear(features, hidden), nn.SiLU(), nn.Linear(hidden, hidden), nn.SiLU()
        )
        self.to_mean = nn.Linear(hidden, latents)
        self.to_log_var = nn.Linear(hidden, latents)
        self.decoder = nn.Sequential(
            nn.Linear(latents, hidden), nn.SiLU(), nn.Linear(hidden, hidden), nn.SiLU(),
            nn.Linear(hidden, features), nn.Unflatten(1, tuple(event_shape)),
        )  # fmt: skip


class ConvVAE(_GaussianVAE):
    """The small convolutional VAE of the paper's Appendix D.1, for images.

    Two 3x3 convolutions of stride 2 with 64 and 128 kernels; a linear layer and two 4x4 transposed
    convolutions back. Sizes that 4 does not divide are decoded to the next multiple and cropped.

    Args:
        event_shape: (channels, height, width).
        latents: number of latent variables.
    """

    def __init__(self, event_shape: tuple[int, ...], latents: int) -> None:
        super().__init__()
        if len(event_shape) != 3:
            raise InputError(
                f"ConvVAE takes images (channels, height, width), got samples of shape {event_shape}; use MLPVAE"
            )
        channels, *self._size = event_shape
        small = [-(-side // 4) for side in self._size]
        features = 128 * math.prod(small)
        self.encoder = nn.Sequential(
            nn.Conv2d(channels, 64, 3, stride=2, padding=1), nn.ReLU(),
            nn.Conv2d(64, 128, 3, stride=2, padding=1), nn.ReLU(), nn.Flatten(),
        )  # fmt: skip
        self.to_mean = nn.Linear(features, latents)
        self.to_log_var = nn.Linear(features, latents)
        self.decoder = nn.Sequential(
            nn.Linear(latents, features), nn.ReLU(), nn.Unflatten(1, (128, *small)),
            nn.ConvTranspose2d(128, 64, 4, stride=2, padding=1), nn.ReLU(),
            nn.ConvTranspose2d(64, channels, 4, stride=2, padding=1),
        )  # fmt: skip

    def decode(self, z: Tensor) -> Tensor:
        """Map latents (batch, latents) to the mean of the data, (batch, channels, height, width)."""
        height, width = self._size
        return self.decoder(z)[..., :height, :width]
