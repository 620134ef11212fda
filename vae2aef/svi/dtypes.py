"""Say in a line which argument is of another number type than the networks, where torch says that two differ."""

import contextlib
import re
from collections.abc import Iterator
from typing import Any

import torch

from vae2aef.errors import DataTypeError
from vae2aef.svi.reading import Unit, written

_WORDS = {
    "double": torch.float64, "float": torch.float32, "half": torch.float16, "bfloat16": torch.bfloat16,
    "long": torch.int64, "int": torch.int32, "short": torch.int16, "char": torch.int8, "byte": torch.uint8,
    "bool": torch.bool,
}  # fmt: skip


@contextlib.contextmanager
def naming_dtypes(every: list[Unit]) -> Iterator[None]:
    """Make of torch's error about two number types one that names the argument and the remedy.

    Args:
        every: the tensors among the arguments.

    Raises:
        DataTypeError: in the place of torch's `RuntimeError`.
    """
    try:
        yield
    except RuntimeError as error:
        found = _named(str(error).split("\n", 1)[0], every)
        if found is None:
            raise
        unit, own, theirs = found
        name = written(unit.path or ("data",))
        raise DataTypeError(
            f"{name} is of {own}, and the networks of model or guide are of {theirs}: ",
            f"pass {name}{_cast(theirs)}"
            + (
                f", or convert them, .to({own})"
                if own.is_floating_point
                else f"; of grey levels vae2aef.dequantize({name})"
            ),
        ) from error


def _named(said: str, every: list[Unit]) -> tuple[Unit, torch.dtype, torch.dtype] | None:
    """Return the argument that torch's message is about, its type and the other one."""
    words = re.findall(r"\b(Double|Float|Half|BFloat16|Long|Int|Short|Char|Byte|Bool)(?=Tensor\b|\b)", said, re.I)
    types = dict.fromkeys(_WORDS[word.lower()] for word in words)
    if len(types) != 2 or not re.search(r"dtype|type|!=", said):
        return None
    held: list[tuple[Unit, Any]] = [(u, t.dtype) for u in every for t in u.tensors[:1] if t.dtype in types]
    held.sort(key=lambda pair: pair[1] == torch.get_default_dtype())  # a network is of that more often than not
    for unit, own in held:
        theirs = next(other for other in types if other != own)
        if theirs.is_floating_point:
            return unit, own, theirs
    return None


def _cast(dtype: torch.dtype) -> str:
    return {torch.float32: ".float()", torch.float64: ".double()"}.get(dtype, f".to({dtype})")
