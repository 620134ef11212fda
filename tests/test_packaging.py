"""What `import vae2aef` costs, and what the wheel holds."""

import importlib
import importlib.metadata
import re
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
HEAVY = ["pyro", "lightning", "pytorch_lightning", "matplotlib", "rich", "typer", "sklearn", "zuko", "nflows", "pandas"]


def run(code: str) -> str:
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.removesuffix(
        "\n"
    )


def test_import_is_light_and_wrapping_loads_nothing_optional():
    """Only what torch imports itself, and then nothing that is an extra's."""
    code = (
        "import sys, torch; before = set(sys.modules); import vae2aef; print(*sorted(set(sys.modules) - before))\n"
        "aef = vae2aef.wrap(None, example=torch.zeros(2, 3), encoder=lambda x: (x[:, :1], x[:, :1].exp()),\n"
        "                   decoder=lambda z: z.expand(-1, 3), encoder_scale='std', prior='maf', preprocess='logit')\n"
        "aef(torch.rand(2, 3)).backward(); aef.sample(2)\n"
        f"print(*(set({HEAVY!r}) & set(sys.modules)))"
    )
    loaded, optional = run(code).split("\n")
    names = {name.split(".")[0] for name in loaded.split()}
    assert not names & set(HEAVY)
    outside = names - set(sys.stdlib_module_names) - {"vae2aef", "torch"}
    assert not outside
    assert optional == ""


def test_public_names_exist():
    import vae2aef

    assert all(hasattr(vae2aef, name) for name in vae2aef.__all__)
    assert list(vae2aef.__all__) == sorted(vae2aef.__all__)
    assert vae2aef.__version__ == importlib.metadata.version("vae2aef")
    assert f"\nversion: {vae2aef.__version__}\n" in (ROOT / "CITATION.cff").read_text(encoding="utf-8")
    assert f"\n## {vae2aef.__version__} - 20" in (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")


@pytest.mark.slow
def test_the_wheel_holds_adapters_and_types(tmp_path):
    version = importlib.metadata.version("setuptools") if _has("setuptools") else "0"
    if int(version.split(".")[0]) < 77:
        pytest.skip(f"building the wheel offline needs setuptools >= 77, found {version}")
    source = tmp_path / "source"
    source.mkdir()
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, source)
    for name in ("vae2aef", "adapters"):
        shutil.copytree(ROOT / name, source / name, ignore=shutil.ignore_patterns("__pycache__"))
    subprocess.run(
        [sys.executable, "-m", "pip", "wheel", "--no-deps", "--no-build-isolation", "-q", "-w", tmp_path, source],
        check=True, capture_output=True, text=True,
    )  # fmt: skip
    (wheel,) = tmp_path.glob("*.whl")
    names = set(zipfile.ZipFile(wheel).namelist())
    expected = {f"vae2aef/{p.name}" for p in (ROOT / "vae2aef").glob("*.py")}
    expected |= {f"vae2aef/adapters/{p.name}" for p in (ROOT / "adapters").glob("*.py")}
    assert expected | {"vae2aef/py.typed"} <= names
    assert "vae2aef/adapters/pytorch_examples.py" in names
    packages = {name.split("/")[0] for name in names if not name.split("/")[0].endswith(".dist-info")}
    assert packages == {"vae2aef"}, "no bare `adapters` package: that import name belongs to another project"
    unpacked = tmp_path / "unpacked"
    zipfile.ZipFile(wheel).extractall(unpacked)
    code = (
        f"import sys; sys.path.insert(0, {str(unpacked)!r}); import vae2aef, vae2aef.adapters; print(vae2aef.__file__)"
    )
    assert run(code) == str(unpacked / "vae2aef" / "__init__.py")


def _has(name: str) -> bool:
    try:
        importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return False
    return True


def test_the_oldest_pair_of_ci_is_the_floor():
    """What is declared as supported is what is run."""
    workflow = (ROOT / ".github" / "workflows" / "ci.yml").read_text()
    project = (ROOT / "pyproject.toml").read_text()
    pairs = re.findall(r'python: "(.+?)", torch: "(.+?)"', workflow)
    floor = re.search(r'requires-python = ">=(.+?)"', project), re.search(r'"torch>=(.+?)"', project)
    assert min(pairs, key=lambda pair: [int(n) for n in pair[0].split(".")]) == tuple(m[1] for m in floor)
    assert f"VAE2AEF_TORCH:-{pairs[-1][1]}" in (ROOT / ".ci" / "run").read_text()


@pytest.mark.parametrize(
    ("old", "name", "today"),
    [
        ("vae2aef.nets", "MLPVAE", "vae2aef.comparison.nets.MLPVAE"),
        ("vae2aef.optimizers", "OptimizerWarning", "vae2aef.wrapping.optimizer_warning.OptimizerWarning"),
        ("vae2aef.svi.aef", "PyroAEF", "vae2aef.aef.AEF"),
    ],
)
def test_modules_of_0_1_warn_with_their_successor(old, name, today):
    module, _, attribute = today.rpartition(".")
    same = attribute == name
    said = f"{old} is now {module}$" if same else f"{old}.{name} is now {today}$"
    with pytest.warns(DeprecationWarning, match=said) as caught:
        assert getattr(importlib.import_module(old), name) is getattr(importlib.import_module(module), attribute)
    assert [Path(warning.filename).name for warning in caught] == ["test_packaging.py"]
    with pytest.raises(AttributeError, match=f"module '{old}' has no attribute 'nothing'"):
        importlib.import_module(old).nothing  # noqa: B018


PUBLIC = {
    "vae2aef": "AEF AEF_ELBO AffineCoupling Bijection Chain Decoded Dequantize FlowPrior Inverse LogProb Logit "
    "LossTerms MaskedAutoregressive NonFiniteError Posterior Proposal Residual StandardNormal Standardize VAEParts "
    "WrapError bits_per_dim check dequantize from_pyro register_adapter wrap",
    "vae2aef.core": "Expansion LinearFeatures NoFeatures Partition partition_mask",
    "vae2aef.diagnostics": "Finding Report check",
    "vae2aef.diagnostics.findings": "Finding Report",
    "vae2aef.interop": "DistributionPrior as_bijection as_prior posterior_flow",
    "vae2aef.marginal": "Proposal log_prob tune",
    "vae2aef.svi": "AEF_ELBO from_pyro",
    "vae2aef.svi.convert": "from_pyro",
    "vae2aef.svi.elbo": "AEF_ELBO",
    "vae2aef.testing": "check_gradients check_invertible check_jacobian",
    "vae2aef.tracing.parts": "TracedParts",
    "vae2aef.tracing.proof": "trace",
    "vae2aef.training": "AEFTask",
    "vae2aef.AEF": "forward encode decode reconstruct denoise sample log_prob tune_proposal expanded_log_prob noise "
    "added_parameters added core core_flow latent_shape residual",
}
"""What 0.1 has in `__all__` and on its API page."""


@pytest.mark.parametrize("where", PUBLIC)
def test_public_names_of_0_1_are_there(where):
    module, _, _ = where.partition(".AEF")
    found = importlib.import_module(module)
    found = found.AEF if where.endswith(".AEF") else found
    assert [name for name in PUBLIC[where].split() if not hasattr(found, name)] == []
