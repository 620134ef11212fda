"""Charts of data that are no images, tables and sequences: their values in a row, two by two, and as a latent moves."""

from __future__ import annotations

from collections.abc import Sequence

from vae2aef.comparison.charts import Records, Spec, altair, by_name, finished


def profiles(rows: Records, names: Sequence[str], title: str, colour: int = 0) -> Spec:
    """One datum that is no image, its values in a row, with what each arm makes of it.

    Args:
        rows: `what`, `place` and `value`.
        names: the values of `what`: the data, then the arms.
        title: above it.
        colour: the place of the first arm in the table.
    """
    alt = altair()
    chart = alt.Chart(alt.Data(values=rows), title=title).mark_line(
        point=alt.OverlayMarkDef(filled=True, size=25), strokeWidth=1.5
    ).encode(
        x=alt.X("place:Q", title="place in the datum", axis=alt.Axis(format="d", tickMinStep=1)),
        y=alt.Y("value:Q", title=None, scale=alt.Scale(zero=False)),
        color=by_name(alt, names, "what"),
        tooltip=["what:N", "place:Q", alt.Tooltip("value:Q", format=".4g")],
    )  # fmt: skip
    return finished(chart, 170, [-1, *range(colour, colour + len(names) - 1)])


def pairs(rows: Records, names: Sequence[str], titles: tuple[str, str]) -> Spec:
    """Two values of test data against the same two of draws.

    Args:
        rows: `what`, `a` and `b`.
        names: the values of `what`: the data, then the arms.
        titles: of the two values.
    """
    alt = altair()
    chosen = alt.selection_point(fields=["what"], bind="legend")
    chart = alt.Chart(alt.Data(values=rows)).mark_point(filled=True, size=26).encode(
        x=alt.X("a:Q", title=titles[0], scale=alt.Scale(zero=False)),
        y=alt.Y("b:Q", title=titles[1], scale=alt.Scale(zero=False)),
        color=by_name(alt, names, "what"),
        opacity=alt.condition(chosen, alt.value(0.6), alt.value(0.08)),
        tooltip=["what:N", alt.Tooltip("a:Q", format=".4g"), alt.Tooltip("b:Q", format=".4g")],
    ).add_params(chosen)  # fmt: skip
    return finished(chart, 340, range(-1, len(names) - 1))


def moved(rows: Records, title: str) -> Spec:
    """The decoder's mean as one latent moves, a line each position.

    Args:
        rows: `at`, the latent in standard deviations of its prior, `place` and `value`.
        title: above it.
    """
    alt = altair()
    chart = alt.Chart(alt.Data(values=rows), title=title).mark_line(strokeWidth=1.5).encode(
        x=alt.X("place:Q", title="place in the datum", axis=alt.Axis(format="d", tickMinStep=1)),
        y=alt.Y("value:Q", title=None, scale=alt.Scale(zero=False)),
        color=alt.Color("at:Q", title="latent", scale=alt.Scale(scheme="blueorange", domainMid=0)),
        detail="at:Q",
        tooltip=[alt.Tooltip("at:Q", format=".2f"), "place:Q", alt.Tooltip("value:Q", format=".4g")],
    )  # fmt: skip
    return finished(chart, 170)
