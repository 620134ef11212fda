"""`vae2aef` and `python -m vae2aef`."""

from __future__ import annotations

import sys

NEEDED = ("filelock", "lightning", "matplotlib", "numpy", "PIL", "rich", "sklearn", "torchmetrics", "typer")
LOADING = "loading torch and Lightning"


def main() -> None:
    """Run the command line, or say what to install for it."""
    from importlib.util import find_spec

    if missing := [name for name in NEEDED if find_spec(name) is None]:
        print(f'vae2aef needs {", ".join(missing)}: pip install "vae2aef[demo]"', file=sys.stderr)
        sys.exit(2)
    # On a terminal, gone when it is done, and not in what is piped on. Nothing before it may import torch, and rich's
    # own first word comes from a thread, which torch's import may keep waiting.
    if sys.stderr.isatty():
        print(LOADING, end="\r", file=sys.stderr, flush=True)
    from rich.console import Console

    with Console(stderr=True).status(LOADING):
        from vae2aef.cli import app

    app()


if __name__ == "__main__":
    main()
