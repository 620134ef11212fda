"""What is estimated of log p(x): the marginal, its certificate, missing values."""

from typing import TYPE_CHECKING, Any, cast

from torch import Tensor

from vae2aef import certificate, gauge, marginal, missing
from vae2aef.batch import Batch
from vae2aef.certificate import Certificate
from vae2aef.marginal import LogProb, Proposal
from vae2aef.steps import Steps

if TYPE_CHECKING:
    from vae2aef.aef import AEF


class Estimates(Steps):
    """The methods of an AEF that estimate, by importance sampling."""

    def log_prob(
        self,
        x: Tensor,
        *cond: Any,
        num_samples: int = 128,
        proposal: Proposal | str | None = None,
        chunk_size: int | None = None,
        seed: int | None = None,
        target_error: float | None = None,
        max_samples: int = marginal.MAX_SAMPLES,
        method: str = "importance",
        observed: Tensor | None = None,
        **kwargs: Any,
    ) -> LogProb:
        """Estimate the marginal log p(x) in nats (Eq. 17-18); exact in the partition family.

        This is the number to report, and to compare a VAE and an AEF by. See `vae2aef.marginal.log_prob`.

        Args:
            x: data, shape `(batch, *event)`.
            *cond: conditions.
            num_samples: K, importance samples for each datum.
            proposal: where they are drawn. None looks for the mass of each datum; `"laplace"` fits one Gaussian to
                each; `"tuned"`, or what `tune_proposal` returned, is cheap, and its result only a bound.
            chunk_size: most decoder rows in memory at once.
            seed: makes a datum's number the same whatever the batch, the order and the chunk.
            target_error: draw on until each datum's standard error is at most this, in nats.
            max_samples: most draws for a datum, with `target_error`.
            method: `"importance"`, or `"ais"`: annealed importance sampling (`vae2aef.ais`), the slow reference.
            observed: True where a value of x is known, `(batch, *event)` or `(*event)`: log p of these alone.
            **kwargs: conditions by name.

        Warns:
            EstimateWarning: if there are rows whose estimate cannot be trusted.
        """
        self.require_scored(x, observed)
        return marginal.log_prob(
            cast("AEF", self),
            x,
            cond,
            kwargs,
            num_samples,
            proposal,
            chunk_size,
            seed,
            target_error,
            max_samples,
            method,
            observed,
        )

    def check_log_prob(
        self,
        n: int,
        *cond: Any,
        num_samples: int = 128,
        proposal: Proposal | str | None = None,
        seed: int | None = None,
        **kwargs: Any,
    ) -> Certificate:
        """Certify `log_prob` from both sides, on data drawn from the model; see `vae2aef.certificate`.

        Args:
            n: how many data to draw.
            *cond: conditions, `n` of each.
            num_samples: K, as for `log_prob`.
            proposal: likewise.
            seed: makes the certificate the same at each call.
            **kwargs: conditions by name.
        """
        return certificate.certify(
            cast("AEF", self), n, cond, kwargs, num_samples=num_samples, proposal=proposal, seed=seed
        )

    def tune_proposal(self, x: Tensor, *cond: Any, **kwargs: Any) -> Proposal | None:
        """Tune the importance sampling of `log_prob` on held-out data; see `vae2aef.marginal.tune`."""
        self._require_shape(x)
        return marginal.tune(cast("AEF", self), x, cond, kwargs)

    def gauge(self, x: Tensor, *cond: Any, **kwargs: Any) -> Any:
        """Read the gauge meter on data `(batch, *event)`: a `vae2aef.gauge.Gauge`; a dict by name for several latents.

        Args:
            x: data, two rows or more.
            *cond: conditions.
            **kwargs: conditions by name.

        Raises:
            ValueError: for a single row.
        """
        self._require_shape(x)
        return self._one_or_all(gauge.measure(cast("AEF", self), Batch(x, cond, kwargs)))

    def impute(
        self,
        x: Tensor,
        observed: Tensor,
        *cond: Any,
        num_samples: int = 1024,
        draw: bool = False,
        seed: int | None = None,
        **kwargs: Any,
    ) -> Tensor:
        """Fill in missing values of `x`, `(batch, *event)` to the same; see `vae2aef.missing.impute`.

        Args:
            x: data; whatever stands where `observed` is False, NaN too, is not looked at.
            observed: True where a value is known, `(batch, *event)` or `(*event)`, bool.
            *cond: conditions.
            num_samples: K, importance samples for each datum.
            draw: draw from p(x_mis | x_obs) instead of taking its mean.
            seed: makes the result a function of the datum alone.
            **kwargs: conditions by name.
        """
        observed = self.require_mask(observed, x)
        self.require_scored(x, observed)
        return missing.impute(cast("AEF", self), Batch(x, cond, kwargs), observed, num_samples, draw, seed)
