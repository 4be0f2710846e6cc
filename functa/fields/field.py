"""The field: one network, shared by all examples, that turns latents and coords into values.

    latents [b, i, j, d] --map--> modulations [b, i, j, s, m] --lookup--> points --SIREN--> values
    [b, h, w, c]

The map acts on the latent grid and never on pixels. It gives modulations to the s = upsampling^2
sub-cells of each cell, row by row, each by weights of its own: on a grid upsampling times finer.
Lookup on that grid is separable and linear. Two layouts of points serve all lookups. In the *cell*
layout [b, i, j, s, n, ...] the n pixels of a sub-cell share their modulations; it serves `nearest`
whenever sub-cells hold whole pixels. In the *pixel* layout [b, h, w, ...] every pixel has its own.

Source: Bauer et al. 2023, section 3; Dupont et al. 2022, section 3. The functa of 2022 is the 1x1
  grid. Finer modulations are our deviation, the sub-pixel convolution of Shi et al. 2016 (arXiv
  1609.05158) put before the field; with upsampling 1 the fields are those of the papers.
"""

import dataclasses
from typing import Any, TypeVar

import jax
import jax.numpy as jnp
import numpy as np
from ml_collections import ConfigDict

from functa.fields import coordinates as coords
from functa.fields import siren
from functa.runtime.config import range_errors

Params = dict[str, Any]
Images = TypeVar("Images", jax.Array, np.ndarray)

LOOKUPS = ("nearest", "bilinear")
MAPS = ("linear", "conv3x3", "mlp")
MODULATIONS = ("shift", "shift_scale")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Field:
    """The architecture; parameters are passed to its methods.

    Attributes:
      image_shape: (h, w, c) of the training images.
      latent_shape: (i, j, d); i divides h and j divides w.
      lookup: "nearest" | "bilinear".
      coords: see coords.axis_features.
      map: "linear" (1x1), "conv3x3" (zero padding) or "mlp" (1x1, one hidden layer of `width`
        GELUs).
      upsampling: modulations are made for upsampling x upsampling sub-cells of each cell, which it
        divides.
      modulation: "shift" | "shift_scale".
      width, depth, w0: of the SIREN; depth counts the output layer; w0 is the frequency its first
        layer begins with.
    Raises:
      ValueError: an unknown word, or a grid that does not divide the image, or sub-cells a cell.
    """

    image_shape: tuple[int, int, int]
    latent_shape: tuple[int, int, int]
    lookup: str
    coords: str
    map: str
    upsampling: int
    modulation: str
    width: int
    depth: int
    w0: float

    def __post_init__(self):
        words = {"lookup": LOOKUPS, "map": MAPS, "modulation": MODULATIONS, "coords": coords.COORDS}
        problems = [
            f"field.{name}={getattr(self, name)!r}: known are {', '.join(known)}"
            for name, known in words.items()
            if getattr(self, name) not in known
        ]
        problems += range_errors(
            {
                "field.upsampling": (self.upsampling, 1, 1 << 10),
                "field.depth": (self.depth, 2, 1000),
                "field.width": (self.width, 1, 1 << 16),
                "field.w0": (self.w0, 0.01, 1e4),
            }
        )
        (h, w, _), (i, j, d) = self.image_shape, self.latent_shape
        if min(i, j, d) < 1:
            problems.append(f"field.latent_shape={self.latent_shape}: all sizes must be positive")
        elif h % i or w % j:
            problems.append(f"a latent grid of {i}x{j} does not divide an image of {h}x{w} pixels")
        elif self.upsampling > 1 and (h // i % self.upsampling or w // j % self.upsampling):
            problems.append(
                f"field.upsampling={self.upsampling} does not divide a cell of {h // i}x{w // j} pixels"
            )
        if problems:
            raise ValueError("\n".join(problems))

    @property
    def num_modulations(self) -> int:
        """m: shifts (and scales) of all sine layers."""
        return (self.depth - 1) * self.width * (2 if self.modulation == "shift_scale" else 1)

    @property
    def num_features(self) -> int:
        """f: what the SIREN sees of a position."""
        return self.pixel_features(self.image_shape[:2]).shape[-1]

    @property
    def is_linear(self) -> bool:
        """Whether modulations are a linear function of latents."""
        return self.map != "mlp"

    def cell_shape(self, shape: tuple[int, int]) -> tuple[int, int]:
        """(p, q): pixels inside a cell of an image of `shape`."""
        return shape[0] // self.latent_shape[0], shape[1] // self.latent_shape[1]

    def init(self, key: jax.Array) -> Params:
        """{"siren": ..., "map": {...}}, float32."""
        siren_key, map_key, mlp_key = jax.random.split(key, 3)
        d, m, s = self.latent_shape[2], self.num_modulations, self.upsampling**2
        params: Params = {
            "siren": siren.init(
                siren_key,
                inputs=self.num_features,
                outputs=self.image_shape[2],
                width=self.width,
                depth=self.depth,
                w0=self.w0,
            )
        }
        # A unit latent moves phases by about one radian; what latents are measured in is settled
        # by the rates. All sub-cells begin alike.
        normal = jax.nn.initializers.variance_scaling(1.0, "fan_in", "truncated_normal")
        inputs = self.width if self.map == "mlp" else d
        weight = jnp.tile(normal(map_key, (inputs, m)), (1, s))
        if self.map == "linear":
            params["map"] = {"weight": weight}
        elif self.map == "conv3x3":
            # A matrix, which Muon moves like all the others; a kernel of four axes it would leave to
            # Adam. It begins as the linear map of the cell itself and learns what neighbours add.
            weight = jnp.zeros((9, d, s * m)).at[4].set(weight)
            params["map"] = {"weight": weight.reshape(9 * d, s * m)}
        else:
            params["map"] = {
                "hidden_weight": normal(mlp_key, (d, self.width)),
                "hidden_bias": jnp.zeros((self.width,)),
                "weight": weight,
            }
        return params

    def __call__(self, params: Params, latents: jax.Array, shape: tuple[int, int] | None = None):
        """Values of whole images.

        Args:
          latents: [b, i, j, d] float32.
          shape: (H, W) to decode at; the training resolution if None.
        Returns:
          [b, H, W, c] float32, about [0, 1], not clipped.
        """
        shape = shape or self.image_shape[:2]
        return self.to_image(
            self.synthesise(params, self.modulations(params, latents), shape), shape
        )

    def modulations(self, params: Params, latents: jax.Array) -> jax.Array:
        """[b, i, j, d] -> [b, i, j, s, m], zero (a constant for "mlp") at zero latents."""
        weights = params["map"]
        if self.is_linear:
            inputs = self.map_inputs(latents)
        else:
            bias = weights["hidden_bias"][None, None, None]
            inputs = jax.nn.gelu(latents @ weights["hidden_weight"] + bias)
        made = inputs @ weights["weight"]
        return made.reshape(*made.shape[:3], self.upsampling**2, self.num_modulations)

    def map_inputs(self, latents: jax.Array) -> jax.Array:
        """What a linear map multiplies: [b, i, j, d], for conv3x3 the latents of the cell and its
        eight neighbours, row by row, zero beyond the border: [b, i, j, 9 d]."""
        if self.map != "conv3x3":
            return latents
        _, i, j, _ = latents.shape
        padded = jnp.pad(latents, ((0, 0), (1, 1), (1, 1), (0, 0)))
        shifted = [
            padded[:, row : row + i, column : column + j] for row, column in np.ndindex(3, 3)
        ]
        return jnp.concatenate(shifted, axis=-1)

    def uses_cells(self, shape: tuple[int, int]) -> bool:
        """Whether images of `shape` are computed in the cell layout."""
        rows, columns = self.fine_grid
        return self.lookup == "nearest" and shape[0] % rows == 0 and shape[1] % columns == 0

    @property
    def fine_grid(self) -> tuple[int, int]:
        """Rows and columns of sub-cells in an image."""
        return self.latent_shape[0] * self.upsampling, self.latent_shape[1] * self.upsampling

    def synthesise(
        self, params: Params, modulations: jax.Array, shape: tuple[int, int]
    ) -> jax.Array:
        """Values in the layout of `shape`: [b, i, j, s, n, c] (cells) or [b, H, W, c] (pixels)."""
        at_points = self.look_up(modulations, shape)
        return self.at_points(params, self.layout_features(shape), at_points)

    def at_points(self, params: Params, features, modulations: jax.Array) -> jax.Array:
        """The SIREN at points whose modulations [..., m] are known."""
        scales = None
        if self.modulation == "shift_scale":
            modulations, factors = jnp.split(modulations, 2, axis=-1)
            scales = jnp.split(factors, self.depth - 1, axis=-1)
        shifts = jnp.split(modulations, self.depth - 1, axis=-1)
        return siren.apply(params["siren"], jnp.asarray(features), shifts, scales)

    def look_up(self, modulations: jax.Array, shape: tuple[int, int]) -> jax.Array:
        """Modulations [b, i, j, s, m] at the points of `shape`.

        Returns:
          [b, i, j, s, 1, m] in the cell layout, [b, H, W, m] in the pixel layout.
        """
        if self.uses_cells(shape):
            return modulations[:, :, :, :, None]
        b, i, j, _, m = modulations.shape
        grid = modulations.reshape(b, i, j, self.upsampling, self.upsampling, m).swapaxes(2, 3)
        grid = grid.reshape(b, *self.fine_grid, m)
        places = [coords.pixel_centers(size) for size in shape]
        if self.lookup == "nearest":
            rows, columns = map(coords.nearest_index, places, self.fine_grid)
            return grid[:, rows][:, :, columns]
        row_weights, column_weights = map(coords.interpolation_matrix, places, self.fine_grid)
        grid = jnp.einsum("wj,bijk->biwk", column_weights, grid)
        return jnp.einsum("hi,biwk->bhwk", row_weights, grid)

    def orthonormal(self, grid: jax.Array) -> jax.Array:
        """Channels on the latent grid [b, i, j, k], in the basis that lookup carries to the training
        pixels without making any pattern of cells larger or smaller than another.

        Symmetric, hence its own transpose. The identity for `nearest`; for `bilinear` see
        coords.orthonormalizer. Sub-cells are taken to be alike, as they are in the beginning.
        """
        if self.lookup == "nearest":
            return grid
        rows, columns = (
            coords.orthonormalizer(coords.pixel_centers(size), cells, parts=self.upsampling)
            for size, cells in zip(self.image_shape[:2], self.latent_shape[:2], strict=True)
        )
        return jnp.einsum("ai,cj,bijk->back", rows, columns, grid)

    def to_image(self, values: jax.Array, shape: tuple[int, int]) -> jax.Array:
        """Undoes the layout: [b, H, W, c]."""
        if not self.uses_cells(shape):
            return values
        u = self.upsampling
        b, i, j, _, _, c = values.shape
        p, q = shape[0] // (i * u), shape[1] // (j * u)
        values = values.reshape(b, i, j, u, u, p, q, c)
        return values.transpose(0, 1, 3, 5, 2, 4, 6, 7).reshape(b, *shape, c)

    def to_layout(self, images: Images) -> Images:
        """[b, h, w, c] -> the layout of that shape; the inverse of `to_image`."""
        b, h, w, c = images.shape
        if not self.uses_cells((h, w)):
            return images
        u, (i, j, _) = self.upsampling, self.latent_shape
        p, q = h // (i * u), w // (j * u)
        images = images.reshape(b, i, u, p, j, u, q, c)
        return images.transpose(0, 1, 4, 2, 5, 3, 6, 7).reshape(b, i, j, u * u, p * q, c)

    def of_window(self, side: int) -> "Field":
        """The same network seen as the field of windows, images of side x side neighbouring cells. What
        lies beyond the border of a window is to it what lies beyond the border of an image.

        Raises:
          ValueError: the grid is smaller, cells of this field differ by their place, or windows are
            single cells of a field whose cells depend on their neighbours.
        """
        (i, j, d), c = self.latent_shape, self.image_shape[2]
        if not 1 <= side <= min(i, j):
            raise ValueError(
                f"meta_learn.window={side}: the grid of {i}x{j} has windows from 1 to {min(i, j)} cells a side"
            )
        if self.coords not in ("local", "periodic"):
            raise ValueError(
                f"cells of an image can be trained on only with coords=local or periodic, not {self.coords}; set "
                "meta_learn.cells_per_image=0"
            )
        if side == 1 and (self.lookup != "nearest" or self.map == "conv3x3"):
            raise ValueError(
                "single cells can be trained on only with lookup=nearest and map=linear or mlp, not "
                f"{self.lookup}, {self.map}; set meta_learn.cells_per_image=0, or meta_learn.window to more than 1"
            )
        p, q = self.cell_shape(self.image_shape[:2])
        return dataclasses.replace(
            self, image_shape=(side * p, side * q, c), latent_shape=(side, side, d)
        )

    def pixel_features(self, shape: tuple[int, int]) -> np.ndarray:
        """What the SIREN sees of every pixel of an image of `shape`: [H, W, f] float32."""
        rows, columns = (coords.pixel_centers(size) for size in shape)
        return coords.grid_features(
            self.coords, rows, columns, cells=self.latent_shape[:2], pixels=self.image_shape[:2]
        )

    def layout_features(self, shape: tuple[int, int]) -> np.ndarray:
        """Features without a batch axis: [s, n, f] where all cells see the same, else [i, j, s, n, f] or
        [H, W, f]."""
        features = self.pixel_features(shape)
        if not self.uses_cells(shape):
            return features
        cells = self.to_layout(features[None])[0]
        return cells[0, 0] if self.coords in ("local", "periodic") else cells


def make_field(config: ConfigDict) -> Field:
    """The field of a whole config (config.field and the shape of its images).

    Raises:
      ValueError: a setting that cannot work, or one that is missing.
    """
    wanted = {part.name for part in dataclasses.fields(Field)} - {"image_shape"}
    if missing := sorted(wanted - set(config.field)):
        raise ValueError(
            f"the config has no field.{', field.'.join(missing)}: another version of functa wrote it"
        )
    return Field(image_shape=tuple(config.data.image_shape), **config.field)
