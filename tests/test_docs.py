"""The Python examples of README and docs run as they stand; tables say a thing once."""

import base64
import hashlib
import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from marks import DYNAMO, OLD_DYNAMO

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
        if "torch.export" in block and OLD_DYNAMO:
            pytest.skip(f"{DYNAMO}; the blocks before that have run")
        exec(compile(block, page, "exec"), names)
    if page == "docs/compare.md":
        made = names["make_vae"]((4,), 2)  # type: ignore[operator]
        names["aef"] = vae2aef.wrap(**made, example=torch.rand(16, 4))
    assert any(type(value).__name__ == "AEF" for value in names.values())


NOTEBOOK = DOCS / "tutorials" / "mnist_to_report.py"
PAGE = DOCS / "mnist.ipynb"
MNIST = ROOT.parent / "shared" / "data" / "mnist.npz"
LARGEST = 300_000  # bytes of the page, pictures included
AFRESH = "run docs/tutorials/execute.py again"


def printed() -> str:
    cells = json.loads(PAGE.read_text(encoding="utf-8"))["cells"]
    outputs = [output for cell in cells for output in cell.get("outputs", ())]
    return "".join("".join(one["text"]) for one in outputs if one["output_type"] == "stream")


@pytest.mark.slow
@pytest.mark.skipif(not MNIST.exists(), reason="shared/data/mnist.npz is not on this machine")
def test_the_notebook_prints_what_its_page_shows(tmp_path: Path) -> None:
    """All but the figures, after fewer steps, and the verdict, which is of figures; as a script, so that the command
    that it writes is its own."""
    shown = subprocess.run(
        [sys.executable, str(NOTEBOOK)], cwd=tmp_path, capture_output=True, text=True, check=True,
        env={**os.environ, "MNIST": str(MNIST), "STEPS": "20", "OMP_NUM_THREADS": "1"},
    ).stdout  # fmt: skip
    results = (tmp_path / "report" / "results.json").read_text()
    verdict = "\n".join(json.loads(results)["verdict"]) + "\n"
    assert verdict in shown
    page = re.sub(r"^(The AEF with|No arm).*?(?=^vae: )", "", printed(), flags=re.M | re.S)
    mask = r"[+-]?\d+(\.\d+)?"
    assert re.sub(mask, "#", shown.replace(verdict, "")) == re.sub(mask, "#", page)
    assert "mnist_to_report.py:make_vae" in results


def test_the_notebook_is_whole() -> None:
    """It is cells of code and text, each of which compiles, and its page shows them as they are now."""
    source = NOTEBOOK.read_text(encoding="utf-8")
    cells = re.split(r"^# %%.*\n", source, flags=re.M)[1:]
    assert len(cells) == 14 and all(compile(cell, NOTEBOOK.name, "exec") for cell in cells)
    page = json.loads(PAGE.read_text(encoding="utf-8"))
    assert page["metadata"]["source_sha256"] == hashlib.sha256(source.encode()).hexdigest(), AFRESH
    kinds = re.findall(r"^# %%(.*)\n", source, flags=re.M)
    for kind, written, cell in zip(kinds, cells, page["cells"], strict=True):
        text = re.sub(r"^# ?", "", written, flags=re.M) if "markdown" in kind else written
        assert "".join(cell["source"]).strip() == text.strip(), AFRESH
        assert cell["cell_type"] == ("markdown" if "markdown" in kind else "code")


def test_the_page_of_the_notebook_shows_what_it_made() -> None:
    """Run from the first cell to the last, without an error, and small enough to be kept beside the source."""
    cells = [cell for cell in json.loads(PAGE.read_text(encoding="utf-8"))["cells"] if cell["cell_type"] == "code"]
    assert [cell["execution_count"] for cell in cells] == list(range(1, len(cells) + 1))
    outputs = [output for cell in cells for output in cell["outputs"]]
    assert {output["output_type"] for output in outputs} == {"stream", "execute_result"}
    assert {output.get("name", "stdout") for output in outputs} == {"stdout"}  # no warnings
    pictures = [output["data"]["image/png"] for output in outputs if "image/png" in output.get("data", {})]
    assert len(pictures) == 2 and all(base64.b64decode(one).startswith(b"\x89PNG") for one in pictures)
    assert "bits per dimension (95 % interval" in printed() and "aef-noise: " in printed()
    assert PAGE.stat().st_size < LARGEST
    assert 'nb_execution_mode = "off"' in (DOCS / "conf.py").read_text(encoding="utf-8")


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
