"""The user's module is never touched; saving, copying and pickling work (DESIGN 6.7)."""

import copy
import io
import pickle
from typing import Any

import pytest
import torch
from strategies import OwnFeatures
from torch import Tensor, nn
from zoo_core import ExampleVAE, SmallVAE, shake

import vae2aef

HOOKS = [name for name in vars(nn.Module()) if "hook" in name]


class Fussy(SmallVAE):
    """With all that a careless wrapper disturbs: dropout, BatchNorm, a frozen layer, hooks, mixed training flags."""

    def __init__(self) -> None:
        super().__init__((2, 3), (3,))
        self.norm = nn.BatchNorm1d(6)
        self.drop = nn.Dropout(0.5)
        self.outer.weight.requires_grad_(False)
        self.norm.eval()
        self.calls = 0
        self.heads.register_forward_hook(lambda *_: None)
        self.mean.bias.grad = torch.ones(6)

    def encoder(self, x: Tensor) -> tuple[Tensor, Tensor]:
        flat = self.drop(self.norm(x.reshape(-1, 6)))
        return super().encoder(flat)


def snapshot(module: nn.Module) -> dict[str, Any]:
    """All there is to see of a module, tensors copied."""
    seen: dict[str, Any] = {"random": torch.get_rng_state(), "state": copy.deepcopy(module.state_dict())}
    for name, m in module.named_modules():
        seen[name] = (id(m), type(m), m.training, list(m.__dict__), {h: list(getattr(m, h) or ()) for h in HOOKS})
        seen[f"{name}.plain"] = {k: v for k, v in vars(m).items() if isinstance(v, (int, str, tuple))}
    for name, p in module.named_parameters():
        seen[f"{name}.p"] = (id(p), p.data_ptr(), p.requires_grad, p.dtype, p._version)
        seen[f"{name}.grad"] = None if p.grad is None else p.grad.clone()
    return seen


def unchanged(module: nn.Module, before: dict[str, Any], *, random: bool = True) -> None:
    """Collect what differs by name. `random=False` where weights or samples are drawn on purpose."""
    after = snapshot(module)
    assert before.keys() == after.keys()
    assert before["state"].keys() == after["state"].keys()
    flat = [
        {
            **seen,
            **{f"state.{k}": v for k, v in seen["state"].items()},
            "state": None,
            "random": seen["random"] * random,
        }
        for seen in (before, after)
    ]
    assert [key for key, value in flat[0].items() if not _same(value, flat[1][key])] == []


def _same(one: Any, other: Any) -> bool:
    both = isinstance(one, Tensor) and isinstance(other, Tensor)
    return torch.equal(one, other) if both else one is other or (not isinstance(one, Tensor) and one == other)


@pytest.fixture
def x() -> Tensor:
    return 0.02 + 0.96 * torch.rand(8, 2, 3)


def make(x: Tensor, vae: nn.Module | None = None, **options) -> vae2aef.AEF:
    options = {"core_flow": "coupling", **options}
    return vae2aef.wrap(vae or SmallVAE((2, 3), (3,)), example=x, encoder_scale="log_std", **options)


@pytest.mark.parametrize("core", ["linear", "noise", "center", "corner", "random"])
@pytest.mark.parametrize("preprocess", [None, "logit", ["dequantize", "logit"]])
def test_wrapping_changes_nothing(x, core, preprocess):
    vae = Fussy()
    before = snapshot(vae)
    aef = make(x, vae, core=core, core_flow="maf", prior="coupling", preprocess=preprocess)
    unchanged(vae, before, random=False)
    assert aef.vae is vae
    assert vae.training and not vae.norm.training
    repr(aef)
    unchanged(vae, before, random=False)


def test_wrapping_draws_nothing_but_weights(x):
    """What the seed gives does not depend on the example or on the VAE's dropout."""
    vae = Fussy()
    before = snapshot(vae)
    make(x, vae, core="noise", core_flow="none", preprocess=["dequantize", "logit"])
    unchanged(vae, before)
    states = []
    for rows in (2, 8):
        torch.manual_seed(3)
        make(x[:rows], vae)
        states.append(torch.get_rng_state())
    assert torch.equal(*states)


def test_measuring_reparameterize_leaves_the_random_state():
    vae = ExampleVAE()
    before = snapshot(vae)
    vae2aef.wrap(vae, example=torch.zeros(4, 12), core="noise", core_flow="none")
    unchanged(vae, before)


@pytest.mark.parametrize("core", ["linear", "noise", "center"])
def test_using_it_changes_nothing(x, core):
    """The marginal, its tuning, encoding, samples: eval mode inside, all as it was outside."""
    vae = Fussy()
    aef = make(x, vae, core=core)
    before = snapshot(vae)
    aef.tune_proposal(x)
    unchanged(vae, before)
    aef.log_prob(x, num_samples=5, proposal="tuned")
    unchanged(vae, before, random=False)
    vae.eval()
    before = snapshot(vae)
    aef.sample(4, temperature=0.5, residual=True)
    aef.reconstruct(x)
    aef(x)
    aef(x, terms=True)
    aef.expanded_log_prob(x)
    unchanged(vae, before, random=False)


def test_a_failing_log_prob_restores_the_mode(x):
    vae = Fussy()
    aef = make(x, vae)
    before = snapshot(vae)
    with pytest.raises(vae2aef.NonFiniteError):
        aef.log_prob(torch.full_like(x, torch.nan), num_samples=2)
    unchanged(vae, before)


def test_log_prob_is_in_eval_mode_without_gradients(x):
    aef = make(x, Fussy())
    aef.train()
    torch.manual_seed(0)
    first = aef.log_prob(x, num_samples=3, proposal="tuned")
    aef.eval()
    torch.manual_seed(0)
    assert torch.equal(aef.log_prob(x, num_samples=3, proposal="tuned").value, first.value)
    assert not first.value.requires_grad


# ---------------------------------------------------------------------- state_dict, pickle, deepcopy


def full(x: Tensor, seed: int, noise: float = 0.0) -> vae2aef.AEF:
    torch.manual_seed(seed)
    options = {"core_flow": "maf", "prior": "coupling", "preprocess": ["logit", "standardize"], "noise": noise}
    aef = make(x + 0.01 * seed, **options)
    shake(aef)
    return aef


def test_state_dict_round_trip(x):
    """Through a file, loaded as weights only: losses, samples and the noise come back."""
    first, second = full(x, 0, noise=0.25), full(x, 1)
    assert not torch.equal(first.expanded_log_prob(x), second.expanded_log_prob(x))
    file = io.BytesIO()
    torch.save(first.state_dict(), file)
    file.seek(0)
    result = second.load_state_dict(torch.load(file, weights_only=True))
    assert not result.missing_keys and not result.unexpected_keys
    assert torch.equal(first.expanded_log_prob(x), second.expanded_log_prob(x))
    assert second.noise == 0.25
    torch.manual_seed(5)
    expected = first(x), first.sample(3)
    torch.manual_seed(5)
    for got, value in zip((second(x), second.sample(3)), expected, strict=True):
        assert torch.equal(got, value)


def test_a_partition_mask_is_saved(x):
    first, second = make(x, core="random"), make(x, core="corner")
    second.load_state_dict(first.state_dict())
    assert torch.equal(first.core.mask, second.core.mask)
    torch.testing.assert_close(first(x), second(x))
    torch.testing.assert_close(second.decode(second.encode(x)), first.decode(first.encode(x)))


def test_the_vae_keeps_its_keys(x):
    """A checkpoint of the VAE loads into `aef.vae`, and its part of the AEF's into the VAE."""
    vae = SmallVAE((2, 3), (3,))
    aef = make(x, vae)
    keys = {key[len("vae.") :] for key in aef.state_dict() if key.startswith("vae.")}
    assert keys == set(vae.state_dict())
    assert [key for key in aef.state_dict() if "inner" in key] == ["vae.inner.weight", "vae.inner.bias"]
    fresh = SmallVAE((2, 3), (3,))
    fresh.load_state_dict({k[4:]: v for k, v in aef.state_dict().items() if k.startswith("vae.")})
    aef.vae.load_state_dict(SmallVAE((2, 3), (3,)).state_dict())


@pytest.mark.parametrize("way", ["deepcopy", "pickle", "torch.save"])
@pytest.mark.parametrize("core", ["linear", "own module", "center"])
def test_a_copy_is_equal_and_independent(x, way, core):
    core = OwnFeatures((2, 3), (3,)) if core == "own module" else core
    aef = make(x, core=core, core_flow="maf", prior="maf", preprocess="standardize", noise=0.0)
    if way == "deepcopy":
        twin = copy.deepcopy(aef)
    elif way == "pickle":
        twin = pickle.loads(pickle.dumps(aef))
    else:
        file = io.BytesIO()
        torch.save(aef, file)
        file.seek(0)
        twin = torch.load(file, weights_only=False)
    expected = aef(x)
    torch.testing.assert_close(twin(x), expected, rtol=0, atol=0)
    assert twin.vae is not aef.vae
    assert twin.parts.encoder.__self__ is twin.vae
    assert twin.parts.decoder.__self__ is twin.vae
    assert not {p.data_ptr() for p in twin.parameters()} & {p.data_ptr() for p in aef.parameters()}
    shake(twin)
    assert not torch.equal(twin(x), expected)
    assert torch.equal(aef(x), expected)
    assert repr(twin) == repr(aef)


def test_noise_can_be_scheduled_and_is_checked(x):
    aef = make(x, noise=0.5)
    assert aef.noise == 0.5
    aef.noise = 0
    assert torch.equal(aef(x), aef(x))
    for value in (-0.1, float("nan"), float("inf")):
        with pytest.raises(ValueError, match=r"expected noise 0 .* or at least"):
            aef.noise = value
    assert aef.noise == 0
    aef = make(x, core="center")
    assert aef.noise == 0
    with pytest.raises(ValueError, match="exact likelihood and takes no noise"):
        aef.noise = 0.1


def test_parts_outside_the_vae_are_saved_moved_and_copied(x):
    class Mean(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.linear = nn.Linear(3, 6)

        def forward(self, z: Tensor) -> Tensor:
            return self.linear(z)

    vae = SmallVAE((2, 3), (3,))
    aef = make(x, vae, encoder=vae.encoder, decoder=Mean())
    assert "outside.decoder.linear.weight" in aef.state_dict()
    twin = copy.deepcopy(aef)
    assert twin.parts.decoder is twin.outside["decoder"]
    assert twin.double()(x.double()).dtype == torch.float64


def test_a_vae_of_functions_alone(x):
    """No module at all: everything trainable is what was added."""
    aef = vae2aef.wrap(
        None,
        example=x,
        encoder=lambda x: (x.reshape(-1, 6)[:, :2], torch.ones(x.shape[0], 2)),
        decoder=lambda z: torch.cat([z, z, z], 1),
        encoder_scale="std",
    )
    aef(x).backward()
    assert aef.vae is None
    assert {id(p) for p in aef.added_parameters()} == {id(p) for p in aef.parameters()}
    assert aef.sample(2).shape == (2, 2, 3)
