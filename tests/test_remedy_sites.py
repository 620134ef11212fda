"""Every place of the package that prints a remedy has a test that follows it; none hides a remedy in its reason."""

import ast
import re
from pathlib import Path

from remedy_sites import Site, sites

TESTS = Path(__file__).parent
UNREACHED = {
    "its draws come in another order in every pas": "a forward whose order of draws is random: no remedy is printed "
    "but the general one",
    "the output does not depend on z": "`decide` has refused such an output before",
    "z is not loc + scale * u on the example": "proved from the calls before it is held against numbers",
    "expected an nn.Module, got {}": "`wrap` traces modules only",
    "the {} reaches the decoder beside z": "`decide` has refused such a forward before, by its graph of calls",
    "the gradient of decoding alone is not that o": "checkpoints are refused by `decide` first",
    "its output is random, but no draw is seen: n": "noise of compiled code, which is refused as compiled first",
}
"""Second defences, behind a proof that refuses the same first; each with why no test reaches it."""


def followed() -> set[str]:
    """Return the beginnings that tests are marked with."""
    found: set[str] = set()
    for path in TESTS.glob("test_*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            named = isinstance(node, ast.Call) and getattr(node.func, "attr", getattr(node.func, "id", "")) == "remedy"
            if named:
                found |= {a.value for a in node.args if isinstance(a, ast.Constant)}  # type: ignore[attr-defined]
    import test_remedies

    return found | set(test_remedies.MET.values())


def with_remedy() -> list[Site]:
    return [site for site in sites() if site.fix]


def test_every_remedy_is_followed_by_a_test() -> None:
    """A new message with a remedy fails here until a test marked `remedy` follows it."""
    marked = followed()
    open_ = [f"{site.file}:{site.first}: {site.says}" for site in with_remedy() if site.says not in UNREACHED
             and not any(site.says.startswith(says) for says in marked)]  # fmt: skip
    assert not open_, "\n".join(open_)


def test_every_mark_is_of_a_place() -> None:
    says = {site.says for site in sites()}
    assert all(any(one.startswith(mark) for one in says) for mark in followed())
    assert UNREACHED.keys() <= says


def test_no_remedy_is_hidden_in_a_reason() -> None:
    """A line to write is a remedy by itself, so that a program, and these tests, can take it."""
    hidden = [
        f"{site.file}:{site.first}: {site.reason}" for site in sites()
        if not site.fix and re.search(r"\b([Pp]ass|[Uu]se) \w+=", site.reason)
    ]  # fmt: skip
    assert not hidden, "\n".join(hidden)
