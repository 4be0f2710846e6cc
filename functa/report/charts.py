"""Line charts and histograms as SVG text, drawn by Matplotlib in the style of chart.mplstyle.

The colors of a chart are CSS variables with a fallback: in a page they follow its theme, in a file
they are those of a light theme. Matplotlib is imported by the first chart, which takes about a second.
"""

import importlib.resources
import io
import math
import re
from collections.abc import Callable, Sequence
from html import escape
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from functa.report.metric_registry import format_number

if TYPE_CHECKING:
    from matplotlib.axes import Axes

_INK = "#1f2430"
_CSS_VARIABLES = {
    "#3257d6": "series-0",
    "#d9702b": "series-1",
    "#1f9a74": "series-2",
    "#9b4fc4": "series-3",
    "#b98a12": "series-4",
    "#6b7280": "series-5",
    "#ffffff": "card",
    _INK: "ink",
    "#626a78": "soft",
    "#ecebe6": "grid",
}
_LEGEND_WIDTH = 72  # characters
_BINS = 40
_MAX_MARKERS = 80  # a longer series has no markers and no tooltips
_LOG_SCALE_RATIO = 100.0  # positive values over a larger range have a logarithmic axis


class Series(NamedTuple):
    """A curve: x [n], y [n]; a y that is not finite leaves a gap."""

    label: str
    x: Sequence[float]
    y: Sequence[float]


def line_chart(
    series: Sequence[Series],
    *,
    title: str,
    x_label: str,
    reference: tuple[str, float] | None = None,
) -> str:
    """An <svg> element with curves over a common x axis.

    The y axis is logarithmic if all values are positive and the largest is more than 100 times the
    smallest. Each point of a series of at most 80 points has a tooltip.

    Args:
      reference: label and value of a dashed horizontal line.
    """
    tooltips: list[str] = []

    def plot(axes: "Axes") -> None:
        for label, x, y in series:
            (line,) = axes.plot(x, np.where(np.isfinite(y), y, np.nan), label=label, clip_on=False)
            if len(x) > _MAX_MARKERS:
                continue
            line.set(marker="o", markersize=5 if len(x) == 1 else 2.5)
            tooltips.extend(
                f"{label} at {format_number(a)}: {format_number(b)}".strip()
                for a, b in zip(x, y, strict=True)
                if math.isfinite(b)
            )
        if reference is not None:
            axes.axhline(reference[1], color="#626a78", linestyle="--", label=reference[0])
        values = np.concatenate([np.asarray(line.get_ydata(), float) for line in axes.lines])
        low, high = np.nanmin(values, initial=np.inf), np.nanmax(values, initial=0)
        if 0 < low < high / _LOG_SCALE_RATIO:
            axes.set_yscale("log")

    svg = _draw(plot, title=title, x_label=x_label)
    texts = iter(tooltips)
    # Matplotlib draws the markers in the order of the points, and those of the legend last.
    return re.sub(
        r"(<use [^>]*)/>",
        lambda match: f"{match[1]}><title>{escape(next(texts, ''))}</title></use>",
        svg,
    )


def histogram(groups: dict[str, np.ndarray], *, title: str, x_label: str) -> str:
    """An <svg> element with the counts of numbers in common bins.

    A dashed line marks the mean of each group. Each bar has a tooltip.

    Args:
      groups: {label: numbers [n]}.
    """
    edges = np.histogram_bin_edges(np.concatenate(list(groups.values())), _BINS)
    widths = 0.92 * np.diff(edges)

    def plot(axes: "Axes") -> None:
        for index, (label, values) in enumerate(groups.items()):
            color = f"C{index}"
            counts, _ = np.histogram(values, edges)
            style: dict[str, Any] = {"align": "edge", "color": color, "alpha": 0.62, "label": label}
            bars = axes.bar(edges[:-1], counts, widths, **style)
            texts = [format_number(edge) for edge in edges]
            for bar, count, low, high in zip(bars, counts, texts, texts[1:], strict=False):
                bar.set_gid(f"tooltip: {label}: {count:,} from {low} to {high}")
            axes.axvline(values.mean(), color=color, linestyle="--")
        axes.locator_params(axis="y", integer=True)

    return _draw(plot, title=title, x_label=x_label)


def _draw(plot: Callable[["Axes"], None], *, title: str, x_label: str) -> str:
    """Draws the axes, `plot`, the title and the legend; returns an <svg> element."""
    import matplotlib
    from matplotlib.figure import Figure

    buffer = io.StringIO()
    style = importlib.resources.files("functa.report") / "chart.mplstyle"
    with importlib.resources.as_file(style) as path, matplotlib.rc_context(fname=path):
        figure = Figure()
        axes = figure.add_subplot()
        axes.locator_params(nbins=6)
        plot(axes)
        axes.set_xlabel(x_label)
        for axis in (axes.xaxis, axes.yaxis):
            axis.set_major_formatter(lambda value, _: format_number(value))
        handles, labels = axes.get_legend_handles_labels()
        columns = max(1, _LEGEND_WIDTH // (max(map(len, labels), default=0) + 6))
        legend_height = 0.2 * math.ceil(len(labels) / columns)  # inches
        height = figure.get_figheight() + legend_height
        figure.set_figheight(height)
        figure.subplots_adjust(bottom=0.43 / height, top=1 - (0.32 + legend_height) / height)
        legend = figure.legend(
            handles, labels, loc="upper left", ncols=columns, alignment="left", title=title,
            title_fontproperties={"weight": "bold", "size": 9.5},
        )  # fmt: skip
        legend.get_title().set_color(_INK)
        no_metadata = dict.fromkeys(("Creator", "Date", "Format", "Type"))
        figure.savefig(buffer, format="svg", metadata=no_metadata)
    svg = buffer.getvalue()
    svg = svg[svg.index("<svg") :]
    svg = svg.replace("<svg ", f'<svg role="img" aria-label="{escape(title)}" ', 1)
    svg = re.sub(r"""<g id=("|')tooltip: (.*?)\1>""", r"<g><title>\2</title>", svg)
    svg = re.sub(r'<g id="[^"]*">', "<g>", svg)  # an id must not occur twice in a page
    for color, name in _CSS_VARIABLES.items():
        svg = svg.replace(color, f"var(--{name}, {color})")
    return svg
