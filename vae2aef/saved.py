"""Save, load and describe an AEF: the whole, what was added, a table of shapes, a line for notebooks."""

from __future__ import annotations

import html
import numbers
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from vae2aef.added import load_added, save_added
from vae2aef.batch import Batch
from vae2aef.modes import parameters
from vae2aef.tensors import numel

if TYPE_CHECKING:
    from vae2aef.chain import Site

FORMAT = "vae2aef 1"
MOST_VALUES, FEWEST_ROWS = 2**18, 8
OTHER = {"vae2aef": "an object that was not saved"}
"""Stands for an option that is no word or number; `vae2aef.load` must be given it."""

PLAIN = (str, int, float, bool, type(None))


class Saved(nn.Module):
    """The part of an AEF that goes into files and onto the screen."""

    _made_with: Mapping[str, Any] = {}

    def save(self, path: str | Path, example: bool = True) -> None:
        """Save everything, the VAE's weights too; `vae2aef.load(path, vae)` makes the AEF again.

        The file holds tensors and plain values alone, so that loading it runs no code: the weights, the options of
        `wrap` that are words or numbers, and a few rows of the example that was wrapped with.

        Args:
            path: the file, replaced as a whole.
            example: keep rows of the example; without them `vae2aef.load` must be given one.
        """
        content = self.content(example)
        path = Path(path)
        partial = path.with_name(path.name + ".partial")
        torch.save(content, partial)
        partial.replace(path)

    def content(self, example: bool = True, state: bool = True) -> dict[str, Any]:
        """Return what `save` writes: plain values and tensors.

        Args:
            example: with rows of the example.
            state: with the weights.
        """
        options = dict(self._made_with)
        rows = options.pop("example", None)
        rows = rows if example else None
        options |= {name: getattr(self, name) for name in ("kl",) if name in options}  # it may have been changed
        content: dict[str, Any] = {"format": FORMAT, "options": options, "example": rows and tuple(rows)}
        return {**content, "state": self.state_dict()} if state else content

    def save_added(self, path: str | Path) -> None:
        """Save what was added, without the VAE, as safetensors; `wrap(vae, example=x, added=path)` takes it up.

        Raises:
            ImportError: if safetensors is not installed; names the extra.
        """
        save_added(self, path)

    def load_added(self, path: str | Path) -> None:
        """Load a file of `save_added`; the VAE is not touched.

        Raises:
            ImportError: if safetensors is not installed; names the extra.
            ValueError: if the file does not fit; lists names and shapes, and nothing was loaded.
        """
        load_added(self, path)

    def remember(self, batch: Batch, options: Mapping[str, Any]) -> None:
        """Keep what `save` needs to make this AEF again: options, and rows of the example, on the CPU."""
        rows = max(FEWEST_ROWS, min(128, MOST_VALUES // max(numel(batch.x.shape[1:]), 1)))
        few: Batch | None = None
        if _savable(batch.cond) and _savable(batch.kwargs):  # a graph, say, has a row a datum in a way of its own
            few = batch.rows(slice(0, rows)).detach().map(lambda value: value.cpu().clone())
        self._made_with = {
            **{name: value if plain(value) else OTHER for name, value in pythons(options).items()},
            "example": few,
        }

    def summary(self) -> str:
        """Return a table: each part from data to density, its type, the shapes it maps, its parameters."""
        rows = [("part", "type", "shapes of one datum", "parameters"), *self._rows()]
        widths = [max(len(row[i]) for row in rows) for i in range(4)]
        line = "  ".join("-" * width for width in widths)
        text = ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows]
        return "\n".join([text[0], line, *text[1:]])

    def _rows(self) -> list[tuple[str, str, str, str]]:
        this: Any = self
        event = tuple(this.event_shape)
        one = len(this.by_latent()) == 1
        rows = [_row("preprocess", this.preprocess, event, event), _row("vae", this.vae, event, "and back")]
        for name, site in this.by_latent().items():
            rows += _site_rows("" if one else f" of {name}", site, event)
        if this.prior is not None:
            rows.append(_row("prior", this.prior, tuple(this.latent_shape), "log p"))
        if this.likelihood is not None:
            rows.append(_row("likelihood", this.likelihood, event, "log p"))
        total = sum(p.numel() for p in this.parameters())
        return [*rows, ("all", type(self).__name__, "", f"{total:,}")]

    def _repr_html_(self) -> str:
        """What a notebook shows: the table of `summary`, and under it what `print` says."""
        head, *rows = [("part", "type", "shapes of one datum", "parameters"), *self._rows()]

        def line(cells: tuple[str, ...], tag: str) -> str:
            return "<tr>" + "".join(f"<{tag}>{html.escape(cell)}</{tag}>" for cell in cells) + "</tr>"

        body = "".join(line(row, "td") for row in rows)
        said = html.escape(repr(self))
        return (
            f"<table><thead>{line(head, 'th')}</thead><tbody>{body}</tbody></table><details><pre>{said}</pre></details>"
        )


def pythons(options: Mapping[str, Any]) -> dict[str, Any]:
    """Return options with what is NumPy's as Python's own: in a file these would be objects, loaded by code."""

    def python(value: Any) -> Any:
        if isinstance(value, (list, tuple)) and type(value) in (list, tuple):
            return type(value)(map(python, value))
        if type(value) is dict:
            return {key: python(item) for key, item in value.items()}
        return value.item() if isinstance(value, (numbers.Number, str)) and hasattr(value, "item") else value

    return {name: python(value) for name, value in options.items()}


def plain(value: Any) -> bool:
    """Whether a value is words and numbers of Python's own alone, in lists and dicts."""
    if isinstance(value, Mapping):
        return all(isinstance(key, str) and plain(item) for key, item in value.items())
    return type(value) in PLAIN or (isinstance(value, (list, tuple)) and all(map(plain, value)))


def _savable(value: Any) -> bool:
    """Whether a condition is tensors and plain values alone."""
    if isinstance(value, Mapping):
        return all(isinstance(key, str) and _savable(item) for key, item in value.items())
    if isinstance(value, (list, tuple)):
        return type(value) in (list, tuple) and all(map(_savable, value))
    return type(value) in PLAIN or isinstance(value, Tensor)


def read_saved(path: str | Path) -> dict[str, Any]:
    """Read a file of `save`; nothing in it is run.

    Raises:
        FileNotFoundError: if there is none.
        ValueError: if it is no such file.
    """
    try:
        found = torch.load(path, map_location="cpu", weights_only=True)
    except FileNotFoundError:
        raise
    except Exception as error:  # pickle has many ways to fail
        raise ValueError(f"{path}: expected a file of aef.save; it cannot be read ({error})") from error
    if not isinstance(found, dict) or found.get("format") != FORMAT:
        raise ValueError(f"{path}: expected a file of aef.save; a state_dict is loaded by aef.load_state_dict")
    return found


def _row(name: str, part: Any, before: Any, after: Any) -> tuple[str, str, str, str]:
    count = sum(p.numel() for p in parameters(part)) if isinstance(part, nn.Module) else 0
    return name, type(part).__name__, f"{before} -> {after}", f"{count:,}"


def _site_rows(of: str, site: Site, event: tuple[int, ...]) -> list[tuple[str, str, str, str]]:
    latent = tuple(site.core.latent_shape)
    features = getattr(site.core, "features", site.core)
    return [_row(f"core{of}", features, event, latent), _row(f"core_flow{of}", site.flow, latent, latent)]
