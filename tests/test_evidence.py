"""What speaks for a number: Pareto k-hat, errors, warnings, target errors, seeds."""

import math
import warnings

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from strategies import seeds
from test_closed_form import SCALE, make
from zoo_core import SmallVAE

import vae2aef
from vae2aef.draws import Draws
from vae2aef.evidence import Sums
from vae2aef.marginal import EstimateWarning, LogProb, Proposal
from vae2aef.pareto import pareto_tail, tail_length

pytestmark = pytest.mark.usefixtures("float64")


@given(st.integers(2, 2000), st.floats(0.01, 5.0), st.booleans(), seeds)
def test_k_hat_is_that_of_arviz(draws, spread, heavy, seed):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        arviz = pytest.importorskip("arviz", reason="k-hat is held against arviz, of the test extra")
        torch.manual_seed(seed)
        log_w = spread * torch.randn(draws, 2) ** (3 if heavy else 1)
        known = [float(arviz.psislw(log_w[:, i].numpy())[1]) for i in range(2)]
    sums = Sums(torch.zeros(2), draws)
    for block in log_w.split(32):
        sums.add(block)
    assert len(sums.largest) <= tail_length(draws) + 1
    got = sums.evidence()[3].tolist()
    for mine, theirs in zip(got, known, strict=True):
        assert math.isnan(mine) if draws <= 20 else mine == pytest.approx(theirs, rel=1e-6, abs=1e-9)


def test_equal_weights_have_no_tail():
    assert (pareto_tail(torch.zeros(30, 2), 100).k == -math.inf).all()


def test_a_small_tail_adds_to_the_error_and_a_large_one_hides_it():
    """A few weights of 1.5 to 3 beside 2000 equal ones: k-hat 2, and hardly any harm."""
    equal = 1 + 1e-4 * torch.rand(2000, 3)
    small, large = equal.clone(), equal.clone()
    small[:8] += torch.linspace(0.5, 2.0, 8)[:, None]
    large[:8] += torch.linspace(10.0, 60.0, 8)[:, None]
    found = []
    for weights in (equal, small, large):
        sums = Sums(torch.zeros(3), 2000)
        sums.add(weights.log())
        found.append(sums.evidence())
    (_, plain, *_), (_, wider, size, k), (*_, heavy_size, heavy) = found
    assert (k > 1).all() and (size > 1900).all()
    share = 1e-3 * small[:8].sum(0) / 2  # of the sum of all, about
    assert (plain < 1e-5).all() and (wider > share / 2).all() and (wider < 0.1).all()
    assert (heavy > 1).all() and (heavy_size > 100).all() and found[2][1].isinf().all()


@pytest.mark.parametrize("k", [-0.3, 0.2, 0.9])
def test_the_fitted_tail_is_that_of_its_distribution(k):
    """Excesses at the quantiles of a generalised Pareto distribution: their own sum, and its shape, come back."""
    draws = 4000
    n = tail_length(draws)
    level = 1 - (torch.arange(n) + 0.5) / n
    excess = 0.02 * ((1 - level) ** -k - 1) / k
    largest = torch.cat([1 + excess, torch.ones(1)]).log()[:, None]
    tail = pareto_tail(largest, draws)
    assert float(tail.k) == pytest.approx(k, abs=0.06)
    assert float(tail.log_excess.exp()) == pytest.approx(float(excess.sum()), rel=0.1)


@pytest.mark.parametrize("drawn", ["less", "more"])
def test_of_what_a_tail_held_and_should_hold_the_more_counts(drawn):
    """A heavy tail whose largest draws stayed out promises what they hold; a draw beyond all others counts itself."""
    n = tail_length(4000)
    excess = 0.02 * ((1 - (torch.arange(n) + 0.5) / n) ** -1.2 - 1) / 1.2
    excess = excess.clamp(max=float(excess[-8])) if drawn == "less" else torch.cat([excess[:-1], 50 * excess[-1:]])
    tail = pareto_tail(torch.cat([torch.ones(1), 1 + excess]).flip(0).log()[:, None], 4000)
    ratio = float(tail.log_excess.exp() / excess.sum())
    assert ratio > 1.1 if drawn == "less" else ratio == pytest.approx(1.0)


def test_an_error_is_infinite_where_it_is_not_known():
    """One draw carries the first datum, twenty draws tell nothing; the third is plain."""
    log_w = 0.3 * torch.randn(200, 3)
    log_w[7, 0] += 12
    sums = Sums(torch.zeros(3), 200)
    sums.add(log_w)
    _, error, size, _ = sums.evidence()
    assert error.isinf().tolist() == [True, False, False]
    assert size[0] < 2
    few = Sums(torch.zeros(3), 20)
    few.add(0.01 * log_w[:20])
    assert few.evidence()[1].isinf().all()


@pytest.mark.filterwarnings("error")
def test_what_is_uncertain_is_said_once_and_counted():
    aef, _, x = make()
    bad = Proposal(torch.full((2,), 5.0))
    with pytest.warns(EstimateWarning, match="6 uncertain values of 6.*target_error") as caught:
        got = aef.log_prob(x, proposal=bad)
    assert len(caught) == 1
    assert got.bound and got.uncertain.all() and got.std_error.isinf().all()
    with pytest.warns(EstimateWarning, match="this mean of log p"):
        got.mean()
    good = aef.log_prob(x)  # no warning: they are errors here
    value, error = good.mean()
    assert not good.bound and not good.uncertain.any()
    assert value == pytest.approx(float(good.value.mean()))
    assert error == pytest.approx(float(good.value.std() / math.sqrt(6)))
    with pytest.raises(ValueError, match="at least one datum"):
        LogProb(*(field[:0] if isinstance(field, torch.Tensor) else field for field in good)).mean()


def test_draws_until_the_target_error():
    aef, vae, x = make()
    vae.centre_on_posterior(SCALE)
    wide = Proposal(torch.full((2,), 1.5))
    first = aef.log_prob(x, num_samples=64, proposal=wide, seed=0)
    got = aef.log_prob(x, num_samples=64, proposal=wide, seed=0, target_error=0.06, max_samples=2**17)
    assert first.std_error.min() > 0.06 >= got.std_error.max()
    assert ((got.value - vae.log_marginal(x, SCALE)).abs() < 5 * got.std_error).all()
    whole = aef.log_prob(x, num_samples=256, proposal=wide, seed=0)
    part = aef.log_prob(x, num_samples=64, proposal=wide, seed=0, target_error=1e-9, max_samples=256)
    torch.testing.assert_close(part.value, whole.value, rtol=0, atol=1e-9)  # the same draws, in other portions
    with pytest.raises(ValueError, match="positive target_error"):
        aef.log_prob(x, target_error=0.0)


@settings(max_examples=6)
@given(
    st.permutations(range(7)),
    st.integers(1, 7),
    st.sampled_from([3, 7, 50]),
    st.sampled_from(["auto", "own", "laplace"]),
)
@pytest.mark.slow
def test_a_seed_makes_the_number_the_datums_own(order, rows, chunk, kind):
    """Batch, order and chunk change nothing: the noise of dequantisation and the conditions are in it too."""
    torch.manual_seed(3)
    x, label = torch.randint(0, 256, (7, 5), dtype=torch.uint8), torch.randn(7, 2)
    aef = vae2aef.wrap(
        SmallVAE((5,), (2,), classes=2), example=(x, label), encoder_scale="log_std",
        preprocess=["dequantize", "logit"],
    )  # fmt: skip
    proposal = {"auto": None, "laplace": "laplace", "own": Proposal(torch.tensor([-0.5, 0.2]))}[kind]
    options = {"num_samples": 40, "seed": 5, "proposal": proposal}
    whole = aef.log_prob(x, label, **options)
    take = list(order[:rows])
    torch.manual_seed(len(take))
    part = aef.log_prob(x[take], label[take], chunk_size=chunk, **options)
    for mine, other in ((whole.value, part.value), (whole.effective_sample_size, part.effective_sample_size)):
        torch.testing.assert_close(mine[take], other, rtol=0, atol=1e-9)


def test_a_seed_leaves_torchs_state_alone_and_differs_from_others():
    aef, _, x = make()
    before = torch.get_rng_state()
    one = aef.log_prob(x, num_samples=30, seed=0)
    assert torch.equal(before, torch.get_rng_state())
    assert not torch.equal(one.value, aef.log_prob(x, num_samples=30, seed=1).value)
    assert torch.equal(one.value, aef.log_prob(x, num_samples=30, seed=0).value)
    with pytest.raises(ValueError, match="tuned on the batch"):
        aef.log_prob(x, proposal="tuned", seed=0)


def test_counted_numbers_are_normal_and_independent():
    numbers = Draws(torch.tensor([1, 2, 3]), True).normal(0, 0, 20_000, 2)
    flat = numbers.reshape(20_000, 6)
    assert flat.mean(0).abs().max() < 0.03 and (flat.std(0) - 1).abs().max() < 0.03
    assert (flat.pow(4).mean(0) - 3).abs().max() < 0.3
    assert (torch.corrcoef(flat.T) - torch.eye(6)).abs().max() < 0.03
    assert (flat[1:] * flat[:-1]).mean(0).abs().max() < 0.03


@pytest.mark.slow
def test_integers_under_a_partition_are_an_estimate():
    """The noise of dequantisation is averaged over: exact=True on a random number was wrong."""
    x = torch.randint(0, 4, (5, 3))
    aef = vae2aef.wrap(SmallVAE((3,), (1,)), example=x, encoder_scale="log_std", core="corner", preprocess=[
        vae2aef.Dequantize(4), vae2aef.Logit()])  # fmt: skip
    got = aef.log_prob(x, num_samples=150, seed=0)
    again = aef.log_prob(x, num_samples=150, seed=1)
    assert not got.exact and (got.std_error > 0).all()
    assert ((got.value - again.value).abs() < 6 * got.std_error).all()
    assert aef.log_prob(vae2aef.dequantize(x, 4).to(torch.float64)).exact
