"""Arrays of generate/report.npz beyond the evaluated samples: inpainting and higher resolutions."""

import numpy as np

from functa.data.images import ImageSource
from functa.diffusion import inpainting, sharded_sampling
from functa.diffusion.inpainter import Imputer, compare, mean_image
from functa.pipeline.load import Generator

MAX_IMAGES = 8  # inpainted test images, and draws of each
MAX_PIXELS = 1 << 18  # of all draws together; bounds time and memory
NOISE_LEVELS = 20
SCALES = (1, 2, 4, 8)  # relative to the training resolution
MAX_SAMPLES = 4  # decoded at each scale
MAX_SIDE = 512  # pixels


def inpainting_arrays(
    generator: Generator, sources: dict[str, ImageSource]
) -> dict[str, np.ndarray]:
    """Left halves of test images inpainted from their right halves: 8 images, fewer if they are large.

    Returns:
      float32 arrays: inpainting_original, inpainting_observed and, for each METHOD of
      inpainting.METHODS, inpainting_METHOD [n, h, w, c] in [0, 1] and inpainting_mse_METHOD [n] of
      the hidden halves. {} if the generator was trained without label dropout, which inpainting of
      images of unknown class needs.
    """
    if generator.config.generate.label_dropout == 0:
        return {}
    test, train = sources["test"], sources["train"]
    h, w, _ = generator.field.image_shape
    count = int(np.clip((MAX_PIXELS / (h * w)) ** 0.5, 1, MAX_IMAGES))
    indices = np.linspace(0, test.num_examples - 1, count).astype(np.int64)
    images = test.read(indices)["image"].astype(np.float32) / np.float32(255)
    imputer = Imputer(
        generator, inpainting.KINDS["half"], steps=NOISE_LEVELS, seed=generator.config.seed
    )
    average = mean_image(train, generator.field.image_shape)
    result = compare(imputer, images, names=indices, draws=count, average=average)
    arrays = {"original": images, "observed": result.pop("seen"), **result}
    return {f"inpainting_{name}": array for name, array in arrays.items()}


def resolution_arrays(generator: Generator, latents: np.ndarray) -> dict[str, np.ndarray]:
    """The first 4 samples decoded at several resolutions of at most 512 pixels per side.

    Args:
      latents: [n, i, j, d] of samples.
    Returns:
      samples_1x, samples_2x, samples_4x, samples_8x [m, H, W, c] float32 in [0, 1].
    """
    side = max(generator.field.image_shape[:2])
    return {
        f"samples_{scale}x": sharded_sampling.make_decoder(
            # One image at a time: a batch at 8x the resolution has 64x the pixels.
            generator.field,
            generator.field_params,
            batch_size=1,
            scale=scale,
        )(latents[:MAX_SAMPLES])
        for scale in SCALES
        if scale * side <= MAX_SIDE
    }
