"""Types reach a user's own script: under an editable install, as the README has it, mypy finds them."""

import shutil
import subprocess
import sys
import sysconfig
import zipfile
from importlib.metadata import version
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]

RIGHT = """
import torch
from torch import Tensor, nn
import vae2aef
from vae2aef.adapters import pythae
from vae2aef.core import Expansion, LinearFeatures
from vae2aef.terms import LossTerms

def train(vae: nn.Module, x: Tensor) -> Tensor:
    report = vae2aef.check(vae, example=x)
    assert report.ok
    aef: vae2aef.AEF = vae2aef.wrap(vae, example=x, core="linear", core_flow="maf", prior="coupling", noise=0.3)
    loss: Tensor = aef(x)
    terms: LossTerms = aef(x, terms=True)
    value: Tensor = aef.log_prob(x).value
    drawn: Tensor = aef.sample(3)
    other: vae2aef.AEF = vae2aef.from_pyro(vae, vae, x)
    again: vae2aef.AEF = vae2aef.load("aef.pt", vae)
    aef.save("aef.pt")
    rows = vae2aef.compare("mlp", "digits", device="cpu")
    best: float = rows[0].bits_per_dim
    cores = [Expansion(LinearFeatures((2,), (1,)), (1,)), Expansion(nn.Linear(2, 1), (1,))]
    h: Tensor = cores[0].features(x)
    total: Tensor = h.sum() + loss + terms.loss + value.mean() + drawn.mean() + best
    return total
"""

WRONG = {
    'vae2aef.wrap(vae, core="linnear")': "incompatible type \"Literal['linnear']\"; expected \"Literal['linear'",
    'vae2aef.wrap(vae, core_flow="mfa")': "Literal['mfa']",
    'vae2aef.wrap(vae, prior="couplin")': "Literal['couplin']",
    'vae2aef.wrap(vae, encoder_scale="logvar")': "Literal['logvar']",
    'vae2aef.wrap(vae, preprocess=["dequantise"])': "dequantise",
    'vae2aef.wrap(vae, kl="exact")': "Literal['exact']",
    "vae2aef.wrap(vae, nois=0.3)": 'Unexpected keyword argument "nois"',
    "vae2aef.check(vae).okay": 'has no attribute "okay"',
    "vae2aef.wrap(vae)(x).loss": '"Tensor" has no attribute "loss"',
    "vae2aef.wrap(vae)(x, terms=True).los": '"LossTerms" has no attribute "los"',
    "vae2aef.wrap(vae).sample(3).shapes": '"Tensor" has no attribute "shapes"',
    'vae2aef.from_pyro(vae, vae, x, core="linnear")': "Literal['linnear']",
    "vae2aef.wrapp(vae)": 'has no attribute "wrapp"',
    "Expansion(torch.tanh, (1,))": 'expected "Features"',  # of a function nothing is saved
    "Expansion(vae, (1,)).features(x).shapes": '"Tensor" has no attribute "shapes"',
}


@pytest.fixture(scope="module")
def installed(tmp_path_factory):
    """A virtual environment with an editable install, made of what pip would unpack; the rest is this one's."""
    if int(version("setuptools").split(".")[0]) < 77:
        pytest.skip("needs setuptools >= 77")
    folder = tmp_path_factory.mktemp("editable")
    source = folder / "source"
    source.mkdir()
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, source)
    for name in ("vae2aef", "adapters"):
        shutil.copytree(ROOT / name, source / name, symlinks=True, ignore=shutil.ignore_patterns("__pycache__"))
    build = f"from setuptools import build_meta; build_meta.build_editable({str(folder)!r})"
    subprocess.run([sys.executable, "-c", build], cwd=source, check=True, capture_output=True)
    (wheel,) = folder.glob("*.whl")
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", folder / "env"], check=True)
    (site,) = (folder / "env").glob("lib/python*/site-packages")
    zipfile.ZipFile(wheel).extractall(site)
    others = dict.fromkeys([sysconfig.get_path("purelib"), str(Path(pytest.__file__).parents[1])])
    (site / "zz_others.pth").write_text("\n".join(others))
    return folder


@pytest.mark.slow
def test_an_editable_install_is_a_path_and_no_hook(installed):
    """Type checkers read the paths of .pth files, and run no import hooks."""
    (pth,) = (installed / "env").glob("lib/python*/site-packages/__editable__*.pth")
    assert Path(pth.read_text().strip()).resolve() == (installed / "source").resolve()
    code = "import vae2aef, vae2aef.adapters.pythae as p; print(vae2aef.__file__, p.__file__)"
    out = subprocess.run(
        [installed / "env" / "bin" / "python", "-c", code], cwd=installed, capture_output=True, text=True
    )
    package = installed / "source" / "vae2aef"
    assert [Path(p).resolve() for p in out.stdout.split()] == [
        (package / "__init__.py").resolve(), (package / "adapters" / "pythae.py").resolve(),
    ]  # fmt: skip


@pytest.mark.slow
def test_mypy_checks_a_users_script(installed):
    pytest.importorskip("mypy")
    head = "import torch\nimport vae2aef\nfrom torch import Tensor, nn\nfrom vae2aef.core import Expansion\n\n"
    head += "def use(vae: nn.Module, x: Tensor) -> None:\n"
    (installed / "right.py").write_text(RIGHT)
    (installed / "wrong.py").write_text(head + "".join(f"    {line}\n" for line in WRONG))
    python = installed / "env" / "bin" / "python"
    found = subprocess.run(
        [sys.executable, "-m", "mypy", "--follow-imports=silent", "--check-untyped-defs",
         f"--python-executable={python}", f"--cache-dir={installed / 'cache'}", "right.py", "wrong.py"],
        cwd=installed, capture_output=True, text=True,
    ).stdout  # fmt: skip
    assert "import-untyped" not in found and "import-not-found" not in found
    assert [line for line in found.splitlines() if line.startswith("right.py") and "error" in line] == []
    start = head.count("\n") + 1
    for number, (line, says) in enumerate(WRONG.items(), start):
        own = [one for one in found.splitlines() if one.startswith(f"wrong.py:{number}: error")]
        assert any(says in one for one in own), (line, own, found)


def test_the_link_is_there():
    """The quick half: adapters/ stays at the top, and is the package vae2aef.adapters by a path."""
    link = ROOT / "vae2aef" / "adapters"
    assert link.is_symlink() and link.resolve() == (ROOT / "adapters").resolve()
    assert (
        'package-dir = {"" = "."}' in (ROOT / "pyproject.toml").read_text()
    )  # setuptools writes a path for this alone
