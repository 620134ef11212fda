"""The Python examples of README and quick start run as they stand."""

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PAGES = [
    "README.md",
    "docs/quickstart.md",
    "docs/writing_adapters.md",
    "docs/likelihoods.md",
    "docs/faults.md",
    "docs/precision.md",
]


def blocks(page: str) -> list[str]:
    return re.findall(r"^```python\n(.*?)^```", (ROOT / page).read_text(), flags=re.M | re.S)


@pytest.mark.parametrize("page", PAGES)
def test_examples_run(page: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    found = blocks(page)
    first = next(i for i, block in enumerate(found) if "import " in block)
    names: dict[str, object] = {}
    for block in found[first:]:
        exec(compile(block, page, "exec"), names)  # one page is one session
    assert any(type(value).__name__ == "AEF" for value in names.values())
