"""Denoisers of latents: a transformer (DiT), a small U-Net, a residual MLP.

All map (inputs [b, i, j, d] float32, condition [b] float32, labels [b] int32) to [b, i, j, d] float32: a `Network`
of functa/diffusion.py. The condition is what a frame tells of the noise level, a number of about -2 to 2; label
num_classes means "of any class". All say zero before training, and each of their branches adds nothing then.
`remat` and `dtype` are those of functa/transformer.py; what comes from the embedding is float32 with each.
"""

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn

from functa.models import transformer
from functa.models.patchify import cells, patches

# Standard deviation of fresh class embeddings. With DiT's 0.02 classes are drowned by the noise level at first: under
# Adam, digits were 71 % of the class asked for after 400 steps, and 91 % with 1. Muon has 92 % with each.
CLASS_SCALE = 0.2
# Radians per unit of the condition. The highest tells t from t + 0.01, the lowest is monotone over
# all levels.
FREQUENCIES = np.geomspace(0.5, 100.0, 64).astype(np.float32)
GROUPS = 8  # of channels, in the group norms of the U-Net


class Embedding(nn.Module, kw_only=True):
    """Noise level and class as one vector.

    Source: Peebles and Xie 2023, section 3.2; deviation: frequencies for conditions of size one.
    """

    num_classes: int
    width: int

    @nn.compact
    def __call__(self, condition: jax.Array, labels: jax.Array) -> jax.Array:
        """condition [b] float32, labels [b] int32 in [0, num_classes] -> [b, width] float32."""
        phases = condition[:, None] * FREQUENCIES[None]
        features = jnp.concatenate([jnp.cos(phases), jnp.sin(phases)], axis=-1)
        hidden = nn.silu(nn.Dense(self.width, name="hidden")(features))
        level = nn.Dense(self.width, name="output")(hidden)
        # A table, not a matrix: with a leading axis, optimisers of matrices let it be.
        fresh = nn.initializers.normal(CLASS_SCALE)
        classes = self.param("classes", fresh, (1, self.num_classes + 1, self.width))
        return nn.silu(level + classes[0][labels])


class Modulation(nn.Module, kw_only=True):
    """`count` vectors of `width` from the embedding, zero before training."""

    count: int
    width: int

    @nn.compact
    def __call__(self, embedding: jax.Array) -> list[jax.Array]:
        """embedding [b, k] -> [b, 1, width], `count` times."""
        dense = nn.Dense(self.count * self.width, kernel_init=nn.initializers.zeros, name="dense")
        return jnp.split(dense(embedding)[:, None], self.count, axis=-1)


class Adaptive(nn.Module, kw_only=True):
    """adaLN-zero: x + gate * branch(norm(x) * (1 + scale) + shift), all three from the embedding.

    Source: Peebles and Xie 2023, section 3.2.
    """

    branch: nn.Module

    @nn.compact
    def __call__(self, x: jax.Array, embedding: jax.Array) -> jax.Array:
        """x [b, n, width], embedding [b, k] -> [b, n, width]."""
        shift, scale, gate = Modulation(count=3, width=x.shape[-1], name="modulation")(embedding)
        normal = nn.LayerNorm(use_bias=False, use_scale=False, name="norm")(x)
        return x + gate * self.branch(normal * (1 + scale) + shift)


class Output(nn.Module, kw_only=True):
    """The last layer: modulated norm, then a linear map that starts at zero."""

    outputs: int

    @nn.compact
    def __call__(self, x: jax.Array, embedding: jax.Array) -> jax.Array:
        """x [b, n, width], embedding [b, k] -> [b, n, outputs]."""
        shift, scale = Modulation(count=2, width=x.shape[-1], name="modulation")(embedding)
        normal = nn.LayerNorm(use_bias=False, use_scale=False, name="norm")(x)
        dense = nn.Dense(self.outputs, kernel_init=nn.initializers.zeros, name="dense")
        return dense(normal * (1 + scale) + shift)


class Dit(nn.Module, kw_only=True):
    """Transformer over patches of patch x patch cells.

    Source: Peebles and Xie 2023 ("DiT"), figure 3; deviation: the sine-cosine positions are where learned
    ones begin.
    """

    num_classes: int
    patch: int
    width: int
    depth: int
    heads: int
    mlp_width: int
    remat: bool
    dtype: str

    @nn.compact
    def __call__(self, inputs: jax.Array, condition: jax.Array, labels: jax.Array) -> jax.Array:
        """Raises ValueError where the patch does not divide the grid."""
        tokens = patches(inputs, self.patch)
        rows, columns = tokens.shape[1:3]
        embedding = Embedding(num_classes=self.num_classes, width=self.width, name="embedding")(
            condition, labels
        )
        x = nn.Dense(self.width, name="patches")(tokens.reshape(len(inputs), rows * columns, -1))
        x = x + self.param("position", lambda _: sine_positions(rows, columns, self.width)[None])
        adaptive = transformer.recomputed(Adaptive, remat=self.remat)
        for number in range(self.depth):
            attention = transformer.SelfAttention(
                heads=self.heads, dtype=self.dtype, name=f"attention_{number}"
            )
            x = adaptive(branch=attention, name=f"adaptive_attention_{number}")(x, embedding)
            feed = transformer.FeedForward(
                mlp_width=self.mlp_width, dtype=self.dtype, name=f"feed_forward_{number}"
            )
            x = adaptive(branch=feed, name=f"adaptive_feed_forward_{number}")(x, embedding)
        x = Output(outputs=tokens.shape[-1], name="output")(x, embedding)
        return cells(x.reshape(len(inputs), rows, columns, -1), self.patch)


class Mlp(nn.Module, kw_only=True):
    """Residual MLP on the flattened latents, for grids of one cell or of few.

    A width below i * j * d lets it say noise in some directions only; then predict "x".
    Source: the feed-forward half of DiT, on one token.
    """

    num_classes: int
    width: int
    depth: int
    mlp_width: int

    @nn.compact
    def __call__(self, inputs: jax.Array, condition: jax.Array, labels: jax.Array) -> jax.Array:
        flat = inputs.reshape(len(inputs), 1, -1)
        embedding = Embedding(num_classes=self.num_classes, width=self.width, name="embedding")(
            condition, labels
        )
        x = nn.Dense(self.width, name="latents")(flat)
        for number in range(self.depth):
            feed = transformer.FeedForward(
                mlp_width=self.mlp_width, dtype="float32", name=f"feed_forward_{number}"
            )
            x = Adaptive(branch=feed, name=f"adaptive_feed_forward_{number}")(x, embedding)
        return Output(outputs=flat.shape[-1], name="output")(x, embedding).reshape(inputs.shape)


class UNet(nn.Module, kw_only=True):
    """Residual convolutions at every resolution, attention at the coarsest; the grid is halved between.

    widths[k] channels at the k-th resolution and depths[k] blocks there, on the way down and on the way up.
    Source: Ho et al. 2020, appendix B; adaptive group norm: Dhariwal and Nichol 2021, section 3.1.
    """

    num_classes: int
    widths: tuple[int, ...]
    depths: tuple[int, ...]
    heads: int
    remat: bool
    dtype: str

    @nn.compact
    def __call__(self, inputs: jax.Array, condition: jax.Array, labels: jax.Array) -> jax.Array:
        """Raises ValueError where the grid cannot be halved so often."""
        i, j, d = inputs.shape[1:]
        smallest = 2 ** (len(self.widths) - 1)
        if i % smallest or j % smallest:
            raise ValueError(
                f"widths={self.widths} halve the grid {len(self.widths) - 1} times, so {smallest} "
                f"must divide the latent grid {i}x{j}"
            )
        embedding = Embedding(num_classes=self.num_classes, width=self.widths[0], name="embedding")(
            condition, labels
        )
        last = len(self.widths) - 1
        block = functools.partial(
            transformer.recomputed(ResidualBlock, remat=self.remat), dtype=self.dtype
        )
        convolution = functools.partial(Convolution, dtype="float32")
        x = convolution(outputs=self.widths[0], name="latents")(inputs)
        skips = []
        for level, (width, depth) in enumerate(zip(self.widths, self.depths, strict=True)):
            if level > 0:
                halve = nn.Dense(width, dtype=self.dtype, name=f"halve_{level}")
                x = halve(patches(x, 2)).astype(jnp.float32)
            for number in range(depth):
                x = block(width=width, name=f"down_{level}_{number}")(x, embedding)
                skips.append(x)
        tokens = x.reshape(len(x), -1, self.widths[-1])
        attention = transformer.SelfAttention(heads=self.heads, dtype=self.dtype, name="attention")
        adaptive = transformer.recomputed(Adaptive, remat=self.remat)
        x = adaptive(branch=attention, name="adaptive_attention")(tokens, embedding).reshape(
            x.shape
        )
        for level in range(last, -1, -1):
            width = self.widths[level]
            if level < last:
                double = nn.Dense(4 * width, dtype=self.dtype, name=f"double_{level}")
                x = cells(double(x).astype(jnp.float32), 2)
            for number in range(self.depths[level]):
                x = jnp.concatenate([x, skips.pop()], axis=-1)
                x = block(width=width, name=f"up_{level}_{number}")(x, embedding)
        x = nn.silu(nn.GroupNorm(num_groups=GROUPS, name="norm")(x))
        return convolution(outputs=d, kernel_init=nn.initializers.zeros, name="output")(x)


class Convolution(nn.Module, kw_only=True):
    """3x3, zero-padded; its kernel is one matrix [9 k, outputs], which Muon moves as it moves the others."""

    outputs: int
    dtype: str
    kernel_init: nn.initializers.Initializer = nn.initializers.lecun_normal()

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """x [b, i, j, k] float32 -> [b, i, j, outputs] float32."""
        k = x.shape[-1]
        kernel = self.param("kernel", self.kernel_init, (9 * k, self.outputs))
        bias = self.param("bias", nn.initializers.zeros, (self.outputs,))
        kernel = kernel.reshape(3, 3, k, self.outputs)
        layout = ("NHWC", "HWIO", "NHWC")
        made = jax.lax.conv_general_dilated(
            x.astype(self.dtype),
            kernel.astype(self.dtype),
            (1, 1),
            "SAME",
            dimension_numbers=layout,
        )
        return made.astype(jnp.float32) + bias[None, None, None]


class ResidualBlock(nn.Module, kw_only=True):
    """x + convolution(adaptive norm(convolution(norm(x)))), the last convolution zero before training."""

    width: int
    dtype: str

    @nn.compact
    def __call__(self, x: jax.Array, embedding: jax.Array) -> jax.Array:
        """x [b, i, j, k], embedding [b, e] -> [b, i, j, width]."""
        convolution = functools.partial(Convolution, outputs=self.width, dtype=self.dtype)
        hidden = nn.silu(nn.GroupNorm(num_groups=GROUPS, name="norm")(x))
        hidden = convolution(name="hidden")(hidden)
        shift, scale = Modulation(count=2, width=self.width, name="modulation")(embedding)
        hidden = nn.GroupNorm(num_groups=GROUPS, name="adaptive_norm")(hidden)
        hidden = nn.silu(hidden * (1 + scale[:, None]) + shift[:, None])
        hidden = convolution(kernel_init=nn.initializers.zeros, name="output")(hidden)
        if x.shape[-1] != self.width:
            shortcut = nn.Dense(self.width, dtype=self.dtype, name="shortcut")
            x = shortcut(x).astype(jnp.float32)
        return x + hidden


def sine_positions(rows: int, columns: int, width: int) -> jax.Array:
    """Sines and cosines of the row in one half of the vector, of the column in the other.

    Returns:
      [rows * columns, width] float32; width divides by 4.
    Source: Dosovitskiy et al. 2021 as used by Peebles and Xie 2023; frequencies 10000^(-k / (width / 4)).
    """
    frequencies = 10000.0 ** (-np.arange(width // 4) / (width // 4))
    row, column = np.meshgrid(np.arange(rows), np.arange(columns), indexing="ij")
    halves = []
    for place in (row, column):
        phases = place.reshape(-1, 1) * frequencies[None]
        halves += [np.sin(phases), np.cos(phases)]
    return jnp.asarray(np.concatenate(halves, axis=-1), jnp.float32)


MODELS: dict[str, type[nn.Module]] = {"dit": Dit, "unet": UNet, "mlp": Mlp}


def make_denoiser(*, name: str, num_classes: int, **rest: Any) -> nn.Module:
    """The denoiser `name` (dit, unet, mlp) with the rest of its keys.

    Returns:
      A module whose `apply({"params": params}, inputs [b, i, j, d], condition [b], labels [b])` gives
      [b, i, j, d]; `init` and `apply` raise ValueError where the grid does not suit it.
    Raises:
      TypeError: a key that this model does not have, or one that is missing.
      ValueError: an unknown name or impossible values; the message lists all of them.
    """
    if name not in MODELS:
        raise ValueError(f"unknown denoiser {name!r}; known are {', '.join(MODELS)}")
    model = MODELS[name](num_classes=num_classes, **rest)
    problems = _problems(name, num_classes=num_classes, **rest)
    if problems:
        raise ValueError(f"the denoiser {name} cannot be built: " + "; ".join(problems))
    return model


def _problems(name: str, **values: Any) -> list[str]:
    """What is wrong with a model's keys, whichever of them it has."""
    problems = transformer.dtype_problems(values)
    for key in ("num_classes", "patch", "width", "depth", "heads", "mlp_width"):
        if key in values and values[key] < 1:
            problems.append(f"{key}={values[key]} must be at least 1")
    if name == "dit" and values["width"] % 4:
        problems.append(
            f"width={values['width']} must divide by 4, for positions in two dimensions"
        )
    widths, depths = values.get("widths", (GROUPS,)), values.get("depths", (1,))
    if not widths or len(widths) != len(depths):
        problems.append(f"widths={widths} and depths={depths} need one entry a resolution each")
    if not all(isinstance(entry, int) and entry > 0 for entry in (*widths, *depths)):
        problems.append(f"widths={widths} and depths={depths} must be whole numbers of at least 1")
    elif any(width % GROUPS for width in widths):
        problems.append(f"widths={widths} must divide by {GROUPS}, the groups of their norms")
    attended = values.get("width", widths[-1] if widths else 0)
    if "heads" in values and attended % max(values["heads"], 1):
        problems.append(f"the width {attended} must divide by heads={values['heads']}")
    return problems
