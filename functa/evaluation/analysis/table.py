"""Tables that explain their columns, as text and as JSON."""

import math
import textwrap
from collections.abc import Sequence
from typing import Any, NamedTuple

_NOTE_WIDTH = 98
_DECIMALS = 2
_DECIMALS_OF_BYTES = 1


class Column(NamedTuple):
    """Key of a column, unit ("" for none; values in "%" are stored as fractions), and meaning."""

    key: str
    unit: str
    meaning: str


PSNR_COLUMNS = (
    Column("psnr", "dB", "mean over images of the PSNR"),
    Column("psnr_of_mean_mse", "dB", "PSNR of the mean error, the other convention"),
)


class Table(NamedTuple):
    """A table of measurements.

    Attributes:
      title, note: what was measured, and how.
      images: number of images.
      rows: {key of a column: string, number, or None where there is no value}.
    """

    title: str
    note: str
    images: int
    columns: tuple[Column, ...]
    rows: list[dict[str, Any]]

    def to_json(self) -> dict[str, Any]:
        """The table as JSON values. Numbers that are not finite become None."""
        columns = {c.key: {"unit": c.unit, "meaning": c.meaning} for c in self.columns}
        rows = [{key: _json_value(row[key]) for key in columns} for row in self.rows]
        return {
            "title": self.title,
            "note": self.note,
            "images": self.images,
            "columns": columns,
            "rows": rows,
        }

    def to_text(self) -> str:
        """The table as text: title, note, explanation of the columns, aligned rows."""
        cells = [[_format(row[c.key], c.unit) for c in self.columns] for row in self.rows]
        width = max(len(c.key) for c in self.columns)
        explanations = [
            f"    {c.key:<{width}}  {c.meaning}{f' ({c.unit})' if c.unit else ''}"
            for c in self.columns
        ]
        note = textwrap.indent(textwrap.fill(self.note, _NOTE_WIDTH - 2), "  ")
        title = f"{self.title}; {self.images:,} images"
        rows = _align([[c.key for c in self.columns], *cells])
        return "\n".join([title, note, *explanations, "", *rows])


def _json_value(value: Any) -> Any:
    if isinstance(value, str) or value is None:
        return value
    number = value.item() if hasattr(value, "item") else value
    return number if math.isfinite(number) else None


def _format(value: Any, unit: str) -> str:
    if isinstance(value, str) or value is None:
        return value or "-"
    if isinstance(value, int):
        return f"{value:,}"
    decimals = _DECIMALS_OF_BYTES if unit == "bytes" else _DECIMALS
    return f"{100 * value if unit == '%' else value:z,.{decimals}f}"


def _align(rows: Sequence[Sequence[str]]) -> list[str]:
    """Aligns the first column left and all others right, with a rule below the first row."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = []
    for first, *others in rows:
        cells = [f"{cell:>{width}}" for cell, width in zip(others, widths[1:], strict=True)]
        lines.append("  ".join([f"{first:<{widths[0]}}", *cells]))
    return [lines[0], "-" * len(lines[0]), *lines[1:]]
