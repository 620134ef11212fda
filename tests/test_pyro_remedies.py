"""Every remedy that is printed for a Pyro program is followed, and then works."""

import copy
import functools
import gc
import pickle
import re
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from torch import Tensor, nn

pyro = pytest.importorskip("pyro")
import pyro.distributions as dist  # noqa: E402
import pyro.poutine as poutine  # noqa: E402
from pyro.infer import Importance, Trace_ELBO, TraceEnum_ELBO, TraceGraph_ELBO  # noqa: E402
from pyro.infer.autoguide import AutoNormal  # noqa: E402
from pyro.infer.reparam import LocScaleReparam  # noqa: E402

import vae2aef  # noqa: E402
from vae2aef.errors import DataTypeError  # noqa: E402

pytestmark = pytest.mark.usefixtures("core_flows")

B, N, D = 6, 4, 2


@pytest.fixture(autouse=True)
def fresh() -> Iterator[None]:
    pyro.clear_param_store()
    torch.manual_seed(0)
    yield


class Pair(nn.Module):
    """A VAE; what is sampled, around what, may be chosen: `plate` is entered by both, `prior` and `q` make the site."""

    def __init__(self, **parts: Any) -> None:
        super().__init__()
        self.enc, self.dec = nn.Linear(N, 2 * D), nn.Linear(D, N)
        for name, part in parts.items():
            setattr(self, name, part)

    def plate(self, x: Tensor) -> Any:
        return pyro.plate("data", len(x))

    def prior(self, x: Tensor) -> Any:
        return dist.Normal(x.new_zeros(len(x), D), 1.0).to_event(1)

    def q(self, loc: Tensor, scale: Tensor) -> Any:
        return dist.Normal(loc, scale).to_event(1)

    def mean(self, z: Tensor, x: Tensor) -> Tensor:
        return self.dec(z)

    def around(self, x: Tensor) -> Any:
        return poutine.scale(scale=1.0)

    def beside(self, x: Tensor) -> None:
        """Do nothing more."""

    def model(self, x: Tensor) -> None:
        pyro.module("dec", self.dec)
        with self.plate(x):
            self.beside(x)
            with self.around(x):
                z = pyro.sample("z", self.prior(x))
            pyro.sample("x", dist.Normal(self.mean(z, x), 0.5).to_event(1), obs=x)

    def guide(self, x: Tensor) -> None:
        pyro.module("enc", self.enc)
        with self.plate(x):
            self.beside(x)
            loc, raw = self.enc(x).chunk(2, -1)
            with self.around(x):
                pyro.sample("z", self.q(loc, (0.1 * raw).exp()))


def data() -> Tensor:
    return torch.randn(B, N)


def loss(pair: Any, x: Any = None, elbo: Any = None) -> float:
    return (elbo or vae2aef.AEF_ELBO()).loss(pair.model, pair.guide, data() if x is None else x)


def refusal(call: Callable[[], Any], fix: str, kind: Any = vae2aef.WrapError) -> Any:
    """The refusal of a call, whose remedy holds the text."""
    with pytest.raises(kind) as caught:
        call()
    assert fix in caught.value.fix and str(caught.value).endswith(caught.value.fix)
    return caught.value


@pytest.mark.remedy('site "{}": a density of each datum needs it')
def test_outside_the_plate() -> None:
    pair = Pair(plate=lambda x: poutine.scale(scale=1.0))

    def two(z: Tensor, x: Tensor) -> Tensor:
        pyro.sample("second", dist.Normal(z, 1.0).to_event(1), obs=x[:, :D])
        return pair.dec(z)

    pair.mean = two
    error = refusal(lambda: vae2aef.from_pyro(pair.model, pair.guide, data()), "with pyro.plate(")
    pair.plate = lambda x: eval(error.fix.removeprefix("with "), {"pyro": pyro, "x": x})
    assert vae2aef.from_pyro(pair.model, pair.guide, data())(data()).isfinite()


@pytest.mark.remedy('site "{}": the batch dimension is not found.')
def test_another_number_of_rows() -> None:
    x = data()

    pair = Pair()
    model, guide = (lambda y, x: pair.model(x)), (lambda y, x: pair.guide(x))
    y = torch.randn(2 * B + 1, N)
    call = functools.partial(vae2aef.AEF_ELBO(data="y").loss, model, guide, y, x)
    refusal(call, "name the data it encodes with data=")
    assert vae2aef.AEF_ELBO(data="x").loss(model, guide, y, x)


@pytest.mark.remedy('site "{}": its core variables had the shape')
def test_a_site_whose_shape_changes() -> None:
    def guide(x: Tensor, name: str) -> None:
        with pyro.plate("data", len(x)):
            pyro.sample(name, dist.Normal(x, 1.0).to_event(1))

    def model(x: Tensor, name: str) -> None:
        with pyro.plate("data", len(x)):
            z = pyro.sample(name, dist.Normal(torch.zeros_like(x), 1.0).to_event(1))
            pyro.sample("x", dist.Normal(z, 1.0).to_event(1), obs=x)

    elbo = vae2aef.AEF_ELBO()
    elbo.loss(model, guide, torch.randn(B, 3), "z")
    refusal(lambda: elbo.loss(model, guide, torch.randn(B, 4), "z"), "use a name for each shape")
    assert elbo.loss(model, guide, torch.randn(B, 4), "w")


@pytest.mark.remedy("expected floating point data, got {}: a dens")
def test_whole_numbers() -> None:
    x = torch.randint(3, (B, N))
    error = refusal(lambda: loss(Pair(), x), "vae2aef.dequantize(x)")
    assert loss(Pair(), eval(re.search(r"vae2aef\.\w+\(x\)", error.fix)[0], {"vae2aef": vae2aef, "x": x}))  # type: ignore[index]


@pytest.mark.remedy("{} {} of {}, and the networks of model or gu")
@pytest.mark.parametrize("make", ["from_pyro", "aef_guide"])
def test_networks_of_another_number_type(make: str) -> None:
    pair, x = Pair(), data().double()

    def run(x: Tensor) -> Any:
        return vae2aef.from_pyro(pair.model, pair.guide, x)(x) if make == "from_pyro" else loss(pair, x)

    error = refusal(lambda: run(x), "pass x.float(), or convert them, .to(torch.float64)", DataTypeError)
    assert "x is of torch.float64" in str(error) and "are of torch.float32" in str(error)
    assert run(x.float())
    pyro.clear_param_store()
    pair.to(torch.float64)
    assert run(x)
    if make == "from_pyro":
        whole = torch.randint(3, (B, N))
        error = refusal(lambda: run(whole), "pass x.double(); of grey levels vae2aef.dequantize(x)", DataTypeError)
        assert run(whole.double())


@pytest.mark.remedy("{} {} of {}, and the networks of model or gu")
def test_of_two_arguments_the_one_of_the_rarer_number_type_is_named() -> None:
    """A condition of the default type stands first, and is right: networks are of that type more often than not."""

    class Conditional(Pair):
        def model(self, c: Tensor, x: Tensor) -> None:  # type: ignore[override]
            super().model(x)

        def guide(self, c: Tensor, x: Tensor) -> None:  # type: ignore[override]
            with self.plate(x):
                loc, scale = self.enc(x).chunk(2, -1)
                pyro.sample("z", dist.Normal(loc + self.dec(c)[:, :D], scale.exp()).to_event(1))

    pair, c, x = Conditional(), torch.randn(B, D), data()
    run = functools.partial(vae2aef.from_pyro, pair.model, pair.guide, c)
    error = refusal(lambda: run(x.double(), data="x"), "pass x.float()", DataTypeError)
    assert str(error).startswith("x is of torch.float64")
    assert run(x.float(), data="x")(x, c).isfinite()


class Weighted(Pair):
    """Takes weights `w` beside the data, cast rightly or not; `constant` is the model's own."""

    def __init__(self, cast: bool, constant: torch.dtype) -> None:
        super().__init__()
        self.cast, self.constant = cast, torch.eye(N, dtype=constant)

    def weights(self, w: Tensor) -> Tensor:
        return w.to(self.dec.weight.dtype) if self.cast else w

    def model(self, x: Tensor, w: Tensor) -> None:  # type: ignore[override]
        with self.plate(x):
            z = pyro.sample("z", self.prior(x))
            pyro.sample("x", dist.Normal(self.dec(z) @ self.constant, 0.5).to_event(1), obs=x)

    def guide(self, x: Tensor, w: Tensor) -> None:  # type: ignore[override]
        with self.plate(x):
            loc, raw = self.enc(x + 0 * x @ self.weights(w)).chunk(2, -1)
            pyro.sample("z", self.q(loc, (0.1 * raw).exp()))


@pytest.mark.remedy("model or guide puts two number types togethe")
@pytest.mark.parametrize("make", ["from_pyro", "aef_guide"])
def test_an_argument_is_blamed_for_sure_only_where_casting_it_mends_the_call(make: str) -> None:
    """A constant of float64 in the model is the cause; an argument of float64, cast rightly, is there too."""
    pair, x, w = Weighted(cast=True, constant=torch.float64), data(), torch.eye(N, dtype=torch.float64)

    def run() -> Any:
        if make == "from_pyro":
            return vae2aef.from_pyro(pair.model, pair.guide, x, w)(x, w)
        return vae2aef.AEF_ELBO().loss(pair.model, pair.guide, x, w)

    error = refusal(run, "look for a tensor of torch.float64 or torch.float32 that they make", DataTypeError)
    assert "perhaps as w is of torch.float64" in str(error)
    assert str(error.__cause__).splitlines()[0] in str(error)  # torch's own line
    pair.constant = pair.constant.float()
    assert run()


@pytest.mark.remedy("{} {} of {}, and the networks of model or gu")
def test_the_argument_that_mends_the_call_is_named_whatever_the_others_are() -> None:
    """Of a condition and data the one that is at fault; and both where both are."""
    w = torch.eye(N, dtype=torch.float64)  # of the rarer type, and right
    pair, x = Weighted(cast=True, constant=torch.float64).double(), data()
    error = refusal(lambda: vae2aef.from_pyro(pair.model, pair.guide, x, w), "pass x.double(), or", DataTypeError)
    assert vae2aef.from_pyro(pair.model, pair.guide, x.double(), w)(x.double(), w).isfinite()
    pair = Weighted(cast=False, constant=torch.float32)
    x = x.double()
    error = refusal(
        lambda: vae2aef.from_pyro(pair.model, pair.guide, x, w), "pass x.float(), w.float(), or", DataTypeError
    )
    assert str(error).startswith("x and w are of torch.float64")
    x, w = x.float(), w.float()
    assert vae2aef.from_pyro(pair.model, pair.guide, x, w)(x, w).isfinite()


@pytest.mark.parametrize("said", ["the float valve is shut by a double bolt", "result type Double can't be cast"])
def test_an_error_that_no_other_number_type_of_the_data_mends_is_left_as_it_is(said: str) -> None:
    """What the program says itself; and numbers added to a table of integers, which no network is."""

    class Broken(Pair):
        def beside(self, x: Tensor) -> None:
            if "valve" in said:
                raise RuntimeError(said)
            torch.zeros(x.shape, dtype=torch.long).add_(x)

    pair = Broken()
    with pytest.raises(RuntimeError, match=f"^{said}") as error:
        vae2aef.from_pyro(pair.model, pair.guide, data().double())
    assert not isinstance(error.value, DataTypeError)


@pytest.mark.remedy("x is of {}, and model, guide and what was ad")
def test_data_of_another_number_type_than_the_aef() -> None:
    pair, x = Pair(), data()
    aef = vae2aef.from_pyro(pair.model, pair.guide, x)
    error = refusal(lambda: aef(x.double()), "pass x.to(torch.float32)", DataTypeError)
    assert "x is of torch.float64" in str(error)
    refusal(lambda: aef.log_prob(x.double(), num_samples=2), "pass x.to(torch.float32)", DataTypeError)
    assert aef(x.double().to(torch.float32)).isfinite() and aef.double()(x.double()).isfinite()


@pytest.mark.remedy("x holds fractions, and the model was convert")
def test_fractions_where_whole_numbers_were() -> None:
    class Counts(Pair):
        def model(self, x: Tensor) -> None:
            with self.plate(x):
                z = pyro.sample("z", dist.Normal(torch.zeros(len(x), D), 1.0).to_event(1))
                pyro.sample("x", dist.Poisson(self.dec(z).exp()).to_event(1), obs=x)

        def guide(self, x: Tensor) -> None:
            with self.plate(x):
                loc, scale = self.enc(x.log1p()).chunk(2, -1)
                pyro.sample("z", dist.Normal(loc, scale.exp()).to_event(1))

    pair, x = Counts(), torch.randint(5, (B, N))
    aef = vae2aef.from_pyro(pair.model, pair.guide, x)
    refusal(lambda: aef(x + 0.5), "pass x.round().to(torch.int64)", DataTypeError)
    value = aef.expanded_log_prob(x)
    torch.testing.assert_close(aef.expanded_log_prob((x + 0.1).round().to(torch.int64)), value)
    torch.testing.assert_close(aef.expanded_log_prob(x.float()), value)


@pytest.mark.remedy("the guide is an AEF guide already;")
def test_an_aef_guide_twice() -> None:
    pair, x = Pair(), data()
    aef = vae2aef.aef_guide(pair.model, pair.guide)
    refusal(lambda: vae2aef.AEF_ELBO().loss(pair.model, aef, x), "give AEF_ELBO its `.guide`")
    assert Trace_ELBO().loss(pair.model, aef, x) and vae2aef.AEF_ELBO().loss(pair.model, aef.guide, x)


@pytest.mark.remedy('site "{}": it is marked for enumeration, and')
def test_enumeration() -> None:
    pair, x = Pair(), data()

    def label(x: Tensor) -> None:
        pyro.sample("y", dist.Categorical(torch.ones(3) / 3), infer={"enumerate": "parallel"})

    pair.beside = label
    refusal(lambda: loss(pair, x), "loss=TraceEnum_ELBO()")
    aef = vae2aef.aef_guide(pair.model, pair.guide)
    assert TraceEnum_ELBO(max_plate_nesting=1).loss(pair.model, aef, x)
    pair.beside = lambda x: pyro.sample("y", dist.Categorical(torch.ones(3) / 3))
    assert loss(pair, x)


@pytest.mark.remedy('site "{}": it was a location-scale family be')
def test_a_family_that_changes() -> None:
    class Changing(Pair):
        other, name = False, "z"

        def site(self, fn: Any) -> Tensor:
            return pyro.sample(self.name, fn)

        def model(self, x: Tensor) -> None:
            with pyro.plate("data", len(x)):
                z = self.site(self.prior(x))
                pyro.sample("x", dist.Normal(self.dec(z), 0.5).to_event(1), obs=x)

        def guide(self, x: Tensor) -> None:
            with pyro.plate("data", len(x)):
                loc, raw = self.enc(x).chunk(2, -1)
                fn = dist.Uniform(loc - 1, loc + 1) if self.other else dist.Normal(loc, raw.exp())
                self.site(fn.to_event(1))

    pair, x = Changing(), data()
    aef = vae2aef.aef_guide(pair.model, pair.guide)
    aef(x)
    pair.other = True
    refusal(lambda: aef(x), "give different sites different names")
    pair.name = "u"
    assert Trace_ELBO().loss(pair.model, aef, x) and poutine.trace(aef).get_trace(x).nodes["u"]


@pytest.mark.remedy('site "{}" of the guide was not there when th')
def test_a_site_that_is_there_once() -> None:
    pair, x, seen = Pair(), data(), [0]
    whole = {"model": pair.model, "guide": pair.guide}
    turns = iter(range(100))

    def extra(x: Tensor, there: bool) -> None:
        if there:
            with pyro.plate("more", len(x)):
                pyro.sample("w", dist.Normal(x, 1.0).to_event(1))

    def guide(x: Tensor) -> None:
        whole["guide"](x)
        extra(x, guide.chance(next(turns)))  # type: ignore[attr-defined]

    def model(x: Tensor) -> None:
        whole["model"](x)
        if seen[0]:
            extra(x, True)

    guide.chance = lambda turn: False  # type: ignore[attr-defined]
    aef = vae2aef.aef_guide(model, guide)
    aef(x)
    first = next(turns)
    guide.chance = lambda turn: turn == first + 1  # type: ignore[attr-defined]
    refusal(lambda: aef(x), "let the sites of a guide depend on these alone")
    guide.chance = lambda turn: True  # type: ignore[attr-defined]
    seen[0] = 1
    aef(x)
    assert set(aef.trained()["core"]) == {"z", "w"}


@pytest.mark.remedy('the name "{}" is used by another loss:', 'the parameter store holds "{}" of shape {},')
def test_names_in_the_store() -> None:
    pair, other, x = Pair(), Pair(enc=nn.Linear(N, 2), dec=nn.Linear(1, N)), data()
    other.prior = lambda x: dist.Normal(x.new_zeros(len(x), 1), 1.0).to_event(1)
    first = vae2aef.AEF_ELBO(name="mine")
    loss(pair, x, first)
    refusal(lambda: loss(pair, x, vae2aef.AEF_ELBO(name="mine")), "choose another name=")
    assert loss(pair, x, vae2aef.AEF_ELBO(name="yours")) and loss(pair, x)
    del first
    gc.collect()
    refusal(lambda: loss(other, x, vae2aef.AEF_ELBO(name="mine")), "give this one a name=")
    assert loss(other, x, vae2aef.AEF_ELBO(name="another"))
    pyro.clear_param_store()
    assert loss(other, x, vae2aef.AEF_ELBO(name="mine"))


@pytest.mark.remedy("an AEF needs to see the data, and the guide")
def test_no_data() -> None:
    pair, x = Pair(), data()
    model, guide = (lambda: pair.model(x)), (lambda: pair.guide(x))
    refusal(lambda: vae2aef.AEF_ELBO().loss(model, guide), "pass it to model and guide, or name it with data=")
    assert loss(pair, x) and vae2aef.AEF_ELBO(data=lambda: x).loss(model, guide)


@pytest.mark.remedy("the checkpoint has values for {} and lacks s", "the parameter store has loaded values for {}")
def test_a_checkpoint_of_other_options(tmp_path: Any) -> None:
    pair, x = Pair(), data()
    aef = vae2aef.aef_guide(pair.model, pair.guide, core_flow="maf")
    aef(x)
    state = {k: v.clone() for k, v in aef.state_dict().items() if k.startswith("added")}
    path = str(tmp_path / "store.pt")
    pyro.get_param_store().save(path)
    other = vae2aef.aef_guide(pair.model, pair.guide)
    other.load_state_dict(state, strict=False)
    refusal(lambda: other(x), "other options core= and core_flow=")
    same = vae2aef.aef_guide(pair.model, pair.guide, core_flow="maf")
    same.load_state_dict(state, strict=False)
    same(x)
    del aef, same
    pyro.clear_param_store()
    pyro.get_param_store().load(path)
    refusal(
        lambda: vae2aef.aef_guide(pair.model, pair.guide)(x), "load one that fits, or call pyro.clear_param_store()"
    )
    vae2aef.aef_guide(pair.model, pair.guide, core_flow="maf")(x)
    pyro.clear_param_store()
    vae2aef.aef_guide(pair.model, pair.guide)(x)


@pytest.mark.remedy("from_pyro sums out discrete latents, and {}")
def test_too_many_combinations() -> None:
    pair, x = Pair(), data()
    pair.beside = lambda x: pyro.sample("y", dist.Categorical(torch.ones(2000)))
    refusal(lambda: vae2aef.from_pyro(pair.model, pair.guide, x), "loss=TraceGraph_ELBO()")
    assert TraceGraph_ELBO().loss(pair.model, vae2aef.aef_guide(pair.model, pair.guide), x)


@pytest.mark.remedy('site "{}": at noise=0 the guide places one v')
def test_values_from_elsewhere() -> None:
    pair, x = Pair(), data()
    aef = vae2aef.aef_guide(pair.model, pair.guide, noise=0)
    fn = poutine.trace(aef).get_trace(x).nodes["z"]["fn"]
    refusal(lambda: fn.log_prob(torch.zeros(B, D)), "set noise > 0")
    aef.noise = 0.5
    fn = poutine.trace(aef).get_trace(x).nodes["z"]["fn"]
    assert fn.log_prob(torch.zeros(B, D)).isfinite().all()
    assert Importance(pair.model, aef, num_samples=2).run(x).get_log_normalizer().isfinite()


@pytest.mark.remedy("from_pyro needs the data as an argument of m")
def test_data_that_are_no_tensor() -> None:
    pair = Pair(enc=nn.Linear(N, 2 * D))
    both = (lambda batch: pair.model(batch["x"])), (lambda batch: pair.guide(batch["x"]))
    refusal(lambda: vae2aef.from_pyro(*both, {"x": data()}), "write a model and guide that take it, or train with AEF")
    assert vae2aef.from_pyro(pair.model, pair.guide, data()) and vae2aef.AEF_ELBO().loss(*both, {"x": data()})


@pytest.mark.remedy('site "{}" of the {} was not there, or of ano')
def test_an_example_without_a_site() -> None:
    class Two(Pair):
        def site(self, more: bool, fn: Any) -> Any:
            return pyro.sample("w", fn) if more else 0.0

        def model(self, x: Tensor, more: bool) -> None:
            with pyro.plate("data", len(x)):
                z = pyro.sample("z", self.prior(x)) + self.site(more, self.prior(x))
                pyro.sample("x", dist.Normal(self.dec(z), 0.5).to_event(1), obs=x)

        def guide(self, x: Tensor, more: bool) -> None:
            with pyro.plate("data", len(x)):
                loc, raw = self.enc(x).chunk(2, -1)
                pyro.sample("z", self.q(loc, raw.exp()))
                self.site(more, self.q(loc, raw.exp()))

    pair, x = Two(), data()
    aef = vae2aef.from_pyro(pair.model, pair.guide, x, more=False)
    refusal(lambda: aef(x, more=True), "the example must show every site")
    assert vae2aef.from_pyro(pair.model, pair.guide, x, more=True)(x, more=True).isfinite()


@pytest.mark.remedy('site "{}": its mask differs between elements', 'site "{}": its mask differs between the dime')
def test_masks_inside_one_latent() -> None:
    class Steps(Pair):
        apart = False

        def sites(self, make: Callable[[int], Any], mask: Tensor) -> list[Tensor]:
            """One site with a plate of two steps, or a site a step."""
            if self.apart:
                return [self.masked(f"z_{t}", make(t), mask[:, t]) for t in range(2)]
            with pyro.plate("steps", 2, dim=-2), poutine.mask(mask=mask.t()):
                return list(pyro.sample("z", dist.Normal(*map(torch.stack, zip(*map(make, range(2)), strict=True)))))

        def masked(self, name: str, parameters: Any, mask: Tensor) -> Tensor:
            with poutine.mask(mask=mask):
                return pyro.sample(name, dist.Normal(*parameters))

        def model(self, x: Tensor, mask: Tensor) -> None:
            with pyro.plate("data", len(x), dim=-1):
                z = self.sites(lambda t: (x.new_zeros(len(x)), x.new_ones(len(x))), mask)
                pyro.sample("x", dist.Normal(self.dec(torch.stack(z, -1)), 0.5).to_event(1), obs=x)

        def guide(self, x: Tensor, mask: Tensor) -> None:
            loc, raw = self.enc(x).chunk(2, -1)
            with pyro.plate("data", len(x), dim=-1):
                self.sites(lambda t: (loc[:, t], raw[:, t].exp()), mask)

    pair, x, mask = Steps(), data(), torch.arange(2) < torch.tensor([[2], [1], [2], [2], [1], [2]])
    refusal(lambda: vae2aef.from_pyro(pair.model, pair.guide, x, mask)(x, mask), "use a site for each of them")
    pair.apart = True
    assert vae2aef.from_pyro(pair.model, pair.guide, x, mask)(x, mask).isfinite()
    inside = Pair(q=lambda loc, scale: dist.Normal(loc, scale).mask(mask).to_event(1))
    error = refusal(lambda: loss(inside, x), "mask whole events: ")
    inside.q = lambda loc, scale: eval(
        error.fix.partition(": ")[2].partition(", with")[0].replace("...", "loc, scale"),
        {"Normal": dist.Normal, "loc": loc, "scale": scale, "m": mask[:, 1]},
    )
    assert loss(inside, x)


@pytest.mark.remedy("from_pyro needs every latent site to be mapp", "the sites have different weights, {}, from p")
def test_what_only_the_loss_takes() -> None:
    pair, x = Pair(), data()
    pair.beside = lambda x: pyro.sample("g", dist.Gamma(torch.ones(len(x)), 1.0))
    refusal(lambda: vae2aef.from_pyro(pair.model, pair.guide, x), "loss=vae2aef.AEF_ELBO())")
    assert loss(pair, x)
    pyro.clear_param_store()
    pair = Pair(around=lambda x: poutine.scale(scale=0.5))
    refusal(lambda: vae2aef.from_pyro(pair.model, pair.guide, x), "loss=vae2aef.AEF_ELBO()), which honours weights")
    assert loss(pair, x)
    pair.around = lambda x: poutine.scale(scale=1.0)
    assert vae2aef.from_pyro(pair.model, pair.guide, x)


@pytest.mark.remedy('{} "{}" of the model: at the same latents it')
def test_a_model_that_sees_its_data() -> None:
    pair = Pair(mean=lambda z, x: pair.dec(z) + 0.9 * x)
    refusal(lambda: loss(pair), "Compute it from the latents alone")
    pair.mean = lambda z, x: pair.dec(z)
    assert loss(pair)


@pytest.mark.remedy("the guide {} is an effect handler that runs", "no site of the guide sees the data, so there")
def test_guides_that_do_not_see_the_data() -> None:
    pair, x = Pair(), data()
    auto = AutoNormal(pair.model)
    refusal(lambda: vae2aef.AEF_ELBO().loss(pair.model, auto, x), "needs an amortised guide")
    handler = poutine.block_messenger.BlockMessenger()
    refusal(lambda: vae2aef.AEF_ELBO().loss(pair.model, handler, x), "a function or PyroModule of the data")
    assert loss(pair, x)


@pytest.mark.remedy("no site of the guide can be mapped: {}.")
def test_no_family_that_can_be_mapped() -> None:
    pair = Pair(
        q=lambda loc, scale: dist.Gamma(loc.exp(), scale).to_event(1),
        prior=lambda x: dist.Gamma(x.new_ones(len(x), D), 1.0).to_event(1),
    )
    error = refusal(lambda: loss(pair), "TransformedDistribution over one")
    assert "Normal, Laplace, StudentT, Cauchy" in error.fix
    exp = [dist.transforms.ExpTransform()]
    pair.q = lambda loc, scale: dist.TransformedDistribution(dist.Normal(loc, scale).to_event(1), exp)
    assert loss(pair)


def test_a_refusal_through_pyro_comes_from_another_process() -> None:
    """Fault: it is of a class inside a function, which cannot be pickled, as workers of a pool do with errors."""
    pair, x = Pair(), data()
    split = poutine.reparam(pair.guide, {"z": LocScaleReparam(0.5)})
    with pytest.raises(vae2aef.WrapError) as caught:
        vae2aef.AEF_ELBO().loss(pair.model, split, x)
    for other in (pickle.loads(pickle.dumps(caught.value)), copy.copy(caught.value)):
        assert type(other) is vae2aef.WrapError and str(other) == str(caught.value)
        assert other.fix == caught.value.fix and other.reason == caught.value.reason and other.fix


@pytest.mark.remedy("the latent sites of model and guide must hav")
def test_names_that_differ() -> None:
    pair, x = Pair(), data()
    split = poutine.reparam(pair.guide, {"z": LocScaleReparam(0.5)})
    refusal(lambda: vae2aef.AEF_ELBO().loss(pair.model, split, x), "Rename them, or mark a helper site")

    def guide(x: Tensor, **infer: Any) -> None:
        pair.guide(x)
        pyro.sample("helper", dist.Normal(x, 1.0).to_event(2), **infer)

    error = refusal(lambda: vae2aef.AEF_ELBO().loss(pair.model, guide, x), "infer={'is_auxiliary': True}")
    infer = eval(error.fix.partition("infer=")[2])
    assert vae2aef.AEF_ELBO().loss(pair.model, lambda x: guide(x, infer=infer), x)
