"""Every place in the package that makes an error or warning with a remedy, read from the source.

A test marked `@pytest.mark.remedy("beginning", ...)` makes the errors that begin so, and follows what they say;
`conftest.py` fails it if one of them was not made. `tests/test_remedy_sites.py` asks for such a test for every place.
"""

import ast
import functools
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import vae2aef

PACKAGE = Path(vae2aef.__file__).parent
KINDS = {"WrapError": 1, "WrapWarning": 1, "DataTypeError": 1, "Refusal": 1}
LENGTH = 44
"""So many characters of a reason name its place."""


class Site(NamedTuple):
    """One place: its file, lines, the beginning of its reason, and whether a remedy comes with it."""

    file: str
    first: int
    last: int
    says: str
    fix: bool
    reason: str


def written(node: Any) -> str:
    """Return the text of an expression, with {} for what is put in."""
    if isinstance(node, ast.Constant):
        return str(node.value)
    if isinstance(node, ast.JoinedStr):
        return "".join(written(v) if isinstance(v, ast.Constant) else "{}" for v in node.values)
    if isinstance(node, ast.BinOp) and isinstance(node.op, ast.Add):
        return written(node.left) + written(node.right)
    if isinstance(node, ast.IfExp):
        return written(node.body)
    return "{}"


@functools.cache
def sites() -> tuple[Site, ...]:
    """Read them all. Those that hand on an error with its remedy are left out."""
    found = []
    for path in sorted(PACKAGE.rglob("*.py")):
        name = str(path.relative_to(PACKAGE))
        for outer in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if not (isinstance(outer, ast.Call) and isinstance(outer.func, ast.Name) and outer.func.id in KINDS):
                continue
            fixes = [*outer.args[1:], *(k.value for k in outer.keywords if k.arg == "fix")]
            if fixes and any(isinstance(f, ast.Attribute) and f.attr == "fix" for f in fixes):
                continue  # handed on
            reason = written(outer.args[0])
            bare = outer.func.id == "Refusal"  # which has PARTS for its remedy unasked
            says = " ".join(reason.strip().split())[:LENGTH].strip() or name
            says = f"{path.stem}: {says}" if says.replace("{}", "").strip(" .:,") == "" else says
            found.append(Site(name, outer.lineno, outer.end_lineno or 0, says, bool(fixes) or bare, reason))
    return tuple(found)


def recorder(met: set[str], kept: Callable[..., None]) -> Callable[..., None]:
    """Return the `__init__` of an error that notes which of the places has made it."""

    def made(self: Any, *args: Any, **kwargs: Any) -> None:
        frame = sys._getframe(1)
        while frame.f_code.co_filename.endswith("errors.py") and frame.f_back is not None:
            frame = frame.f_back
        for site in sites():
            if frame.f_code.co_filename == str(PACKAGE / site.file) and site.first <= frame.f_lineno <= site.last:
                met.add(site.says)
        kept(self, *args, **kwargs)

    return made
