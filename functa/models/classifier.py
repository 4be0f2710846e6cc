"""Classifiers of latents: a residual MLP, a transformer with a CLS token, a small ConvNeXt.

All map normalized latents [b, i, j, d] float32 to logits [b, num_classes] float32. With `train=True`
dropout and drop-path use the key of `apply(..., rngs={"dropout": key})`. `remat` and `dtype` are
those of functa/models/transformer.py.
"""

import re
from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn

from functa.models import transformer
from functa.models.patchify import patchify
from functa.models.settings import make_network

POSITION_STD = 0.02  # of initial position embeddings, as in ViT


class Mlp(nn.Module, kw_only=True):
    """Residual MLP on the flattened latents."""

    num_classes: int
    width: int
    depth: int
    dropout: float

    @nn.compact
    def __call__(self, latents: jax.Array, *, train: bool) -> jax.Array:
        x = nn.Dense(self.width, name="embedding")(latents.reshape(latents.shape[0], -1))
        for number in range(self.depth):
            hidden = nn.LayerNorm(name=f"norm_{number}")(x)
            hidden = nn.gelu(nn.Dense(self.width, name=f"hidden_{number}")(hidden))
            hidden = nn.Dropout(self.dropout)(hidden, deterministic=not train)
            x = x + nn.Dense(self.width, name=f"output_{number}")(hidden)
        return Head(num_classes=self.num_classes, dropout=self.dropout, name="head")(
            nn.LayerNorm(name="norm")(x), train=train
        )


class TransformerClassifier(nn.Module, kw_only=True):
    """Pre-LN transformer over patches of patch x patch cells; the head reads the CLS token.

    Source: Bauer et al. 2023 as described by LH-NeF, with dropout before the head only; patches and
    large sizes: Dosovitskiy et al. 2021.
    """

    num_classes: int
    patch: int
    width: int
    depth: int
    heads: int
    mlp_width: int
    drop_path: float
    dropout: float
    remat: bool
    dtype: str

    @nn.compact
    def __call__(self, latents: jax.Array, *, train: bool) -> jax.Array:
        """Raises ValueError if the patch does not divide the grid."""
        tokens = patchify(latents, self.patch)
        b, rows, columns, k = tokens.shape
        x = nn.Dense(self.width, name="embedding")(tokens.reshape(b, rows * columns, k))
        init = nn.initializers.normal(POSITION_STD)
        x = x + self.param("position", init, (1, rows * columns, self.width))
        cls = self.param("cls", nn.initializers.zeros, (1, 1, self.width))
        x = jnp.concatenate([jnp.broadcast_to(cls, (b, 1, self.width)), x], axis=1)
        x = transformer.Transformer(
            depth=self.depth,
            heads=self.heads,
            mlp_width=self.mlp_width,
            drop_path=self.drop_path,
            remat=self.remat,
            dtype=self.dtype,
            name="transformer",
        )(x, train=train)
        return Head(num_classes=self.num_classes, dropout=self.dropout, name="head")(
            x[:, 0], train=train
        )


class ConvNext(nn.Module, kw_only=True):
    """Stages of ConvNeXt blocks with downsampling by 2 between them, global mean pooling, head.

    Source: Liu et al. 2022, "A ConvNet for the 2020s". Deviations: 3x3 depthwise kernels, because
    latent grids are small; no layer scale, because the networks are 4 to 10 times shallower.
    """

    num_classes: int
    widths: tuple[int, ...]
    depths: tuple[int, ...]
    drop_path: float
    dropout: float
    remat: bool
    dtype: str

    @nn.compact
    def __call__(self, latents: jax.Array, *, train: bool) -> jax.Array:
        x = nn.Dense(self.widths[0], name="embedding")(latents)
        x = nn.LayerNorm(name="embedding_norm")(x)
        rates = transformer.drop_path_rates(self.drop_path, sum(self.depths))
        block = transformer.maybe_remat(ConvNextBlock, remat=self.remat)
        for stage, (width, depth) in enumerate(zip(self.widths, self.depths, strict=True)):
            if stage > 0:
                x = nn.LayerNorm(name=f"downsample_norm_{stage}")(x)
                downsample = nn.Conv(
                    width, (2, 2), strides=(2, 2), dtype=self.dtype, name=f"downsample_{stage}"
                )
                x = downsample(x).astype(jnp.float32)
            for number in range(depth):
                hidden = block(dtype=self.dtype, name=f"block_{stage}_{number}")(x)
                drop_path = nn.Dropout(rates.pop(0), broadcast_dims=(1, 2, 3))
                x = x + drop_path(hidden, deterministic=not train)
        x = nn.LayerNorm(name="norm")(jnp.mean(x, axis=(1, 2)))
        return Head(num_classes=self.num_classes, dropout=self.dropout, name="head")(x, train=train)


class ConvNextBlock(nn.Module, kw_only=True):
    """Residual branch of a ConvNeXt block: depthwise 3x3, norm, feed-forward of four times the width."""

    dtype: str

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """x [b, i, j, width] float32 -> [b, i, j, width]."""
        width = x.shape[-1]
        x = Depthwise3x3(name="depthwise")(x)
        x = nn.LayerNorm(name="norm")(x)
        feed_forward = transformer.FeedForward(
            mlp_width=4 * width, dtype=self.dtype, name="feed_forward"
        )
        return feed_forward(x)


class Depthwise3x3(nn.Module, kw_only=True):
    """Depthwise 3x3 convolution in float32, zero-padded, stride 1.

    Equal to `nn.Conv(width, (3, 3), feature_group_count=width)`, whose grouped convolution is 3 to
    14 times slower on a CPU at these sizes.
    """

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """x [b, i, j, width] float32 -> [b, i, j, width]."""
        i, j, width = x.shape[1:]
        # The fan-in of a depthwise kernel is 9.
        kernel = self.param("kernel", nn.initializers.normal(1 / 3), (3, 3, width))
        bias = self.param("bias", nn.initializers.zeros, (width,))
        padded = jnp.pad(x, ((0, 0), (1, 1), (1, 1), (0, 0)))
        shifts = ((row, column) for row in range(3) for column in range(3))
        products = (
            padded[:, row : row + i, column : column + j] * kernel[row, column][None, None, None]
            for row, column in shifts
        )
        return sum(products, start=bias[None, None, None])


class Head(nn.Module, kw_only=True):
    """Dropout and a linear layer that is initialized to zero: training starts at uniform probabilities."""

    num_classes: int
    dropout: float

    @nn.compact
    def __call__(self, x: jax.Array, *, train: bool) -> jax.Array:
        """x [b, width] float32 -> logits [b, num_classes] float32."""
        x = nn.Dropout(self.dropout)(x, deterministic=not train)
        return nn.Dense(self.num_classes, kernel_init=nn.initializers.zeros, name="logits")(x)


CLASSIFIERS: dict[str, type[nn.Module]] = {
    "mlp": Mlp,
    "transformer": TransformerClassifier,
    "convnext": ConvNext,
}


def make_classifier(*, name: str, num_classes: int, **settings: Any) -> nn.Module:
    """Returns the classifier `name`: mlp, transformer or convnext.

    Returns:
      A module; apply({"params": params}, latents [b, i, j, d], train=False) gives logits
      [b, num_classes].
    Raises:
      TypeError, ValueError: see `settings.make_network`.
    """
    return make_network(CLASSIFIERS, name, {"num_classes": num_classes, **settings})


def decay_mask(params: Any) -> Any:
    """True for parameters with weight decay: kernels; not biases, norms, CLS token and positions."""
    return jax.tree_util.tree_map_with_path(lambda path, _: path[-1].key == "kernel", params)


def layer_lr_scales(params: Any, *, decay: float) -> Any:
    """Factors of the learning rate for layer-wise decay, for classifiers made of blocks.

    Returns:
      A pytree of floats like `params`: 1 for the last norm and the head, decay for the last block,
      decay^2 for the block before it, ..., decay^(blocks + 1) for embeddings. Downsampling layers
      belong to the block after them.
    Raises:
      ValueError: the model has no blocks.
    Source: Clark et al. 2020 ("ELECTRA"), with the layers of BEiT and MAE.
    """
    paths = [path for path, _ in jax.tree_util.tree_leaves_with_path(params)]
    blocks = sorted({block for path in paths if (block := _block(path)) is not None})
    if not blocks:
        raise ValueError(
            f"optimizer.layer_decay={decay} needs a model with blocks: transformer or convnext"
        )

    def scale(path, _) -> float:
        block = _block(path)
        if block is not None:
            return decay ** (len(blocks) - blocks.index(block))
        return 1.0 if {key.key for key in path} & {"norm", "head"} else decay ** (len(blocks) + 1)

    return jax.tree_util.tree_map_with_path(scale, params)


_BLOCK_NAME = re.compile(r"(?:block|downsample|downsample_norm)_(\d+)(?:_(\d+))?")


def _block(path: tuple[Any, ...]) -> tuple[int, int] | None:
    """Position of a parameter's block: (number, 0) or (stage, number); None outside of blocks."""
    for key in path:
        if match := _BLOCK_NAME.fullmatch(key.key):
            return int(match[1]), int(match[2] or 0)
    return None
