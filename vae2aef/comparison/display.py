"""Progress on the terminal: the run at hand and the whole comparison, each with its time left."""

from __future__ import annotations

import itertools
import time
from types import TracebackType

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from vae2aef.comparison.run import RunProgress


class Beginning:
    """What is being done before training, on the terminal while it lasts; a context manager.

    Args:
        console: where to say it.
    """

    def __init__(self, console: Console) -> None:
        self.status = console.status("")
        self.steps: list[tuple[str, float]] = []

    def __enter__(self) -> Beginning:
        self.status.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.status.stop()
        self.steps.append(("", time.perf_counter()))

    def __call__(self, what: str) -> None:
        """Say what is done from now on."""
        self.steps.append((what, time.perf_counter()))
        self.status.update(what)

    def said(self) -> str:
        """What was done, and how many seconds each step took."""
        pairs = itertools.pairwise(self.steps)
        return ", ".join(f"{what}: {after - before:.1f} s" for (what, before), (_, after) in pairs)


class Display:
    """Two bars; a context manager.

    Args:
        console: where to draw.
        runs: number of runs that will be shown.
        steps: training steps of a run.
    """

    def __init__(self, console: Console, runs: int, steps: int) -> None:
        self.console, self.steps = console, steps
        self.progress = Progress(
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TimeRemainingColumn(),
            TextColumn("{task.fields[loss]}"),
            console=console,
            refresh_per_second=4,
            transient=True,
            speed_estimate_period=60,
        )
        self.overall = self.progress.add_task("all", total=runs * steps, loss="")
        self.current = self.progress.add_task("", total=steps, loss="", visible=False)

    def __enter__(self) -> Display:
        self.progress.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.progress.stop()

    def start(self, name: str) -> RunProgress:
        """Begin the bar of a run; return where the run tells how far it is."""
        self.progress.reset(self.current, total=self.steps, description=name, loss="", visible=True)
        tested = 0

        def resumed(step: int) -> None:
            self.progress.update(self.current, completed=step)
            self.progress.advance(self.overall, step)

        def loss(value: float) -> None:
            self.progress.update(self.current, advance=1, loss=f"loss {value:.2f} nats")
            self.progress.advance(self.overall)

        def testing(images: int) -> None:
            nonlocal tested
            tested += images
            self.progress.update(self.current, loss=f"testing, {tested} samples done")

        return RunProgress(resumed, loss, testing)

    def skip(self) -> None:
        """Count a run that was there already."""
        self.progress.advance(self.overall, self.steps)

    def line(self, text: str) -> None:
        """Print a line above the bars."""
        self.progress.console.print(text, highlight=False, soft_wrap=True)
