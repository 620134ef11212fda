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
