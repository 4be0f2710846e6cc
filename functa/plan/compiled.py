"""Memory, traffic and time of a compiled program."""

import dataclasses
import statistics
import time
from typing import Any

import jax
import jax.numpy as jnp


@dataclasses.dataclass(frozen=True)
class Analysis:
    """Memory and traffic of a program on one device, by XLA.

    Attributes:
      argument_bytes, temporary_bytes: memory of the arguments and of intermediate results.
      output_bytes: memory of the results, without those that reuse memory of the arguments.
      accessed_bytes: operands and results of all operations; the body of a loop counts once.
    """

    argument_bytes: int
    temporary_bytes: int
    output_bytes: int
    accessed_bytes: float

    @property
    def peak_bytes(self) -> int:
        return self.argument_bytes + self.temporary_bytes + self.output_bytes


def analyze(program: jax.stages.Compiled) -> Analysis:
    """Reads the analyses of a compiled program."""
    memory, cost = program.memory_analysis(), program.cost_analysis()
    assert memory is not None, "XLA has no memory analysis for this platform"
    assert cost is not None, "XLA has no cost analysis for this platform"
    return Analysis(
        argument_bytes=memory.argument_size_in_bytes,
        temporary_bytes=memory.temp_size_in_bytes,
        output_bytes=memory.output_size_in_bytes - memory.alias_size_in_bytes,
        accessed_bytes=cost["bytes accessed"],
    )


def measure_seconds(program: jax.stages.Compiled, arguments: Any, *, repeats: int = 5) -> float:
    """Median time of a call with arguments of ones, without the first call.

    Args:
      arguments: `jax.ShapeDtypeStruct`s with shardings. Each call gets new arrays, because the program
        may donate them.
    """
    shardings = jax.tree.map(lambda leaf: leaf.sharding, arguments)
    ones = jax.jit(
        lambda: jax.tree.map(lambda leaf: jnp.full(leaf.shape, 1, leaf.dtype), arguments),
        out_shardings=shardings,
    )
    seconds = []
    for _ in range(repeats + 1):
        values: Any = jax.block_until_ready(ones())
        start = time.perf_counter()
        jax.block_until_ready(program(*values))
        seconds.append(time.perf_counter() - start)
    return statistics.median(seconds[1:])
