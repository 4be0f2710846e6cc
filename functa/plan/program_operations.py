"""How many multiply-adds the programs of meta-learning do, what they do beyond the mathematics included.

functa/operations.py counts what is needed for every image. Programs do more:

    first step   its gradient is one contraction an image; the Jacobian for it is made once a step and device
    lookup       bilinear interpolation is a product with matrices that are mostly zero
    chunks       a derivative computes again what `inner_loop.chunks` does not keep
    Muon         five steps of Newton and Schulz, once a step, on every device the same

The first layer's products, which all images share, and the basis of bilinear fields are left out: below one
hundredth together wherever a device has a few images. tests/operations_test.py holds these counts against those of
the traced programs.
"""

import math
from collections.abc import Iterable
from typing import NamedTuple

from functa.fields.field import Field
from functa.plan import operations


class Cost(NamedTuple):
    """Multiply-adds of one device: `each` of an example; `once` of a step, however many examples it has."""

    each: int
    once: int


def interpolate(field: Field) -> int:
    """Multiply-adds that carry modulations of one image from the grid to the pixels; none in the cell layout."""
    (h, w, _), (rows, columns) = field.image_shape, field.sub_cell_grid
    if field.interpolation != "bilinear":
        return 0
    return field.num_modulations * (rows * w * columns + h * rows * w)


def _push(field: Field) -> tuple[int, int]:
    """How values of one image move with latents at the first step: (products with what depends on parameters,
    products with constants)."""
    (h, w, c), d = field.image_shape, field.latent_shape[2]
    if field.has_cell_layout((h, w)) and field.is_linear:
        return h * w * c * d * (9 if field.map == "conv3x3" else 1), 0
    return h * w * c * field.num_modulations + operations.map_operations(field), interpolate(field)


def _start(field: Field) -> tuple[int, int]:
    """Values and Jacobian of the field at zero latents, at all points that differ: (products with what depends on
    parameters, products with constants: of the zeros with the map, and lookup)."""
    h, w, c = field.image_shape
    cells = field.has_cell_layout((h, w))
    same = cells and field.coordinates in ("local", "periodic")
    p, q = field.cell_shape((h, w))
    points = p * q if same else h * w
    # Values, and once more beneath the Jacobian; then a pass back for every channel.
    layers = (field.depth - 2) * field.width**2 + field.width * c
    total = points * (2 + c) * layers
    if cells and field.is_linear:
        d = field.latent_shape[2] * (9 if field.map == "conv3x3" else 1)
        total += points * c * field.num_modulations * d
    return total, operations.map_operations(field) + interpolate(field)


def fit(field: Field, *, steps: int) -> Cost:
    """Of inner_loop.fit, without a derivative of it."""
    learned, constant = _push(field)
    each = operations.fit(field, steps=steps) + learned + constant
    return Cost(each + interpolate(field) * (2 * steps - 1), sum(_start(field)))


def training(field: Field, *, steps: int, second_order: bool, chunks: int) -> Cost:
    """Of inner_loop.fit and the gradient through it."""
    learned, constant = _push(field)
    needed = operations.training(field, steps=steps, second_order=second_order)
    if not second_order:
        # The derivative runs through the values after the last step alone.
        passes, again = 2 * steps, 1
        each = needed + learned + constant + interpolate(field) * passes
        once = sum(_start(field))
    else:
        passes, again = 4 * steps - 2, 2 * steps - 1
        each = needed + 3 * learned + 2 * constant + interpolate(field) * passes
        at_start, of_constants = _start(field)
        once = 3 * at_start + 2 * of_constants
    if chunks > 1:
        of_points = operations.forward(field) - operations.shared_layers(field)
        each += again * (of_points - operations.map_operations(field))
    return Cost(each, once)


def muon(shapes: Iterable[tuple[int, ...]]) -> int:
    """Of optim.orthogonalize for every matrix among these shapes."""
    total = 0
    for shape in shapes:
        if len(shape) == 2:
            n, m = sorted(shape)
            # The Gram matrix; its square in five steps, two products more in four; four of the factors; the result.
            total += 2 * n * n * m + (5 + 2 * 4 + 4) * n**3
    return total


def optimizer(name: str, shapes: Iterable[tuple[int, ...]]) -> int:
    """Of an update of parameters of these shapes; optimisers other than Muon multiply no matrices."""
    return muon(shapes) if name == "muon" else 0


def numbers(shapes: Iterable[tuple[int, ...]]) -> int:
    """That arrays of these shapes hold."""
    return sum(math.prod(shape) for shape in shapes)
