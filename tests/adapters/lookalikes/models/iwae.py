import torch

from models.vanilla_vae import VanillaVAE


class IWAE(VanillaVAE):
    """`decode` takes (batch, samples, latent) and returns (batch, samples, channels, height, width)."""

    num_samples = 1

    def decode(self, z):
        flat = super().decode(z.reshape(-1, self.latent_dim))
        return flat.reshape(*z.shape[:2], *flat.shape[1:])

    def forward(self, input, **kwargs):
        mu, log_var = (t.unsqueeze(1).repeat(1, self.num_samples, 1) for t in self.encode(input))
        z = self.reparameterize(mu, log_var)
        return [self.decode(z), input, mu, log_var, z, torch.zeros_like(z)]

    def loss_function(self, *args, **kwargs):
        reconstruction, data, mu, log_var = args[:4]
        return super().loss_function(reconstruction[:, 0], data, mu[:, 0], log_var[:, 0], **kwargs)
