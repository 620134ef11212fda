"""from_pyro with sequences of different length as data: packed, or a list; the padded version is the reference."""

import copy
import math
import warnings

import pytest
import torch
from torch import nn
from torch.nn.utils.rnn import PackedSequence, pack_padded_sequence, pack_sequence, pad_packed_sequence, pad_sequence

pyro = pytest.importorskip("pyro")
import pyro.distributions as dist  # noqa: E402
import pyro.poutine as poutine  # noqa: E402

import vae2aef  # noqa: E402
from vae2aef.svi.sequences import within  # noqa: E402

N, D = 3, 2
pytestmark = pytest.mark.usefixtures("fresh_pyro")

LENGTHS = (3, 1, 4, 2, 4)
HOW = {"proposal": "laplace"}  # the default searches each datum first, ten times as long


class One(nn.Module):
    """A latent a sequence, linear and Gaussian, so that log p(x) is known."""

    def __init__(self, kind):
        super().__init__()
        self.kind, self.gru = kind, nn.GRU(N, 8, batch_first=True)
        self.enc, self.dec = nn.Linear(8, 2 * D), nn.Linear(D, N)

    def padded(self, x, lengths):
        if self.kind == "packed":
            assert isinstance(x, PackedSequence)
            return pad_packed_sequence(x, batch_first=True)
        if self.kind == "list":
            return pad_sequence(x, batch_first=True), torch.tensor([len(v) for v in x])
        return x, lengths

    def model(self, x, lengths=None):
        x, lengths = self.padded(x, lengths)
        with pyro.plate("rows", len(x), dim=-2):
            z = pyro.sample("z", dist.Normal(torch.zeros(1, D), 1.0).to_event(1))
            there = torch.arange(x.shape[1]) < lengths.unsqueeze(1)
            with pyro.plate("steps", x.shape[1], dim=-1), poutine.mask(mask=there):
                pyro.sample("x", dist.Normal(self.dec(z), 0.7).to_event(1), obs=x)

    def guide(self, x, lengths=None):
        packed = x if self.kind == "packed" else None
        x, lengths = self.padded(x, lengths)
        packed = pack_padded_sequence(x, lengths, True, enforce_sorted=False) if packed is None else packed
        with pyro.plate("rows", len(x), dim=-2):
            loc, raw = self.enc(self.gru(packed)[1][0]).unsqueeze(1).chunk(2, -1)
            pyro.sample("z", dist.Normal(loc, (0.1 * raw).exp()).to_event(1))

    def exact(self, x):
        """log p of one sequence, `(steps, N)`."""
        weight = self.dec.weight.detach().repeat(len(x), 1)
        covariance = weight @ weight.T + 0.49 * torch.eye(len(weight))
        loc = self.dec.bias.detach().repeat(len(x))
        return torch.distributions.MultivariateNormal(loc, covariance).log_prob(x.flatten())


class Markov(One):
    """A latent and an observed site a time step."""

    def __init__(self, kind):
        super().__init__(kind)
        self.cell, self.trans = nn.Linear(N + D, 2 * D), nn.Linear(D, D)

    def guide(self, x, lengths=None):
        x, lengths = self.padded(x, lengths)
        z = torch.zeros(len(x), D)
        with pyro.plate("rows", len(x)):
            for t in range(x.shape[1]):
                loc, raw = self.cell(torch.cat([x[:, t], z], -1)).chunk(2, -1)
                there = (t < lengths).unsqueeze(-1)
                z = pyro.sample(f"z_{t + 1}", dist.Normal(loc, (0.1 * raw).exp()).mask(there).to_event(1))

    def model(self, x, lengths=None):
        x, lengths = self.padded(x, lengths)
        z = torch.zeros(len(x), D)
        with pyro.plate("rows", len(x)):
            for t in range(x.shape[1]):
                there = (t < lengths).unsqueeze(-1)
                z = pyro.sample(f"z_{t + 1}", dist.Normal(self.trans(z), 1.0).mask(there).to_event(1))
                pyro.sample(f"x_{t + 1}", dist.Normal(self.dec(z), 0.7).mask(there).to_event(1), obs=x[:, t])

    def exact(self, x):
        """log p of one sequence: z = A z + noise from zero, x = C z + noise, all Gaussian."""
        a, c = self.trans.weight.detach(), self.dec.weight.detach()
        loc, spread, at = torch.zeros(D), torch.zeros(D, D), torch.zeros(())
        for value in x:  # Kalman filter
            loc, spread = a @ loc + self.trans.bias.detach(), a @ spread @ a.T + torch.eye(D)
            total = c @ spread @ c.T + 0.49 * torch.eye(N)
            seen = torch.distributions.MultivariateNormal(c @ loc + self.dec.bias.detach(), total)
            at = at + seen.log_prob(value)
            gain = spread @ c.T @ total.inverse()
            loc, spread = loc + gain @ (value - seen.loc), spread - gain @ c @ spread
        return at


class Shifted(nn.Module):
    """Sequences less a condition of each, which stands before them."""

    def __init__(self):
        super().__init__()
        self.one = One("packed")

    def shifted(self, c, x):
        padded, lengths = pad_packed_sequence(x, batch_first=True)
        return pack_padded_sequence(padded - c.unsqueeze(1), lengths, True, enforce_sorted=False)

    def model(self, c, x):
        self.one.model(self.shifted(c, x))

    def guide(self, c, x):
        self.one.guide(self.shifted(c, x))


class Tokens(nn.Module):
    """Bags of words: the model looks integers up in a table."""

    def __init__(self):
        super().__init__()
        self.table, self.enc, self.dec = nn.Embedding(5, N), nn.Linear(N, 2 * D), nn.Linear(D, 5)

    def model(self, x):
        tokens, lengths = pad_packed_sequence(x, batch_first=True)
        with pyro.plate("rows", len(tokens), dim=-2):
            z = pyro.sample("z", dist.Normal(torch.zeros(1, D), 1.0).to_event(1))
            there = torch.arange(tokens.shape[1]) < lengths.unsqueeze(1)
            with pyro.plate("steps", tokens.shape[1], dim=-1), poutine.mask(mask=there):
                pyro.sample("x", dist.Categorical(logits=self.dec(z)), obs=tokens)

    def guide(self, x):
        tokens, lengths = pad_packed_sequence(x, batch_first=True)
        there = torch.arange(tokens.shape[1]) < lengths.unsqueeze(1)
        with pyro.plate("rows", len(tokens), dim=-2):
            loc, raw = self.enc((self.table(tokens) * there.unsqueeze(-1)).sum(1)).unsqueeze(1).chunk(2, -1)
            pyro.sample("z", dist.Normal(loc, raw.exp()).to_event(1))


def sequences(*lengths):
    return [torch.randn(n, N) for n in lengths]


def given(kind, rows):
    if kind == "packed":
        return pack_sequence(rows, enforce_sorted=False)
    return rows if kind == "list" else pad_sequence(rows, batch_first=True)


def lengths_of(rows):
    return torch.tensor([len(row) for row in rows])


def pair_of(make, kind):
    """The same model, of padded sequences and of others."""
    padded = make("padded")
    other = copy.deepcopy(padded)
    other.kind = kind
    return padded, other


@pytest.mark.parametrize("kind", ["packed", "list"])
@pytest.mark.parametrize("make", [One, Markov])
def test_it_is_the_padded_version_of_the_same_model(make, kind):
    """Loss, terms, latents, log p(x) and samples; rows in the order they were packed in, not sorted by length."""
    padded, other = pair_of(make, kind)
    rows = sequences(*LENGTHS)
    aef = vae2aef.from_pyro(other.model, other.guide, given(kind, rows))
    assert isinstance(aef, vae2aef.AEF)
    x, lengths = pad_sequence(rows, batch_first=True), lengths_of(rows)
    core = {name: copy.deepcopy(site.core.features) for name, site in aef.by_latent().items()}
    one = vae2aef.from_pyro(padded.model, padded.guide, x, lengths, core=core)
    for few in ([0, 1, 2, 3, 4], [1, 3, 2], [2]):  # with the longest one, in any order
        part, data = [rows[i] for i in few], given(kind, [rows[i] for i in few])
        same = x[few], lengths[few]
        for call in (
            lambda aef, *d: aef(*d, terms=True),
            lambda aef, *d: aef.expanded_log_prob(*d),
            lambda aef, *d: aef.log_prob(*d, num_samples=32, seed=1, proposal="laplace") if make is One else 0,
            lambda aef, *d: aef.reconstruct(*d) if make is One else 0,
        ):
            with warnings.catch_warnings():
                warnings.simplefilter("ignore", vae2aef.EstimateWarning)
                torch.manual_seed(3)
                first = call(aef, data)
                torch.manual_seed(3)
                second = call(one, *same)
            there = within(same[0], same[1])
            if isinstance(first, torch.Tensor) and first.dim() == 3:
                first, second = torch.where(there, first, 0), torch.where(there, second, 0)
            torch.testing.assert_close(_tensors(first), _tensors(second))
        latents, others = aef.encode(data), one.encode(*same)
        assert latents.keys() == others.keys()
        for name, z in latents.items():
            torch.testing.assert_close(z, others[name])
        assert len(part) == len(aef.expanded_log_prob(data))


def _tensors(found):
    if isinstance(found, vae2aef.LogProb):
        return [found.value, found.effective_sample_size]
    return list(found[:5]) if isinstance(found, tuple) else [torch.as_tensor(found)]


@pytest.mark.parametrize("kind", ["packed", "list"])
@pytest.mark.parametrize("make", [One, Markov])
def test_log_prob_is_that_of_each_sequence(make, kind):
    """Against the exact value, shorter batches than the example among them; the same whatever the batch."""
    pair = make(kind)
    rows = sequences(*LENGTHS)
    aef = vae2aef.from_pyro(pair.model, pair.guide, given(kind, rows))
    found = aef.log_prob(given(kind, rows), num_samples=200, seed=0, **HOW)
    assert (found.std_error < 0.2).all()
    exact = torch.stack([pair.exact(row) for row in rows])
    assert ((found.value - exact).abs() < 5 * found.std_error + 0.01).all() and found.std_error.isfinite().all()
    alone = [aef.log_prob(given(kind, [row]), num_samples=200, seed=0, **HOW).value for row in rows]
    torch.testing.assert_close(torch.cat(alone), found.value)
    pieces = aef.log_prob(
        given(kind, rows), num_samples=200, seed=0, **HOW, chunk_size=600
    )  # rows of 4 steps apart from others
    torch.testing.assert_close(pieces.value, found.value)


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["packed", "list"])
def test_log_prob_that_searches_each_sequence_first(kind):
    """The default proposal, against the exact value."""
    pair = Markov(kind)
    rows = sequences(*LENGTHS)
    aef = vae2aef.from_pyro(pair.model, pair.guide, given(kind, rows))
    searched = aef.log_prob(given(kind, rows[1:4]), num_samples=100, seed=0)
    exact = torch.stack([pair.exact(row) for row in rows[1:4]])
    assert ((searched.value - exact).abs() < 5 * searched.std_error + 0.01).all()


@pytest.mark.parametrize("enforce", [True, False])
def test_sorted_and_unsorted_sequences(enforce):
    """A sorted one has no indices; a model that goes by the rows as they are stored then finds them as given."""
    rows = sequences(4, 3, 3, 1)
    packed = pack_sequence(rows, enforce_sorted=enforce)
    pair = One("packed")
    seen = []

    def model(x):
        seen.append((x.sorted_indices is None, x.data))
        pair.model(x)

    aef = vae2aef.from_pyro(model, pair.guide, packed)
    seen.clear()
    loss = aef.expanded_log_prob(packed)
    assert seen[0][0] is enforce and (not enforce or torch.equal(seen[0][1], packed.data))
    other = [2, 0, 3, 1]
    again = aef.expanded_log_prob(pack_sequence([rows[i] for i in other], enforce_sorted=False))
    torch.testing.assert_close(again, loss[other])


@pytest.mark.parametrize("make", [One, Markov])
def test_an_example_of_one_sequence(make):
    pair = make("packed")
    row = torch.randn(4, N)
    aef = vae2aef.from_pyro(pair.model, pair.guide, pack_sequence([row]))
    assert aef.log_prob(pack_sequence([row]), num_samples=300, seed=0, **HOW).value.item() == pytest.approx(
        float(pair.exact(row)), abs=0.1
    )
    rows = sequences(2, 4)
    assert aef(pack_sequence(rows, enforce_sorted=False)).isfinite()
    none = aef(torch.zeros(0, 4, N), torch.zeros(0, dtype=torch.long))
    assert none.item() == 0


def test_training_drawing_and_longer_sequences():
    """One latent: h reads the sum over time steps, so that sequences of any length will do."""
    pair = One("packed")
    rows = sequences(*LENGTHS)
    aef = vae2aef.from_pyro(pair.model, pair.guide, pack_sequence(rows, enforce_sorted=False))
    assert 'h of "z" reads the sum over time steps' in repr(aef) and "the guide's own" not in repr(aef)
    optimizer, losses = torch.optim.Adam(aef.parameters(), 1e-2), []
    for _ in range(40):
        optimizer.zero_grad()
        loss = aef(pack_sequence(rows, enforce_sorted=False))
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert sum(losses[-5:]) < sum(losses[:5]) - 2
    longer = sequences(7, 2)
    found = aef.log_prob(pack_sequence(longer), num_samples=300, seed=0, **HOW)
    torch.testing.assert_close(found.value, torch.stack([pair.exact(row) for row in longer]), atol=0.1, rtol=0)
    drawn = aef.sample(2, torch.tensor([6, 1]), residual=True)
    assert drawn.shape == (2, 6, N) and bool((drawn[1, 1:] == 0).all()) and bool((drawn[0] != 0).all())
    assert aef.reconstruct(pack_sequence(longer)).shape == (2, 7, N)
    certificate = aef.check_log_prob(6, lengths_of(rows + rows[:1]), num_samples=200, seed=0, **HOW)
    assert abs(certificate.gap.value) < 0.1
    assert set(aef.gauge(pack_sequence(longer))) == {"z"}


def test_what_lies_past_the_end_of_padded_data_counts_nothing():
    pair = One("packed")
    rows = sequences(3, 1)
    aef = vae2aef.from_pyro(pair.model, pair.guide, pack_sequence(rows))
    x, lengths = pad_sequence(rows, batch_first=True), lengths_of(rows)
    value = aef.expanded_log_prob(pack_sequence(rows))
    torch.testing.assert_close(aef.expanded_log_prob(x, lengths), value)
    x[1, 1:] = 1e3
    torch.testing.assert_close(aef.expanded_log_prob(x, lengths), value)


def test_conditions_beside_sequences_keep_their_place():
    """The data by name, or behind another argument."""
    pair = Shifted()
    rows, c = sequences(3, 1, 2), torch.randn(3, N)
    packed = pack_sequence(rows, enforce_sorted=False)
    exact = torch.stack([pair.one.exact(row - shift) for row, shift in zip(rows, c, strict=True)])
    behind = vae2aef.from_pyro(pair.model, pair.guide, c, packed, data="x")
    named = vae2aef.from_pyro(pair.model, pair.guide, c, x=packed, data="x")
    for aef in (behind, named):
        found = aef.log_prob(packed, c, num_samples=300, seed=0, **HOW)
        assert ((found.value - exact).abs() < 5 * found.std_error + 0.01).all()


def test_sequences_of_whole_numbers():
    pair = Tokens()
    rows = [torch.randint(5, (n,)) for n in (2, 9, 5)]
    packed = pack_sequence(rows, enforce_sorted=False)
    aef = vae2aef.from_pyro(pair.model, pair.guide, packed)
    found = aef.log_prob(packed, num_samples=500, seed=0, **HOW).value
    z = torch.randn(100000, D)
    log_p = pair.dec(z).detach().log_softmax(-1)
    direct = torch.stack([log_p[:, row].sum(1).logsumexp(0) - math.log(len(z)) for row in rows])
    torch.testing.assert_close(found, direct, atol=0.05, rtol=0)
    loss = aef.expanded_log_prob(packed)
    torch.testing.assert_close(loss[1:2], aef.expanded_log_prob(pack_sequence(rows[1:2])))


def test_what_cannot_be():
    pair = One("packed")
    rows = sequences(3, 1)
    packed = pack_sequence(rows)
    aef = vae2aef.from_pyro(pair.model, pair.guide, packed)
    x, lengths = pad_sequence(rows, batch_first=True), lengths_of(rows)
    for call, said in (
        (
            lambda: aef.sample(3),
            r"lengths of the 3 sequences as the first condition.*aef.sample\(n, lengths\); got noth",
        ),
        (lambda: aef.sample(3, torch.tensor([2])), r"lengths of the 3 sequences.*got a tensor of shape \(1,\)"),
        (lambda: aef(x), r"lengths of the 2 sequences as the first condition.*aef\(x, lengths\)"),
        (lambda: aef.decode(aef.encode(packed)), r"aef.decode\(z, lengths\)"),
        (lambda: aef.check_log_prob(4), r"aef.check_log_prob\(n, lengths\)"),
        (lambda: aef("songs"), "expected data as a PackedSequence, a list of sequences, or x, lengths"),
    ):
        with pytest.raises(TypeError, match=said):
            call()
    for call, said in (
        (lambda: aef(x, lengths + 3), r"expected lengths up to 3, the time steps of x, got 6"),
        (lambda: aef(torch.randn(2, 3, N + 1), lengths), r"padded to \(batch, steps, 3\), got \(2, 3, 4\)"),
        (lambda: aef.impute(packed, None), "missing values need the density of each value"),
    ):
        with pytest.raises(ValueError, match=said):
            call()
    with pytest.raises(vae2aef.WrapError, match=r"one latent and one observed site; this has sequences of different"):
        vae2aef.from_pyro(pair.model, pair.guide, packed, likelihood="gaussian")
    steps = Markov("packed")
    stepwise = vae2aef.from_pyro(steps.model, steps.guide, packed)
    with pytest.raises(vae2aef.WrapError, match=r'"z_4" of the guide was not there.*the example must show every site'):
        stepwise(pack_sequence(sequences(4, 1)))


@pytest.mark.parametrize("kind", ["packed", "list"])
def test_sequences_of_no_time_steps_are_refused(kind):
    """One got the density of a sequence of one step, zero, and its latents that of a step."""
    pair = One(kind)
    rows = sequences(3, 1)
    aef = vae2aef.from_pyro(pair.model, pair.guide, given(kind, rows))
    x, none, below = torch.randn(3, 3, N), torch.tensor([0, 3, 0]), torch.tensor([2, -1, 3])
    z = aef.encode(x, torch.tensor([1, 3, 2]))
    calls = (
        lambda n: aef(x, n),
        lambda n: aef.log_prob(x, n, num_samples=2, **HOW),
        lambda n: aef.reconstruct(x, n),
        lambda n: aef.sample(3, n),
        lambda n: aef.decode(z, n),
        lambda n: aef.check_log_prob(3, n),
    )
    for call in calls:
        with pytest.raises(
            ValueError, match=r"one time step at least, got lengths of 0 in rows 0, 2: leave these out$"
        ):
            call(none)
        with pytest.raises(ValueError, match=r"one time step at least, got lengths of -1 in rows 1: leave these out$"):
            call(below)
    with pytest.raises(ValueError, match=r"got lengths of 0 in rows 1: leave these out$"):
        aef([rows[0], torch.zeros(0, N)])
    with pytest.raises(ValueError, match=r"got lengths of 0 in rows 0: leave these out$"):
        aef(x[:1], none[:1])  # a batch of one such row is no empty batch
    with pytest.raises(ValueError, match="a list of one sequence at least, got an empty list"):
        aef([])
    nothing = (x[:0], none[:0])
    assert aef(*nothing) == 0
    assert aef.log_prob(*nothing, num_samples=2, **HOW).value.shape == (0,)


class Bag(One):
    """Reads the sum over time steps, and so takes sequences of none."""

    def guide(self, x):
        with pyro.plate("rows", len(x), dim=-2):
            total = torch.stack([row.sum(0) for row in x]) if x else torch.zeros(0, N)
            loc = (total @ self.dec.weight).unsqueeze(1)
            pyro.sample("z", dist.Normal(loc, 1.0).to_event(1))


@pytest.mark.parametrize("make", [One, Bag])
@pytest.mark.parametrize(("lengths", "said"), [((), "got an empty list"), ((0, 2), "got lengths of 0 in rows 0")])
def test_an_example_without_time_steps(make, lengths, said):
    """Whether model and guide fail on it or not."""
    pair = make("list")
    if make is Bag and lengths:
        pair.guide(sequences(*lengths))
    with pytest.raises(ValueError, match=said):
        vae2aef.from_pyro(pair.model, pair.guide, sequences(*lengths))


def test_copies_and_saved_weights(tmp_path):
    pair = One("packed")

    class Whole(pyro.nn.PyroModule):
        def __init__(self):
            super().__init__()
            self.one = pair

        def model(self, x):
            return self.one.model(x)

        def guide(self, x):
            return self.one.guide(x)

    whole = Whole()
    packed = pack_sequence(sequences(3, 1))
    aef = vae2aef.from_pyro(whole.model, whole.guide, packed)
    value = aef.expanded_log_prob(packed)
    torch.save(aef.state_dict(), tmp_path / "weights.pt")
    for p in aef.parameters():
        torch.nn.init.normal_(p)
    assert not torch.allclose(aef.expanded_log_prob(packed), value)
    aef.load_state_dict(torch.load(tmp_path / "weights.pt"))
    torch.testing.assert_close(aef.expanded_log_prob(packed), value)


@pytest.mark.remedy('site "{}": core={} reads data of one shape,')
def test_a_core_for_data_of_one_shape():
    pair, packed = One("packed"), pack_sequence(sequences(3, 1))
    with pytest.raises(vae2aef.WrapError, match='core="linear"') as error:
        vae2aef.from_pyro(pair.model, pair.guide, packed, core="normalized")
    assert error.value.fix.startswith('use core="linear", or a module')
    assert vae2aef.from_pyro(pair.model, pair.guide, packed, core="linear")(packed).isfinite()

    class Last(nn.Module):
        """A module of one's own: of the first time step and the sum."""

        def __init__(self):
            super().__init__()
            self.inner = nn.Linear(2 * N, D)

        def forward(self, x):
            return self.inner(torch.cat([x[:, 0], x.sum(1)], -1)).unsqueeze(1)

    own = vae2aef.from_pyro(pair.model, pair.guide, packed, core=Last())
    assert own(packed).isfinite() and own(pack_sequence(sequences(5, 2))).isfinite()
    assert vae2aef.from_pyro(pair.model, pair.guide, packed, core="noise").noise == 1


@pytest.mark.filterwarnings("ignore")  # Lightning's, about loggers, workers and checkpoints
def test_lightning_takes_packed_sequences():
    """A packed batch is x itself, and its rows are sequences: it is a tuple, too, whose length is 4."""
    lightning = pytest.importorskip("lightning")
    from vae2aef.training import AEFTask

    pair = One("packed")
    rows = [*sequences(3, 3, 3, 3, 3), 0.1 * torch.randn(1, N)]  # a mean of means is another than that of all
    aef = vae2aef.from_pyro(pair.model, pair.guide, given("packed", rows), noise=1.0)
    task, seen = AEFTask(aef, validation_samples=8), []
    aef.register_forward_hook(lambda module, args, loss: seen.append(len(args[0])))
    trainer = lightning.Trainer(
        max_epochs=1, accelerator="cpu", logger=False, enable_checkpointing=False, enable_progress_bar=False,
        enable_model_summary=False, num_sanity_val_steps=0,
    )  # fmt: skip
    loader = torch.utils.data.DataLoader(rows, batch_size=5, collate_fn=lambda batch: given("packed", batch))
    before = pair.dec.weight.detach().clone()
    trainer.fit(task, loader)
    assert seen == [5, 1] and not torch.equal(before, pair.dec.weight)
    aef.eval()
    parts = [aef.log_prob(given("packed", batch), num_samples=8, seed=0).value for batch in (rows[:5], rows[5:])]
    (validated,) = trainer.validate(task, loader, verbose=False)
    assert validated["val_log_prob"] == pytest.approx(torch.cat(parts).mean().item(), rel=1e-6)
    (tested,) = trainer.test(task, loader, verbose=False)
    assert tested["test_log_prob"] == pytest.approx(validated["val_log_prob"], rel=1e-6)
    bits = [-part.sum().item() / (steps * N * math.log(2)) for part, steps in zip(parts, (15, 1), strict=True)]
    assert tested["test_bits_per_dim"] == pytest.approx((5 * bits[0] + bits[1]) / 6, rel=1e-6)
    found = trainer.predict(task, loader)
    torch.testing.assert_close(torch.cat([one["log_prob"] for one in found]), torch.cat(parts))
    assert [len(one["reconstruction"]) for one in found] == [5, 1]


def test_a_task_takes_sequences_as_the_aef_does():
    pytest.importorskip("lightning")
    from vae2aef.training import AEFTask

    pair = Shifted()
    rows, c = sequences(1, 3, 2), torch.randn(3, N)
    aef = vae2aef.from_pyro(pair.model, pair.guide, c, given("packed", rows))
    x, lengths = given("padded", rows), lengths_of(rows)
    for batch in ((given("packed", rows), c), (rows, c), (x, lengths, c)):
        (padded, (counted, beside), named) = AEFTask(aef, split=lambda batch: batch).arguments(batch)
        assert torch.equal(padded, x) and torch.equal(counted, lengths) and beside is c and not named
    (padded, conditions, named) = AEFTask(aef).arguments(given("packed", rows))
    assert torch.equal(padded, x) and len(conditions) == 1 and torch.equal(conditions[0], lengths)


def test_a_packed_batch_for_an_aef_of_tensors():
    pytest.importorskip("lightning")
    from vae2aef.comparison.nets import MLPVAE
    from vae2aef.training import AEFTask

    vae = MLPVAE((N,), D, hidden=8)
    task = AEFTask(vae2aef.wrap(vae, example=torch.rand(8, N), encoder_scale="log_var"))
    with pytest.raises(TypeError, match=r"to be a tensor x.*got PackedSequence"):
        task.training_step(given("packed", sequences(3, 1)), 0)


@pytest.mark.remedy("the example is a PackedSequence, and a VAE i")
def test_wrap_and_check_say_what_to_do_with_packed_data():
    """Fault: its tensors taken for data and conditions, since it is a tuple."""

    class Packed(One):
        def __init__(self):
            super().__init__("packed")

    class Padded(One):
        def __init__(self):
            super().__init__("padded")

    packed = pack_sequence(sequences(3, 1))
    with pytest.raises(vae2aef.WrapError, match=r"pass example=\(x, lengths\).*vae2aef.from_pyro"):
        vae2aef.wrap(Packed(), example=packed)
    report = vae2aef.check(Packed(), example=packed)
    assert not report.ok and "vae2aef.from_pyro(model, guide, example)" in " ".join(str(report).split())
    example = pad_packed_sequence(packed, batch_first=True)
    assert vae2aef.check(Padded(), example=example).ok
    assert vae2aef.wrap(Padded(), example=example)(*example).isfinite()
    pair = Packed()
    assert vae2aef.from_pyro(pair.model, pair.guide, packed)(packed).isfinite()
