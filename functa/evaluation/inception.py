"""The Inception network of the Fréchet inception distance (FID), with weights that the user brings.

The weights are a file .npz of float32 arrays, five for each of the 94 convolutions, under the names
that the public PyTorch port of the TensorFlow network gives them (Conv2d_1a_3x3, Mixed_5b/branch1x1,
..., Mixed_7c/branch_pool):

    NAME/kernel [height, width, inputs, outputs]
    NAME/scale, NAME/bias, NAME/mean, NAME/variance [outputs]

tools/convert_inception.py makes it of that port's checkpoint.

Sources: Szegedy et al. 2016 (the network); Heusel et al. 2017 (the distance). Where the network of
2015 that FID is measured with differs from the paper, this follows the network: average pools count
no padding, and the last block pools by maximum.
"""

import functools
import io
import zipfile
from typing import Any, cast

import flax
import jax
import jax.numpy as jnp
import numpy as np
from etils import epath
from flax import linen as nn

from functa.evaluation import features
from functa.evaluation.features import Extractor

SIDE = 299  # pixels
FEATURES = 2048
_EPSILON = 1e-3  # added to the variance
_AT_ONCE = 50  # images


class Convolution(nn.Module, kw_only=True):
    """Convolution without bias, normalisation by stored moments, ReLU."""

    outputs: int
    kernel: tuple[int, int] = (1, 1)
    stride: int = 1
    padding: str = "SAME"

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """x [b, h, w, inputs] float32 -> [b, h', w', outputs] float32."""
        zeros = nn.initializers.zeros
        kernel = self.param("kernel", zeros, (*self.kernel, x.shape[-1], self.outputs))
        scale, bias, mean, variance = (
            self.param(name, zeros, (self.outputs,))
            for name in ("scale", "bias", "mean", "variance")
        )
        x = jax.lax.conv_general_dilated(
            x,
            kernel,
            window_strides=(self.stride, self.stride),
            padding=self.padding,
            dimension_numbers=("NHWC", "HWIO", "NHWC"),
            # Devices that multiply in bfloat16 would give another distance.
            precision=jax.lax.Precision.HIGHEST,
        )
        factor = scale * jax.lax.rsqrt(variance + _EPSILON)
        shift = bias - mean * factor
        return nn.relu(x * factor[None, None, None] + shift[None, None, None])


def _chain(x: jax.Array, *layers: Convolution) -> jax.Array:
    return functools.reduce(lambda x, layer: layer(x), layers, x)


def _average(x: jax.Array) -> jax.Array:
    """Mean of the 3x3 neighbours that there are."""
    return nn.avg_pool(x, (3, 3), padding="SAME", count_include_pad=False)


def _halved(x: jax.Array) -> jax.Array:
    return nn.max_pool(x, (3, 3), strides=(2, 2), padding="VALID")


class BlockA(nn.Module, kw_only=True):
    """35x35: 1x1, 5x5 and two 3x3, and a pool. Szegedy et al. 2016, figure 5."""

    pooled: int

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """x [b, h, w, c] -> [b, h, w, 224 + pooled]."""
        one = Convolution(outputs=64, name="branch1x1")(x)
        five = _chain(
            x,
            Convolution(outputs=48, name="branch5x5_1"),
            Convolution(outputs=64, kernel=(5, 5), name="branch5x5_2"),
        )
        three = _chain(
            x,
            Convolution(outputs=64, name="branch3x3dbl_1"),
            Convolution(outputs=96, kernel=(3, 3), name="branch3x3dbl_2"),
            Convolution(outputs=96, kernel=(3, 3), name="branch3x3dbl_3"),
        )
        pool = Convolution(outputs=self.pooled, name="branch_pool")(_average(x))
        return jnp.concatenate([one, five, three, pool], axis=-1)


class BlockB(nn.Module):
    """35x35 to 17x17. Szegedy et al. 2016, figure 10."""

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """x [b, h, w, c] -> [b, (h - 1) // 2, (w - 1) // 2, 480 + c]."""
        halving = functools.partial(Convolution, kernel=(3, 3), stride=2, padding="VALID")
        three = halving(outputs=384, name="branch3x3")(x)
        double = _chain(
            x,
            Convolution(outputs=64, name="branch3x3dbl_1"),
            Convolution(outputs=96, kernel=(3, 3), name="branch3x3dbl_2"),
            halving(outputs=96, name="branch3x3dbl_3"),
        )
        return jnp.concatenate([three, double, _halved(x)], axis=-1)


class BlockC(nn.Module, kw_only=True):
    """17x17: 7x7 as rows and columns. Szegedy et al. 2016, figure 6."""

    width: int

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """x [b, h, w, c] -> [b, h, w, 768]."""
        row, column = ((1, 7), (7, 1))
        one = Convolution(outputs=192, name="branch1x1")(x)
        seven = _chain(
            x,
            Convolution(outputs=self.width, name="branch7x7_1"),
            Convolution(outputs=self.width, kernel=row, name="branch7x7_2"),
            Convolution(outputs=192, kernel=column, name="branch7x7_3"),
        )
        double = _chain(
            x,
            Convolution(outputs=self.width, name="branch7x7dbl_1"),
            Convolution(outputs=self.width, kernel=column, name="branch7x7dbl_2"),
            Convolution(outputs=self.width, kernel=row, name="branch7x7dbl_3"),
            Convolution(outputs=self.width, kernel=column, name="branch7x7dbl_4"),
            Convolution(outputs=192, kernel=row, name="branch7x7dbl_5"),
        )
        pool = Convolution(outputs=192, name="branch_pool")(_average(x))
        return jnp.concatenate([one, seven, double, pool], axis=-1)


class BlockD(nn.Module):
    """17x17 to 8x8."""

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """x [b, h, w, c] -> [b, (h - 1) // 2, (w - 1) // 2, 512 + c]."""
        halving = functools.partial(Convolution, kernel=(3, 3), stride=2, padding="VALID")
        three = _chain(
            x,
            Convolution(outputs=192, name="branch3x3_1"),
            halving(outputs=320, name="branch3x3_2"),
        )
        seven = _chain(
            x,
            Convolution(outputs=192, name="branch7x7x3_1"),
            Convolution(outputs=192, kernel=(1, 7), name="branch7x7x3_2"),
            Convolution(outputs=192, kernel=(7, 1), name="branch7x7x3_3"),
            halving(outputs=192, name="branch7x7x3_4"),
        )
        return jnp.concatenate([three, seven, _halved(x)], axis=-1)


class BlockE(nn.Module, kw_only=True):
    """8x8: 3x3 as a row beside a column. Szegedy et al. 2016, figure 7."""

    pools_maximum: bool

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """x [b, h, w, c] -> [b, h, w, 2048]."""
        cross = functools.partial(Convolution, outputs=384)
        one = Convolution(outputs=320, name="branch1x1")(x)
        three = Convolution(outputs=384, name="branch3x3_1")(x)
        double = _chain(
            x,
            Convolution(outputs=448, name="branch3x3dbl_1"),
            Convolution(outputs=384, kernel=(3, 3), name="branch3x3dbl_2"),
        )
        if self.pools_maximum:
            pool = nn.max_pool(x, (3, 3), padding="SAME")
        else:
            pool = _average(x)
        branches = [
            one,
            cross(kernel=(1, 3), name="branch3x3_2a")(three),
            cross(kernel=(3, 1), name="branch3x3_2b")(three),
            cross(kernel=(1, 3), name="branch3x3dbl_3a")(double),
            cross(kernel=(3, 1), name="branch3x3dbl_3b")(double),
            Convolution(outputs=192, name="branch_pool")(pool),
        ]
        return jnp.concatenate(branches, axis=-1)


class Inception(nn.Module):
    """Images [b, 299, 299, 3] float32 in [-1, 1] -> the means of the last feature maps [b, 2048]."""

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        three = functools.partial(Convolution, kernel=(3, 3))
        x = _chain(
            x,
            three(outputs=32, stride=2, padding="VALID", name="Conv2d_1a_3x3"),
            three(outputs=32, padding="VALID", name="Conv2d_2a_3x3"),
            three(outputs=64, name="Conv2d_2b_3x3"),
        )
        x = _chain(
            _halved(x),
            Convolution(outputs=80, name="Conv2d_3b_1x1"),
            three(outputs=192, padding="VALID", name="Conv2d_4a_3x3"),
        )
        x = _halved(x)
        for letter, pooled in (("b", 32), ("c", 64), ("d", 64)):
            x = BlockA(pooled=pooled, name=f"Mixed_5{letter}")(x)
        x = BlockB(name="Mixed_6a")(x)
        for letter, width in (("b", 128), ("c", 160), ("d", 160), ("e", 192)):
            x = BlockC(width=width, name=f"Mixed_6{letter}")(x)
        x = BlockD(name="Mixed_7a")(x)
        x = BlockE(pools_maximum=False, name="Mixed_7b")(x)
        x = BlockE(pools_maximum=True, name="Mixed_7c")(x)
        return jnp.mean(x, axis=(1, 2))


def shapes() -> dict[str, tuple[int, ...]]:
    """Of the arrays in a file of weights: {NAME/kernel: (height, width, inputs, outputs), ...}."""
    images = jax.ShapeDtypeStruct((1, SIDE, SIDE, 3), jnp.float32)
    params = jax.eval_shape(Inception().init, jax.random.key(0), images)["params"]
    return {
        name: leaf.shape for name, leaf in flax.traverse_util.flatten_dict(params, sep="/").items()
    }


def misfits(arrays: dict[str, np.ndarray]) -> list[str]:
    """What is wrong with weights, a line each; [] if they are `shapes()` and finite."""
    expected = shapes()
    problems = [f"{name} is missing" for name in sorted(expected.keys() - arrays.keys())]
    problems += [f"{name} is not known" for name in sorted(arrays.keys() - expected.keys())]
    for name in sorted(expected.keys() & arrays.keys()):
        array = arrays[name]
        if array.dtype != np.float32 or array.shape != expected[name]:
            problems.append(
                f"{name} is {array.dtype} {list(array.shape)}, not float32 {list(expected[name])}"
            )
        elif not np.isfinite(array).all():
            problems.append(f"{name} holds numbers that are not finite")
    return problems


def extractor(path: epath.PathLike) -> Extractor:
    """The features that FID is measured in.

    Images are rounded to 8 bits, as those that are read from files have been; those of one channel
    are repeated to three; then resized bilinearly, from pixel centre to pixel centre and without a
    filter against aliasing. It takes 5.7 billion multiplications an image: a matter for accelerators.

    Args:
      path: of the weights, .npz; see the module.
    Returns:
      "inception": images [n, h, w, 1 or 3] float32 in [0, 1] -> [n, 2048] float32.
    Raises:
      ValueError: weights that are not there or not those of the network.
    """
    weights = _read(epath.Path(path))
    params = flax.traverse_util.unflatten_dict(weights, sep="/")
    forward = jax.jit(lambda params, images: Inception().apply({"params": params}, prepare(images)))
    on_device = functools.partial(forward, jax.device_put(params))

    def extract(images: np.ndarray) -> np.ndarray:
        if images.ndim != 4 or images.shape[-1] not in (1, 3) or len(images) == 0:
            raise ValueError(f"images must be [n, h, w, 1 or 3], not {list(images.shape)}")
        if not np.issubdtype(images.dtype, np.floating):
            raise ValueError(f"images must be float32 in [0, 1], not {images.dtype}")
        return cast(np.ndarray, features.in_batches(on_device, images, size=_AT_ONCE))

    return Extractor("inception", extract)


def prepare(images: jax.Array) -> jax.Array:
    """Images [b, h, w, 1 or 3] float32 in [0, 1] -> what the network takes: [b, 299, 299, 3] in [-1, 1]."""
    b, _, _, c = images.shape
    images = jnp.round(images * 255) / 255
    images = jax.image.resize(
        images,
        (b, SIDE, SIDE, c),
        "linear",
        antialias=False,
        precision=jax.lax.Precision.HIGHEST,
    )
    return 2 * jnp.broadcast_to(images, (b, SIDE, SIDE, 3)) - 1


def _read(path: epath.Path) -> dict[str, Any]:
    if not path.exists():
        raise ValueError(
            f"no Inception weights at {path}; tools/convert_inception.py makes them of the public "
            "checkpoint pt_inception-2015-12-05-6726825d.pth"
        )
    try:
        with np.load(io.BytesIO(path.read_bytes()), allow_pickle=False) as file:
            arrays = {name: file[name] for name in file.files}
    except (EOFError, OSError, TypeError, ValueError, zipfile.BadZipFile) as error:
        raise ValueError(f"{path} is no whole .npz file: {error}") from error
    if problems := misfits(arrays):
        few = "; ".join(problems[:3])
        raise ValueError(f"{path} has {len(problems)} arrays that do not fit: {few}")
    return arrays
