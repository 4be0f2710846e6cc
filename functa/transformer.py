"""Pre-LN transformer blocks over a sequence of vectors, for classifiers and denoisers.

Every matrix is stored as a two-dimensional "kernel", so that weight decay and the optimisers which
look at matrices (Muon) see what they expect.
"""

import jax
from flax import linen as nn


class SelfAttention(nn.Module, kw_only=True):
    """Multi-head self-attention.

    Attributes:
      heads: number of heads; divides the width of the input.
    """

    heads: int

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """x [b, n, width] float32 -> [b, n, width].

        Raises:
          ValueError: `heads` does not divide the width.
        Source: Vaswani et al. 2017, section 3.2.2.
        """
        batch, length, width = x.shape
        if self.heads < 1 or width % self.heads:
            raise ValueError(f"width={width} must divide by heads={self.heads}")
        projected = nn.Dense(3 * width, name="query_key_value")(x)
        split = projected.reshape(batch, length, 3, self.heads, width // self.heads)
        mixed = jax.nn.dot_product_attention(split[:, :, 0], split[:, :, 1], split[:, :, 2])
        return nn.Dense(width, name="output")(mixed.reshape(batch, length, width))


class FeedForward(nn.Module, kw_only=True):
    """Two linear layers with GELU between them, at every position alike.

    Attributes:
      mlp_width: width of the hidden layer.
    """

    mlp_width: int

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """x [..., width] float32 -> [..., width]."""
        hidden = nn.gelu(nn.Dense(self.mlp_width, name="hidden")(x))
        return nn.Dense(x.shape[-1], name="output")(hidden)


class Block(nn.Module, kw_only=True):
    """One pre-LN transformer block: x + attention(norm(x)), then x + feed_forward(norm(x)).

    Source: Xiong et al. 2020, "On Layer Normalization in the Transformer Architecture", figure 1b.
    """

    heads: int
    mlp_width: int

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """x [b, n, width] float32 -> [b, n, width]."""
        x = x + SelfAttention(heads=self.heads, name="attention")(
            nn.LayerNorm(name="attention_norm")(x)
        )
        return x + FeedForward(mlp_width=self.mlp_width, name="feed_forward")(
            nn.LayerNorm(name="feed_forward_norm")(x)
        )


class Transformer(nn.Module, kw_only=True):
    """`depth` blocks and the final norm that pre-LN needs."""

    depth: int
    heads: int
    mlp_width: int

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """x [b, n, width] float32 -> [b, n, width]."""
        for number in range(self.depth):
            x = Block(heads=self.heads, mlp_width=self.mlp_width, name=f"block_{number}")(x)
        return nn.LayerNorm(name="norm")(x)
