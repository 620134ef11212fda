"""Very deep VAEs of openai/vdvae: a latent in every block, its prior and posterior functions of the decoder's state.

Their forward takes the same images twice, scaled in two ways: `x` for the encoder, `x_target` in [-1, 1] for the
likelihood. An AEF has one x: it is `x_target`, channels last, `(batch, height, width, channels)`, on its 256 levels;
the adapter makes the encoder's of it, as their `set_up_data` does for the data set that `H.dataset` names.
"""

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from vae2aef.parts import Decoded, Posterior, to_scale
from vae2aef.program import Gaussian, VAEProgram
from vae2aef.protocols import Place
from vae2aef.registry import register_adapter

ENCODER_SCALING = {
    "imagenet32": (116.2373, 69.37404),
    "imagenet64": (115.92961967, 69.37404),
    "ffhq_256": (112.8666757481, 69.84780273),
    "ffhq_1024": (0.4387 * 255, 0.2743 * 255),
    "cifar10": (120.63838, 64.16736),
}
"""Mean and standard deviation of the grey levels 0 to 255, by which the encoder's input is standardised."""


class VDVAEParts(VAEProgram):
    """The blocks of a very deep VAE, one by one.

    Args:
        vae: their `VAE`.
        scaling: mean and standard deviation of the grey levels, for the encoder; None hands it `x_target` as it is.
    """

    def __init__(self, vae: Any, scaling: tuple[float, float] | None) -> None:
        self.vae, self.scaling = vae, scaling
        blocks = len(vae.decoder.dec_blocks)
        self.taken = (
            f"encoder: {len(vae.encoder.enc_blocks)} blocks, once a datum; decoder: {blocks} blocks with a latent each",
            "priors and posteriors: each block's own, log standard deviations",
            "density of x given z: its discretised mixture of logistics, on 256 levels in [-1, 1]",
        )
        if scaling is None:
            self.assumed = (f'the encoder takes x in [-1, 1] as it is: H.dataset is "{vae.H.dataset}", none of theirs',)

    def infer(self, x: Tensor, *cond: Any, **kwargs: Any) -> dict[int, Tensor]:
        """Return the encoder's activations by resolution."""
        if self.scaling is not None:
            mean, deviation = self.scaling
            x = (127.5 * (x + 1) - mean) / deviation
        return self.vae.encoder(x)

    def run(self, place: Place, state: Any, *cond: Any, **kwargs: Any) -> Decoded:
        """See `VAEParts.run`; the latents are "z0", "z1", ... in the order of the blocks."""
        decoder = self.vae.decoder
        xs = {bias.shape[2]: bias.expand(place.size, -1, -1, -1) for bias in decoder.bias_xs}
        for number, block in enumerate(decoder.dec_blocks):
            x = _state_of(block, xs, place.size, decoder.gain)
            posterior = None
            if state is not None:
                loc, raw = block.enc(torch.cat([x, state[block.base]], dim=1)).chunk(2, dim=1)
                posterior = Posterior(loc, to_scale(raw, "log_std"))
            loc, raw, more = block.prior(x).split([block.zdim, block.zdim, x.shape[1]], dim=1)
            z = place(f"z{number}", Gaussian(loc, to_scale(raw, "log_std")), posterior)
            xs[block.base] = block.resnet(x + more + block.z_fn(z))
        size = self.vae.H.image_size
        density = MixtureOfLogistics(decoder.out_net, decoder.final_fn(xs[size]), self.vae.H.num_mixtures)
        return Decoded(density.mean(), density=density)


def _state_of(block: Any, xs: dict[int, Tensor], rows: int, like: Tensor) -> Tensor:
    """Return what a block starts from: the state of its resolution, with that of a lower one mixed in."""
    x = xs.get(block.base)
    if x is None:
        x = like.new_zeros(rows, block.widths[block.base], block.base, block.base)
    if block.mixin is None:
        return x
    return x + F.interpolate(xs[block.mixin][:, : x.shape[1]], scale_factor=block.base // block.mixin)


class MixtureOfLogistics:
    """The density of x given z, by the VAE's own network and formula (Salimans et al., PixelCNN++, 2017).

    Args:
        net: their `DmolNet`.
        features: what it reads, `(batch, width, height, width)`.
        mixtures: how many components.
    """

    def __init__(self, net: Any, features: Tensor, mixtures: int) -> None:
        self.net, self.features, self.mixtures = net, features, mixtures

    def log_prob(self, x: Tensor) -> Tensor:
        """Log probability of images in [-1, 1] on their levels, `(batch, height, width, 3)` to `(batch,)`, nats."""
        return -self.net.nll(self.features, x) * x[0:1].numel() if len(x) else x.new_zeros(0)

    def sample(self) -> Tensor:
        """Draw images, rounded down to levels as theirs are, in [-1, 1]."""
        levels = torch.as_tensor(self.net.sample(self.features)).to(self.features)
        return levels / 127.5 - 1

    def mean(self) -> Tensor:
        """Return the mean of x, `(batch, height, width, 3)`: of the logistics, before they are cut to [-1, 1].

        Red has its component's mean; green's is shifted by red, blue's by both, so means shift means.
        """
        raw = self.net(self.features)
        weights = raw[..., : self.mixtures].softmax(-1)
        loc, _, shift = raw[..., self.mixtures :].unflatten(-1, (3, 3 * self.mixtures)).chunk(3, dim=-1)
        shift = shift.tanh()
        red = loc[..., 0, :]
        green = loc[..., 1, :] + shift[..., 0, :] * red
        blue = loc[..., 2, :] + shift[..., 1, :] * red + shift[..., 2, :] * green
        channels: Sequence[Tensor] = (red, green, blue)
        return torch.stack([(weights * channel).sum(-1) for channel in channels], dim=-1)


def is_vdvae(vae: Any) -> bool:
    """Whether an object has the blocks of a very deep VAE: its module is called `vae`, as those of many others are."""
    decoder, encoder = getattr(vae, "decoder", None), getattr(vae, "encoder", None)
    needed = ("dec_blocks", "bias_xs", "out_net", "final_fn", "gain")
    return hasattr(vae, "H") and hasattr(encoder, "enc_blocks") and all(hasattr(decoder, name) for name in needed)


@register_adapter(matches=is_vdvae)
def adapt(vae: Any, x: Tensor, *cond: Any, **kwargs: Any) -> VDVAEParts:
    """Read a very deep VAE; `x` is in [-1, 1], channels last."""
    return VDVAEParts(vae, ENCODER_SCALING.get(vae.H.dataset))
