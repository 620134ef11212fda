"""The verdict of a comparison: which arm, how sure, whence, and the line for one's own loop."""

from dataclasses import replace

import numpy as np
import pytest
import torch

pytest.importorskip("lightning")
pytest.importorskip("matplotlib")

from test_report import NATS, run
from torch import nn

import vae2aef
from vae2aef.comparison.arms import ARMS
from vae2aef.comparison.compare import _conditioned, _prepare
from vae2aef.comparison.data import load
from vae2aef.comparison.nets import MLPVAE
from vae2aef.comparison.options import Options
from vae2aef.comparison.own_loop import of_recipe, own_loop
from vae2aef.comparison.summary import summarise
from vae2aef.comparison.verdict import verdict, winner

RNG = np.random.RandomState(0)


def made(arm, difference, interval=0.01, **more):
    row = summarise([run(arm, 0, [-NATS, -2 * NATS])], [arm], (2,), 1, 128)[0]
    change = {} if difference is None else {"difference": difference, "difference_interval": interval}
    return replace(
        row, **{"bits_per_dim": 3.0 + (difference or 0.0), "reached": 0.38, "uncertain": 0.0, **change, **more}
    )


def test_a_gain():
    rows = [made("vae", None), made("vae+features", -0.09), made("aef", -0.05), made("aef-noise", -0.13)]
    options = Options(steps=100, core_flow="none", likelihood="discretized_logistic")
    headline, *more = verdict(rows, options, 256)
    assert headline == (
        "The AEF with σ = 0.3 (aef-noise) is better than the VAE by 0.130 ± 0.010 bits per dimension "
        "(95 % interval, one seed)."
    )
    assert more == [
        "On validation data it was as good as the VAE ever was after 38% of the steps.",
        "Most of the gain (69%) is there with the linear features at σ = 1 (vae+features).",
        "To try next: --seeds 3: one seed says nothing of others.",
        'In your own loop: vae2aef.wrap(vae, example=x, noise=0.3, core_flow="none", '
        'likelihood="discretized_logistic")  # x: training data, levels / 255',
    ]
    assert winner(rows) is rows[3]


def test_a_loss_and_a_single_arm():
    rows = [made("vae", None), made("aef", 0.03), made("aef-noise", 0.05)]
    assert verdict(rows, Options(seeds=3), 1) == [
        "The VAE is the best: the next, the AEF with σ = 0 (aef), is worse by 0.030 ± 0.010 bits per dimension "
        "(95 % interval)."
    ]
    assert winner(rows) is rows[0]
    alone = verdict([made("aef", None)], Options(seeds=3), 1)
    assert len(alone) == 1 and "no other arm" in alone[0] and alone[0].startswith("The AEF with")
    assert winner([made("aef", None)]) is None


def test_a_difference_that_is_no_number_is_not_sure():
    rows = [made("vae", None), made("aef", float("nan"), float("nan"))]
    assert winner(rows) is rows[0] or winner(rows) is None
    assert "is better" not in verdict(rows, Options(seeds=3), 1)[0]


def test_an_arm_that_is_surely_better_is_not_hidden_by_one_that_is_not():
    """The lowest mean is within its interval: it wins nothing, and takes nothing from an arm that is sure."""
    rows = [made("vae", None), made("aef", -0.20, 0.30), made("aef-noise", -0.05)]
    assert winner(rows) is rows[2]
    assert verdict(rows, Options(seeds=3), 1)[0].startswith("The AEF with σ = 0.3 (aef-noise) is better than the VAE")


def test_the_first_is_the_best_only_if_all_others_are_surely_worse():
    """One arm is worse beyond its interval, the other may be better: nothing is the best."""
    rows = [made("vae", None), made("aef", 0.03), made("aef-noise", 0.05, 0.30)]
    assert winner(rows) is None
    (said,) = verdict(rows, Options(seeds=3), 1)
    assert said == (
        "No arm is surely better than the VAE: the AEF with σ = 0.3 (aef-noise) is behind by 0.050 ± 0.300 bits per "
        "dimension (95 % interval), which is within the error."
    )
    ahead = verdict([made("vae", None), made("aef", -0.005)], Options(seeds=3), 1)[0]
    assert "the AEF with σ = 0 (aef) is ahead by 0.005 ± 0.010" in ahead


def test_what_a_gain_is_said_to_come_from():
    rows = [made("vae", None), made("vae+features", -0.09), made("aef-noise", -0.10)]
    said = " ".join(verdict(rows, Options(core_flow="coupling"), 1))
    assert "linear features and the coupling core flow at σ = 1" in said and "alone" not in said
    rows[1] = made("vae+features", -0.01, 0.05)
    said = verdict(rows, Options(core_flow="none"), 1)
    assert (
        "How much of the gain is there with the linear features at σ = 1 (vae+features) is within the error: "
        "−0.010 ± 0.050." in said
    )
    assert not any("%)" in line for line in said[1:])
    of_aef = [made("aef", None), made("vae+features", -0.05), made("aef-noise", -0.10)]
    assert "of the gain" not in " ".join(verdict(of_aef, Options(), 1))  # the first has the features too


def test_what_stands_against_it():
    rows = [made("vae", None, best_steps=[100], uncertain=0.9), made("aef", -0.05)]
    options = Options(steps=100, seeds=2, importance_samples=50)
    (next_,) = [line for line in verdict(rows, options, 1) if "next" in line]
    assert "(--steps 200): not every arm had converged" in next_ and "--importance-samples 200" in next_
    assert "seed" not in next_


# ---------------------------------------------------------------- the line for one's own loop


class Own(nn.Module):
    """A VAE that is read from its forward, so that the line need not say what its encoder is."""

    def __init__(self, event_shape, classes=0):
        super().__init__()
        self.shape, size = event_shape, int(np.prod(event_shape))
        self.q, self.p = nn.Linear(size + classes, 4), nn.Linear(2 + classes, size)

    def forward(self, x, *y):
        mean, log_var = self.q(torch.cat([x.flatten(1), *y], 1)).chunk(2, 1)
        z = mean + torch.exp(0.5 * log_var) * torch.randn_like(mean)
        return self.p(torch.cat([z, *y], 1)).reshape(-1, *self.shape), mean, log_var


def own(event_shape, classes):
    return Own(event_shape, classes)


class Parts(nn.Module):
    """A VAE whose parts have names and scales of its own: a factory says them."""

    def __init__(self, size):
        super().__init__()
        self.q, self.p = nn.Linear(size, 4), nn.Linear(2, size)


def in_parts(event_shape, latents):
    vae = Parts(event_shape[0])
    return {
        "vae": vae, "encoder": lambda x: vae.q(x).chunk(2, 1), "decoder": lambda z: vae.p(z),
        "encoder_scale": "log_std", "kl": "sampled",
    }  # fmt: skip


class Grid(nn.Module):
    """A VAE whose latent is a grid, which gets local features."""

    def __init__(self):
        super().__init__()
        self.q, self.p = nn.Conv2d(1, 4, 2, 2), nn.ConvTranspose2d(2, 1, 2, 2)

    def forward(self, x):
        mean, log_var = self.q(x).chunk(2, 1)
        return self.p(mean + torch.exp(0.5 * log_var) * torch.randn_like(mean)), mean, log_var


def on_grid():
    return Grid()


LINES = {
    "8 bits": ({"prior": "coupling"}, 256),
    "levels, lam": ({"lam": 0.1}, 17),
    "standardize": ({"preprocess": "standardize", "core_flow": "none"}, 17),
    "dequantised alone": ({"preprocess": "none"}, 256),
    "continuous": ({"preprocess": "standardize"}, 1),
    "continuous, as it is": ({"preprocess": "none", "prior": "maf"}, 1),
    "levels scored": ({"likelihood": "discretized_logistic", "prior": "coupling"}, 17),
    "bytes scored": ({"likelihood": "discretized_gaussian"}, 256),
    "bits": ({"likelihood": "bernoulli_logits"}, 2),
    "a family": ({"likelihood": "student_t", "preprocess": "none"}, 1),
    "a condition": ({"condition": "one_hot", "preprocess": "none"}, 1),
}


@pytest.mark.filterwarnings("ignore::vae2aef.WrapWarning")
@pytest.mark.parametrize(("name", "arm"), [*((name, "aef-noise") for name in LINES), ("8 bits", "vae")])
def test_the_line_makes_what_was_compared(tmp_path, name, arm):
    """Run as it stands, it makes an AEF of the same parts, which sees the data as the comparison's did."""
    changes, bins = LINES[name]
    x = RNG.rand(400, 6) if bins == 1 else RNG.randint(0, bins, (400, 6))
    labels = {"y_train": np.arange(400) % 3, "y_test": np.arange(20) % 3} if "condition" in changes else {}
    np.savez(tmp_path / "a.npz", x_train=x, x_test=x[:20], **labels)
    options = Options(data=str(tmp_path / "a.npz"), vae="test_verdict:own", latents=2, **changes)
    dataset = load(options.data, bins)
    data, recipe = _conditioned(dataset, options, *_prepare(dataset, options))
    theirs = recipe.build(arm, 0)
    line = own_loop(arm, options, bins)
    given = data.train / (bins - 1) if "levels /" in line and data.train.dtype == torch.uint8 else data.train
    known = {"vae": own((6,), 3 if options.condition != "none" else 0), "x": given, "vae2aef": vae2aef}
    ours = eval(line, {**known, **({"y": data.conditions.train[0]} if options.condition != "none" else {})})
    assert {k: v.shape for k, v in ours.state_dict().items() if not k.startswith("preprocess.")} == {
        k: v.shape for k, v in theirs.state_dict().items() if not k.startswith("preprocess.")
    }
    assert ours.noise == theirs.noise == ARMS[arm].noise and repr(ours.likelihood) == repr(theirs.likelihood)
    assert type(ours.prior) is type(theirs.prior) and repr(ours.core) == repr(theirs.core)
    seen = (data.train[:50] + 0.5) / bins if bins > 1 and not options.discrete else given[:50].float()
    torch.testing.assert_close(ours.preprocess(seen)[0], theirs.preprocess(seen)[0], atol=0.05, rtol=0.05)
    torch.testing.assert_close(ours.preprocess(seen)[1], theirs.preprocess(seen)[1], atol=0.05, rtol=0.05)


VAES = {"own": (6,), "in_parts": (6,), "on_grid": (1, 4, 6), "mlp": (6,)}
SAME = [
    ("own", {"likelihood": "discretized_logistic"}, 17, "aef-noise"),
    ("own", {"likelihood": "discretized_gaussian", "prior": "coupling"}, 5, "aef"),
    ("own", {"likelihood": "discretized_logistic", "core_flow": "coupling"}, 256, "vae+features"),
    ("own", {"likelihood": "bernoulli_logits"}, 2, "vae"),
    ("own", {"likelihood": "poisson_log"}, 9, "aef-noise"),
    ("own", {"preprocess": "none"}, 1, "aef-noise"),
    ("own", {"preprocess": "standardize", "likelihood": "laplace"}, 1, "aef-noise"),
    ("own", {"preprocess": "logit", "lam": 0.1, "likelihood": "shared"}, 1, "aef-noise"),
    ("own", {"condition": "one_hot", "likelihood": "discretized_logistic"}, 17, "aef-noise"),
    ("in_parts", {"likelihood": "discretized_logistic"}, 17, "aef-noise"),
    ("in_parts", {"preprocess": "none", "prior": "maf", "likelihood": "student_t"}, 1, "vae"),
    ("on_grid", {"likelihood": "discretized_logistic"}, 256, "aef-noise"),
    ("on_grid", {"likelihood": "discretized_gaussian", "prior": "coupling"}, 17, "aef"),
    ("mlp", {"preprocess": "standardize"}, 1, "aef-noise"),
]


@pytest.mark.filterwarnings("ignore::vae2aef.WrapWarning")
@pytest.mark.parametrize(("vae", "changes", "bins", "arm"), SAME)
def test_the_line_makes_the_same_aef(tmp_path, vae, changes, bins, arm):
    """From the same data and the same random numbers: the same weights, and the same loss of the same batch."""
    shape = VAES[vae]
    x = RNG.rand(100, *shape) if bins == 1 else RNG.randint(0, bins, (100, *shape))
    labels = {"y_train": np.arange(100) % 3, "y_test": np.arange(20) % 3} if "condition" in changes else {}
    np.savez(tmp_path / "a.npz", x_train=x, x_test=x[:20], **labels)
    spec = vae if vae == "mlp" else f"test_verdict:{vae}"
    options = Options(data=str(tmp_path / "a.npz"), vae=spec, latents=2, **changes)
    dataset = load(options.data, bins)
    data, recipe = _conditioned(dataset, options, *_prepare(dataset, options))
    assert len(data.train) < 128  # all of them are the example
    theirs = recipe.build(arm, 0)
    line = own_loop(arm, options, bins, of_recipe(recipe))
    given = dataset.split_validation()[0]
    given = given / (bins - 1) if "levels /" in line else given  # as the line's comment says
    torch.manual_seed(0)
    names = {"vae2aef": vae2aef, "in_parts": in_parts, "x": given, "y": data.conditions.train[0] if labels else None}
    if "**" not in line:
        names["vae"] = MLPVAE(shape, 2) if vae == "mlp" else recipe._make(0)["vae"]
    torch.manual_seed(0)
    if "**" in line:
        line = line.replace("vae2aef.wrap(**", "vae2aef.wrap(**seeded(")  # as the comparison: wrap begins anew
        line = line.replace("), example", ")), example", 1)
        names["seeded"] = lambda made: (made, torch.manual_seed(0))[0]
    ours = eval(line, names)
    mine, others = ours.state_dict(), theirs.state_dict()
    assert mine.keys() == others.keys()
    for name, value in mine.items():
        torch.testing.assert_close(value, others[name], atol=1e-6, rtol=2e-5, msg=f"{name}: {line}")
    batch = data.train[:32]
    cond = [data.conditions.train[0][:32]] if labels else []
    losses = []
    for aef in (ours, theirs):
        torch.manual_seed(1)
        losses.append(aef(batch, *cond).item())
    assert losses[0] == pytest.approx(losses[1], rel=1e-5)
