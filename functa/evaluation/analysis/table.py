"""Tables whose columns say what they are, for people and for programs."""

import math
import textwrap
from collections.abc import Sequence
from typing import Any, NamedTuple

_WIDTH = 98  # of the lines of a note
_PLACES = {"dB": 2, "%": 2, "bytes": 1}  # decimals of a unit; any other number is shown as it is


class Column(NamedTuple):
    """A key of every row, its unit ("" for none; "%" is stored as a fraction) and its meaning."""

    key: str
    unit: str
    meaning: str


class Table(NamedTuple):
    """title; note: how it was measured; images: their number; columns; rows {key: value}.

    A value is a string, a number, or None where there is none.
    """

    title: str
    note: str
    images: int
    columns: tuple[Column, ...]
    rows: list[dict[str, Any]]

    def to_json(self) -> dict[str, Any]:
        """JSON values; numbers that are not finite become None."""
        return {
            "title": self.title,
            "note": self.note,
            "images": self.images,
            "columns": {
                column.key: {"unit": column.unit, "meaning": column.meaning}
                for column in self.columns
            },
            "rows": [
                {column.key: _json_value(row[column.key]) for column in self.columns}
                for row in self.rows
            ],
        }

    def lines(self) -> list[str]:
        """The table as text: title, note, columns explained, then the aligned rows."""
        heads = [column.key for column in self.columns]
        body = [[_shown(row[c.key], c.unit) for c in self.columns] for row in self.rows]
        width = max(map(len, heads))
        explained = [
            f"    {c.key:<{width}}  {c.meaning}{f' ({c.unit})' if c.unit else ''}"
            for c in self.columns
        ]
        return [
            f"{self.title}; {self.images:,} images",
            *textwrap.wrap(self.note, _WIDTH, initial_indent="  ", subsequent_indent="  "),
            *explained,
            "",
            *_aligned([heads, *body]),
        ]


def _json_value(value: Any) -> Any:
    if isinstance(value, str) or value is None:
        return value
    number = value.item() if hasattr(value, "item") else value
    return number if math.isfinite(number) else None


def _shown(value: Any, unit: str) -> str:
    if isinstance(value, str) or value is None:
        return value or "-"
    if isinstance(value, int):
        return f"{value:,}"
    places = _PLACES.get(unit, 2)
    rounded = round(100 * value if unit == "%" else value, places) + 0.0  # -0.0 becomes 0.0
    return f"{rounded:,.{places}f}"


def _aligned(rows: Sequence[Sequence[str]]) -> list[str]:
    """Words to the left in the first column, all else to the right; a rule below the first row."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = []
    for first, *others in rows:
        cells = [f"{a:>{width}}" for a, width in zip(others, widths[1:], strict=True)]
        lines.append("  ".join([f"{first:<{widths[0]}}", *cells]))
    return [lines[0], "-" * len(lines[0]), *lines[1:]]
