"""Linear features: one map in any parametrisation, and steps of an optimizer that do not grow with the size of x."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from strategies import make_flow, seeds
from torch import Tensor, nn
from zoo_core import SmallVAE

import vae2aef
from vae2aef.fan_in import FAN_IN, SQUARES, FanInLinear, fan_in_scale
from vae2aef.features import LinearFeatures, NormalizedFeatures
from vae2aef.wrapping.options import build_flow


def step(features: LinearFeatures, x: Tensor, optimizer: type, lr: float) -> Tensor:
    """How far one step moves h(x), whose gradient points the same way for every row."""
    before = features(x).detach()
    steps = optimizer(features.parameters(), lr=lr)
    features(x).sum().backward()
    steps.step()
    return (features(x) - before).detach().abs().mean()


@given(st.integers(8, 700), st.floats(0.01, 1000.0), st.floats(-30.0, 30.0), seeds)
def test_h_starts_centred_and_with_one_spread_whatever_the_data(size, spread, middle, seed):
    torch.manual_seed(seed)
    x = spread * (middle + torch.randn(300, size, dtype=torch.float64))
    features = LinearFeatures((size,), (40,), example=x).double()
    with torch.no_grad():
        features.linear.bias.zero_()
        h = features(x)
    assert h.mean(0).abs().max() < 1e-4
    assert h.square().mean().sqrt() == pytest.approx(1.0, rel=1e-4)


@pytest.mark.parametrize("optimizer", [torch.optim.Adam, torch.optim.AdamW, torch.optim.SGD])
def test_a_step_does_not_grow_with_the_number_of_values(optimizer):
    """Smooth data, all of whose values move together, are the worst case: |h| moved in proportion to their number.

    No step moves h by more than it moves that of FAN_IN values (Adam) or of SQUARES values (SGD) that count in full.
    """
    moved, most = {}, SQUARES if optimizer is torch.optim.SGD else FAN_IN
    for size in (SQUARES, 64, FAN_IN, 4096, 100 * FAN_IN):
        torch.manual_seed(0)
        x = torch.rand(32, 1).expand(-1, size) + 0.1 * torch.rand(32, size)
        features = LinearFeatures((size,), (8,), example=x)
        unit = (x[:1] - features.center) * features.scale / fan_in_scale(size)
        full = 1e-3 * most * float(unit.square().mean() if optimizer is torch.optim.SGD else unit.abs().mean())
        moved[size] = step(features, x[:1], optimizer, 1e-3).item() / (full + 1e-3)  # 1e-3 for the bias
    assert all(0 < of_full < 1.05 for of_full in moved.values()), moved
    assert moved[100 * FAN_IN] < 1.5 * moved[4096]
    plain = [step(LinearFeatures((size,), (8,)), torch.ones(1, size), optimizer, 1e-3) for size in (256, 25600)]
    assert plain[1] > 50 * plain[0]  # the parametrisation of 0.1


@pytest.mark.parametrize("rows", [1, 2, 512])
def test_a_chance_w_is_not_scaled_without_bound(rows):
    """Fault: W' divided by what h happens to be of few rows, or of values that move together: by 150 and more."""
    most = 2 * 3**0.5 / fan_in_scale(40)
    scaled = []
    for seed in range(40):
        torch.manual_seed(seed)
        x = torch.rand(rows, 1) + 0.01 * torch.rand(rows, 40)
        features = LinearFeatures((40,), (1,), example=x)
        scaled.append(features.linear.weight.detach().abs().max().item() * 40**0.5)
    assert max(scaled) <= most * (1 + 1e-6)
    assert max(scaled) > 0.9 * most  # of some the bound is reached


@pytest.mark.parametrize("value", [0.0, 3.0, 1.4e11])
def test_data_that_do_not_vary_start_as_expected(value):
    """Fault: what rounding leaves of constant data taken for their spread."""
    x = torch.full((16, 40), value, dtype=torch.float64)
    torch.manual_seed(0)
    features = LinearFeatures((40,), (6,), example=x).double()
    assert features.linear.weight.detach().abs().max() * 40**0.5 == pytest.approx(3**0.5 / fan_in_scale(40), rel=0.05)
    assert torch.isfinite(features(x)).all()


@pytest.mark.parametrize("noise", [0.0, 0.3, 1.0])
def test_h_starts_where_the_noise_of_the_vae_was(noise):
    """Fault: h of another spread: all data then want another g_s at once, and a large step overshoots."""
    torch.manual_seed(0)
    x = 4 * torch.rand(64, 12) @ torch.rand(12, 40)
    aef = vae2aef.wrap(SmallVAE((40,), (6,)), example=x, encoder_scale="log_std", noise=noise)
    with torch.no_grad():
        h = aef.core(x)[0] - aef.core.features.linear.bias
    assert h.square().mean() == pytest.approx(1.0, rel=1e-4)


@given(st.integers(1, 600), seeds)
def test_any_map_can_be_set_and_read(size, seed):
    torch.manual_seed(seed)
    x = 5 + 3 * torch.randn(10, size, dtype=torch.float64)
    features = LinearFeatures((size,), (2, 2), example=x).double()
    weight, bias = torch.randn(4, size, dtype=torch.float64), torch.randn(4, dtype=torch.float64)
    features.set_map(weight, bias)
    torch.testing.assert_close(features(x), (x @ weight.T + bias).reshape(10, 2, 2))
    torch.testing.assert_close(features.map(), (weight, bias))


@pytest.mark.parametrize("x", [torch.full((5, 4), 3.0), torch.tensor([[1.0, 2.0, 3.0, 6.0]]), torch.zeros(2, 4)])
def test_rows_that_are_all_alike_tell_no_spread(x):
    features = LinearFeatures((4,), (2,), example=x)
    assert features.scale.isfinite() and features(x).isfinite().all() and features(x).abs().max() < 10
    assert torch.allclose(features.center, x.mean().expand(4))


def test_checkpoints_of_0_1_keep_their_map():
    torch.manual_seed(0)
    x = 7 + torch.rand(20, 600)
    aef, old = vae2aef.wrap(SmallVAE((600,), (2,)), example=x, encoder_scale="log_std"), nn.Linear(600, 2)
    state = aef.state_dict()
    (prefix,) = (key.removesuffix("center") for key in state if key.endswith("features.center"))
    del state[prefix + "center"], state[prefix + "scale"]
    state[prefix + "linear.weight"], state[prefix + "linear.bias"] = old.weight, old.bias
    assert not any(aef.load_state_dict(state))  # neither missing nor unexpected
    torch.testing.assert_close(aef.core.features(x), old(x))


def test_a_copy_by_state_dict_has_the_same_map():
    x, y = torch.rand(20, 600), 9 + torch.randn(20, 600)
    one, two = (vae2aef.wrap(SmallVAE((600,), (2,)), example=z, encoder_scale="log_std") for z in (x, y))
    two.load_state_dict(one.state_dict())
    torch.testing.assert_close(two.core.features(x), one.core.features(x))


def test_classes_are_read_one_hot_and_centred():
    x = torch.randint(0, 3, (50, 4))
    aef = vae2aef.wrap(
        None, example=x, encoder=lambda x: (x[:, :2] * 0.0, x[:, :2] * 0.0 + 1.0), decoder=Classes(),
        encoder_scale="std", likelihood="categorical", core_flow="none",
    )  # fmt: skip
    features = aef.core.features
    assert features.center.shape == (12,) and torch.allclose(features.center.reshape(4, 3).sum(1), torch.ones(4))
    assert features(x).shape == (50, 2)


class Classes(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(2, 12)

    def forward(self, z: Tensor) -> Tensor:
        return self.linear(z).reshape(-1, 4, 3)


@pytest.mark.parametrize("kind", ["coupling", "maf"])
def test_flows_of_0_1_keep_their_map(kind):
    flow = make_flow(kind, 40)
    state = {name: value for name, value in flow.state_dict().items() if not name.endswith("gain")}
    assert len(state) < len(flow.state_dict())
    assert not any(flow.load_state_dict(state))
    assert all(layer.gain == 1 for layer in flow.modules() if isinstance(layer, FanInLinear))
    y, log_det = flow(torch.randn(6, 40))
    assert y.isfinite().all() and log_det.isfinite().all()


def test_a_layer_starts_as_torchs_own_whatever_its_gain():
    torch.manual_seed(0)
    ours = FanInLinear(1000, 50)
    torch.manual_seed(0)
    plain, x = nn.Linear(1000, 50), torch.randn(20, 1000)
    assert ours.gain < 0.1
    torch.testing.assert_close(ours(x), plain(x))
    before = ours(x)
    ours.fold()
    assert ours.gain == 1
    torch.testing.assert_close(ours(x), before)


def test_a_flow_of_a_pyro_site_has_no_gain_which_its_store_would_lose():
    pyro = pytest.importorskip("pyro")
    import pyro.distributions as dist

    loc = nn.Linear(5, 3)

    def model(x):
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(torch.zeros(len(x), 3), 1.0).to_event(1))
            pyro.sample("x", dist.Normal(z.sum(1, keepdim=True).expand(-1, 5), 1.0).to_event(1), obs=x)

    def guide(x):
        pyro.module("loc", loc)
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Normal(loc(x), 1.0).to_event(1))

    pyro.clear_param_store()
    elbo = vae2aef.AEF_ELBO(noise=0, core_flow="coupling")
    elbo.differentiable_loss(model, guide, torch.randn(4, 5))
    layers = [m for m in elbo.maps["z"].flow.modules() if isinstance(m, FanInLinear)]
    assert layers and all(layer.gain == 1 for layer in layers)
    pyro.clear_param_store()


@pytest.mark.parametrize("kind", ["coupling", "maf"])
def test_a_step_moves_a_flow_no_further_the_more_latents_there_are(kind):
    moved = []
    for size in (32, 2048):
        torch.manual_seed(0)
        flow, w = build_flow(kind, size, layers=1), torch.ones(4, size)
        steps = torch.optim.Adam(flow.parameters(), lr=1e-3)
        before = flow(w)[0].detach()
        flow(w)[0].sum().backward()
        steps.step()
        moved.append((flow(w)[0] - before).abs().mean())
    assert 0 < moved[1] < 2 * moved[0]


# ---------------------------------------------------------------- features of held scale


@given(st.integers(2, 300), st.floats(0.01, 100.0), st.floats(1e-3, 1e3), seeds)
def test_normalized_features_have_unit_spread_whatever_their_weights(size, spread, stretch, seed):
    torch.manual_seed(seed)
    x = 3 + spread * torch.randn(40, size, dtype=torch.float64)
    features = NormalizedFeatures((size,), (5,), example=x).double()
    with torch.no_grad():
        features.linear.weight.mul_(stretch).add_(0.1 * stretch * torch.randn_like(features.linear.weight))
        torch.testing.assert_close(features(x).std(0, correction=0), torch.ones(5, dtype=torch.float64))
        weight, bias = features.map()
        torch.testing.assert_close(features(x), x @ weight.mT + bias)
        features.linear.weight.mul_(7.0)
        torch.testing.assert_close(features(x), x @ weight.mT + bias)


def test_normalized_features_cannot_shrink_under_the_loss():
    """What lowers the loss of a deterministic AEF for nothing: linear features follow it, normalized ones cannot."""
    spreads = {}
    for core in ("linear", "normalized"):
        torch.manual_seed(0)
        x = torch.randn(64, 6)
        aef = vae2aef.wrap(SmallVAE((6,), (2,)), example=x, encoder_scale="log_std", core=core, core_flow="none")
        aef.noise = 0.0
        optimizer = torch.optim.Adam(aef.parameters(), lr=1e-2)
        for _ in range(150):
            optimizer.zero_grad()
            aef(x).backward()
            optimizer.step()
        spreads[core] = float(aef.core.features(x).std(0, correction=0).mean().detach())
    assert spreads["normalized"] == pytest.approx(1.0, abs=1e-4)
    assert spreads["linear"] < 0.5


def test_normalized_features_need_data_that_vary_and_refuse_maps_of_another_scale():
    for example in (None, torch.ones(1, 3), torch.ones(5, 3)):
        with pytest.raises(ValueError, match="need an example"):
            NormalizedFeatures((3,), (2,), example=example)
    torch.manual_seed(0)
    x = torch.randn(20, 3)
    features = NormalizedFeatures((3,), (2,), example=x)
    weight, bias = features.map()
    features.set_map(weight, bias + 1)
    torch.testing.assert_close(features.map()[1], bias + 1)
    with pytest.raises(ValueError, match="scale of normalized features is held"):
        features.set_map(3 * weight, bias)


def test_normalized_features_are_saved_with_their_rows(tmp_path):
    x = torch.randn(20, 3)
    first, second = (NormalizedFeatures((3,), (2,), example=2 * torch.randn(20, 3)) for _ in range(2))
    torch.save(first.state_dict(), tmp_path / "features.pt")
    second.load_state_dict(torch.load(tmp_path / "features.pt", weights_only=True))
    torch.testing.assert_close(second(x), first(x))
    few = NormalizedFeatures((3,), (2,), example=torch.randn(5, 3))  # wrapped with a smaller example
    few.load_state_dict(first.state_dict())
    torch.testing.assert_close(few(x), first(x))
    with pytest.raises(RuntimeError, match="size mismatch for rows"):
        NormalizedFeatures((4,), (2,), example=torch.randn(5, 4)).load_state_dict(first.state_dict())
