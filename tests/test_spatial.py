"""Latents that are grids: local features and flows, exact determinants, and data on other grids."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from strategies import seeds
from test_jacobian import slogdet
from torch import nn
from zoo_core import SmallVAE, shake
from zoo_grid import CausalVAE, FixedGridVAE, GridVAE, TracedGridVAE, TwoGrids, TwoGridsParts

import vae2aef
from vae2aef.fan_in import FAN_IN, fan_in_scale
from vae2aef.features import LinearFeatures
from vae2aef.grid_flows import ChannelCoupling, CheckerboardCoupling, FanInConv, Invertible1x1Conv, grid_coupling
from vae2aef.grids import Grid, find_grid
from vae2aef.patches import PatchFeatures
from vae2aef.testing import check_gradients, check_invertible, check_jacobian
from vae2aef.wrapping import cores, room

pytestmark = pytest.mark.usefixtures("float64")

GRIDS = {1: [(1,), (2,), (3,), (5,)], 2: [(1, 1), (2, 2), (1, 3), (3, 2)], 3: [(1, 1, 2), (2, 1, 2), (2, 2, 3)]}
EVENTS = {(2,): (6,), (2, 2): (4, 6), (4, 1): (8, 3), (2, 2, 1): (4, 2, 2)}


def wrap(vae, x, **options) -> vae2aef.AEF:
    return vae2aef.wrap(
        vae, example=x, **{"encoder_scale": "log_std", "noise": 0.0, "core_flow": "coupling", **options}
    )


# ------------------------------------------------------------------ which latent is a grid


@pytest.mark.parametrize(
    ("event", "latent", "grid"),
    [
        ((3, 64, 64), (4, 8, 8), Grid((8, 8), (0, 0))),
        ((3, 64, 32), (4, 8, 16), Grid((8, 2), (0, 0))),
        ((1, 16000), (8, 250), Grid((64,), (0,))),
        ((3, 8, 16, 16), (4, 4, 4, 4), Grid((2, 4, 4), (0, 0, 0))),
        ((3, 17, 32, 32), (4, 5, 4, 4), Grid((4, 8, 8), (3, 0, 0))),  # 1 + 16 frames to 1 + 4
        ((3, 5, 32, 32), (4, 2, 4, 4), Grid((4, 8, 8), (3, 0, 0))),
        ((1, 28, 28), (8, 3, 3), None),
        ((1, 28, 28), (8, 1, 1), None),  # one position: the dense map
        ((1, 28, 28), (8,), None),
        ((784,), (8,), None),
        ((1, 28, 28), (8, 4), None),
        ((2, 2, 2, 2, 2), (2, 1, 1, 1, 1), None),
    ],
)
def test_which_latent_is_a_grid(event, latent, grid):
    assert find_grid(event, latent) == grid
    if grid is not None:
        assert grid.latent(event[1:]) == latent[1:] and grid.data(latent[1:]) == event[1:]


def test_a_row_of_features_is_no_sequence():
    """(4, 6) to (2, 3) may be either; whether it is one is seen by encoding a longer one."""
    x = torch.randn(5, 4, 6)
    row = wrap(SmallVAE((4, 6), (2, 3)), x)
    assert isinstance(row.core.features, LinearFeatures) and not row.grids
    sequence = wrap(GridVAE((2,), channels=4), x)
    assert isinstance(sequence.core.features, PatchFeatures) and sequence.grids == {"z": Grid((2,), (0,))}


# ------------------------------------------------------------------ features


@pytest.mark.parametrize("factor", EVENTS)
def test_features_are_the_linear_map_of_a_patch(factor):
    x = 3 + 2 * torch.randn(20, 2, *EVENTS[factor])
    grid = Grid(factor, (0,) * len(factor))
    features = PatchFeatures(x.shape[1:], 3, grid, example=x).double()
    h = features(x)
    assert h.shape == (20, 3, *grid.latent(x.shape[2:]))
    unit = (x - features.center) * features.scale
    for at in torch.cartesian_prod(*(torch.arange(n) for n in h.shape[2:])).reshape(-1, len(factor)).tolist():
        patch = unit[(slice(None), slice(None), *(slice(i * f, (i + 1) * f) for i, f in zip(at, factor, strict=True)))]
        expected = patch.flatten(1) @ features.weight.flatten(1).T + features.bias
        torch.testing.assert_close(h[(slice(None), slice(None), *at)], expected)


@settings(max_examples=15)
@given(st.sampled_from([(2, 2), (4, 4), (16, 16)]), st.floats(0.01, 1000.0), st.floats(-30.0, 30.0), seeds)
def test_h_starts_centred_and_with_one_spread_whatever_the_data(factor, spread, middle, seed):
    torch.manual_seed(seed)
    x = spread * (middle + torch.randn(100, 3, 32, 32))
    features = PatchFeatures((3, 32, 32), 24, Grid(factor, (0, 0)), example=x).double()
    with torch.no_grad():
        features.bias.zero_()
        h = features(x).transpose(0, 1).flatten(1)
    assert h.mean(1).abs().max() < 0.2
    assert 0.3 < h.std(1).square().mean().sqrt() / 3**-0.5 < 2.0


def test_a_step_does_not_grow_with_the_patch():
    """A step moves h by no more than that of FAN_IN values that count in full."""
    moved = {}
    for n in (16, 64, 160):
        torch.manual_seed(0)
        x = torch.rand(32, 1, 1, 1).expand(-1, 1, n, n) + 0.1 * torch.rand(32, 1, n, n)
        features = PatchFeatures((1, n, n), 8, Grid((n, n), (0, 0)), example=x).double()
        steps = torch.optim.Adam(features.parameters(), lr=1e-3)
        before = features(x[:1]).detach()
        features(x[:1]).sum().backward()
        steps.step()
        unit = (x[:1] - features.center) * features.scale / fan_in_scale(n * n)
        most = 1e-3 * (FAN_IN * unit.abs().mean() + 1)  # 1 for the bias
        moved[n] = float((features(x[:1]) - before).detach().abs().mean() / most)
    assert all(0 < of_most < 1.05 for of_most in moved.values()), moved
    assert moved[160] < 1.5 * moved[64]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_local_features_start_with_unit_spread(dtype):
    """Fault: data of float64 convolved with weights that are float32 until the features are moved."""
    x = (3 + 2 * torch.rand(32, 1, 8, 8).repeat(1, 2, 1, 1)).to(dtype)
    features = PatchFeatures((2, 8, 8), 5, Grid((4, 4), (0, 0)), example=x).to(dtype)
    h = features(x) - features.bias.reshape(-1, 1, 1)
    assert h.detach().square().mean() == pytest.approx(1.0, rel=1e-4)


def test_a_causal_grid_repeats_the_first_frame():
    grid = Grid((4, 1, 1), (3, 0, 0))
    features = PatchFeatures((1, 5, 1, 1), 2, grid).double()
    x = torch.randn(3, 1, 5, 1, 1)
    padded = torch.cat([x[:, :, :1].expand(-1, -1, 3, -1, -1), x], 2)
    plain = PatchFeatures((1, 8, 1, 1), 2, Grid((4, 1, 1), (0, 0, 0))).double()
    plain.load_state_dict(features.state_dict())
    torch.testing.assert_close(features(x), plain(padded))


def test_classes_are_channels():
    x = torch.randint(0, 3, (6, 1, 4, 4))

    class Classes(nn.Module):
        def __init__(self):
            super().__init__()
            self.down, self.up = nn.Conv2d(1, 4, 2, 2), nn.ConvTranspose2d(2, 3, 2, 2)

        def encoder(self, x):
            return self.down(x.double()).chunk(2, 1)

        def decoder(self, z):
            return self.up(z)

    aef = wrap(Classes(), x, likelihood="categorical")
    assert aef.core.features.weight.shape == (2, 3, 2, 2) and aef.core.features.center.shape == (3, 1, 1)
    aef(x).backward()
    check_gradients(aef, x)
    assert aef(torch.randint(0, 3, (2, 1, 6, 8))).isfinite()


# ------------------------------------------------------------------ flows


def layers(channels: int, dims: int) -> dict[str, vae2aef.Bijection]:
    return {
        "channels": ChannelCoupling(channels, dims, 3), "even": CheckerboardCoupling(channels, dims, False, 3),
        "odd": CheckerboardCoupling(channels, dims, True, 3), "1x1": Invertible1x1Conv(channels),
        "whole": grid_coupling(channels, dims),
    }  # fmt: skip


KINDS = list(layers(1, 1))
cases = st.sampled_from([(dims, grid) for dims, grids in GRIDS.items() for grid in grids])


@given(st.sampled_from(KINDS), st.integers(1, 4), cases, st.integers(0, 3), seeds)
def test_flows_undo_themselves(kind, channels, case, batch, seed):
    torch.manual_seed(seed)
    flow = layers(channels, case[0])[kind]
    shake(flow)
    x = 2 * torch.randn(batch, channels, *case[1])
    y, log_det = flow(x)
    back, log_det_back = flow.inverse(y)
    torch.testing.assert_close(back, x)
    torch.testing.assert_close(log_det_back, -log_det)
    back, log_det_back = flow.inverse(x)
    torch.testing.assert_close(flow(back)[0], x)
    assert y.shape == x.shape and log_det.shape == log_det_back.shape == (batch,)


@settings(max_examples=60)
@given(st.sampled_from(KINDS), st.integers(1, 3), cases, st.integers(0, 2), seeds, st.booleans())
def test_log_determinants(kind, channels, case, batch, seed, inverse):
    torch.manual_seed(seed)
    flow = layers(channels, case[0])[kind]
    shake(flow)
    x = torch.randn(batch, channels, *case[1])
    log_det = (flow.inverse(x) if inverse else flow(x))[1]
    torch.testing.assert_close(log_det.detach(), slogdet(flow, x, inverse))


def test_flows_by_the_tests_that_users_have():
    flow = grid_coupling(3, 2)
    shake(flow)
    x = torch.randn(2, 3, 2, 4)
    check_invertible(flow, x)
    check_jacobian(flow, x)


def test_every_position_and_channel_is_mapped_by_what_is_around_it():
    """In the whole flow each output depends on its neighbours, in a 1x1 convolution on its own position alone."""
    x = torch.randn(1, 2, 4, 4)
    flow = grid_coupling(2, 2)
    shake(flow)
    jacobian = torch.func.jacrev(lambda v: flow(v)[0])(x)[0, :, :, :, 0]
    assert (jacobian[:, 1, 1][:, :, :3, :3] != 0).all()
    own = torch.func.jacrev(lambda v: Invertible1x1Conv(2)(v)[0])(x)[0, :, 1, 1, 0]
    assert (own[:, :, 1, 1] != 0).all() and own.abs().sum() == own[:, :, 1, 1].abs().sum()


def test_a_1x1_convolution_starts_as_a_rotation_and_has_bounded_scales():
    layer = Invertible1x1Conv(5)
    x = torch.randn(3, 5, 2, 2)
    y, log_det = layer(x)
    torch.testing.assert_close(y.square().sum(1), x.square().sum(1))
    torch.testing.assert_close(log_det, torch.zeros(3), atol=1e-8, rtol=0)
    shake(layer, 1e6)
    assert layer(x)[1].abs().max() <= 4 * 5 * 3


def test_layers_are_scaled_by_their_fan_in():
    gains = [m.gain.item() for m in grid_coupling(16, 2).modules() if isinstance(m, FanInConv)]
    assert min(gains) == pytest.approx(32 / (9 * 48)) and max(gains) == pytest.approx(32 / 48)


# ------------------------------------------------------------------ whole AEFs


@pytest.mark.parametrize("noise", [0.0, 0.3])
@pytest.mark.parametrize("prior", [None, "coupling"])
@pytest.mark.parametrize("factor", EVENTS)
def test_whole_map(factor, prior, noise):
    x = torch.rand(2, 1, *EVENTS[factor])
    aef = wrap(GridVAE(factor), x, prior=prior, noise=noise, preprocess="logit").eval()
    shake(aef)
    assert isinstance(aef.core.features, PatchFeatures) and aef.grids
    check_jacobian(aef, x)
    check_invertible(aef, x)
    check_gradients(aef, x)


@pytest.mark.parametrize("core", ["linear", "noise", "corner", nn.AvgPool2d(2)])
def test_whole_map_with_other_cores(core):
    x = torch.randn(3, 2, 4, 6)
    aef = wrap(GridVAE((2, 2), 2), x, core=core).eval()
    shake(aef)
    check_jacobian(aef, x)
    assert bool(aef.grids) == (core not in ("linear", "corner"))
    assert aef(x).isfinite()


def test_a_causal_video_autoencoder():
    x = torch.randn(2, 1, 5, 2, 4)
    aef = wrap(CausalVAE(), x).eval()
    shake(aef)
    check_jacobian(aef, x)
    assert aef(torch.randn(2, 1, 7, 4, 4)).isfinite()
    assert aef.sample(2, event_shape=(1, 3, 6, 2)).shape == (2, 1, 3, 6, 2)
    with pytest.raises(ValueError, match=r"another grid of patches 2 x 2 x 2, got \(2, 1, 6, 4, 4\)"):
        aef(torch.randn(2, 1, 6, 4, 4))


def two_grids(x: torch.Tensor) -> vae2aef.AEF:
    vae = TwoGrids()
    vae2aef.register_adapter(f"{TwoGrids.__module__}.{TwoGrids.__qualname__}")(lambda vae, x: TwoGridsParts(vae, x))
    return vae2aef.wrap(vae, example=x)


def test_several_latents_on_grids():
    x = torch.randn(3, 1, 8, 4)
    aef = two_grids(x).eval()
    shake(aef)
    assert {name: str(site.core.features.grid) for name, site in aef.by_latent().items()} == {
        "z2": "4 x 4",
        "z1": "2 x 2",
    }
    check_jacobian(aef, x)
    other = torch.randn(2, 1, 12, 8)
    assert aef.reconstruct(other).shape == other.shape
    with pytest.raises(ValueError, match="patches 4 x 4, 2 x 2"):
        aef(torch.randn(2, 1, 6, 4))


# ------------------------------------------------------------------ other grids


@pytest.mark.parametrize("make", [GridVAE, TracedGridVAE])
@pytest.mark.parametrize(
    "options", [{}, {"core_flow": "coupling", "prior": "coupling", "noise": 0.5}, {"core": "noise"}]
)
def test_data_on_other_grids(make, options):
    x = torch.rand(8, 1, 4, 4)
    vae = make((2, 2))
    options = options if make is TracedGridVAE else {**options, "encoder_scale": "log_std"}
    aef = vae2aef.wrap(vae, example=x, **options).eval()
    shake(aef)
    other = torch.rand(3, 1, 10, 6)
    terms = aef(other, terms=True)
    assert terms.z.shape == (3, 2, 5, 3) and terms.reconstruction.shape == other.shape
    torch.testing.assert_close(aef.decode(aef.encode(other)), aef.reconstruct(other))
    check_jacobian(aef, other)
    assert aef.sample(2).shape == (2, 1, 4, 4) and aef.sample(2, event_shape=(1, 6, 8)).shape == (2, 1, 6, 8)
    with pytest.raises(
        ValueError, match=r"shape \(batch, 1, 4, 4\), or on another grid of patches 2 x 2, got \(3, 1, 5"
    ):
        aef(torch.rand(3, 1, 5, 4))
    with pytest.raises(ValueError, match="got"):
        aef(torch.rand(3, 2, 4, 4))


@pytest.mark.parametrize("noise", [0.0, 0.7])
def test_two_grids_beside_each_other_cost_the_sum(noise):
    """Where no part looks across patches, and neither flow nor prior: every term, the entropy among them, adds up."""
    x = torch.rand(5, 1, 4, 4)
    aef = wrap(GridVAE((2, 2), mixing=False), x, core_flow="none", noise=noise).eval()
    shake(aef)
    both = aef(torch.cat([x, x.flip(0)], 3), terms=True)
    one = aef(x, terms=True)
    torch.testing.assert_close(both.entropy, 2 * one.entropy)
    torch.testing.assert_close(both.log_det, one.log_det + one.log_det.flip(0))
    if not noise:
        torch.testing.assert_close(both.loss, 2 * one.loss)


def test_the_marginal_on_another_grid(quick_fits):
    x = torch.rand(2, 1, 4, 4)
    aef = wrap(GridVAE((2, 2), mixing=False), x, core_flow="none", likelihood=0.5).eval()
    whole = aef.log_prob(torch.cat([x, x], 3), num_samples=2000, seed=0)
    half = aef.log_prob(x, num_samples=2000, seed=0)
    assert ((whole.value - 2 * half.value).abs() < 6 * whole.std_error + 12 * half.std_error + 1e-3).all()


def test_what_fixes_the_grid_is_said():
    x = torch.rand(6, 1, 4, 4)
    fixed = wrap(FixedGridVAE(), x)
    assert isinstance(fixed.core.features, PatchFeatures) and not fixed.grids
    assert "no other grid is taken (RuntimeError" in repr(fixed)
    with pytest.raises(ValueError, match=r"shape \(batch, 1, 4, 4\), got"):
        fixed(torch.rand(2, 1, 8, 8))
    assert not wrap(GridVAE((2, 2)), x, likelihood="learned").grids
    assert not wrap(GridVAE((2, 2)), x, core_flow="maf").grids
    free = wrap(GridVAE((2, 2)), x)
    assert "patch of the data, 2 x 2; other grids of whole patches are taken" in repr(free)
    assert "core patch" in repr(free) and free.likelihood.kind == "channel"
    dense = wrap(GridVAE((2, 2)), x, core="linear")
    assert "core linear" in repr(dense) and dense.likelihood.kind == "learned" and "grid" not in repr(dense)


def test_latents_of_another_grid_are_never_broadcast():
    """An encoder that pools all of x to one position, for larger data, would otherwise train on."""

    class Pools(GridVAE):
        def encoder(self, x):
            loc, log_std = super().encoder(x)
            return (loc, log_std) if x.shape[-1] == 4 else (loc.mean((2, 3), True), log_std.mean((2, 3), True))

    aef = wrap(Pools((2, 2)), torch.rand(6, 1, 4, 4))
    assert not aef.grids and "returned" in repr(aef)


def test_a_prior_of_one_shape_draws_no_other():
    x = torch.rand(6, 1, 4, 4)
    normal = torch.distributions.Independent(torch.distributions.Normal(torch.zeros(2, 1, 1), 1.0), 3)
    aef = wrap(GridVAE((2, 2)), x, prior=torch.distributions.Normal(torch.zeros(2, 1, 1), torch.ones(2, 1, 1)))
    with pytest.raises(ValueError, match="draws latents of one shape"):
        aef.sample(2, event_shape=(1, 6, 8))
    assert normal.event_shape == (2, 1, 1)


@pytest.mark.parametrize("sigma", [1.0, 0.3])
@pytest.mark.parametrize("flow", ["none", "coupling"])
def test_it_begins_as_the_vae(flow, sigma):
    x, other = torch.rand(6, 1, 4, 4), torch.rand(2, 1, 8, 6)
    vae = GridVAE((2, 2))
    shake(vae)
    bare = wrap(vae, x, core="noise", core_flow="none", kl="sampled", likelihood=0.7)
    aef = wrap(vae, x, core_flow=flow, noise=sigma, kl="sampled", start="exact", likelihood=0.7)
    for data in (x, other):
        losses = []
        for model in (aef, bare):
            torch.manual_seed(3)
            losses.append(model(data))
        torch.testing.assert_close(*losses)
        torch.testing.assert_close(aef.reconstruct(data), bare.reconstruct(data))


def test_trained_on_small_grids_evaluated_on_large_ones():
    """It learns on 64 x 64, and what it has learned holds on 128 x 128 and 96 x 160."""
    torch.set_default_dtype(torch.float32)
    try:
        vae = GridVAE((8, 8), latent=4)
        pictures = smooth(64, 64, 64)
        aef = wrap(vae, pictures, noise=0.3)
        held = [smooth(16, *size) for size in ((64, 64), (128, 128), (96, 160))]
        before = [per_value(aef, x) for x in held]
        steps = torch.optim.Adam(aef.parameters(), lr=3e-3)
        for step in range(60):
            steps.zero_grad()
            aef(pictures[16 * (step % 4) : 16 * (step % 4 + 1)]).backward()
            steps.step()
        after = [per_value(aef, x) for x in held]
    finally:
        torch.set_default_dtype(torch.float64)
    assert all(now < then - 0.3 for now, then in zip(after, before, strict=True))
    assert max(after) - min(after) < 0.15


def smooth(n: int, height: int, width: int) -> torch.Tensor:
    noise = torch.randn(n, 1, height + 16, width + 16)
    return 8 * nn.functional.avg_pool2d(noise, 17, 1)


@torch.no_grad()
def per_value(aef: vae2aef.AEF, x: torch.Tensor) -> float:
    torch.manual_seed(0)
    return (aef(x) / x[0].numel()).item()


# ------------------------------------------------------------------ refusals, checkpoints


@pytest.mark.remedy("the dense map of {} values of x to {} latent")
def test_a_dense_map_that_would_not_fit_is_refused_before_it_is_made(monkeypatch):
    monkeypatch.setattr(room, "free_memory", lambda device: 2**20)
    monkeypatch.setattr(cores, "LinearFeatures", lambda *args: pytest.fail("it was made"))
    x = torch.rand(2, 3, 64, 64)
    match = (
        r"12,288 values of x to 4,096 latents has 50,331,648 parameters: with gradients and the two moments of Adam "
        r'1\.5 GiB, and 0\.0 GiB are free on cpu; pass core="patch"'
    )
    with pytest.raises(vae2aef.WrapError, match=match):
        wrap(GridVAE((4, 4), 3, latent=16), x, core="linear")
    for options in ({}, {"core": "patch"}):  # the remedy
        assert sum(p.numel() for p in wrap(GridVAE((4, 4), 3, latent=16), x, **options).core.parameters()) < 1000


def test_free_memory_is_that_of_the_machine_or_of_the_container(tmp_path):
    assert 2**20 < room.free_memory(torch.device("cpu")) < 2**50
    (tmp_path / "meminfo").write_text("MemTotal: 9 kB\nMemAvailable:  5 kB\n")
    assert room._available(tmp_path / "meminfo") == 5 * 1024 and room._available(tmp_path / "none") is None
    for name, text in (
        ("memory.max", "1000\n"),
        ("memory.current", "700\n"),
        ("memory.stat", "anon 5\ninactive_file 50\n"),
    ):
        (tmp_path / name).write_text(text)
    assert room._left(tmp_path) == 350
    (tmp_path / "memory.max").write_text("max\n")
    assert room._left(tmp_path) is None


@pytest.mark.remedy('core="patch" needs a latent')
def test_patches_need_a_grid():
    vae, x = SmallVAE((2, 3), (2,)), torch.rand(4, 2, 3)
    with pytest.raises(
        vae2aef.WrapError, match=r'core="patch" needs.*shape \(2,\), the data \(2, 3\).*use core="linear"'
    ):
        wrap(vae, x, core="patch")
    assert wrap(vae, x, core="linear")(x).isfinite()  # the remedy


def test_dense_checkpoints_are_told_from_local_ones():
    x = torch.rand(6, 1, 4, 4)
    dense, local = (wrap(GridVAE((2, 2)), x, core=core, core_flow="none") for core in ("linear", "patch"))
    with pytest.raises(RuntimeError, match=r'dense features of release 0\.1.*wrap with core="linear"'):
        local.load_state_dict(dense.state_dict())
    other = wrap(GridVAE((2, 2)), x + 5, core="patch", core_flow="none")
    other.load_state_dict(local.state_dict())
    torch.testing.assert_close(other(x), local(x))
