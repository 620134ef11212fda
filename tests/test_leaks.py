"""For given z the decoder sees neither the data nor another row, however its parts came (issue 9)."""

import random
import re
import types
from typing import Any

import numpy as np
import pytest
import torch
import zoo_hierarchy
import zoo_wild
from torch import Tensor, nn
from zoo_core import SmallVAE
from zoo_wild import EVENT, LATENT, Plain

import vae2aef
from vae2aef.generators import seed as seed_generator
from vae2aef.holding import convert
from vae2aef.modes import modules, parameters, untouched


def data(rows: int = 6) -> Tensor:
    return torch.rand(rows, *EVENT)


def given(vae: Any) -> dict[str, Any]:
    return {"encoder": vae.encode, "decoder": vae.decode, "encoder_scale": "log_var"}


def lambdas(vae: Any) -> dict[str, Any]:
    return {"encoder": lambda x: vae.encode(x), "decoder": lambda z: vae.decode(z), "encoder_scale": "log_var"}


WAYS = {"names": lambda vae: {"encoder_scale": "log_var"}, "methods": given, "functions": lambdas}


def refused(vae: Any, match: str, example: Any = None, **options: Any) -> None:
    with pytest.raises(vae2aef.WrapError, match=match):
        vae2aef.wrap(vae, example=data() if example is None else example, **options)


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("cls", [zoo_wild.SkipsInAttribute, zoo_wild.HiddenSkips, zoo_wild.SkipsInTraining])
def test_features_kept_by_the_encoder_and_read_by_the_decoder(cls, way):
    """It was wrapped without a word once `encoder_scale=` was given, and log p(x) 70 nats too high."""
    match = {
        zoo_wild.SkipsInAttribute: r"^for given z the decoder's mean moves with the data .* keeps in `skip`\)",
        zoo_wild.HiddenSkips: "^for given z a gradient leads from the decoder's output to the data",
        zoo_wild.SkipsInTraining: r"^in training mode for given z the decoder's mean moves",
    }[cls]
    vae = cls()
    refused(vae, match + ".*: the decoder sees the data beside z", **WAYS[way](vae))


def test_a_pair_without_a_module():
    kept: list[Tensor] = []

    def encoder(x: Tensor) -> tuple[Tensor, Tensor]:
        kept[:] = [x]
        return x.flatten(1)[:, :2], torch.ones(len(x), 2)

    def decoder(z: Tensor) -> Tensor:
        return kept[0] * z.sum(1)[:, None, None]

    refused(None, "^for given z the decoder's mean moves", encoder=encoder, decoder=decoder, encoder_scale="std")


def test_a_scale_that_leaks():
    class Leaking(zoo_wild.SkipsInAttribute):
        forward = nn.Module.forward

        def decode(self, z: Tensor) -> Any:
            return self.tail(z), 1 + self.skip

    options = {"encoder_scale": "log_var", "decoder_scale": "std"}
    refused(Leaking(), "^for given z the decoder's scale moves", **options)


def test_a_density_that_leaks():
    class Leaking(zoo_wild.SkipsInAttribute):
        forward = nn.Module.forward

        def encode(self, x: Tensor) -> Any:
            mu, log_var = super().encode(x)
            return torch.distributions.Normal(mu, (0.5 * log_var).exp())

        def decode(self, z: Tensor) -> Any:
            return torch.distributions.StudentT(3.0, self.tail(z), 1 + self.skip)

    refused(Leaking(), "^for given z the decoder's log density moves")


# ---------------------------------------------------------------------- conditions


class Told(SmallVAE):
    """Takes conditions as wide as the data."""

    def __init__(self) -> None:
        super().__init__(EVENT, (LATENT,), classes=10)

    def _flat(self, c: Tensor) -> Tensor:
        return c.reshape(len(c), -1)

    def encoder(self, x: Tensor, *cond: Tensor, label: Tensor | None = None) -> Any:
        return super().encoder(x, *map(self._flat, cond), label=None if label is None else self._flat(label))

    def decoder(self, z: Tensor, *cond: Tensor, label: Tensor | None = None) -> Any:
        return super().decoder(z, *map(self._flat, cond), label=None if label is None else self._flat(label))


@pytest.mark.parametrize("preprocess", [None, "logit"])
def test_a_condition_that_equals_the_data_is_named(preprocess):
    x = 0.02 + 0.9 * data()
    options = {"encoder_scale": "log_std", "preprocess": preprocess}
    refused(
        Told(),
        "^condition 1 is the data, as they are or scaled, and the decoder's output moves",
        (x, x.clone()),
        **options,
    )
    refused(Told(), "^the condition `label` is the data", (x, {"label": x.flatten(1)}), **options)
    refused(Told(), "^condition 1 is the data, as they are or scaled", (x, 0.1 - 2 * x), **options)
    assert vae2aef.wrap(Told(), example=(x, x.square()), **options)(x, x.square()).isfinite()


def test_a_label_that_equals_data_of_one_value_a_row_is_a_label():
    vae, x = SmallVAE((1,), (LATENT,), classes=1), torch.rand(6, 1).round()
    aef = vae2aef.wrap(vae, example=(x, x.clone()), encoder_scale="log_std")
    z = torch.randn(6, LATENT)
    assert not torch.allclose(aef.decode(z, x), aef.decode(z, 1 - x))


def test_a_condition_that_equals_the_data_in_a_traced_forward():
    class Added(Plain):
        def forward(self, x: Tensor, c: Tensor) -> Any:
            return super().forward(x)[0] + c

    x = data()
    refused(Added(), "^condition 1 is the data, as they are or scaled, and the decoder's output moves", (x, x.clone()))
    assert vae2aef.wrap(Added(), example=(x, x.square()))(x, x.square()).isfinite()


def test_a_target_that_the_decoder_does_not_see_may_be_the_data():
    class WithTarget(Plain):
        def forward(self, x: Tensor, target: Tensor) -> Any:
            out, *_ = super().forward(x)
            return {"loss": (out - target).square().mean(), "out": out}

    x = data()
    aef = vae2aef.wrap(WithTarget(), example=(x, x))
    assert aef(x, x).isfinite()


# ---------------------------------------------------------------------- rows


class Mixing(Plain):
    """Mixes rows in encoder or decoder, in eval mode too."""

    forward = nn.Module.forward

    def __init__(self, where: str) -> None:
        super().__init__()
        self.where = where

    def encode(self, x: Tensor) -> Any:
        mu, log_var = super().encode(x)
        mu = mu - mu.mean(0) if self.where == "location" else mu
        return mu, log_var - log_var.mean(0) if self.where == "scale" else log_var

    def decode(self, z: Tensor) -> Any:
        mean = self.tail(z - z.mean(0) if self.where == "mean" else z)
        spread = (mean - mean.mean(0) if self.where == "decoder's scale" else mean).exp()
        return mean, spread


@pytest.mark.parametrize("where", ["location", "scale", "mean", "decoder's scale"])
@pytest.mark.parametrize("rows", [1, 6])
def test_rows_that_mix(where, rows):
    match = r"^in eval mode the (en|de)coder's " + where.split()[-1] + " for one row moves with another row:"
    refused(Mixing(where), match, data(rows), encoder_scale="log_var", decoder_scale="std")
    vae2aef.wrap(Mixing("nowhere"), example=data(rows), encoder_scale="log_var", decoder_scale="std")


def test_rows_that_mix_in_a_traced_forward():
    class Traced(Plain):
        def decode(self, z: Tensor) -> Any:
            return self.tail(z - z.mean(0))

    refused(Traced(), "^in eval mode the decoder's mean for one row moves with another row: ")


def test_a_batch_normalisation_without_statistics_is_named():
    vae = Plain()
    vae.tail.insert(1, nn.BatchNorm1d(8, track_running_stats=False))
    refused(vae, r"moves with another row \(`tail.1` has no running statistics\)", encoder_scale="log_var")
    vae.tail[1] = nn.GroupNorm(2, 8)  # as the message says
    vae2aef.wrap(vae, example=data())


@pytest.mark.parametrize("way", ["nothing", *WAYS])
def test_batch_normalisation_mixes_rows_in_training_as_it_should(way):
    vae = zoo_wild.BatchNormed()
    before = {name: t.clone() for name, t in vae.state_dict().items()}
    vae2aef.wrap(vae, example=data(), **({} if way == "nothing" else WAYS[way](vae)))
    assert all(torch.equal(t, before[name]) for name, t in vae.state_dict().items()) and vae.training


def test_an_own_normalisation_by_the_batch_is_told_by_its_statistics():
    class Own(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.register_buffer("centre", torch.zeros(8))

        def forward(self, h: Tensor) -> Tensor:
            if not self.training:
                return h - self.centre
            self.centre.lerp_(h.detach().mean(0), 0.1)
            return h - h.mean(0)

    vae = Plain()
    vae.tail.insert(1, Own())
    for options in ({}, given(vae)):
        vae2aef.wrap(vae, example=data(), **options)


def test_data_mixed_by_numpy_in_training():
    refused(
        zoo_wild.MixesInTraining(), "^in training mode the decoder's mean for one row moves", encoder_scale="log_var"
    )


@pytest.mark.parametrize("generator", ["torch", "random", "numpy"])
def test_rows_mixed_in_some_passes_only(generator):
    """The first pass of the proof draws what leaves them alone, and is not the last one."""
    draw = {"torch": lambda: torch.rand(()).item(), "random": random.random, "numpy": np.random.rand}[generator]
    seed = {"torch": torch.manual_seed, "random": random.seed, "numpy": np.random.seed}[generator]
    seed(0)
    first = draw()

    class Mixed(Plain):
        forward = nn.Module.forward

        def decode(self, z: Tensor) -> Any:
            return self.tail(z - z.mean(0) if self.training and draw() != first else z)

    refused(Mixed(), "^in training mode the decoder's mean for one row moves", encoder_scale="log_var")


def test_dropout_and_noise_in_training_are_no_leak():
    class Noisy(Plain):
        forward = nn.Module.forward

        def encode(self, x: Tensor) -> Any:
            shift = (random.random() + np.random.rand()) if self.training else 0.0
            return super().encode(x + shift + (0.1 * torch.randn_like(x) if self.training else 0))

        def decode(self, z: Tensor) -> Any:
            return nn.functional.dropout(self.tail(z), 0.5, self.training)

    x = data()
    states = random.getstate(), np.random.get_state()[1].tolist(), torch.get_rng_state()
    vae = Noisy()
    torch.set_rng_state(states[2])
    vae2aef.wrap(vae, example=x, encoder_scale="log_var", core="noise", core_flow="none")
    assert states[0] == random.getstate() and states[1] == np.random.get_state()[1].tolist()
    assert torch.equal(states[2], torch.get_rng_state())


OF_ITS_OWN = {
    "NumPy": lambda: np.random.default_rng(0), "old NumPy": lambda: np.random.RandomState(0),
    "Python": lambda: random.Random(0), "torch": lambda: torch.Generator().manual_seed(0),
}  # fmt: skip
IN_GLOBALS = np.random.default_rng(0)


def number(generator: Any) -> float:
    return torch.rand((), generator=generator).item() if isinstance(generator, torch.Generator) else generator.random()


class Augmented(Plain):
    """Shifts the data, or mixes rows, by a generator that is no global one, in training."""

    forward = nn.Module.forward

    def __init__(self, generator: Any, mixes: bool = False) -> None:
        super().__init__()
        self.generators, self.mixes = [generator], mixes

    def encode(self, x: Tensor) -> Any:
        if self.training:
            shift = number(self.generators[0]) + IN_GLOBALS.random()
            x = x + shift * (x.mean(0) if self.mixes else 1)
        return super().encode(x)


@pytest.mark.parametrize("kind", OF_ITS_OWN)
def test_generators_of_its_own_are_seeded_and_left_where_they_were(kind):
    """An augmentation by NumPy's default_rng was said to mix rows."""
    vae = Augmented(OF_ITS_OWN[kind]())
    place = IN_GLOBALS.bit_generator.state
    vae2aef.wrap(vae, example=data(), encoder_scale="log_var")
    assert number(vae.generators[0]) == number(OF_ITS_OWN[kind]()) and IN_GLOBALS.bit_generator.state == place
    mixing = Augmented(OF_ITS_OWN[kind](), mixes=True)
    refused(mixing, "^in training mode the encoder's location for one row moves with another", encoder_scale="log_var")
    assert number(mixing.generators[0]) == number(OF_ITS_OWN[kind]())


@pytest.mark.parametrize("kind", OF_ITS_OWN)
def test_a_decoder_that_draws_by_a_generator_of_its_own_mixes_rows_by_chance(kind):
    class Mixed(Augmented):
        def encode(self, x: Tensor) -> Any:
            return Plain.encode(self, x)

        def decode(self, z: Tensor) -> Any:
            chance = number(self.generators[0])
            return self.tail(z - z.mean(0) if self.training and chance != first else z)

    vae = Mixed(OF_ITS_OWN[kind]())
    seed_generator(vae.generators[0], 0)  # as the first pass of the proof
    first = number(vae.generators[0])
    refused(vae, "^in training mode the decoder's mean for one row moves with another row", encoder_scale="log_var")


@pytest.mark.remedy("{}the {} is another at each call")
@pytest.mark.parametrize("where", ["encode", "decode"])
def test_what_cannot_be_repeated_is_told_so_and_the_remedy_works(where):
    class Shifted(Plain):
        forward = nn.Module.forward

        def shift(self) -> float:
            return self.source.numbers.random() if self.training else 0.0

        def encode(self, x: Tensor) -> Any:
            return super().encode(x + self.shift() if where == "encode" else x)

        def decode(self, z: Tensor) -> Any:
            return self.tail(z) + self.shift() if where == "decode" else self.tail(z)

    vae = Shifted()
    vae.source = types.SimpleNamespace(numbers=random.Random(0))
    what = {"encode": "location", "decode": "mean"}[where]
    refused(vae, f"^in training mode the {what} is another at each call, with the same data", encoder_scale="log_var")
    vae.numbers = vae.source.numbers  # as the message says: an attribute of the module
    vae2aef.wrap(vae, example=data(), encoder_scale="log_var")


def test_a_traced_forward_leaves_all_random_states():
    class Noisy(Plain):
        def forward(self, x: Tensor) -> Any:
            return super().forward(x + (random.random() + np.random.rand() if self.training else 0.0))

    states = random.getstate(), np.random.get_state()[1].tolist()
    vae2aef.wrap(Noisy(), example=data())
    assert states == (random.getstate(), np.random.get_state()[1].tolist())


# ---------------------------------------------------------------------- several latents


def test_a_program_that_leaks():
    class Leaking(zoo_hierarchy.TwoLevels):
        pass

    class Parts(vae2aef.VAEProgram):
        def __init__(self, inner: vae2aef.VAEProgram, how: str) -> None:
            self.inner, self.how = inner, how

        def infer(self, x: Tensor) -> Any:
            return self.inner.infer(x), x

        def run(self, place: Any, state: Any) -> vae2aef.Decoded:
            decoded = self.inner.run(place, None if state is None else state[0])
            if self.how == "rows":
                return vae2aef.Decoded(decoded.mean - decoded.mean.mean(0))
            leak = 0.0 if state is None or self.how == "nothing" else state[1].reshape(decoded.mean.shape)
            return vae2aef.Decoded(decoded.mean + leak)

    name, how = f"{Leaking.__module__}.{Leaking.__qualname__}", "nothing"
    vae2aef.register_adapter(name)(lambda vae, x, **kwargs: Parts(zoo_hierarchy.Parts(vae), how))
    vae, x = Leaking(), torch.rand(6, zoo_hierarchy.N)
    assert "not compared with a forward" in repr(vae2aef.wrap(vae, example=x))
    how = "leak"
    refused(vae, "^for given z the decoder's mean moves", x)
    how = "rows"
    refused(vae, "^in eval mode the decoder's mean for one row moves", x)


# ---------------------------------------------------------------------- no trace left


class Counting(zoo_wild.SkipsInAttribute):
    """Counts its calls, and keeps what it has seen, in all ways there are."""

    def __init__(self) -> None:
        super().__init__()
        self.calls, self.seen, self.cache = 0, [], {"last": [None]}
        self.register_buffer("count", torch.zeros((), dtype=torch.long))

    def encode(self, x: Tensor) -> Any:
        self.calls += 1
        self.count += 1
        self.seen.append(x)
        self.cache["last"][0] = x
        self.late = x
        return super().encode(x)


class SoundCounting(Counting):
    def decode(self, z: Tensor) -> Any:
        return self.tail(z)


@pytest.mark.parametrize("cls", [Counting, SoundCounting])
def test_wrapped_or_refused_nothing_is_left_behind(cls):
    for options in ({}, {"encoder_scale": "log_var"}, {"encoder_scale": "std"}):
        vae = cls()
        vae.tail.eval()
        names, modes = set(vars(vae)), [m.training for m in vae.modules()]
        for more in (options, {**given(vae), **options}):
            try:
                vae2aef.wrap(vae, example=data(), **more)
            except vae2aef.WrapError:
                assert cls is Counting or more["encoder_scale"] == "std"
            assert set(vars(vae)) == names and modes == [m.training for m in vae.modules()]
            assert (vae.calls, vae.seen, vae.cache, int(vae.count)) == (0, [], {"last": [None]}, 0)


def test_parameters_that_a_training_pass_moves_are_left_where_they_were():
    class Averages(Plain):
        def __init__(self) -> None:
            super().__init__()
            self.centre = nn.Parameter(torch.zeros(LATENT), requires_grad=False)
            self.book, self.own = nn.Embedding(4, LATENT), nn.Parameter(torch.zeros(LATENT))

        def forward(self, x: Tensor) -> Any:
            out, mu, logvar = super().forward(x)
            for moved in (self.centre, self.own, self.book.weight[0]) if self.training else ():
                moved.data.lerp_(mu.detach().mean(0), 0.1)
            return out + 0 * self.own.sum() + 0 * self.book.weight.sum(), mu, logvar

    vae = Averages()
    before = {name: t.clone() for name, t in vae.state_dict().items()}
    vae2aef.wrap(vae, example=data())
    assert all(torch.equal(t, before[name]) for name, t in vae.state_dict().items())
    vae(data())
    assert not any(torch.equal(t, before[name]) for name, t in vae.state_dict().items() if name in ("centre", "own"))


class Overrides(Plain):
    """Says something else by the names of `nn.Module`'s methods, as the losses of pixyz do by `eval`."""

    def eval(self, data: Any) -> Any:  # type: ignore[override]
        raise ValueError("input is not given")

    def train(self, mode: bool, data: Any) -> Any:  # type: ignore[override]
        raise ValueError("input is not given")

    def parameters(self, data: Any) -> Any:  # type: ignore[override]
        raise ValueError("input is not given")

    modules = buffers = named_parameters = named_modules = parameters  # type: ignore[assignment]
    children = named_children = apply = parameters  # type: ignore[assignment]


class Parent(nn.Module):
    """Holds one, and is as usual."""

    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner = inner

    def forward(self, x: Tensor) -> Any:
        return self.inner(x)


@pytest.mark.parametrize("options", [{}, {"encoder_scale": "log_var"}, "given"])
def test_what_a_user_may_have_overridden_is_not_called(options):
    vae, x = Overrides(), data()
    for whole in (vae, Parent(vae)):
        aef = vae2aef.wrap(whole, example=x, **(given(vae) if options == "given" else options))
        assert aef(x).isfinite() and aef.sample(2).shape == (2, *EVENT)
        assert aef.log_prob(x, num_samples=4, proposal="tuned").value.shape == (6,)
        own = {id(p) for p in parameters(vae)}
        assert list(aef.modules()) == modules(aef) == list(nn.ModuleList([aef]).modules())[1:]
        assert {id(p) for p in aef.parameters()} - own == {id(p) for p in aef.added_parameters()}
        for mode, turn in ((True, aef.train), (False, aef.eval), (True, aef.train)):
            assert turn() is aef and all(m.training is mode for m in modules(aef))
        assert re.search("core", repr(aef)) and aef.summary() and vae2aef.check(whole, example=x).ok
        assert aef.double() is aef and {t.dtype for t in parameters(aef)} == {torch.float64} and aef.vae is whole
        assert aef(x.double()).isfinite() and next(iter(parameters(aef))).is_leaf
        assert {t.dtype for t in parameters(aef.to(torch.float32))} == {torch.float32}


def test_what_a_class_does_when_it_is_moved_is_done():
    """As recurrent networks do, whose weights lie in one piece of memory; modules that are shared stay shared."""

    class Moved(Plain):
        moved = 0

        def _apply(self, fn: Any, recurse: bool = True) -> Any:
            self.moved += 1
            return super()._apply(fn, recurse)

    aef = vae2aef.wrap(Parent(Moved()), example=data())
    aef.double()
    assert aef.vae.inner.moved == 1 and {t.dtype for t in parameters(aef)} == {torch.float64}
    norm = nn.BatchNorm1d(3)
    twice = convert(nn.ModuleList([norm, norm]), lambda t: t.double() if t.is_floating_point() else t)
    assert twice[0] is twice[1] is norm and norm.running_mean.dtype == norm.weight.dtype == torch.float64
    assert norm.num_batches_tracked.dtype == torch.int64


@pytest.mark.parametrize("required", [True, False])
def test_a_train_that_trains_is_not_called(required):
    class Trains(Plain):
        if required:

            def train(self, loader: Any) -> Any:  # type: ignore[override]
                raise ValueError("it trains")

        else:

            def train(self, data: Any = None, epochs: int = 3) -> Any:  # type: ignore[override]
                raise ValueError("it trains")

    aef = vae2aef.wrap(Trains(), example=data())
    aef.eval()
    assert not aef.vae.training and not aef.vae.body.training
    aef.train()
    assert aef.vae.training and aef.vae.body.training


def test_a_train_of_its_own_that_takes_a_mode_is_called():
    """As it is by those who keep a part in evaluation mode."""

    class Frozen(Plain):
        def train(self, mode: bool = True) -> Any:
            super().train(mode)
            self.body.training = False
            return self

    for whole in (Frozen(), Parent(Frozen())):
        vae = getattr(whole, "inner", whole)
        aef = vae2aef.wrap(whole, example=data()).train()
        assert vae.training and vae.tail.training and not vae.body.training
        assert not any(m.training for m in modules(aef.eval()))


def test_untouched_gives_back_what_containers_held():
    module = nn.Module()
    module.deep, module.rows, module.names = {"a": [1, {2}]}, [[0]], {3}
    deep = module.deep
    with untouched(module):
        module.deep["a"][1].add(5)
        module.deep["b"] = 1
        module.rows[0].append(1)
        module.rows = None
        module.names.clear()
    assert module.deep is deep and (module.deep, module.rows, module.names) == ({"a": [1, {2}]}, [[0]], {3})


# ---------------------------------------------------------------------- Pyro programs of several sites


@pytest.mark.parametrize("way", ["nothing", "kept", "kept in training", "rows", "rows of z", "rows in training"])
def test_a_pyro_program_that_leaks(way):
    """Features that the guide keeps, and rows that mix; batch normalisation in training may."""
    pyro = pytest.importorskip("pyro")
    dist = pyro.distributions

    class Program(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.enc, self.dec = nn.Linear(4, 4), nn.Linear(4, 4)
            self.norm = nn.BatchNorm1d(4)

        def guide(self, x: Tensor) -> None:
            self.skip = x
            first, second = self.enc(x).chunk(2, 1)
            with pyro.plate("data", len(x)):
                pyro.sample("a", dist.Normal(first, 0.5).to_event(1))
                pyro.sample("b", dist.Normal(second, 0.5).to_event(1))

        def model(self, x: Tensor) -> None:
            zeros = x.new_zeros(len(x), 2)
            with pyro.plate("data", len(x)):
                a = pyro.sample("a", dist.Normal(zeros, 1.0).to_event(1))
                b = pyro.sample("b", dist.Normal(zeros, 1.0).to_event(1))
                mean = self.norm(self.dec(torch.cat([a, b], 1)))
                if way == "kept" or (way == "kept in training" and self.training):
                    mean = mean + 0.5 * self.skip
                if way == "rows" or (way == "rows in training" and self.training):
                    mean = mean + x.sum(0) - x
                if way == "rows of z":
                    mean = mean - b.mean()
                pyro.sample("x1", dist.Normal(mean[:, :2], 1.0).to_event(1), obs=x[:, :2])
                pyro.sample("x2", dist.Normal(mean[:, 2:] + x[:, :2], 1.0).to_event(1), obs=x[:, 2:])

    pyro.clear_param_store()
    program, x = Program(), torch.randn(6, 4)
    if way == "nothing":
        assert vae2aef.from_pyro(program.model, program.guide, x)(x).isfinite()
        return
    mode = "^in training mode " if way == "kept in training" else "^"
    says = {
        "kept": "for given z the model's density of x moves",
        "kept in training": "for given z the model's density of x moves",
        "rows of z": "the model's density for one row moves",
    }.get(way, 'observed site "x1" of the model: at the same latents its density moves with x')
    with pytest.raises(vae2aef.WrapError, match=mode + says):
        vae2aef.from_pyro(program.model, program.guide, x)
