"""Pyro's own examples, run from a checkout with one line changed; stand-ins for what cannot be downloaded.

Runs where VAE2AEF_CHECKOUTS names a folder that holds a checkout: git clone https://github.com/pyro-ppl/pyro
"""

import contextlib
import importlib
import json
import logging
import os
import sys
import types
from argparse import Namespace
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

ROOT = Path(os.environ.get("VAE2AEF_CHECKOUTS", "/nowhere")) / "pyro"
AEF = "import vae2aef\n"


@contextlib.contextmanager
def modules(path: Path, **stand_ins: Any) -> Iterator[None]:
    """Make a folder importable, with modules of a few names in the place of those that are not here.

    What is imported meanwhile of the folder, or by these stand-ins, is forgotten afterwards.
    """
    vision = {"torchvision": {"transforms": None}, "torchvision__datasets": {"MNIST": object}}
    kept = dict(sys.modules)
    sys.path.insert(0, str(path))
    try:
        for name, contents in {**vision, **stand_ins}.items():
            module = types.ModuleType(name.replace("__", "."))
            vars(module).update(contents)
            sys.modules[module.__name__] = module
        vars(sys.modules["torchvision"])["datasets"] = sys.modules["torchvision.datasets"]
        yield
    finally:
        sys.path.remove(str(path))
        for name in set(sys.modules) - set(kept):
            file = getattr(sys.modules[name], "__file__", None)
            if file is None or Path(file).is_relative_to(ROOT) or name.startswith("pyro.contrib.examples"):
                del sys.modules[name]
        sys.modules.update({name: module for name, module in kept.items() if sys.modules.get(name) is not module})


def run(text: str, name: str, changes: dict[str, str]) -> Any:
    """Run the text of a script as a module, with some lines changed, each of which must be in it once."""
    for old, new in changes.items():
        assert text.count(old) == 1, f"{name}: {old!r} is there {text.count(old)} times"
        text = text.replace(old, new)
    module = types.ModuleType(name)
    module.__file__ = str(ROOT / f"{name}.py")
    sys.modules[name] = module
    exec(compile(AEF + text, f"{name}.py", "exec"), vars(module))
    return module


def notebook(name: str, cells: Callable[[str], bool]) -> str:
    """The code of a notebook's cells that a condition holds for."""
    found = json.loads((ROOT / "tutorial/source" / f"{name}.ipynb").read_text())["cells"]
    texts = ["".join(cell["source"]) for cell in found if cell["cell_type"] == "code"]
    return "\n".join(text for text in texts if cells(text))


# ---------------------------------------------------------------------- data


def digits(size: int = 28) -> tuple[Tensor, Tensor]:
    """scikit-learn's digits, enlarged, in [0, 1], `(1797, size * size)`, and their classes."""
    from sklearn.datasets import load_digits

    found = load_digits()
    images = torch.tensor(found.images / 16, dtype=torch.float32).unsqueeze(1)
    big = torch.nn.functional.interpolate(images, (size, size), mode="bilinear").clamp(0, 1)
    return big.flatten(1), torch.tensor(found.target)


def bits(rows: int) -> tuple[Tensor, Tensor]:
    """The first digits as bits, `(rows, 784)`, and their classes one-hot."""
    x, y = digits()
    return (x[:rows] > 0.5).float(), torch.nn.functional.one_hot(y[:rows], 10).float()


class Loader(list):
    """Batches, with as much of a DataLoader as the examples look at."""

    def __init__(self, pairs: Any, rows: int) -> None:
        super().__init__(pairs)
        self.dataset = range(rows)


def songs(rows: int, notes: int = 88) -> tuple[Tensor, Tensor]:
    """Songs of different length that walk up and down, `(rows, 12, notes)`, and their lengths."""
    generator = torch.Generator().manual_seed(3)
    lengths = torch.randint(4, 13, (rows,), generator=generator)
    start = torch.randint(20, 60, (rows, 1), generator=generator)
    step = torch.randint(-2, 3, (rows, 12), generator=generator).cumsum(1)
    x = torch.nn.functional.one_hot((start + step).clamp(0, notes - 1), notes).float()
    x = x + x.roll(4, -1) + x.roll(7, -1)
    return x.clamp(max=1) * (torch.arange(12) < lengths.unsqueeze(1)).unsqueeze(-1), lengths


# ---------------------------------------------------------------------- the examples


class Trained(types.SimpleNamespace):
    """An example after its own `main`: model, guide, the AEF guide or None, an example of the arguments, losses."""


def vae(epochs: int, rows: int = 256, aef: bool = True, jit: bool = False) -> Trained:
    """examples/vae/vae.py: its `main`."""
    x, y = bits(rows)
    batches = [(b.reshape(-1, 1, 28, 28), y) for b in x.split(64)]
    told: list[str] = []
    with modules(
        ROOT / "examples/vae", visdom={}, utils__mnist_cached={
            "MNISTCached": None, "setup_data_loaders": lambda *a, **k: (Loader(batches, rows), Loader(batches, rows))
        }, utils__vae_plots={"mnist_test_tsne": None, "plot_llk": lambda *a: None, "plot_vae_samples": None},
        utils={},
    ):  # fmt: skip
        changes = {"svi = SVI(vae.model, vae.guide, optimizer": (
            "vae.aef = vae2aef.aef_guide(vae.model, vae.guide)\n"
            "    svi = SVI(vae.model, vae.aef, optimizer")} if aef else {}  # fmt: skip
        module = run((ROOT / "examples/vae/vae.py").read_text(), "pyro_vae", changes)
        vars(module)["print"] = told.append
        options = {"cuda": False, "learning_rate": 1e-3, "jit": jit, "visdom_flag": False, "num_epochs": epochs}
        trained = module.main(Namespace(**options, test_frequency=1, tsne_iter=-1))
    losses = [float(line.split()[-1]) for line in told if "training" in line]
    return Trained(
        model=trained.model,
        guide=trained.guide,
        aef=getattr(trained, "aef", None),
        losses=losses,
        args=(batches[0][0],),
    )


def ss_vae(epochs: int, rows: int = 240, aef: bool = True, how: str = "parallel", jit: bool = False) -> Trained:
    """examples/vae/ss_vae_M2.py: its `main`, with labels for some batches."""
    x, y = bits(rows)
    batches = list(zip(x.split(40), y.split(40), strict=True))
    loaders = {"sup": batches[:1], "unsup": batches[1:], "valid": batches[:1], "test": batches[:1]}
    told: list[str] = []
    kept: dict[str, Any] = {}
    with modules(
        ROOT / "examples/vae", visdom={"Visdom": None}, utils__mnist_cached={
            "MNISTCached": Namespace(train_data_size=rows), "mkdir_p": None,
            "setup_data_loaders": lambda *a, **k: loaders
        }, utils__vae_plots={"mnist_test_tsne_ssvae": None, "plot_conditional_samples_ssvae": None},
    ):  # fmt: skip
        mark = "guide = config_enumerate(ss_vae.guide, args.enum_discrete, expand=True)\n"
        line = f"{mark}    guide = vae2aef.aef_guide(ss_vae.model, guide)\n" if aef else mark
        changes = {mark: f"{line}    kept.update(vae=ss_vae, guide=guide)\n"}
        module = run((ROOT / "examples/vae/ss_vae_M2.py").read_text(), "pyro_ss_vae", changes)
        vars(module).update(kept=kept, print_and_log=lambda logger, line: told.append(line))
        module.main(Namespace(
            seed=0, visualize=False, z_dim=8, hidden_layers=[64], cuda=False, enum_discrete=how, jit=jit,
            aux_loss=True, aux_loss_multiplier=46, learning_rate=1e-3, beta_1=0.9, logfile=None, batch_size=40,
            sup_num=40, num_epochs=epochs,
        ))  # fmt: skip
    losses = [sum(map(float, line.split("avg losses")[1].split("validation")[0].split()[::2])) for line in told[:-1]]
    return Trained(
        model=kept["vae"].model, guide=kept["vae"].guide, aef=kept["guide"] if aef else None, losses=losses,
        args=(x[:40],), labelled=(x[:40], y[:40]), vae=kept["vae"],
    )  # fmt: skip


def cvae(epochs: int, rows: int = 256, aef: bool = True) -> Trained:
    """examples/cvae: its `baseline.train` and `cvae.train`."""
    images = digits()[0][:rows].reshape(-1, 28, 28)
    out = images.clone()
    out[:, 14:, :14] = -1
    inputs = torch.where(out == -1, images, torch.full((), -1.0))
    batches = [{"input": a, "output": b} for a, b in zip(inputs.split(64), out.split(64), strict=True)]
    loaders, sizes = {"train": batches, "val": batches[:1]}, {"train": rows, "val": 64}
    kept: dict[str, Any] = {"losses": []}
    with modules(ROOT / "examples/cvae"):
        import tempfile

        baseline = importlib.import_module("baseline")
        line = "svi = SVI(cvae_net.model, cvae_net.guide, optimizer, loss=Trace_ELBO())"
        made = "kept['aef'] = vae2aef.aef_guide(cvae_net.model, cvae_net.guide)\n    "
        marks = {line: made + line.replace("cvae_net.guide", "kept['aef']")} if aef else {}
        marks["epoch_loss = running_loss / dataset_sizes[phase]"] = (
            "epoch_loss = running_loss / dataset_sizes[phase]\n            kept['losses'].append((phase, epoch_loss))"
        )
        module = run((ROOT / "examples/cvae/cvae.py").read_text(), "pyro_cvae", marks)
        vars(module)["kept"] = kept
        with tempfile.TemporaryDirectory() as folder:
            common = ("cpu", loaders, sizes, 1e-3, epochs, 9)
            net = baseline.train(*common, f"{folder}/baseline.pth")
            trained = module.train(*common, f"{folder}/cvae.pth", net)
    return Trained(
        model=trained.model, guide=trained.guide, aef=kept.get("aef"), args=(inputs[:64], out[:64]),
        losses=[loss for phase, loss in kept["losses"] if phase == "train"], vae=trained,
    )  # fmt: skip


def dmm(epochs: int, rows: int = 60, aef: bool = True, iafs: int = 0, jit: bool = False, options: str = "") -> Trained:
    """examples/dmm.py: its `main`, on ragged songs."""
    x, lengths = songs(rows)
    data = {k: {"sequences": x, "sequence_lengths": lengths} for k in ("train", "test", "valid")}
    told: list[str] = []
    kept: dict[str, Any] = {}
    with modules(ROOT / "examples"):
        poly = importlib.import_module("pyro.contrib.examples.polyphonic_data_loader")
        mark = "svi = SVI(dmm.model, dmm.guide, adam, loss=elbo)\n"
        line = mark.replace("dmm.guide", "kept['aef']") if aef else mark
        made = f"kept['aef'] = vae2aef.aef_guide(dmm.model, dmm.guide{options})\n        " if aef else ""
        changes = {mark: made + line + "        kept['dmm'] = dmm\n"}
        module = run((ROOT / "examples/dmm.py").read_text(), "pyro_dmm", changes)
        fake = types.SimpleNamespace(**{**vars(poly), "load_data": lambda name: data})
        logger = types.SimpleNamespace(
            info=lambda line: told.append(str(line)), basicConfig=lambda **k: None, INFO=0, DEBUG=0,
            StreamHandler=lambda: Namespace(setLevel=lambda level: None),
            getLogger=lambda name: Namespace(addHandler=lambda h: None),
        )  # fmt: skip
        vars(module).update(kept=kept, poly=fake, logging=logger)
        module.main(Namespace(
            num_epochs=epochs, learning_rate=3e-4, beta1=0.96, beta2=0.999, clip_norm=10.0, lr_decay=0.99996,
            weight_decay=0.0, mini_batch_size=20, annealing_epochs=0, minimum_annealing_factor=0.2,
            rnn_dropout_rate=0.1, num_iafs=iafs, iaf_dim=100, checkpoint_freq=0, load_opt="", load_model="",
            save_opt="", save_model="", cuda=False, jit=jit, tmc=False, tmcelbo=False, tmc_num_samples=2, log="",
        ))  # fmt: skip
    losses = [float(line.split("]")[1].split()[0]) for line in told if "training epoch" in line]
    batch = poly.get_mini_batch(torch.arange(20), x, lengths)
    return Trained(model=kept["dmm"].model, guide=kept["dmm"].guide, aef=kept.get("aef"), losses=losses, args=batch)


def flow_prior(epochs: int, rows: int = 256, aef: bool = True) -> Trained:
    """tutorial/source/vae_flow_prior.ipynb: its cells, with smaller networks."""
    x = bits(rows)[0]
    batches = [(b.reshape(-1, 1, 28, 28), None) for b in x.split(64)]
    text = notebook("vae_flow_prior", lambda t: "class " in t or t.startswith("import") or "SVI(" in t)
    small = {"from torchvision.datasets import MNIST\n": "", "tqdm import tqdm": "tqdm import tqdm  # noqa",
             "from torchvision.transforms.functional import to_tensor, to_pil_image\n": "",
             "vae = VAE(784, 16).cuda()": "vae = VAE(784, 4)", ".flatten(-3).cuda()": ".flatten(-3)",
             "range(96)": f"range({epochs})"}  # fmt: skip
    if aef:
        small["svi = SVI(vae.model, vae.guide, "] = (
            "aef = vae2aef.aef_guide(vae.model, vae.guide)\nsvi = SVI(vae.model, aef, "
        )
    small["losses = torch.tensor(losses)\n"] = "losses = torch.tensor(losses)\n    told.append(losses.sum().item())\n"
    told: list[float] = []
    with modules(ROOT):
        sys.path.remove(str(ROOT))  # the installed Pyro, not the checkout's
        text = text.replace("1024", "32").replace("(256, 256)", "(16, 16)")
        text = "trainloader, trainset, told = DATA\n" + text
        module = types.ModuleType("pyro_flow_prior")
        for old, new in small.items():
            assert text.count(old) == 1, old
            text = text.replace(old, new)
        vars(module)["DATA"] = (batches, range(rows), told)
        exec(compile(AEF + text, "vae_flow_prior", "exec"), vars(module))
        sys.path.insert(0, str(ROOT))
    made = module.vae
    return Trained(
        model=made.model, guide=made.guide, aef=getattr(module, "aef", None), losses=[t / rows for t in told],
        args=(x[:64],), vae=made,
    )  # fmt: skip


def prodlda(epochs: int, rows: int = 200, aef: bool = True) -> Trained:
    """tutorial/source/prodlda.ipynb: its cells, on documents of three topics."""
    generator = torch.Generator().manual_seed(0)
    topics = torch.rand(3, 40, generator=generator) ** 4
    mix = torch.rand(rows, 3, generator=generator) ** 3
    docs = torch.poisson(60 * (mix / mix.sum(1, True)) @ (topics / topics.sum(1, True)), generator=generator)
    wanted = ("class ProdLDA", "class Encoder", "torch.nn as nn", "seed = 0", "# training", "smoke_test = 'CI'")
    text = notebook("prodlda", lambda t: any(mark in t for mark in wanted))
    text = text.replace("assert pyro.__version__.startswith('1.9.1')", "").replace("trange(num_epochs)", "trange(N)")
    text = text.replace("smoke_test = 'CI' in os.environ", "smoke_test = False").replace(
        "num_topics = 20", "num_topics = 3"
    )
    mark = "svi = SVI(prodLDA.model, prodLDA.guide, optimizer"
    assert text.count(mark) == 1
    if aef:
        made = "aef = vae2aef.aef_guide(prodLDA.model, prodLDA.guide)\n"
        text = text.replace(mark, made + "svi = SVI(prodLDA.model, aef, optimizer")
    end = "bar.set_postfix"
    assert text.count(end) == 1
    text = text.replace(end, "told.append(running_loss / num_batches)\n    bar.set_postfix")
    told: list[float] = []
    module = types.ModuleType("pyro_prodlda")
    vars(module).update(N=epochs, told=told, docs=docs)
    exec(compile(AEF + text, "prodlda", "exec"), vars(module))
    return Trained(
        model=module.prodLDA.model, guide=module.prodLDA.guide, aef=getattr(module, "aef", None), losses=told,
        args=(docs[:32],), vae=module.prodLDA,
    )  # fmt: skip


def scanvi(epochs: int, aef: bool = True, options: str = ", core='log'") -> Trained:
    """examples/scanvi/scanvi.py: its `main`, on its own mock data."""
    kept: dict[str, Any] = {}
    told: list[str] = []
    with modules(ROOT / "examples/scanvi"):
        mark = 'guide = config_enumerate(scanvi.guide, "parallel", expand=True)\n'
        line = f"{mark}    guide = vae2aef.aef_guide(scanvi.model, guide{options})\n" if aef else mark
        changes = {mark: f"{line}    kept.update(vae=scanvi, guide=guide, loader=dataloader)\n"}
        module = run((ROOT / "examples/scanvi/scanvi.py").read_text(), "pyro_scanvi", changes)
        vars(module).update(kept=kept)
        vars(module)["print"] = told.append
        module.main(Namespace(
            seed=0, dataset="mock", batch_size=100, cuda=False, learning_rate=0.005, num_epochs=epochs, plot=False
        ))  # fmt: skip
    x, y = next((x, y) for x, y in kept["loader"] if y is not None)
    return Trained(
        model=kept["vae"].model, guide=kept["vae"].guide, aef=kept["guide"] if aef else None,
        losses=[float(line.split()[-1]) for line in told], args=(x,), labelled=(x, y.type_as(x)), vae=kept["vae"],
    )  # fmt: skip


def cevae(epochs: int, rows: int = 300, aef: bool = True, outcome: str = "bernoulli") -> Trained:
    """pyro.contrib.cevae, on the data of examples/contrib/cevae/synthetic.py."""
    import pyro.contrib.cevae as contrib

    logging.getLogger("pyro").addHandler(logging.NullHandler())  # the script asks for the first one
    with modules(ROOT / "examples/contrib/cevae"):
        text = (ROOT / "examples/contrib/cevae/synthetic.py").read_text()
        module = run(text.replace("pyro.__version__.startswith", "str"), "pyro_synthetic", {})
        x, t, y, ite = module.generate_data(Namespace(num_data=rows, feature_dim=5))
    made = contrib.CEVAE(feature_dim=5, latent_dim=4, hidden_dim=16, num_layers=2, outcome_dist=outcome)
    guide = made.guide
    if aef:
        import vae2aef

        made.guide = vae2aef.aef_guide(made.model, made.guide)
    losses = made.fit(x, t, y, num_epochs=epochs, batch_size=100, log_every=0)
    return Trained(
        model=made.model, guide=guide, aef=made.guide if aef else None, losses=losses, args=(x[:50], t[:50], y[:50]),
        vae=made, ite=ite, x=x,
    )  # fmt: skip


def air(steps: int, rows: int = 40, aef: bool = True) -> Trained:
    """examples/air/main.py: its `main`, on pictures of two digits."""
    images = digits(20)[0].reshape(-1, 20, 20)
    x = torch.zeros(rows, 50, 50)
    for i in range(rows):
        x[i, 2:22, 3:23], x[i, 26:46, 25:45] = images[2 * i], images[2 * i + 1]
    told: list[str] = []
    kept: dict[str, Any] = {}
    with modules(
        ROOT / "examples/air",
        visdom={},
        viz={"draw_many": None, "tensor_to_objs": None},
        observations={"multi_mnist": None},
    ):
        mark = "svi = SVI(air.model, air.guide, adam, loss=elbo)"
        line = mark.replace("air.guide", "aef") if aef else mark
        made = "aef = kept['aef'] = vae2aef.aef_guide(air.model, air.guide)\n    " if aef else ""
        text = (ROOT / "examples/air/main.py").read_text()
        text = text.replace("import pyro.contrib.examples.multi_mnist as multi_mnist\n", "")
        module = run(text, "pyro_air", {mark: made + line + "\n    kept['air'] = air"})
        vars(module).update(kept=kept, load_data=lambda: (x, torch.full((rows,), 2.0)))
        vars(module)["print"] = told.append
        module.main(
            num_steps=steps, batch_size=16, learning_rate=1e-4, baseline_learning_rate=1e-3, progress_every=1,
            eval_every=0, no_baselines=False, no_masking=False, encoder_net=[20], decoder_net=[20], viz=False,
            model_steps=3, rnn_hidden_size=16, encoder_latent_size=5, z_pres_prior=0.5, z_pres_prior_raw=False,
            anneal_prior="none", cuda=False, jit=False, seed=0, verbose=False, window_size=22,
        )  # fmt: skip
    losses = [float(line.split("elbo=")[1]) for line in told if "elbo=" in line]
    return Trained(model=kept["air"].model, guide=kept["air"].guide, aef=kept.get("aef"), losses=losses, args=(x, 16))


def sparse_gamma(aef: bool = True, guide: str = "custom") -> Trained:
    """examples/sparse_gamma_def.py: its class, whose guides do not see the data."""
    with modules(ROOT / "examples", wget={}):
        text = (ROOT / "examples/sparse_gamma_def.py").read_text()
        module = run(text, "pyro_sparse_gamma", {"self.image_size = 64 * 64": "self.image_size = 64"})
        made = module.SparseGammaDEF()
    guides = {"custom": lambda: made.guide, "easy": lambda: module.MyEasyGuide(made.model),
              "auto": lambda: module.AutoDiagonalNormal(made.model)}  # fmt: skip
    return Trained(model=made.model, guide=guides[guide](), aef=None, losses=[], args=(digits(8)[0][:20].round(),))


# ---------------------------------------------------------------------- the table of docs/your_pyro_model.md


def marginal(trained: Trained, args: tuple, rows: int = 8) -> float:
    """Mean log p(x) of some rows by `from_pyro(...).log_prob`, nats: the same estimate whatever the training."""
    import vae2aef

    few = vae2aef.batch.Batch(args[0], tuple(args[1:])).head(min(rows, len(args[0])))
    given = (few.x, *few.cond)
    aef = vae2aef.from_pyro(trained.model, trained.guide, *given, core="noise", core_flow="none")
    torch.manual_seed(0)
    index = aef.parts.program.pair.position if hasattr(aef.parts, "program") else aef.parts.pair.position
    x, rest = given[index], (*given[:index], *given[index + 1 :])
    return float(aef.log_prob(x, *rest, num_samples=64, proposal="tuned").value.mean())


ROWS: dict[str, Callable[[bool], Trained]] = {
    "vae.py": lambda aef: vae(8, aef=aef),
    "ss_vae_M2": lambda aef: ss_vae(8, aef=aef),
    "cvae": lambda aef: cvae(6, aef=aef),
    "dmm": lambda aef: dmm(4, aef=aef),
    "dmm with IAF": lambda aef: dmm(8, aef=aef, iafs=1),
    "vae_flow_prior": lambda aef: flow_prior(8, aef=aef),
    "prodlda": lambda aef: prodlda(20, aef=aef),
    "scanvi": lambda aef: scanvi(10, aef=aef),
    "air": lambda aef: air(30, aef=aef),
    "contrib.cevae": lambda aef: cevae(20, aef=aef),
}


def main(names: list[str]) -> None:
    """Print a line for each example: the loss of its first and last epoch, and log p(x), without and with the AEF."""
    import pyro

    for name in names or list(ROWS):
        found = []
        for aef in (False, True):
            pyro.clear_param_store()
            pyro.set_rng_seed(0)
            trained = ROWS[name](aef)
            try:
                value = f"{marginal(trained, getattr(trained, 'labelled', trained.args)):.1f}"
            except Exception as error:
                value = f"{type(error).__name__}: {str(error)[:160]}"
            found.append(f"loss {trained.losses[0]:.2f} -> {trained.losses[-1]:.2f}, log p {value}")
        print(f"ROW {name} | {found[0]} | {found[1]}", flush=True)


if __name__ == "__main__":
    main(sys.argv[1:])
