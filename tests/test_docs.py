"""The Python examples of README and docs run as they stand; tables say a thing once."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch

import vae2aef

ROOT = Path(__file__).parents[1]
DOCS = ROOT / "docs"
ELSEWHERE = {
    "docs/evaluate.md": "tests/test_evaluate.py",
    "docs/pyro.md": "tests/test_pyro_docs.py",
    "docs/traced.md": "tests/test_traced.py",
    "docs/wild.md": "tests/adapters/test_wild_page.py",
    "docs/your_pyro_model.md": "tests/test_pyro_docs.py",
}
"""Pages whose code runs, with more said of what comes out, in a test of their own."""

GIVEN = """
import torch
import vae2aef
from torch import nn
from vae2aef.comparison.nets import MLPVAE

class MyVAE(nn.Module):
    def __init__(self, event_shape, latents):
        super().__init__()
        self.net = MLPVAE(event_shape, latents, hidden=4)

    def q(self, x):
        mean, log_var = self.net.encode(x)
        return mean, 0.5 * log_var

    def p(self, z):
        return self.net.decode(z)

x = test = torch.rand(64, 4)
vae = MLPVAE((4,), 2, hidden=8)
aef = vae2aef.wrap(vae, example=x, encoder_scale="log_var")
optimizer = torch.optim.Adam(vae.parameters())
"""
"""What the reader of a page that begins with a fragment has already."""

FRAGMENTS = ("docs/check.md", "docs/compare.md", "docs/numbers.md", "docs/quickstart.md")
NEEDS = {"docs/spatial.md": "diffusers", "docs/compare.md": "lightning", "docs/quickstart.md": "sklearn"}


def blocks(page: str) -> list[str]:
    return re.findall(r"^```python\n(.*?)^```", (ROOT / page).read_text(), flags=re.M | re.S)


def written() -> list[str]:
    """All pages with code, but for those of single codebases, which tests/adapters runs."""
    pages = ["README.md", *(f"docs/{path.name}" for path in sorted(DOCS.glob("*.md")))]
    return [page for page in pages if blocks(page)]


@pytest.mark.parametrize("page", [page for page in written() if page not in ELSEWHERE])
def test_examples_run(page: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every block, in order: one page is one session."""
    if page in NEEDS:
        pytest.importorskip(NEEDS[page])
    monkeypatch.chdir(tmp_path)
    names: dict[str, object] = {}
    if page in FRAGMENTS:
        exec(GIVEN, names)
    for block in blocks(page):
        exec(compile(block, page, "exec"), names)
    if page == "docs/compare.md":
        made = names["make_vae"]((4,), 2)  # type: ignore[operator]
        names["aef"] = vae2aef.wrap(**made, example=torch.rand(16, 4))
    assert any(type(value).__name__ == "AEF" for value in names.values())


NOTEBOOK = DOCS / "tutorials" / "mnist_to_report.py"
MNIST = ROOT.parent / "shared" / "data" / "mnist.npz"


@pytest.mark.slow
@pytest.mark.skipif(not MNIST.exists(), reason="shared/data/mnist.npz is not on this machine")
def test_the_notebook_prints_what_its_page_shows(tmp_path: Path) -> None:
    """All but the figures, after fewer steps; as a script, so that the command that it writes is its own."""
    shown = subprocess.run(
        [sys.executable, str(NOTEBOOK)], cwd=tmp_path, capture_output=True, text=True, check=True,
        env={**os.environ, "MNIST": str(MNIST), "STEPS": "20", "OMP_NUM_THREADS": "1"},
    ).stdout  # fmt: skip
    page = NOTEBOOK.with_suffix(".txt").read_text(encoding="utf-8")
    mask = r"[+-]?\d+(\.\d+)?"
    assert re.sub(mask, "#", shown) == re.sub(mask, "#", page)
    assert "mnist_to_report.py:make_vae" in (tmp_path / "report" / "results.json").read_text()


def test_the_notebook_is_whole() -> None:
    """It is cells of code and text, each of which compiles, and its page shows it."""
    cells = re.split(r"^# %%.*\n", NOTEBOOK.read_text(encoding="utf-8"), flags=re.M)[1:]
    assert len(cells) == 10 and all(compile(cell, NOTEBOOK.name, "exec") for cell in cells)
    page = (DOCS / "mnist.md").read_text(encoding="utf-8")
    assert f"tutorials/{NOTEBOOK.name}" in page and f"tutorials/{NOTEBOOK.stem}.txt" in page


def test_no_page_with_code_is_left_out() -> None:
    """The pages that other tests run are named there; those of codebases are run by tests/adapters/test_pages.py."""
    for page, test in ELSEWHERE.items():
        assert page in written() and Path(page).name in (ROOT / test).read_text(encoding="utf-8")
    runner = (ROOT / "tests" / "adapters" / "test_pages.py").read_text(encoding="utf-8")
    assert '(DOCS / "codebases").glob("*.md")' in runner


@pytest.mark.parametrize("page", [str(p.relative_to(ROOT)) for p in sorted((ROOT / "docs").rglob("*.md"))])
def test_no_table_of_two_columns_says_a_thing_twice(page: str) -> None:
    lines = (ROOT / page).read_text().splitlines()
    firsts: list[str] = []
    for line in [*lines, ""]:
        if line.startswith("|"):
            if line.count("|") != 3:
                continue
            firsts.append(line.split("|")[1].strip())
            continue
        twice = {first for first in firsts if first and firsts.count(first) > 1}
        assert not twice, f"{page}: a table with the rows {twice} more than once"
        firsts = []
