"""addtt/ladder-vae-pytorch: `LadderVAE`.

Its `forward` draws every latent and an image, so its blocks are run one by one: bottom-up pass, then for each level
from the top the convolutions of prior and posterior, the merge layer, the skip connection and the residual blocks.
"""

from typing import Any

import torch
from torch import Tensor

from vae2aef.adapters._common import on_grid, posterior, prior, refusal
from vae2aef.parts import Decoded, VAEParts, to_scale
from vae2aef.program import VAEProgram
from vae2aef.protocols import Place
from vae2aef.registry import register_adapter
from vae2aef.tensors import at_least_float32

LEVELS = {
    "BernoulliLikelihood": 1,
    "GaussianLikelihood": None,
    "DiscretizedLogisticLikelihood": 255,
    "DiscretizedLogisticMixLikelihood": 255,
}
"""By likelihood: data are multiples of 1 / this; None for a density on the reals."""


class LadderVAEProgram(VAEProgram):
    """Latents z1 (bottom) to zL, of shape `(channels, height, width)`.

    Args:
        vae: the model.
        likelihood: the name of its likelihood, one of `LEVELS`.
        own: whether the likelihood is one of data like the example.
    """

    def __init__(self, vae: Any, likelihood: str, own: bool) -> None:
        self.vae, self.kind, self.own = vae, likelihood, own
        layers = "the merge layers of the top-down pass"
        self.taken = (
            f"posteriors: bottomup_pass and {layers}, then conv_in_q, second half log_var",
            f"priors: {'learned' if vae.learn_top_prior else 'standard normal'} at the top, then conv_in_p",
            f"decoder: final_top_down and {likelihood}" + ("" if own else ", taken as the mean of the data"),
        )
        self.assumed = ("the objective is the AEF's; free bits, beta and analytical_kl are not used",)
        if not own:
            self.assumed += (
                f"the example is not of multiples of 1/{LEVELS[likelihood]}, which {likelihood} gives probabilities "
                "of: only its mean is used",
            )
        if likelihood == "DiscretizedLogisticMixLikelihood":
            self.assumed += ("the mean of the data, which it does not have, is that of its mixture, not discretised",)

    def infer(self, x: Tensor) -> list[Tensor]:
        """Return the bottom-up features of each level, the lowest first."""
        return self.vae.bottomup_pass(self.vae.pad_input(x))

    def run(self, place: Place, state: list[Tensor] | None) -> Decoded:
        """See `VAEParts.run`."""
        vae, out = self.vae, None
        for i in reversed(range(vae.n_layers)):
            layer = vae.top_down_layers[i]
            block = layer.stochastic
            above = layer.top_prior_params.expand(place.size, -1, -1, -1) if out is None else out
            at = prior(*(block.conv_in_p(above) if block.transform_p_params else above).chunk(2, dim=1))
            seen = None
            if state is not None:
                merged = state[i] if out is None else layer.merge(state[i], above)
                seen = posterior(*block.conv_in_q(merged).chunk(2, dim=1))
            value = block.conv_out(place(f"z{i + 1}", at, seen))
            if layer.stochastic_skip and out is not None:
                value = layer.skip_connection_merger(value, out)
            out = layer.deterministic_block(value)
        params = vae.likelihood.distr_params(crop(vae.final_top_down(out), vae.img_shape))
        return self.decoded(params)

    def decoded(self, params: Any) -> Decoded:
        """Read the parameters of the likelihood."""
        if self.kind == "DiscretizedLogisticMixLikelihood":
            mean, scale = mixture_mean(params["all_params"]), None
        else:
            mean = self.vae.likelihood.mean(params)
            scale = to_scale(params["logvar"], "log_var") if self.kind == "GaussianLikelihood" else None
        density = Likelihood(self.vae.likelihood, params, LEVELS[self.kind]) if self.own else None
        return Decoded(at_least_float32(mean), scale, density)


class Likelihood:
    """The codebase's own p(x | z).

    Args:
        module: its likelihood.
        params: what `module.distr_params` has returned.
        levels: see `LEVELS`.
    """

    def __init__(self, module: Any, params: Any, levels: int | None) -> None:
        self.module, self.params, self.levels = module, params, levels

    def log_prob(self, x: Tensor) -> Tensor:
        """Log density, or probability, `(batch,)`, in nats; minus infinity for data that have no probability."""
        value = self.module.log_likelihood(x, self.params)
        if self.levels is None:
            return value
        return torch.where(on_grid(x, self.levels).flatten(1).all(1), value, -torch.inf)

    def sample(self) -> Tensor:
        """Draw data, `(batch, *event)`, by the codebase's own sampler, which does not round to grey levels."""
        return self.module.sample(self.params)


def crop(x: Tensor, size: tuple[int, int]) -> Tensor:
    """Cut the middle out of `(batch, channels, height, width)`."""
    top, left = ((x.shape[2 + i] - size[i]) // 2 for i in range(2))
    return x[:, :, top : top + size[0], left : left + size[1]]


def mixture_mean(params: Tensor) -> Tensor:
    """Return the mean, in [0, 1], of a mixture of logistics whose channels follow one another linearly (PixelCNN++).

    Args:
        params: `(batch, 10 K, height, width)`: K logits, then for each of three channels K means, K log scales and K
            coefficients.
    """
    count = params.shape[1] // 10
    weights = params[:, :count].softmax(1)
    means, _, raw = params[:, count:].unflatten(1, (3, 3, count)).unbind(2)
    factors = raw.tanh()
    red = means[:, 0]
    green = means[:, 1] + factors[:, 0] * red
    blue = means[:, 2] + factors[:, 1] * red + factors[:, 2] * green
    mean = torch.stack([(weights * channel).sum(1) for channel in (red, green, blue)], dim=1)
    return ((mean + 1) / 2).clamp(0, 1)


@register_adapter("models.lvae.LadderVAE")
def adapt(vae: Any, x: Tensor, *cond: Any, **kwargs: Any) -> VAEParts | None:
    """Read a LadderVAE; what only shares its name is left to others.

    Raises:
        WrapError: for conditions, images of another size than the model's, or a likelihood that is not one of
            `LEVELS`.
    """
    wanted = ("bottomup_pass", "pad_input", "top_down_layers", "final_top_down", "likelihood", "img_shape")
    if not all(hasattr(vae, name) for name in wanted):
        return None
    if cond or kwargs:
        raise refusal(vae, "it takes no conditions", "Leave them out of the example")
    if tuple(x.shape[2:]) != tuple(vae.img_shape):
        raise refusal(
            vae,
            f"its prior at the top is made for images of {tuple(vae.img_shape)}, and the example is of "
            f"{tuple(x.shape[2:])}",
            "Build it with the img_shape of your data",
        )
    names = [cls.__name__ for cls in type(vae.likelihood).__mro__]
    likelihood = next((name for name in names if name in LEVELS), None)
    if likelihood is None:
        raise refusal(
            vae, f"its likelihood {names[0]} may be a density or a probability of anything", f"Use {', '.join(LEVELS)}"
        )
    levels = LEVELS[likelihood]
    return LadderVAEProgram(vae, likelihood, levels is None or bool(on_grid(x, levels).all()))
