"""The scikit-learn surface, by scikit-learn's own checks and against the AEF inside."""

import numpy as np
import pytest
import torch

pytest.importorskip("sklearn")

from sklearn.base import clone
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from sklearn.utils.estimator_checks import estimator_checks_generator

from vae2aef.estimator import AEFEstimator

QUICK = {"max_iter": 3, "hidden": 4, "core_flow": "none", "importance_samples": 4, "n_components": 1, "random_state": 0}
RNG = np.random.RandomState(0)
X = np.concatenate([RNG.randn(300, 1), RNG.randn(300, 1)], 1) @ np.array([[2.0, 1.0, 0.0], [0.0, 0.5, 1.0]])
X = X + 0.1 * RNG.randn(300, 3)

checks = list(estimator_checks_generator(AEFEstimator(**QUICK)))


@pytest.mark.parametrize(("estimator", "check"), checks, ids=[getattr(c, "func", c).__name__ for _, c in checks])
@pytest.mark.filterwarnings("ignore::vae2aef.errors.WrapWarning")
def test_by_the_checks_of_scikit_learn(estimator, check):
    check(estimator)


@pytest.fixture(scope="module")
def fitted():
    return AEFEstimator(n_components=2, hidden=32, max_iter=300, learning_rate=5e-3, random_state=1).fit(X)


def test_scores_are_those_of_the_aef_and_of_the_data(fitted):
    scores = fitted.score_samples(X[:20])
    x = torch.from_numpy(X[:20])
    inside = fitted.aef_.log_prob(x, num_samples=64, seed=fitted._seed, proposal="laplace").value.double().numpy()
    np.testing.assert_allclose(scores, inside, atol=1e-4)
    np.testing.assert_allclose(fitted.score_samples(X[7:8]), scores[7:8], atol=1e-3)  # whatever the batch
    covariance = np.cov(X.T)
    gaussian = -0.5 * (np.einsum("ni,ij,nj->n", X, np.linalg.inv(covariance), X)
                       + np.linalg.slogdet(2 * np.pi * covariance)[1])  # fmt: skip
    assert abs(fitted.score(X) - gaussian.mean()) < 0.5


def test_outliers_lie_below_zero(fitted):
    assert (fitted.decision_function(X) < 0).mean() == pytest.approx(0.1, abs=0.02)
    assert (fitted.decision_function(X[:20] + np.array([0, 5, -5])) < 0).all()


@pytest.mark.slow
def test_data_in_order_are_scored_as_in_any_order():
    """What divides inliers from outliers is read off rows from all of the data, not off the first thousand."""
    low = np.sort(np.concatenate([0.1 * RNG.randn(1100, 1), 8 + 2 * RNG.randn(1100, 1)]), 0)
    found = AEFEstimator(**{**QUICK, "max_iter": 60, "learning_rate": 2e-2}).fit(low)
    assert (found.decision_function(low[::4]) < 0).mean() == pytest.approx(0.1, abs=0.03)


@pytest.mark.parametrize(
    ("option", "value"),
    [
        ("n_components", 0),
        ("max_iter", 1.5),
        ("batch_size", 0),
        ("importance_samples", -1),
        ("contamination", 1.5),
        ("contamination", "auto"),
        ("hidden", 2.5),
    ],
)
def test_options_out_of_range_are_named(option, value):
    with pytest.raises(ValueError, match=f"expected {option} as .* got {value!r}"):
        AEFEstimator(**{**QUICK, option: value}).fit(X)


def test_options_are_those_of_wrap():
    bare = AEFEstimator(**{**QUICK, "core": "noise"}).fit(X)
    assert bare.aef_.noise == 1.0 and AEFEstimator(**QUICK).fit(X).aef_.noise == 0.3


def test_a_model_fitted_again_draws_as_at_first():
    model = AEFEstimator(**QUICK).fit(X)
    first = model.sample(3)
    assert np.array_equal(model.fit(X).sample(3), first)


def test_latents_and_samples(fitted):
    z = fitted.transform(X)
    assert z.shape == (300, 2)
    error = ((fitted.inverse_transform(z) - X) ** 2).mean()
    assert error < 0.2 * X.var()
    drawn, again = fitted.sample(2000), fitted.sample(2000)
    assert not np.array_equal(drawn, again)
    np.testing.assert_allclose(np.cov(drawn.T), np.cov(X.T), atol=1.0)


@pytest.mark.slow
def test_the_same_seed_gives_the_same_model_and_pipelines_work():
    one, two = (AEFEstimator(**QUICK).fit(X) for _ in range(2))
    assert np.array_equal(one.score_samples(X[:5]), two.score_samples(X[:5]))
    state = torch.random.get_rng_state()
    clone(one).fit(X).sample(2)
    assert torch.equal(state, torch.random.get_rng_state())
    assert make_pipeline(StandardScaler(), AEFEstimator(**QUICK)).fit(X).score_samples(X).shape == (300,)


def test_it_is_a_detector_of_pyod():
    """By PyOD's own base class, whose scores have the other sign."""
    base = pytest.importorskip("pyod.models.base", reason="PyOD is not installed: pip install pyod")

    class Detector(base.BaseDetector):
        def __init__(self, contamination=0.1):
            super().__init__(contamination=contamination)

        def fit(self, X, y=None):
            self._set_n_classes(y)
            self.model_ = AEFEstimator(n_components=2, max_iter=100, random_state=0).fit(X)
            self.decision_scores_ = self.decision_function(X)
            self._process_decision_scores()
            return self

        def decision_function(self, X):
            return -self.model_.score_samples(X)

    x = np.random.RandomState(0).randn(100, 4)
    x[:5] += 9
    found = Detector(contamination=0.05).fit(x)
    assert found.labels_[:5].all() and found.labels_.sum() == 5
    assert found.predict_proba(x)[:5, 1].min() > found.predict_proba(x)[5:, 1].max()
