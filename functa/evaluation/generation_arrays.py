"""Arrays behind the pictures of report.html that ask the generator for more than samples."""

from collections.abc import Iterable

import numpy as np

from functa.data.images import ImageSource
from functa.diffusion import inpainting, sharded_sampling
from functa.diffusion.inpainter import Imputer, compare, mean_image
from functa.diffusion.inpainting import METHODS
from functa.pipeline.load import Generator

_IMPUTED = 8  # test images at most, and draws of each
_IMPUTED_PIXELS = 1 << 18  # of all draws together: what they cost, in time and memory
_STEPS = 20  # noise levels
_LADDER = (1, 2, 4, 8)  # times the resolution of training
_ON_LADDER = 4  # samples
_LARGEST_SIDE = 512  # pixels of an image on the ladder


def imputed(generator: Generator, sources: dict[str, ImageSource]) -> dict[str, np.ndarray]:
    """The left halves of test images from their right halves, with the generator as prior and without: of eight, of
    large images fewer.

    Returns:
      float32 arrays in [0, 1]: imputed_original, imputed_seen and imputed_METHOD, for each of imputation.METHODS,
      [n, h, w, c]; imputed_mse_METHOD [n], of the hidden halves. Nothing where the generator knows no images of
      unknown class.
    """
    if generator.config.generate.label_dropout == 0:
        return {}
    test, train = sources["test"], sources["train"]
    h, w, _ = generator.field.image_shape
    count = int(np.clip((_IMPUTED_PIXELS / (h * w)) ** 0.5, 1, _IMPUTED))
    names = np.linspace(0, test.num_examples - 1, count).astype(np.int64)
    images = test.read(names)["image"].astype(np.float32) / np.float32(255)
    imputer = Imputer(generator, inpainting.KINDS["half"], steps=_STEPS, seed=generator.config.seed)
    average = mean_image(train, generator.field.image_shape)
    result = compare(imputer, images, names=names, draws=count, average=average)
    keys: Iterable[str] = ("seen", *METHODS, *(f"mse_{name}" for name in METHODS))
    return {"imputed_original": images} | {f"imputed_{key}": result[key] for key in keys}


def ladder(generator: Generator, latents: np.ndarray) -> dict[str, np.ndarray]:
    """The first samples at several resolutions: ladder_1x, ladder_2x, ... [n, H, W, c] float32 in [0, 1].

    Args:
      latents: [n, i, j, d] of samples.
    """
    side = max(generator.field.image_shape[:2])
    return {
        f"ladder_{scale}x": sharded_sampling.make_decoder(
            # One at a time: a batch at 8 times the resolution has 64 times the pixels.
            generator.field,
            generator.field_params,
            batch_size=1,
            scale=scale,
        )(latents[:_ON_LADDER])
        for scale in _LADDER
        if scale * side <= _LARGEST_SIDE
    }
