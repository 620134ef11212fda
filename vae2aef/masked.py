"""A masked autoregressive layer whose inverse computes every hidden unit exactly once."""

import torch
import torch.nn.functional as F
from torch import Tensor

from vae2aef.fan_in import FanInLinear
from vae2aef.flows import Bijection, bounded
from vae2aef.tensors import full_precision


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
        self.layer_in = FanInLinear(max(features, 1), hidden)
        self.layer_hidden = FanInLinear(hidden, hidden)
        self.layer_out = FanInLinear(hidden, 2 * max(features, 1))

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
                log_scale = bounded(raw)
                first.extend((targets[i] * log_scale.exp() + shift).unsqueeze(0))
                log_det = log_det + log_scale
            x = first.values().t()[:, self.permutation.argsort()]
            return x.reshape(y.shape), log_det

    def _affine(self, ordered: Tensor) -> tuple[Tensor, Tensor]:
        hidden = F.silu(_masked(self.layer_in, self.mask_in, ordered))
        hidden = F.silu(_masked(self.layer_hidden, self.mask_hidden, hidden))
        out = _masked(self.layer_out, self.mask_out, hidden)
        raw, shift = out.chunk(2, dim=1)
        return bounded(raw), shift


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

    def linear(self, layer: FanInLinear, rows: slice) -> Tensor:
        """Apply the chosen output rows of `layer` to what is known: shape `(rows, batch)`."""
        bias = layer.bias[rows].unsqueeze(1)
        return torch.addmm(bias, layer.weight[rows, : self._known] * layer.gain, self.values())


def _masked(layer: FanInLinear, mask: Tensor, x: Tensor) -> Tensor:
    return F.linear(x * layer.gain, layer.weight * mask, layer.bias)


def _mask(outputs: Tensor, inputs: Tensor) -> Tensor:
    """MADE mask, shape `(len(outputs), len(inputs))`: 1 where an output of that degree may see the input."""
    return (outputs[:, None] >= inputs[None, :]).to(torch.get_default_dtype())
