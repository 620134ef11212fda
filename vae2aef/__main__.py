"""`vae2aef` and `python -m vae2aef`."""

from __future__ import annotations

import sys

NEEDED = ("filelock", "lightning", "matplotlib", "numpy", "PIL", "rich", "sklearn", "torchmetrics", "typer")


def main() -> None:
    """Run the command line, or say what to install for it."""
    from importlib.util import find_spec

    if missing := [name for name in NEEDED if find_spec(name) is None]:
        print(f'vae2aef needs {", ".join(missing)}: pip install "vae2aef[demo]"', file=sys.stderr)
        sys.exit(2)
    from rich.console import Console

    with Console().status("loading torch and Lightning"):  # on a terminal; gone when it is done
        from vae2aef.cli import app

    app()


if __name__ == "__main__":
    main()
