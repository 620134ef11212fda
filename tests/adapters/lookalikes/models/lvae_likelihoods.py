"""Stand-ins of ours for the likelihoods of addtt/ladder-vae-pytorch; see README.md beside this folder."""

import torch
from torch import nn
from torch.distributions import Normal
from torch.nn import functional as F


class LikelihoodModule(nn.Module):
    def __init__(self, ch_in, ch_out):
        super().__init__()
        self.parameter_net = nn.Conv2d(ch_in, ch_out, 3, padding=1)

    def mean(self, params):
        return params["mean"]

    def forward(self, input_, x):
        params = self.distr_params(input_)
        ll = None if x is None else self.log_likelihood(x, params)
        return ll, {"mean": self.mean(params), "sample": self.sample(params), "params": params}


class BernoulliLikelihood(LikelihoodModule):
    def distr_params(self, x):
        return self.parameter_net(x).sigmoid()

    def mean(self, params):
        return params

    def sample(self, params):
        return (torch.rand_like(params) < params).to(params.dtype)

    def log_likelihood(self, x, params):
        return -F.binary_cross_entropy(params, x, reduction="none").sum((1, 2, 3))


class GaussianLikelihood(LikelihoodModule):
    def __init__(self, ch_in, color_channels):
        super().__init__(ch_in, 2 * color_channels)

    def distr_params(self, x):
        return dict(zip(("mean", "logvar"), self.parameter_net(x).chunk(2, dim=1), strict=True))

    def sample(self, params):
        return Normal(params["mean"], (params["logvar"] / 2).exp()).rsample()

    def log_likelihood(self, x, params):
        return Normal(params["mean"], (params["logvar"] / 2).exp()).log_prob(x).sum((1, 2, 3))


def logistic(like):
    u = torch.rand_like(like).clamp(1e-5, 1 - 1e-5)
    return u.logit()


class DiscretizedLogisticLikelihood(LikelihoodModule):
    def __init__(self, ch_in, color_channels):
        super().__init__(ch_in, 2 * color_channels)

    def distr_params(self, x):
        mean, log_scale = self.parameter_net(x).chunk(2, dim=1)
        return {"mean": mean + 0.5, "logscale": (log_scale - 1).clamp(min=-7)}

    def sample(self, params):
        return (params["mean"] + params["logscale"].exp() * logistic(params["mean"])).clamp(0, 1)

    def log_likelihood(self, x, params):
        level = (x * 255 / 256 + 1 / 512).mul(256).floor()
        low, high = ((edge / 256 - params["mean"]) / params["logscale"].exp() for edge in (level, level + 1))
        above = torch.where(level < 255, high.sigmoid(), 1.0)
        below = torch.where(level > 0, low.sigmoid(), 0.0)
        return (above - below + 1e-7).log().sum((1, 2, 3))


class DiscretizedLogisticMixLikelihood(LikelihoodModule):
    """Three channels; the location of a channel moves with the channels before it."""

    def __init__(self, ch_in, color_channels=3, n_components=4):
        super().__init__(ch_in, 10 * n_components)

    def distr_params(self, x):
        return {"mean": None, "all_params": self.parameter_net(x)}

    def _read(self, params):
        every = params["all_params"]
        count = every.shape[1] // 10
        means, log_scales, raw = every[:, count:].unflatten(1, (3, 3, count)).unbind(2)
        return every[:, :count], means, log_scales.clamp(min=-7), raw.tanh()

    def sample(self, params):
        logits, means, log_scales, factors = self._read(params)
        chosen = F.one_hot(torch.distributions.Categorical(logits=logits.movedim(1, -1)).sample(), logits.shape[1])
        chosen = chosen.movedim(-1, 1).unsqueeze(1)
        means, log_scales, factors = ((part * chosen).sum(2) for part in (means, log_scales, factors))
        free = means + log_scales.exp() * logistic(means)
        red = free[:, 0].clamp(-1, 1)
        green = (free[:, 1] + factors[:, 0] * red).clamp(-1, 1)
        blue = (free[:, 2] + factors[:, 1] * red + factors[:, 2] * green).clamp(-1, 1)
        return (torch.stack([red, green, blue], dim=1) + 1) / 2

    def log_likelihood(self, x, params):
        logits, means, log_scales, factors = self._read(params)
        x = (2 * x - 1).unsqueeze(2)
        moved = [0 * x[:, 0], factors[:, 0] * x[:, 0], factors[:, 1] * x[:, 0] + factors[:, 2] * x[:, 1]]
        centred = x - means - torch.stack([m.expand_as(means[:, 0]) for m in moved], dim=1)
        low, high = ((centred + step / 255) * (-log_scales).exp() for step in (-1, 1))
        middle = (high.sigmoid() - low.sigmoid()).clamp(min=1e-12).log()
        value = torch.where(x < -0.999, F.logsigmoid(high), torch.where(x > 0.999, F.logsigmoid(-low), middle))
        return (value.sum(1) + logits.log_softmax(1)).logsumexp(1).sum((1, 2))


LIKELIHOODS = {
    "bernoulli": BernoulliLikelihood,
    "gaussian": GaussianLikelihood,
    "discr_log": DiscretizedLogisticLikelihood,
    "discr_log_mix": DiscretizedLogisticMixLikelihood,
}
