"""Classifiers of latents: a residual MLP, a transformer with CLS token, a small ConvNeXt.

All map normalised latents [b, i, j, d] float32 to logits [b, num_classes] float32. With
`train=True` dropout and drop-path draw from the key of `apply(..., rngs={"dropout": key})`.
`remat` and `dtype` are those of functa/transformer.py.
"""

import re
from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn

from functa.models import transformer
from functa.models.patchify import patches

POSITION_SCALE = 0.02  # standard deviation of fresh position embeddings, as in ViT


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
    """Pre-LN transformer over patches of patch x patch cells; the CLS token's last state is classified.

    Source: Bauer et al. 2023 as restated by LH-NeF: dropout before the head only; patches and sizes of large ones:
    Dosovitskiy et al. 2021.
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
        """Raises ValueError where the patch does not divide the grid."""
        tokens = patches(latents, self.patch)
        b, rows, columns, k = tokens.shape
        x = nn.Dense(self.width, name="embedding")(tokens.reshape(b, rows * columns, k))
        fresh = nn.initializers.normal(POSITION_SCALE)
        x = x + self.param("position", fresh, (1, rows * columns, self.width))
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
    """Stages of ConvNeXt blocks, halving the grid between them; mean over the cells, then the head.

    Source: Liu et al. 2022, "A ConvNet for the 2020s"; deviations: 3x3 depthwise kernels (a latent
    grid is small), no layer scale (its networks are 4 to 10 times deeper).
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
        rates = transformer.drop_rates(self.drop_path, sum(self.depths))
        block = transformer.recomputed(ConvNextBlock, remat=self.remat)
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
    """The branch of a ConvNeXt block: depthwise 3x3, norm, four times wider, GELU, back."""

    dtype: str

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """x [b, i, j, width] float32 -> [b, i, j, width]."""
        width = x.shape[-1]
        x = Depthwise3x3(name="depthwise")(x)  # no matrix product, and in float32
        x = nn.LayerNorm(name="norm")(x)
        feed_forward = transformer.FeedForward(
            mlp_width=4 * width, dtype=self.dtype, name="feed_forward"
        )
        return feed_forward(x)


class Depthwise3x3(nn.Module, kw_only=True):
    """A 3x3 convolution of every channel by itself, zero-padded, stride 1.

    Written as nine shifted products: the same function as `nn.Conv(width, (3, 3),
    feature_group_count=width)`, whose grouped convolution is 3 to 14 times slower on a CPU at
    these sizes.
    """

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """x [b, i, j, width] float32 -> [b, i, j, width]."""
        i, j, width = x.shape[1:]
        # the fan-in of a depthwise kernel is its nine positions
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
    """Dropout and a linear layer that starts at zero, so that training starts at uniform odds."""

    num_classes: int
    dropout: float

    @nn.compact
    def __call__(self, x: jax.Array, *, train: bool) -> jax.Array:
        """x [b, width] float32 -> logits [b, num_classes] float32."""
        x = nn.Dropout(self.dropout)(x, deterministic=not train)
        return nn.Dense(self.num_classes, kernel_init=nn.initializers.zeros, name="logits")(x)


MODELS: dict[str, type[nn.Module]] = {
    "mlp": Mlp,
    "transformer": TransformerClassifier,
    "convnext": ConvNext,
}


def make_model(*, name: str, num_classes: int, **rest: Any) -> nn.Module:
    """The classifier `name` (mlp, transformer, convnext) with the rest of its keys.

    Returns:
      A module whose `apply({"params": params}, latents [b, i, j, d], train=False)` gives logits
      [b, num_classes].
    Raises:
      TypeError: a key that this model does not have, or one that is missing.
      ValueError: an unknown name or impossible values; the message lists all of them.
    """
    if name not in MODELS:
        raise ValueError(f"unknown classifier {name!r}; known are {', '.join(MODELS)}")
    model = MODELS[name](num_classes=num_classes, **rest)
    problems = _problems(num_classes=num_classes, **rest)
    if problems:
        raise ValueError(f"the classifier {name} cannot be built: " + "; ".join(problems))
    return model


def decay_mask(params: Any) -> Any:
    """True for what weight decay may shrink: kernels; not biases, norms, CLS and positions."""
    return jax.tree_util.tree_map_with_path(lambda path, _: path[-1].key == "kernel", params)


def layer_rates(params: Any, *, decay: float) -> Any:
    """What the learning rate of each parameter is multiplied by, for classifiers made of blocks.

    Returns:
      A pytree of floats: 1 for the last norm and the head, decay for the last block, decay^2 for the one before it,
      ..., and decay^(blocks + 1) for embeddings. The halving of a grid goes with the block after it.
    Raises:
      ValueError: a model without blocks.
    Source: Clark et al. 2020 ("ELECTRA"), as BEiT and MAE count layers.
    """
    paths = [path for path, _ in jax.tree_util.tree_leaves_with_path(params)]
    blocks = sorted({block for path in paths if (block := _block(path)) is not None})
    if not blocks:
        raise ValueError(
            f"optimizer.layer_decay={decay} wants a model of blocks: transformer, convnext"
        )

    def rate(path, _) -> float:
        block = _block(path)
        if block is not None:
            return decay ** (len(blocks) - blocks.index(block))
        return 1.0 if {key.key for key in path} & {"norm", "head"} else decay ** (len(blocks) + 1)

    return jax.tree_util.tree_map_with_path(rate, params)


_BLOCK = re.compile(r"(?:block|downsample|downsample_norm)_(\d+)(?:_(\d+))?")


def _block(path: tuple[Any, ...]) -> tuple[int, int] | None:
    """The block that a parameter belongs to: numbers that grow with depth."""
    for key in path:
        if found := _BLOCK.fullmatch(key.key):
            return int(found[1]), int(found[2] or 0)
    return None


def _problems(**values: Any) -> list[str]:
    """What is wrong with a model's keys, whichever of them it has."""
    problems = transformer.dtype_problems(values)
    for key in ("num_classes", "patch", "width", "depth", "heads", "mlp_width"):
        if key in values and values[key] < 1:
            problems.append(f"{key}={values[key]} must be at least 1")
    for key in ("dropout", "drop_path"):
        if key in values and not 0 <= values[key] < 1:
            problems.append(f"{key}={values[key]} must be in [0, 1)")
    widths, depths = values.get("widths", (1,)), values.get("depths", (1,))
    if not widths or len(widths) != len(depths):
        problems.append(f"widths={widths} and depths={depths} need one entry a resolution each")
    if not all(isinstance(entry, int) and entry > 0 for entry in (*widths, *depths)):
        problems.append(f"widths={widths} and depths={depths} must be whole numbers of at least 1")
    if "heads" in values and values["width"] % max(values["heads"], 1):
        problems.append(f"width={values['width']} must divide by heads={values['heads']}")
    return problems
