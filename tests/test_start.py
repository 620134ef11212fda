"""Begin as the trained VAE, exactly; save what was added, and nothing else."""

import sys

import pytest
import torch
from safetensors.torch import load_file
from strategies import make_flow
from torch import nn
from zoo_core import SmallVAE, shake

import vae2aef

pytestmark = pytest.mark.usefixtures("float64")

EVENT, LATENT = (2, 3), (4,)


def trained() -> tuple[SmallVAE, torch.Tensor]:
    torch.manual_seed(0)
    vae, x = SmallVAE(EVENT, LATENT), torch.randn(64, *EVENT)
    shake(vae)
    return vae, x


def wrap(vae, x, **options) -> vae2aef.AEF:
    options = {"core_flow": "coupling", **options}
    return vae2aef.wrap(vae, example=x, encoder_scale="log_std", likelihood=0.7, **options)


def sampled(aef, x, seed=3) -> torch.Tensor:
    torch.manual_seed(seed)
    return aef(x)


@pytest.mark.parametrize("sigma", [1.0, 0.3, 2.5])
@pytest.mark.parametrize("flow", ["none", "coupling", "maf"])
def test_it_begins_as_the_vae(flow, sigma):
    vae, x = trained()
    bare = wrap(vae, x, core="noise", core_flow="none", kl="sampled")
    aef = wrap(vae, x, core_flow=flow, noise=sigma, kl="sampled", start="exact")
    torch.testing.assert_close(sampled(aef, x), sampled(bare, x), rtol=1e-10, atol=1e-10)
    torch.testing.assert_close(aef.reconstruct(x), bare.reconstruct(x))
    torch.manual_seed(4)
    samples = aef.sample(5)
    torch.manual_seed(4)
    torch.testing.assert_close(samples, bare.sample(5))
    assert any(p.requires_grad for p in aef.core.parameters())  # and h is learned from there


def test_the_analytic_kl_is_that_of_the_vae():
    vae, x = trained()
    bare, aef = wrap(vae, x, core="noise", core_flow="none"), wrap(vae, x, core_flow="none", noise=1.0, start="exact")
    assert sampled(aef, x) == sampled(bare, x)


@pytest.mark.slow
def test_training_on_does_not_fall_below_the_start():
    """A converged VAE goes on as an AEF: its bound, averaged over many draws, never rises by more than its noise."""
    vae, x = trained()
    bare = wrap(vae, x, core="noise", core_flow="none")
    steps = torch.optim.Adam(bare.parameters(), lr=3e-3)
    for _ in range(300):
        steps.zero_grad()
        bare(x).backward()
        steps.step()
    aef = wrap(vae, x, core_flow="coupling", noise=1.0, start="exact", kl="sampled")

    def bound() -> torch.Tensor:
        torch.manual_seed(9)
        with torch.no_grad():
            return torch.stack([aef(x) for _ in range(40)])

    start = bound()
    steps = torch.optim.Adam(aef.parameters(), lr=1e-3)
    for step in range(100):
        steps.zero_grad()
        sampled(aef, x, step).backward()
        steps.step()
        if step % 20 == 19:
            assert bound().mean() < start.mean() + 0.05
    assert bound().mean() < start.mean() - 0.05


REFUSED = {
    "no noise": (lambda: {"noise": 0}, {"noise": 1}),
    "a partition": (lambda: {"core": "center", "core_flow": "none"}, {"core": "linear"}),
    "own features": (lambda: {"core": nn.Sequential(nn.Flatten(), nn.Linear(6, 4)), "noise": 1}, {"core": "linear"}),
    "own flow": (lambda: {"core_flow": vae2aef.Inverse(make_flow("maf", 4)), "noise": 1}, {"core_flow": "coupling"}),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_cannot_begin_as_the_vae_is_refused_with_a_remedy(case):
    vae, x = trained()
    options, remedy = REFUSED[case][0](), REFUSED[case][1]
    with pytest.raises(vae2aef.WrapError) as error:
        wrap(vae, x, start="exact", **options)
    assert any(name + "=" in error.value.fix for name in remedy)
    wrap(vae, x, start="exact", **{**options, **remedy})


def test_an_unknown_start_is_refused():
    vae, x = trained()
    with pytest.raises(ValueError, match="'random' or 'exact'"):
        wrap(vae, x, start="excat")


# ---------------------------------------------------------------------- what was added


def test_what_was_added_is_saved_alone(tmp_path):
    vae, x = trained()
    torch.manual_seed(1)
    one = wrap(vae, x, noise=0.2, prior="coupling")
    one.save_added(tmp_path / "added.safetensors")
    size = (tmp_path / "added.safetensors").stat().st_size
    assert size < 8 * 1.1 * sum(p.numel() for p in one.added_parameters()) + 10_000
    torch.manual_seed(2)
    two = wrap(vae, x, prior="coupling", added=tmp_path / "added.safetensors")
    assert two.noise == 0.2
    torch.testing.assert_close(two.encode(x), one.encode(x))
    assert sampled(two, x) == sampled(one, x)
    assert [p.name for p in tmp_path.iterdir()] == ["added.safetensors"]


def test_features_of_held_scale_keep_their_rows_whatever_the_example(tmp_path):
    vae, x = trained()
    one = wrap(vae, x, core="normalized")
    one.save_added(tmp_path / "added")
    two = wrap(vae, x[:7] + 1, core="normalized", added=tmp_path / "added")
    torch.testing.assert_close(two.encode(x), one.encode(x))


def test_a_prior_that_is_the_vaes_own_is_not_saved_again(tmp_path):
    vae, x = trained()
    vae.own = vae2aef.FlowPrior(make_flow("coupling", 4), LATENT)
    aef = wrap(vae, x, prior=vae.own, core_flow="none")
    aef.save_added(tmp_path / "added")
    names = set(load_file(tmp_path / "added"))
    assert names and not any(name.startswith(("vae.", "prior.")) for name in names)
    aef.load_added(tmp_path / "added")


def test_a_file_that_does_not_fit_changes_nothing(tmp_path):
    vae, x = trained()
    wrap(vae, x).save_added(tmp_path / "a")
    other = wrap(vae, x, core_flow="none")
    before = {name: value.clone() for name, value in other.state_dict().items()}
    with pytest.raises(ValueError, match=r"only in the file.*wrap|wrap.*only in the file"):
        other.load_added(tmp_path / "a")
    other_shape = vae2aef.wrap(
        SmallVAE((5,), LATENT), example=torch.randn(8, 5), encoder_scale="log_std", likelihood=0.7
    )
    with pytest.raises(ValueError, match=r"\(4, 6\) in the file, \(4, 5\) here"):
        other_shape.load_added(tmp_path / "a")
    assert all(torch.equal(value, before[name]) for name, value in other.state_dict().items())


def test_a_file_that_cannot_be_read_is_named(tmp_path):
    vae, x = trained()
    (tmp_path / "a").write_bytes(b"no tensors")
    with pytest.raises(ValueError, match=r"a: expected a file of aef.save_added"):
        wrap(vae, x, added=tmp_path / "a")
    with pytest.raises(FileNotFoundError, match="missing"):
        wrap(vae, x, added=tmp_path / "missing")


def test_without_safetensors_the_extra_is_named(tmp_path, monkeypatch):
    vae, x = trained()
    monkeypatch.setitem(sys.modules, "safetensors", None)
    monkeypatch.setitem(sys.modules, "safetensors.torch", None)
    with pytest.raises(ImportError, match=r"vae2aef\[safetensors\]"):
        wrap(vae, x).save_added(tmp_path / "a")


# ---------------------------------------------------------------- and back: a VAE of the user's own class


class Own(SmallVAE):
    """A VAE with a forward, and a method that knows nothing of AEFs."""

    def forward(self, x):
        loc, log_std = self.encoder(x)
        return self.decoder(loc + log_std.exp() * torch.randn_like(loc)), loc, log_std

    def generate(self, z):
        return self.decoder(z)


class OnlyInTraining(Own):
    def forward(self, x):
        return super().forward(x) if self.training else (self.decoder(self.encoder(x)[0]), *self.encoder(x))


def own(kind=Own):
    torch.manual_seed(0)
    vae, x = kind(EVENT, LATENT), torch.randn(64, *EVENT)
    shake(vae)
    return vae, x


@pytest.mark.parametrize("flow", ["none", "coupling"])
@pytest.mark.parametrize("given", [True, False])
def test_as_vae_is_the_aef_in_the_users_class(flow, given):
    vae, x = own()
    parts = {"encoder": vae.encoder, "decoder": vae.decoder, "encoder_scale": "log_std"} if given else {}
    aef = vae2aef.wrap(vae, example=x, noise=0.0, core_flow=flow, **parts)
    shake(aef)
    back = vae2aef.as_vae(aef)
    assert isinstance(back, Own) and type(back).__name__ == "Own" and type(vae) is Own
    with torch.no_grad():
        out, loc, _ = back(x)
        torch.testing.assert_close(out, aef.reconstruct(x))
        torch.testing.assert_close(loc, vae.encoder(x)[0])
        torch.testing.assert_close(back.generate(loc), aef.decode(loc))
        shake(back)
        assert (back(x)[0] - aef.reconstruct(x)).abs().max() > 1e-3  # nothing is shared
        assert torch.equal(vae(x)[1], loc)


def test_as_vae_draws_with_the_aefs_noise():
    vae, x = own()
    aef = vae2aef.wrap(vae, example=x, noise=0.7, core_flow="none")
    back = vae2aef.as_vae(aef)
    with torch.no_grad():
        torch.manual_seed(5)
        epsilon = torch.randn(64, *LATENT)
        torch.manual_seed(5)
        out = back(x)[0]
        loc, log_std = vae.encoder(x)
        u = aef.core.features(x) + 0.7 * epsilon
        torch.testing.assert_close(out, vae.decoder(loc + log_std.exp() * u))


def test_there_and_back_and_there_again():
    """A trained VAE, wrapped to begin exactly as it, given back: its forward is the VAE's own, draw by draw."""
    vae, x = own()
    back = vae2aef.as_vae(vae2aef.wrap(vae, example=x, noise=1.0, core_flow="none", start="exact"))
    torch.manual_seed(4)
    expected = vae(x)
    torch.manual_seed(4)
    torch.testing.assert_close(back(x), expected)


def test_as_vae_trains_and_saves_like_any_vae(tmp_path):
    vae, x = own()
    back = vae2aef.as_vae(vae2aef.wrap(vae, example=x, noise=0.0, core_flow="coupling"))
    loss = (back(x)[0] - x).square().mean()
    loss.backward()
    assert all(p.grad is not None for p in back.aef_site.core.parameters())
    torch.save(back.state_dict(), tmp_path / "vae.pt")
    other = vae2aef.as_vae(vae2aef.wrap(own()[0], example=x + 1, noise=0.0, core_flow="coupling"))
    other.load_state_dict(torch.load(tmp_path / "vae.pt", weights_only=True))
    torch.testing.assert_close(other(x)[0], back(x)[0])


@pytest.mark.remedy("{} has {}: its AEF is no VAE of that class")
def test_as_vae_refuses_what_it_cannot_be():
    vae, x = own()
    aef = vae2aef.wrap(vae, example=x, core="center", likelihood=0.7)
    with pytest.raises(vae2aef.WrapError, match=r"has a core that is part of the data.*use the AEF itself"):
        vae2aef.as_vae(aef)
    assert aef.reconstruct(x).shape == x.shape  # the remedy
    bare, x = trained()
    with pytest.raises(vae2aef.WrapError, match="has no forward"):
        vae2aef.as_vae(wrap(bare, x, noise=0.0))
    quiet, x = own(OnlyInTraining)
    parts = {"encoder": quiet.encoder, "decoder": quiet.decoder, "encoder_scale": "log_std"}
    back = vae2aef.as_vae(vae2aef.wrap(quiet, example=x, noise=0.0, **parts))
    assert back.train()(x)[0].isfinite().all()
    with pytest.raises(RuntimeError, match="drew 0 times here"):
        back.eval()(x)


def test_features_of_held_scale_cannot_begin_exactly():
    vae, x = trained()
    with pytest.raises(vae2aef.WrapError, match='NormalizedFeatures cannot; pass core="linear"'):
        wrap(vae, x, core="normalized", noise=1.0, start="exact")
