"""Charts: axes, thinning, and the places of what is drawn, parsed from the SVG."""

import math
import re
from xml.etree import ElementTree

import numpy as np
import pytest

from functa.report import charts
from functa.report.charts import Series


def parse(svg):
    return ElementTree.fromstring(svg)  # SVG inside a page must be well-formed too


def by_class(svg, name):
    return [one for one in parse(svg).iter() if name in (one.get("class") or "").split()]


def points(path):
    """Pen and place of every vertex: [("M", x, y), ("L", x, y), ...]."""
    return [(pen, float(x), float(y)) for pen, x, y in re.findall(r"([ML])([\d.]+) ([\d.]+)", path)]


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (0, "0"),
        (1234567, "1,234,567"),
        (36.04321, "36.04"),
        (-0.5, "-0.5"),
        (0.30000000000000004, "0.3"),
        (0.0008, "0.0008"),
        (0.000012, "1.2e-5"),
        (1e-5, "1e-5"),
        (2.5e12, "2.5e12"),
        (100.0, "100"),
        (math.nan, "nan"),
        (-math.inf, "-inf"),
    ],
)
def test_number(value, text):
    assert charts.number(value) == text


@pytest.mark.parametrize(
    "values",
    [[0, 1], [14.2, 36.3], [-3, 17], [5, 5], [0, 0], [-2, -2], [1e-9, 3e-9], [1e12, 5e12]],
)
@pytest.mark.parametrize("snug", [False, True])
def test_axis_holds_all_values_between_round_ticks(values, snug):
    axis = charts.axis([*values, math.nan, math.inf], most_ticks=5, snug=snug)
    for value in values:
        assert -1e-9 <= axis.place(value) <= 1 + 1e-9
    assert 2 <= len(axis.ticks) <= 8
    steps = np.diff(axis.ticks)
    np.testing.assert_allclose(steps, steps[0])
    mantissa = steps[0] / 10 ** math.floor(math.log10(steps[0]) + 1e-9)
    assert min(abs(mantissa - round_number) for round_number in (1, 2, 5)) < 1e-6
    if values[0] != values[1] and snug:
        assert (axis.place(values[0]), axis.place(values[1])) == (0, 1)
    if not snug:
        assert axis.place(axis.ticks[0]) == pytest.approx(0, abs=1e-9)
        assert axis.place(axis.ticks[-1]) == pytest.approx(1)


def test_axis_of_powers_of_ten():
    axis = charts.axis([0.03, 0.0002], most_ticks=5, log=True)
    assert axis.ticks == (1e-4, 1e-3, 1e-2, 1e-1)
    assert axis.place(1e-4) == 0
    assert axis.place(1e-1) == 1
    assert axis.place(1e-2) == pytest.approx(2 / 3)
    assert len(charts.axis([1e-12, 1e8], most_ticks=5, log=True).ticks) <= 6


def test_axis_of_nothing_is_from_0_to_1():
    axis = charts.axis([math.nan], most_ticks=5)
    assert (axis.place(0), axis.place(1)) == (0, 1)


def test_thin_keeps_ends_spikes_and_gaps():
    x = np.arange(10_000.0)
    y = np.sin(x / 1000)
    y[1234], y[8765], y[5000:5100] = 9, -9, np.nan
    thin_x, thin_y = charts.thin(x, y, 300)
    assert 290 <= len(thin_x) <= 310
    assert {0, 1234, 8765, 9999} <= set(thin_x)
    assert np.isnan(thin_y).any()
    assert np.all(np.diff(thin_x) > 0)
    np.testing.assert_array_equal(thin_y, y[thin_x.astype(int)])
    np.testing.assert_array_equal(charts.thin(x[:300], y[:300], 300)[0], x[:300])


def test_line_chart_puts_points_where_they_belong():
    svg = charts.line_chart(
        [Series("train", [0, 5, 10], [0.0, 2.0, 1.0])], x_label="step", description="loss"
    )
    (curve,) = by_class(svg, "curve")
    left, right = charts.LEFT, charts.WIDTH - charts.RIGHT
    top, bottom = charts.TOP, charts.HEIGHT - charts.BOTTOM
    assert points(curve.get("d")) == [
        ("M", left, bottom),
        ("L", (left + right) / 2, top),
        ("L", right, (top + bottom) / 2),
    ]
    titles = [dot.find("title").text for dot in by_class(svg, "dot")]
    assert titles == ["train 0 at 0", "train 2 at 5", "train 1 at 10"]
    assert parse(svg).get("aria-label") == "loss"
    assert "step" in [text.text for text in by_class(svg, "name")]


def test_a_value_that_is_not_finite_leaves_a_gap():
    y = [1.0, 2.0, math.nan, 3.0, math.inf, 4.0]
    svg = charts.line_chart([Series("", range(6), y)], x_label="step", description="")
    (curve,) = by_class(svg, "curve")
    assert [pen for pen, _, _ in points(curve.get("d"))] == ["M", "L", "M", "M"]
    assert len(by_class(svg, "dot")) == 4
    charts.line_chart([Series("", [1], [math.nan])], x_label="step", description="")


def test_values_over_decades_are_on_a_logarithmic_axis():
    def middle(y):
        svg = charts.line_chart([Series("", [0, 1, 2], y)], x_label="step", description="")
        (curve,) = by_class(svg, "curve")
        return points(curve.get("d"))[1][2]

    centre = charts.TOP + (charts.HEIGHT - charts.BOTTOM - charts.TOP) / 2
    assert middle([1e-4, 1e-2, 1.0]) == pytest.approx(centre, abs=0.1)
    assert middle([0.0, 1e-2, 1.0]) > centre + 50  # no logarithm of zero
    assert middle([0.1, 0.55, 1.0]) == pytest.approx(centre, abs=12)


def test_reference_line_widens_the_axis():
    svg = charts.line_chart(
        [Series("", [0, 1], [10.0, 20.0])], x_label="", description="", reference=30.0
    )
    (line,) = by_class(svg, "reference")
    assert line.get("d") == f"M{charts.LEFT} {charts.TOP:.1f}H{charts.WIDTH - charts.RIGHT}"
    assert "30" in [text.text for text in by_class(svg, "tick")]


def test_colours_begin_again():
    series = [Series(str(k), [0, 1], [k, k]) for k in range(charts.COLOURS + 1)]
    curves = by_class(charts.line_chart(series, x_label="", description=""), "curve")
    assert curves[0].get("class") == curves[-1].get("class") == "curve series-0"


def test_histogram_counts_every_number_once():
    rng = np.random.default_rng(0)
    groups = [("ours", rng.normal(36, 2, 500)), ("PCA", rng.normal(34, 2, 300))]
    groups[0][1][:3] = np.nan, np.inf, -np.inf
    svg = charts.histogram(groups, x_label="dB", description="PSNR")
    for index, (label, values) in enumerate(groups):
        bars = [bar for bar in by_class(svg, "bar") if f"series-{index}" in bar.get("class")]
        counts = []
        for bar in bars:
            told = re.fullmatch(rf"{label}: ([\d,]+) from (\S+) to (\S+)", bar.find("title").text)
            counts.append(int(told[1]) if told else 0)
        assert sum(counts) == np.isfinite(values).sum()
        heights = np.array([float(bar.get("height")) for bar in bars])
        np.testing.assert_allclose(heights / counts, heights[0] / counts[0], atol=0.1)
    assert len(by_class(svg, "mean")) == 2
    first, second = (float(mean.get("d")[1:].split()[0]) for mean in by_class(svg, "mean"))
    assert first > second


@pytest.mark.parametrize("values", [[], [np.nan], [3.0], [3.0, 3.0]])
def test_histogram_of_little(values):
    svg = charts.histogram([("a", np.array(values))], x_label="", description="")
    assert len(by_class(svg, "bar")) == (3.0 in values)
    assert "-" not in "".join(text.text for text in by_class(svg, "tick") if text.text)


def test_labels_are_escaped():
    name = '<b> & "x"'
    svg = charts.line_chart([Series(name, [0], [1])], x_label=name, description=name)
    assert by_class(svg, "dot")[0].find("title").text.startswith(name)
    assert parse(svg).get("aria-label") == name
    parse(charts.histogram([(name, np.ones(2))], x_label=name, description=name))
