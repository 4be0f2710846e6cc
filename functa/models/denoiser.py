"""Denoisers of latents: a transformer (DiT), a small U-Net, a residual MLP.

All map (inputs [b, i, j, d] float32, condition [b] float32, labels [b] int32) to [b, i, j, d]
float32: a `Network` of functa/diffusion/parameterization.py. The condition is a function of the noise
level, about -2 to 2. The label num_classes stands for an unknown class. Initially the output is zero,
and every residual branch is zero. `remat` and `dtype` are those of functa/models/transformer.py; the
condition embedding and the layers that read it are always float32.
"""

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn

from functa.models import transformer
from functa.models.patchify import patchify, unpatchify
from functa.models.settings import GROUPS, make_network

# Standard deviation of initial class embeddings. With 0.02 as in DiT, the noise level dominates early
# training: with Adam, 71 % of generated digits had the requested class after 400 steps, 91 % with a
# standard deviation of 1. With Muon it is 92 % for both.
CLASS_EMBEDDING_STD = 0.2
# Radians per unit of the condition. The highest frequency resolves 0.01, the lowest is monotone.
FREQUENCIES = np.geomspace(0.5, 100.0, 64).astype(np.float32)


class ConditionEmbedding(nn.Module, kw_only=True):
    """Embedding of the noise level and the class.

    Source: Peebles and Xie 2023, section 3.2; deviation: frequencies for a condition of order one.
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
        # The leading axis keeps optimizers of matrices (Muon) away from this lookup table.
        init = nn.initializers.normal(CLASS_EMBEDDING_STD)
        classes = self.param("classes", init, (1, self.num_classes + 1, self.width))
        return nn.silu(level + classes[0][labels])


class Modulation(nn.Module, kw_only=True):
    """`count` vectors of size `width` computed from the embedding, initially zero."""

    count: int
    width: int

    @nn.compact
    def __call__(self, embedding: jax.Array) -> list[jax.Array]:
        """embedding [b, k] -> list of `count` arrays [b, 1, width]."""
        dense = nn.Dense(self.count * self.width, kernel_init=nn.initializers.zeros, name="dense")
        return jnp.split(dense(embedding)[:, None], self.count, axis=-1)


class AdaptiveResidual(nn.Module, kw_only=True):
    """adaLN-Zero: x + gate * branch(norm(x) * (1 + scale) + shift).

    Gate, scale and shift are linear functions of the embedding.

    Source: Peebles and Xie 2023, section 3.2.
    """

    branch: nn.Module

    @nn.compact
    def __call__(self, x: jax.Array, embedding: jax.Array) -> jax.Array:
        """x [b, n, width], embedding [b, k] -> [b, n, width]."""
        shift, scale, gate = Modulation(count=3, width=x.shape[-1], name="modulation")(embedding)
        normal = nn.LayerNorm(use_bias=False, use_scale=False, name="norm")(x)
        return x + gate * self.branch(normal * (1 + scale) + shift)


class OutputLayer(nn.Module, kw_only=True):
    """Modulated norm and a linear layer that is initialized to zero."""

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

    Source: Peebles and Xie 2023 ("DiT"), figure 3; deviation: the position embeddings are learned and
    start from sines and cosines.
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
        """Raises ValueError if the patch does not divide the grid."""
        tokens = patchify(inputs, self.patch)
        rows, columns = tokens.shape[1:3]
        embedding = ConditionEmbedding(
            num_classes=self.num_classes, width=self.width, name="embedding"
        )(condition, labels)
        x = nn.Dense(self.width, name="patches")(tokens.reshape(len(inputs), rows * columns, -1))
        x = x + self.param("position", lambda _: sine_positions(rows, columns, self.width)[None])
        adaptive = transformer.maybe_remat(AdaptiveResidual, remat=self.remat)
        for number in range(self.depth):
            attention = transformer.SelfAttention(
                heads=self.heads, dtype=self.dtype, name=f"attention_{number}"
            )
            x = adaptive(branch=attention, name=f"adaptive_attention_{number}")(x, embedding)
            feed = transformer.FeedForward(
                mlp_width=self.mlp_width, dtype=self.dtype, name=f"feed_forward_{number}"
            )
            x = adaptive(branch=feed, name=f"adaptive_feed_forward_{number}")(x, embedding)
        x = OutputLayer(outputs=tokens.shape[-1], name="output")(x, embedding)
        return unpatchify(x.reshape(len(inputs), rows, columns, -1), self.patch)


class Mlp(nn.Module, kw_only=True):
    """Residual MLP on the flattened latents, for grids of one or a few cells.

    With a width below i * j * d the output cannot represent noise in all directions; use the
    prediction "x" then.
    Source: the feed-forward layers of DiT on one token.
    """

    num_classes: int
    width: int
    depth: int
    mlp_width: int

    @nn.compact
    def __call__(self, inputs: jax.Array, condition: jax.Array, labels: jax.Array) -> jax.Array:
        flat = inputs.reshape(len(inputs), 1, -1)
        embedding = ConditionEmbedding(
            num_classes=self.num_classes, width=self.width, name="embedding"
        )(condition, labels)
        x = nn.Dense(self.width, name="latents")(flat)
        for number in range(self.depth):
            feed = transformer.FeedForward(
                mlp_width=self.mlp_width, dtype="float32", name=f"feed_forward_{number}"
            )
            x = AdaptiveResidual(branch=feed, name=f"adaptive_feed_forward_{number}")(x, embedding)
        return OutputLayer(outputs=flat.shape[-1], name="output")(x, embedding).reshape(
            inputs.shape
        )


class UNet(nn.Module, kw_only=True):
    """U-Net: residual convolutions at every resolution, self-attention at the coarsest.

    Resolution k has widths[k] channels and depths[k] blocks in each of the encoder and the decoder.
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
        """Raises ValueError if the grid cannot be halved len(widths) - 1 times."""
        i, j, d = inputs.shape[1:]
        smallest = 2 ** (len(self.widths) - 1)
        if i % smallest or j % smallest:
            raise ValueError(
                f"{len(self.widths)} widths need a latent grid that is a multiple of {smallest}, not "
                f"{i}x{j}"
            )
        embedding = ConditionEmbedding(
            num_classes=self.num_classes, width=self.widths[0], name="embedding"
        )(condition, labels)
        last = len(self.widths) - 1
        block = functools.partial(
            transformer.maybe_remat(ResidualBlock, remat=self.remat), dtype=self.dtype
        )
        convolution = functools.partial(Convolution, dtype="float32")
        x = convolution(outputs=self.widths[0], name="latents")(inputs)
        skips = []
        for level, (width, depth) in enumerate(zip(self.widths, self.depths, strict=True)):
            if level > 0:
                halve = nn.Dense(width, dtype=self.dtype, name=f"halve_{level}")
                x = halve(patchify(x, 2)).astype(jnp.float32)
            for number in range(depth):
                x = block(width=width, name=f"down_{level}_{number}")(x, embedding)
                skips.append(x)
        tokens = x.reshape(len(x), -1, self.widths[-1])
        attention = transformer.SelfAttention(heads=self.heads, dtype=self.dtype, name="attention")
        adaptive = transformer.maybe_remat(AdaptiveResidual, remat=self.remat)
        x = adaptive(branch=attention, name="adaptive_attention")(tokens, embedding).reshape(
            x.shape
        )
        for level in range(last, -1, -1):
            width = self.widths[level]
            if level < last:
                double = nn.Dense(4 * width, dtype=self.dtype, name=f"double_{level}")
                x = unpatchify(double(x).astype(jnp.float32), 2)
            for number in range(self.depths[level]):
                x = jnp.concatenate([x, skips.pop()], axis=-1)
                x = block(width=width, name=f"up_{level}_{number}")(x, embedding)
        x = nn.silu(nn.GroupNorm(num_groups=GROUPS, name="norm")(x))
        return convolution(outputs=d, kernel_init=nn.initializers.zeros, name="output")(x)


class Convolution(nn.Module, kw_only=True):
    """Zero-padded 3x3 convolution. The kernel is one matrix [9 k, outputs], which suits Muon."""

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
        output = jax.lax.conv_general_dilated(
            x.astype(self.dtype),
            kernel.astype(self.dtype),
            (1, 1),
            "SAME",
            dimension_numbers=layout,
        )
        return output.astype(jnp.float32) + bias[None, None, None]


class ResidualBlock(nn.Module, kw_only=True):
    """x + convolution(adaptive norm(convolution(norm(x)))); the last convolution is initially zero."""

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
    """Position embeddings: sines and cosines of the row, then of the column.

    Args:
      width: a multiple of 4.
    Returns:
      [rows * columns, width] float32, with the frequencies 10000^(-k / (width / 4)).
    Source: Dosovitskiy et al. 2021 as used by Peebles and Xie 2023.
    """
    frequencies = 10000.0 ** (-np.arange(width // 4) / (width // 4))
    row, column = np.meshgrid(np.arange(rows), np.arange(columns), indexing="ij")
    halves = []
    for position in (row, column):
        phases = position.reshape(-1, 1) * frequencies[None]
        halves += [np.sin(phases), np.cos(phases)]
    return jnp.asarray(np.concatenate(halves, axis=-1), jnp.float32)


DENOISERS: dict[str, type[nn.Module]] = {"dit": Dit, "unet": UNet, "mlp": Mlp}


def make_denoiser(*, name: str, num_classes: int, **settings: Any) -> nn.Module:
    """Returns the denoiser `name`: dit, unet or mlp.

    Returns:
      A module; apply({"params": params}, inputs [b, i, j, d], condition [b], labels [b]) gives
      [b, i, j, d]. `init` and `apply` raise ValueError if the grid does not suit the network.
    Raises:
      TypeError, ValueError: see `settings.make_network`.
    """
    return make_network(DENOISERS, name, {"num_classes": num_classes, **settings})
