"""Stand-ins of ours for the layers of addtt/ladder-vae-pytorch; see README.md beside this folder."""

import torch
from torch import nn
from torch.distributions import Normal, kl_divergence


class ResBlock(nn.Module):
    def __init__(self, channels):
        super().__init__()
        self.block = nn.Sequential(
            nn.BatchNorm2d(channels), nn.ELU(), nn.Conv2d(channels, channels, 3, padding=1), nn.Dropout2d(0.1)
        )

    def forward(self, x):
        return self.block(x) + x


class BottomUpLayer(nn.Module):
    def __init__(self, channels, halvings):
        super().__init__()
        steps = [nn.Conv2d(channels, channels, 3, 2, 1) for _ in range(halvings)]
        self.net = nn.Sequential(*steps, ResBlock(channels))

    def forward(self, x):
        return self.net(x)


class MergeLayer(nn.Module):
    def __init__(self, channels, merge_type):
        super().__init__()
        conv = nn.Conv2d(2 * channels, channels, 1)
        self.layer = conv if merge_type == "linear" else nn.Sequential(conv, ResBlock(channels))

    def forward(self, x, y):
        return self.layer(torch.cat((x, y), dim=1))


class NormalStochasticBlock2d(nn.Module):
    def __init__(self, c_in, c_vars, c_out, transform_p_params):
        super().__init__()
        self.transform_p_params = transform_p_params
        if transform_p_params:
            self.conv_in_p = nn.Conv2d(c_in, 2 * c_vars, 3, padding=1)
        self.conv_in_q = nn.Conv2d(c_in, 2 * c_vars, 3, padding=1)
        self.conv_out = nn.Conv2d(c_vars, c_out, 3, padding=1)

    def forward(self, p_params, q_params=None, use_mode=False, analytical_kl=False):
        def normal(params):
            mu, log_var = params.chunk(2, dim=1)
            return Normal(mu, (log_var / 2).exp())

        p = normal(self.conv_in_p(p_params) if self.transform_p_params else p_params)
        q = None if q_params is None else normal(self.conv_in_q(q_params))
        z = (q or p).mean if use_mode else (q or p).rsample()
        kl = None
        if q is not None:
            kl = (kl_divergence(q, p) if analytical_kl else q.log_prob(z) - p.log_prob(z)).sum((1, 2, 3))
        return self.conv_out(z), {"z": z, "kl_samplewise": kl}


class TopDownLayer(nn.Module):
    def __init__(
        self, z_dim, channels, is_top_layer, doublings, merge_type, stochastic_skip, learn_top_prior, top_shape,
        analytical_kl,
    ):  # fmt: skip
        super().__init__()
        self.is_top_layer, self.stochastic_skip, self.analytical_kl = is_top_layer, stochastic_skip, analytical_kl
        if is_top_layer:
            self.top_prior_params = nn.Parameter(torch.zeros(top_shape), requires_grad=learn_top_prior)
        steps = [nn.ConvTranspose2d(channels, channels, 4, 2, 1) for _ in range(doublings)]
        self.deterministic_block = nn.Sequential(*steps, ResBlock(channels))
        self.stochastic = NormalStochasticBlock2d(channels, z_dim, channels, not is_top_layer)
        if not is_top_layer:
            self.merge = MergeLayer(channels, merge_type)
            if stochastic_skip:
                self.skip_connection_merger = MergeLayer(channels, "residual")

    def forward(
        self, input_=None, skip_connection_input=None, inference_mode=False, bu_value=None, n_img_prior=None,
        use_mode=False,
    ):  # fmt: skip
        p_params = input_
        if self.is_top_layer:
            p_params = self.top_prior_params
            if n_img_prior is not None:
                p_params = p_params.expand(n_img_prior, -1, -1, -1)
        q_params = None
        if inference_mode:
            q_params = bu_value if self.is_top_layer else self.merge(bu_value, p_params)
        x, data = self.stochastic(p_params, q_params, use_mode, self.analytical_kl)
        if self.stochastic_skip and not self.is_top_layer:
            x = self.skip_connection_merger(x, skip_connection_input)
        return self.deterministic_block(x), x, data
