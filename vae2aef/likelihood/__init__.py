"""p(x | z): the density of data given the latents, in the place of r(x - f(z)) in Eq. 9-10.

The map (x, w) -> (delta, z) is triangular, so any density of x given z may stand there, and x may be discrete: for
each x, z <-> w is a bijection, and log p(x, w) = log p0(z) + log P(x | z) + log|det dz/dw|. The paper has the Gaussian
residual; all others go beyond it.
"""

from vae2aef.likelihood.base import AroundMean, Likelihood, observed_density
from vae2aef.likelihood.binary import Bernoulli, Categorical, ContinuousBernoulli
from vae2aef.likelihood.counts import NegativeBinomial, Poisson
from vae2aef.likelihood.discretized import DiscretizedGaussian, DiscretizedLogistic
from vae2aef.likelihood.logistic_mixture import LogisticMixture
from vae2aef.likelihood.of_distribution import OfDistribution

__all__ = [
    "AroundMean",
    "Bernoulli",
    "Categorical",
    "ContinuousBernoulli",
    "DiscretizedGaussian",
    "DiscretizedLogistic",
    "Likelihood",
    "LogisticMixture",
    "NegativeBinomial",
    "OfDistribution",
    "Poisson",
    "observed_density",
]
