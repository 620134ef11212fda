"""Say in a line which argument is of another number type than the networks, where torch says that two differ."""

import contextlib
import re
from collections.abc import Iterator
from typing import Any, NamedTuple

import torch

from vae2aef.errors import DataTypeError
from vae2aef.svi.quiet import quiet
from vae2aef.svi.reading import Unit, changed, written
from vae2aef.svi.runs import Runs

_WORDS = {
    "double": torch.float64, "float": torch.float32, "half": torch.float16, "bfloat16": torch.bfloat16,
    "long": torch.int64, "int": torch.int32, "short": torch.int16, "char": torch.int8, "byte": torch.uint8,
    "bool": torch.bool,
}  # fmt: skip


class Suspect(NamedTuple):
    """Arguments of one number type where the networks may be of another."""

    units: list[Unit]
    own: torch.dtype
    theirs: torch.dtype


@contextlib.contextmanager
def naming_dtypes(every: list[Unit], model: Any, guide: Any, args: tuple, kwargs: dict[str, Any]) -> Iterator[None]:
    """Make of torch's error about two number types one that names the argument and the remedy.

    What mends the call is found by trial. Where nothing does, a tensor that the program makes itself may be the cause:
    the message then says so, and quotes torch.

    Args:
        every: the tensors among the arguments that may be named.
        model: that was run.
        guide: likewise.
        args: of both.
        kwargs: of both.

    Raises:
        DataTypeError: in the place of torch's `RuntimeError`.
    """
    try:
        yield
    except RuntimeError as error:
        said = str(error).split("\n", 1)[0]
        suspects = _suspects(said, every)
        if not suspects:
            raise
        mended = next((one for one in suspects if _mends(one, model, guide, args, kwargs)), None)
        found = mended or suspects[0]
        names = [written(unit.path or ("data",)) for unit in found.units]
        own, theirs, are = found.own, found.theirs, "are" if len(names) > 1 else "is"
        cast = ", ".join(name + _cast(theirs) for name in names)
        if mended is None:
            raise DataTypeError(
                f"model or guide puts two number types together, perhaps as {names[0]} is of {own} ({said}): ",
                f"look for a tensor of {own} or {theirs} that they make themselves, or pass {cast}",
            ) from error
        raise DataTypeError(
            f"{' and '.join(names)} {are} of {own}, and the networks of model or guide are of {theirs}: ",
            f"pass {cast}"
            + (
                f", or convert them, .to({own})"
                if own.is_floating_point
                else f"; of grey levels vae2aef.dequantize({names[0]})"
            ),
        ) from error


def _suspects(said: str, every: list[Unit]) -> list[Suspect]:
    """Return the arguments that torch's message may be about, one by one, then all of a type together."""
    words = re.findall(r"\b(Double|Float|Half|BFloat16|Long|Int|Short|Char|Byte|Bool)(?=Tensor\b|\b)", said, re.I)
    types = dict.fromkeys(_WORDS[word.lower()] for word in words)
    if len(types) != 2 or not re.search(r"dtype|type|!=", said):
        return []
    found = []
    for own in sorted(types, key=lambda dtype: dtype == torch.get_default_dtype()):  # networks are of that more often
        (theirs,) = types.keys() - {own}
        held = [unit for unit in every if unit.tensors and unit.tensors[0].dtype == own]
        if theirs.is_floating_point:
            groups = [*([unit] for unit in held), *([held] if len(held) > 1 else [])]
            found += [Suspect(group, own, theirs) for group in groups]
    return found


def _mends(suspect: Suspect, model: Any, guide: Any, args: tuple, kwargs: dict[str, Any]) -> bool:
    """Whether model and guide run where these arguments are of the other type."""
    ours = {id(tensor): tensor for unit in suspect.units for tensor in unit.tensors}
    args, kwargs = changed((args, kwargs), lambda t: t.to(suspect.theirs) if id(t) in ours else t)
    device = next(iter(ours.values())).device
    try:
        with quiet(device, model, guide):
            Runs(model, guide, args, kwargs, {})
    except Exception:  # whatever it is, that is not what mends it
        return False
    return True


def _cast(dtype: torch.dtype) -> str:
    return {torch.float32: ".float()", torch.float64: ".double()"}.get(dtype, f".to({dtype})")
