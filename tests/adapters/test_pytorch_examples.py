"""Classes shaped like pytorch/examples: what their second output is, is measured."""

import sys
import types
from typing import Any

import pytest
import torch
from adapter_cases import CASES
from adapter_images import images
from torch import Tensor, nn

import vae2aef

SCALES = {
    "log_var": lambda v: (0.5 * v).exp(),
    "log_std": lambda v: v.exp(),
    "std": lambda v: v,
    "var": lambda v: v.clamp(min=0).sqrt(),
}
DRAWS = {
    "randn_like": lambda std: torch.randn_like(std),
    "normal_": lambda std: torch.empty_like(std).normal_(),
    "normal": lambda std: torch.normal(torch.zeros_like(std), torch.ones_like(std)),
    "rsample": lambda std: torch.distributions.Normal(torch.zeros_like(std), 1.0).rsample(),
}


class Shaped(nn.Module):
    """All call the second output `logvar`; `scale` says what it is."""

    def __init__(self, scale: str, draw: str = "randn_like") -> None:
        super().__init__()
        self.scale, self.draw = scale, draw
        self.a, self.b = nn.Linear(6, 4), nn.Linear(2, 6)

    def encode(self, x: Tensor) -> tuple[Tensor, Tensor]:
        mu, logvar = self.a(x).chunk(2, dim=1)
        return mu, logvar.square() if self.scale in ("std", "var") else logvar

    def reparameterize(self, mu: Tensor, logvar: Tensor) -> Tensor:
        std = SCALES[self.scale](logvar)
        return mu + std * DRAWS[self.draw](std)

    def decode(self, z: Tensor) -> Tensor:
        return self.b(z)


@pytest.mark.parametrize("draw", DRAWS)
@pytest.mark.parametrize("scale", SCALES)
def test_second_output_is_measured(scale: str, draw: str) -> None:
    x = torch.rand(5, 6)
    vae = Shaped(scale, draw)
    aef = vae2aef.wrap(vae, example=x)
    assert f"second output {scale} (measured" in repr(aef)
    torch.testing.assert_close(aef.parts.encode(x).scale, SCALES[scale](vae.encode(x)[1]).clamp(min=1e-6))


@pytest.mark.parametrize("scale", SCALES)
def test_a_wrong_encoder_scale_is_refused(scale: str) -> None:
    wrong = "log_std" if scale == "log_var" else "log_var"
    with pytest.raises(vae2aef.WrapError, match=f'treats the second output as "{scale}"'):
        vae2aef.wrap(Shaped(scale), example=torch.rand(5, 6), encoder_scale=wrong)
    assert vae2aef.wrap(Shaped(scale), example=torch.rand(5, 6), encoder_scale=scale).latent_shape == (2,)


def test_unmeasurable_is_asked_for() -> None:
    class Odd(Shaped):
        def reparameterize(self, mu: Tensor, logvar: Tensor) -> Tensor:
            return mu

    with pytest.raises(vae2aef.WrapError, match=r"what is the second output of Odd\.encode"):
        vae2aef.wrap(Odd("std"), example=torch.rand(5, 6))
    assert "as you said" in repr(vae2aef.wrap(Odd("std"), example=torch.rand(5, 6), encoder_scale="std"))


def test_flat_networks_take_images() -> None:
    """By its forward, and by its methods where there is none: the same parts."""
    case = CASES[0]
    x = images(case.shape, 8)
    vae = case.make()
    traced = vae2aef.wrap(vae, example=x)
    assert isinstance(traced.likelihood, vae2aef.likelihood.Bernoulli)  # of the loss beside its class
    vae = case.make()  # of the same weights
    vae.__class__ = type("Bare", (type(vae),), {"forward": nn.Module.forward})
    aef = vae2aef.wrap(vae, example=x)
    assert "of flattened data" in repr(aef) and "of flattened data" not in repr(traced)
    z = torch.randn(8, *aef.latent_shape)
    decoded, encoded = aef.decode(z), aef.parts.encode(x)[:2]
    assert aef.reconstruct(x).shape == x.shape
    vae.__class__ = type(vae).__base__  # which has the forward that the traced one runs
    assert traced.reconstruct(x).shape == x.shape
    torch.testing.assert_close(traced.decode(z), decoded)
    for one, other in zip(traced.parts.encode(x)[:2], encoded, strict=True):
        torch.testing.assert_close(one, other)


def test_conditions_reach_encode_and_decode() -> None:
    class Conditional(Shaped):
        def encode(self, x: Tensor, y: Any) -> tuple[Tensor, Tensor]:
            return super().encode(x + y)

        def decode(self, z: Tensor, y: Any) -> Tensor:
            return super().decode(z) + y

    x, y = torch.rand(5, 6), torch.rand(5, 1)
    aef = vae2aef.wrap(Conditional("log_var"), example=(x, y))
    assert not torch.allclose(aef.encode(x, y), aef.encode(x, y + 1))
    z = torch.randn(5, 2)
    torch.testing.assert_close(aef.decode(z, y + 1), aef.decode(z, y) + 1)


@pytest.mark.parametrize("where", ["above", "below", "absent"])
def test_the_loss_beside_the_class_is_found_though_defined_later(where: str, tmp_path: Any, monkeypatch: Any) -> None:
    """`vae/main.py` makes its optimizer, and so its AEF, above its `loss_function`."""
    loss = "def loss_function(out, x):\n    return torch.nn.functional.binary_cross_entropy_with_logits(out, x)\n"
    lines = ["class Own(Shaped):\n    pass\n", "aef = vae2aef.wrap(Own('log_var'), example=x)\n"]
    if where != "absent":
        lines.insert(1 if where == "above" else 2, loss)
    module = types.ModuleType("a_script")
    vars(module).update(
        torch=torch, vae2aef=vae2aef, Shaped=Shaped, x=torch.rand(5, 6), __file__=str(tmp_path / "a.py")
    )
    (tmp_path / "a.py").write_text("".join(lines))
    monkeypatch.setitem(sys.modules, "a_script", module)
    exec(compile("".join(lines), module.__file__, "exec"), vars(module))
    assert isinstance(module.aef.likelihood, vae2aef.Residual) == (where == "absent")
