"""The interactive figures of the report: Vega-Lite specifications, made by Altair and drawn by the page itself.

Colours of text, lines and arms come from the page, which is light or dark: nothing here names any but neutral ones.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Sequence
from typing import Any

from vae2aef.comparison.errors import InputError
from vae2aef.comparison.latent_use import ACTIVE

HEIGHT = 320
FADED = 0.15
GREY = "#888888"
Spec = dict[str, Any]
Records = list[dict[str, Any]]


def altair() -> Any:
    """Return the package.

    Raises:
        InputError: it is missing.
    """
    try:
        import altair as found
    except ImportError as problem:
        raise InputError('the report needs altair and vl-convert-python: pip install "vae2aef[demo]"') from problem
    return found


@functools.cache
def library() -> str:
    """Return Vega, Vega-Lite and Vega-Embed as one JavaScript text, which sets `window.vegaEmbed`."""
    try:
        import vl_convert
    except ImportError as problem:
        raise InputError('the report needs altair and vl-convert-python: pip install "vae2aef[demo]"') from problem
    # No tag may end the page's script early.
    return str(vl_convert.javascript_bundle("window.vegaEmbed = vegaEmbed;")).replace("</script", "<\\/script")


def curves(rows: Records, arms: Sequence[str], across: str, title: str) -> Spec:
    """Validation bits per dimension of every run, a line each.

    Args:
        rows: `arm`, `seed`, `step`, `seconds` and `bits`.
        arms: in the order of the table.
        across: the column along x.
        title: of x.
    """
    alt = altair()
    chosen = alt.selection_point(fields=["arm"], bind="legend")
    base = alt.Chart(alt.Data(values=rows)).encode(
        x=alt.X(across, type="quantitative", title=title, axis=alt.Axis(tickCount=6)),
        y=alt.Y("bits:Q", title="bits per dimension (lower is better)", scale=alt.Scale(zero=False)),
        color=by_name(alt, arms),
        detail="seed:N",
        opacity=alt.condition(chosen, alt.value(1), alt.value(FADED)),
    )
    hover = [
        alt.Tooltip("arm:N"),
        alt.Tooltip("seed:N"),
        alt.Tooltip("step:Q", format=","),
        alt.Tooltip("seconds:Q", format=".1f"),
        alt.Tooltip("bits:Q", format=".4f", title="bits per dimension"),
    ]
    dash = alt.StrokeDash("arm:N", scale=alt.Scale(domain=list(arms)), title=None)
    lines = base.mark_line(strokeWidth=2).encode(strokeDash=dash)
    points = base.mark_point(filled=True, size=55, opacity=1).encode(tooltip=hover)
    return finished((lines + points).add_params(chosen))


def loss(rows: Records, arm: str, arms: Sequence[str]) -> Spec:
    """The training loss of one arm: small, and on a scale of its own.

    Args:
        rows: `arm`, `seed`, `step` and `loss` of this arm.
        arm: its name.
        arms: in the order of the table.
    """
    alt = altair()
    chart = alt.Chart(alt.Data(values=rows), title=arm).mark_line(strokeWidth=1.5).encode(
        x=alt.X("step:Q", title="step", axis=alt.Axis(tickCount=4)),
        y=alt.Y("loss:Q", title="nats", scale=alt.Scale(zero=False), axis=alt.Axis(tickCount=4)),
        color=by_name(alt, arms, legend=False),
        detail="seed:N",
        tooltip=["seed:N", alt.Tooltip("step:Q", format=","), alt.Tooltip("loss:Q", format=".4f")],
    )  # fmt: skip
    return finished(chart, height=130)


def scatter(arms: Sequence[str], other: str, span: tuple[float, float]) -> Spec:
    """The log p(x) of two arms, a point each test datum, from the page's data set named `test`.

    Args:
        arms: in the order of the table; the first is along x, and the columns are `a0`, `a1`, ...
        other: the arm along y.
        span: smallest and largest value, of both axes.
    """
    alt = altair()
    first, x, y = arms[0], "a0", f"a{arms.index(other)}"
    scale, ticks = alt.Scale(domain=list(span), nice=False), alt.Axis(tickCount=6)
    hover = [
        alt.Tooltip("number:Q", title="test datum"),
        alt.Tooltip(f"{x}:Q", title=first, format=".2f"),
        alt.Tooltip(f"{y}:Q", title=other, format=".2f"),
        alt.Tooltip("difference:Q", title=f"{other} minus {first}", format="+.2f"),
    ]
    points = (
        alt.Chart(alt.NamedData(name="test"))
        .transform_calculate(
            difference=f"datum.{y} - datum.{x}", better=f"datum.{y} > datum.{x} ? '{other}' : '{first}'"
        )
        .mark_point(filled=True, size=34, opacity=0.65)
        .encode(
            x=alt.X(f"{x}:Q", title=f"log p(x), {first} (nats)", scale=scale, axis=ticks),
            y=alt.Y(f"{y}:Q", title=f"log p(x), {other} (nats)", scale=scale, axis=ticks),
            color=alt.Color("better:N", title="higher log p(x)", scale=alt.Scale(domain=[first, other])),
            tooltip=[*hover, alt.Tooltip("image:N")],
        )
    )
    ends = [{"a": end, "b": end} for end in span]
    diagonal = (
        alt.Chart(alt.Data(values=ends))
        .mark_line(strokeDash=[4, 4], color=GREY)
        .encode(x=alt.X("a:Q", scale=scale), y=alt.Y("b:Q", scale=scale))
    )
    return finished(diagonal + points, 440, [0, arms.index(other)], square=True)


def units(rows: Records, arms: Sequence[str]) -> Spec:
    """The variance over data of each latent's posterior mean: which latents are in use.

    Args:
        rows: `arm`, `latent` and `variance`, the largest first.
        arms: in the order of the table.
    """
    alt = altair()
    log, last = alt.Scale(type="log", nice=False), max(row["rank"] for row in rows)
    whole = alt.Axis(values=list(range(1, last + 1, math.ceil(last / 12))), format="d")
    points = alt.Chart(alt.Data(values=rows)).mark_line(point=alt.OverlayMarkDef(filled=True, size=45)).encode(
        x=alt.X("rank:Q", title="latent, the most used first", axis=whole),
        y=alt.Y("variance:Q", title="variance of the posterior mean", scale=log),
        color=by_name(alt, arms),
        tooltip=["arm:N", "latent:N", alt.Tooltip("variance:Q", format=".3g")],
    )  # fmt: skip
    rule = alt.Chart(alt.Data(values=[{"at": ACTIVE}])).mark_rule(strokeDash=[4, 4], color=GREY).encode(y="at:Q")
    return finished(rule + points, height=240)


def aggregate(rows: Records, arms: Sequence[str]) -> Spec:
    """Mean and standard deviation of the aggregate posterior, a point each latent, in units of the prior's.

    Args:
        rows: `arm`, `latent`, `mean` and `spread`.
        arms: in the order of the table.
    """
    alt = altair()
    points = alt.Chart(alt.Data(values=rows)).mark_point(filled=True, size=60, opacity=0.8).encode(
        x=alt.X("mean:Q", title="mean of q(z) − mean of the prior, in the prior's σ"),
        y=alt.Y("spread:Q", title="σ of q(z) over σ of the prior", scale=alt.Scale(zero=False)),
        color=by_name(alt, arms),
        tooltip=["arm:N", "latent:N", alt.Tooltip("mean:Q", format=".3f"), alt.Tooltip("spread:Q", format=".3f")],
    )  # fmt: skip
    prior = alt.Chart(alt.Data(values=[{"mean": 0, "spread": 1, "is": "the prior"}])).mark_point(
        shape="cross", size=200, color=GREY, filled=True
    ).encode(x="mean:Q", y="spread:Q", tooltip=["is:N"])  # fmt: skip
    return finished(prior + points, height=260)


def codes(arms: Sequence[str], arm: str, ring: Records) -> Spec:
    """The codes of test data in the plane of two latents, with the ring that holds 95 % of the prior.

    The codes are in the page's data set named `test`, in the columns `z0x`, `z0y`, `z1x`, ...

    Args:
        arms: in the order of the table.
        arm: which.
        ring: `z1`, `z2` and `order` along it.
    """
    alt = altair()
    x, y = (f"z{arms.index(arm)}{axis}" for axis in "xy")
    around = alt.Chart(alt.Data(values=ring)).mark_line(
        strokeDash=[4, 4], color=GREY
    ).encode(x="z1:Q", y="z2:Q", order="order:Q")  # fmt: skip
    points = alt.Chart(alt.NamedData(name="test")).transform_filter(f"isValid(datum.{x})").mark_point(
        filled=True, size=30, opacity=0.6
    ).transform_calculate(arm=f"'{arm}'").encode(
        x=alt.X(f"{x}:Q", title="latent 1"),
        y=alt.Y(f"{y}:Q", title="latent 2"),
        color=by_name(alt, arms, legend=False),
        tooltip=[
            alt.Tooltip("number:Q", title="test datum"),
            alt.Tooltip(f"{x}:Q", title="latent 1", format=".2f"),
            alt.Tooltip(f"{y}:Q", title="latent 2", format=".2f"),
            alt.Tooltip("image:N"),
        ],
    )  # fmt: skip
    return finished(around + points, 440, square=True)


def by_name(alt: Any, names: Sequence[str], field: str = "arm", legend: bool = True) -> Any:
    """The colour of an arm: the page's colours in the order of `names`."""
    return alt.Color(
        f"{field}:N", title=None, scale=alt.Scale(domain=list(names)), **({} if legend else {"legend": None})
    )


def finished(chart: Any, height: int = HEIGHT, colours: Sequence[int] = (), square: bool = False) -> Spec:
    """Return the specification; `colours` are the page's colours to use, -1 the neutral one."""
    meta = {"colours": list(colours) or None, "square": square}
    return dict(chart.properties(width="container", height=height, usermeta=meta).to_dict())
