"""Pre-LN transformer blocks over a sequence of vectors, for classifiers and denoisers.

Every matrix is stored as a two-dimensional "kernel", so that weight decay and the optimisers which
look at matrices (Muon) see what they expect.

Two keys are for large models and change no parameter, so that a checkpoint fits with and without them.
`dtype` is what the matrix products of blocks are computed in, "float32" or "bfloat16". Parameters, norms, softmax,
the first and the last layer and what blocks hand on are float32 with both (Micikevicius et al. 2018, "Mixed Precision
Training"). `remat` keeps of a block only what goes in, and computes the rest again on the way back (Chen et al. 2016,
arXiv 1604.06174): the same numbers in less memory, for a second forward pass.
"""

import functools
from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn

DTYPES = ("float32", "bfloat16")


def recomputed(block: type[nn.Module], *, remat: bool) -> type[nn.Module]:
    """`block` itself, or where `remat` the same one that is computed again on the way back."""
    return nn.remat(block) if remat else block


def drop_rates(drop_path: float, blocks: int) -> list[float]:
    """How often the branches of each block are dropped: linearly from 0 at the first to `drop_path` at the last.

    Source: Huang et al. 2016, "Deep Networks with Stochastic Depth", section 3.
    """
    return [drop_path * number / max(blocks - 1, 1) for number in range(blocks)]


def dtype_problems(values: dict[str, Any]) -> list[str]:
    """What is wrong with the key `dtype` of a model, where it has one."""
    dtype = values.get("dtype", DTYPES[0])
    return [] if dtype in DTYPES else [f"dtype={dtype!r}: known are {', '.join(DTYPES)}"]


def attend(query: jax.Array, key: jax.Array, value: jax.Array) -> jax.Array:
    """[b, n, heads, k] each, of one dtype -> [b, n, heads, k]: values weighted by the softmax of q k / sqrt(k).

    Products are of that dtype, the softmax is float32. Written out, because jax.nn.dot_product_attention multiplies
    float32 by bfloat16 on the way back. Its cuDNN implementation, which was not run, wants bfloat16, some sizes of
    heads and some cards; what it does not want is refused while a program is compiled, and where that is for other
    devices (functa plan --compile) tracing cannot ask which. For the hundreds of tokens of a latent grid the scores
    are small.
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
        batch, length, width = x.shape
        if self.heads < 1 or width % self.heads:
            raise ValueError(f"width={width} must divide by heads={self.heads}")
        projected = nn.Dense(3 * width, dtype=self.dtype, name="query_key_value")(x)
        split = projected.reshape(batch, length, 3, self.heads, width // self.heads)
        mixed = attend(split[:, :, 0], split[:, :, 1], split[:, :, 2])
        output = nn.Dense(width, dtype=self.dtype, name="output")
        return output(mixed.reshape(batch, length, width)).astype(jnp.float32)


class FeedForward(nn.Module, kw_only=True):
    """Two linear layers with GELU between them, at every position alike.

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
    """One pre-LN transformer block: x + attention(norm(x)), then x + feed_forward(norm(x)).

    With `train`, each of the two branches of an example is left out with probability `drop_path`.
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
        kept = functools.partial(
            nn.Dropout, self.drop_path, broadcast_dims=(1, 2), deterministic=not self.train
        )
        attention = SelfAttention(heads=self.heads, dtype=self.dtype, name="attention")
        x = x + kept()(attention(nn.LayerNorm(name="attention_norm")(x)))
        feed_forward = FeedForward(mlp_width=self.mlp_width, dtype=self.dtype, name="feed_forward")
        return x + kept()(feed_forward(nn.LayerNorm(name="feed_forward_norm")(x)))


class Transformer(nn.Module, kw_only=True):
    """`depth` blocks and the final norm that pre-LN needs."""

    depth: int
    heads: int
    mlp_width: int
    drop_path: float
    remat: bool
    dtype: str

    @nn.compact
    def __call__(self, x: jax.Array, *, train: bool) -> jax.Array:
        """x [b, n, width] float32 -> [b, n, width] float32."""
        block = recomputed(Block, remat=self.remat)
        for number, rate in enumerate(drop_rates(self.drop_path, self.depth)):
            x = block(
                heads=self.heads,
                mlp_width=self.mlp_width,
                drop_path=rate,
                dtype=self.dtype,
                train=train,
                name=f"block_{number}",
            )(x)
        return nn.LayerNorm(name="norm")(x)
