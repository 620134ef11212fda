"""Bijections with exact log-determinants, and the flow prior built from them.

Two small layers are ours: an affine coupling (Dinh et al., 2017) and a masked autoregressive layer
(Papamakarios et al., 2017) whose inverse is computed incrementally. Both bound their log-scale, so that
sampling does not explode, and neither has state beyond its parameters: nothing is initialised from data.
"""

import abc
import math
from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vae2aef.tensors import full_precision, sum_event

MAX_LOG_SCALE = 3.0
"""Bound on |log s| of one layer. Unbounded (softplus) scales give samples of 1e33 after short training."""


class Bijection(nn.Module, abc.ABC):
    """An invertible map of tensors of shape `(batch, *event)`.

    `forward` is the direction from data to noise (the direction of training), `inverse` the other one.
    """

    @abc.abstractmethod
    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Map `x`, shape `(batch, *event)`, to `(y, log|det dy/dx|)`, shapes `(batch, *event)`, `(batch,)`."""

    @abc.abstractmethod
    def inverse(self, y: Tensor) -> tuple[Tensor, Tensor]:
        """Map `y`, shape `(batch, *event)`, to `(x, log|det dx/dy|)`, shapes `(batch, *event)`, `(batch,)`."""


class Identity(Bijection):
    """The map that changes nothing: `core_flow="none"`, and no preprocessing."""

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Return `x`, shape `(batch, *event)`, and zeros of shape `(batch,)`."""
        return x, x.new_zeros(x.shape[0])

    def inverse(self, y: Tensor) -> tuple[Tensor, Tensor]:
        """Return `y`, shape `(batch, *event)`, and zeros of shape `(batch,)`."""
        return y, y.new_zeros(y.shape[0])


class Chain(Bijection):
    """Bijections one after the other: `forward` applies them left to right, `inverse` right to left."""

    def __init__(self, *bijections: Bijection) -> None:
        super().__init__()
        self.bijections = nn.ModuleList(bijections)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Apply all; see `Bijection.forward` for shapes."""
        y, total = x, None
        for bijection in self.bijections:
            y, log_det = bijection(y)
            total = log_det if total is None else total + log_det
        return y, y.new_zeros(y.shape[0]) if total is None else total

    def inverse(self, y: Tensor) -> tuple[Tensor, Tensor]:
        """Undo all, last first; see `Bijection.inverse` for shapes."""
        x, total = y, None
        for bijection in reversed(self.bijections):
            x, log_det = bijection.inverse(x)  # type: ignore[operator]
            total = log_det if total is None else total + log_det
        return x, x.new_zeros(x.shape[0]) if total is None else total


class Inverse(Bijection):
    """The same bijection run backwards. The inverse of a masked autoregressive flow is an IAF."""

    def __init__(self, bijection: Bijection) -> None:
        super().__init__()
        self.bijection = bijection

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Apply the inverse of the wrapped bijection; see `Bijection.forward` for shapes."""
        return self.bijection.inverse(x)

    def inverse(self, y: Tensor) -> tuple[Tensor, Tensor]:
        """Apply the forward of the wrapped bijection; see `Bijection.inverse` for shapes."""
        return self.bijection(y)


class Each(Bijection):
    """Apply a bijection to each element of the leading dimensions of a latent on its own.

    Args:
        flow: maps `(rows, *inner)`.
        outer: how many leading dimensions of the latent are rows to it.
    """

    def __init__(self, flow: Bijection, outer: int) -> None:
        super().__init__()
        self.flow = flow
        self.outer = outer

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """See `Bijection.forward`."""
        return self._on_rows(self.flow, x)

    def inverse(self, y: Tensor) -> tuple[Tensor, Tensor]:
        """See `Bijection.inverse`."""
        return self._on_rows(self.flow.inverse, y)

    def _on_rows(self, flow: Callable[[Tensor], tuple[Tensor, Tensor]], x: Tensor) -> tuple[Tensor, Tensor]:
        rows = x.shape[: 1 + self.outer]
        y, log_det = flow(x.reshape(rows.numel(), *x.shape[len(rows) :]))
        return y.reshape(x.shape), sum_event(log_det.reshape(rows))


def _bounded(raw: Tensor) -> Tensor:
    """Squash to (-MAX_LOG_SCALE, MAX_LOG_SCALE), with slope 1 at zero."""
    return MAX_LOG_SCALE * torch.tanh(raw / MAX_LOG_SCALE)


class _Constant(nn.Module):
    """A conditioner that has nothing to look at: a learned vector, the same for every sample."""

    def __init__(self, features: int) -> None:
        super().__init__()
        self.value = nn.Parameter(torch.zeros(features))

    def forward(self, x: Tensor) -> Tensor:
        return self.value.expand(x.shape[0], -1)


class AffineCoupling(Bijection):
    """Affine coupling layer on a random half of the features: y_b = x_b exp(s(x_a)) + t(x_a).

    Works on events of any shape with `features` numbers in all; `|s| <= 3`. With one feature there is
    nothing to condition on, and the layer is a learned affine map.

    Args:
        features: D, the number of values in one event (0 or more).
        hidden: units in each of the two hidden layers of the conditioner.

    Raises:
        RuntimeError: from torch, if an input's event does not hold `features` values.

    References:
        Dinh, Sohl-Dickstein, Bengio, *Density estimation using Real NVP*, ICLR 2017.
    """

    permutation: Tensor

    def __init__(self, features: int, hidden: int = 128) -> None:
        super().__init__()
        self.features = features
        self.kept = features // 2
        changed = 2 * (features - self.kept)
        self.register_buffer("permutation", torch.randperm(features))
        self.conditioner: nn.Module = _Constant(changed)
        if self.kept:
            self.conditioner = nn.Sequential(
                nn.Linear(self.kept, hidden), nn.SiLU(),
                nn.Linear(hidden, hidden), nn.SiLU(),
                nn.Linear(hidden, changed),
            )  # fmt: skip

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Normalise; see `Bijection.forward` for shapes."""
        with full_precision(x):
            kept, changed = self._halves(x.reshape(x.shape[0], self.features)[:, self.permutation])
            log_scale, shift = self._affine(kept)
            y = torch.cat([kept, changed * log_scale.exp() + shift], dim=1)
            return y.reshape(x.shape), log_scale.sum(1)

    def inverse(self, y: Tensor) -> tuple[Tensor, Tensor]:
        """Generate; see `Bijection.inverse` for shapes."""
        with full_precision(y):
            kept, changed = self._halves(y.reshape(y.shape[0], self.features))
            log_scale, shift = self._affine(kept)
            x = torch.cat([kept, (changed - shift) * (-log_scale).exp()], dim=1)
            return x[:, self.permutation.argsort()].reshape(y.shape), -log_scale.sum(1)

    def _halves(self, flat: Tensor) -> tuple[Tensor, Tensor]:
        return flat[:, : self.kept], flat[:, self.kept :]

    def _affine(self, kept: Tensor) -> tuple[Tensor, Tensor]:
        raw, shift = self.conditioner(kept).chunk(2, dim=1)
        return _bounded(raw), shift


class MaskedAutoregressive(Bijection):
    """Masked autoregressive layer: y_i = (x_i - t_i(x_<i)) exp(-s_i(x_<i)), in a random order of features.

    One network pass gives all s and t (MADE). Hidden units are sorted by their MADE degree, so a prefix of
    the features determines a prefix of each hidden layer: `inverse` computes every hidden unit exactly
    once, where the textbook inverse runs the whole network once a feature.

    Args:
        features: D, the number of values in one event (0 or more).
        hidden: units in each of the two hidden layers.

    Raises:
        RuntimeError: from torch, if an input's event does not hold `features` values.

    Example:
        >>> _ = torch.manual_seed(0)
        >>> flow, x = MaskedAutoregressive(3), torch.randn(2, 3)
        >>> y, log_det = flow(x)
        >>> torch.allclose(flow.inverse(y)[0], x, atol=1e-5)
        True

    References:
        Papamakarios, Pavlakou, Murray, *Masked Autoregressive Flow*, NeurIPS 2017.
        Germain, Gregor, Murray, Larochelle, *MADE*, ICML 2015.
    """

    permutation: Tensor
    mask_in: Tensor
    mask_hidden: Tensor
    mask_out: Tensor

    def __init__(self, features: int, hidden: int = 256) -> None:
        super().__init__()
        self.features = features
        self.register_buffer("permutation", torch.randperm(features))
        # Degree d of a hidden unit: it sees the first d features. Sorted, spread evenly over 1 .. D-1.
        degrees = 1 + torch.arange(hidden) * max(features - 1, 1) // hidden
        inputs = torch.arange(1, features + 1)
        self.register_buffer("mask_in", _mask(degrees, inputs), persistent=False)
        self.register_buffer("mask_hidden", _mask(degrees, degrees), persistent=False)
        self.register_buffer("mask_out", _mask(inputs - 1, degrees).repeat(2, 1), persistent=False)
        # ends[d]: how many hidden units see no more than the first d features.
        self._ends = [int((degrees <= d).sum()) for d in range(features)]
        self.layer_in = nn.Linear(max(features, 1), hidden)
        self.layer_hidden = nn.Linear(hidden, hidden)
        self.layer_out = nn.Linear(hidden, 2 * max(features, 1))

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Normalise, in one pass; see `Bijection.forward` for shapes."""
        if not self.features:
            return x, x.new_zeros(x.shape[0])
        with full_precision(x):
            ordered = x.reshape(x.shape[0], self.features)[:, self.permutation]
            log_scale, shift = self._affine(ordered)
            y = (ordered - shift) * (-log_scale).exp()
            return y.reshape(x.shape), -log_scale.sum(1)

    def inverse(self, y: Tensor) -> tuple[Tensor, Tensor]:
        """Generate, feature by feature, computing each hidden unit once; see `Bijection.inverse`."""
        if not self.features:
            return y, y.new_zeros(y.shape[0])
        with full_precision(y):
            # Features first, batch last: the prefixes that are read over and over are then contiguous.
            targets = y.reshape(y.shape[0], self.features).t()
            first = Prefix(targets, self.features)
            second = Prefix(targets, self.layer_in.out_features)
            third = Prefix(targets, self.layer_hidden.out_features)
            log_det = y.new_zeros(y.shape[0])
            start = 0
            for i in range(self.features):
                end = self._ends[i]
                if end > start:
                    second.extend(F.silu(first.linear(self.layer_in, slice(start, end))))
                    third.extend(F.silu(second.linear(self.layer_hidden, slice(start, end))))
                    start = end
                raw, shift = third.linear(self.layer_out, slice(i, None, self.features))
                log_scale = _bounded(raw)
                first.extend((targets[i] * log_scale.exp() + shift).unsqueeze(0))
                log_det = log_det + log_scale
            x = first.values().t()[:, self.permutation.argsort()]
            return x.reshape(y.shape), log_det

    def _affine(self, ordered: Tensor) -> tuple[Tensor, Tensor]:
        hidden = F.silu(F.linear(ordered, self.layer_in.weight * self.mask_in, self.layer_in.bias))
        hidden = F.silu(F.linear(hidden, self.layer_hidden.weight * self.mask_hidden, self.layer_hidden.bias))
        out = F.linear(hidden, self.layer_out.weight * self.mask_out, self.layer_out.bias)
        raw, shift = out.chunk(2, dim=1)
        return _bounded(raw), shift


class Prefix:
    """The rows of a layer that are known so far, shape `(known, batch)`; grown block by block.

    With gradients on, growing makes a new tensor; without, it writes into one buffer.
    """

    def __init__(self, like: Tensor, size: int) -> None:
        self._known = 0
        self._grad = torch.is_grad_enabled()
        self._rows = like.new_empty(0 if self._grad else size, like.shape[1])

    def extend(self, block: Tensor) -> None:
        """Append `block`, shape `(new, batch)`."""
        end = self._known + block.shape[0]
        if self._grad:
            self._rows = torch.cat([self._rows, block])
        else:
            self._rows[self._known : end] = block
        self._known = end

    def values(self) -> Tensor:
        """Return what is known, shape `(known, batch)`."""
        return self._rows[: self._known]

    def linear(self, layer: nn.Linear, rows: slice) -> Tensor:
        """Apply the chosen output rows of `layer` to what is known: shape `(rows, batch)`."""
        bias = layer.bias[rows].unsqueeze(1)
        return torch.addmm(bias, layer.weight[rows, : self._known], self.values())


def _mask(outputs: Tensor, inputs: Tensor) -> Tensor:
    """MADE mask, shape `(len(outputs), len(inputs))`: 1 where an output of that degree may see the input."""
    return (outputs[:, None] >= inputs[None, :]).to(torch.get_default_dtype())


class StandardNormal(nn.Module):
    """The standard normal on events of shape `shape`: the prior of most VAEs.

    Args:
        shape: the shape of one event.
    """

    zero: Tensor

    def __init__(self, shape: Sequence[int]) -> None:
        super().__init__()
        self.register_buffer("zero", torch.zeros(tuple(shape)), persistent=False)

    def log_prob(self, z: Tensor) -> Tensor:
        """Log density in nats: `z` of shape `(batch, *event)` gives `(batch,)`."""
        return -0.5 * sum_event(z.square() + math.log(2 * math.pi))

    def sample(self, n: int, temperature: float = 1.0) -> Tensor:
        """Draw `n` events, shape `(n, *event)`, with the standard deviation `temperature`."""
        return temperature * torch.randn(n, *self.zero.shape, dtype=self.zero.dtype, device=self.zero.device)


class FlowPrior(nn.Module):
    """A density made by a flow: z = flow^-1(e), e standard normal.

    Args:
        flow: maps latents to noise in `forward`.
        shape: the shape of one latent.
    """

    def __init__(self, flow: Bijection, shape: Sequence[int]) -> None:
        super().__init__()
        self.flow = flow
        self.base = StandardNormal(shape)

    def log_prob(self, z: Tensor) -> Tensor:
        """Log density in nats: `z` of shape `(batch, *latent)` gives `(batch,)`."""
        noise, log_det = self.flow(z)
        return self.base.log_prob(noise) + log_det

    def sample(self, n: int, temperature: float = 1.0) -> Tensor:
        """Draw `n` latents, shape `(n, *latent)`; `temperature` scales the base noise."""
        return self.flow.inverse(self.base.sample(n, temperature))[0]
