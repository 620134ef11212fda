"""VAEs in the style of `torch.distributions`: the encoder returns a distribution, the decoder may too."""

from collections.abc import Callable, Mapping
from typing import Any

from torch import Tensor, nn
from torch.distributions import (
    ComposeTransform,
    Distribution,
    Independent,
    LowRankMultivariateNormal,
    MultivariateNormal,
    Normal,
    TransformedDistribution,
)

from vae2aef.errors import WrapError, describe
from vae2aef.parts import Decoded, Posterior, VAEParts, to_scale
from vae2aef.registry import register_adapter
from vae2aef.tensors import at_least_float32, sum_event
from vae2aef.wrapping.trial import trial

PAIRS = (("encode", "decode"), ("encoder", "decoder"))


def find_pair(vae: Any) -> tuple[Callable[..., Any], Callable[..., Any], str, str] | None:
    """Return encoder, decoder and their names, if an object has them."""
    for first, second in PAIRS:
        encoder, decoder = getattr(vae, first, None), getattr(vae, second, None)
        if callable(encoder) and callable(decoder):
            return encoder, decoder, first, second
    return None


class DistributionParts(VAEParts):
    """Encoder that returns a distribution, and a decoder that returns one, or a tensor.

    Args:
        encoder: `encoder(x, *cond)` returns Normal, MultivariateNormal, either in Independent, or a
            TransformedDistribution over these; `{"loc": ..., "scale": ...}`; a pair of these and the standard normal,
            the prior; or a `vae2aef.Posterior`, whose transform may be any flow.
        decoder: `decoder(z, *cond)` returns the mean, (mean, scale), or the distribution of x.
    """

    known, decoder_scale = False, None

    def __init__(self, encoder: Callable[..., Any], decoder: Callable[..., Any]) -> None:
        self.encoder = encoder
        self.decoder = decoder

    def encode(self, x: Tensor, *cond: Any, **kwargs: Any) -> Posterior:
        """See `VAEParts.encode`."""
        return read_posterior(self.encoder(x, *cond, **kwargs))

    def decode(self, z: Tensor, *cond: Any, **kwargs: Any) -> Decoded:
        """See `VAEParts.decode`."""
        return self.decoded(self.decoder(z, *cond, **kwargs))


def inner(out: Any) -> Any:
    """Take a distribution out of Independent."""
    return inner(out.base_dist) if isinstance(out, Independent) else out


def of_posterior(out: Any) -> Any:
    """Return the distribution that an encoder means: that of `loc` and `scale`, the first of (posterior, prior).

    Args:
        out: what it returned.

    Returns:
        A distribution or a `Posterior`; None if it returned something else.
    """
    if isinstance(out, (Distribution, Posterior)):
        return out
    if isinstance(out, Mapping) and out.keys() >= {"loc", "scale"}:
        return Normal(out["loc"], out["scale"], validate_args=False)
    if isinstance(out, (tuple, list)) and out and all(isinstance(item, Distribution) for item in out):
        return out[0] if len(out) == 2 and _is_standard(out[1]) else None
    return None


def _is_standard(prior: Any) -> bool:
    """Whether a distribution is the standard normal, for every datum."""
    prior = inner(prior)
    return isinstance(prior, Normal) and bool((prior.loc == 0).all() & (prior.scale == 1).all())


def read_posterior(out: Any) -> Posterior:
    """Read location, scale and what comes after them from a distribution of shape `(batch, *latent)`.

    Raises:
        WrapError: for a distribution that is not a Gaussian, or a transform of one, by bijections that keep
            the shape.
    """
    out = inner(of_posterior(out))
    if isinstance(out, Posterior):
        return out._replace(loc=at_least_float32(out.loc), scale=to_scale(out.scale, "std"))
    if isinstance(out, Normal):
        return Posterior(at_least_float32(out.loc), to_scale(out.scale, "std"))
    if isinstance(out, (MultivariateNormal, LowRankMultivariateNormal)):
        tril = at_least_float32(out.scale_tril)
        scale = tril.diagonal(dim1=-2, dim2=-1)
        return Posterior(at_least_float32(out.loc), scale, Correlation(out.loc, tril / scale.unsqueeze(-2)))
    if isinstance(out, TransformedDistribution) and all(t.bijective for t in out.transforms):
        base = read_posterior(out.base_dist)
        parts = list(out.transforms)
        if ComposeTransform(parts).forward_shape(base.loc.shape) == base.loc.shape:
            return base._replace(transform=Transforms(base, ComposeTransform(parts)))
    raise WrapError(
        f"the encoder returns {describe(out)}: an AEF needs z = transform(g_m(x) + g_s(x) * u), that is Normal, "
        "MultivariateNormal, or a TransformedDistribution over these by bijections that keep the shape. ",
        "For another location-scale family (Laplace, Student-t) pass encoder=lambda x: (q.loc, q.scale) and "
        'encoder_scale="std"; for a discrete or bounded latent there is no AEF',
    )


class Correlation:
    """The part of a full covariance that is not its scale: z -> loc + L D^-1 (z - loc), of determinant 1.

    Args:
        loc: `(batch, latent)`.
        unit: L D^-1, L the Cholesky factor and D its diagonal: `(batch, latent, latent)`.
    """

    def __init__(self, loc: Tensor, unit: Tensor) -> None:
        self.loc, self.unit = loc, unit

    def __call__(self, z: Tensor) -> tuple[Tensor, Tensor]:
        """Map `(draws * batch, latent)`, whole batch after whole batch, to the same and `(draws * batch,)`."""
        offsets = (by_draws(z, self.loc) - self.loc).unsqueeze(-1)
        return (self.loc + (self.unit @ offsets).squeeze(-1)).reshape(z.shape), z.new_zeros(z.shape[0])


class Transforms:
    """The transforms of a TransformedDistribution, which may depend on the datum.

    Args:
        base: the posterior before them, with its own transform if it has one.
        transform: all of them.
    """

    def __init__(self, base: Posterior, transform: ComposeTransform) -> None:
        self.base, self.transform = base, transform

    def __call__(self, z: Tensor) -> tuple[Tensor, Tensor]:
        """Map `(draws * batch, *latent)`, whole batch after whole batch, to the same and `(draws * batch,)`."""
        log_det = z.new_zeros(z.shape[0])
        if self.base.transform is not None:
            z, log_det = self.base.transform(z)
        before = by_draws(z, self.base.loc)
        after = self.transform(before)
        each = self.transform.log_abs_det_jacobian(before, after)
        return after.reshape(z.shape), log_det + sum_event(each.reshape(z.shape[0], *each.shape[2:]))


def by_draws(z: Tensor, like: Tensor) -> Tensor:
    """Reshape `(draws * batch, *latent)` to `(draws, batch, *latent)`; `like` has the batch size."""
    return z.reshape(-1, *like.shape) if like.shape[0] else z.reshape(1, *z.shape)


@register_adapter(matches=lambda vae: find_pair(vae) is not None, style=True)
def adapt(vae: Any, x: Tensor, *cond: Any, encoder_scale: str | None = None, **kwargs: Any) -> VAEParts | None:
    """Read the parts, if the encoder returns a distribution; otherwise leave the VAE to others.

    Raises:
        WrapError: if the distribution is not a Gaussian or a transform of one.
    """
    pair = find_pair(vae)
    if pair is None:
        return None
    encoder, decoder, first, second = pair
    with trial(x.device, vae):
        try:
            out = encoder(x, *cond, **kwargs)
        except Exception:  # whatever it is, the next adapter meets it too and knows better what to say
            return None
        meant = of_posterior(out)
        if meant is None:
            return None
        posterior = read_posterior(meant)
        z = posterior.loc if posterior.transform is None else posterior.transform(posterior.loc)[0]
        decoded = inner(decoder(z, *cond, **kwargs))
    parts = DistributionParts(encoder, decoder)
    parts.taken = (
        f"encoder: {first}, {type(inner(meant)).__name__}",
        f"decoder: {second}, "
        + (f"{type(decoded).__name__} of the data" if isinstance(decoded, Distribution) else "the mean of the data"),
    )
    prior = getattr(vae, "prior", None)
    if isinstance(prior, (Distribution, nn.Module)):
        parts.assumed += (f"its own prior, {type(prior).__name__}, is not read: pass prior=vae.prior to use it",)
    return parts
