"""`vae2aef.compare`: the comparison of the command line, from Python."""

from __future__ import annotations

import io
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from vae2aef.comparison.summary import Row


def compare(
    vae: str | Callable[..., Any] = "mlp",
    data: str | Path | None = None,
    out: str | Path = "vae2aef-compare",
    *,
    arms: str | Sequence[str] | None = None,
    device: str = "auto",
    overwrite: bool = False,
    quiet: bool = False,
    **options: Any,
) -> list[Row]:
    """Train a VAE and its AEFs on the same data and say which is better: `vae2aef compare` from Python.

    Args:
        vae: `"mlp"`, `"conv"`, `"package.module:factory"`, `"file.py:factory"`, or the factory itself, if it stands at
            the top of a module, of a script (which the command line then names by its file) or of a notebook.
        data: as `--data`; None for the command's default.
        out: folder for tables, pictures and the report; the same call goes on with what is there.
        arms: which, all by default; differences are to the first.
        device: `"auto"`, `"cpu"`, `"cuda"`, `"cuda:1"` or `"mps"`.
        overwrite: throw away another comparison in `out`.
        quiet: print nothing.
        **options: all other options of the command, with underscores: `steps=2000, seeds=3, test_limit=0`.

    Returns:
        One row an arm: bits per dimension with its error, the difference to the first arm, and the rest of the table.

    Raises:
        ImportError: what the command needs is missing; names the extra.
        TypeError: for an option that the command does not have.
        ValueError: data, VAE, options or folder cannot be used (`InputError`), or training diverged.

    Example:
        >>> rows = vae2aef.compare(make_vae, "images/", steps=2000, device="cuda")  # doctest: +SKIP
    """
    try:
        from rich.console import Console

        from vae2aef.comparison.compare import compare as run
        from vae2aef.comparison.options import Options
    except ImportError as problem:
        raise ImportError(f'vae2aef.compare needs more ({problem}): pip install "vae2aef[demo]"') from problem
    if arms is not None:
        options["arms"] = tuple(arms.split(",") if isinstance(arms, str) else arms)
    if data is not None:
        options["data"] = str(data)
    # As text in notebooks, too: rich's own way of showing things there ignores a file, and its bars want ipywidgets.
    console = Console(file=io.StringIO() if quiet else None, force_jupyter=False)
    return run(Options(vae=_named(vae), device=device, **options), Path(out), console, overwrite)


def _named(vae: str | Callable[..., Any]) -> str:
    """Return the name by which results, and the same call tomorrow, find the factory."""
    if isinstance(vae, str):
        return vae
    module, name = getattr(vae, "__module__", None), getattr(vae, "__qualname__", "")
    found: Any = sys.modules.get(module or "")
    for part in name.split("."):
        found = getattr(found, part, None)
    if found is not vae:
        raise ValueError(
            f"expected a factory that can be imported by its name, so that a comparison can be gone on with; {vae!r} "
            'cannot: define it at the top of a module, or pass "package.module:factory"'
        )
    from vae2aef.comparison.factory import name_of

    return name_of(vae)
