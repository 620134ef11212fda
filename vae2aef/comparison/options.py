"""What a comparison is asked to do."""

from __future__ import annotations

import math
import re
import shlex
from dataclasses import asdict, dataclass, fields
from typing import Any

from vae2aef.comparison.arms import ARMS
from vae2aef.comparison.errors import InputError
from vae2aef.comparison.likelihoods import CHOICES as LIKELIHOODS
from vae2aef.comparison.likelihoods import is_discrete

# These only say how much of the same comparison is wanted: a folder may be extended by them.
EXTENSIBLE = ("arms", "seeds", "device")
CHOICES = {
    "likelihood": LIKELIHOODS,
    "preprocess": ("logit", "standardize", "none"),
    "prior": ("vae", "coupling", "maf"),
    "core_flow": ("none", "coupling", "maf"),
    "condition": ("none", "labels", "one_hot"),
}


@dataclass(frozen=True)
class Options:
    """The options of `vae2aef compare`; the command line's help says what each means.

    Raises:
        InputError: lists every value that cannot be used.
    """

    data: str = "photographs"
    vae: str = "mlp"
    latents: int = 16
    steps: int = 1200
    batch_size: int = 128
    lr: float = 1e-3
    seeds: int = 1
    arms: tuple[str, ...] = tuple(ARMS)
    likelihood: str = "vae"
    preprocess: str = "logit"
    lam: float = 0.05
    prior: str = "vae"
    core_flow: str = "none"
    importance_samples: int = 128
    test_limit: int = 1000
    bins: int | None = None
    condition: str = "none"
    device: str = "auto"

    def __post_init__(self) -> None:
        if problems := [*self._bad_numbers(), *self._bad_names()]:
            raise InputError("; ".join(problems))

    def _bad_numbers(self) -> list[str]:
        problems = []
        for name in ("latents", "steps", "batch_size", "seeds"):
            if getattr(self, name) < 1:
                problems.append(f"{_flag(name)} must be at least 1, got {getattr(self, name)}")
        if self.importance_samples < 2:
            problems.append(f"--importance-samples must be at least 2, got {self.importance_samples}")
        if self.test_limit < 0 or self.test_limit == 1:
            problems.append(f"--test-limit must be 0 (all) or at least 2, got {self.test_limit}")
        if not (math.isfinite(self.lr) and self.lr > 0):
            problems.append(f"--lr must be positive, got {self.lr}")
        if not 0 < self.lam < 0.5:
            problems.append(f"--lam must lie between 0 and 0.5, got {self.lam}")
        if not re.fullmatch(r"auto|cpu|mps|cuda(:\d+)?", self.device):
            problems.append(f"--device must be auto, cpu, cuda, cuda:N or mps, got {self.device}")
        return problems

    def _bad_names(self) -> list[str]:
        problems = []
        for name, choices in CHOICES.items():
            if getattr(self, name) not in choices:
                problems.append(f"{_flag(name)} must be one of {', '.join(choices)}, got {getattr(self, name)}")
        if unknown := [arm for arm in self.arms if arm not in ARMS]:
            problems.append(f"--arms: unknown {', '.join(unknown)}; known are {', '.join(ARMS)}")
        if not self.arms or len(set(self.arms)) != len(self.arms):
            problems.append("--arms must name at least one arm, each once")
        return problems

    @property
    def discrete(self) -> bool:
        """Whether the likelihood scores data as they are."""
        return is_discrete(self.likelihood)

    def as_dict(self) -> dict[str, Any]:
        """Return plain values for JSON."""
        return {**asdict(self), "arms": list(self.arms)}

    def differences(self, other: dict[str, Any]) -> list[str]:
        """Say where `other` (from `as_dict`) asks for another comparison."""
        mine = self.as_dict()
        return [
            f"{_flag(name)} is {other.get(name, getattr(Options, name))} there and {mine[name]} now"
            for name in mine
            if name not in EXTENSIBLE and other.get(name, getattr(Options, name)) != mine[name]
        ]

    def command(self, out: str) -> str:
        """Return the command line that asks for this, whatever the defaults of another version are."""
        words = ["vae2aef", "compare"]
        for field in fields(self):
            value = getattr(self, field.name)
            if value is not None:
                text = ",".join(value) if isinstance(value, tuple) else str(value)
                words += [_flag(field.name), text]
        return shlex.join([*words, "--out", out])


def _flag(name: str) -> str:
    return "--" + name.replace("_", "-")
