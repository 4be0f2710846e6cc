"""Charts as inline SVG, drawn by plain arithmetic; their colours are classes that a page styles.

The classes: `series-0`, `series-1`, ... colour what belongs to one curve or group, `grid`, `axis`
and `reference` the rest. Nothing here needs a script or another file.
"""

import html
import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

WIDTH, HEIGHT = 420, 240  # units of the drawing; a page scales it
LEFT, RIGHT, TOP, BOTTOM = 54, 12, 10, 38  # margins around the plotted area
COLOURS = 6  # then they begin again
MOST_POINTS = 300  # of a curve; more are thinned, lows and highs kept
MOST_TOOLTIPS = 80  # curves of more points are drawn without points that tell their value
DECADES_FOR_LOG = 2.0  # positive values that span more are drawn on a logarithmic axis


class Series(NamedTuple):
    """A curve: label, x [n] and y [n]; points that are not finite leave a gap."""

    label: str
    x: Sequence[float]
    y: Sequence[float]


class Axis(NamedTuple):
    """low and high end, in data units or powers of ten (log), and the positions of the ticks."""

    low: float
    high: float
    ticks: tuple[float, ...]
    log: bool

    def place(self, value: float) -> float:
        """Position of a value from 0 (low end) to 1 (high end)."""
        value = math.log10(value) if self.log else value
        return (value - self.low) / (self.high - self.low)


def number(value: float) -> str:
    """A number for a label: about four digits, thousands apart, no trailing zeros.

    1234567 -> "1,234,567"; 0.000012 -> "1.2e-5"; 36.04321 -> "36.04"; nan -> "nan".
    """
    if not math.isfinite(value):
        return str(value)
    if value == 0 or 1e-4 <= abs(value) < 1e9:
        digits = max(0, 3 - math.floor(math.log10(abs(value)))) if value else 0
        text = f"{value:,.{digits}f}"
        return text.rstrip("0").rstrip(".") if "." in text else text
    mantissa, exponent = f"{value:.3e}".split("e")
    return f"{mantissa.rstrip('0').rstrip('.')}e{int(exponent)}"


def axis(
    values: Sequence[float], *, most_ticks: int, log: bool = False, snug: bool = False
) -> Axis:
    """An axis with round ticks (1, 2 or 5 times a power of ten) that holds all finite values.

    Args:
      most_ticks: at most so many, about.
      log: powers of ten; all values must be positive.
      snug: the axis ends at the outermost values, not at the ticks around them.
    """
    finite = [float(value) for value in values if math.isfinite(value)]
    low, high = (min(finite), max(finite)) if finite else (0.0, 1.0)
    if log:
        first, last = math.floor(math.log10(low)), math.ceil(math.log10(high))
        last = max(last, first + 1)
        stride = math.ceil((last - first + 1) / most_ticks)
        powers = range(first, last + 1, stride)
        return Axis(first, last, tuple(10.0**power for power in powers), True)
    if high == low:
        low, high = low - (abs(low) or 1) / 10, high + (abs(high) or 1) / 10
    raw = (high - low) / most_ticks
    power = 10.0 ** math.floor(math.log10(raw))
    step = next(power * factor for factor in (1, 2, 5, 10) if power * factor >= raw * 0.999)
    if snug:
        first, last = math.ceil(low / step - 1e-9), math.floor(high / step + 1e-9)
        return Axis(low, high, tuple(k * step for k in range(first, last + 1)), False)
    first, last = math.floor(low / step + 1e-9), math.ceil(high / step - 1e-9)
    return Axis(first * step, last * step, tuple(k * step for k in range(first, last + 1)), False)


def thin(x: np.ndarray, y: np.ndarray, most: int) -> tuple[np.ndarray, np.ndarray]:
    """Of n > most points, the lowest and highest of each of most / 2 stretches, in order."""
    if len(x) <= most:
        return x, y
    keep = {0, len(x) - 1}
    for stretch in np.array_split(np.arange(len(x)), most // 2):
        comparable = stretch[np.isfinite(y[stretch])]
        if len(comparable):
            keep |= {comparable[np.argmin(y[comparable])], comparable[np.argmax(y[comparable])]}
        keep |= set(stretch[~np.isfinite(y[stretch])][:1])  # a gap stays a gap
    index = np.array(sorted(keep))
    return x[index], y[index]


def line_chart(
    series: Sequence[Series],
    *,
    x_label: str,
    description: str,
    reference: float | None = None,
) -> str:
    """Curves over a common x axis; y is logarithmic where positive values span many decades.

    Args:
      description: read aloud in place of the picture.
      reference: value of a dashed horizontal line.
    """
    values = [float(y) for one in series for y in one.y]
    values += [] if reference is None else [reference]
    finite = [value for value in values if math.isfinite(value)]
    log = bool(finite) and min(finite) > 0
    log = log and math.log10(max(finite) / min(finite)) > DECADES_FOR_LOG
    x_axis = axis([x for one in series for x in one.x], most_ticks=5, snug=True)
    y_axis = axis(values, most_ticks=5, log=log)
    parts = _frame(x_axis, y_axis, x_label)
    if reference is not None:
        y = _y(y_axis, reference)
        parts.append(f'<path class="reference" d="M{LEFT} {y:.1f}H{WIDTH - RIGHT}"/>')
    for index, one in enumerate(series):
        xs, ys = thin(np.asarray(one.x, float), np.asarray(one.y, float), MOST_POINTS)
        places = [
            (_x(x_axis, a), _y(y_axis, b), a, b) if math.isfinite(b) else None
            for a, b in zip(xs.tolist(), ys.tolist(), strict=True)
        ]
        pen, path = "M", ""
        for place in places:
            path += f"{pen}{place[0]:.1f} {place[1]:.1f}" if place else ""
            pen = "L" if place else "M"
        parts.append(f'<path class="curve series-{index % COLOURS}" d="{path}"/>')
        if len(places) <= MOST_TOOLTIPS:
            label = html.escape(one.label)
            parts += [
                f'<circle class="dot series-{index % COLOURS}" cx="{place[0]:.1f}" cy="{place[1]:.1f}" '
                f'r="{4 if len(places) == 1 else 2.2}">'
                f"<title>{label} {number(place[3])} at {number(place[2])}</title></circle>"
                for place in places
                if place
            ]
    return _svg(parts, description)


def histogram(
    groups: Sequence[tuple[str, np.ndarray]], *, x_label: str, description: str, bins: int = 40
) -> str:
    """Counts of one or several groups of numbers in the same bins, one group over the other.

    A dashed line marks the mean of each. Numbers that are not finite are left out.
    """
    finite = [(label, values[np.isfinite(values)]) for label, values in groups]
    together = np.concatenate([values for _, values in finite])
    edges = np.histogram_bin_edges(together, bins=bins)
    counts = [np.histogram(values, bins=edges)[0] for _, values in finite]
    x_axis = axis(edges.tolist(), most_ticks=7, snug=True)
    y_axis = axis([0, max(1, *(int(count.max()) for count in counts))], most_ticks=4)
    parts = _frame(x_axis, y_axis, x_label)
    bottom = HEIGHT - BOTTOM
    for index, ((label, values), count) in enumerate(zip(finite, counts, strict=True)):
        for left, right, high in zip(edges[:-1], edges[1:], count, strict=True):
            if high:
                x, top = _x(x_axis, left), _y(y_axis, high)
                width = max(_x(x_axis, right) - x - 0.6, 0.6)
                parts.append(
                    f'<rect class="bar series-{index % COLOURS}" x="{x:.1f}" y="{top:.1f}" '
                    f'width="{width:.1f}" height="{bottom - top:.1f}"><title>{html.escape(label)}: '
                    f"{high:,} from {number(left)} to {number(right)}</title></rect>"
                )
        if len(values):
            x = _x(x_axis, float(values.mean()))
            parts.append(
                f'<path class="mean series-{index % COLOURS}" d="M{x:.1f} {TOP}V{bottom}"/>'
            )
    return _svg(parts, description)


def _x(x_axis: Axis, value: float) -> float:
    return LEFT + x_axis.place(value) * (WIDTH - LEFT - RIGHT)


def _y(y_axis: Axis, value: float) -> float:
    return TOP + (1 - y_axis.place(value)) * (HEIGHT - TOP - BOTTOM)


def _frame(x_axis: Axis, y_axis: Axis, x_label: str) -> list[str]:
    """Grid lines, tick labels and the name of the x axis."""
    parts = []
    for tick in y_axis.ticks:
        y = _y(y_axis, tick)
        parts.append(f'<path class="grid" d="M{LEFT} {y:.1f}H{WIDTH - RIGHT}"/>')
        parts.append(
            f'<text class="tick" x="{LEFT - 7}" y="{y + 4:.1f}" text-anchor="end">'
            f"{number(tick)}</text>"
        )
    bottom = HEIGHT - BOTTOM
    parts.append(f'<path class="axis" d="M{LEFT} {bottom}H{WIDTH - RIGHT}"/>')
    for tick in x_axis.ticks:
        x = _x(x_axis, tick)
        parts.append(f'<path class="axis" d="M{x:.1f} {bottom}v4"/>')
        parts.append(
            f'<text class="tick" x="{x:.1f}" y="{bottom + 17}" text-anchor="middle">'
            f"{number(tick)}</text>"
        )
    middle = (LEFT + WIDTH - RIGHT) / 2
    parts.append(
        f'<text class="name" x="{middle}" y="{HEIGHT - 4}" text-anchor="middle">'
        f"{html.escape(x_label)}</text>"
    )
    return parts


def _svg(parts: Sequence[str], description: str) -> str:
    return (
        f'<svg viewBox="0 0 {WIDTH} {HEIGHT}" role="img" aria-label="{html.escape(description)}">'
        + "".join(parts)
        + "</svg>"
    )
