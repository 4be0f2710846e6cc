"""The rate-distortion curve as one SVG file that stands alone."""

from typing import Any

from functa.evaluation.analysis.table import Table
from functa.report import charts, html

_LINE = 16  # height of a line of the legend, in units of the drawing
_COLUMNS = 2  # of the legend


def curves(table: Table) -> list[charts.Series]:
    """A curve for each method of `storage.rate_distortion`, and for its entropy estimate.

    Left out is what another row of the curve is better than at no more bytes.
    """
    methods = dict.fromkeys(row["method"] for row in table.rows)
    found = []
    for method in methods:
        rows = [row for row in table.rows if row["method"] == method]
        estimated = [row for row in rows if row["entropy_bytes"] is not None]
        found.append(_curve(method, rows, "bytes"))
        if estimated:
            found.append(_curve(f"{method}, entropy estimate", estimated, "entropy_bytes"))
    return found


def _curve(label: str, rows: list[dict[str, Any]], key: str) -> charts.Series:
    best: list[tuple[float, float]] = []
    for size, psnr in sorted((row[key], -row["psnr"]) for row in rows):
        if not best or -psnr > best[-1][1]:
            best.append((size, -psnr))
    return charts.Series(label, [size for size, _ in best], [psnr for _, psnr in best])


def draw(table: Table) -> str:
    """An SVG document of `curves`, its colours and legend inside."""
    series = curves(table)
    inner = charts.line_chart(
        series, x_label="bytes an image; upwards: PSNR in dB", description=table.title
    )
    lines = -(-len(series) // _COLUMNS)
    height = charts.HEIGHT + (lines + 1) * _LINE
    legend = ""
    for index, one in enumerate(series):
        x = charts.LEFT + index % _COLUMNS * (charts.WIDTH - charts.LEFT) // _COLUMNS
        y = charts.HEIGHT + (index // _COLUMNS + 1) * _LINE
        legend += (
            f'<path class="curve series-{index % charts.COLOURS}" d="M{x} {y - 4}h18"/>'
            f'<text x="{x + 24}" y="{y}">{html.escape(one.label)}</text>'
        )
    inner = inner.replace("<svg ", f'<svg width="{charts.WIDTH}" height="{charts.HEIGHT}" ', 1)
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {charts.WIDTH} {height}">'
        f"<style>{html.STYLE} svg {{ font-family: system-ui, sans-serif; }}</style>"
        f'<rect width="100%" height="100%" fill="var(--card)"/>{inner}{legend}</svg>\n'
    )
