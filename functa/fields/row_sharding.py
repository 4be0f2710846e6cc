"""Bands: the rows of cells of an image, shared out to the devices of the mesh's axis `cell`.

For images so large that the memory of one of them is much for a device, or batches of fewer images than
devices. Cells depend on each other through the conv3x3 map alone, which wants the latents of the row above
and of the row below: they are sent by the neighbours, d numbers a cell, wherever the map is taken.
"""

import dataclasses

import jax
import jax.numpy as jnp

from functa.fields.field import Field

AXIS = "cell"


@dataclasses.dataclass(frozen=True, kw_only=True)
class Band(Field):
    """What one device sees of a field: the band of rows of cells that is its turn on the axis, of images
    and latents cut into bands alike. For use inside jax.shard_map."""

    def map_inputs(self, latents: jax.Array) -> jax.Array:
        if self.map != "conv3x3":
            return latents
        count = jax.lax.axis_size(AXIS)
        # Who is sent nothing gets zeros: the padding beyond the border.
        above = jax.lax.ppermute(latents[:, -1:], AXIS, [(k, k + 1) for k in range(count - 1)])
        below = jax.lax.ppermute(latents[:, :1], AXIS, [(k + 1, k) for k in range(count - 1)])
        inputs = super().map_inputs(jnp.concatenate([above, latents, below], axis=1))
        return inputs[:, 1:-1]


def band_of(field: Field, count: int) -> Band:
    """The band of one of `count` devices.

    Raises:
      ValueError: the rows cannot be cut so, or cells depend on each other in other ways.
    """
    (h, w, c), (i, j, d) = field.image_shape, field.latent_shape
    problems = []
    if i % count:
        problems.append(f"mesh.cell={count} must divide the {i} rows of the latent grid")
    if field.lookup != "nearest" or field.coords not in ("local", "periodic"):
        problems.append(
            f"mesh.cell={count} wants lookup=nearest and coords=local or periodic, not {field.lookup}, {field.coords}"
        )
    if problems:
        raise ValueError("\n".join(problems))
    settings = {part.name: getattr(field, part.name) for part in dataclasses.fields(field)}
    shapes = {"image_shape": (h // count, w, c), "latent_shape": (i // count, j, d)}
    return Band(**settings | shapes)


def own_rates(field: Field, rates: jax.Array) -> jax.Array:
    """Of inner rates [steps or 1, i or 1, ...] those of the cells of this device."""
    rows = field.latent_shape[0]
    if not isinstance(field, Band) or rates.shape[1] == 1:
        return rates
    return jax.lax.dynamic_slice_in_dim(rates, jax.lax.axis_index(AXIS) * rows, rows, axis=1)


def mean(field: Field, of_images: jax.Array) -> jax.Array:
    """Means over the pixels of a band -> over those of the image."""
    return jax.lax.pmean(of_images, AXIS) if isinstance(field, Band) else of_images
