"""Stand-in of ours for PyTorch-VAE's `HVAE`; see README.md beside this folder."""

import torch
from torch import nn
from torch.nn import functional as F

from models.base import BaseVAE


def down(channels, widths):
    blocks = []
    for width in widths:
        blocks.append(nn.Sequential(nn.Conv2d(channels, width, 3, 2, 1), nn.BatchNorm2d(width), nn.LeakyReLU()))
        channels = width
    return nn.Sequential(*blocks)


class HVAE(BaseVAE):
    """Images of 8 x 8: two halvings lead to 2 x 2, two doublings back."""

    def __init__(self, in_channels=1, latent1_dim=3, latent2_dim=2, width=8, img_size=8):
        super().__init__()
        self.latent1_dim, self.latent2_dim, self.img_size = latent1_dim, latent2_dim, img_size
        self.encoder_z2_layers = down(in_channels, (width, width))
        self.fc_z2_mu, self.fc_z2_var = (nn.Linear(4 * width, latent2_dim) for _ in range(2))
        self.embed_z2_code = nn.Linear(latent2_dim, img_size**2)
        self.embed_data = nn.Conv2d(in_channels, in_channels, 1)
        self.encoder_z1_layers = down(in_channels + 1, (width, width))
        self.fc_z1_mu, self.fc_z1_var = (nn.Linear(4 * width, latent1_dim) for _ in range(2))
        self.recons_z1_mu, self.recons_z1_log_var = (nn.Linear(latent2_dim, latent1_dim) for _ in range(2))
        self.debed_z1_code, self.debed_z2_code = nn.Linear(latent1_dim, 1024), nn.Linear(latent2_dim, 1024)
        self.decoder = nn.Sequential(nn.ConvTranspose2d(512, width, 4, 2, 1), nn.BatchNorm2d(width), nn.LeakyReLU())
        self.final_layer = nn.Sequential(nn.ConvTranspose2d(width, in_channels, 4, 2, 1), nn.Tanh())

    def encode_z2(self, input):
        features = self.encoder_z2_layers(input).flatten(1)
        return [self.fc_z2_mu(features), self.fc_z2_var(features)]

    def encode_z1(self, input, z2):
        plane = self.embed_z2_code(z2).view(-1, 1, self.img_size, self.img_size)
        features = self.encoder_z1_layers(torch.cat([self.embed_data(input), plane], dim=1)).flatten(1)
        return [self.fc_z1_mu(features), self.fc_z1_var(features)]

    def encode(self, input):
        moments2 = self.encode_z2(input)
        z2 = self.reparameterize(*moments2)
        return [*self.encode_z1(input, z2), *moments2, z2]

    def decode(self, input):
        return self.final_layer(self.decoder(input))

    def reparameterize(self, mu, logvar):
        return mu + (logvar / 2).exp() * torch.randn_like(logvar)

    def _image(self, z1, z2):
        return self.decode(torch.cat([self.debed_z1_code(z1), self.debed_z2_code(z2)], dim=1).view(-1, 512, 2, 2))

    def forward(self, input, **kwargs):
        mu1, log_var1, mu2, log_var2, z2 = self.encode(input)
        z1 = self.reparameterize(mu1, log_var1)
        return [self._image(z1, z2), input, mu1, log_var1, mu2, log_var2, z1, z2]

    def loss_function(self, *args, **kwargs):
        """The KL terms of theirs: both posteriors with the standard normal, and a term of z1 and its prior."""
        reconstruction, data, mu1, log_var1, mu2, log_var2, z1, z2 = args

        def term(square, log_var):
            return (0.5 * (square + log_var.exp() - 1 - log_var).sum(1)).mean()

        kld = term(mu1.square(), log_var1) + term(mu2.square(), log_var2)
        kld = kld - term((z1 - self.recons_z1_mu(z2)).square(), self.recons_z1_log_var(z2))
        mse = F.mse_loss(reconstruction, data)
        return {"loss": mse + kwargs["M_N"] * kld, "Reconstruction Loss": mse, "KLD": -kld}

    def sample(self, batch_size, current_device, **kwargs):
        z2 = torch.randn(batch_size, self.latent2_dim, device=current_device)
        return self._image(self.reparameterize(self.recons_z1_mu(z2), self.recons_z1_log_var(z2)), z2)

    def generate(self, x, **kwargs):
        return self(x)[0]
