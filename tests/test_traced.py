"""The traced adapter on the zoo: equal to the described VAE, or refused with the right reason; it leaves no trace."""

import copy
import io
import pickle
import weakref
from collections import namedtuple
from pathlib import Path

import pytest
import torch
import zoo
from torch import Tensor, nn

import vae2aef
from vae2aef.batch import Batch
from vae2aef.comparison.nets import ConvVAE
from vae2aef.tracing.alive import Notes
from vae2aef.tracing.calls import tensors
from vae2aef.tracing.parts import TracedParts
from vae2aef.tracing.proof import trace
from vae2aef.tracing.recording import Known


@pytest.fixture(autouse=True)
def double():
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(torch.float32)


def make(cls: type[nn.Module], **options) -> tuple[nn.Module, tuple, vae2aef.AEF]:
    torch.manual_seed(0)
    vae = cls()
    x = zoo.example(vae)
    torch.manual_seed(1)
    aef = vae2aef.wrap(vae, example=x, **{"noise": 0.0, "core_flow": "coupling", **options})
    assert isinstance(aef.parts, TracedParts)
    return vae, x, aef


def described(vae: nn.Module, x: tuple, **options) -> vae2aef.AEF:
    torch.manual_seed(1)
    return vae2aef.wrap(vae, example=x, **vae.described(), **{"noise": 0.0, "core_flow": "coupling", **options})


def gradients(aef: vae2aef.AEF, x: tuple) -> dict[str, Tensor | None]:
    aef.zero_grad()
    torch.manual_seed(2)
    aef(*x).backward()
    return {name: p.grad for name, p in aef.named_parameters()}


def close(a: Tensor, b: Tensor, name: str = "") -> None:
    torch.testing.assert_close(a, b, rtol=1e-9, atol=1e-9, msg=lambda text: f"{name}: {text}")


every = pytest.mark.parametrize("cls", zoo.CONVERTIBLE.values(), ids=zoo.CONVERTIBLE.keys())


@every
@pytest.mark.parametrize("training", [False, True], ids=["eval", "train"])
def test_equals_the_described_vae(cls, training):
    vae, x, traced = make(cls, prior="coupling")
    by_hand = described(vae, x, prior="coupling")
    traced.train(training), by_hand.train(training)
    terms = []
    for aef in (traced, by_hand):
        torch.manual_seed(2)  # for dropout
        terms.append(aef(*x, terms=True))
    for one, other in zip(*terms, strict=True):
        close(one, other)
    z = torch.randn(x[0].shape[0], *traced.latent_shape)
    close(traced.encode(*x), by_hand.encode(*x), "encode")
    if not (training and cls is zoo.OnlyWhenTraining):  # dropout acts alone, elsewhere in the random stream
        close(traced.decode(z, *x[1:]), by_hand.decode(z, *x[1:]), "decode")
        close(traced.expanded_log_prob(*x), by_hand.expanded_log_prob(*x), "expanded_log_prob")
    expected, got = gradients(by_hand, x), gradients(traced, x)
    assert expected.keys() == got.keys()
    for name, grad in expected.items():
        assert (grad is None) == (got[name] is None), name
        if grad is not None:
            close(got[name], grad, name)


@pytest.mark.parametrize(
    "options",
    [
        {"core": "center"}, {"noise": 0.3}, {"noise": 0.3, "core_flow": "none"}, {"core": "noise"},
        {"residual": "decoder"},
    ],
)  # fmt: skip
@pytest.mark.parametrize("cls", [zoo.Conditional, zoo.NormalDecoder], ids=lambda cls: cls.__name__)
def test_equals_the_described_vae_with_other_options(cls, options):
    if options == {"residual": "decoder"} and cls is zoo.Conditional:
        pytest.skip("its decoder has no scale")
    vae, x, traced = make(cls, **options)
    given = {k: v for k, v in vae.described().items() if k != "likelihood" or options != {"residual": "decoder"}}
    torch.manual_seed(1)
    by_hand = vae2aef.wrap(vae, example=x, **given, **{"noise": 0.0, "core_flow": "coupling", **options})
    for aef in (traced, by_hand):
        torch.manual_seed(2)
        aef.result = aef(*x, terms=True)
    for one, other in zip(traced.result, by_hand.result, strict=True):
        close(one, other)
    z = torch.randn(x[0].shape[0], *traced.latent_shape)
    close(traced.decode(z, *x[1:]), by_hand.decode(z, *x[1:]))


@pytest.mark.parametrize(
    "name", ["LogVar", "Chunked", "Conditional", "Spatial", "OnlyWhenTraining", "CheckpointedDecoder", "OldVariable"]
)
@pytest.mark.usefixtures("quick_tuning")
def test_marginal_and_samples(name):
    """With the same importance samples, the same marginal."""
    cls = zoo.CONVERTIBLE[name]
    vae, x, traced = make(cls)
    by_hand = described(vae, x)
    values = []
    for aef in (traced, by_hand):
        torch.manual_seed(2)
        values.append(aef.log_prob(*x, num_samples=32, proposal="tuned"))
    close(values[0].value, values[1].value)
    assert values[0].value.isfinite().all()
    n = x[0].shape[0]
    assert traced.sample(n, *x[1:]).shape == x[0].shape


@every
def test_with_white_noise_it_is_the_vae(cls):
    """core="noise": u is drawn, z = loc + scale * u for what the person who knows the VAE calls loc and scale."""
    vae, x, aef = make(cls, core="noise", core_flow="none", kl="sampled")
    aef.eval()
    given = vae.described()
    by_hand = vae2aef.parts.CallableParts(given["encoder"], given["decoder"], given["encoder_scale"])
    with torch.no_grad():
        torch.manual_seed(3)
        terms = aef(*x, terms=True)
        loc, scale = by_hand.encode(*x)[:2]
        torch.manual_seed(3)
        u = torch.randn(loc.shape)
        close(terms.z, loc + scale * u)
        close(terms.log_det, scale.log().flatten(1).sum(1))
        close(terms.prior, torch.distributions.Normal(0.0, 1.0).log_prob(terms.z).flatten(1).sum(1))
        close(terms.reconstruction, by_hand.decode(terms.z, *x[1:]).mean.reshape(x[0].shape))


@pytest.mark.parametrize("cls", zoo.REFUSED, ids=lambda cls: cls.__name__)
def test_refused(cls):
    torch.manual_seed(0)
    vae = cls()
    before = snapshot(vae)
    with pytest.raises(vae2aef.WrapError, match=zoo.REFUSED[cls]) as error:
        vae2aef.wrap(vae, example=zoo.example(vae))
    assert str(error.value).count("Random draws seen") == 1
    assert_same(snapshot(vae), before)


def snapshot(vae: nn.Module) -> list:
    return [
        (dict(m.__dict__), list(m._buffers.items()), list(m._parameters.items()), list(m._forward_hooks))
        for m in vae.modules()
    ] + [{name: t.clone() for name, t in vae.state_dict().items()}]


def assert_same(after: list, before: list) -> None:
    *modules, state = after
    *modules_before, state_before = before
    for one, other in zip(modules, modules_before, strict=True):
        for a, b in zip(one[:3], other[:3], strict=True):
            pairs = zip(a.items(), b.items(), strict=True) if isinstance(a, dict) else zip(a, b, strict=True)
            for (key, value), (key_before, value_before) in pairs:
                assert key == key_before and value is value_before, key
    assert state.keys() == state_before.keys()
    assert all(torch.equal(state[name], state_before[name]) for name in state)


@every
def test_the_vae_is_left_as_it_was(cls):
    torch.manual_seed(0)
    vae = cls()
    x = zoo.example(vae)
    vae.eval()
    random_state = torch.get_rng_state()
    expected = tensors(vae(*x))
    vae.train()
    torch.set_rng_state(random_state)
    before, modes = snapshot(vae), [m.training for m in vae.modules()]
    trace(vae, Batch(x[0], x[1:]))
    assert_same(snapshot(vae), before)
    assert modes == [m.training for m in vae.modules()]
    assert torch.equal(torch.get_rng_state(), random_state)
    vae.eval()
    assert all(torch.equal(a, b) for a, b in zip(tensors(vae(*x)), expected, strict=True))


def test_batch_statistics_are_taken_once_a_step():
    vae, (x,), aef = make(zoo.BatchNormAndInPlace)
    aef.train()
    counts = [m.num_batches_tracked for m in vae.modules() if isinstance(m, nn.BatchNorm1d)]
    before = [c.item() for c in counts]
    z = aef.encode(x)
    aef.decode(z)
    assert [c.item() for c in counts] == before
    aef(x).backward()
    assert [c.item() for c in counts] == [c + 1 for c in before]


@pytest.mark.parametrize("options", [{}, {"kl": "sampled"}, {"noise": 0}, {"core_flow": "coupling"}])
def test_the_vae_is_run_once_a_step(options):
    """Fault: the closed form of the KL asks the posterior for the mean of z: another pass, and a third to decode."""
    vae, (x,), _ = make(zoo.BatchNormAndInPlace)
    aef = vae2aef.wrap(vae, example=x, **options).train()
    counts = [m.num_batches_tracked for m in vae.modules() if isinstance(m, nn.BatchNorm1d)]
    before, runs = [c.item() for c in counts], []
    vae.register_forward_pre_hook(lambda *_: runs.append(1))
    aef(x).backward()
    assert [c.item() for c in counts] == [c + 1 for c in before] and len(runs) == 1


@pytest.mark.parametrize("name", ["LogVar", "Chunked", "Rsample", "OldVariable", "OnlyWhenTraining"])
def test_without_gradients(name):
    _, (x,), aef = make(zoo.CONVERTIBLE[name])
    aef.eval()
    expected = aef(x).detach()
    with torch.no_grad():
        close(aef(x), expected)
        assert not aef.encode(x).requires_grad
        assert not aef(x, terms=True).reconstruction.requires_grad
    with torch.inference_mode():
        close(aef(x), expected)
        close(aef(x.clone()), expected)


Pair = namedtuple("Pair", "a b")


class TakesMany(nn.Module):
    """A VAE whose condition is a list, a named tuple or a packed sequence.

    Of the first two it multiplies with an item as it is, which autograd keeps: in the noise, and in what it decodes.
    """

    def __init__(self):
        super().__init__()
        self.q, self.p = nn.Linear(6, 4), nn.Linear(4, 4)

    def read(self, c):
        if isinstance(c, nn.utils.rnn.PackedSequence):
            return nn.utils.rnn.pad_packed_sequence(c, batch_first=True)[0].flatten(1), torch.ones(())
        return torch.cat(list(c), 1), c[0]

    def encode(self, x, c):
        read, factor = self.read(c)
        mean, log_var = self.q(torch.cat([x, read], 1)).chunk(2, 1)
        return mean, log_var + 2 * factor.log()

    def decode(self, z, c):
        read, factor = self.read(c)
        return self.p(torch.cat([z, read], 1)) * factor

    def forward(self, x, c):
        read, factor = self.read(c)
        mean, log_var = self.q(torch.cat([x, read], 1)).chunk(2, 1)
        z = mean + torch.randn_like(mean) * factor * torch.exp(0.5 * log_var)
        return self.decode(z, c), mean, log_var


@pytest.mark.parametrize("traced", [True, False], ids=["traced", "described"])
@pytest.mark.parametrize("kind", ["list", "named tuple", "packed"])
def test_conditions_made_in_inference_mode(kind, traced):
    def condition():
        c = torch.linspace(0.5, 1, 10).reshape(5, 2)
        if kind == "packed":
            return nn.utils.rnn.pack_padded_sequence(c.unsqueeze(2), [2] * 5, batch_first=True)
        return [c[:, :1], c[:, 1:]] if kind == "list" else Pair(c[:, :1], c[:, 1:])

    torch.manual_seed(0)
    vae, x = TakesMany(), torch.randn(5, 4)
    said = {} if traced else {"encoder": vae.encode, "decoder": vae.decode, "encoder_scale": "log_var"}
    aef = vae2aef.wrap(vae, example=(x, condition()), noise=0.0, **said)
    expected = [
        aef(x, condition()),
        aef.reconstruct(x, condition()),
        aef.log_prob(x, condition(), num_samples=4, seed=0),
    ]
    with torch.inference_mode():
        c = condition()
        close(aef(x.clone(), c), expected[0])
        close(aef.reconstruct(x.clone(), c), expected[1])
        close(aef.log_prob(x.clone(), c, num_samples=4, seed=0).value, expected[2].value)


def test_saved_copied_and_converted():
    _, (x,), aef = make(zoo.Rsample)
    expected = aef(x)
    close(copy.deepcopy(aef)(x), expected)
    close(pickle.loads(pickle.dumps(aef))(x), expected)
    buffer = io.BytesIO()
    torch.save(aef.state_dict(), buffer)
    buffer.seek(0)
    _, _, other = make(zoo.Rsample)
    with torch.no_grad():
        for p in other.parameters():
            p.zero_()
    other.load_state_dict(torch.load(buffer))
    close(other(x), expected)
    single = copy.deepcopy(aef).float()
    torch.testing.assert_close(single(x.float()).double(), expected, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(single.decode(single.encode(x.float())).double(), aef.reconstruct(x), atol=1e-5, rtol=0)


@every
def test_empty_batch(cls):
    _, (x, *cond), aef = make(cls)
    x, *cond = (each[:0] for each in (x, *cond))
    before = {name: value.clone() for name, value in aef.state_dict().items()}
    assert aef.train()(x, *cond) == 0
    assert all(torch.equal(value, before[name]) for name, value in aef.state_dict().items())
    assert aef.log_prob(x, *cond).value.shape == aef.log_prob(x, *cond, proposal="laplace").value.shape == (0,)
    assert aef.encode(x, *cond).shape == (0, *aef.latent_shape) and aef.reconstruct(x, *cond).shape == x.shape


def test_one_row():
    _, (x,), aef = make(zoo.LogVar)
    close(aef.expanded_log_prob(x[:1]), aef.expanded_log_prob(x)[:1])


def test_autocast():
    _, (x,), aef = make(zoo.Rsample)
    aef.float()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        loss = aef(x.float())
    loss.backward()
    assert loss.isfinite() and loss.dtype == torch.float32
    torch.testing.assert_close(loss, aef(x.float()), rtol=0.05, atol=0.05)


def test_half_precision_latents_count_in_full():
    """The log-determinant is taken in float32 though the forward runs in bfloat16."""
    _, (x,), aef = make(zoo.LogVar)
    aef.float()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        terms = aef(x.float(), terms=True)
    assert terms.log_det.dtype == terms.z.dtype == torch.float32


def test_every_parameter_trains():
    _, (x,), aef = make(zoo.BatchNormAndInPlace, noise=0.1)
    aef.train()
    optimizer = torch.optim.Adam(aef.parameters(), 1e-2)
    losses = []
    for _ in range(50):
        optimizer.zero_grad()
        loss = aef(x)
        loss.backward()
        assert all(p.grad is not None and p.grad.isfinite().all() for p in aef.parameters())
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < losses[0] - 1


@pytest.mark.slow
def test_trains_on_digits():
    datasets = pytest.importorskip("sklearn.datasets", reason="the digits are scikit-learn's")
    torch.set_default_dtype(torch.float32)
    images = torch.from_numpy(datasets.load_digits().images).byte()[:, None]
    torch.manual_seed(0)
    x = vae2aef.dequantize(images[:512], 17)

    class Opaque(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.net = ConvVAE((1, 8, 8), 4)

        def forward(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
            return self.net(x)

    aef = vae2aef.wrap(Opaque(), example=x, preprocess="logit", noise=0.3)
    assert isinstance(aef.parts, TracedParts)
    optimizer = torch.optim.Adam(aef.parameters(), 2e-3)
    losses = []
    for step in range(50):
        optimizer.zero_grad()
        loss = aef(x[64 * (step % 8) : 64 * (step % 8) + 64])
        loss.backward()
        assert all(p.grad is not None for p in aef.parameters())
        optimizer.step()
        losses.append(loss.item())
    assert sum(losses[-8:]) / 8 < losses[0] - 20  # of about 100 nats
    assert aef.sample(3).shape == (3, 1, 8, 8)
    result = aef.log_prob(x[:4], num_samples=16, proposal="tuned")
    assert result.value.shape == (4,) and result.value.isfinite().all()


class Branches(zoo.Base):
    """Its path changes after it was wrapped."""

    mode = ""

    def draw(self, loc: Tensor, log_var: Tensor) -> Tensor:
        if self.mode == "no draw":
            return loc
        if self.mode == "no z":
            torch.randn_like(loc)
            return loc
        z = super().draw(loc, log_var)
        if self.mode == "other call":
            return (0.5 * log_var).exp() * torch.randn_like(loc).sub(loc)
        return z + torch.randn_like(z) if self.mode == "noise after z" else z


@pytest.mark.parametrize(
    ("mode", "says"),
    [
        ("no draw", "did not draw"),
        ("no z", "another path"),
        ("noise after z", "draws noise again"),
        ("other call", "draws noise again"),
    ],
)
def test_a_path_that_changes_later_is_noticed(mode, says):
    vae, (x,), aef = make(Branches)
    vae.mode = mode
    for call in (aef, aef.encode, lambda x: aef.decode(torch.zeros(5, 4)), aef.log_prob):
        with pytest.raises(vae2aef.WrapError, match=says):
            call(x)


class Swapped(zoo.Base):
    subtract = False

    def draw(self, loc: Tensor, log_var: Tensor) -> Tensor:
        noise = (0.5 * log_var).exp() * torch.randn_like(loc)
        return noise - loc if self.subtract else noise + loc


def test_another_function_at_the_place_of_z_is_noticed():
    vae, (x,), aef = make(Swapped)
    vae.subtract = True
    with pytest.raises(vae2aef.WrapError, match="came add, now sub"):
        aef(x)


def test_a_scale_that_turns_negative_is_named():
    class AnySign(zoo.Base):
        def draw(self, loc: Tensor, raw: Tensor) -> Tensor:
            return loc + (raw + 5) * torch.randn_like(loc)

    vae, (x,), aef = make(AnySign)
    with torch.no_grad():
        vae.head.bias -= 10
    with pytest.raises(vae2aef.NonFiniteError, match="encoder_scale"):
        aef(x)


def test_is_deterministic():
    _, (x,), aef = make(zoo.LogVar)
    assert torch.equal(aef(x), aef(x))


@pytest.mark.filterwarnings("ignore:`torch.jit:DeprecationWarning")
def test_compiled_and_scripted_modules_are_refused():
    vae = zoo.LogVar()
    vae.body.compile()
    with pytest.raises(vae2aef.WrapError, match="`body` is compiled"):
        vae2aef.wrap(vae, example=zoo.example(vae))
    (x,) = zoo.example(vae)
    scripted = torch.jit.trace(zoo.LogVar(), x, check_trace=False)
    with pytest.raises(vae2aef.WrapError, match="it is scripted"):
        vae2aef.wrap(scripted, example=x)
    holder = zoo.Base()
    holder.draw = torch.jit.script(scripted_draw)
    with pytest.raises(vae2aef.WrapError, match="no draw is seen"):
        vae2aef.wrap(holder, example=x)


def scripted_draw(loc: Tensor, log_var: Tensor) -> Tensor:
    return loc + (0.5 * log_var).exp() * torch.randn_like(loc)


def test_order_adapter_then_callables_then_tracing():
    vae = zoo.Variance()
    x = zoo.example(vae)
    assert not isinstance(vae2aef.wrap(vae, example=x, **vae.described()).parts, TracedParts)
    vae.encoder, vae.decoder = zoo.Variance().body, vae.tail  # a pair by name that is no encoder
    assert isinstance(vae2aef.wrap(vae, example=x).parts, TracedParts)
    refused = zoo.Deterministic()
    with pytest.raises(
        vae2aef.WrapError, match=r"(?s)^the forward of .*draws no noise.*an adapter for.*`encode` and.*Pass forward="
    ):
        vae2aef.wrap(refused, example=x)
    refused.encode, refused.decode = refused.split, refused.data
    with pytest.raises(vae2aef.WrapError, match=r"(?s)Pass encoder_scale=.*draws no noise"):
        vae2aef.wrap(refused, example=x)


def test_print_says_what_was_traced():
    text = repr(make(zoo.OnlyWhenTraining)[2])
    assert "z is what `add` makes of it, its scale dz/du" in text
    assert "forward(x)[0], the only output shaped like the data" in text
    assert "draws in training mode only" in text


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore:The .grad attribute:UserWarning")
def test_under_the_compiler_the_forward_runs_as_it_is():
    _, (x,), aef = make(zoo.Rsample)
    expected = gradients(aef, (x,))
    aef.zero_grad()
    loss = torch.compile(aef, backend="eager")(x)
    loss.backward()
    close(loss, aef(x))
    for name, p in aef.named_parameters():
        close(p.grad, expected[name], name)


def test_the_page_is_true(capsys):
    """The code of docs/traced.md runs, and prints what the page says."""
    torch.set_default_dtype(torch.float32)
    page = (Path(__file__).parents[1] / "docs" / "traced.md").read_text(encoding="utf-8")
    code, printed = (page.split(f"```{kind}\n")[1].split("```")[0] for kind in ("python", "text"))
    exec(compile(code, "docs/traced.md", "exec"), {"__name__": "page"})
    shown = capsys.readouterr().out
    for line in printed.strip().splitlines()[:-1]:
        assert line in shown


# ------------------------------------------------------------------ memory


class Deep(nn.Module):
    """Twenty layers of a large picture, which a pass holds one or two of; it draws where it is asked to."""

    def __init__(self) -> None:
        super().__init__()
        self.head, self.foot = nn.Linear(6, 4), nn.Linear(2, 6)
        self.layers = nn.ModuleList(nn.Sequential(nn.Linear(6, 6), nn.Tanh()) for _ in range(20))
        self.alive, self.most = 0, 0
        for layer in self.layers:
            layer.register_forward_hook(self.count)

    def count(self, module: nn.Module, given: tuple, made: Tensor) -> None:
        if not made.requires_grad:
            self.__dict__["alive"] += 1
            self.__dict__["most"] = max(self.most, self.alive)
            weakref.finalize(made, self.gone)

    def gone(self) -> None:
        self.__dict__["alive"] -= 1

    def encode(self, x: Tensor) -> tuple[Tensor, Tensor]:
        for layer in self.layers:
            x = layer(x)
        return self.head(x).chunk(2, dim=1)

    def decode(self, z: Tensor) -> Tensor:
        x = self.foot(z)
        for layer in self.layers:
            x = layer(x)
        return x

    def forward(self, x: Tensor, sample_posterior: bool = False) -> Tensor:
        mu, log_var = self.encode(x)
        return self.decode(mu + torch.randn_like(mu) * (0.5 * log_var).exp() if sample_posterior else mu)


@pytest.mark.parametrize("draws", [False, True])
def test_a_recorded_pass_holds_no_layer_longer_than_the_pass_does(draws):
    """Of 40 layers made without gradients, as a VAE's own forward is recorded for its parts to be held against."""
    vae, x = Deep(), torch.rand(8, 6)
    with torch.no_grad(), Known(x) as record:
        out = vae(x, sample_posterior=draws)
    assert vae.most <= 2 and record.nodes[id(out)] == len(record.shapes) - 1 and len(record.shapes) > 40
    assert record.drew is draws and 0 in record.reaches(record.nodes[id(out)])
    parts = vae2aef.wrap(vae, example=x, encoder_scale="log_var").parts  # its forward is recorded, and draws nothing
    assert vae.most <= 2 and "draws" in parts.compared


def test_what_is_noted_of_a_tensor_is_gone_with_it():
    """Its id may be another tensor's then; one that only autograd holds still is the same when it comes back."""
    notes, w = Notes(), torch.rand(3, requires_grad=True)
    held = w * 2
    notes.note(held, 1)
    notes.note(held, 2)
    key, out = id(held), held.exp() * held
    assert notes[key] == 2
    del held
    assert key in notes and id(out.grad_fn._saved_other) == key
    del out
    assert not notes
