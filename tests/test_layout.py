"""How the code is laid out: no import circle, no arrow upwards, adapters by name only, short files and functions.

Read from the source with `ast`. Imports inside functions count, those under `if TYPE_CHECKING:` do not: they are for
the reader and the type checker, and nothing runs them.
"""

import ast
import graphlib
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).parents[1]
PACKAGES = {"vae2aef": "vae2aef", "adapters": "vae2aef.adapters"}
MOST_LINES, MOST_WAYS, MOST_BODY = 250, 15, 40

LAYERS = (
    ("added", "batch", "draws", "errors", "evidence", "fan_in", "generators", "grids", "holding", "modes", "pareto",
     "renamed", "schedules", "tensors"),
    ("core", "features", "flows", "grid_flows", "likelihood", "masked", "patches", "preprocess", "priors", "protocols",
     "residual"),
    ("parts",),
    ("program", "registry"),
    ("interop",),
    ("chain",),
    ("saved", "terms", "wrapper"),
    ("steps",),
    ("prior_draws",),
    ("case",),
    ("ais", "finding", "laplace", "low_rank", "mixture", "proposals", "samplers", "variational"),
    ("marginal",),
    ("certificate", "gauge", "missing"),
    ("estimates",),
    ("aef",),
    ("tracing",),
    ("wrapping",),
    ("callbacks", "diagnostics", "svi", "testing", "training"),
    ("adapters", "comparison"),
    ("cli", "comparing", "estimator", "hub", "nets", "optimizers"),
    ("", "__main__"),  # the empty name is vae2aef itself
)  # fmt: skip
"""From the bottom: a module imports from its own layer and from those before it."""

EXCEPTIONS: dict[str, str] = {}
"""What is too long or too branched still. An entry that is needed no more fails the test: delete it."""


def sources() -> dict[str, str]:
    """The text of every module by its dotted name."""
    found = {}
    for folder, package in PACKAGES.items():
        for path in (ROOT / folder).rglob("*.py"):
            steps = path.relative_to(ROOT / folder).with_suffix("").parts
            name = ".".join([package, *steps]).removesuffix(".__init__")
            found[name] = path.read_text(encoding="utf-8")
    return found


def running(node: ast.AST) -> Iterator[ast.AST]:
    """Walk over all that may run."""
    yield node
    for child in ast.iter_child_nodes(node):
        if not (isinstance(child, ast.If) and ast.unparse(child.test).endswith("TYPE_CHECKING")):
            yield from running(child)


def imported(name: str, modules: dict[str, str]) -> set[str]:
    """The modules that one module imports, with the packages that Python imports on the way to them."""
    found = set()
    for node in running(ast.parse(modules[name])):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert not node.level, f"{name}: a relative import, which this test does not read"
            inside = {f"{node.module}.{alias.name}" for alias in node.names}
            found |= {one if one in modules else str(node.module) for one in inside}
    # The packages around the module itself have begun to be imported before it.
    on_the_way = {package for one in found for package in packages(one)} - packages(name) - {name}
    return (found | on_the_way) & modules.keys()


def packages(name: str) -> set[str]:
    steps = name.split(".")
    return {".".join(steps[:end]) for end in range(1, len(steps))}


def circle(modules: dict[str, str]) -> list[str]:
    """One import circle; empty if there is none."""
    try:
        graphlib.TopologicalSorter({name: imported(name, modules) for name in modules}).prepare()
    except graphlib.CycleError as error:
        return error.args[1]
    return []


def layer(name: str) -> int:
    part = name.partition(".")[2].split(".")[0]
    found = [number for number, parts in enumerate(LAYERS) if part in parts]
    assert found, f"{name} is in no layer: put it into LAYERS"
    return found[0]


def upward(modules: dict[str, str]) -> list[str]:
    """The imports of a module from a layer above."""
    at = {name: layer(name) for name in modules}
    arrows = [(name, other) for name in modules for other in imported(name, modules)]
    return sorted(f"{name} -> {other}" for name, other in arrows if at[other] > at[name])


def naming_adapters(modules: dict[str, str]) -> set[str]:
    """The modules outside the adapters that import one, by a statement or by a call."""
    found = set()
    for name in modules:
        if name.startswith("vae2aef.adapters"):
            continue
        by_name = any(other.startswith("vae2aef.adapters") for other in imported(name, modules))
        for node in ast.walk(ast.parse(modules[name])):
            if isinstance(node, ast.Call) and ast.unparse(node.func).split(".")[-1] in ("import_module", "__import__"):
                by_name |= any("vae2aef.adapters" in ast.unparse(argument) for argument in node.args)
        if by_name:
            found.add(name)
    return found


def ways(function: ast.AST) -> int:
    """One, and one more for each branch, loop, handler, comprehension with its conditions, `and` and `or`."""
    branches = (ast.If, ast.IfExp, ast.For, ast.AsyncFor, ast.While, ast.ExceptHandler, ast.match_case)
    total = 1
    for node in ast.walk(function):
        total += isinstance(node, branches)
        total += 1 + len(node.ifs) if isinstance(node, ast.comprehension) else 0
        total += len(node.values) - 1 if isinstance(node, ast.BoolOp) else 0
    return total


def body(function: ast.FunctionDef | ast.AsyncFunctionDef) -> int:
    """Lines without the signature and the docstring."""
    statements = function.body[1:] if ast.get_docstring(function, clean=False) is not None else function.body
    return (statements[-1].end_lineno or 0) - statements[0].lineno + 1 if statements else 0


def functions(node: ast.AST, name: str) -> Iterator[tuple[str, ast.FunctionDef | ast.AsyncFunctionDef]]:
    """All functions and methods with their dotted names."""
    for child in ast.iter_child_nodes(node):
        inside = f"{name}.{child.name}" if hasattr(child, "name") and hasattr(child, "body") else name
        if isinstance(child, (ast.FunctionDef, ast.AsyncFunctionDef)):
            yield inside, child
        yield from functions(child, inside)


def too_much(modules: dict[str, str]) -> dict[str, str]:
    """The files and functions that are too long, or have too many ways through them."""
    found = {name: f"{text.count(chr(10))} lines" for name, text in modules.items() if text.count("\n") > MOST_LINES}
    for module, text in modules.items():
        for name, function in functions(ast.parse(text), module):
            over = [f"{ways(function)} ways"] * (ways(function) > MOST_WAYS)
            over += [f"{body(function)} lines"] * (body(function) > MOST_BODY)
            if over:
                found[name] = ", ".join(over)
    return found


def test_no_import_circle():
    assert circle(sources()) == []


def test_no_import_from_a_layer_above():
    assert upward(sources()) == []


def test_the_page_says_the_same():
    page = (ROOT / "docs" / "architecture.md").read_text(encoding="utf-8")
    block = page.partition("## Which file may import which")[2].partition("\n\n    ")[2].partition("\n\n")[0]
    said = [tuple(name.split()[0] for name in line.split(",")) for line in " ".join(block.split()).split("→")]
    assert said == [tuple(name or "vae2aef" for name in layer) for layer in LAYERS]


def test_adapters_are_found_by_the_registry_alone():
    assert naming_adapters(sources()) == {"vae2aef.registry"}


def test_files_and_functions_are_short_and_straight():
    found = too_much(sources())
    assert {name: what for name, what in found.items() if name not in EXCEPTIONS} == {}
    assert [name for name in EXCEPTIONS if name not in found] == []


def test_the_checks_can_fail():
    """Each on a small package that breaks its rule, and on one that does not."""
    good = {
        "vae2aef": "from vae2aef.aef import AEF",
        "vae2aef.errors": "from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    from vae2aef.aef import AEF",
        "vae2aef.aef": "from vae2aef import errors\ndef f(x):\n    return [y for y in x if y]",
        "vae2aef.interop": "from vae2aef.interop.convert import as_prior",
        "vae2aef.interop.convert": "from vae2aef import errors",
        "vae2aef.registry": "import importlib\nimportlib.import_module('vae2aef.adapters')",
        "vae2aef.adapters": "import vae2aef.aef",
    }
    assert circle(good) == upward(good) == [] and naming_adapters(good) == {"vae2aef.registry"} and too_much(good) == {}
    own_package = {"vae2aef.interop.convert": "from vae2aef.interop import as_prior"}
    assert {"vae2aef.interop", "vae2aef.interop.convert"} == set(circle(good | own_package))
    inner = {"vae2aef.errors": "def f():\n    from vae2aef.aef import AEF"}
    assert {"vae2aef.errors", "vae2aef.aef"} == set(circle(good | inner))
    through_package = {"vae2aef.interop": "import vae2aef.aef", "vae2aef.aef": "import vae2aef.interop.convert"}
    assert {"vae2aef.interop", "vae2aef.aef"} == set(circle(good | through_package))
    assert upward(good | {"vae2aef.interop": "import vae2aef.aef"}) == ["vae2aef.interop -> vae2aef.aef"]
    assert upward(good | {"vae2aef.errors": "from vae2aef import AEF"}) == ["vae2aef.errors -> vae2aef"]
    for text in ("from vae2aef import adapters", "def f():\n    __import__('vae2aef.adapters.monai')"):
        assert naming_adapters(good | {"vae2aef.aef": text}) == {"vae2aef.aef", "vae2aef.registry"}
    many = "class A:\n    def f(self, x):\n        '''Say\n        so.'''\n" + "        x = x or 1\n" * 15
    assert too_much({"m": many}) == {"m.A.f": "16 ways"}
    assert too_much({"m": "def f(x):\n" + "    x += 1\n" * 40}) == {}
    assert too_much({"m": "def f(x):\n" + "    x += 1\n" * 41}) == {"m.f": "41 lines"}
    assert too_much({"m": "x = 1\n" * 251}) == {"m": "251 lines"}
