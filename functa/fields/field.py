"""The field: one network, shared by all examples, that maps latents and coordinates to values.

    latents [b, i, j, d] --map--> modulations [b, i, j, s, m] --interpolation--> points --SIREN-->
    values [b, h, w, c]

The map acts on the latent grid, never on pixels. It computes modulations for the s = upsampling^2
sub-cells of each cell, in row-major order, with separate weights per sub-cell. Interpolation on the
grid of sub-cells is separable and linear.

Values have one of two layouts. In the *cell* layout [b, i, j, s, n, ...] the n pixels of a sub-cell
share their modulations; it is used for nearest interpolation whenever a sub-cell contains whole
pixels. In the *pixel* layout [b, h, w, ...] every pixel has its own modulations.

Source: Bauer et al. 2023, section 3; Dupont et al. 2022, section 3 (a 1x1 grid). Deviation:
  upsampling, the sub-pixel convolution of Shi et al. 2016 (arXiv 1609.05158) applied to modulations.
  With upsampling=1 the fields are those of the papers.
"""

import dataclasses
from typing import Any, TypeVar

import jax
import jax.numpy as jnp
import numpy as np

from functa.fields import coordinates, siren
from functa.runtime.config import range_errors

Params = dict[str, Any]
Images = TypeVar("Images", jax.Array, np.ndarray)

INTERPOLATIONS = ("nearest", "bilinear")
MAPS = ("linear", "conv3x3", "mlp")
MODULATIONS = ("shift", "shift_scale")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Field:
    """Architecture of the field. Parameters are passed to its methods.

    Attributes:
      image_shape: (h, w, c) of the training images.
      latent_shape: (i, j, d); i divides h and j divides w.
      interpolation: "nearest" or "bilinear".
      coordinates: see coordinates.axis_features.
      map: "linear" (1x1), "conv3x3" (zero padding) or "mlp" (1x1, one hidden layer of `width`
        GELUs).
      upsampling: each cell has upsampling x upsampling sub-cells with modulations of their own.
      modulation: "shift" or "shift_scale".
      width, depth: of the SIREN; depth includes the output layer.
      w0: frequency of the first SIREN layer at initialization.
    Raises:
      ValueError: an unknown choice, a grid that does not divide the image, or sub-cells that do not
        divide a cell.
    """

    image_shape: tuple[int, int, int]
    latent_shape: tuple[int, int, int]
    interpolation: str
    coordinates: str
    map: str
    upsampling: int
    modulation: str
    width: int
    depth: int
    w0: float

    def __post_init__(self):
        choices = {
            "interpolation": INTERPOLATIONS,
            "map": MAPS,
            "modulation": MODULATIONS,
            "coordinates": coordinates.COORDINATES,
        }
        problems = [
            f"field.{name}={getattr(self, name)!r} is unknown; choose from {', '.join(known)}"
            for name, known in choices.items()
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
        """m: number of shifts (and scales) over all sine layers."""
        return (self.depth - 1) * self.width * (2 if self.modulation == "shift_scale" else 1)

    @property
    def num_features(self) -> int:
        """f: number of input features of the SIREN per position."""
        return self.pixel_features(self.image_shape[:2]).shape[-1]

    @property
    def is_linear(self) -> bool:
        """Whether modulations are a linear function of latents."""
        return self.map != "mlp"

    @property
    def sub_cell_grid(self) -> tuple[int, int]:
        """(rows, columns) of sub-cells in an image."""
        return self.latent_shape[0] * self.upsampling, self.latent_shape[1] * self.upsampling

    @property
    def cells_are_alike(self) -> bool:
        """Whether all cells have the same coordinate features."""
        return self.coordinates in ("local", "periodic")

    def cell_shape(self, shape: tuple[int, int]) -> tuple[int, int]:
        """(p, q): pixels of a cell in an image of `shape`."""
        return shape[0] // self.latent_shape[0], shape[1] // self.latent_shape[1]

    def init(self, key: jax.Array) -> Params:
        """Initial parameters {"siren": ..., "map": {...}}, float32."""
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
        # A latent of one shifts phases by about one radian. The inner learning rates set the scale of
        # latents. All sub-cells start with the same weights.
        normal = jax.nn.initializers.variance_scaling(1.0, "fan_in", "truncated_normal")
        inputs = self.width if self.map == "mlp" else d
        weight = jnp.tile(normal(map_key, (inputs, m)), (1, s))
        if self.map == "linear":
            params["map"] = {"weight": weight}
        elif self.map == "conv3x3":
            # Stored as a matrix, because Muon orthogonalizes matrices and leaves 4-D kernels to Adam.
            # Starts as the linear map of the cell itself, with zero weights for its neighbors.
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
        """Decodes latents to images.

        Args:
          latents: [b, i, j, d] float32.
          shape: (H, W) of the images; None: that of the training images.
        Returns:
          [b, H, W, c] float32, approximately in [0, 1], not clipped.
        """
        shape = shape or self.image_shape[:2]
        values = self.synthesize(params, self.modulations(params, latents), shape)
        return self.to_image(values, shape)

    def modulations(self, params: Params, latents: jax.Array) -> jax.Array:
        """Maps latents [b, i, j, d] to modulations [b, i, j, s, m].

        They are zero (for map="mlp", a constant) at zero latents.
        """
        weights = params["map"]
        if self.is_linear:
            inputs = self.map_inputs(latents)
        else:
            bias = weights["hidden_bias"][None, None, None]
            inputs = jax.nn.gelu(latents @ weights["hidden_weight"] + bias)
        outputs = inputs @ weights["weight"]
        return outputs.reshape(*outputs.shape[:3], self.upsampling**2, self.num_modulations)

    def map_inputs(self, latents: jax.Array) -> jax.Array:
        """Inputs of a linear map: the latents [b, i, j, d], or for conv3x3 [b, i, j, 9 d].

        The latter are the latents of the 3x3 neighborhood in row-major order, zero beyond the border.
        """
        if self.map != "conv3x3":
            return latents
        _, i, j, _ = latents.shape
        padded = jnp.pad(latents, ((0, 0), (1, 1), (1, 1), (0, 0)))
        shifted = [
            padded[:, row : row + i, column : column + j] for row, column in np.ndindex(3, 3)
        ]
        return jnp.concatenate(shifted, axis=-1)

    def has_cell_layout(self, shape: tuple[int, int]) -> bool:
        """Whether images of `shape` are evaluated cell by cell, with all pixels of a cell in one matrix."""
        rows, columns = self.sub_cell_grid
        return self.interpolation == "nearest" and shape[0] % rows == 0 and shape[1] % columns == 0

    def synthesize(
        self, params: Params, modulations: jax.Array, shape: tuple[int, int]
    ) -> jax.Array:
        """Values in the layout of `shape`: [b, i, j, s, n, c] (cells) or [b, H, W, c] (pixels)."""
        modulations = self.interpolate(modulations, shape)
        return self.evaluate(params, self.layout_features(shape), modulations)

    def evaluate(self, params: Params, features, modulations: jax.Array) -> jax.Array:
        """Applies the SIREN to points with features [..., f] and modulations [..., m]."""
        scales = None
        if self.modulation == "shift_scale":
            modulations, factors = jnp.split(modulations, 2, axis=-1)
            scales = jnp.split(factors, self.depth - 1, axis=-1)
        shifts = jnp.split(modulations, self.depth - 1, axis=-1)
        return siren.apply(params["siren"], jnp.asarray(features), shifts, scales)

    def interpolate(self, modulations: jax.Array, shape: tuple[int, int]) -> jax.Array:
        """Interpolates modulations [b, i, j, s, m] at the pixels of an image of `shape`.

        Returns:
          [b, i, j, s, 1, m] in the cell layout, [b, H, W, m] in the pixel layout.
        """
        if self.has_cell_layout(shape):
            return modulations[:, :, :, :, None]
        b, i, j, _, m = modulations.shape
        grid = modulations.reshape(b, i, j, self.upsampling, self.upsampling, m).swapaxes(2, 3)
        grid = grid.reshape(b, *self.sub_cell_grid, m)
        axes = [coordinates.pixel_centers(size) for size in shape]
        if self.interpolation == "nearest":
            rows, columns = map(coordinates.nearest_index, axes, self.sub_cell_grid)
            return grid[:, rows][:, :, columns]
        row_weights, column_weights = map(
            coordinates.interpolation_matrix, axes, self.sub_cell_grid
        )
        grid = jnp.einsum("wj,bijk->biwk", column_weights, grid)
        return jnp.einsum("hi,biwk->bhwk", row_weights, grid)

    def orthonormalize(self, grid: jax.Array) -> jax.Array:
        """Transforms a latent grid [b, i, j, k] to the basis in which interpolation is an isometry.

        The transform is symmetric, hence its own transpose. It is the identity for nearest
        interpolation; for bilinear see coordinates.orthonormalizer. The sub-cells of a
        cell are assumed to have equal weights, as they have at initialization.
        """
        if self.interpolation == "nearest":
            return grid
        rows, columns = (
            coordinates.orthonormalizer(
                coordinates.pixel_centers(size), cells, parts=self.upsampling
            )
            for size, cells in zip(self.image_shape[:2], self.latent_shape[:2], strict=True)
        )
        return jnp.einsum("ai,cj,bijk->back", rows, columns, grid)

    def to_image(self, values: jax.Array, shape: tuple[int, int]) -> jax.Array:
        """Converts values from the layout of `shape` to images [b, H, W, c]."""
        if not self.has_cell_layout(shape):
            return values
        u = self.upsampling
        b, i, j, _, _, c = values.shape
        p, q = shape[0] // (i * u), shape[1] // (j * u)
        values = values.reshape(b, i, j, u, u, p, q, c)
        return values.transpose(0, 1, 3, 5, 2, 4, 6, 7).reshape(b, *shape, c)

    def to_layout(self, images: Images) -> Images:
        """Converts images [b, h, w, c] to the layout of their shape; the inverse of `to_image`."""
        b, h, w, c = images.shape
        if not self.has_cell_layout((h, w)):
            return images
        u, (i, j, _) = self.upsampling, self.latent_shape
        p, q = h // (i * u), w // (j * u)
        images = images.reshape(b, i, u, p, j, u, q, c)
        return images.transpose(0, 1, 4, 2, 5, 3, 6, 7).reshape(b, i, j, u * u, p * q, c)

    def pixel_features(self, shape: tuple[int, int]) -> np.ndarray:
        """Input features of all pixels of an image of `shape`: [H, W, f] float32."""
        rows, columns = (coordinates.pixel_centers(size) for size in shape)
        return coordinates.grid_features(
            self.coordinates,
            rows,
            columns,
            cells=self.latent_shape[:2],
            pixels=self.image_shape[:2],
        )

    def layout_features(self, shape: tuple[int, int]) -> np.ndarray:
        """Input features in the layout of `shape`, without a batch axis.

        Returns:
          [s, n, f] if all cells have the same features, else [i, j, s, n, f] or [H, W, f].
        """
        features = self.pixel_features(shape)
        if not self.has_cell_layout(shape):
            return features
        cells = self.to_layout(features[None])[0]
        return cells[0, 0] if self.cells_are_alike else cells
