"""Save and load what was added to a VAE, without the VAE: a small file beside a large model."""

from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn


def added_state(aef: Any) -> dict[str, Tensor]:
    """Return the parameters and buffers of an AEF that are not the VAE's, by their names in `aef.state_dict()`."""
    own = [aef.vae] if isinstance(aef.vae, nn.Module) else []
    theirs = {t.data_ptr() for m in (*own, aef.outside) for t in m.state_dict().values() if t.numel()}
    return {
        name: value
        for name, value in aef.state_dict().items()
        if not name.startswith(("vae.", "outside.")) and value.data_ptr() not in theirs
    }


def save_added(aef: Any, path: "str | Path") -> None:
    """Write `added_state` to a file of safetensors, replacing it as a whole.

    Raises:
        ImportError: if safetensors is not installed; names the extra.
    """
    state = {name: value.detach().cpu().clone().contiguous() for name, value in added_state(aef).items()}
    path = Path(path)
    partial = path.with_name(path.name + ".partial")
    _safetensors().save_file(state, partial, metadata={"format": "pt", "made_by": "vae2aef"})
    partial.replace(path)


def load_added(aef: Any, path: "str | Path") -> None:
    """Read a file of `save_added` into an AEF made with the same options. The VAE is not touched.

    Raises:
        ImportError: if safetensors is not installed; names the extra.
        FileNotFoundError: if there is none.
        ValueError: if it cannot be read, or holds other names or shapes than the AEF has; lists them, and nothing was
            loaded.
    """
    safetensors, own = _safetensors(), added_state(aef)
    try:
        found = safetensors.load_file(path)
    except FileNotFoundError:
        raise
    except Exception as error:  # safetensors has an error of its own
        raise ValueError(f"{path}: expected a file of aef.save_added; it cannot be read ({error})") from error
    problems = [f"{name}: not in the file" for name in own.keys() - found.keys()]
    problems += [f"{name}: only in the file" for name in found.keys() - own.keys()]
    problems += [
        f"{name}: {tuple(found[name].shape)} in the file, {tuple(own[name].shape)} here"
        for name in own.keys() & found.keys()
        if not _fits(name, tuple(found[name].shape), tuple(own[name].shape))
    ]
    if problems:
        more = f"; and {len(problems) - 8} more" if len(problems) > 8 else ""
        raise ValueError(
            f"{path} does not fit this AEF; wrap the VAE with the options that it was saved with. "
            + "; ".join(sorted(problems)[:8])
            + more
        )
    with torch.no_grad():
        aef.load_state_dict({**aef.state_dict(), **found})


def _fits(name: str, found: tuple[int, ...], own: tuple[int, ...]) -> bool:
    """Whether a tensor can be loaded; normalized features may have been given another number of rows."""
    return found == own or (name.endswith(".features.rows") and found[1:] == own[1:])


def _safetensors() -> Any:
    try:
        import safetensors.torch
    except ImportError as error:
        raise ImportError('this needs safetensors: pip install "vae2aef[safetensors]"') from error
    return safetensors.torch
