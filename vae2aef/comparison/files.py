"""Files of a comparison: written whole or not at all, read with a name for what is damaged."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

from vae2aef.comparison.errors import InputError


class Damaged(ValueError):
    """A file of ours cannot be read; the message names it."""


def write_atomic(path: Path, write: Callable[[Path], object]) -> None:
    """Write a file whole or not at all.

    Args:
        path: the file.
        write: called with the path of a temporary file beside it.

    Raises:
        InputError: the disk is full, a quota reached, the folder gone. What was there before is whole.
    """
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp{path.suffix}")
    try:
        write(temporary)
        os.replace(temporary, path)
    except (OSError, RuntimeError) as problem:
        if isinstance(problem, RuntimeError) and not _of_writing(problem):
            raise
        why = getattr(problem, "strerror", None) or "the disk may be full"
        raise InputError(
            f"{path}: cannot be written ({why}); what was there before is whole. Make room, and run the same command "
            "again"
        ) from problem
    finally:
        temporary.unlink(missing_ok=True)


def make_folder(path: Path) -> None:
    """Make a folder, and those above it.

    Raises:
        InputError: it cannot be made.
    """
    try:
        path.mkdir(parents=True, exist_ok=True)
    except OSError as problem:
        raise InputError(
            f"{path}: cannot be made ({problem.strerror}); make room, and run the same command again"
        ) from (problem)


def _of_writing(problem: RuntimeError) -> bool:
    """Whether torch failed to write: it raises a RuntimeError of its writer in C++, whose cause is lost."""
    return any(word in str(problem) for word in ("PytorchStreamWriter", "inline_container", "unexpected pos"))


def write_json(path: Path, content: object) -> None:
    """Write JSON atomically; NaN is refused."""
    text = json.dumps(content, indent=1, allow_nan=False)
    write_atomic(path, lambda temporary: temporary.write_text(text, encoding="utf-8"))


def read_json(path: Path, *keys: str) -> Any:
    """Read JSON.

    Args:
        path: the file.
        *keys: what it must hold, if it is an object.

    Raises:
        Damaged: it is no JSON, or holds other things.
    """
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, OSError, RecursionError) as problem:
        raise Damaged(f"{path} is damaged ({problem})") from problem
    missing = [key for key in keys if not isinstance(found, dict) or key not in found]
    if missing:
        raise Damaged(f"{path} is damaged (it holds no {missing[0]})")
    return found
