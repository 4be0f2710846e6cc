"""Charts: positions of points and bars, gaps, scales and tooltips, parsed from the SVG."""

import math
import re
from xml.etree import ElementTree

import numpy as np
import pytest

from functa.report import charts
from functa.report.charts import Series

SVG = "{http://www.w3.org/2000/svg}"
NAME = '<b> & "x" $y$'


def elements(svg, tag):
    return list(ElementTree.fromstring(svg).iter(SVG + tag))


def markers(svg):
    """{tooltip: (x, y)} of the points of all curves."""
    return {
        use[0].text: (float(use.get("x")), float(use.get("y")))
        for use in elements(svg, "use")
        if use[0].text
    }


def curve_paths(svg, color="series-0"):
    return [
        path.get("d")
        for path in elements(svg, "path")
        if f"stroke: var(--{color}," in path.get("style", "") and "fill: none" in path.get("style")
    ]


def test_points_have_positions_and_tooltips():
    series = [Series("train", [0, 5, 10], [0.0, 2.0, 1.0]), Series("test", [10], [2.0])]
    svg = charts.line_chart(series, title="loss", x_label="step")
    points = markers(svg)
    assert list(points) == ["train at 0: 0", "train at 5: 2", "train at 10: 1", "test at 10: 2"]
    (x0, y0), (x1, y1), (x2, y2), test_point = points.values()
    assert x1 - x0 == pytest.approx(x2 - x1)
    assert x0 < x1
    assert y1 - y0 == pytest.approx(2 * (y2 - y0))
    assert y1 < y0  # SVG's y points downwards
    assert test_point == pytest.approx((x2, y1))
    texts = [element.text for element in elements(svg, "text")]
    assert {"loss", "step", "train", "test"} <= set(texts)
    assert ElementTree.fromstring(svg).get("aria-label") == "loss"


def test_a_value_that_is_not_finite_leaves_a_gap():
    y = [1.0, 2.0, math.nan, 3.0, 3.5, math.inf, 4.0]
    svg = charts.line_chart([Series("", range(7), y)], title="", x_label="step")
    assert list(markers(svg)) == ["at 0: 1", "at 1: 2", "at 3: 3", "at 4: 3.5", "at 6: 4"]
    curve = max(curve_paths(svg), key=len)
    assert re.findall("[ML]", curve)[:4] == ["M", "L", "M", "L"]
    charts.line_chart([Series("", [1], [math.nan])], title="", x_label="step")


def test_positive_values_over_more_than_two_decades_have_a_logarithmic_axis():
    def middle(y):
        svg = charts.line_chart([Series("", [0, 1, 2], y)], title="", x_label="step")
        first, middle, last = (y for _, y in markers(svg).values())
        return (middle - first) / (last - first)

    assert middle([1e-4, 1e-2, 1.0]) == pytest.approx(0.5, abs=1e-3)
    assert middle([1e-2, 0.1, 1.0]) == pytest.approx(0.0909, abs=1e-3)
    assert middle([0.0, 1e-2, 1.0]) == pytest.approx(0.01, abs=1e-3)
    assert middle([-1.0, 1e-2, 1.0]) == pytest.approx(0.505, abs=1e-3)


def test_reference_is_a_dashed_line_inside_the_axes():
    svg = charts.line_chart(
        [Series("", [0, 1], [10.0, 20.0])], title="", x_label="", reference=("PCA: 30", 30.0)
    )
    dashed = [p for p in elements(svg, "path") if "stroke-dasharray" in p.get("style", "")]
    start, end = re.findall(r"([\d.]+) ([\d.]+)", dashed[0].get("d"))
    (_, y10), (_, y20) = markers(svg).values()
    assert start[1] == end[1]
    assert float(start[1]) == pytest.approx(2 * y20 - y10, abs=1e-3)
    assert "PCA: 30" in [text.text for text in elements(svg, "text")]


def test_a_long_legend_does_not_cover_the_curves():
    series = [Series(f"series number {k}", [0, 1], [k, k + 1]) for k in range(50)]
    svg = charts.line_chart(series, title="", x_label="")
    legend = [float(t.get("y")) for t in elements(svg, "text") if t.text.startswith("series")]
    assert len(legend) == 50
    assert max(legend) < min(y for _, y in markers(svg).values())


def test_a_long_series_has_no_markers():
    y = np.sin(np.arange(1000) / 50)
    svg = charts.line_chart([Series("a", range(1000), y)], title="", x_label="")
    assert not markers(svg)
    assert len(svg) < 100_000


def test_histogram_counts_every_number_once():
    rng = np.random.default_rng(0)
    groups = {"ours": rng.normal(36, 2, 500), "PCA": rng.normal(34, 2, 300)}
    svg = charts.histogram(groups, title="PSNR", x_label="dB")
    edges = np.histogram_bin_edges(np.concatenate(list(groups.values())), 40)
    for label, values in groups.items():
        counts, heights, left = [], [], []
        for group in elements(svg, "g"):
            title, path = group.find(SVG + "title"), group.find(SVG + "path")
            if title is not None and title.text.startswith(f"{label}: "):
                count, low, high = re.findall(r"-?[\d,.]+", title.text)
                counts.append(int(count))
                points = re.findall(r"([\d.]+) ([\d.]+)", path.get("d"))
                x, y = np.array(points, float).T
                left.append(min(x))
                heights.append(max(y) - min(y))
                assert float(low) < float(high)
        np.testing.assert_array_equal(counts, np.histogram(values, edges)[0])
        np.testing.assert_allclose(
            np.array(heights) / max(heights), np.array(counts) / max(counts), atol=1e-3
        )
    dashed = [p.get("d") for p in elements(svg, "path") if "stroke-dasharray" in p.get("style", "")]
    for path, values in zip(dashed, groups.values(), strict=True):
        position = (float(re.search(r"[\d.]+", path)[0]) - left[0]) / (left[-1] - left[0])
        mean = (values.mean() - edges[0]) / (edges[-2] - edges[0])
        assert position == pytest.approx(mean, abs=1e-3)


def test_charts_fit_into_a_page():
    charts_of_page = [
        charts.line_chart([Series(NAME, [0], [1])], title=NAME, x_label=NAME),
        charts.histogram({NAME: np.ones(2)}, title=NAME, x_label=NAME),
    ]
    for svg in charts_of_page:
        assert svg.startswith("<svg ")
        root = ElementTree.fromstring(svg)
        assert root.get("aria-label") == NAME
        texts = [element.text for element in root.iter() if element.text]
        assert texts.count(NAME) >= 3  # title, legend, x axis
        assert any(text.startswith(NAME) and text != NAME for text in texts)  # tooltip
        assert not [one for one in elements(svg, "g") if one.get("id")]
        colors = re.findall(r"(?<!, )#[0-9a-f]{6}\b", re.sub(r"url\(#\w+\)|\"#\w+\"", "", svg))
        assert set(colors) <= {"#000000"}  # every other color is a CSS variable
    assert charts_of_page[0] == charts.line_chart(
        [Series(NAME, [0], [1])], title=NAME, x_label=NAME
    )
