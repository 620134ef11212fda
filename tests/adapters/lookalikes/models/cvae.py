import torch
from torch import nn

from models.vanilla_vae import VanillaVAE


class ConditionalVAE(VanillaVAE):
    def __init__(self, in_channels=1, num_classes=3, latent_dim=4, img_size=16):
        super().__init__(
            in_channels, latent_dim, img_size, in_planes=in_channels + 1, code_size=latent_dim + num_classes
        )
        self.img_size = img_size
        self.embed_class = nn.Linear(num_classes, img_size * img_size)
        self.embed_data = nn.Conv2d(in_channels, in_channels, 1)

    def forward(self, input, **kwargs):
        labels = kwargs["labels"].to(input.dtype)
        plane = self.embed_class(labels).view(-1, self.img_size, self.img_size).unsqueeze(1)
        mu, log_var = self.encode(torch.cat([self.embed_data(input), plane], dim=1))
        code = torch.cat([self.reparameterize(mu, log_var), labels], dim=1)
        return [self.decode(code), input, mu, log_var]
