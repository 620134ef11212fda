"""A mixture of discretised logistics, in the parametrisation of PixelCNN++, which vdvae and NVAE use too."""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from vae2aef.errors import WrapError
from vae2aef.likelihood.base import Likelihood
from vae2aef.likelihood.discretized import DiscretizedLogistic, logistic_log_mass

MIN_LOG_SCALE = -7.0


class LogisticMixture(Likelihood):
    """Images `(channels, *space)` on a grid of levels, a mixture of logistics for each position.

    The decoder returns `(batch, 3 M, *space)` for one channel and `(batch, 10 M, *space)` for three: the logits of the
    M components, then for each channel M means, M log scales and, for three channels, M coefficients by which the means
    of green and blue depend on the channels before them.

    Args:
        event_shape: `(channels, *space)`, one or three channels.
        mixtures: M.
        bins: how many levels.
        low: the lowest level.
        high: the highest level.

    Raises:
        WrapError: for another number of channels.

    References:
        Salimans, Karpathy, Chen, Kingma, *PixelCNN++*, ICLR 2017.
    """

    discrete = True
    per_value = None

    def __init__(
        self, event_shape: Sequence[int], mixtures: int = 10, bins: int = 256, low: float = -1.0, high: float = 1.0
    ) -> None:
        super().__init__()
        if not event_shape or event_shape[0] not in (1, 3):
            raise WrapError(
                f"LogisticMixture: expected images (1, ...) or (3, ...), channels first, got {tuple(event_shape)}; ",
                'use likelihood="discretized_logistic"',
            )
        self.event_shape, self.mixtures, self.channels = torch.Size(event_shape), mixtures, event_shape[0]
        self.grid = DiscretizedLogistic(event_shape, 1.0, bins, low, high)

    @classmethod
    def of(cls, event_shape: Sequence[int], output: Tensor, low: float, high: float) -> "LogisticMixture":
        """Read the number of components off a decoder's output.

        Raises:
            WrapError: if its channels are those of no whole number of components.
        """
        per_mixture = 3 if event_shape[:1] == torch.Size((1,)) else 10
        found = output.shape[1] if output.dim() > 1 else 0
        if found % per_mixture or not found or output.shape[2:] != torch.Size(event_shape[1:]):
            raise WrapError(
                f"LogisticMixture: expected the decoder to return (batch, {per_mixture} M, "
                f"{', '.join(map(str, event_shape[1:]))}), M components; got {tuple(output.shape)}"
            )
        return cls(event_shape, found // per_mixture, low=low, high=high)

    def given(self, shape: Sequence[int], output: Tensor, *more: Tensor) -> "_Mixture":
        """See `Likelihood.given`; its `log_prob` is of each position, `(batch, *space)`."""
        m, c = self.mixtures, self.channels
        output = output.reshape(shape[0], -1, *shape[2:])
        logits, rest = output[:, :m], output[:, m:].reshape(shape[0], c, -1, *shape[2:])
        coefficients = torch.tanh(rest[:, :, 2 * m :]) if c == 3 else None
        means, log_scales = rest[:, :, :m], rest[:, :, m : 2 * m].clamp(min=MIN_LOG_SCALE)
        return _Mixture(self.grid, logits.log_softmax(1), means, log_scales, coefficients)

    def read(self, x: Tensor) -> Tensor:
        """See `Grid.read`."""
        return self.grid.read(x)

    def check(self, x: Tensor, exact: bool = False) -> None:
        """See `Grid.check`."""
        self.grid.check(x, exact)

    def extra_repr(self) -> str:
        """Say how many components there are."""
        return f"mixtures={self.mixtures}"


class _Mixture:
    """One batch of a mixture: log weights `(batch, M, *space)`, the others `(batch, C, M, *space)`."""

    def __init__(
        self,
        grid: DiscretizedLogistic,
        log_weights: Tensor,
        means: Tensor,
        log_scales: Tensor,
        coefficients: Tensor | None,
    ) -> None:
        self.grid, self.log_weights, self.means, self.log_scales = grid, log_weights, means, log_scales
        self.coefficients = coefficients

    def _means(self, x: Tensor) -> Tensor:
        """Means given the channels before: x is `(batch, C, 1 or M, *space)`, the result `(batch, C, M, *space)`."""
        if self.coefficients is None:
            return self.means
        k, mean = self.coefficients, self.means
        green = mean[:, 1] + k[:, 0] * x[:, 0]
        blue = mean[:, 2] + k[:, 1] * x[:, 0] + k[:, 2] * x[:, 1]
        return torch.stack([mean[:, 0], green, blue], dim=1)

    def log_prob(self, x: Tensor) -> Tensor:
        """Log probability of each position, `(batch, *space)`, nats."""
        x = x.unsqueeze(2)
        centred, inverse = x - self._means(x), (-self.log_scales).exp()
        half = 0.5 * self.grid.width
        mass = logistic_log_mass((centred - half) * inverse, (centred + half) * inverse, *self.grid.edges(x))
        return (mass.sum(1) + self.log_weights).logsumexp(1)

    @property
    def mean(self) -> Tensor:
        """The mean before the levels are cut off at their ends, `(batch, C, *space)`."""
        x = self.means
        for _ in range(self.means.shape[1] - 1):  # channel by channel, each component by itself
            x = self._means(x)
        return (self.log_weights.exp().unsqueeze(1) * x).sum(2).clamp(self.grid.low, self.grid.high)

    def sample(self) -> Tensor:
        """Draw levels, `(batch, C, *space)`: a component for each position, then channel by channel."""
        gumbel = -(-torch.rand_like(self.log_weights).clamp(1e-12, 1 - 1e-7).log()).log()
        chosen = F.one_hot((self.log_weights + gumbel).argmax(1), self.log_weights.shape[1])
        chosen = chosen.movedim(-1, 1).unsqueeze(1).to(self.means.dtype)
        noise = self.grid.draw((self.means * chosen).sum(2))
        x = torch.zeros_like(noise)
        for channel in range(x.shape[1]):
            mean = (self._means(x.unsqueeze(2)) * chosen).sum(2)
            drawn = self.grid.snap(mean + (self.log_scales * chosen).sum(2).exp() * noise)
            x = torch.cat([x[:, :channel], drawn[:, channel : channel + 1], x[:, channel + 1 :]], dim=1)
        return x
