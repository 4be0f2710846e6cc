"""The records of a functaset, a page at a time."""

from typing import Any, NamedTuple

import numpy as np

from functa.data.functaset.format import float32_latents
from functa.data.functaset.reader import Functaset
from functa.runtime.config import range_errors

MOST_ON_A_PAGE = 100
_BLOCK = 1024  # records looked through at once
_MOST_LOOKED_THROUGH = 1 << 16  # records, for one page: a rare class is looked for page by page


class Page(NamedTuple):
    """rows: [n] positions in the split; records: of these rows, as functaset sources read them; following: the row
    to go on from, None at the end of the split."""

    rows: np.ndarray
    records: dict[str, np.ndarray]
    following: int | None


class Collection:
    """Random access to the records of all splits."""

    def __init__(self, functaset: Functaset):
        self.functaset = functaset
        self._sources = {
            split: functaset.source(split, cache="none") for split in functaset.manifest.splits
        }

    def page(self, split: str, *, start: int, count: int, label: int | None) -> Page:
        """The next `count` records from row `start` on, all or those of one class; fewer where the split ends, or
        after many of other classes.

        Raises:
          ValueError: a split, row, count or class that is none.
        """
        source, classes = self._source(split), self.functaset.manifest.class_names
        problems = range_errors({"count": (count, 1, MOST_ON_A_PAGE)})
        problems += range_errors({"start": (start, 0, max(0, source.num_examples - 1))})
        if label is not None and classes:
            problems += range_errors({"class": (label, 0, len(classes) - 1)})
        if problems:
            raise ValueError("; ".join(problems))
        end = min(start + (count if label is None else _MOST_LOOKED_THROUGH), source.num_examples)
        found: list[int] = []
        for begin in range(start, end, _BLOCK):
            rows = np.arange(begin, min(begin + _BLOCK, end))
            if label is not None:
                rows = rows[source.read(rows)["label"] == label]
            found += rows.tolist()
            if len(found) >= count:
                break
        chosen = np.asarray(found[:count], np.int64)
        following = int(chosen[-1]) + 1 if len(found) >= count else end
        last = following >= source.num_examples
        return Page(chosen, source.read(chosen), None if last else following)

    def record(self, split: str, row: int) -> dict[str, Any]:
        """One record: latents [i, j, d] float32; label, id, copy: integers; psnr: dB.

        Raises:
          ValueError: it is not there.
        """
        source = self._source(split)
        if not 0 <= row < source.num_examples:
            raise ValueError(
                f"the split {split} has the rows 0 to {source.num_examples - 1}, not {row}"
            )
        records = source.read(np.array([row]))
        integers = {name: int(records[name][0]) for name in ("label", "id", "copy")}
        return integers | {
            "latents": float32_latents(records)[0],
            "psnr": float(records["psnr"][0]),
        }

    def _source(self, split: str):
        if split not in self._sources:
            raise ValueError(f"no split {split!r}; there are {', '.join(self._sources)}")
        return self._sources[split]
