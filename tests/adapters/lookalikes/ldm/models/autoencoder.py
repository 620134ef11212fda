import torch
from torch import nn


class DiagonalGaussianDistribution:
    def __init__(self, parameters):
        self.mean, logvar = parameters.chunk(2, dim=1)
        self.logvar = logvar.clamp(-30, 20)
        self.std, self.var = (self.logvar / 2).exp(), self.logvar.exp()

    def sample(self):
        return self.mean + self.std * torch.randn(self.mean.shape, dtype=self.mean.dtype)

    def mode(self):
        return self.mean

    def kl(self):
        return 0.5 * (self.mean.square() + self.var - 1 - self.logvar).sum(dim=[1, 2, 3])


class AutoencoderKL(nn.Module):
    """The original is a LightningModule; the adapter looks at its name, `encode` and `decode` only."""

    def __init__(self, embed_dim=2, channels=1):
        super().__init__()
        self.encoder = nn.Sequential(nn.Conv2d(channels, 8, 3, 2, 1), nn.SiLU(), nn.Conv2d(8, 2 * embed_dim, 3, 2, 1))
        self.quant_conv = nn.Conv2d(2 * embed_dim, 2 * embed_dim, 1)
        self.post_quant_conv = nn.Conv2d(embed_dim, embed_dim, 1)
        self.decoder = nn.Sequential(
            nn.ConvTranspose2d(embed_dim, 8, 4, 2, 1), nn.SiLU(), nn.ConvTranspose2d(8, channels, 4, 2, 1)
        )

    def encode(self, x):
        return DiagonalGaussianDistribution(self.quant_conv(self.encoder(x)))

    def decode(self, z):
        return self.decoder(self.post_quant_conv(z))

    def forward(self, input, sample_posterior=True):
        posterior = self.encode(input)
        return self.decode(posterior.sample() if sample_posterior else posterior.mode()), posterior


class VQModel(AutoencoderKL):
    """Named as the vector-quantised model."""
