"""A step with an optimizer that leaves out the added parameters warns, and nothing else does."""

import copy
import gc
import warnings
import weakref
from collections.abc import Callable, Iterator

import pytest
import torch
from marks import needs_dynamo
from torch import Tensor, nn
from torch.optim.optimizer import register_optimizer_step_post_hook

import vae2aef
from vae2aef.wrapping.optimizer_warning import OptimizerWarning, _hook, _watches

OPTIMIZERS: dict[str, Callable[..., torch.optim.Optimizer]] = {
    "SGD": lambda p: torch.optim.SGD(p, lr=1e-3),
    "Adam": lambda p: torch.optim.Adam(p, lr=1e-3),
    "foreach": lambda p: torch.optim.Adam(p, lr=1e-3, foreach=True),
    "fused": lambda p: torch.optim.AdamW(p, lr=1e-3, fused=True),
}
X = torch.rand(8, 6)


class VAE(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.encoder, self.decoder = nn.Linear(6, 4), nn.Linear(2, 6)

    def encode(self, x: Tensor) -> tuple[Tensor, Tensor]:
        loc, raw = self.encoder(x).chunk(2, dim=1)
        return loc, raw

    def decode(self, z: Tensor) -> Tensor:
        return self.decoder(z)


def wrapped(vae: nn.Module | None = None, **options: object) -> vae2aef.AEF:
    return vae2aef.wrap(vae or VAE(), example=X, encoder_scale="log_var", **options)


def train(aef: nn.Module, *optimizers: torch.optim.Optimizer, steps: int = 4) -> None:
    for _ in range(steps):
        for optimizer in optimizers:
            optimizer.zero_grad()
        aef(X).backward()
        for optimizer in optimizers:
            optimizer.step()


@pytest.fixture(autouse=True)
def every_watch_ends_with_its_aef() -> Iterator[None]:
    before = list(_watches)  # other test files may keep theirs alive
    yield
    gc.collect()
    assert [one for one in _watches if one not in before and one.aef() is not None] == []
    assert len(_hook) <= 1


def test_a_model_collected_during_a_step_does_not_break_it() -> None:
    """Garbage collection can come while torch goes through its hooks; taking one away then raised in `step`."""
    parameter = nn.Parameter(torch.ones(1))
    optimizer = torch.optim.SGD([parameter], lr=0.1)
    handle = register_optimizer_step_post_hook(lambda *_: gc.collect() and None)
    gc.disable()
    try:
        aef = wrapped()
        aef.cycle = [aef]
        gone = weakref.ref(aef)
        del aef
        parameter.sum().backward()
        optimizer.step()
        assert gone() is None
    finally:
        gc.enable()
        handle.remove()


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_optimizer_made_before_wrapping(name: str) -> None:
    vae = VAE()
    optimizer = OPTIMIZERS[name](vae.parameters())
    aef = wrapped(vae)
    train(aef, optimizer, steps=1)
    expected = r"not \d+ parameters that the AEF has added \(core, likelihood\).*add_param_group"
    with pytest.warns(OptimizerWarning, match=expected):
        train(aef, optimizer, steps=1)
    train(aef, optimizer)  # once is enough: a second warning would be an error here


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_the_remedy_of_the_message_works(name: str) -> None:
    vae = VAE()
    optimizer = OPTIMIZERS[name](vae.parameters())
    aef = wrapped(vae)
    optimizer.add_param_group({"params": list(aef.added_parameters())})
    before = [p.detach().clone() for p in aef.added_parameters()]
    train(aef, optimizer)
    assert not any(torch.equal(p, old) for p, old in zip(aef.added_parameters(), before, strict=True))


def test_optimizer_of_the_aef() -> None:
    aef = wrapped()
    train(aef, torch.optim.Adam(aef.parameters()))


def test_two_optimizers_that_hold_all_between_them() -> None:
    aef = wrapped()
    train(aef, torch.optim.Adam(aef.vae.parameters()), torch.optim.SGD(aef.added_parameters(), lr=1e-3))


def test_a_part_left_out_is_named() -> None:
    aef = wrapped()
    held = [p for name, p in aef.named_parameters() if not name.startswith("likelihood")]
    with pytest.warns(OptimizerWarning, match=r"not 1 parameters that the AEF has added \(likelihood\)"):
        train(aef, torch.optim.Adam(held))


def test_frozen_parameters_are_not_missed() -> None:
    aef = wrapped()
    for parameter in aef.added_parameters():
        parameter.requires_grad_(False)
    train(aef, torch.optim.Adam(aef.vae.parameters()))


def test_nothing_added_nothing_watched() -> None:
    aef = wrapped(core="noise", core_flow="none", residual=1.0)
    assert [one for one in _watches if one.aef() is aef] == []
    train(aef, torch.optim.Adam(aef.vae.parameters()))


def test_other_models_and_discriminators_do_not_count() -> None:
    aef = wrapped()
    other = nn.Linear(6, 1)
    optimizer = torch.optim.Adam(other.parameters())
    for _ in range(4):
        optimizer.zero_grad()
        other(X).sum().backward()
        optimizer.step()
    aef.tune_proposal(X)  # has an optimizer of its own
    train(aef, torch.optim.Adam(aef.parameters()))


def test_evaluation_in_between_and_the_vae_alone() -> None:
    """Training the VAE by itself, before it is wrapped, is not the AEF's business."""
    vae = VAE()
    optimizer = torch.optim.Adam(vae.parameters())
    for _ in range(3):
        optimizer.zero_grad()
        vae.decode(vae.encode(X)[0]).sum().backward()
        optimizer.step()
    aef = wrapped(vae)
    aef.eval()
    with torch.no_grad():
        aef(X)


@pytest.mark.parametrize("first", [True, False], ids=["the first", "the second"])
def test_of_two_models_of_one_vae_the_right_one_is_spoken_of(first: bool) -> None:
    """Both hold the VAE's parameters; only one is trained, by an optimizer that leaves out what it has added."""
    vae = VAE()
    optimizer = torch.optim.Adam(vae.parameters())
    aefs = wrapped(vae, prior="coupling"), wrapped(vae, core_flow="none")
    trained = aefs[0] if first else aefs[1]
    names = r"\(core, likelihood, prior\)" if first else r"\(core, likelihood\)"
    with pytest.warns(OptimizerWarning, match=names) as warned:
        train(trained, optimizer)
    assert len(warned) == 1


def test_an_optimizer_of_one_of_two_models_is_complete() -> None:
    """A warning would be an error: what the other has added is none of its business, though it was trained before."""
    vae = VAE()
    first, second = wrapped(vae), wrapped(vae)
    train(first, torch.optim.Adam(first.parameters()))
    third = wrapped(vae)  # by now the watch over the first has ended
    third(X).backward()
    train(second, torch.optim.Adam(second.parameters()))
    train(first, torch.optim.Adam(first.parameters()))


@pytest.mark.filterwarnings("ignore:`torch.jit:DeprecationWarning")  # from inside torch.compile
@needs_dynamo
def test_a_compiled_aef_is_watched_too() -> None:
    vae = VAE()
    optimizer = torch.optim.Adam(vae.parameters())
    aef = wrapped(vae)
    with pytest.warns(OptimizerWarning):
        train(torch.compile(aef, backend="eager"), optimizer)


def test_copies_stay_plain() -> None:
    aef = wrapped()
    copied = copy.deepcopy(aef)
    with warnings.catch_warnings(record=True) as seen:
        warnings.simplefilter("always")
        train(copied, torch.optim.Adam(copied.parameters()))
        train(aef, torch.optim.Adam(aef.parameters()))
    assert not [w for w in seen if issubclass(w.category, OptimizerWarning)]
