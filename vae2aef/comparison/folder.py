"""The folder of a comparison: made late, one process at a time, never mixed up with another one."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from vae2aef.comparison.arms import ARMS
from vae2aef.comparison.errors import InputError
from vae2aef.comparison.files import Damaged, read_json, write_json
from vae2aef.comparison.options import Options

MARK, LOCK = "options.json", "compare.lock"
TOP = {
    MARK, "results.json", "report.html", "table.md", "originals.png", "comparison.png", "curves.png",
    *(f"{kind}-{arm}.png" for kind in ("reconstructions", "samples", "draws") for arm in ARMS),
}  # fmt: skip
"""The files that a comparison writes into its folder, by name; no other is ever deleted."""

OF_A_RUN = {"last.ckpt", "best.pt", "pictures.npz", "result.json"}
"""Likewise into the folder of a run."""

RUN = re.compile(rf"seed\d+-({'|'.join(map(re.escape, ARMS))})")


def check_out(out: Path, overwrite: bool) -> None:
    """Say at once what would stop `opened` later, without writing anything.

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
    if existing != out:
        return
    if not (out / MARK).exists() and any(p.name != LOCK and not _is_temporary(p, TOP) for p in out.iterdir()):
        raise InputError(f"--out {out}: the folder holds other files; choose an empty or new one")
    if not overwrite and (out / MARK).exists():
        _read_mark(out)


def _read_mark(out: Path) -> dict[str, Any]:
    try:
        return read_json(out / MARK, "options", "digests")
    except Damaged as problem:
        raise InputError(
            f"--out {out}: {problem}, so that it cannot be told which comparison is there; use another --out, or "
            "--overwrite to throw its files away"
        ) from problem


@contextmanager
def opened(out: Path, options: Options, digests: dict[str, str], overwrite: bool) -> Iterator[None]:
    """Make the folder, or find that it holds the same comparison; keep other processes out of it.

    Args:
        out: the folder.
        options: what is asked now.
        digests: of the data and of the initial weights, by name.
        overwrite: throw away what another comparison left in `out`. The same one is gone on with.

    Raises:
        InputError: another comparison or process is there, or the folder cannot be written.
    """
    _require_same(out, options, digests, overwrite)  # before anything is written
    made = [p for p in (out, *out.parents) if not p.exists()]
    try:
        out.mkdir(parents=True, exist_ok=True)
        lock = FileLock(out / LOCK, timeout=0)
        lock.acquire()
    except Timeout:
        raise InputError(
            f"--out {out}: another process is working in this folder; wait for its end, or use another --out"
        ) from None
    except OSError as problem:
        _remove(made)
        raise _cannot_write(out, problem) from problem
    try:
        _begin(out, options, digests, overwrite)
        yield
    finally:
        lock.release()


def _begin(out: Path, options: Options, digests: dict[str, str], overwrite: bool) -> None:
    found, clearing = _require_same(out, options, digests, overwrite)
    mark = {"options": options.as_dict(), "digests": digests}
    if found or clearing:
        # Said before anything is deleted: whoever goes on after a stop in between must go on deleting.
        write_json(out / MARK, {**mark, "clearing": True})
        clear(out)
    _remove_temporary(out)
    write_json(out / MARK, mark)


def _require_same(out: Path, options: Options, digests: dict[str, str], overwrite: bool) -> tuple[list[str], bool]:
    """Refuse another comparison, unless it is to be thrown away; return what `_differences` does."""
    check_out(out, overwrite)
    found, clearing = _differences(out, options, digests, overwrite)
    if found and not overwrite:
        raise InputError(
            f"--out {out} holds another comparison: {'; '.join(found)}. "
            "Use another --out, or --overwrite to throw that one away"
        )
    return found, clearing


def _differences(out: Path, options: Options, digests: dict[str, str], overwrite: bool) -> tuple[list[str], bool]:
    """Say how what is there differs from what is asked, and whether its files were being deleted."""
    if not (out / MARK).exists():
        return [], False
    try:
        there = _read_mark(out)
    except InputError as problem:
        if not overwrite:
            raise
        return [str(problem)], False
    found = options.differences(there["options"])
    found += [f"the {name} changed" for name in digests if there["digests"].get(name) != digests[name]]
    return found, bool(there.get("clearing"))


def clear(out: Path) -> None:
    """Remove the files that a comparison wrote, by name, and folders that are empty then; the mark stays."""
    for folder in _runs(out):
        for name in OF_A_RUN:
            (folder / name).unlink(missing_ok=True)
        _remove_temporary(folder)
        _remove([folder])
    _remove([out / "runs"])
    for name in TOP - {MARK}:
        (out / name).unlink(missing_ok=True)


def _runs(out: Path) -> list[Path]:
    runs = out / "runs"
    return [p for p in runs.iterdir() if p.is_dir() and RUN.fullmatch(p.name)] if runs.is_dir() else []


def _remove_temporary(out: Path) -> None:
    """Remove what a killed process was writing; the lock says that nobody writes now."""
    for folder in (out, *_runs(out)):
        for path in folder.iterdir():
            if _is_temporary(path, TOP | OF_A_RUN):
                path.unlink(missing_ok=True)


def _is_temporary(path: Path, names: set[str]) -> bool:
    found = re.fullmatch(r"\.(.+)\.\d+\.tmp(\.\w+)?", path.name)
    return found is not None and found[1] in names and found[2] == Path(found[1]).suffix


def _remove(folders: list[Path]) -> None:
    """Remove folders that are empty."""
    for folder in folders:
        if folder.is_dir() and not any(folder.iterdir()):
            folder.rmdir()


def _cannot_write(out: Path, problem: OSError) -> InputError:
    return InputError(f"--out {out}: cannot write there ({problem.strerror}); choose another folder")
