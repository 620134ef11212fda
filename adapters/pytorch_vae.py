"""AntixK PyTorch-VAE: `BaseVAE` and what derives from it, ConditionalVAE with `labels=`.

`PyTorchVAEModel` makes an AEF a model of that codebase again, for its `VAEXperiment`.
"""

from typing import Any

import torch
from torch import Tensor, nn

from vae2aef.adapters._common import (
    GIVE_SCALE,
    NO_POSTERIOR,
    QUANTISED,
    USE_GAUSSIAN,
    refusal,
)
from vae2aef.adapters.pytorch_examples import has_methods, measure_scale
from vae2aef.aef import AEF
from vae2aef.errors import WrapError
from vae2aef.parts import CallableParts, Decoded, Posterior, VAEParts, to_decoded, two_tensors
from vae2aef.registry import register_adapter
from vae2aef.wrapping.trial import trial

REFUSED = {
    "models.vq_vae.VQVAE": (QUANTISED, USE_GAUSSIAN),
    "models.cat_vae.CategoricalVAE": ("its latent is categorical, relaxed by Gumbel-softmax", USE_GAUSSIAN),
    "models.joint_vae.JointVAE": ("a part of its latent is categorical", USE_GAUSSIAN),
    "models.gamma_vae.GammaVAE": ("its posterior is a gamma distribution, drawn by rejection", USE_GAUSSIAN),
    "models.swae.SWAE": (NO_POSTERIOR, GIVE_SCALE),
    "models.wae_mmd.WAE_MMD": (NO_POSTERIOR, GIVE_SCALE),
}
EXTRA_AXES = {"models.iwae.IWAE": 1, "models.miwae.MIWAE": 2}
"""How many sample axes `decode` wants between batch and latent."""


class PyTorchVAEParts(CallableParts):
    """Encoder and decoder of a model of PyTorch-VAE.

    Args:
        vae: the model.
        axes: how many sample axes its `decode` wants between batch and latent.
    """

    def __init__(self, vae: Any, axes: int = 0) -> None:
        super().__init__(vae.encode, vae.decode, "log_var")
        self.axes = axes
        name = type(vae).__name__
        self.taken = (
            f"encoder: {name}.encode, second output log_var",
            f"decoder: {name}.decode, taken as the mean of the data",
        )
        self.assumed = (f"the objective is the AEF's; that of {name}, with kld_weight and extra terms, is not used",)
        if hasattr(vae, "embed_pseudo"):
            self.assumed += ("the pseudo-inputs of its VampPrior are not read; pass prior= to replace them",)

    def decode(self, z: Tensor, *cond: Any, **kwargs: Any) -> Decoded:
        """See `VAEParts.decode`."""
        ones = (1,) * self.axes
        mean = self.decoder(z.reshape(z.shape[0], *ones, *z.shape[1:]), *cond, **kwargs)
        return to_decoded(mean.reshape(z.shape[0], *mean.shape[1 + self.axes :]))


class ConditionalParts(PyTorchVAEParts):
    """ConditionalVAE: the labels, one-hot `(batch, classes)`, are a further channel of the input and appended to z.

    Args:
        vae: the model.
    """

    def __init__(self, vae: Any) -> None:
        super().__init__(vae)
        self.vae = vae
        self.taken += ("condition: labels, given to both",)

    def encode(self, x: Tensor, labels: Tensor) -> Posterior:
        """See `VAEParts.encode`."""
        plane = self.vae.embed_class(labels.to(x.dtype))
        plane = plane.reshape(-1, 1, self.vae.img_size, self.vae.img_size)
        return super().encode(torch.cat([self.vae.embed_data(x), plane], dim=1))

    def decode(self, z: Tensor, labels: Tensor) -> Decoded:
        """See `VAEParts.decode`."""
        return super().decode(torch.cat([z, labels.to(z.dtype)], dim=1))


@register_adapter("models.base.BaseVAE", *EXTRA_AXES)
def adapt(vae: Any, x: Tensor, *cond: Any, **kwargs: Any) -> VAEParts | None:
    """Read a model of PyTorch-VAE; what only shares the name of its base class is left to others.

    Raises:
        WrapError: if its second output is not a log variance after all.
    """
    if not has_methods(vae) or cond or kwargs:
        return None
    with trial(x.device, vae):
        second = two_tensors(vae.encode(x))[1]
        measured = measure_scale(vae.reparameterize, second)
    if measured != "log_var":
        return None
    names = (f"{cls.__module__}.{cls.__qualname__}" for cls in type(vae).__mro__)
    return PyTorchVAEParts(vae, next((EXTRA_AXES[name] for name in names if name in EXTRA_AXES), 0))


@register_adapter("models.cvae.ConditionalVAE")
def adapt_conditional(vae: Any, x: Tensor, labels: Tensor | None = None) -> VAEParts:
    """Read ConditionalVAE.

    Raises:
        WrapError: if the example has no labels.
    """
    if not isinstance(labels, Tensor) or labels.dim() != 2:
        raise WrapError(
            "ConditionalVAE needs its labels: ",
            'pass example=(x, {"labels": one_hot}), one_hot of shape (batch, classes), and call aef(x, labels=one_hot)',
        )
    return ConditionalParts(vae)


@register_adapter(*REFUSED)
def refuse(vae: Any, x: Tensor, *cond: Any, **kwargs: Any) -> VAEParts:
    """Say why a model is not taken."""
    names = (f"{cls.__module__}.{cls.__qualname__}" for cls in type(vae).__mro__)
    raise refusal(vae, *next(REFUSED[name] for name in names if name in REFUSED))


class PyTorchVAEModel(nn.Module):
    """An AEF with the methods that the loop of PyTorch-VAE calls: forward, `loss_function`, `sample`, `generate`.

    Args:
        aef: made by `vae2aef.wrap` from a model of PyTorch-VAE.
    """

    def __init__(self, aef: AEF) -> None:
        super().__init__()
        self.aef = aef

    def forward(self, input: Tensor, **kwargs: Any) -> list[Tensor]:
        """Return `[reconstruction, input, prior, residual, log_det, entropy]` for `loss_function(*results)`.

        Args:
            input: images, `(batch, channels, height, width)`.
            **kwargs: `labels`, used by a conditional model and ignored by the others, as in that codebase.
        """
        terms = self.aef(input, terms=True, **self._labels(kwargs))
        return [terms.reconstruction, input, terms.prior, terms.residual, terms.log_det, terms.entropy]

    def loss_function(self, *args: Tensor, **kwargs: Any) -> dict[str, Tensor]:
        """Return the AEF's loss in nats, under that codebase's keys.

        `M_N` (kld_weight) is ignored: a weighted sum is no likelihood.
        """
        prior, residual, log_det, entropy = args[2:6]
        gain = (prior + log_det + entropy).mean()
        reconstruction = -residual.mean()
        return {"loss": reconstruction - gain, "Reconstruction_Loss": reconstruction.detach(), "KLD": gain.detach()}

    def sample(self, num_samples: int, current_device: Any = None, **kwargs: Any) -> Tensor:
        """Draw images, `(num_samples, channels, height, width)`, from the AEF's prior."""
        return self.aef.sample(num_samples, **self._labels(kwargs))

    def generate(self, x: Tensor, **kwargs: Any) -> Tensor:
        """Reconstruct images."""
        return self.aef.reconstruct(x, **self._labels(kwargs))

    def _labels(self, kwargs: dict[str, Any]) -> dict[str, Any]:
        wanted = isinstance(self.aef.parts, ConditionalParts) and "labels" in kwargs
        return {"labels": kwargs["labels"]} if wanted else {}
