"""`vae2aef.load`: an AEF from a file of `aef.save`."""

from pathlib import Path
from typing import Any

from vae2aef.aef import AEF
from vae2aef.saved import OTHER, read_saved
from vae2aef.wrapping.wrap import wrap


def load(path: "str | Path", vae: Any, *, example: Any = None, **options: Any) -> AEF:
    """Make an AEF of a file that `aef.save` wrote.

    Args:
        path: the file.
        vae: a VAE of the class that was wrapped, with any weights: **it gets those of the file**, as by
            `load_state_dict`, and is otherwise used as `wrap` uses it. Of `from_pyro` it is that of a new AEF,
            `from_pyro(model, guide, x).vae`.
        example: as for `wrap`, if the file holds none.
        **options: options of `wrap` that are objects, such as functions and modules, which no file holds; and others
            that are to be different, such as `noise=`.

    Returns:
        The AEF, on the CPU, in training mode.

    Raises:
        FileNotFoundError: if there is no such file.
        ValueError: if it is no file of `aef.save`, or options or an example are missing; names them. Also for a `vae`
            where the file is of `from_pyro`, with the line to write.
        WrapError: if the VAE cannot be wrapped.
        RuntimeError: if the weights do not fit this VAE.

    Example:
        >>> aef.save("aef.pt")  # doctest: +SKIP
        >>> aef = vae2aef.load("aef.pt", MyVAE())  # doctest: +SKIP
    """
    return make_again(read_saved(path), str(path), vae, example=example, **options)


def make_again(found: dict[str, Any], path: str, vae: Any, *, example: Any = None, **options: Any) -> AEF:
    """Make an AEF of what `aef.content()` returned; `path` is for messages. The rest is as for `load`."""
    missing = [name for name, value in found["options"].items() if value == OTHER and name not in options]
    if missing:
        line = ", ".join(f"{name}=..." for name in missing)
        raise ValueError(
            f"{path}: saved without {', '.join(missing)}, which are objects: vae2aef.load(path, vae, {line})"
        )
    if example is None:
        if found["example"] is None:
            raise ValueError(f"{path}: saved without an example: vae2aef.load(path, vae, example=x)")
        x, cond, kwargs = found["example"]
        example = (x, *cond, *([kwargs] if kwargs else []))
    _require_pair(found["state"], path, vae)
    exact = found["options"].get("start") == "exact"  # where the flow depends on the sigma that it was made with
    noise = options.pop("noise", None) if exact else None
    aef = wrap(vae, example=example, **{**found["options"], **options})
    own = {key for key in found["state"] if key.endswith(".core.sigma") and "noise" in options}
    aef.load_state_dict({**found["state"], **{key: aef.state_dict()[key] for key in own}})
    if noise is not None:
        aef.noise = noise
    return aef


def _require_pair(state: dict[str, Any], path: str, vae: Any) -> None:
    """Refuse an object in the place of the pair that `from_pyro` made of two of its methods."""
    parts = ("model_module", "guide_module")
    if any(key.startswith(tuple(f"vae.{part}." for part in parts)) for key in state) and not any(
        hasattr(vae, part) for part in parts
    ):
        raise ValueError(
            f"{path}: saved of vae2aef.from_pyro(model, guide, x): "
            "vae2aef.load(path, vae2aef.from_pyro(model, guide, x).vae), with the options that it had"
        )
