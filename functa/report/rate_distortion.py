"""The rate-distortion chart of `functa.evaluation.analysis.storage.rate_distortion`, as an SVG file."""

from typing import Any

from functa.evaluation.analysis.table import Table
from functa.report import charts


def rate_distortion_chart(table: Table) -> str:
    """An <svg> element with the Pareto front of each method and of its entropy estimate."""
    return charts.line_chart(
        curves(table), title=f"{table.title}: PSNR, dB", x_label="bytes per image"
    )


def curves(table: Table) -> list[charts.Series]:
    """Pareto fronts, PSNR over bytes, of each method; methods with an entropy estimate have two."""
    methods = dict.fromkeys(row["method"] for row in table.rows)
    series = []
    for method in methods:
        rows = [row for row in table.rows if row["method"] == method]
        estimates = [row for row in rows if row["entropy_bytes"] is not None]
        series.append(_pareto_front(method, rows, "bytes"))
        if estimates:
            label = f"{method}, entropy estimate"
            series.append(_pareto_front(label, estimates, "entropy_bytes"))
    return series


def _pareto_front(label: str, rows: list[dict[str, Any]], key: str) -> charts.Series:
    """The rows whose PSNR no row of the same or a smaller size reaches."""
    points: list[tuple[float, float]] = []
    for size, negative_psnr in sorted((row[key], -row["psnr"]) for row in rows):
        if not points or -negative_psnr > points[-1][1]:
            points.append((size, -negative_psnr))
    return charts.Series(label, [size for size, _ in points], [psnr for _, psnr in points])
