"""An AEF as scikit-learn knows models: `fit`, `score_samples`, `transform`, `sample`, `decision_function`."""

from __future__ import annotations

import numbers
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from vae2aef.aef import AEF
from vae2aef.comparison.nets import MLPVAE
from vae2aef.preprocess import Standardize
from vae2aef.wrapping import wrap

try:
    import numpy as np
    from sklearn.base import BaseEstimator, DensityMixin, TransformerMixin
    from sklearn.utils.validation import check_is_fitted, check_random_state, validate_data
except ImportError as problem:
    raise ImportError('vae2aef.estimator needs scikit-learn: pip install "vae2aef[demo]"') from problem


SCORED = 1000
"""Most rows of the training data that `offset_` is read off."""


class AEFEstimator(TransformerMixin, DensityMixin, BaseEstimator):
    """Train a VAE as an AEF on a table, and use it as a density, a map to latents, a generator, an outlier score.

    Data are standardised, feature by feature, its log-determinant counted: log p(x) is that of the data as given.

    Args:
        n_components: latent variables.
        vae: None for an MLP of two hidden layers, or a function of (event_shape, latents) that returns a VAE.
        hidden: units of a hidden layer of that MLP.
        core: as for `vae2aef.wrap`; `"noise"` is the VAE itself.
        core_flow: likewise.
        prior: likewise.
        likelihood: likewise.
        noise: likewise, sigma; None for its default.
        max_iter: optimizer steps.
        batch_size: data of a step.
        learning_rate: Adam's.
        importance_samples: draws for log p of each datum.
        contamination: share of the training data that `decision_function` is to put below zero.
        random_state: seed, as scikit-learn takes it.

    Attributes:
        aef_: the trained AEF, in `eval()` mode.
        offset_: log p(x) that divides inliers from outliers, nats; of at most 1000 training data.
        n_features_in_: features of the training data.
        n_iter_: steps taken.

    Example:
        >>> AEFEstimator(n_components=2).fit(X).score_samples(X)  # doctest: +SKIP
    """

    def __init__(
        self,
        n_components: int = 2,
        *,
        vae: Callable[..., nn.Module] | None = None,
        hidden: int = 64,
        core: Any = None,
        core_flow: Any = None,
        prior: Any = None,
        likelihood: Any = None,
        noise: float | None = None,
        max_iter: int = 500,
        batch_size: int = 128,
        learning_rate: float = 1e-3,
        importance_samples: int = 64,
        contamination: float = 0.1,
        random_state: Any = None,
    ) -> None:
        self.n_components = n_components
        self.vae = vae
        self.hidden = hidden
        self.core = core
        self.core_flow = core_flow
        self.prior = prior
        self.likelihood = likelihood
        self.noise = noise
        self.max_iter = max_iter
        self.batch_size = batch_size
        self.learning_rate = learning_rate
        self.importance_samples = importance_samples
        self.contamination = contamination
        self.random_state = random_state

    def fit(self, X: Any, y: Any = None) -> AEFEstimator:
        """Train on data (n, features); labels `y` are not used.

        Raises:
            ValueError: the data are no finite table of at least two rows, or an option is out of its range.
        """
        self._require_options()
        X = validate_data(self, X, dtype=np.float32, ensure_min_samples=2)
        x = torch.from_numpy(np.ascontiguousarray(X))
        self._seed = int(check_random_state(self.random_state).randint(2**31 - 1))
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(self._seed)
            self.aef_ = self._train(x)
            self.n_iter_ = self.max_iter
        self._drawn = 0
        some = np.random.RandomState(self._seed).permutation(len(x))[:SCORED]
        scores = self._log_prob(x[some].double())
        self.offset_ = float(np.quantile(scores, self.contamination))
        return self

    def _require_options(self) -> None:
        for name in ("n_components", "hidden", "max_iter", "batch_size", "importance_samples"):
            value = getattr(self, name)
            if not isinstance(value, numbers.Integral) or value < 1:
                raise ValueError(f"expected {name} as a whole number of at least 1, got {value!r}")
        if not (isinstance(self.contamination, numbers.Real) and 0 <= self.contamination <= 1):
            raise ValueError(f"expected contamination as a share from 0 to 1, got {self.contamination!r}")

    def _train(self, x: Tensor) -> AEF:
        event = tuple(x.shape[1:])
        made = MLPVAE(event, self.n_components, self.hidden) if self.vae is None else self.vae(event, self.n_components)
        own: dict[str, Any] = {}
        if isinstance(made, MLPVAE):
            own = {"encoder": made.encode, "decoder": made.decode, "encoder_scale": "log_var"}
        aef = wrap(
            made, example=x, core=self.core, core_flow=self.core_flow, prior=self.prior, likelihood=self.likelihood,
            noise=self.noise, preprocess=Standardize.fit(x, per="feature"), **own,
        )  # fmt: skip
        optimizer = torch.optim.Adam(aef.parameters(), lr=self.learning_rate)
        for _ in range(self.max_iter):
            loss = aef(x[torch.randint(len(x), (min(self.batch_size, len(x)),))])
            optimizer.zero_grad()
            loss.backward()
            torch.nn.utils.clip_grad_norm_(aef.parameters(), 200.0)
            optimizer.step()
        return aef.eval().double()  # scores of a datum are then the same in any batch

    def _read(self, X: Any) -> Tensor:
        check_is_fitted(self, "aef_")
        X = validate_data(self, X, reset=False, dtype=[np.float64, np.float32])
        return torch.from_numpy(np.array(X))

    def _log_prob(self, x: Tensor) -> Any:
        with torch.no_grad():
            pieces = [
                self.aef_.log_prob(piece, num_samples=self.importance_samples, seed=self._seed, proposal="laplace")
                for piece in x.split(256)
            ]
        return torch.cat([piece.value for piece in pieces]).numpy()

    def score_samples(self, X: Any) -> Any:
        """Return log p(x) of data (n, features), nats, (n,); the same number for the same datum, whatever the batch."""
        return self._log_prob(self._read(X).double())

    def score(self, X: Any, y: Any = None) -> float:
        """Return the mean of `score_samples`, nats; higher is better."""
        return float(self.score_samples(X).mean())

    def decision_function(self, X: Any) -> Any:
        """Return log p(x) - `offset_`, (n,): below zero for outliers, as scikit-learn has it (PyOD: the other sign)."""
        return self.score_samples(X) - self.offset_

    def transform(self, X: Any) -> Any:
        """Return latents (n, n_components) of data (n, features), encoded without noise."""
        x = self._read(X)
        with torch.no_grad():
            return self.aef_.encode(x.double()).flatten(1).to(x.dtype).numpy()

    def inverse_transform(self, X: Any) -> Any:
        """Return data (n, features) for latents (n, n_components): the mean of x."""
        check_is_fitted(self, "aef_")
        with torch.no_grad():
            return self.aef_.decode(torch.as_tensor(np.asarray(X, dtype=np.float64))).numpy()

    def sample(self, n_samples: int = 1) -> Any:
        """Draw data from the model, (n_samples, features); other ones at each call, the same after the same `fit`."""
        check_is_fitted(self, "aef_")
        self._drawn = getattr(self, "_drawn", 0) + 1  # models of before have none
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(self._seed + self._drawn)
            return self.aef_.sample(n_samples, residual=True).numpy()
