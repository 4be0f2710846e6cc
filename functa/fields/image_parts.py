"""Fields of parts of an image: windows of cells to train on, and rows of cells sharded over devices.

Windows make a training step cheaper than whole images. Row sharding serves images too large for the
memory of one device, and batches with fewer images than devices. Cells depend on each other only
through the conv3x3 map, which needs the latents of the rows above and below; devices exchange them,
d numbers per cell, whenever the map is evaluated.
"""

import dataclasses

import jax
import jax.numpy as jnp

from functa.fields.field import Field

AXIS = "cell"  # mesh axis over which rows of cells are sharded


def window_field(field: Field, side: int) -> Field:
    """The same network as the field of windows: images of side x side neighboring cells.

    Beyond the border of a window is zero padding, as beyond the border of an image.

    Raises:
      ValueError: the grid is smaller than the window, the features of a cell depend on its place,
        or the window is one cell and cells depend on their neighbors.
    """
    (i, j, d), c = field.latent_shape, field.image_shape[2]
    if not 1 <= side <= min(i, j):
        raise ValueError(
            f"meta_learn.window={side}: windows of a {i}x{j} grid have 1 to {min(i, j)} cells a side"
        )
    if not field.cells_are_alike:
        raise ValueError(
            f"training on random cells needs field.coordinates=local or periodic, not {field.coordinates}; "
            "set meta_learn.cells_per_image=0"
        )
    if side == 1 and (field.interpolation != "nearest" or field.map == "conv3x3"):
        raise ValueError(
            "training on single cells needs field.interpolation=nearest and field.map=linear or mlp, not "
            f"{field.interpolation}, {field.map}; set meta_learn.cells_per_image=0, or meta_learn.window above 1"
        )
    p, q = field.cell_shape(field.image_shape[:2])
    return dataclasses.replace(
        field, image_shape=(side * p, side * q, c), latent_shape=(side, side, d)
    )


def random_windows(
    key: jax.Array, images: jax.Array, field: Field, *, cells: int, side: int
) -> jax.Array:
    """Cuts random windows of side x side cells out of images, drawn with replacement.

    The windows of an image depend on the key and on its position in the global batch, not on the
    number of devices.

    Args:
      images: [b, h, w, c].
      field: of whole images.
      cells: cells per image, a multiple of side^2.
    Returns:
      [b * cells / side^2, side * p, side * q, c]; windows of one image are adjacent.
    """
    i, j, _ = field.latent_shape
    p, q = field.cell_shape(field.image_shape[:2])
    shape = (side * p, side * q, images.shape[3])
    columns = j - side + 1
    count = cells // side**2
    corner = jax.random.randint(key, (len(images), count), 0, (i - side + 1) * columns)

    def cut(image, corner):
        return jax.lax.dynamic_slice(image, (corner // columns * p, corner % columns * q, 0), shape)

    windows = jax.vmap(jax.vmap(cut, (None, 0)))(images, corner)
    return windows.reshape(len(images) * count, *shape)


@dataclasses.dataclass(frozen=True, kw_only=True)
class RowShardedField(Field):
    """The field of one device's rows of cells. For use inside jax.shard_map over the axis `cell`.

    Images and latents are sharded by rows in the same way.
    """

    def map_inputs(self, latents: jax.Array) -> jax.Array:
        if self.map != "conv3x3":
            return latents
        count = jax.lax.axis_size(AXIS)
        # A device without a neighbor receives zeros, which is the padding beyond the border.
        above = jax.lax.ppermute(latents[:, -1:], AXIS, [(k, k + 1) for k in range(count - 1)])
        below = jax.lax.ppermute(latents[:, :1], AXIS, [(k + 1, k) for k in range(count - 1)])
        inputs = super().map_inputs(jnp.concatenate([above, latents, below], axis=1))
        return inputs[:, 1:-1]


def shard_rows(field: Field, count: int) -> Field:
    """The field of one device when rows of cells are sharded over `count` devices.

    Raises:
      ValueError: `count` does not divide the rows, or cells depend on each other in other ways.
    """
    (h, w, c), (i, j, d) = field.image_shape, field.latent_shape
    problems = []
    if count < 1:
        raise ValueError(f"mesh.cell={count} must be at least 1")
    if count == 1:
        return field
    if i % count:
        problems.append(f"mesh.cell={count} must divide the {i} rows of the latent grid")
    if field.interpolation != "nearest" or not field.cells_are_alike:
        problems.append(
            f"mesh.cell={count} needs field.interpolation=nearest and field.coordinates=local or periodic, "
            f"not {field.interpolation}, {field.coordinates}"
        )
    if problems:
        raise ValueError("\n".join(problems))
    settings = {part.name: getattr(field, part.name) for part in dataclasses.fields(field)}
    shapes = {"image_shape": (h // count, w, c), "latent_shape": (i // count, j, d)}
    return RowShardedField(**settings | shapes)


def local_inner_lrs(field: Field, inner_lrs: jax.Array) -> jax.Array:
    """The inner learning rates [steps or 1, i or 1, ...] of this device's rows of cells."""
    rows = field.latent_shape[0]
    if not isinstance(field, RowShardedField) or inner_lrs.shape[1] == 1:
        return inner_lrs
    return jax.lax.dynamic_slice_in_dim(inner_lrs, jax.lax.axis_index(AXIS) * rows, rows, axis=1)


def image_mean(field: Field, local_means: jax.Array) -> jax.Array:
    """Means over whole images [b], from the means over this device's rows."""
    return jax.lax.pmean(local_means, AXIS) if isinstance(field, RowShardedField) else local_means
