"""The Python of the pages on codebases runs as it is printed, one page in one namespace."""

import re
from pathlib import Path
from typing import Any

import pytest
import torch

DOCS = Path(__file__).parents[2] / "docs"
PAGES = [*sorted((DOCS / "codebases").glob("*.md")), DOCS / "writing_adapters.md"]
LIBRARIES = ("pythae", "diffusers", "accelerate", "monai")
BLOCK = re.compile(r"^```python\n(.*?)^```$", re.MULTILINE | re.DOTALL)


@pytest.mark.parametrize("page", PAGES, ids=[page.stem for page in PAGES])
@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning", "ignore::ImportWarning")
@pytest.mark.filterwarnings("ignore:.*does not have many workers")  # Lightning's advice
def test_page(page: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    blocks = BLOCK.findall(page.read_text())
    assert blocks or page.stem == "index"
    for library in LIBRARIES:
        if any(re.search(rf"^(import|from) {library}\b", block, re.MULTILINE) for block in blocks):
            pytest.importorskip(library)
    monkeypatch.chdir(tmp_path)
    names: dict[str, Any] = {"__name__": "page"}
    for block in blocks:
        exec(compile(block, str(page), "exec"), names)
    if "aef" in names:
        assert any(p.requires_grad for p in names["aef"].parameters())
    if isinstance(names.get("samples"), torch.Tensor):
        assert names["samples"].isfinite().all()
