"""Counts what a program multiplies, exactly, from its traced form.

The benchmarks and the plan count by formulas of shapes (functa/operations.py and its neighbours); this is what the
formulas are held against. Counted are the multiply-adds of matrix products and convolutions that a result depends
on, a loop's as often as it turns. Element by element work (sines, norms, additions) is not: XLA's own cost
analysis counts it too, and counts what is in a loop once.
"""

import math
from collections.abc import Callable, Iterable
from typing import Any

import jax
from jax.extend import core


def multiply_adds(function: Callable, *arguments: Any) -> int:
    """Of function(*arguments), on one device where it is a program of several.

    Args:
      arguments: arrays, or descriptions of them; nothing is computed.
    Raises:
      ValueError: products in a loop whose number of turns is not known.
    """
    jaxpr = jax.make_jaxpr(function)(*arguments).jaxpr
    return _of_jaxpr(jaxpr, [True] * len(jaxpr.outvars))


def _of_jaxpr(jaxpr: core.Jaxpr, wanted: Iterable[bool]) -> int:
    """Of the equations that the wanted results depend on: compilers drop the others."""
    needed = {id(result) for result, want in zip(jaxpr.outvars, wanted, strict=True) if want}
    total = 0
    for equation in reversed(jaxpr.eqns):
        used = [id(result) in needed for result in equation.outvars]
        if any(used):
            needed.update(map(id, equation.invars))
            total += _of_equation(equation, used)
    return total


def _of_equation(equation: Any, used: list[bool]) -> int:
    params, name = equation.params, equation.primitive.name
    if name == "dot_general":
        (contracted, _), _ = params["dimension_numbers"]
        shape = equation.invars[0].aval.shape
        return equation.outvars[0].aval.size * math.prod(shape[axis] for axis in contracted)
    if name == "conv_general_dilated":
        kernel = equation.invars[1].aval
        outputs = kernel.shape[params["dimension_numbers"].rhs_spec[0]]
        # An input that is spread out, as in the gradient of a stride, is zeros in between: those are not counted.
        spread = math.prod(params["lhs_dilation"])
        return equation.outvars[0].aval.size * (kernel.size // outputs) // spread
    inner = [one for value in _flat(params.values()) if (one := _jaxpr(value)) is not None]
    # What a turn of a loop leaves to the next is needed, whether or not the last one's is.
    loops = name in ("scan", "while")
    counts = [
        _of_jaxpr(
            one, used if not loops and len(used) == len(one.outvars) else [True] * len(one.outvars)
        )
        for one in inner
    ]
    if name == "scan":
        return params["length"] * sum(counts)
    if name == "cond":
        return max(counts)
    if name == "while" and sum(counts):
        raise ValueError("products in a loop whose number of turns is not known")
    return sum(counts)


def _flat(values: Iterable[Any]) -> list[Any]:
    return [one for value in values for one in (value if isinstance(value, tuple) else [value])]


def _jaxpr(value: Any) -> core.Jaxpr | None:
    value = value.jaxpr if isinstance(value, core.ClosedJaxpr) else value
    return value if isinstance(value, core.Jaxpr) else None
