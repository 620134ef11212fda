"""The Pyro page: its session runs, and so do its four tutorials, each trained with both losses on real digits."""

import importlib.util
import re
from pathlib import Path

import pytest

pyro = pytest.importorskip("pyro")
pytest.importorskip("sklearn")

DOCS = Path(__file__).parents[1] / "docs"
TUTORIALS = sorted(DOCS.glob("tutorials/pyro_*.py"))


@pytest.fixture(autouse=True)
def fresh():
    pyro.clear_param_store()


def test_the_session_runs():
    names = {}
    for block in re.findall(r"^```python\n(.*?)^```", (DOCS / "pyro.md").read_text(), flags=re.M | re.S):
        exec(compile(block, "pyro.md", "exec"), names)
    assert names["result"].value.shape == (128,) and names["samples"].shape == (5, 64)
    assert 'site "z": Normal, mapped' in repr(names["elbo"])


def test_the_session_of_the_page_of_your_model_runs():
    names = {}
    for block in re.findall(r"^```python\n(.*?)^```", (DOCS / "your_pyro_model.md").read_text(), flags=re.M | re.S):
        exec(compile(block, "your_pyro_model.md", "exec"), names)
    assert names["log_p"].value.shape == (8,) and names["z"].shape[0] == 2
    assert names["each"].shape == (3,) and names["drawn"].shape == (2, 7, 3) and not names["drawn"][0, 4:].any()
    text = repr(names["aef"])
    assert "h reads x: what the observed site" in text and 'site "z": Normal, mapped' in text


@pytest.mark.slow
@pytest.mark.parametrize("path", TUTORIALS, ids=lambda p: p.stem)
def test_tutorial_runs_with_both_losses(path, capsys):
    spec = importlib.util.spec_from_file_location(path.stem, path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    module.main(epochs=1, num_samples=2)
    shown = capsys.readouterr().out
    values = re.findall(r"(\w+_ELBO): log p\(x(?: \| y)?\) = (-?\d+\.\d+)", shown)
    assert [name for name, _ in values] == ["Trace_ELBO", "AEF_ELBO"], shown
    printed = path.with_suffix(".txt").read_text()
    assert re.sub(r"-?\d+\.\d+", "#", shown) == re.sub(r"-?\d+\.\d+", "#", printed), "the page shows another output"


def test_the_tutorials_are_the_four_of_the_page():
    assert len(TUTORIALS) == 4
    text = (DOCS / "pyro.md").read_text()
    assert all(f"tutorials/{path.name}" in text and f"tutorials/{path.stem}.txt" in text for path in TUTORIALS)


def test_the_example_of_pyro_that_each_tutorial_resembles_is_a_test_by_the_name_that_the_page_runs():
    path = Path(__file__).parent / "adapters/test_pyro_examples.py"
    spec = importlib.util.spec_from_file_location("test_pyro_examples", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    text = (DOCS / "your_pyro_model.md").read_text()
    run = re.search(r'^run\(\) .*"tests/adapters/test_pyro_examples.py::(\w+)\[\$1\]"', text, re.M)
    assert hasattr(module, run[1])
    named = dict(re.findall(r"^run (\w+) +# (pyro_\w+\.py)", text, re.M))
    assert sorted(named.values()) == [path.name for path in TUTORIALS]
    assert {*named, *re.findall(r'run "([^"]+)"', text)} <= {*module.RUNS}
