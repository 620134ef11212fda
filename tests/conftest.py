"""Shared by all tests: one thread, a seed for each test, float64 on request, hypothesis profiles."""

import inspect
import os
from collections.abc import Iterator

import pytest
import torch
from hypothesis import settings

from vae2aef.finding import laplace_mixture

# No deadline: a machine under load is no failure. In CI the same examples are drawn at every run. Most options of most
# tests have fewer values than there are examples; `pytest --hypothesis-profile=thorough` draws many more.
settings.register_profile("ci", max_examples=30, derandomize=True, deadline=None, print_blob=True)
settings.register_profile("dev", max_examples=30, deadline=None)
settings.register_profile("thorough", max_examples=500, deadline=None)
settings.load_profile("ci" if os.environ.get("CI") else "dev")

torch.set_num_threads(1)


def pytest_configure(config: pytest.Config) -> None:
    """A few draws are enough for most tests, and say nothing of their error; test_evidence.py tests the warning."""
    config.addinivalue_line("filterwarnings", "ignore::vae2aef.marginal.EstimateWarning")
    # Tests of the paper's loss under flow priors are many; test_default_noise.py tests the warning.
    config.addinivalue_line("filterwarnings", "ignore:noise=0 and a prior that is learned:vae2aef.WrapWarning")


@pytest.fixture(autouse=True)
def seed() -> None:
    """Make every test draw the same numbers, alone or among others."""
    torch.manual_seed(0)


@pytest.fixture(scope="module")
def float64() -> Iterator[None]:
    """Make float64 the default dtype for a whole test module: `pytestmark = pytest.mark.usefixtures("float64")`."""
    before = torch.get_default_dtype()
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(before)


@pytest.fixture
def fresh_pyro(float64: None) -> None:
    """Begin with an empty parameter store, in float64."""
    import pyro

    pyro.clear_param_store()


@pytest.fixture(scope="module")
def core_flows() -> Iterator[None]:
    """Give Pyro's losses, guides and conversions a core flow, which is no default: more can be wrong then."""
    from vae2aef.svi import AEF_ELBO, aef_guide, from_pyro

    with pytest.MonkeyPatch.context() as patch:
        parameters = inspect.signature(AEF_ELBO.__init__).parameters.values()
        by_place = [p for p in parameters if p.kind is p.POSITIONAL_OR_KEYWORD and p.default is not p.empty]
        changed = tuple("coupling" if p.name == "core_flow" else p.default for p in by_place)
        assert "coupling" in changed
        patch.setattr(AEF_ELBO.__init__, "__defaults__", changed)
        for made in (aef_guide, from_pyro):
            patch.setitem(made.__kwdefaults__, "core_flow", "coupling")
        yield


@pytest.fixture(scope="module")
def quick_fits() -> Iterator[None]:
    """One fit to each datum in the place of the search for modes: for tests that only need some estimate."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("vae2aef.samplers.find_mass", laplace_mixture)
        yield


@pytest.fixture
def quick_tuning(monkeypatch: pytest.MonkeyPatch) -> None:
    """Few steps of tuning a proposal: for tests that ask nothing of its fit."""
    monkeypatch.setattr("vae2aef.proposals.TUNING_STEPS", 5)


@pytest.fixture
def quick_pictures(monkeypatch: pytest.MonkeyPatch) -> None:
    """Comparisons write empty files for their two large pictures, and reports without Vega: half of a short run's time.

    A comparison made by a fixture of a wider scope, before this one, has the true ones.
    """
    for name in ("save_comparison", "save_curves"):
        monkeypatch.setattr(f"vae2aef.comparison.results.{name}", lambda path, *content: path.write_bytes(b""))
    monkeypatch.setattr("vae2aef.comparison.page.library", lambda: "")  # seconds, once a process


@pytest.fixture(autouse=True)
def remedies(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """See that a test marked `remedy("beginning", ...)` has met the errors that begin so; it follows what they say."""
    wanted = {says for mark in request.node.iter_markers("remedy") for says in mark.args}
    if not wanted:
        yield
        return
    import remedy_sites

    from vae2aef.errors import Remedied
    from vae2aef.tracing.refusal import Refusal

    met: set[str] = set()
    for kind in (Remedied, Refusal):
        monkeypatch.setattr(kind, "__init__", remedy_sites.recorder(met, kind.__init__))
    yield
    missing = [says for says in sorted(wanted) if not any(one.startswith(says) for one in met)]
    assert not missing, f"not made in this test: {missing}; made were {sorted(met)}"
