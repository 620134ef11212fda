"""Wrapping changes nothing in the user's module, and an AEF can be saved, pickled and copied."""

import copy
import pickle
from typing import Any

import pytest
import torch
from adapter_cases import Case, every_case
from torch import Tensor, nn

import vae2aef


def attributes(vae: nn.Module) -> dict[str, Any]:
    """Return every attribute of every submodule: parameters and modules by identity, tensors with their values.

    Plain lists, and tensors that are no parameters, are compared by value alone: weight normalisation and the
    caches of video models make them anew in each of their own forward passes.
    """
    found: dict[str, Any] = {}
    for path, module in vae.named_modules():
        found[f"{path}:class"] = id(type(module))
        for name, value in vars(module).items():
            for key, item in value.items() if isinstance(value, dict) else [("", value)]:
                derived = isinstance(item, (bool, int, float, str, list)) or (
                    isinstance(item, Tensor) and not isinstance(item, nn.Parameter)
                )
                content = copy.deepcopy(item.detach()) if isinstance(item, Tensor) else item if derived else None
                found[f"{path}.{name}.{key}"] = (None if derived else id(item), content)
    return found


def same(one: Any, other: Any) -> bool:
    return torch.equal(one, other) if isinstance(one, Tensor) else one == other


def own_forward(case: Case, vae: nn.Module) -> tuple[Tensor, Tensor, Tensor]:
    torch.manual_seed(3)
    x, cond = case.data(), case.conditions()
    own = case.own(vae, x, **cond)
    return own.z.detach(), own.reconstruction.detach(), own.kl.detach()


@every_case
def test_the_users_module_is_bit_identical(case: Case) -> None:
    vae = case.make().eval()
    forward = own_forward(case, vae)
    example = case.example()
    vae.train()  # the common state when it is wrapped; batch statistics must not move either
    before, state = attributes(vae), {k: v.clone() for k, v in vae.state_dict().items()}
    random = torch.random.get_rng_state()

    aef = vae2aef.wrap(vae, example=example, core_flow="none", prior=None, core="noise")

    assert torch.equal(random, torch.random.get_rng_state()), "wrapping drew from torch's generator"
    after = attributes(vae)
    assert before.keys() == after.keys()
    for key, value in before.items():
        values = value if isinstance(value, tuple) else (value,)
        now = after[key] if isinstance(value, tuple) else (after[key],)
        assert all(map(same, values, now)), key
    assert list(state) == list(vae.state_dict())
    assert all(torch.equal(value, vae.state_dict()[key]) for key, value in state.items())
    assert aef.vae is vae
    for one, other in zip(forward, own_forward(case, vae.eval()), strict=True):
        assert torch.equal(one, other)


def loss_of(case: Case, aef: vae2aef.AEF) -> Tensor:
    torch.manual_seed(5)
    x, cond = case.data(), case.conditions()
    with torch.no_grad():
        return aef.eval()(x, **cond)


def can_be_pickled(vae: nn.Module) -> bool:
    """Whether the user's module can: pythae's planar flow holds a lambda, and torch.save refuses it alone too."""
    try:
        pickle.dumps(vae)
    except (pickle.PicklingError, AttributeError):
        return type(vae).__name__ != "VAE_LinNF" and pytest.fail(f"{type(vae).__name__} cannot be pickled")
    return True


@every_case
def test_state_dict_pickle_and_deepcopy(case: Case) -> None:
    aef = vae2aef.wrap(case.make(), example=case.example(), noise=0.3)
    loss = loss_of(case, aef)

    copied = copy.deepcopy(aef)
    twins = {"deepcopy": copied}
    if can_be_pickled(aef.vae):
        twins["pickle"] = pickle.loads(pickle.dumps(aef))
    other = vae2aef.wrap(case.make(), example=case.example(), noise=0.3)
    with torch.no_grad():
        for parameter in other.parameters():
            parameter.add_(0.01)
    assert not torch.equal(loss_of(case, other), loss)
    other.load_state_dict(aef.state_dict())

    with torch.no_grad():  # the copies must have nothing in common with the original
        for parameter in aef.parameters():
            parameter.add_(1.0)
    for name, twin in {**twins, "state_dict": other}.items():
        assert torch.equal(loss_of(case, twin), loss), name


@every_case
def test_wrapping_twice_is_refused(case: Case) -> None:
    aef = vae2aef.wrap(case.make(), example=case.example(), core_flow="none")
    with pytest.raises(TypeError, match=r"AEF already; to wrap its VAE anew, pass aef\.vae"):
        vae2aef.wrap(aef, example=case.example())
