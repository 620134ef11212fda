"""The report: one page that needs nothing else, made from templates."""

from __future__ import annotations

import functools
import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from vae2aef.comparison.charts import Spec, library
from vae2aef.comparison.errors import InputError

TEMPLATES = Path(__file__).parent / "templates"


@dataclass(frozen=True)
class View:
    """One of the faces of a figure, which a button brings up.

    Attributes:
        label: on the button.
        specs: of its charts, by their names in `Page.specs`.
        caption: what to see in it.
    """

    label: str
    specs: Sequence[str]
    caption: str = ""


@dataclass(frozen=True)
class Figure:
    """Charts.

    Attributes:
        name: its anchor.
        views: one or more.
        caption: what to see, whatever the view.
    """

    name: str
    views: Sequence[View]
    caption: str = ""


@dataclass(frozen=True)
class Sheet:
    """A picture that can be enlarged.

    Attributes:
        title: above it.
        image: `data:` address.
        caption: what it is, for those who do not see it, and beside it when enlarged.
    """

    title: str
    image: str
    caption: str


@dataclass(frozen=True)
class Block:
    """What is shown of one arm, or of the data.

    Attributes:
        title: the arm.
        sheets: its pictures.
        colour: its place in the table; None for the data.
    """

    title: str
    sheets: Sequence[Sheet]
    colour: int | None = None


@dataclass(frozen=True)
class Section:
    """A section of the page.

    Attributes:
        name: its anchor.
        title: its heading.
        text: paragraphs.
        table: heading and rows; empty for none.
        blocks: pictures, arm by arm.
        figures: charts.
        notes: what stands against what is shown.
        narrow: whether blocks are small.
    """

    name: str
    title: str
    text: Sequence[str] = ()
    table: Sequence[Sequence[str]] = ()
    blocks: Sequence[Block] = ()
    figures: Sequence[Figure] = ()
    notes: Sequence[str] = ()
    narrow: bool = False


@dataclass(frozen=True)
class Page:
    """All that the report says and shows.

    Attributes:
        title: what was compared.
        verdict: sentences, the first of which is the heading of the page.
        own_loop: a line of code for the reader's own loop; empty for none.
        table: heading and rows, an arm each.
        best: the row that the verdict is for; -1 if it is open.
        key: what the table's columns mean.
        arms: name and text of each.
        notes: what stands against taking the table at its word.
        sections: in order.
        method: how the numbers were made, a line each.
        command: that makes this comparison.
        made_with: versions and machine, one line.
        specs: charts by name.
        test: what the charts tell of each test datum.
    """

    title: str
    verdict: Sequence[str]
    table: Sequence[Sequence[str]]
    command: str
    made_with: str
    own_loop: str = ""
    best: int = -1
    key: Sequence[str] = ()
    arms: Sequence[tuple[str, str]] = ()
    notes: Sequence[str] = ()
    sections: Sequence[Section] = ()
    method: Sequence[str] = ()
    specs: dict[str, Spec] = field(default_factory=dict)
    test: list[dict[str, Any]] = field(default_factory=list)


def render(page: Page) -> str:
    """Return the page as HTML.

    Raises:
        InputError: a package of the extra `demo` is missing.
    """
    return str(_environment().get_template("report.html").render(page=page, library=library() if page.specs else ""))


def typeset(text: str) -> Any:
    """Return text as HTML: true minus signs, options as code, no line broken within σ = 0.3, 1 ± 0.1, 95 % or p(x | z).

    Names, options and 1e-5 keep their hyphens.
    """
    from markupsafe import Markup, escape

    text = re.sub(r"(?<![\w.)\-])-(?=\.?\d)", "\u2212", text)
    text = re.sub(r"(?<=\d) ?%", "\u00a0%", text)
    text = re.sub(r"σ ([=>]) (?=\d)", "σ\u00a0\\1\u00a0", text).replace("x | z", "x\u00a0|\u2060\u00a0z")
    text = text.replace(" ± ", "\u00a0±\u00a0")
    return Markup(re.sub(r"--[a-z][a-z-]*(?: \d+)?", r"<code>\g<0></code>", str(escape(text))))


@functools.cache
def _environment() -> Any:
    try:
        import jinja2
    except ImportError as problem:
        raise InputError('the report needs jinja2: pip install "vae2aef[demo]"') from problem
    made = jinja2.Environment(
        loader=jinja2.FileSystemLoader(TEMPLATES),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    made.filters["typeset"] = typeset
    made.policies["json.dumps_kwargs"] = {"allow_nan": False, "ensure_ascii": False, "separators": (",", ":")}
    return made
