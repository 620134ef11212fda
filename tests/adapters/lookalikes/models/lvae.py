"""Stand-ins of ours for two codebases that both have a `models/lvae.py`; see README.md beside this folder.

`LVAE` stands for PyTorch-VAE's, `LadderVAE` for the one of addtt/ladder-vae-pytorch.
"""

import torch
from torch import nn
from torch.nn import functional as F

from models.base import BaseVAE
from models.lvae_layers import BottomUpLayer, ResBlock, TopDownLayer
from models.lvae_likelihoods import LIKELIHOODS


class EncoderBlock(nn.Module):
    def __init__(self, in_channels, out_channels, latent_dim, img_size):
        super().__init__()
        self.encoder = nn.Sequential(
            nn.Conv2d(in_channels, out_channels, 3, 2, 1), nn.BatchNorm2d(out_channels), nn.LeakyReLU()
        )
        self.encoder_mu, self.encoder_var = (nn.Linear(out_channels * (img_size // 2) ** 2, latent_dim) for _ in "mv")

    def forward(self, input):
        result = self.encoder(input)
        return [result, self.encoder_mu(result.flatten(1)), self.encoder_var(result.flatten(1))]


class LadderBlock(nn.Module):
    def __init__(self, in_channels, latent_dim):
        super().__init__()
        self.decode = nn.Sequential(nn.Linear(in_channels, latent_dim), nn.BatchNorm1d(latent_dim))
        self.fc_mu, self.fc_var = nn.Linear(latent_dim, latent_dim), nn.Linear(latent_dim, latent_dim)

    def forward(self, z):
        z = self.decode(z)
        return [self.fc_mu(z), self.fc_var(z)]


class LVAE(BaseVAE):
    def __init__(self, in_channels=1, latent_dims=(4, 3, 2), hidden_dims=(4, 6, 8), img_size=16):
        super().__init__()
        self.latent_dims, self.hidden_dims, self.num_rungs = list(latent_dims), list(hidden_dims), len(latent_dims)
        widths = [in_channels, *hidden_dims]
        self.encoders = nn.Sequential(
            *(EncoderBlock(*widths[i : i + 2], d, img_size >> i) for i, d in enumerate(latent_dims))
        )
        pairs = list(zip(latent_dims[1:], latent_dims[:-1], strict=True))
        self.ladders = nn.Sequential(*(LadderBlock(*pair) for pair in reversed(pairs)))
        self.decoder_input = nn.Linear(latent_dims[0], 4 * hidden_dims[-1])
        steps = zip(hidden_dims[:0:-1], hidden_dims[-2::-1], strict=True)
        self.decoder = nn.Sequential(
            *(nn.Sequential(nn.ConvTranspose2d(a, b, 4, 2, 1), nn.BatchNorm2d(b), nn.LeakyReLU()) for a, b in steps)
        )
        self.final_layer = nn.Sequential(nn.ConvTranspose2d(hidden_dims[0], in_channels, 4, 2, 1), nn.Tanh())

    def encode(self, input):
        moments, h = [], input
        for block in self.encoders:
            h, mu, log_var = block(h)
            moments.append((mu, log_var))
        return moments

    def merge_gauss(self, mu_1, mu_2, log_var_1, log_var_2):
        one, two = (1 / (log_var.exp() + 1e-7) for log_var in (log_var_1, log_var_2))
        return [(mu_1 * one + mu_2 * two) / (one + two), -(one + two).log()]

    def compute_kl_divergence(self, z, q_params, p_params):
        (mu_q, log_var_q), (mu_p, log_var_p) = q_params, p_params
        ratio = (log_var_q.exp() + (mu_q - mu_p).square()) / (2 * log_var_p.exp())
        return (log_var_p - log_var_q + ratio - 0.5).sum(-1)

    def reparameterize(self, mu, logvar):
        return mu + (logvar / 2).exp() * torch.randn_like(logvar)

    def _image(self, z):
        return self.final_layer(self.decoder(self.decoder_input(z).view(-1, self.hidden_dims[-1], 2, 2)))

    def decode(self, z, post_params):
        kl_div = 0
        for ladder, (mu, log_var) in zip(self.ladders, reversed(post_params), strict=True):
            mu_t, log_var_t = ladder(z)
            merged = self.merge_gauss(mu, mu_t, log_var, log_var_t)
            z = self.reparameterize(*merged)
            kl_div = kl_div + self.compute_kl_divergence(z, merged, (mu, log_var))
        return self._image(z), kl_div

    def forward(self, input, **kwargs):
        post_params = self.encode(input)
        z = self.reparameterize(*post_params.pop())
        reconstruction, kl_div = self.decode(z, post_params)
        return [reconstruction, input, kl_div]

    def loss_function(self, *args, **kwargs):
        reconstruction, data, kl_div = args
        mse, kld = F.mse_loss(reconstruction, data), kl_div.mean()
        return {"loss": mse + kwargs["M_N"] * kld, "Reconstruction_Loss": mse, "KLD": -kld}

    def sample(self, num_samples, current_device, **kwargs):
        z = torch.randn(num_samples, self.latent_dims[-1]).to(current_device)
        for ladder in self.ladders:
            z = self.reparameterize(*ladder(z))
        return self._image(z)

    def generate(self, x, **kwargs):
        return self(x)[0]


class LadderVAE(nn.Module):
    def __init__(
        self, color_ch, z_dims, img_shape, n_filters=6, downsample=None, merge_type="residual", stochastic_skip=False,
        learn_top_prior=False, likelihood_form="bernoulli", analytical_kl=False,
    ):  # fmt: skip
        super().__init__()
        self.color_ch, self.z_dims, self.img_shape, self.n_layers = color_ch, z_dims, tuple(img_shape), len(z_dims)
        self.downsample = downsample or [0] * self.n_layers
        self.learn_top_prior, self.stochastic_skip, self.free_bits = learn_top_prior, stochastic_skip, 0.0
        self.overall_downscale_factor = 2 * 2 ** sum(self.downsample)
        self.first_bottom_up = nn.Sequential(nn.Conv2d(color_ch, n_filters, 5, 2, 2), nn.ELU(), ResBlock(n_filters))
        height, width = self.get_padded_size(self.img_shape)
        top = (1, 2 * z_dims[-1], height // self.overall_downscale_factor, width // self.overall_downscale_factor)
        self.bottom_up_layers, self.top_down_layers = nn.ModuleList(), nn.ModuleList()
        for i, z_dim in enumerate(z_dims):
            self.bottom_up_layers.append(BottomUpLayer(n_filters, self.downsample[i]))
            self.top_down_layers.append(
                TopDownLayer(
                    z_dim,
                    n_filters,
                    i == self.n_layers - 1,
                    self.downsample[i],
                    merge_type,
                    stochastic_skip,
                    learn_top_prior,
                    top,
                    analytical_kl,
                )
            )
        self.final_top_down = nn.Sequential(nn.Upsample(scale_factor=2, mode="bilinear"), ResBlock(n_filters))
        self.likelihood = LIKELIHOODS[likelihood_form](n_filters, color_ch)

    def get_padded_size(self, size):
        factor = self.overall_downscale_factor
        return [-(-s // factor) * factor for s in size[-2:]]

    def pad_input(self, x):
        more = [new - old for new, old in zip(self.get_padded_size(x.shape), x.shape[2:], strict=True)]
        sides = [side for extra in reversed(more) for side in (extra // 2, extra - extra // 2)]
        return F.pad(x, sides)

    def _crop(self, x, size):
        first = [(old - new) // 2 for old, new in zip(x.shape[2:], size, strict=True)]
        return x[:, :, first[0] : first[0] + size[0], first[1] : first[1] + size[1]]

    def bottomup_pass(self, x):
        x, values = self.first_bottom_up(x), []
        for layer in self.bottom_up_layers:
            x = layer(x)
            values.append(x)
        return values

    def topdown_pass(self, bu_values=None, n_img_prior=None, mode_layers=()):
        out, found = None, {"z": [None] * self.n_layers, "kl": [None] * self.n_layers}
        for i in reversed(range(self.n_layers)):
            out, _, aux = self.top_down_layers[i](
                out, skip_connection_input=out, inference_mode=bu_values is not None,
                bu_value=None if bu_values is None else bu_values[i], n_img_prior=n_img_prior,
                use_mode=i in mode_layers,
            )  # fmt: skip
            found["z"][i], found["kl"][i] = aux["z"], aux["kl_samplewise"]
        return self.final_top_down(out), found

    def forward(self, x):
        out, found = self.topdown_pass(self.bottomup_pass(self.pad_input(x)))
        ll, info = self.likelihood(self._crop(out, x.shape[2:]), x)
        kl = torch.stack(found["kl"], dim=1)
        return {
            "ll": ll, "z": found["z"], "kl": kl.sum(1).mean(), "kl_sep": kl.sum(1), "kl_avg_layerwise": kl.mean(0),
            "kl_loss": kl.mean(0).sum(), "out_mean": info["mean"], "out_sample": info["sample"],
            "likelihood_params": info["params"],
        }  # fmt: skip

    def sample_prior(self, n_imgs, mode_layers=()):
        out, _ = self.topdown_pass(n_img_prior=n_imgs, mode_layers=mode_layers)
        return self.likelihood(self._crop(out, self.img_shape), None)[1]["sample"]
