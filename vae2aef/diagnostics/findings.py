"""The report of `vae2aef.check`: what was found, worst first."""

import textwrap
from dataclasses import dataclass, field
from typing import Literal

Topic = Literal["", "small scale", "few values", "discrete data", "decoder reach"]
"""What a finding is about, for code: its message may be worded anew, and is for people."""

SEVERITIES = ("error", "warning", "note")
STYLES = {"error": "bold red", "warning": "yellow", "note": ""}


@dataclass(frozen=True)
class Finding:
    """One thing that matters before training.

    Attributes:
        severity: `"error"` (it cannot be wrapped, or would train wrongly), `"warning"` (it can, but the numbers will
            suffer or mislead) or `"note"` (what was found, decided and will be added).
        place: dotted name of the module, or the part of the model: `"encoder"`, `"example"`, ...
        message: what is so, with the measured numbers.
        fix: the line that changes it; empty if there is nothing to change.
        topic: what it is about, where code asks for that; else empty.
    """

    severity: str
    place: str
    message: str
    fix: str = ""
    topic: Topic = ""


@dataclass(frozen=True)
class Report:
    """All findings of one check, worst first. `print(report)` reads well.

    Attributes:
        subject: the class that was checked.
        findings: worst first, in the order they were found within a severity.
    """

    subject: str
    findings: list[Finding] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.findings.sort(key=lambda f: SEVERITIES.index(f.severity))

    @property
    def ok(self) -> bool:
        """Whether there is no error. Warnings may remain."""
        return not self.errors

    @property
    def errors(self) -> list[Finding]:
        """The findings to settle before training."""
        return [f for f in self.findings if f.severity == "error"]

    def __str__(self) -> str:
        return "\n".join(line for line, _ in self.styled())

    def styled(self) -> list[tuple[str, str]]:
        """Return the printed lines, each with its style in Rich's words."""
        counts = [(sum(f.severity == s for f in self.findings), s) for s in SEVERITIES]
        told = ", ".join(f"{n} {s}{'' if n == 1 else 's'}" for n, s in counts if n) or "nothing found"
        lines = [(f"check of {self.subject}: {told}", "bold")]
        for f in self.findings:
            first, *more = _folded(f"{f.severity.upper()} {f.place}: {f.message}", "  ")
            lines += [("", ""), (first, STYLES[f.severity]), *((line, "") for line in more)]
            if f.fix:
                first, *more = _folded(f"-> {f.fix}", "     ", first="  ")
                lines += [(first, "green"), *((line, "") for line in more)]
        return lines


def _folded(text: str, indent: str, first: str = "") -> list[str]:
    """Break long lines, and keep the breaks that are there."""
    paragraphs = text.split("\n")
    lines = []
    for number, paragraph in enumerate(paragraphs):
        own = " " * (len(paragraph) - len(paragraph.lstrip()))
        lines += textwrap.wrap(
            paragraph.lstrip(), 100, initial_indent=indent + own if number else first,
            subsequent_indent=indent + own + ("  " if own else ""), break_long_words=False, break_on_hyphens=False,
        )  # fmt: skip
    return lines
