"""AntixK PyTorch-VAE, the models of several latents: `LVAE` and `HVAE`.

Their `forward` draws as it goes, so their layers are run one by one. Both generate from conditional priors in `sample`
and train with something else: that of `sample` is the generative model, and the one that is taken.
"""

from typing import Any

import torch
from torch import Tensor

from vae2aef.adapters._common import posterior, prior, refusal, standard_normal
from vae2aef.adapters.pytorch_examples import measure_scale
from vae2aef.parts import Decoded, VAEParts
from vae2aef.program import VAEProgram
from vae2aef.protocols import Place
from vae2aef.registry import register_adapter
from vae2aef.tensors import at_least_float32
from vae2aef.wrapping.trial import trial

Moments = tuple[Tensor, Tensor]
"""Location and log variance, `(batch, latent)` each."""


class LVAEProgram(VAEProgram):
    """LVAE: latents z1 (bottom) to zL, each posterior below the top a merge of what encoder and ladder say.

    Args:
        vae: the model.
    """

    def __init__(self, vae: Any) -> None:
        self.vae = vae
        self.taken = (
            f"posteriors: LVAE.encode, below z{vae.num_rungs} merged with the ladder by LVAE.merge_gauss",
            f"priors: z{vae.num_rungs} standard normal, below it the ladder, as LVAE.sample draws them",
            "decoder: decoder_input, decoder and final_layer, taken as the mean of the data",
        )
        self.assumed = (
            "the objective is the AEF's; LVAE.loss_function compares each merged posterior with the encoder rather "
            f"than with the prior, leaves out z{vae.num_rungs}, and is not used",
        )

    def infer(self, x: Tensor) -> list[Moments]:
        """Return location and log variance of each level, the lowest first."""
        return [(loc, log_var) for loc, log_var in self.vae.encode(x)]

    def run(self, place: Place, state: list[Moments] | None) -> Decoded:
        """See `VAEParts.run`."""
        vae, level = self.vae, self.vae.num_rungs
        top = standard_normal(place.size, (vae.latent_dims[-1],), vae.decoder_input.weight)
        z = place(f"z{level}", top, None if state is None else posterior(*state[-1]))
        for ladder in vae.ladders:
            level -= 1
            loc, log_var = ladder(z)
            below = None
            if state is not None:
                up_loc, up_log_var = state[level - 1]
                below = posterior(*vae.merge_gauss(up_loc, loc, up_log_var, log_var))
            z = place(f"z{level}", prior(loc, log_var), below)
        image = vae.decoder_input(z).view(-1, vae.hidden_dims[-1], 2, 2)
        return Decoded(at_least_float32(vae.final_layer(vae.decoder(image))))


class HVAEProgram(VAEProgram):
    """HVAE: z2, then z1 given it; both go to the decoder, and z2 to the encoder of z1.

    Args:
        vae: the model.
    """

    def __init__(self, vae: Any) -> None:
        self.vae = vae
        self.taken = (
            "posteriors: HVAE.encode_z2, then HVAE.encode_z1 given z2; second outputs log_var",
            "priors: z2 standard normal, z1 by recons_z1_mu and recons_z1_log_var, as HVAE.sample draws them",
            "decoder: debed_z1_code and debed_z2_code, then HVAE.decode, taken as the mean of the data",
        )
        self.assumed = (
            "the objective is the AEF's; HVAE.loss_function compares both posteriors with the standard normal, and is "
            "not used",
        )

    def infer(self, x: Tensor) -> tuple[Tensor, Moments]:
        """Return the data, which the encoder of z1 reads, with location and log variance of z2."""
        loc, log_var = self.vae.encode_z2(x)
        return x, (loc, log_var)

    def run(self, place: Place, state: tuple[Tensor, Moments] | None) -> Decoded:
        """See `VAEParts.run`."""
        vae = self.vae
        top = standard_normal(place.size, (vae.latent2_dim,), vae.debed_z2_code.weight)
        z2 = place("z2", top, None if state is None else posterior(*state[1]))
        above = prior(vae.recons_z1_mu(z2), vae.recons_z1_log_var(z2))
        z1 = place("z1", above, None if state is None else posterior(*vae.encode_z1(state[0], z2)))
        code = torch.cat([vae.debed_z1_code(z1), vae.debed_z2_code(z2)], dim=1)
        return Decoded(at_least_float32(vae.decode(code.view(-1, 512, 2, 2))))


PROGRAMS = {
    "models.lvae.LVAE": (LVAEProgram, ("encode", "ladders", "merge_gauss", "decoder_input", "final_layer")),
    "models.hvae.HVAE": (HVAEProgram, ("encode_z2", "encode_z1", "recons_z1_mu", "debed_z1_code", "decode")),
}
"""By class name: the program, and what the class must have, since others use these names too."""


@register_adapter(*PROGRAMS)
def adapt(vae: Any, x: Tensor, *cond: Any, **kwargs: Any) -> VAEParts | None:
    """Read a hierarchical model of PyTorch-VAE; what only shares its name is left to others.

    Raises:
        WrapError: if there are conditions, which these models do not read.
    """
    names = [f"{cls.__module__}.{cls.__qualname__}" for cls in type(vae).__mro__]
    program, wanted = next(PROGRAMS[name] for name in names if name in PROGRAMS)
    if not all(hasattr(vae, name) for name in wanted):
        return None
    with trial(x.device, vae):
        if measure_scale(vae.reparameterize, x.new_zeros(1, 4)) != "log_var":
            return None
    if cond or kwargs:
        raise refusal(vae, "it takes no conditions", "Leave them out of the example")
    return program(vae)
