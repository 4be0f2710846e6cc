"""The compiler's own analyses of a compiled program: memory of a device, traffic, collectives, measured time."""

import dataclasses
import math
import re
import statistics
import time
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

_KINDS = "all-reduce|all-gather|reduce-scatter|collective-permute|all-to-all|collective-broadcast"
_DTYPE_SHAPE = r"\w\[([\d,]*)\]"


class Collective(NamedTuple):
    """One collective of a program.

    Attributes:
      kind: XLA's name, such as "all-reduce".
      sizes: number of elements of each of its arrays.
    """

    kind: str
    sizes: tuple[int, ...]


@dataclasses.dataclass(frozen=True)
class Analysis:
    """The compiler's account of a program, for one device.

    Attributes:
      argument_bytes, temporary_bytes: memory of the arguments and of intermediate results.
      output_bytes: memory of the results that do not reuse that of arguments.
      accessed_bytes: memory traffic: operands and results of everything that is not fused. A loop's body counts once.
      flops: floating-point operations, two per multiply-add, element-wise ones included. A loop's body counts once.
      collectives: in the order of the program's text.
    """

    argument_bytes: int
    temporary_bytes: int
    output_bytes: int
    accessed_bytes: float
    flops: float
    collectives: list[Collective]

    @property
    def peak_bytes(self) -> int:
        return self.argument_bytes + self.temporary_bytes + self.output_bytes


def analyze(program: jax.stages.Compiled) -> Analysis:
    """Reads `cost_analysis`, `memory_analysis` and the text of a compiled program."""
    memory, cost = program.memory_analysis(), program.cost_analysis()
    assert memory is not None, "this compiler gives no memory analysis"
    assert cost is not None, "this compiler gives no cost analysis"
    return Analysis(
        argument_bytes=memory.argument_size_in_bytes,
        temporary_bytes=memory.temp_size_in_bytes,
        output_bytes=memory.output_size_in_bytes - memory.alias_size_in_bytes,
        accessed_bytes=cost["bytes accessed"],
        flops=cost["flops"],
        collectives=collectives(program),
    )


def collectives(program: jax.stages.Compiled) -> list[Collective]:
    """Every collective of a compiled program, in the order of its text."""
    matches = re.findall(rf"= (\(.*?\)|\S+) ({_KINDS})(?:-start)?\(", program.as_text() or "")
    return [
        Collective(
            kind,
            tuple(
                math.prod(map(int, filter(None, dims.split(","))))
                for dims in re.findall(_DTYPE_SHAPE, shape)
            ),
        )
        for shape, kind in matches
    ]


def measure_seconds(program: jax.stages.Compiled, arguments: Any, *, repeats: int = 5) -> float:
    """Median time of a call with arguments of ones, after one call that does not count.

    Args:
      arguments: `jax.ShapeDtypeStruct`s with shardings. Every call gets fresh arrays, whose memory it may reuse.
    """

    def ones() -> Any:
        return jax.tree.map(lambda leaf: jnp.full(leaf.shape, 1, leaf.dtype), arguments)

    shardings = jax.tree.map(lambda leaf: leaf.sharding, arguments)
    make_arguments: Callable = jax.jit(ones, out_shardings=shardings)
    seconds = []
    for _ in range(repeats + 1):
        values = jax.block_until_ready(make_arguments())
        begin = time.perf_counter()
        jax.block_until_ready(program(*values))
        seconds.append(time.perf_counter() - begin)
    return statistics.median(seconds[1:])
