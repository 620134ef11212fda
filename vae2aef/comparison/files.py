"""The folder of a comparison: made late, written atomically, never mixed up with another one."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

from vae2aef.comparison.errors import InputError
from vae2aef.comparison.options import Options

MARK = "options.json"


def write_atomic(path: Path, write: Callable[[Path], object]) -> None:
    """Write a file whole or not at all.

    Args:
        path: the file.
        write: called with the path of a temporary file beside it.
    """
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp{path.suffix}")
    try:
        write(temporary)
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def write_json(path: Path, content: object) -> None:
    """Write JSON atomically; NaN is refused."""
    text = json.dumps(content, indent=1, allow_nan=False)
    write_atomic(path, lambda temporary: temporary.write_text(text, encoding="utf-8"))


def read_json(path: Path) -> Any:
    """Read JSON."""
    return json.loads(path.read_text(encoding="utf-8"))


def check_out(out: Path, overwrite: bool) -> None:
    """Say at once what would stop `open_out` later, without writing anything.

    Raises:
        InputError: `out` is no folder, cannot be written, or holds something else.
    """
    existing = out
    while not existing.exists() and existing != existing.parent:
        existing = existing.parent
    if not existing.is_dir():
        raise InputError(f"--out {out}: {existing} is a file, expected a folder")
    if not os.access(existing, os.W_OK | os.X_OK):
        raise InputError(f"--out {out}: no permission to write in {existing}; choose another folder")
    if existing == out and not (out / MARK).exists() and any(out.iterdir()):
        raise InputError(f"--out {out}: the folder holds other files; choose an empty or new one")
    if existing == out and not overwrite and (out / MARK).exists():
        try:
            read_json(out / MARK)
        except ValueError as problem:
            raise InputError(f"--out {out}: {MARK} there is damaged; use --overwrite or another --out") from problem


def open_out(out: Path, options: Options, digests: dict[str, str], overwrite: bool) -> None:
    """Make the folder, or find that it holds the same comparison.

    Args:
        out: the folder.
        options: what is asked now.
        digests: of the data and of the initial weights, by name.
        overwrite: throw away what an earlier comparison left in `out`.

    Raises:
        InputError: another comparison is there, or the folder cannot be written.
    """
    check_out(out, overwrite)
    if (out / MARK).exists() and not overwrite:
        there = read_json(out / MARK)
        found = options.differences(there["options"])
        found += [f"the {name} changed" for name in digests if there["digests"].get(name) != digests[name]]
        if found:
            raise InputError(
                f"--out {out} holds another comparison: {'; '.join(found)}. "
                "Use another --out, or --overwrite to throw that one away"
            )
    made = [p for p in (out, *out.parents) if not p.exists()]
    try:
        if overwrite and (out / MARK).exists():
            _clear(out)
        out.mkdir(parents=True, exist_ok=True)
        write_json(out / MARK, {"options": options.as_dict(), "digests": digests})
    except OSError as problem:
        for folder in made:
            if folder.is_dir():
                shutil.rmtree(folder, ignore_errors=True)
        raise InputError(f"--out {out}: cannot write there ({problem.strerror}); choose another folder") from problem


def _clear(out: Path) -> None:
    """Remove what a comparison writes, and nothing else."""
    shutil.rmtree(out / "runs", ignore_errors=True)
    for pattern in ("*.png", "results.json", "report.html", "table.md", MARK):
        for path in out.glob(pattern):
            path.unlink()
