"""Collectives of a compiled program, read from its text."""

import math
import re
from typing import NamedTuple

KINDS = "all-reduce|all-gather|reduce-scatter|collective-permute|all-to-all|collective-broadcast"


class Collective(NamedTuple):
    """Name in XLA, and the number of elements of each array."""

    kind: str
    sizes: tuple[int, ...]


def collectives(program):
    def num_elements(shape):
        return math.prod(int(size) for size in shape.split(",") if size)

    matches = re.findall(rf"= (\(.*?\)|\S+) ({KINDS})(?:-start)?\(", program.as_text())
    return [
        Collective(kind, tuple(map(num_elements, re.findall(r"\w\[([\d,]*)\]", shapes))))
        for shapes, kind in matches
    ]
