"""NVAE of NVlabs: `AutoEncoder`, a group of latents for each combiner cell of its decoder, from the coarsest scale on.

Data are in [0, 1], channels first; encoder and likelihood see 2 x - 1. Its `forward` draws as it goes, so its towers
are run cell by cell. The posterior of a group reads the decoder's state, of which its prior is made too, added to what
the encoder saw by an encoder combiner cell.
"""

from typing import Any

from torch import Tensor

from vae2aef.adapters._common import refusal
from vae2aef.adapters.nvae_likelihood import Likelihood, has_probability
from vae2aef.modes import modules
from vae2aef.parts import Decoded, Posterior
from vae2aef.program import Gaussian, VAEProgram
from vae2aef.protocols import Place
from vae2aef.registry import register_adapter
from vae2aef.tensors import at_least_float32, sum_event

LIKELIHOODS = ("Bernoulli", "DiscMixLogistic", "NormalDecoder")
"""Classes of what `decoder_output` returns."""


class NVAEProgram(VAEProgram):
    """Latents z0 (coarsest), z1, ... in the order of the decoder's combiner cells, each `(channels, height, width)`.

    Args:
        vae: the model.
        levels: data are multiples of 1 / this; None for a density on the reals.
        own: whether the likelihood is one of data like the example.
    """

    def __init__(self, vae: Any, levels: int | None, own: bool) -> None:
        self.vae, self.levels, self.own = vae, levels, own
        name = type(one_pixel(vae)).__name__
        flows = f", then {vae.num_flows} nf_cells" if vae.num_flows else ""
        relative = "relative to the prior's (res_dist), " if vae.res_dist else ""
        self.taken = (
            f"posteriors: enc_tower, then enc_sampler, {relative}scales exp(5 tanh(s / 5)) + 0.01{flows}",
            "priors: z0 N(0, 1.01^2), as its Normal makes it of log_sigma = 0; below it dec_sampler, scaled likewise",
            f"decoder: dec_tower, post_process and {name}" + ("" if own else ", taken as the mean of the data"),
        )
        self.assumed = (
            "the objective is the AEF's; kl_coeff, kl_balancer, spectral_norm_parallel, batchnorm_loss are not in it",
        )
        border = ", with a border of zeros 2 wide" if vae.crop_output else ""
        if not own:
            self.assumed += (
                f"the example is not of multiples of 1/{levels}{border}, which {name} gives probabilities of: only its "
                "mean is used",
            )
        elif border:
            self.assumed += ("the border that datasets.py pads, 2 wide, is zero: as in its loss, it counts nothing",)
        if own and levels == 255:
            self.assumed += (
                "its log_prob counts level 255 in level 254 too, so that its probabilities add up to more than 1",
            )

    def infer(self, x: Tensor) -> tuple[Tensor, list[Tensor]]:
        """Return the features of z0, and what each encoder combiner cell is given, that of z1 first."""
        s = self.vae.stem(2 * x - 1)
        for cell in self.vae.pre_process:
            s = cell(s)
        seen = []
        for cell in self.vae.enc_tower:
            if cell.cell_type == "combiner_enc":
                seen.append(s)
            else:
                s = cell(s)
        return self.vae.enc0(s), seen[::-1]

    def run(self, place: Place, state: tuple[Tensor, list[Tensor]] | None) -> Decoded:
        """See `VAEParts.run`."""
        vae, combiners = self.vae, [cell for cell in self.vae.enc_tower if cell.cell_type == "combiner_enc"][::-1]
        s = vae.prior_ftr0.unsqueeze(0).expand(place.size, -1, -1, -1)
        zeros = s.new_zeros(place.size, *vae.z0_size)
        z = place("z0", gaussian(zeros, zeros), None if state is None else self.posterior(0, state[0]))
        level = 0
        for cell in vae.dec_tower:
            if cell.cell_type != "combiner_dec":
                s = cell(s)
                continue
            if level:
                raw = vae.dec_sampler[level - 1](s).chunk(2, dim=1)
                seen = None
                if state is not None:
                    seen = self.posterior(level, combiners[level - 1](state[1][level - 1], s), raw)
                z = place(f"z{level}", gaussian(*raw), seen)
            s = cell(s, z)
            level += 1
        if vae.vanilla_vae:
            s = vae.stem_decoder(z)
        for cell in vae.post_process:
            s = cell(s)
        return self.decoded(vae.image_conditional(s))

    def posterior(self, level: int, features: Tensor, prior: tuple[Tensor, ...] = ()) -> Posterior:
        """Return the posterior of a group.

        Args:
            level: which.
            features: what its sampler and its flows read.
            prior: location and log scale of its prior, before they are clamped; none for z0.
        """
        loc, raw = self.vae.enc_sampler[level](features).chunk(2, dim=1)
        if self.vae.res_dist and prior:
            loc, raw = prior[0] + loc, prior[1] + raw
        count = self.vae.num_flows
        cells = self.vae.nf_cells[level * count : (level + 1) * count]

        def flow(z: Tensor) -> tuple[Tensor, Tensor]:
            total = z.new_zeros(len(z))
            for cell in cells:
                z, log_det = cell(z, features)
                total = total + sum_event(log_det)
            return z, total

        return Posterior(*gaussian(loc, raw), flow if count else None)

    def decoded(self, logits: Tensor) -> Decoded:
        """Read the parameters of the likelihood."""
        output = self.vae.decoder_output(at_least_float32(logits))
        density = Likelihood(output, self.levels, self.vae.crop_output)
        if self.levels is None:
            return Decoded(density.mean(), output.dist.sigma / 2, density)
        return Decoded(density.mean(), None, density if self.own else None)


def gaussian(loc: Tensor, raw: Tensor) -> Gaussian:
    """Return what NVAE makes of a sampler's two outputs: both softly clamped to [-5, 5], the scale at least 0.01."""
    loc, raw = (5 * (at_least_float32(value) / 5).tanh() for value in (loc, raw))
    return Gaussian(loc, raw.exp() + 1e-2)


def one_pixel(vae: Any) -> Any:
    """Return the likelihood of one pixel whose parameters are all zero: to see what kind it is."""
    last = vae.image_conditional[-1]
    return vae.decoder_output(last.weight.new_zeros(1, last.out_channels, 1, 1))


def is_nvae(vae: Any) -> bool:
    """Whether an object has the towers of NVAE: its module is called `model`, as those of many others are."""
    needed = ("stem", "enc_tower", "enc0", "enc_sampler", "dec_tower", "dec_sampler", "nf_cells", "num_flows")
    rest = ("prior_ftr0", "z0_size", "res_dist", "crop_output", "input_size", "image_conditional", "decoder_output")
    return all(hasattr(vae, name) for name in needed + rest)


@register_adapter(matches=is_nvae)
def adapt(vae: Any, x: Tensor, *cond: Any, **kwargs: Any) -> NVAEProgram:
    """Read an NVAE; `x` is in [0, 1], channels first, MNIST padded to 32 by 32 as by its `datasets.py`.

    Raises:
        WrapError: for conditions; layers that would set their weights from the example; images of another size than
            the model's, or out of [0, 1]; or a likelihood that is not one of `LIKELIHOODS`.
    """
    if cond or kwargs:
        raise refusal(vae, "it takes no conditions", "Leave them out of the example")
    size = (vae.stem.in_channels, vae.input_size, vae.input_size)
    if tuple(x.shape[1:]) != size:
        raise refusal(
            vae,
            f'for dataset "{vae.dataset}" its prior is made for images of {size}, and the example is of '
            f"{tuple(x.shape[1:])}",
            "Pad them as its datasets.py does: torch.nn.functional.pad(x, (2, 2, 2, 2))"
            if vae.crop_output
            else "Build it for the size of your data (utils.get_input_size)",
        )
    if x.numel() and not (x.min() >= 0 and x.max() <= 1):
        raise refusal(
            vae,
            f"its data are in [0, 1], and the example ranges from {x.min():.4g} to {x.max():.4g}",
            "Scale them to [0, 1]; the model itself makes 2 x - 1 of them",
        )
    if any(getattr(m, "data_init", False) and not m.init_done for m in modules(vae)):
        raise refusal(
            vae,
            "its layers with data_init set their weights by the first batch they see, and wrapping would be that batch",
            "Run vae(x) on a training batch first, or set their init_done = True if they are trained already",
        )
    try:
        likelihood = one_pixel(vae)
    except NotImplementedError:
        raise refusal(
            vae, f'its decoder_output knows no dataset "{vae.dataset}"', "Add it there, beside those that it knows"
        ) from None
    name = type(likelihood).__name__
    if name not in LIKELIHOODS:
        reason = f"its likelihood {name} may be a density or a probability of anything"
        raise refusal(vae, reason, f"Let decoder_output return one of {', '.join(LIKELIHOODS)}")
    levels = {"Bernoulli": 1, "NormalDecoder": None}.get(name, int(getattr(likelihood, "max_val", 0)))
    return NVAEProgram(vae, levels, levels is None or bool(has_probability(x, levels, vae.crop_output).all()))
