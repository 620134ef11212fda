import torch
import torch.nn.functional as F
from torch import nn

from models.base import BaseVAE


class VanillaVAE(BaseVAE):
    def __init__(self, in_channels=1, latent_dim=4, img_size=16, in_planes=None, code_size=None):
        super().__init__()
        self.latent_dim = latent_dim
        self.size = img_size // 4
        self.encoder = nn.Sequential(
            nn.Conv2d(in_planes or in_channels, 8, 3, 2, 1), nn.BatchNorm2d(8), nn.LeakyReLU(),
            nn.Conv2d(8, 16, 3, 2, 1), nn.BatchNorm2d(16), nn.LeakyReLU(), nn.Flatten(),
        )  # fmt: skip
        self.fc_mu = nn.Linear(16 * self.size**2, latent_dim)
        self.fc_var = nn.Linear(16 * self.size**2, latent_dim)
        self.decoder_input = nn.Linear(code_size or latent_dim, 16 * self.size**2)
        self.decoder = nn.Sequential(
            nn.ConvTranspose2d(16, 8, 4, 2, 1), nn.BatchNorm2d(8), nn.LeakyReLU(),
            nn.ConvTranspose2d(8, in_channels, 4, 2, 1), nn.Tanh(),
        )  # fmt: skip

    def encode(self, input):
        features = self.encoder(input)
        return [self.fc_mu(features), self.fc_var(features)]

    def decode(self, z):
        return self.decoder(self.decoder_input(z).view(-1, 16, self.size, self.size))

    def reparameterize(self, mu, logvar):
        return torch.randn_like(logvar) * (logvar / 2).exp() + mu

    def forward(self, input, **kwargs):
        mu, log_var = self.encode(input)
        return [self.decode(self.reparameterize(mu, log_var)), input, mu, log_var]

    def loss_function(self, *args, **kwargs):
        reconstruction, data, mu, log_var = args[:4]
        mse = F.mse_loss(reconstruction, data)
        kld = (0.5 * (mu.square() + log_var.exp() - 1 - log_var).sum(1)).mean()
        return {
            "loss": mse + kwargs["M_N"] * kld,
            "Reconstruction_Loss": mse.detach(),
            "KLD": -kld.detach(),
        }

    def sample(self, num_samples, current_device, **kwargs):
        return self.decode(torch.randn(num_samples, self.latent_dim, device=current_device))

    def generate(self, x, **kwargs):
        return self(x, **kwargs)[0]
