"""`vae2aef.testing` passes what is right and, above all, fails what is wrong."""

import copy
import math

import pytest
import torch
from strategies import Sinh
from torch import Tensor, nn
from zoo_core import ExampleVAE, SmallVAE, shake

import vae2aef
from vae2aef import testing


def make(**options):
    torch.manual_seed(0)
    x = 0.02 + 0.96 * torch.rand(3, 2, 2)
    options = {"core_flow": "coupling", "preprocess": "logit", **options}
    aef = vae2aef.wrap(SmallVAE((2, 2), (2,)), example=x, encoder_scale="log_std", **options)
    shake(aef)
    return aef, x


class WrongLogDet(Sinh):
    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        y, log_det = super().forward(x)
        return y, 1.001 * log_det


class WrongInverse(Sinh):
    def inverse(self, y: Tensor) -> tuple[Tensor, Tensor]:
        x, log_det = super().inverse(y)
        return x + 1e-4, log_det


class WrongSign(Sinh):
    def inverse(self, y: Tensor) -> tuple[Tensor, Tensor]:
        x, log_det = super().inverse(y)
        return x, -log_det


class WrongShape(Sinh):
    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        y, log_det = super().forward(x)
        return y, log_det.sum()


@pytest.mark.parametrize("core", ["linear", "noise", "corner"])
def test_a_right_model_passes(core):
    """A float32 model is checked in float64, on a copy, and stays as it was."""
    aef, x = make(core=core)
    before, state = copy.deepcopy(aef.state_dict()), torch.get_rng_state()
    assert testing.check_invertible(aef, x) < 1e-8
    assert testing.check_jacobian(aef, x) < 1e-8
    norms = testing.check_gradients(aef, x)
    assert set(norms) == dict(aef.named_parameters()).keys()
    assert aef.training
    assert torch.equal(torch.get_rng_state(), state)
    assert all(torch.equal(value, before[name]) for name, value in aef.state_dict().items())
    assert all(p.grad is None and p.dtype == torch.float32 for p in aef.parameters())


def test_a_right_bijection_passes():
    x = torch.randn(4, 3)
    assert testing.check_invertible(Sinh(), x) < 1e-8
    assert testing.check_jacobian(Sinh(), x) < 1e-8
    assert testing.check_jacobian(vae2aef.MaskedAutoregressive(3), x[:0]) == 0.0


@pytest.mark.parametrize(
    ("broken", "message"),
    [
        (WrongInverse, r"inverse\(forward\(x\)\) is wrong"),
        (WrongSign, "minus the log-determinant of `inverse` is wrong"),
        (WrongShape, "expected a log-determinant of shape"),
    ],
)
def test_a_wrong_inverse_fails(broken, message):
    x = torch.randn(4, 3)
    with pytest.raises(AssertionError, match=message):
        testing.check_invertible(broken(), x)
    aef, x = make(core_flow=Sinh())
    aef.core_flow = broken()  # `wrap` itself refuses some of these
    with pytest.raises(AssertionError, match=message):
        testing.check_invertible(aef, x)


class NotANumber(Sinh):
    def inverse(self, y: Tensor) -> tuple[Tensor, Tensor]:
        x, log_det = super().inverse(y)
        return x * torch.nan, log_det


class Steep(Sinh):
    """What is a small error in x is a large one in y."""

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        y, log_det = super().forward(x)
        return 1e6 * y, log_det + x.shape[1] * math.log(1e6)

    def inverse(self, y: Tensor) -> tuple[Tensor, Tensor]:
        x, log_det = super().inverse(y / 1e6)
        return x + 1e-8, log_det - y.shape[1] * math.log(1e6)


def test_nan_and_errors_of_one_direction_alone_fail():
    with pytest.raises(AssertionError, match=r"inverse\(forward\(x\)\) is wrong: nan"):
        testing.check_invertible(NotANumber(), torch.randn(4, 3))
    with pytest.raises(AssertionError, match=r"forward\(inverse\(y\)\) is wrong"):
        testing.check_invertible(Steep(), torch.zeros(4, 3))


@pytest.mark.parametrize("core", ["linear", "center"])
def test_a_wrong_log_determinant_fails(core):
    with pytest.raises(AssertionError, match="the log-determinant is wrong"):
        testing.check_jacobian(WrongLogDet(), torch.randn(4, 3))
    aef, x = make(core_flow=WrongLogDet(), core=core)
    with pytest.raises(AssertionError, match="the log-determinant is wrong"):
        testing.check_jacobian(aef, x)
    with pytest.raises(AssertionError, match="expected a log-determinant of shape"):
        testing.check_jacobian(WrongShape(), torch.randn(4, 3))


class MixesRows(SmallVAE):
    """Like a BatchNorm in training mode; from the start it would be refused."""

    mixes = False

    def encoder(self, x: Tensor) -> tuple[Tensor, Tensor]:
        loc, log_std = super().encoder(x)
        return loc + self.mixes * x.mean(), log_std


class DrawsNoise(SmallVAE):
    """Like an encoder that returns a sample instead of its location."""

    def encoder(self, x: Tensor) -> tuple[Tensor, Tensor]:
        loc, log_std = super().encoder(x)
        return loc + torch.randn_like(loc), log_std


@pytest.mark.parametrize("broken", [MixesRows, DrawsNoise])
def test_an_encoder_that_is_no_function_of_its_row_fails(broken):
    x = torch.rand(3, 4)
    aef = vae2aef.wrap(broken((4,), (2,)), example=x, encoder_scale="log_std")
    aef.vae.mixes = True
    with pytest.raises(AssertionError, match=r"row 0 alone .do rows mix, or is noise drawn in eval mode"):
        testing.check_jacobian(aef, x)


class WithDropout(SmallVAE):
    def __init__(self) -> None:
        super().__init__((4,), (2,))
        self.dropout = nn.Dropout(0.5)

    def encoder(self, x: Tensor) -> tuple[Tensor, Tensor]:
        return super().encoder(self.dropout(x))


def test_all_is_checked_in_eval_mode():
    x = torch.rand(3, 4)
    aef = vae2aef.wrap(WithDropout(), example=x, encoder_scale="log_std", core_flow="coupling", noise=0.0).train()
    assert testing.check_invertible(aef, x) < 1e-8
    assert testing.check_jacobian(aef, x) < 1e-8
    norms = testing.check_gradients(aef, x)
    assert aef.vae.dropout.training
    grads = torch.autograd.grad(aef.eval()(x), list(aef.parameters()))
    assert list(norms.values()) == pytest.approx([float(g.norm()) for g in grads])


def test_a_parameter_without_gradient_fails_by_name():
    aef, x = make()
    aef.vae.unused = nn.Linear(2, 2)
    with pytest.raises(AssertionError, match=r"no gradient reaches: vae\.unused\.weight, vae\.unused\.bias"):
        testing.check_gradients(aef, x)
    assert "vae.unused.weight" not in testing.check_gradients(aef, x, ignore=("vae.unused.*",))
    aef.vae.unused.requires_grad_(False)
    testing.check_gradients(aef, x)


def test_a_gradient_that_is_not_finite_fails_by_name():
    aef, x = make()
    with torch.no_grad():
        aef.vae.mean.bias.register_hook(lambda grad: grad * float("inf"))
    with pytest.raises(AssertionError, match=r"the gradient is not finite of: vae\.mean\.bias"):
        testing.check_gradients(aef, x)


def test_too_large_a_jacobian_is_refused():
    with pytest.raises(ValueError, match=r"5000 rows, and at most 4096.*smaller data"):
        testing.check_jacobian(Sinh(), torch.randn(1, 5000))


def test_a_model_that_cannot_be_copied_is_explained():
    vae, x = SmallVAE((4,), (2,)), torch.rand(3, 4)
    aef = vae2aef.wrap(vae, example=x, encoder=lambda x: vae.encoder(x), encoder_scale="log_std")
    with pytest.raises(TypeError, match=r"holds a module.*encoder=vae\.encode"):
        testing.check_jacobian(aef, x)


class FixedDtype(SmallVAE):
    def encoder(self, x):
        return super().encoder(x.float())


def test_a_model_that_does_not_run_in_float64_is_explained():
    x = torch.rand(3, 4)
    vae = FixedDtype((4,), (2,)).float()
    aef = vae2aef.wrap(vae, example=x.float(), encoder_scale="log_std")
    with pytest.raises(ValueError, match="does not run in float64"):
        testing.check_jacobian(aef, x)


def test_grey_levels_are_dequantised_once():
    x = torch.randint(0, 16, (3, 12))
    options = {"example": x, "preprocess": [vae2aef.Dequantize(16), "logit"]}
    aef = vae2aef.wrap(ExampleVAE(), core_flow="coupling", **options)
    assert testing.check_jacobian(aef, x) < 1e-8
    assert testing.check_invertible(aef, x) < 1e-8
    testing.check_gradients(aef, x)


def test_it_is_not_imported_with_the_package():
    assert "testing" not in vae2aef.__all__
