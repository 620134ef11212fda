"""Pyro's own examples with `aef_guide` around the guide, and Pyro's own tests with it in the place of every guide.

Run where VAE2AEF_CHECKOUTS names a folder that holds a checkout: git clone https://github.com/pyro-ppl/pyro
"""

import importlib.util
import math
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

pyro = pytest.importorskip("pyro")
pytest.importorskip("sklearn")

import vae2aef  # noqa: E402

HERE = Path(__file__).parent
spec = importlib.util.spec_from_file_location("pyro_examples", HERE / "pyro_examples.py")
examples = importlib.util.module_from_spec(spec)
spec.loader.exec_module(examples)
pytestmark = [
    pytest.mark.slow,
    pytest.mark.filterwarnings("ignore"),  # theirs are many
    pytest.mark.skipif(not examples.ROOT.is_dir(), reason="VAE2AEF_CHECKOUTS names no folder with a checkout of Pyro"),
]


@pytest.fixture(autouse=True)
def fresh():
    pyro.clear_param_store()
    pyro.set_rng_seed(0)


RUNS = {  # of each: its own main, what h reads, its mapped sites
    "vae": (lambda: examples.vae(2), "x", {"latent"}),
    "vae, jit": (lambda: examples.vae(2, jit=True), "x", {"latent"}),
    "ss_vae": (lambda: examples.ss_vae(2), "xs", {"z"}),
    "ss_vae, sequential": (lambda: examples.ss_vae(2, how="sequential"), "xs", {"z"}),
    "cvae": (lambda: examples.cvae(2), "ys", {"z"}),
    "dmm": (lambda: examples.dmm(2, rows=20), "mini_batch", {f"z_{t}" for t in range(1, 13)}),
    "dmm, iaf": (lambda: examples.dmm(2, 20, iafs=1), "mini_batch", None),
    "flow prior": (lambda: examples.flow_prior(2), "x", {"z"}),
    "prodlda": (lambda: examples.prodlda(2), "docs", {"logtheta"}),
    "scanvi": (lambda: examples.scanvi(2), "x", {"l", "z2", "z1"}),
    "cevae": (lambda: examples.cevae(2), "x", {"z"}),
    "air": (lambda: examples.air(12), "data", None),
}


@pytest.mark.parametrize("name", RUNS)
def test_an_example_trains_with_one_line_changed(name):
    """Its own `main`, or cells; h reads the tensor that is scored, and the sites of its guide are mapped."""
    make, reads, sites = RUNS[name]
    trained = make()
    assert trained.losses and all(math.isfinite(loss) for loss in trained.losses)
    assert trained.aef.maps.source.path == (reads,)
    if sites is not None:
        assert set(trained.aef.trained()["core"]) == sites
    assert any(key.startswith("aef$$$") for key in pyro.get_param_store())
    few = 3 if name == "air" else 1  # of air, losses of single steps
    assert sum(trained.losses[-few:]) < sum(trained.losses[:few]), trained.losses
    arguments = getattr(trained, "labelled", trained.args)
    if name == "air":
        with pytest.raises(vae2aef.WrapError, match='"z_pres_0", Bernoulli, left to Pyro'):
            vae2aef.from_pyro(trained.model, trained.guide, *trained.args)
    else:
        assert math.isfinite(examples.marginal(trained, arguments, rows=2))


@pytest.mark.parametrize("guide", ["custom", "easy", "auto"])
def test_sparse_gamma_is_refused_with_the_true_reason(guide):
    trained = examples.sparse_gamma(guide=guide)
    with pytest.raises(vae2aef.WrapError, match=r"no site of the guide sees the data.*amortised|effect handler"):
        vae2aef.aef_guide(trained.model, trained.guide)(*trained.args)


def test_predictions_of_the_trained_examples():
    """cvae completes pictures from the condition alone; cevae gives effects of treatments."""
    trained = examples.cvae(1)
    xs = trained.args[0][:5]
    got = pyro.infer.Predictive(trained.model, guide=trained.aef, num_samples=3)(xs)["y"]
    assert got.shape[:2] == (3, 1) or got.shape[0] == 3
    pyro.clear_param_store()
    trained = examples.cevae(1)
    assert trained.vae.ite(trained.x[:7]).shape == (7,)


def own_tests(file: str, which: str) -> str:
    folder = examples.ROOT
    paths = os.pathsep.join([str(HERE.parents[1]), str(HERE), os.environ.get("PYTHONPATH", "")])
    found = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-p", "pyro_own_tests", "-c", os.devnull, "--rootdir", str(folder),
         f"tests/infer/{file}", "-k", which], cwd=folder, env={**os.environ, "PYTHONPATH": paths},
        capture_output=True, text=True, timeout=900,
    )  # fmt: skip
    return found.stdout + found.stderr


def test_pyros_gradient_tests_with_our_guide():
    """The gradients of every loss, against their expected values: particles in vectors, subsampling, weights."""
    told = own_tests("test_gradient.py", "particle_gradient or (test_subsample_gradient and not sequential)")
    assert " failed" not in told, told[-3000:]
    assert "AEF guide" in told


def test_the_rows_of_the_table_name_every_example():
    text = (HERE.parents[1] / "docs/your_pyro_model.md").read_text()
    assert all(f"| {name} |" in text for name in (*examples.ROWS, "sparse_gamma_def"))
    assert torch.is_tensor(examples.bits(3)[0])
