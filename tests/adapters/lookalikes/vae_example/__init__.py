"""Stand-in for `vae/main.py` of pytorch/examples; see README.md beside this folder."""

import torch
import torch.nn.functional as F
from torch import nn


class VAE(nn.Module):
    def __init__(self):
        super().__init__()
        self.enter = nn.Linear(784, 40)
        self.location, self.log_variance = nn.Linear(40, 5), nn.Linear(40, 5)
        self.leave, self.pixels = nn.Linear(5, 40), nn.Linear(40, 784)

    def encode(self, x):
        hidden = self.enter(x).relu()
        return self.location(hidden), self.log_variance(hidden)

    def reparameterize(self, mu, logvar):
        return mu + torch.randn_like(logvar) * (logvar / 2).exp()

    def decode(self, z):
        return self.pixels(self.leave(z).relu()).sigmoid()

    def forward(self, x):
        mu, logvar = self.encode(x.view(-1, 784))
        return self.decode(self.reparameterize(mu, logvar)), mu, logvar


def loss_function(recon_x, x, mu, logvar):
    cross_entropy = F.binary_cross_entropy(recon_x, x.view(-1, 784), reduction="sum")
    return cross_entropy - 0.5 * (1 + logvar - mu.square() - logvar.exp()).sum()
