"""The arms of the results page are what they say."""

import contextlib
import math
from pathlib import Path

import numpy as np
import pytest
import torch

pytest.importorskip("sklearn", reason="the Gaussian on x takes scikit-learn's covariance")
HERE = Path(__file__).parent / "benchmarks" / "results"


@pytest.fixture
def results(monkeypatch):
    monkeypatch.syspath_prepend(HERE)
    import arms
    import beside
    import cells
    import losses

    class Results:
        pass

    found = Results()
    found.arms, found.beside, found.cells, found.losses = arms, beside, cells, losses
    return found


@pytest.fixture
def tiny(results):
    x = torch.rand(64, 1, 4, 4, generator=torch.Generator().manual_seed(0))

    def build(arm):
        return results.arms.build(arm, 0, x, 3, "vae", 256, None), x

    return build


@pytest.mark.parametrize("loss", ["decoder noise", "jacobian", "weighted"])
def test_a_loss_that_is_turned_off_is_eq_10(results, tiny, loss):
    aef, x = tiny("aef")
    plain = results.losses.plain(aef, x)
    if loss == "weighted":
        off, on = (results.losses.weighted(aef, x, torch.tensor(weight)) for weight in (1.0, 0.5))
    else:
        off, on = (results.losses.loss_of(loss, share)(aef, x) for share in (0.0, 0.5))
    torch.testing.assert_close(off, plain)
    assert abs((on - plain).item()) > 1e-3


def test_the_penalty_is_what_the_noise_costs_to_first_order(results, tiny):
    """On average over the noise, for a decoder that is linear: exactly."""
    aef, x = tiny("aef")
    aef.vae.decode = torch.nn.Sequential(torch.nn.Linear(3, 16), torch.nn.Unflatten(1, (1, 4, 4)))
    aef = results.arms.vae2aef.wrap(aef.vae, example=x, encoder=aef.vae.encode, decoder=aef.vae.decode,
                                    encoder_scale="log_var", noise=0.0)  # fmt: skip
    many = x[:1].expand(40_000, 1, 4, 4)
    torch.manual_seed(0)
    noisy, smooth = (results.losses.loss_of(name, 300.0)(aef, many) for name in ("decoder noise", "jacobian"))
    plain = results.losses.plain(aef, many)
    assert (smooth - plain).item() > 10
    assert (noisy - plain).item() == pytest.approx((smooth - plain).item(), rel=0.1)


def test_the_penalty_of_a_logistic_is_a_third_of_a_gaussians(results):
    """The information of a logistic about its mean; here by the sum over all levels of a datum drawn from the model."""
    x = torch.rand(64, 1, 4, 4, generator=torch.Generator().manual_seed(0)).mul(255).round() / 255
    aef = results.arms.build("aef", 0, x, 3, "discretized_logistic", 256, None)
    with torch.no_grad():
        aef.likelihood.raw_scale.fill_(0.0)  # softplus(0) = 0.69: wide beside a level, the whole line in effect
        drawn = aef.vae.decode(torch.zeros(1, 3)).expand(20_000, 1, 4, 4).clamp(0, 1)
        torch.manual_seed(0)
        smooth = results.losses.loss_of("jacobian", 0.3)(aef, drawn)
        plain = results.losses.plain(aef, drawn)
        torch.manual_seed(0)
        posterior, z = aef.parts.encode(drawn), aef.encode(drawn)
        moved = aef.vae.decode(z + 0.3 * posterior.scale * torch.randn_like(z)) - aef.vae.decode(z)
        scale = torch.nn.functional.softplus(torch.zeros(())) + 1e-5
        expected = (moved / scale).square().flatten(1).sum(1).mean() / 6
    assert (smooth - plain).item() == pytest.approx(expected.item(), rel=0.02)


def test_the_core_flow_that_keeps_volumes_does_and_is_inverted(results, tiny):
    aef, _ = tiny("volume-flow-0")
    torch.manual_seed(1)
    for parameter in aef.core_flow.parameters():
        torch.nn.init.normal_(parameter, std=0.5)
    u = torch.randn(5, 3)
    w, log_det = aef.core_flow(u)
    assert (w - u).abs().max() > 0.1 and not log_det.any()
    torch.testing.assert_close(aef.core_flow.inverse(w)[0], u, rtol=1e-4, atol=1e-4)
    jacobian = torch.func.jacrev(lambda one: aef.core_flow(one[None])[0][0])(u[0])
    torch.testing.assert_close(torch.det(jacobian), torch.tensor(1.0))


def test_the_bounded_posterior_starts_where_the_free_one_does_and_stays_within_bounds(results, tiny):
    bounded, x = tiny("bounded-0")
    free, _ = tiny("aef")
    with torch.no_grad():
        start, plain = (2 * aef.parts.encode(x).scale.log().mean() for aef in (bounded, free))
        assert start.item() == pytest.approx(plain.item(), abs=0.4)
        for bias, log_var in ((100.0, 1.0), (-100.0, -8.0)):
            bounded.vae.to_log_var[0].bias.fill_(bias)
            found = 2 * bounded.parts.encode(x).scale.log()
            torch.testing.assert_close(found, torch.full_like(found, log_var), rtol=1e-3, atol=1e-3)


def data_of(results, cell, seed=0, rows=3000):
    """Grey levels or columns from one correlated Gaussian."""
    random = np.random.default_rng(seed)
    mixing = np.random.default_rng(9).normal(size=(cell.values, cell.values)) / math.sqrt(cell.values)
    y = torch.from_numpy(random.normal(size=(rows, cell.values)) @ mixing).float()
    if cell.bins == 1:
        return y
    return (torch.sigmoid(y) * cell.bins).clamp(0, cell.bins - 1).to(torch.uint8)


def test_a_gaussian_on_x_against_the_truth(results, monkeypatch):
    cell = results.cells.Cell("", 5, 2, "vae", 1, 10, 100, "")
    x = data_of(results, cell)
    data = results.cells.Data(x[:2500], x[2500:2600], x[2600:])
    found = results.beside.run(cell, "gaussian", 0, data, 10, 0.0, "cpu")
    mixing = torch.from_numpy(np.random.default_rng(9).normal(size=(5, 5)) / math.sqrt(5)).float()
    truth = torch.distributions.MultivariateNormal(torch.zeros(5), mixing.T @ mixing).log_prob(data.test)
    assert np.mean(found["log_prob"]) == pytest.approx(float(truth.mean()), abs=0.05)


@pytest.mark.parametrize("name", ["gaussian", "flow"])
def test_probabilities_of_levels_are_below_those_of_chance_to_know(results, name):
    """Of grey levels it is a probability: levels drawn evenly have log p = -N log bins, and no model says more."""
    cell = results.cells.Cell("", 4, 2, "discretized_logistic", 16, 60, 100, "")
    levels = torch.randint(16, (2000, 4), generator=torch.Generator().manual_seed(0)).to(torch.uint8)
    held = [results.cells.scored(cell, x, "") for x in (levels[1500:1700], levels[1700:])]
    density, data, more = results.cells.as_density(cell, results.cells.Data(levels[:1500], *held))
    found = results.beside.run(density, name, 0, data, 60, more, "cpu")
    best = -4 * math.log(16)
    assert best - 1.5 < np.mean(found["log_prob"]) < best + 0.1
    assert best - 1.5 < -found["best"] < best + 0.1


def test_levels_come_back_from_what_is_scored(results):
    cell = results.cells.CELLS["digits"]
    levels = torch.arange(17, dtype=torch.uint8).reshape(1, 17)
    again = results.cells.dequantised(cell, results.cells.scored(cell, levels, ""), "a")
    assert torch.equal((again * 17).floor().to(torch.uint8), levels)
    assert torch.equal(again, results.cells.dequantised(cell, levels, "a"))


def test_an_arm_starts_as_it_was_run(results):
    """Of 784 values: by 256 / 784 and W as torch draws it; the default from unit spread, by sqrt(16 / 784)."""
    x = torch.rand(64, 1, 28, 28, generator=torch.Generator().manual_seed(0))
    small, today, held = (
        results.arms.build(arm, 0, x, 3, "vae", 256, None).core.features
        for arm in ("small-noise", "aef-noise", "held-1")
    )
    spread = float((x - x.mean(0)).double().std(correction=0))
    assert float(today.scale) * spread == pytest.approx(math.sqrt(16 / 784), rel=1e-5)
    for features in (small, held):
        assert float(features.scale) * spread == pytest.approx(256 / 784, rel=1e-5)
        assert float(features.linear.weight.detach().abs().max()) == pytest.approx(784**-0.5 / (256 / 784), rel=1e-3)
    torch.testing.assert_close(small.linear.weight, held.linear.weight, rtol=1e-3, atol=1e-6)  # the same draw
    h = small(x) - small.linear.bias
    assert 0.4 < float(h.detach().square().mean().sqrt()) < 0.8


def test_after_a_capture_training_begins_anew(monkeypatch):
    """Fault: weights, or the optimizer's moments, left where the warm-up brought them. Without a GPU: a stand-in."""
    monkeypatch.syspath_prepend(HERE)
    from captured import captured

    class Stream:
        def wait_stream(self, other):
            pass

    class Graph:
        def replay(self):
            update()

    for name, value in {"Stream": Stream, "current_stream": Stream, "CUDAGraph": Graph}.items():
        monkeypatch.setattr(torch.cuda, name, value)
    for name in ("stream", "graph"):
        monkeypatch.setattr(torch.cuda, name, lambda _: contextlib.nullcontext())
    model, x = torch.nn.Linear(3, 2), torch.rand(5, 3)
    optimizer = torch.optim.Adam(model.parameters(), lr=0.1, foreach=True)

    def update():
        optimizer.zero_grad(set_to_none=False)
        model(x).square().sum().backward()
        optimizer.step()

    before = [p.detach().clone() for p in model.parameters()]
    replay = captured(update, model, optimizer)
    assert all(torch.equal(p, q) for p, q in zip(model.parameters(), before, strict=True))
    states = [value for state in optimizer.state.values() for value in state.values()]
    assert len(states) == 6 and not any(value.any() for value in states)
    replay()
    fresh = torch.nn.Linear(3, 2)
    for p, q in zip(fresh.parameters(), before, strict=True):
        p.data.copy_(q)
    first = torch.optim.Adam(fresh.parameters(), lr=0.1, foreach=True)
    fresh(x).square().sum().backward()
    first.step()
    for p, q in zip(model.parameters(), fresh.parameters(), strict=True):
        torch.testing.assert_close(p, q)
