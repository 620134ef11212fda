"""How sigma may change while training: plain functions of the step."""

import math

KINDS = ("constant", "linear", "cosine")


def noise_at(step: int, steps: int, start: float, end: float, kind: str = "cosine") -> float:
    """Return sigma of a step: `start` at first, `end` from step `steps` on.

    A schedule means something where the scale of h is held (`core="normalized"`): with another h, training can undo it
    by scaling h and the core flow (docs/mathematics.md, the gauge of sigma).

    Args:
        step: how many steps were taken before.
        steps: how many steps sigma takes to its end.
        start: the first sigma.
        end: the last one.
        kind: `"constant"` (start throughout), `"linear"` or `"cosine"`.

    Raises:
        ValueError: for an unknown kind, no steps, or a negative sigma.

    Example:
        >>> [round(noise_at(step, 100, 1.0, 0.1), 2) for step in (0, 50, 100, 200)]
        [1.0, 0.55, 0.1, 0.1]
    """
    if kind not in KINDS:
        raise ValueError(f"expected a schedule {', '.join(KINDS)}; got {kind!r}")
    if steps < 1 or start < 0 or end < 0:
        raise ValueError(f"expected at least one step and sigmas >= 0; got steps={steps}, start={start}, end={end}")
    share = min(max(step / steps, 0.0), 1.0)
    if kind == "constant":
        return start
    if kind == "linear":
        return start + (end - start) * share
    return end + (start - end) * 0.5 * (1 + math.cos(math.pi * share))
