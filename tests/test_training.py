"""Training: the Lightning task, batches that depend on seed and step only, and runs that can be resumed."""

import math
import os
import signal
import types
import warnings

import pytest
import torch
from torch.utils.data import DataLoader, TensorDataset

pytest.importorskip("lightning")

from lightning.pytorch import Trainer
from lightning.pytorch.callbacks import Callback

import vae2aef
from vae2aef import wrap
from vae2aef.comparison.arms import ARMS, Recipe
from vae2aef.comparison.batches import Batches, continuous, stream
from vae2aef.comparison.evaluate import choose_proposal, marginal, reconstruction_mse
from vae2aef.comparison.interrupt import Interrupted, deferred_interrupt
from vae2aef.comparison.nets import MLPVAE
from vae2aef.comparison.options import Options
from vae2aef.comparison.run import RunData, RunProgress, run_arm
from vae2aef.errors import NonFiniteError
from vae2aef.flows import Identity
from vae2aef.marginal import LogProb, Proposal
from vae2aef.schedules import noise_at
from vae2aef.training import AEFTask, DriftWarning, NoiseSchedule

pytestmark = [
    pytest.mark.usefixtures("quick_fits"),
    pytest.mark.filterwarnings("ignore:.*treespec, LeafSpec.*:FutureWarning"),
    pytest.mark.filterwarnings("ignore:.*does not have many workers.*"),
    pytest.mark.filterwarnings("ignore:.*but have no `val_dataloader`.*"),
]

EVENT = (1, 2, 3)


def small_aef(noise=0.0):
    vae = MLPVAE(EVENT, 2, hidden=8)
    return wrap(
        vae, example=torch.rand(4, *EVENT), encoder=vae.encode, decoder=vae.decode, encoder_scale="log_var",
        core_flow="none", noise=noise,
    )  # fmt: skip


def quiet_trainer(tmp_path, **kwargs):
    return Trainer(
        accelerator="cpu", logger=False, enable_checkpointing=False, enable_progress_bar=False,
        enable_model_summary=False, default_root_dir=tmp_path, **kwargs,
    )  # fmt: skip


def test_the_task_trains_in_a_plain_lightning_loop(tmp_path):
    aef = small_aef(noise=1.0)
    data = TensorDataset(torch.rand(64, *EVENT), torch.zeros(64))  # (x, label), as data sets often are
    with torch.no_grad():
        before = float(aef(data.tensors[0]))
    trainer = quiet_trainer(tmp_path, max_epochs=30, check_val_every_n_epoch=30, gradient_clip_val=200)
    trainer.fit(AEFTask(aef, lr=1e-2), DataLoader(data, batch_size=16), DataLoader(data, batch_size=32))
    with torch.no_grad():
        assert float(aef(data.tensors[0])) < before - 1
    logged = float(trainer.callback_metrics["val_log_prob"])
    marginal = aef.log_prob(data.tensors[0], num_samples=64).value.mean().item()
    assert logged == pytest.approx(marginal, abs=0.5)
    assert float(trainer.callback_metrics["train_loss"]) >= -marginal - 1  # a bound at sigma > 0


def test_the_optimizer_holds_the_vae_and_what_was_added():
    aef = small_aef()
    held = {id(p) for group in AEFTask(aef, lr=0.1).configure_optimizers().param_groups for p in group["params"]}
    assert held == {id(p) for p in aef.parameters()}


@pytest.mark.parametrize("whole", [True, False])
def test_bits_are_of_what_is_given(tmp_path, whole):
    """Of integers that are dequantised: bits of their levels; of data on another grid: of their own values."""
    torch.manual_seed(0)
    levels = torch.randint(0, 16, (12, 1, 4, 4))
    aef = vae2aef.wrap(MLPVAE((1, 4, 4), 2, hidden=4), example=levels, preprocess=[vae2aef.Dequantize(16), "logit"])
    x = levels if whole else vae2aef.dequantize(levels, 16)
    task = AEFTask(aef, validation_samples=8)
    found = quiet_trainer(tmp_path).test(task, DataLoader(TensorDataset(x), batch_size=12), verbose=False)[0]
    expected = -found["test_log_prob"] / (16 * math.log(2)) + (4 if whole else 0)
    assert found["test_bits_per_dim"] == pytest.approx(expected, rel=1e-5)


def test_frozen_parameters_are_left_out():
    aef = small_aef()
    frozen = next(aef.vae.parameters()).requires_grad_(False)
    groups = AEFTask(aef).configure_optimizers().param_groups
    assert all(p is not frozen for group in groups for p in group["params"])


class Conditional(torch.nn.Module):
    """A VAE of vectors that is told a label, by place or by name."""

    def __init__(self):
        super().__init__()
        self.encoder, self.decoder = torch.nn.Linear(4 + 2, 4), torch.nn.Linear(2 + 2, 4)

    def encode(self, x, label):
        return self.encoder(torch.cat([x, label], 1)).chunk(2, 1)

    def decode(self, z, label):
        return self.decoder(torch.cat([z, label], 1))


LABELS = torch.eye(2).repeat(16, 1)
OF_LABEL = torch.rand(32, 4) * 0.1 + LABELS @ torch.tensor([[0.0, 1.0, 0.0, 1.0], [1.0, 0.0, 1.0, 0.0]])


@pytest.mark.slow
@pytest.mark.parametrize("by_name", [False, True])
def test_conditions_go_to_the_aef(tmp_path, by_name):
    """Loss and marginal are those of the same conditions; with the labels exchanged they are far off."""

    def split(batch):
        x, label = batch["x"], batch["label"]
        return (x, {"label": label}) if by_name else (x, label)

    vae = Conditional()
    aef = wrap(
        vae, example=split({"x": OF_LABEL, "label": LABELS}), encoder=vae.encode, decoder=vae.decode,
        encoder_scale="log_var", noise=1.0,
    )  # fmt: skip
    loader = DataLoader([{"x": x, "label": y} for x, y in zip(OF_LABEL, LABELS, strict=True)], batch_size=16)
    trainer = quiet_trainer(tmp_path, max_epochs=80, check_val_every_n_epoch=80, gradient_clip_val=200)
    trainer.fit(AEFTask(aef, lr=1e-2, split=split), loader, loader)
    logged = float(trainer.callback_metrics["val_log_prob"])
    right, wrong = (aef.log_prob(OF_LABEL, y, num_samples=64).value.mean().item() for y in (LABELS, LABELS.flip(1)))
    assert logged == pytest.approx(right, abs=0.5)
    assert right > wrong + 3


@pytest.mark.parametrize("batch", [{"x": 1}, [], ["name"]])
def test_a_batch_without_data_is_explained(batch):
    with pytest.raises(TypeError, match=r"a tensor x or \(x, \*conditions\); got .*split="):
        AEFTask(small_aef()).training_step(batch, 0)


def test_validate_runs_under_inference_mode(tmp_path):
    """`Trainer.validate` makes inference tensors, which autograd refuses; proposals are tuned by gradients."""
    aef, x = small_aef(noise=1.0), torch.rand(32, *EVENT)
    seen = []
    aef.vae.decoder.register_forward_hook(lambda *args: seen.append(torch.is_inference_mode_enabled()))
    (logged,) = quiet_trainer(tmp_path).validate(AEFTask(aef), DataLoader(x, batch_size=16), verbose=False)
    assert seen
    assert logged["val_log_prob"] == pytest.approx(aef.log_prob(x, num_samples=64).value.mean().item(), abs=0.5)
    aef(x).backward()  # no inference tensor was left in the model
    assert all(p.grad is not None for p in aef.vae.parameters())


X = torch.arange(20, dtype=torch.uint8).reshape(20, 1)


def test_a_batch_depends_on_seed_and_number_only():
    whole = list(Batches(X, 256, 6, 10, seed=1))
    rest = list(Batches(X, 256, 6, 10, seed=1, start=4))
    assert len(whole) == 10
    assert all(torch.equal(a, b) for a, b in zip(whole[4:], rest, strict=True))
    assert not any(torch.equal(a, b) for a, b in zip(whole, Batches(X, 256, 6, 10, seed=2), strict=True))


def test_an_epoch_shows_each_sample_once_with_new_noise():
    batches = list(Batches(X, 256, 5, 8, seed=0))
    orders = [(torch.cat(epoch) * 256).floor().flatten() for epoch in (batches[:4], batches[4:])]
    assert all(torch.equal(order.sort().values, X.flatten().float()) for order in orders)
    assert not torch.equal(*orders), "shuffled once, and not each epoch"
    assert not torch.equal(torch.cat(batches[:4]).sort(0).values, torch.cat(batches[4:]).sort(0).values)


def test_few_data_make_one_batch():
    assert [len(b) for b in Batches(X, 256, 128, 3, seed=0)] == [20, 20, 20]


def test_floats_are_not_dequantised():
    x = torch.rand(5, 2)
    assert continuous(x, 1, "a") is x


def test_streams_differ_by_name_and_fit_a_seed():
    seeds = {stream("a", i) for i in range(100)} | {stream("b", i) for i in range(100)}
    assert len(seeds) == 200
    assert all(0 <= s < 2**63 for s in seeds)


def test_the_first_ctrl_c_waits_and_the_second_does_not():
    before = signal.getsignal(signal.SIGINT)
    with pytest.raises(Interrupted), deferred_interrupt() as flag:
        os.kill(os.getpid(), signal.SIGINT)
        assert flag.pressed
        os.kill(os.getpid(), signal.SIGINT)
    assert signal.getsignal(signal.SIGINT) is before


# ---------------------------------------------------------------- runs

# With 220 steps each point of the loss curve averages two: a stop may fall between them.
OPTIONS = Options(steps=220, batch_size=16, latents=2, core_flow="none", importance_samples=8)
RECIPE = Recipe("mlp", 2, "vae", "none", Identity(), torch.rand(4, *EVENT))


@pytest.fixture(scope="module")
def held():
    x = torch.randint(0, 256, (80, *EVENT), generator=torch.Generator().manual_seed(0)).to(torch.uint8)
    return RunData(
        train=x[:50],
        validation=continuous(x[50:60], 256, "v"),
        test=continuous(x[60:], 256, "t"),
        shown=continuous(x[60:64], 256, "t"),
        bins=256,
    )


def run(held, folder, arm="aef-noise", seed=0, **progress):
    return run_arm(lambda: RECIPE.build(arm, seed), arm, seed, held, OPTIONS, folder, RunProgress(**progress))


def without_time(result):
    return {key: value for key, value in result.items() if "seconds" not in key}


@pytest.fixture(scope="module")
def uninterrupted(held, tmp_path_factory):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return run(held, tmp_path_factory.mktemp("whole"))


@pytest.mark.slow
@pytest.mark.parametrize("stop", [1, 50, 77])
def test_a_resumed_run_equals_an_uninterrupted_one_bit_for_bit(held, uninterrupted, tmp_path, stop):
    seen = []

    def loss(value):
        seen.append(value)
        if len(seen) == stop:
            os.kill(os.getpid(), signal.SIGINT)

    with pytest.raises(KeyboardInterrupt):
        run(held, tmp_path, loss=loss)
    assert len(seen) == stop
    assert not (tmp_path / "result.json").exists()
    resumed, rest = [], []
    torch.manual_seed(99)  # nothing may hang on the random state between the two
    result = run(held, tmp_path, resumed=resumed.append, loss=rest.append)
    assert resumed == [stop]
    assert len(rest) == OPTIONS.steps - stop
    assert without_time(result) == without_time(uninterrupted) | {
        "validation_bits_per_dim": result["validation_bits_per_dim"],
        "training_loss": result["training_loss"],
    }
    for curve in ("validation_bits_per_dim", "training_loss"):
        assert [tuple(p) for p in result[curve]] == [tuple(p) for p in uninterrupted[curve]]


@pytest.mark.slow
def test_a_run_stopped_while_it_is_tested_is_not_trained_again(held, uninterrupted, tmp_path):
    def stop(images):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run(held, tmp_path, testing=stop)
    seen = []
    result = run(held, tmp_path, loss=seen.append)
    assert seen == []
    assert result["test"] == uninterrupted["test"]


@pytest.mark.slow
def test_a_finished_run_is_read_and_not_repeated(held, uninterrupted, tmp_path):
    (tmp_path / "result.json").write_text('{"arm": "kept"}')
    assert run(held, tmp_path) == {"arm": "kept"}
    assert [p.name for p in tmp_path.iterdir()] == ["result.json"]


@pytest.mark.slow
def test_seeds_differ(held, uninterrupted, tmp_path):
    assert run(held, tmp_path, seed=1)["test"] != uninterrupted["test"]


@pytest.mark.slow
def test_the_best_weights_are_tested_not_the_last(held, tmp_path, monkeypatch):
    """Measured values are replaced by ones of which the second is the best. They are tested in eval mode."""
    from vae2aef.comparison.recorder import Recorder

    values = iter([2.0, 1.0, 3.0, 4.0, 5.0])
    monkeypatch.setattr(Recorder, "_measure", _with_value(Recorder._measure, values))
    aef, modes = RECIPE.build("aef-noise", 0), []
    decoding = aef.vae.decoder.register_forward_hook(lambda module, *args: modes.append(module.training))
    result = run_arm(
        lambda: aef, "aef-noise", 0, held, OPTIONS, tmp_path, RunProgress(testing=lambda images: modes.clear())
    )
    decoding.remove()
    assert modes and not any(modes), "reconstructions and samples with dropout are not the model's"
    assert [tuple(p) for p in result["validation_bits_per_dim"]] == [
        (50, 2.0),
        (100, 1.0),
        (150, 3.0),
        (200, 4.0),
        (220, 5.0),
    ]
    assert result["best_step"] == 100
    best = torch.load(tmp_path / "best.pt", weights_only=True)
    last = torch.load(tmp_path / "last.ckpt", weights_only=True)["state_dict"]
    assert any(not torch.equal(best[name], last[f"aef.{name}"]) for name in best)


def _with_value(original, values):
    def measure(self, step, module):
        self.measure = lambda: next(values)
        original(self, step, module)

    return measure


@pytest.mark.parametrize("flows", ["none", "coupling", "maf"])
def test_arms_start_from_the_same_weights(flows):
    recipe = Recipe("mlp", 3, "vae" if flows == "none" else flows, flows, Identity(), torch.rand(4, *EVENT))
    arms = {arm: recipe.build(arm, 5) for arm in ARMS}
    assert {arm: aef.noise for arm, aef in arms.items()} == pytest.approx({a: ARMS[a].noise for a in ARMS})
    reference = arms["aef"].state_dict()
    for arm, aef in arms.items():
        for name, value in aef.state_dict().items():
            if not name.endswith("core.sigma"):
                assert torch.equal(value, reference[name]), (arm, name)
    other = recipe.build("aef", 6).state_dict()
    assert any(not torch.equal(other[name], reference[name]) for name in reference)
    assert len({id(aef.vae) for aef in arms.values()}) == len(arms)


def test_draws_are_fitted_to_each_datum_where_that_is_possible(monkeypatch):
    aef, x = small_aef(noise=1.0), torch.rand(5, *EVENT)
    assert choose_proposal(aef, x) == "laplace"
    monkeypatch.setattr("vae2aef.comparison.evaluate.MAX_LATENTS", 1)
    tuned = choose_proposal(aef, x)
    assert isinstance(tuned, Proposal)
    fitted, one_shape = (marginal(aef, x, 512, p, "a").value for p in ("laplace", tuned))
    assert torch.allclose(fitted, one_shape, atol=0.2)


def test_all_arms_see_the_same_draws_whatever_ran_before():
    aef, x = small_aef(noise=1.0), torch.rand(300, *EVENT)
    sizes = []
    first = marginal(aef, x, 4, "laplace", "a", sizes.append)
    torch.rand(7)
    again, other = (marginal(aef, x, 4, "laplace", name) for name in "ab")
    assert torch.equal(first.value, again.value)
    assert not torch.equal(first.value, other.value)
    assert sum(sizes) == 300


def test_reconstruction_error_is_a_mean_over_all_values():
    aef, x = small_aef(), torch.rand(300, *EVENT)
    with torch.no_grad():
        expected = (aef.reconstruct(x) - x).square().mean().item()
    assert reconstruction_mse(aef, x) == pytest.approx(expected, rel=1e-4)


# ---------------------------------------------------------------- schedules, the gauge, drift


class Noises(Callback):
    """Remember the sigma of each step."""

    def __init__(self):
        self.seen = []

    def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
        self.seen.append(pl_module.aef.noise)


def fit(tmp_path, aef, schedule, steps, ckpt_path=None):
    noises = Noises()
    trainer = quiet_trainer(tmp_path, max_steps=steps, callbacks=[schedule, noises])
    data = DataLoader(torch.rand(8, *EVENT), batch_size=2)
    trainer.fit(AEFTask(aef), data, ckpt_path=ckpt_path, weights_only=None)
    return trainer, noises.seen


@pytest.mark.parametrize("kind", ["linear", "cosine"])
def test_a_schedule_goes_on_where_a_run_stopped(tmp_path, kind):
    """Twelve steps at once, or an epoch of four and then the rest from the checkpoint."""
    _, whole = fit(tmp_path, small_aef(), NoiseSchedule(1.0, 0.1, steps=10, kind=kind), 12)
    assert whole == [pytest.approx(noise_at(step, 10, 1.0, 0.1, kind)) for step in range(12)]
    assert len(set(whole)) == 11
    trainer, first = fit(tmp_path, small_aef(), NoiseSchedule(1.0, 0.1, steps=10, kind=kind), 4)
    trainer.save_checkpoint(tmp_path / "stopped.ckpt")
    other = NoiseSchedule(1.0, 0.1, steps=10, kind=kind)
    _, rest = fit(tmp_path, small_aef(), other, 12, tmp_path / "stopped.ckpt")
    assert first + rest == whole


def test_a_schedule_without_steps_takes_those_of_the_trainer(tmp_path):
    _, seen = fit(tmp_path, small_aef(), NoiseSchedule(1.0, 0.0, kind="linear"), 4)
    assert seen == [pytest.approx(v) for v in (1.0, 0.75, 0.5, 0.25)]


def test_a_plateau_halves_sigma_down_to_its_end_and_is_saved():
    schedule = NoiseSchedule(1.0, 0.3, kind="plateau", patience=2)
    trainer = types.SimpleNamespace(callback_metrics={}, sanity_checking=False)
    sigmas = []
    for value in (-5.0, -4.0, -4.5, -4.5, -4.6, -4.6, -3.0, -3.1):
        trainer.callback_metrics["val_log_prob"] = torch.tensor(value)
        schedule.on_validation_epoch_end(trainer, None)
        sigmas.append(schedule.sigma)
    assert sigmas == [1.0, 1.0, 1.0, 0.5, 0.5, 0.3, 0.3, 0.3]
    again = NoiseSchedule(1.0, 0.3, kind="plateau", patience=2)
    again.load_state_dict(schedule.state_dict())
    assert (again.sigma, again.best, again.worse) == (0.3, -3.0, 1)


@pytest.mark.parametrize("arguments", [{"kind": "steps"}, {"end": -0.1}, {"kind": "plateau", "end": 2.0}])
def test_a_schedule_that_makes_no_sense_is_refused(arguments):
    with pytest.raises(ValueError, match=r"expected|plateau"):
        NoiseSchedule(**{"start": 1.0, "end": 0.1, **arguments})


def validated(tmp_path, monkeypatch, noise, log_probs):
    """Train by a loss that falls while validation says what it is told to say."""
    aef = small_aef(noise)
    found = iter(log_probs)

    def log_prob(x, *cond, **kwargs):
        value = torch.full((len(x),), next(found))
        return LogProb(value, 0 * value, 1 + 0 * value, False, 0 * value, False)

    monkeypatch.setattr(aef, "log_prob", log_prob)
    data = DataLoader(torch.rand(64, *EVENT), batch_size=64)
    trainer = quiet_trainer(tmp_path, max_epochs=len(log_probs), num_sanity_val_steps=0)
    trainer.fit(AEFTask(aef, lr=1e-2), data, data)
    return trainer


def test_a_loss_that_falls_for_nothing_is_named(tmp_path, monkeypatch):
    stands = [-3.0, -2.0, -2.1, -2.2, -2.1, -2.2]
    with pytest.warns(DriftWarning, match="since step 2 the loss fell.*did not rise above -2.*noise=0.3") as said:
        trainer = validated(tmp_path, monkeypatch, 0.0, stands)
    assert sum(issubclass(one.category, DriftWarning) for one in said) == 1
    assert 0 < float(trainer.callback_metrics["gauge_core_std"]) < 10
    assert {"gauge_log_scale", "gauge_core_share"} <= trainer.callback_metrics.keys()


@pytest.mark.parametrize("noise, log_probs", [(0.3, [-3.0, -2.0] + 5 * [-2.1]), (0.0, [-5.0, -4.0, -3.0, -2.0, -1.0])])
def test_nothing_is_said_with_noise_or_where_the_model_is_better(tmp_path, monkeypatch, noise, log_probs):
    with warnings.catch_warnings():
        warnings.simplefilter("error", DriftWarning)
        validated(tmp_path, monkeypatch, noise, log_probs)


@pytest.mark.filterwarnings("ignore:`training_step` returned `None`")  # on purpose
def test_batches_with_nan_are_named_or_skipped(tmp_path):
    x = torch.rand(32, *EVENT)
    x[17, 0, 1, 2] = torch.nan
    loader = DataLoader(x, batch_size=8)
    with pytest.raises(NonFiniteError, match="in rows 1 of the batch"):
        quiet_trainer(tmp_path, max_epochs=1).fit(AEFTask(small_aef()), loader)
    found = []
    for data, skipped in (
        (loader, 3),
        (DataLoader(torch.cat([x[:16], x[24:]]), batch_size=8), 0),
    ):  # left out by it, and before it
        torch.manual_seed(0)
        task = AEFTask(small_aef(), skip_non_finite=True)
        quiet_trainer(tmp_path, max_epochs=3).fit(task, data)
        assert task.skipped == skipped
        found.append(task.state_dict())
    assert all(torch.equal(value, found[1][name]) and value.isfinite().all() for name, value in found[0].items())


class Labelled(torch.nn.Module):
    """A VAE whose label comes by name."""

    def __init__(self):
        super().__init__()
        self.q, self.p = torch.nn.Linear(5, 4), torch.nn.Linear(3, 4)

    def forward(self, x, *, y):
        mean, log_var = self.q(torch.cat([x, y], 1)).chunk(2, 1)
        z = mean + (0.5 * log_var).exp() * torch.randn_like(mean)
        return self.p(torch.cat([z, y], 1)), mean, log_var


def test_a_last_dict_of_a_batch_holds_conditions_by_name():
    x, y = torch.rand(16, 4), torch.rand(16, 1)
    aef = vae2aef.wrap(Labelled(), example=(x, {"y": y}), noise=0.0)
    task = AEFTask(aef, split=lambda batch: (batch[0], {"y": batch[1]}))
    data, cond, kwargs = task.arguments((x, y))
    assert torch.equal(aef(data, *cond, **kwargs), aef(x, y=y))
    assert not torch.equal(aef(x, y=y), aef(x, y=1 - y))


def test_an_override_of_arguments_may_return_a_plain_tuple():
    class Task(AEFTask):
        def arguments(self, batch):
            return batch["x"], (), {}

    task = Task(small_aef(0.3))
    found = task.predict_step({"x": torch.rand(5, *EVENT)}, 0)
    assert found["reconstruction"].shape == (5, *EVENT) and found["log_prob"].isfinite().all()
