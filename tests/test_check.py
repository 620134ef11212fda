"""`vae2aef.check`: every problem at once, each with the line that fixes it, and never an exception."""

import pickle
import re

import pytest
import torch
import zoo
from torch import Tensor, nn

import vae2aef
from vae2aef.diagnostics.findings import Finding, Report


def make(cls: type[nn.Module] = zoo.LogVar, rows: int = 64) -> tuple[nn.Module, Tensor]:
    torch.manual_seed(0)
    vae = cls()
    return vae, zoo.example(vae, rows)[0]


def find(report: Report, pattern: str) -> Finding:
    found = [f for f in report.findings if re.search(pattern, f.message)]
    assert len(found) == 1, f"{len(found)} findings match {pattern!r} in\n{report}"
    return found[0]


def test_a_good_vae_has_no_error_and_all_is_said():
    vae, x = make()
    report = vae2aef.check(vae, example=x)
    assert report.ok and not [f for f in report.findings if f.severity != "note"]
    for pattern in (
        "z is what `add` makes of it, its scale dz/du", "only output shaped like the data", "measured as dz/du",
        r"from .* to .*, median", r"shape \(4,\), 4 variables for data of 16 values", "with no bound seen",
        "nats a variable from the standard normal", "core 68, likelihood", "nats at the start",
    ):  # fmt: skip
        assert find(report, pattern).severity == "note"
    assert str(report).startswith("check of LogVar: ") and report.subject == "LogVar"


def test_everything_at_once_worst_first():
    class Bad(zoo.Base):
        def __init__(self) -> None:
            super().__init__()
            self.body.append(nn.BatchNorm1d(zoo.HIDDEN))
            self.tail.insert(1, nn.Dropout(0.2))
            self.tail.append(nn.Sigmoid())
            self.body[1].weight.requires_grad_(False)

        def draw(self, loc: Tensor, log_var: Tensor) -> Tensor:
            return loc + 5 + (log_var - 30).exp() * torch.randn_like(loc)

    vae, x = make(Bad)
    x = (x * 16).floor() / 16
    report = vae2aef.check(vae, example=x, preprocess="logit")
    assert (find(report, "batch normalisation").place, find(report, "dropout").place) == ("body.3", "tail.1")
    assert find(report, r"^1 of \d+ parameters are frozen").place == "body.1.weight"
    assert find(report, "only 16 different").severity == "warning"
    assert find(report, "out of its reach").place == "decoder"
    assert "prior=" in find(report, "far from it").fix
    assert "below 0.0001" in find(report, "get no gradient").message
    order = [("error", "warning", "note").index(f.severity) for f in report.findings]
    assert order == sorted(order)
    assert all(f.fix for f in report.findings if f.severity != "note")
    assert report.ok


@pytest.mark.parametrize("cls", zoo.REFUSED, ids=lambda cls: cls.__name__)
@pytest.mark.filterwarnings("ignore:Using a target size:UserWarning")
def test_a_vae_that_cannot_be_wrapped_is_a_finding(cls):
    vae, x = make(cls)
    report = vae2aef.check(vae, example=x)
    (error,) = report.errors
    assert re.search(zoo.REFUSED[cls], error.message + error.fix)
    with pytest.raises(vae2aef.WrapError) as refused:
        vae2aef.wrap(vae, example=x)
    assert error.fix == refused.value.fix
    assert not report.ok


@pytest.mark.parametrize(("said", "right"), [("log_var", "log_std"), ("std", "log_std"), ("log_std", None)])
def test_a_wrong_encoder_scale_is_found_by_the_forward_itself(said, right):
    vae, x = make(zoo.LogStdNamedLogVar)
    with torch.no_grad():
        vae.head.bias[zoo.LATENTS :] += 2
    report = vae2aef.check(vae, example=x, encoder=vae.split, decoder=vae.data, encoder_scale=said)
    if right is None:
        assert report.ok and find(report, "compared: of the same noise, its own forward makes this z and this output")
    else:
        assert find(report, "forward of .* takes that output as").fix == f'Pass encoder_scale="{right}"'
        assert not report.ok


def test_a_wrong_location_is_found():
    vae, x = make()
    report = vae2aef.check(
        vae, example=x, encoder=lambda x: (vae.split(x)[0] + 1, vae.split(x)[1]), decoder=vae.data,
        encoder_scale="log_var",
    )  # fmt: skip
    assert find(report, "the forward of LogVar makes another z").severity == "error"


def test_data_out_of_reach_of_a_sigmoid():
    vae, x = make()
    vae.tail.append(nn.Sigmoid())
    assert "as a sigmoid does" in find(vae2aef.check(vae, example=x), "however large z is").message
    report = vae2aef.check(vae, example=x, preprocess="logit")
    assert find(report, "out of its reach").severity == "warning"
    below = torch.cat([x[:16] - 2, x[16:]])
    assert find(vae2aef.check(vae, example=below), "out of its reach").message.endswith(
        ": 25.0% of the values are out of its reach"
    )
    vae.tail[-1] = nn.Tanh()
    assert "as a tanh does" in find(vae2aef.check(vae, example=x), "however large z is").message


def test_rows_that_mix_and_outputs_that_are_random():
    class Mixing(zoo.Base):
        def split(self, x: Tensor) -> tuple[Tensor, Tensor]:
            return super().split(x - x.mean(0))

    class Random(zoo.Base):
        def data(self, z: Tensor) -> Tensor:
            return super().data(nn.functional.dropout(z))

    class MixingDecoder(zoo.Base):
        def data(self, z: Tensor) -> Tensor:
            return super().data(z - z.mean(0))

    vae, x = make(Mixing)
    assert (
        find(vae2aef.check(vae, example=x), "the encoder's location for one row moves with another").severity == "error"
    )
    vae, x = make(MixingDecoder)
    report = vae2aef.check(vae, example=x, **vae.described())
    assert find(report, "the decoder's mean for one row moves with another").severity == "error"
    vae, x = make(Random)
    report = vae2aef.check(vae, example=x, **vae.described())
    assert find(report, "random in eval mode").place == "decoder"


def test_all_is_measured_in_eval_mode():
    class Dropping(zoo.Base):
        def __init__(self) -> None:
            super().__init__()
            self.body.append(nn.Dropout(0.5))
            self.tail.insert(1, nn.Dropout(0.5))

    vae, x = make(Dropping)
    reports = []
    for training in (True, False):
        torch.manual_seed(0)
        reports.append(vae2aef.check(vae.train(training), example=x, **vae.described()))
    assert reports[0].findings == reports[1].findings


def test_parameters_and_example():
    vae, x = make()
    with torch.no_grad():
        vae.tail[0].weight[0, 0] = torch.nan
    assert find(vae2aef.check(vae, example=x), "NaN or infinite").place == "tail.0.weight"
    vae, x = make()
    vae.requires_grad_(False)
    assert find(vae2aef.check(vae, example=x), "all parameters are frozen").severity == "warning"
    vae, x = make()
    assert find(vae2aef.check(vae, example=x * 255), "grey levels").fix
    assert "preprocess=" in vae2aef.check(vae, example=(x * 255).byte()).errors[0].fix
    assert vae2aef.check(vae, example=(x * 255).byte(), preprocess="dequantize").ok
    x[3, 0, 0] = torch.inf
    assert not vae2aef.check(vae, example=x).ok
    assert find(vae2aef.check(vae.half(), example=x), "half precision")


def test_collapsed_latents_and_few_rows():
    vae, x = make()
    with torch.no_grad():
        vae.head.weight[1] = 0
        vae.head.weight[[0, 2, 3]] *= 20
    assert find(vae2aef.check(vae, example=x), "they have collapsed").message.startswith("1 of 4")
    assert "a guess" in find(vae2aef.check(vae, example=x[:5]), "nats a variable").message


def test_the_aggregate_posterior_is_measured_as_it_is():
    """One latent of mean 3, of spread 0.2 and scale 1; one whose rows lie 0.05 scales apart, which is collapsed."""
    spread = torch.linspace(-1, 1, 64)
    spread = spread / spread.std(correction=0)
    loc = torch.stack([3 + 0.2 * spread, 0.05 * spread], 1)
    report = vae2aef.check(
        None, example=torch.rand(64, 5), encoder=lambda x: (loc[: len(x)], torch.ones_like(loc[: len(x)])),
        decoder=nn.Linear(2, 5), encoder_scale="std",
    )  # fmt: skip
    variances = torch.tensor([1.04, 1.0025])
    far = 0.5 * (torch.tensor([9.0, 0.0]) + variances - 1 - variances.log()).mean()
    said = find(report, "nats a variable").message
    assert "mean 1.5 (largest 3)" in said
    assert f"standard deviation {variances.mean().sqrt():.3g}; as Gaussians, {far:.3g} nats" in said
    assert find(report, "they have collapsed").message.startswith("1 of 2")


def test_conditions_and_adapters():
    vae = zoo.Conditional()
    report = vae2aef.check(vae, example=zoo.example(vae))
    assert report.ok
    named = vae2aef.check(vae, example=(zoo.example(vae)[0], {"labels": zoo.example(vae)[1]}))
    assert named.ok, named

    class Example(zoo.Base):
        encode, decode = zoo.Base.split, zoo.Base.data

        def reparameterize(self, loc: Tensor, log_var: Tensor) -> Tensor:
            return self.draw(loc, log_var)

    report = vae2aef.check(Example(), example=zoo.example(vae)[0])
    assert find(report, "forward with randn_like replaced") and find(report, "measured as dz/du")


@pytest.mark.parametrize(
    "case",
    [
        (None, None), (None, torch.rand(2, 3)), (object(), torch.rand(2, 3)), (nn.Linear(3, 3), torch.rand(2, 3)),
        (zoo.LogVar(), None), (zoo.LogVar(), "x"), (zoo.LogVar(), torch.rand(0, 1, 4, 4)), (zoo.LogVar(), ()),
        (zoo.LogVar(), torch.tensor(1.0)), (zoo.LogVar(), torch.rand(2, 7)),
    ],
    ids=[
        "nothing", "no vae", "an object", "a layer", "no example", "a string", "no rows", "an empty tuple", "a number",
        "a wrong shape",
    ],
)  # fmt: skip
def test_never_raises_for_what_is_given(case):
    vae, x = case
    report = vae2aef.check(vae, example=x)
    assert not report.ok and all(e.fix for e in report.errors)


def test_the_fix_is_the_errors_own_not_cut_out_of_its_text():
    class Told(nn.Module):
        def __init__(self, error: Exception) -> None:
            super().__init__()
            self.error = error

        def encode(self, x: Tensor) -> None:
            raise self.error

        decode = encode

    def finding(error: Exception) -> tuple[str, str]:
        (found,) = vae2aef.check(Told(error), example=torch.rand(2, 3), encoder_scale="std").errors
        return found.message.removeprefix("it cannot be wrapped: "), found.fix

    error = vae2aef.WrapError("its latents are discrete. Use it not so; ", "pass encoder=lambda x: y")
    assert str(error) == "its latents are discrete. Use it not so; pass encoder=lambda x: y"
    assert finding(error) == ("its latents are discrete. Use it not so", "pass encoder=lambda x: y")
    assert finding(pickle.loads(pickle.dumps(error))) == finding(error)
    reason, fix = finding(vae2aef.WrapError("no remedy. Pass on"))
    assert reason == "no remedy. Pass on" and fix.startswith("vae2aef.wrap(vae, example=x, encoder=")


def test_a_prior_of_its_own_is_not_compared():
    vae, x = make()
    assert find(vae2aef.check(vae, example=x, prior="coupling"), "not compared .* the prior is a FlowPrior")


def test_an_unknown_option_is_an_error_of_the_caller():
    vae, x = make()
    with pytest.raises(TypeError, match="corre"):
        vae2aef.check(vae, example=x, corre="linear")
    aef = vae2aef.wrap(vae, example=x)
    assert "AEF already" in vae2aef.check(aef, example=x).errors[0].message


def test_nothing_is_changed():
    vae, x = make(zoo.BatchNormAndInPlace)
    vae.train()
    before = {name: t.clone() for name, t in vae.state_dict().items()}
    attributes = [dict(m.__dict__) for m in vae.modules()]
    state = torch.get_rng_state()
    vae2aef.check(vae, example=x)
    assert all(torch.equal(t, before[name]) for name, t in vae.state_dict().items())
    assert all(m.__dict__ == a for m, a in zip(vae.modules(), attributes, strict=True))
    assert all(p.grad is None for p in vae.parameters())
    assert torch.equal(torch.get_rng_state(), state)
    assert all(m.training for m in vae.modules())


@pytest.mark.parametrize(
    ("arguments", "code", "says"),
    [
        (["mlp"], 0, "compared: of the same noise"),
        (["zoo:Categorical"], 1, "ERROR vae: it cannot be wrapped"),
        (["zoo:NoSuchThing"], 2, "zoo has no NoSuchThing"),
        (["mlp", "--data", "nothing"], 2, "no such file"),
    ],
)
def test_command_line(arguments, code, says):
    pytest.importorskip("sklearn", reason="the digits are scikit-learn's")
    runner = pytest.importorskip("typer.testing").CliRunner()
    from vae2aef.cli import app

    result = runner.invoke(app, ["check", *arguments])
    assert result.exit_code == code, result.output
    assert says in result.output
