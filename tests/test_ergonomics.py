"""What a person writes first, and how an AEF is saved, loaded, shown, handed on."""

import io
import re
import warnings

import numpy as np
import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

import vae2aef
from vae2aef.comparison.nets import MLPVAE
from vae2aef.errors import WrapError, WrapWarning
from vae2aef.saved import OTHER
from vae2aef.wrapping import optimizer_warning

EVENT = (1, 2, 3)


def vae():
    return MLPVAE(EVENT, 2, hidden=8)


def made(**options):
    torch.manual_seed(0)
    own = vae()
    return vae2aef.wrap(own, example=torch.rand(16, *EVENT), **{"core_flow": "coupling", "noise": 0.3, **options})


@pytest.fixture(scope="module")
def aef():
    return made()


# ---------------------------------------------------------------- batches of a loader


def test_a_batch_with_labels_says_what_to_write(aef):
    loader = DataLoader(TensorDataset(torch.rand(8, *EVENT), torch.zeros(8)), batch_size=4)
    batch = next(iter(loader))
    for use in (aef, aef.log_prob, aef.reconstruct, aef.expanded_log_prob, aef.gauge):
        with pytest.raises(TypeError, match=r"got a list of 2: .*for x, y in loader: loss = aef\(x\).*aef\(x, y\) if"):
            use(batch)
    with pytest.raises(TypeError, match=r"aef\(batch\['image'\]\)"):
        aef({"image": batch[0]})
    for x, _ in loader:  # what the message says
        aef(x).backward()


@pytest.mark.remedy("{} -- the example is (x, y), so that y, {}")
def test_an_example_with_labels_says_what_to_write():
    own = nn.Module()
    own.encoder, own.decoder = nn.Linear(6, 4), nn.Linear(2, 6)
    options = {"encoder": lambda x: own.encoder(x).chunk(2, 1), "decoder": own.decoder, "encoder_scale": "log_var"}
    batch = [torch.rand(8, 6), torch.zeros(8, dtype=torch.long)]
    with pytest.raises(WrapError, match=r"a condition of the VAE; if it is a label.*pass example=x") as caught:
        vae2aef.wrap(own, example=batch, **options)
    assert caught.value.fix == "pass example=x"
    vae2aef.wrap(own, example=batch[0], **options)


def test_an_example_with_labels_that_is_refused_for_another_reason_has_one_remedy():
    """A condition that the VAE takes has no part in it: the remedy for tokens ended in `pass example=x`."""
    words = nn.ModuleDict({"table": nn.Embedding(7, 4), "back": nn.Linear(2, 7)})
    with pytest.raises(TypeError, match=r'Pass likelihood="categorical"$') as caught:
        vae2aef.wrap(words, example=(torch.randint(7, (4, 6)), torch.arange(4)))
    assert caught.value.fix == 'Pass likelihood="categorical"'


# ---------------------------------------------------------------- grey levels


@pytest.mark.remedy("the example holds grey levels ({}) as floati")
@pytest.mark.parametrize(("scale", "line"), [(255, r"\(255 \* x\)"), (1, r"dequantize\(x\.to")])
def test_grey_levels_that_get_a_density_are_warned_of(scale, line):
    levels = torch.randint(0, 256, (64, *EVENT))
    x = levels.float() / scale
    with pytest.warns(WrapWarning, match=rf"grow without bound.*{line}"):
        vae2aef.wrap(vae(), example=x)
    with pytest.warns(WrapWarning, match=rf"Dequantise them, .*{line}.*\)$"):  # there only a density will do
        vae2aef.wrap(vae(), example=x, preprocess="standardize")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        vae2aef.wrap(vae(), example=vae2aef.dequantize(levels.to(torch.uint8)))
        vae2aef.wrap(vae(), example=levels / 255, likelihood="discretized_logistic")
        vae2aef.wrap(vae(), example=levels.to(torch.uint8), preprocess="dequantize")
        vae2aef.wrap(vae(), example=torch.rand(64, *EVENT))
        # whole numbers below 0, and too few values to tell
        vae2aef.wrap(vae(), example=(levels - 128).float())
        vae2aef.wrap(vae(), example=levels[:10].float() / 255)


@pytest.mark.parametrize("top", [15, 16, 31])
def test_few_grey_levels_get_lines_that_count_them(top):
    """Those of 4 and 5 bits, and of scikit-learn's digits; the lines are followed."""
    x = torch.randint(0, top + 1, (64, *EVENT)) / top
    with pytest.warns(WrapWarning, match="the example holds grey levels") as caught:
        vae2aef.wrap(vae(), example=x)
    (fix,) = [warning.message.fix for warning in caught]
    bins = 256 if top == 15 else top + 1  # whose levels are among those of 8 bits
    likelihood = re.search(r"likelihood=(.*)$", fix).group(1)
    made = eval(likelihood, {"vae2aef": vae2aef, "x": x})
    assert made == "discretized_logistic" if bins == 256 else made.bins == bins
    line = re.search(r"x = (vae2aef\.dequantize\(.*?\)), or", fix).group(1)
    given = eval(line, {"vae2aef": vae2aef, "torch": torch, "x": x})
    assert torch.equal((given * bins).floor(), (x * (bins - 1)).round())
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        vae2aef.wrap(vae(), example=given)
        vae2aef.wrap(vae(), example=x, likelihood=made)
        vae2aef.wrap(vae(), example=torch.randint(0, top, (64, *EVENT)) / (3 * top))


@pytest.mark.remedy("the example holds bits (0 and 1), and th")
@pytest.mark.parametrize("likelihood", ["bernoulli", "bernoulli_logits"])
def test_bits_that_get_a_density_are_warned_of(likelihood):
    own = vae()
    if likelihood == "bernoulli":
        own.decoder.append(nn.Sigmoid())
    x = (torch.rand(64, *EVENT) < 0.3).float()
    with pytest.warns(WrapWarning, match=f'grow without bound.*likelihood="{likelihood}"$'):
        vae2aef.wrap(own, example=x, likelihood="gaussian")
    for core, preprocess in (("center", None), (None, "logit")):
        with pytest.warns(WrapWarning, match=r"x = vae2aef\.dequantize\(x, bins=2\)$"):
            vae2aef.wrap(own, example=0.5 * (x + x) if core else x, core=core, preprocess=preprocess)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        vae2aef.wrap(own, example=x, likelihood=likelihood)
        vae2aef.wrap(own, example=vae2aef.dequantize(x, bins=2), core="center")


# ---------------------------------------------------------------- sampling


def test_sample_says_what_it_takes(aef):
    with pytest.raises(TypeError, match=r"as a whole number, got \(2, 3\); sample\(6\) draws as many"):
        aef.sample((2, 3))
    for n in (2.0, "3", True, None):
        with pytest.raises(TypeError, match="as a whole number"):
            aef.sample(n)
    with pytest.raises(ValueError, match="at least 0, got -1"):
        aef.sample(-1)
    with pytest.raises(TypeError, match=r"takes no generator.*torch\.manual_seed\(0\)"):
        aef.sample(2, generator=torch.Generator())
    assert aef.sample(torch.tensor(3)).shape == (3, *EVENT) and aef.sample(0).shape == (0, *EVENT)


# ---------------------------------------------------------------- the optimizer hook


def test_the_hook_can_be_taken_off():
    def hooks():
        from torch.optim import optimizer

        return len(optimizer._global_optimizer_post_hooks)

    made()
    try:
        assert hooks() == 1
        vae2aef.watch_optimizers(False)
        assert hooks() == 0
        other = made()
        assert hooks() == 0
        step(other)  # no warning
    finally:
        vae2aef.watch_optimizers(True)
    other = made()
    assert hooks() == 1
    with pytest.warns(optimizer_warning.OptimizerWarning):
        step(other)


def step(aef):
    """As the usual mistake does."""
    optimizer = torch.optim.SGD(aef.vae.parameters(), lr=0.1)
    for _ in range(2):
        aef(torch.rand(4, *EVENT)).backward()
        optimizer.step()


# ---------------------------------------------------------------- files


@pytest.mark.parametrize(
    "options",
    [{}, {"core": "center", "noise": 0.0}, {"prior": "maf", "preprocess": ["logit", "standardize"]},
     {"start": "exact", "core_flow": "maf"}, {"likelihood": "shared", "kl": "sampled"},
     {"noise": np.float64(0.5), "likelihood": np.float32(0.25), "start": np.str_("random")}],
)  # fmt: skip
def test_saved_and_loaded_it_is_the_same(tmp_path, options):
    aef = made(**options)
    with torch.no_grad():
        for p in aef.parameters():
            p.add_(0.05 * torch.randn_like(p))
    aef.save(tmp_path / "aef.pt")
    assert [p.name for p in tmp_path.iterdir()] == ["aef.pt"]
    own = vae()
    twin = vae2aef.load(tmp_path / "aef.pt", own)
    x = torch.rand(5, *EVENT)
    assert twin.vae is own and twin.kl == aef.kl and twin.noise == aef.noise
    assert torch.equal(twin.encode(x), aef.encode(x)) and torch.equal(twin.reconstruct(x), aef.reconstruct(x))
    assert torch.equal(twin.expanded_log_prob(x), aef.expanded_log_prob(x))
    assert twin.state_dict().keys() == aef.state_dict().keys()


def test_another_sigma_leaves_a_flow_that_began_exactly(tmp_path):
    aef = made(start="exact", core_flow="maf")
    aef.save(tmp_path / "aef.pt")
    twin = vae2aef.load(tmp_path / "aef.pt", vae(), noise=0.8)
    core = torch.randn(5, 2)
    assert twin.noise == 0.8 and aef.noise == 0.3
    for options, error in (({"core": "noise", "noise": 1.0}, ValueError), ({"prior": "coupling"}, WrapWarning)):
        made(**options).save(tmp_path / "other.pt")
        with warnings.catch_warnings(), pytest.raises(error, match=r"itself|noise=0 and a prior"):  # as wrap says
            warnings.simplefilter("error")
            vae2aef.load(tmp_path / "other.pt", vae(), noise=0.5 if error is ValueError else 0.0)
    assert torch.equal(twin.core_flow(core)[0], aef.core_flow(core)[0])


def test_what_no_file_holds_is_asked_for(tmp_path):
    own = vae()
    torch.manual_seed(0)
    options = {"encoder": own.encode, "decoder": own.decode, "encoder_scale": "log_var", "noise": 0.3}
    features = nn.Sequential(nn.Flatten(), nn.Linear(6, 2))
    aef = vae2aef.wrap(own, example=torch.rand(16, *EVENT), core=features, **options)
    assert aef.content(state=False)["options"]["core"] == OTHER
    aef.save(tmp_path / "a", example=False)
    other = vae()
    with pytest.raises(ValueError, match=r"saved without encoder, decoder, core.*load\(path, vae, encoder=\.\.\., "):
        vae2aef.load(tmp_path / "a", other)
    given = {"encoder": other.encode, "decoder": other.decode, "core": nn.Sequential(nn.Flatten(), nn.Linear(6, 2))}
    with pytest.raises(ValueError, match=r"without an example: vae2aef\.load\(path, vae, example=x\)"):
        vae2aef.load(tmp_path / "a", other, **given)
    x = torch.rand(16, *EVENT)
    twin = vae2aef.load(tmp_path / "a", other, example=x, noise=0.7, **given)
    assert twin.noise == pytest.approx(0.7) and torch.equal(twin.encode(x), aef.encode(x))


def test_files_that_are_none(tmp_path, aef):
    torch.save(aef.state_dict(), tmp_path / "state.pt")
    (tmp_path / "text").write_text("no file of tensors")
    with pytest.raises(ValueError, match=r"a state_dict is loaded by aef\.load_state_dict"):
        vae2aef.load(tmp_path / "state.pt", vae())
    with pytest.raises(ValueError, match="it cannot be read"):
        vae2aef.load(tmp_path / "text", vae())
    with pytest.raises(FileNotFoundError):
        vae2aef.load(tmp_path / "nothing", vae())


def test_loading_runs_no_code(tmp_path):
    class Bomb:
        def __reduce__(self):
            return (pytest.fail, ("code of the file was run",))

    torch.save({"format": "vae2aef 1", "state": Bomb()}, tmp_path / "bomb")
    with pytest.raises(ValueError, match="it cannot be read"):
        vae2aef.load(tmp_path / "bomb", vae())


def test_the_hub_offline_on_a_folder(tmp_path, aef, monkeypatch):
    pytest.importorskip("huggingface_hub")
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    vae2aef.AEFHub(aef).save_pretrained(tmp_path / "hub")
    assert (tmp_path / "hub" / "aef.pt").stat().st_size > 1000
    twin = vae2aef.AEFHub.from_pretrained(str(tmp_path / "hub"), vae=vae()).aef
    x = torch.rand(3, *EVENT)
    assert torch.equal(twin.encode(x), aef.encode(x))
    with pytest.raises(ValueError, match=r"expected the VAE too: AEFHub\.from_pretrained\(.*vae=MyVAE\(\)\)"):
        vae2aef.AEFHub.from_pretrained(str(tmp_path / "hub"))


# ---------------------------------------------------------------- shown


def test_summary_and_notebooks(aef):
    lines = aef.summary().splitlines()
    assert [line.split()[0] for line in lines] == [
        "part", lines[1].split()[0], "preprocess", "vae", "core", "core_flow", "prior", "likelihood", "all",
    ]  # fmt: skip
    core = next(line for line in lines if line.startswith("core "))
    assert "(1, 2, 3) -> (2,)" in core and core.split()[-1] == str(6 * 2 + 2)
    assert lines[-1].split()[-1] == f"{sum(p.numel() for p in aef.parameters()):,}"
    page = aef._repr_html_()
    assert page.count("<tr>") == len(lines) - 1 and "(1, 2, 3) -&gt; (2,)" in page and "sigma = 0.3" in page


# ---------------------------------------------------------------- Lightning


@pytest.mark.slow
def test_the_task_tests_predicts_and_comes_back(tmp_path):
    pytest.importorskip("lightning")
    from lightning.pytorch import Trainer

    from vae2aef.training import AEFTask

    aef = made(noise=0.3)
    task = AEFTask(aef, lr=3e-3, validation_samples=16)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        quiet = {"logger": False, "enable_progress_bar": False, "enable_model_summary": False}
        trainer = Trainer(
            accelerator="cpu", max_steps=3, enable_checkpointing=False, default_root_dir=tmp_path, **quiet
        )
        data = TensorDataset(torch.rand(20, *EVENT), torch.zeros(20))
        loader = DataLoader(data, batch_size=10)
        trainer.fit(task, loader)
        found = trainer.test(task, loader, verbose=False)[0]
        predicted = trainer.predict(task, loader)
        trainer.save_checkpoint(tmp_path / "a.ckpt")
    x = data.tensors[0]
    expected = aef.eval().log_prob(x, num_samples=16, seed=0)
    torch.testing.assert_close(torch.cat([part["log_prob"] for part in predicted]), expected.value, atol=1e-4, rtol=0)
    torch.testing.assert_close(torch.cat([part["z"] for part in predicted]), aef.encode(x))
    assert found["test_log_prob"] == pytest.approx(float(expected.value.mean()), abs=1e-3)
    assert found["test_bits_per_dim"] == pytest.approx(float(vae2aef.bits_per_dim(expected.value.mean(), EVENT, 1)))
    with pytest.raises(TypeError, match=r"expected an AEF, got .*MLPVAE: wrap it first"):
        AEFTask(vae())
    twin = AEFTask.from_checkpoint(tmp_path / "a.ckpt", vae())
    assert twin.lr == 3e-3 and torch.equal(twin.aef.encode(x), aef.encode(x))
    torch.save({"state_dict": {}}, tmp_path / "b.ckpt")
    with pytest.raises(ValueError, match="no checkpoint of an AEFTask"):
        AEFTask.from_checkpoint(tmp_path / "b.ckpt", vae())


# ---------------------------------------------------------------- compare from Python


def factory(event_shape, latents):
    own = MLPVAE(event_shape, latents, hidden=6)
    return {"vae": own, "encoder": own.encode, "decoder": own.decode, "encoder_scale": "log_var"}


@pytest.mark.usefixtures("quick_fits", "quick_pictures")
def test_compare_from_python(tmp_path, capsys, monkeypatch):
    pytest.importorskip("lightning")
    monkeypatch.setattr("rich.console._is_jupyter", lambda: True)  # there rich shows things by other ways than print
    options = {"steps": 3, "latents": 2, "core_flow": "none", "importance_samples": 8, "test_limit": 8}
    rows = vae2aef.compare(factory, "digits", tmp_path / "out", arms="vae,aef", device="cpu", quiet=True, **options)
    assert [row.arm for row in rows] == ["vae", "aef"] and capsys.readouterr().out == ""
    command = (tmp_path / "out" / "results.json").read_text()
    assert "test_ergonomics.py:factory" in command and "--device cpu" in command
    with pytest.raises(ValueError, match=r"can be imported by its name.*package\.module:factory"):
        vae2aef.compare(lambda: None, out=tmp_path / "b", quiet=True)
    with pytest.raises(ValueError, match="--device must be auto, cpu"):
        vae2aef.compare(device="tpu", out=tmp_path / "b", quiet=True)
    with pytest.raises(TypeError, match="step_count"):
        vae2aef.compare(step_count=3, out=tmp_path / "b")


def test_it_still_pickles_and_saves_as_before(aef):
    import pickle

    file = io.BytesIO()
    torch.save(aef.state_dict(), file)
    assert pickle.loads(pickle.dumps(aef)).content(state=False)["options"] == aef.content(state=False)["options"]
