"""A large .npy stays on the disk: what is made of it is what is made of the same array in memory."""

import io
import json
import os
import re
import subprocess
import sys
from dataclasses import fields

import numpy as np
import pytest
import torch

from vae2aef.comparison.batches import Batches
from vae2aef.comparison.data import load
from vae2aef.comparison.errors import InputError
from vae2aef.comparison.rows import Rows

RNG = np.random.RandomState(0)
GREY = RNG.randint(0, 256, (60, 5, 4)).astype(np.uint8)
COLOUR = RNG.randint(0, 256, (60, 5, 6, 3)).astype(np.uint8)
ALPHA = np.concatenate([COLOUR, np.full_like(COLOUR[..., :1], 255)], -1)
TABLE = RNG.randn(60, 7)
CONSTANT = np.where(np.arange(7) == 2, 0.25, TABLE).astype(np.float32)
STEPS = np.where(np.arange(7) == 3, RNG.randint(0, 5, (60, 1)) / 4, TABLE)
RARE = np.where((np.arange(60)[:, None] == 47) & (np.arange(7) == 1), 9.5, np.where(np.arange(7) == 1, 0.5, TABLE))
EDGED = np.pad(GREY, ((0, 0), (1, 1), (1, 1)))


@pytest.fixture
def mapped(monkeypatch):
    """From now on every .npy is large, and a few rows are many."""

    def now(chunk=100):
        monkeypatch.setattr("vae2aef.comparison.readers.LARGE", 0)
        monkeypatch.setattr("vae2aef.comparison.rows.CHUNK", chunk)

    return now


def both(tmp_path, array, mapped, bins=None):
    """What is made of an array in memory, and of the same on the disk; each the data, or what is said of them."""
    path, made = tmp_path / "a.npy", []
    np.save(path, array)
    for on_disk in (False, True):
        if on_disk:
            mapped()
        try:
            made.append(load(str(path), bins))
        except InputError as problem:
            made.append(str(problem))
    return made


@pytest.mark.parametrize(
    ("array", "bins"),
    [
        (GREY, None), (EDGED, None), (COLOUR, None), (np.moveaxis(COLOUR, -1, 1).copy(), None), (ALPHA, None),
        (np.repeat(COLOUR[..., :1], 3, -1), None), (np.repeat(GREY[..., None], 4, -1) // 2 * 2 + 1, None),
        (GREY > 100, None), (GREY.astype(np.int64) * 4, 1021), (GREY // 128 * 255, 2), (GREY.astype(">i2"), None),
        (GREY.astype(np.float32) / 255, None), (GREY.astype(np.float32) / 255, 1), (GREY.astype(np.float64), None),
        (GREY.astype(np.float16) // 16 / 15, 16), (TABLE, None), (TABLE.astype(">f4"), None), (CONSTANT, None),
        (RARE, 1), (STEPS, 1), (np.arange(60)[:, None] / 64, None), (RNG.rand(60, 5, 6, 3), None),
    ],
)  # fmt: skip
def test_it_is_the_same_data_set(tmp_path, mapped, array, bins):
    whole, streamed = both(tmp_path, array, mapped, bins)
    assert isinstance(whole.x_train, torch.Tensor) and isinstance(streamed.x_train, Rows)
    for part in ("x_train", "x_test"):
        one, other = getattr(whole, part), getattr(streamed, part)
        assert (one.shape, one.dtype, len(one)) == (other.shape, other.dtype, len(other))
        assert torch.equal(one, other[:]) and torch.equal(torch.cat(list(other.chunks())), one)
        assert (one.min(), one.max()) == (other.min(), other.max())
        assert torch.equal(other[torch.tensor([3, 0, 5])], one[torch.tensor([3, 0, 5])])
    kept = {field.name for field in fields(whole)} - {"x_train", "x_test"}
    assert all(getattr(whole, name) == getattr(streamed, name) for name in kept)
    assert whole.digest() == streamed.digest() and whole.event_shape == streamed.event_shape
    for one, other in zip(whole.split_validation(), streamed.split_validation(), strict=True):
        assert isinstance(other, Rows) and torch.equal(one, other[:])
    assert torch.equal(whole.some_test(5), streamed.some_test(5))
    made = [list(Batches(data.split_validation()[0], data.bins, 8, 9, 1)) for data in (whole, streamed)]
    assert len(made[0]) == 9 and all(torch.equal(*pair) for pair in zip(*made, strict=True))


@pytest.mark.parametrize(
    ("array", "bins"),
    [
        (np.where(np.arange(60)[:, None] == 31, np.nan, TABLE), None),
        (np.where(np.arange(60)[:, None] == 31, -np.inf, TABLE), 1), (np.full((60, 4), 7), None), (np.ones((60, 4)), 1),
        (GREY // 16, None), (GREY.astype(np.float32) // 16 / 15, None), (GREY // 128 * 255, None), (STEPS, None),
        (RARE, None), (GREY.astype(np.int16) - 100, None), (TABLE, 256), (GREY, 1), (TABLE * 1e16, None),
        (np.arange(240).reshape(60, 4) + 2**60, None), (GREY[:7], None), (np.zeros((60, 5, 5, 7), np.uint8), None),
        (GREY.astype(np.float32), 200), (GREY // 16 / 16, None),
    ],
)  # fmt: skip
def test_what_is_refused_is_refused_in_the_same_words(tmp_path, mapped, array, bins):
    whole, streamed = both(tmp_path, array, mapped, bins)
    assert isinstance(whole, str) and whole == streamed


def test_what_is_read_as_a_whole_still(tmp_path, mapped):
    """Columns one after the other on the disk, as in Fortran, would cost the whole file a row."""
    mapped()
    np.save(tmp_path / "a.npy", np.asfortranarray(TABLE))
    assert isinstance(load(str(tmp_path / "a.npy")).x_train, torch.Tensor)
    np.save(tmp_path / "b.npy", np.zeros((40, 3), complex))
    with pytest.raises(InputError, match="complex128"):
        load(str(tmp_path / "b.npy"))


@pytest.mark.parametrize("name", ["a.npz", "fortran.npy"])
def test_what_does_not_fit_is_streamed_once_it_is_saved_as_the_message_says(tmp_path, monkeypatch, name):
    x = RNG.rand(2000, 40)
    np.savez_compressed(tmp_path / "a.npz", x=x)
    np.save(tmp_path / "fortran.npy", np.asfortranarray(x))
    whole = load(str(tmp_path / name))
    monkeypatch.setattr("vae2aef.comparison.readers.free_memory", lambda device: 10**5)
    wanted = "save the data as one array in a .npy" if name == "a.npz" else r"in C order \(np.ascontiguousarray\)"
    with pytest.raises(InputError, match=f"640,000 bytes of values, and 100,000 bytes of memory are free; .*{wanted}"):
        load(str(tmp_path / name))
    np.save(tmp_path / "a.npy", np.ascontiguousarray(x))
    streamed = load(str(tmp_path / "a.npy"))
    assert isinstance(streamed.x_train, Rows) and streamed.digest() == whole.digest()


def test_a_file_that_ends_early_is_refused(tmp_path, mapped):
    mapped()
    np.save(tmp_path / "a.npy", GREY)
    os.truncate(tmp_path / "a.npy", (tmp_path / "a.npy").stat().st_size - 1)
    with pytest.raises(InputError, match="promises 1,200 bytes of values, and "):
        load(str(tmp_path / "a.npy"))


def test_floats_with_too_many_values_to_be_levels(tmp_path, mapped, monkeypatch):
    """Of many values some are kept, with the largest and the smallest of all."""
    monkeypatch.setattr("vae2aef.comparison.streaming.MOST_FLOATS", 50)
    x = TABLE.copy()
    x[57, 3] = 1e17
    assert "values up to 1e+17" in (said := both(tmp_path, x, mapped))[0] and said[0] == said[1]
    whole, streamed = both(tmp_path, TABLE, mapped)
    assert streamed.bins == 1 and whole.digest() == streamed.digest()
    path = tmp_path / "b.npy"
    for levels, bins in ((GREY / 255, None), (GREY * 1.0, None), (GREY * 1.0, 256), (TABLE, 256)):
        np.save(path, levels)
        with pytest.raises(InputError, match="more than 50 distinct values; save the levels themselves, as integers"):
            load(str(path), bins)
    np.save(path, GREY)
    assert load(str(path)).bins == 256  # as it says
    np.save(path, TABLE)
    assert load(str(path), 1).bins == 1


def test_the_digest_of_a_very_large_file_is_taken_in_the_order_of_the_file(tmp_path, mapped, monkeypatch):
    """In the order of the split, each row would be sought on the disk; it changes with the data all the same."""
    monkeypatch.setattr("vae2aef.comparison.rows.SHUFFLED", GREY.nbytes)
    whole, streamed = both(tmp_path, GREY, mapped)
    assert whole.digest() == streamed.digest()
    monkeypatch.setattr("vae2aef.comparison.rows.SHUFFLED", GREY.nbytes - 1)
    changed = GREY.copy()
    changed[59, 4, 3] ^= 1
    np.save(tmp_path / "b.npy", changed)
    np.save(tmp_path / "c.npy", GREY[::-1])
    found = [load(str(tmp_path / name)).digest() for name in ("a.npy", "a.npy", "b.npy", "c.npy")]
    assert found[0] == found[1] and len({whole.digest(), *found}) == 4
    assert load(str(tmp_path / "a.npy"), 300).digest() not in found


def test_the_system_reads_ahead_from_beginning_to_end_only(tmp_path, mapped, monkeypatch):
    """Reading ahead for rows from all over a file costs hundreds of times what they hold."""
    now = []
    monkeypatch.setattr("vae2aef.comparison.rows._advise", lambda array, advice: now.append((advice, array)))
    mapped()
    np.save(tmp_path / "a.npy", np.moveaxis(COLOUR, -1, 1) / 254.3 + 1e-3 * RNG.rand(60, 3, 5, 6))
    data = load(str(tmp_path / "a.npy"))
    assert now[-1][0] == "MADV_RANDOM" and now[-1][1]._mmap is not None
    for _ in data.x_train.data.chunks():
        assert now[-1][0] == "MADV_NORMAL"
    data.x_train.max()
    assert [advice for advice, _ in now[-4:]] == ["MADV_NORMAL", "MADV_RANDOM"] * 2


def test_test_data_that_do_not_fit(tmp_path, mapped, monkeypatch):
    mapped()
    np.save(tmp_path / "a.npy", GREY)
    data = load(str(tmp_path / "a.npy"))
    monkeypatch.setattr("vae2aef.comparison.data.free_memory", lambda device: 900)
    with pytest.raises(
        InputError, match=r"--test-limit 0: 12 test samples of a\.npy take 960 bytes .* and 900 are free"
    ):
        data.some_test(0)
    assert len(data.some_test(11)) == 11


# ---------------------------------------------------------------- compare, evaluate, check


def compared(folder, data, **options):
    pytest.importorskip("lightning")
    pytest.importorskip("typer")
    from rich.console import Console

    from vae2aef.comparison.compare import compare
    from vae2aef.comparison.options import Options

    small = {"steps": 8, "latents": 2, "importance_samples": 8, "test_limit": 12, "seeds": 1, "batch_size": 16}
    given = {"core_flow": "none", "arms": ("aef",), "vae": "mlp", **small, **options}
    compare(Options(data=str(data), **given), folder, Console(file=io.StringIO(), width=200))
    whole = json.loads((folder / "results.json").read_text())
    return whole["data"], [
        {name: value for name, value in run.items() if "seconds" not in name} for run in whole["runs"]
    ]


@pytest.mark.usefixtures("quick_fits", "quick_pictures")
@pytest.mark.parametrize(
    ("array", "options"),
    [
        (GREY, {}),
        (GREY, {"likelihood": "discretized_logistic"}),
        (RNG.rand(60, 5, 6, 3).astype(np.float32), {"vae": "test_data_large:convolutional"}),
    ],
    ids=["grey", "discrete", "colour"],
)
def test_a_comparison_has_the_same_numbers(tmp_path, mapped, array, options):
    np.save(tmp_path / "a.npy", array)
    first = compared(tmp_path / "whole", tmp_path / "a.npy", **options)
    mapped()
    second = compared(tmp_path / "streamed", tmp_path / "a.npy", **options)
    assert first == second and len(first[1]) == 1
    weights = [torch.load(tmp_path / name / "runs" / "seed0-aef" / "best.pt", weights_only=True)
               for name in ("whole", "streamed")]  # fmt: skip
    assert all(torch.equal(value, weights[1][name]) for name, value in weights[0].items())


class Convolutional(torch.nn.Module):
    def __init__(self, channels, height, width):
        super().__init__()
        self.down = torch.nn.Conv2d(channels, 5, 3, padding=1)
        self.q, self.p = (torch.nn.Linear(5 * height * width, 4), torch.nn.Linear(2, channels * height * width))
        self.shape = channels, height, width

    def encode(self, x):
        return self.q(self.down(x).tanh().flatten(1)).chunk(2, 1)

    def decode(self, z):
        return self.p(z).unflatten(1, self.shape)


def convolutional(event_shape):
    vae = Convolutional(*event_shape)
    return {"vae": vae, "encoder": vae.encode, "decoder": vae.decode, "encoder_scale": "log_var"}


@pytest.mark.usefixtures("quick_fits")
def test_evaluate_and_check_read_the_same_rows(tmp_path, mapped, monkeypatch):
    pytest.importorskip("lightning")
    pytest.importorskip("typer")
    from typer.testing import CliRunner

    from vae2aef.cli import app

    np.save(tmp_path / "a.npy", TABLE)
    said = []
    for name in ("whole", "streamed"):
        if name == "streamed":
            mapped()
        data, out = str(tmp_path / "a.npy"), str(tmp_path / f"{name}.json")
        found = CliRunner().invoke(
            app,
            ["evaluate", "--vae", "mlp", "--data", data, "--likelihood", "0.5", "--importance-samples", "8",
             "--latents", "2", "--test-limit", "10", "--out", out],
        )  # fmt: skip
        assert found.exit_code == 0, found.output
        checked = CliRunner().invoke(app, ["check", "mlp", "--data", data, "--latents", "2", "--preprocess", "none"])
        refused = CliRunner().invoke(app, ["check", "mlp", "--data", data])
        assert refused.exit_code == 2 and "--preprocess logit takes data within 0 and 1" in refused.output
        content = re.sub(r'"[a-z_]*seconds": [\d.]+', "", (tmp_path / f"{name}.json").read_text().replace(name, ""))
        said.append((content, checked.exit_code, checked.output, refused.output))
    assert said[0] == said[1]


MEASURED = """
import sys
import torch
from vae2aef.comparison.batches import Batches
from vae2aef.comparison.data import load

def own():
    line, = (line for line in open("/proc/self/status") if line.startswith("RssAnon"))
    return int(line.split()[1]) * 1024

import numpy as np
np.unique(np.arange(3000)), torch.randperm(3000)
before = own()
data = load(sys.argv[1])
train, _ = data.split_validation()
most = own() - before
for x in Batches(train, data.bins, 64, 20, 0):
    assert x.shape == (64, 1, 28, 28) and x.dtype == torch.float32
    most = max(most, own() - before)
data.digest()
print(max(most, own() - before), data.bins, len(train), data.some_test(100).shape[0])
"""


@pytest.mark.slow
@pytest.mark.skipif(not os.path.exists("/proc/self/status"), reason="read from Linux's /proc")
def test_memory_is_a_small_part_of_the_file(tmp_path):
    """300 MB, of which most are holes in the file; read as a whole they are as large in memory as others."""
    size = 300_000_000 // 784
    x = np.lib.format.open_memmap(tmp_path / "a.npy", "w+", np.uint8, (size, 28, 28))
    x[:: size // 100] = RNG.randint(0, 256, x[:: size // 100].shape)
    x.flush()
    del x
    run = subprocess.run(
        [sys.executable, "-c", MEASURED, str(tmp_path / "a.npy")], capture_output=True, text=True, check=True
    )
    most, bins, train, test = map(int, run.stdout.split())
    assert (bins, train, test) == (256, size - round(0.2 * size) - round(0.1 * (size - round(0.2 * size))), 100)
    assert most < 40_000_000
