"""Work of a program, counted in its jaxpr: multiply-adds, and bytes sent to other devices.

Element-wise operations are not counted. The cost analysis of XLA counts them, but it counts the body
of a loop once.
"""

import dataclasses
import math
from collections.abc import Callable, Iterator
from typing import Any

import jax
from jax.extend import core
from jax.interpreters import partial_eval

_HIGHEST = (jax.lax.Precision.HIGHEST, jax.lax.Precision.HIGHEST)


@dataclasses.dataclass(frozen=True)
class Operations:
    """Work of one device in one call of a program.

    Attributes:
      multiply_adds: of matrix products and convolutions, except those at highest precision.
      multiply_adds_highest: those at jax.lax.Precision.HIGHEST, such as the update of Muon.
      sent_bytes: bytes that the device sends in collectives, by ring algorithms.
      collectives: number of collectives. XLA combines those of one kind over the same mesh axes, so
        they count as one.
    """

    multiply_adds: int
    multiply_adds_highest: int
    sent_bytes: float
    collectives: int

    @property
    def all_multiply_adds(self) -> int:
        return self.multiply_adds + self.multiply_adds_highest


def count(function: Callable, *arguments: Any) -> Operations:
    """Counts the work of function(*arguments) without running it.

    Dead code does not count, the body of a scan counts once per iteration, and of a conditional the
    branch with most multiply-adds counts. Operations outside of `jax.shard_map` count in full on each
    device.

    Args:
      arguments: arrays or `jax.ShapeDtypeStruct`s.
    Raises:
      ValueError: a while loop, whose number of iterations is unknown, has products or collectives.
    """
    jaxpr = jax.make_jaxpr(function)(*arguments).jaxpr
    jaxpr, _ = partial_eval.dce_jaxpr(jaxpr, [True] * len(jaxpr.outvars))
    default = highest = 0
    sent, kinds = 0.0, set()
    for equation, times, axis_sizes in _countable(jaxpr, 1, {}):
        products = times * _multiply_adds(equation)
        if equation.params.get("precision") == _HIGHEST:
            highest += products
        else:
            default += products
        if size := _sent_bytes(equation, axis_sizes):
            sent += times * size
            kinds.add((equation.primitive.name, _axes(equation)))
    return Operations(default, highest, sent, len(kinds))


def _countable(
    jaxpr: core.Jaxpr, times: int, axis_sizes: dict[str, int]
) -> Iterator[tuple[core.JaxprEqn, int, dict[str, int]]]:
    """Yields products and collectives, how often each runs, and the sizes of its mesh axes."""
    for equation in jaxpr.eqns:
        name, params = equation.primitive.name, equation.params
        if name == "shard_map":
            axis_sizes = dict(params["mesh"].shape)
        repeats = times * params["length"] if name == "scan" else times
        parts = [
            list(_countable(inner, repeats, axis_sizes)) for inner in core.jaxprs_in_params(params)
        ]
        if name == "while" and any(parts):
            raise ValueError("a while loop has products, and its number of iterations is unknown")
        if name == "cond":
            parts = [max(parts, key=lambda part: sum(n * _multiply_adds(e) for e, n, _ in part))]
        for part in parts:
            yield from part
        if _multiply_adds(equation) or _sent_bytes(equation, axis_sizes):
            yield equation, times, axis_sizes


def _multiply_adds(equation: Any) -> int:
    params, name = equation.params, equation.primitive.name
    if name == "dot_general":
        (contracted, _), _ = params["dimension_numbers"]
        shape = equation.invars[0].aval.shape
        return equation.outvars[0].aval.size * math.prod(shape[axis] for axis in contracted)
    if name == "conv_general_dilated":
        kernel = equation.invars[1].aval
        outputs = kernel.shape[params["dimension_numbers"].rhs_spec[0]]
        # A dilated input, as in the gradient of a strided convolution, is mostly zeros.
        dilation = math.prod(params["lhs_dilation"])
        return equation.outvars[0].aval.size * (kernel.size // outputs) // dilation
    return 0


def _axes(equation: Any) -> tuple[str, ...]:
    axes = equation.params.get("axes", equation.params.get("axis_name", ()))
    return axes if isinstance(axes, tuple) else (axes,)


def _sent_bytes(equation: Any, axis_sizes: dict[str, int]) -> float:
    """Bytes that a device of a ring of n sends in a collective: a fraction (n - 1) / n in each pass."""
    name = equation.primitive.name
    if name not in ("psum", "all_gather", "reduce_scatter", "ppermute"):
        return 0.0
    n = math.prod(axis_sizes[axis] for axis in _axes(equation))
    arrays = equation.outvars if name == "all_gather" else equation.invars
    size = sum(var.aval.size * var.aval.dtype.itemsize for var in arrays)
    if name == "ppermute":
        return float(size) if n > 1 else 0.0
    passes = 2 if name == "psum" else 1  # an all-reduce is a reduce-scatter and an all-gather
    return passes * (n - 1) / n * size
