"""VAEs of the wild (issue 9): what their output means, and never a part lost in silence."""

import re
from typing import Any

import pytest
import torch
import torch.nn.functional as F
import zoo
from torch import Tensor, nn
from zoo_core import SmallVAE

import vae2aef
from vae2aef.tracing.parts import TracedParts
from vae2aef.wrapping.meaning import compare, explained


def followed(said: Exception, vae: Any, example: Any, **options: Any) -> vae2aef.AEF:
    """Wrap as the last line of a message says: it is taken from the text, and run."""
    line = re.search(r"Pass (.*)$", str(said))
    assert line, said
    more = eval(f"dict({line[1]})", {"torch": torch, "vae": vae, "x": example, "vae2aef": vae2aef, "nn": nn})
    return vae2aef.wrap(vae, example=example, **{**options, **more})


# ---------------------------------------------------------------------- what the output means


class Trained(zoo.BareLogits):
    """Logits, or what goes into a tanh, in the second place of what forward returns; trained with one of the two."""

    def forward(self, x: Tensor) -> dict[str, Any]:
        loc, log_var = self.split(x)
        return {"q": (loc, log_var), "out": [self.data(self.draw(loc, log_var))]}


def trained(apply: Any, low: float) -> tuple[Trained, Tensor]:
    torch.manual_seed(0)
    vae = Trained()
    x = (low + (1 - low) * (torch.rand(64, 1, 1, 1) < 0.5).float()).expand(-1, *zoo.EVENT) * 0.9
    optimizer = torch.optim.Adam(vae.parameters(), 2e-2)
    for _ in range(60):
        optimizer.zero_grad()
        F.mse_loss(apply(vae(x)["out"][0]).view_as(x), x).backward()
        optimizer.step()
    return vae, x


@pytest.mark.remedy("the decoder's output, taken as the mean")
@pytest.mark.parametrize("options", [{}, {"preprocess": "dequantize"}], ids=["plain", "density"])
@pytest.mark.parametrize(("apply", "low"), [(torch.sigmoid, 0.0), (torch.tanh, -1.0)], ids=["sigmoid", "tanh"])
def test_logits_are_recognised_and_the_line_works(apply, low, options):
    vae, x = trained(apply, low)
    with pytest.warns(vae2aef.WrapWarning, match=f"Through a {apply.__name__}: these seem to be logits") as warned:
        wrong = vae2aef.wrap(vae, example=x, **options)
    aef = followed(warned[0].message, vae, x, **options)  # and warns of nothing
    assert isinstance(aef.parts, TracedParts)
    z = aef.parts.encode(x).loc.detach()
    torch.testing.assert_close(aef.decode(z), apply(wrong.decode(z)))
    assert (aef.decode(z) - x).abs().mean() < 0.15 < (wrong.decode(z) - x).abs().mean()
    report = vae2aef.check(vae, example=x, **options)
    (found,) = (f for f in report.findings if "logits" in f.message)
    assert found.severity == "warning" and found.fix == warned[0].message.fix
    if not options:  # without dequantising, whose draw is another
        shown = re.search(r"variance (.*) \(of data", found.message)[1]
        assert shown.startswith("-") and re.fullmatch(r"-\d+% as it is(, -?\d+% through a (sigmoid|tanh))+", shown)
        out = wrong.decode(z).detach()
        outs = {"": out, "sigmoid": out.sigmoid(), "tanh": out.tanh()}
        for share, name in re.findall(r"(-?\d+)%(?: as it is| through a (\w+))", shown):
            assert round(100 * explained(x, outs[name])) == pytest.approx(int(share), abs=1)
        assert ("sigmoid" in shown) == (low == 0) and "tanh" in shown
    (note,) = (f for f in report.findings if "its output explains of the variance" in f.message)
    assert note.severity == "note" and "as it is" in note.message


def test_what_output_says_is_not_taken_for_logits():
    """And data that reach beyond what a sigmoid or tanh does were made by neither. A warning would be an error."""
    vae, x = trained(torch.sigmoid, 0.0)
    aef = vae2aef.wrap(vae, example=x, output=lambda out: out["out"][0])
    out = aef.decode(aef.parts.encode(x).loc).detach()
    assert compare(x, out).keys() == {"nothing", "sigmoid", "tanh"} and compare(x, out)["sigmoid"] > 0.5
    assert compare(2 * x - 0.5, out).keys() == {"nothing"} and compare(x - 0.5, out).keys() == {"nothing", "tanh"}


class Mean(nn.Module):
    """Keeps the mean of each datum, and gives it back as it is."""

    def __init__(self) -> None:
        super().__init__()
        self.gain = nn.Parameter(torch.ones(()))

    def encode(self, x: Tensor) -> tuple[Tensor, Tensor]:
        mean = self.gain * x.mean(1, keepdim=True)
        return mean, torch.full_like(mean, -6.0)

    def decode(self, z: Tensor) -> Tensor:
        return self.gain * z.expand(-1, 100)


def test_a_decoder_of_means_is_not_taken_for_logits():
    """What explains the data as it is needs no sigmoid, though through one it would explain them too."""
    x = 0.9 * (torch.arange(64) % 2).float()[:, None].expand(64, 100)
    assert explained(x, x.sigmoid()) > 0.25
    vae2aef.wrap(Mean(), example=x, encoder_scale="log_std")  # a warning would be an error


@pytest.mark.slow
def test_an_untrained_decoder_is_not_taken_for_logits():
    """A warning would be an error. Few values, and one pattern for all rows, are alike by chance."""
    for seed in range(30):
        torch.manual_seed(seed)
        vae = SmallVAE((2, 3), (3,))
        for x in (torch.rand(3, 2, 3), torch.rand(40, 2, 3).round(), torch.rand(1, 2, 3).expand(8, 2, 3)):
            vae2aef.wrap(vae, example=x, encoder_scale="log_std")
        vae2aef.wrap(zoo.BareLogits(), example=torch.rand(1, *zoo.EVENT).round().expand(8, *zoo.EVENT))


class TwoOutputs(zoo.Base):
    """Mean and scale of the data, two outputs of one shape: refused until it is said which is which."""

    def forward(self, x: Tensor) -> tuple[Tensor, ...]:
        mean = self.data(self.draw(*self.split(x)))
        return mean, F.softplus(mean) + 0.1


def test_output_says_what_is_what_within_the_trace():
    vae = TwoOutputs()
    (x,) = zoo.example(vae)
    with pytest.raises(vae2aef.WrapError, match="several outputs are shaped like the data"):
        vae2aef.wrap(vae, example=x)
    aef = vae2aef.wrap(vae, example=x, output=lambda out: out, decoder_scale="std")
    z = torch.randn(5, 4)
    decoded = aef.parts.decode(z)
    torch.testing.assert_close(decoded.mean, vae.data(z))
    torch.testing.assert_close(decoded.scale, F.softplus(vae.data(z)) + 0.1)
    with pytest.raises(vae2aef.WrapError, match="what output= returns does not depend on the noise"):
        vae2aef.wrap(vae, example=x, output=lambda out: x)


def test_output_of_a_decoder_where_there_is_no_forward():
    class Parts(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner = zoo.Base()

        def encode(self, x: Tensor) -> tuple[Tensor, Tensor]:
            return self.inner.split(x)

        def decode(self, z: Tensor) -> dict[str, Tensor]:
            return {"recon": self.inner.data(z)}

    vae = Parts()
    (x,) = zoo.example(vae)
    aef = vae2aef.wrap(vae, example=x, encoder_scale="log_var", output=lambda out: out["recon"].tanh())
    z = torch.randn(5, 4)
    torch.testing.assert_close(aef.decode(z), vae.inner.data(z).tanh())
