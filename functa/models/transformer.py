"""Pre-LN transformer blocks over a sequence of vectors, for classifiers and denoisers.

Every matrix is a two-dimensional parameter named "kernel", which weight decay and optimizers of
matrices (Muon) look for.

Two settings serve large models. They change no parameter, so checkpoints fit with any value.
`dtype` is the type of the matrix products inside blocks, "float32" or "bfloat16"; parameters, norms,
softmax, the first and last layer and the values between blocks stay float32 (Micikevicius et al.
2018, "Mixed Precision Training"). `remat` stores only the input of a block and recomputes the rest
in the backward pass (Chen et al. 2016, arXiv 1604.06174).
"""

import functools

import jax
import jax.numpy as jnp
from flax import linen as nn


def maybe_remat(block: type[nn.Module], *, remat: bool) -> type[nn.Module]:
    """`block`, rematerialized in the backward pass if `remat`."""
    return nn.remat(block) if remat else block


def drop_path_rates(drop_path: float, blocks: int) -> list[float]:
    """Drop probability of each block's branches, linear from 0 (first) to `drop_path` (last).

    Source: Huang et al. 2016, "Deep Networks with Stochastic Depth", section 3.
    """
    return [drop_path * number / max(blocks - 1, 1) for number in range(blocks)]


def dot_product_attention(query: jax.Array, key: jax.Array, value: jax.Array) -> jax.Array:
    """Scaled dot-product attention: [b, n, heads, k] each, of one dtype -> [b, n, heads, k].

    The products have the dtype of the inputs, the softmax is float32. jax.nn.dot_product_attention
    is not used: it mixes float32 and bfloat16 in the backward pass, and its cuDNN implementation
    supports some head sizes and devices only, which cannot be queried when a program is compiled for
    other devices. The scores of a latent grid are small.
    """
    scores = jnp.einsum("bnhk,bmhk->bhnm", query, key).astype(jnp.float32)
    weights = nn.softmax(scores / query.shape[-1] ** 0.5)
    return jnp.einsum("bhnm,bmhk->bnhk", weights.astype(value.dtype), value)


class SelfAttention(nn.Module, kw_only=True):
    """Multi-head self-attention.

    Attributes:
      heads: number of heads; divides the width of the input.
      dtype: of the matrix products.
    """

    heads: int
    dtype: str

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """x [b, n, width] float32 -> [b, n, width] float32.

        Raises:
          ValueError: `heads` does not divide the width.
        Source: Vaswani et al. 2017, section 3.2.2.
        """
        b, n, width = x.shape
        if self.heads < 1 or width % self.heads:
            raise ValueError(f"heads={self.heads} must divide the width {width}")
        projected = nn.Dense(3 * width, dtype=self.dtype, name="query_key_value")(x)
        split = projected.reshape(b, n, 3, self.heads, width // self.heads)
        attended = dot_product_attention(split[:, :, 0], split[:, :, 1], split[:, :, 2])
        output = nn.Dense(width, dtype=self.dtype, name="output")
        return output(attended.reshape(b, n, width)).astype(jnp.float32)


class FeedForward(nn.Module, kw_only=True):
    """Two linear layers with a GELU between them, applied to every position.

    Attributes:
      mlp_width: width of the hidden layer.
      dtype: of the matrix products.
    """

    mlp_width: int
    dtype: str

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """x [..., width] float32 -> [..., width] float32."""
        hidden = nn.gelu(nn.Dense(self.mlp_width, dtype=self.dtype, name="hidden")(x))
        output = nn.Dense(x.shape[-1], dtype=self.dtype, name="output")
        return output(hidden).astype(jnp.float32)


class Block(nn.Module, kw_only=True):
    """Pre-LN transformer block: x + attention(norm(x)), then x + feed_forward(norm(x)).

    In training, each branch of an example is dropped with probability `drop_path`.
    Source: Xiong et al. 2020, "On Layer Normalization in the Transformer Architecture", figure 1b.
    """

    heads: int
    mlp_width: int
    drop_path: float
    dtype: str
    train: bool

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """x [b, n, width] float32 -> [b, n, width] float32."""
        drop_path = functools.partial(
            nn.Dropout, self.drop_path, broadcast_dims=(1, 2), deterministic=not self.train
        )
        attention = SelfAttention(heads=self.heads, dtype=self.dtype, name="attention")
        x = x + drop_path()(attention(nn.LayerNorm(name="attention_norm")(x)))
        feed_forward = FeedForward(mlp_width=self.mlp_width, dtype=self.dtype, name="feed_forward")
        return x + drop_path()(feed_forward(nn.LayerNorm(name="feed_forward_norm")(x)))


class Transformer(nn.Module, kw_only=True):
    """`depth` pre-LN blocks and a final norm."""

    depth: int
    heads: int
    mlp_width: int
    drop_path: float
    remat: bool
    dtype: str

    @nn.compact
    def __call__(self, x: jax.Array, *, train: bool) -> jax.Array:
        """x [b, n, width] float32 -> [b, n, width] float32."""
        block = maybe_remat(Block, remat=self.remat)
        for number, rate in enumerate(drop_path_rates(self.drop_path, self.depth)):
            x = block(
                heads=self.heads,
                mlp_width=self.mlp_width,
                drop_path=rate,
                dtype=self.dtype,
                train=train,
                name=f"block_{number}",
            )(x)
        return nn.LayerNorm(name="norm")(x)
