"""Arrays of generate/report.npz beyond the evaluated samples: inpainting and higher resolutions."""

import numpy as np

from functa.data.images import ImageSource
from functa.diffusion.inpainter import Inpainter, compare_methods, mean_training_image
from functa.diffusion.observation import DEGRADATIONS
from functa.diffusion.trained_generator import TrainedGenerator
from functa.fields.decoder import make_decoder
from functa.fields.pixels import to_float

MAX_IMAGES = 8  # inpainted test images, and samples of each
MAX_PIXELS = 1 << 18  # of all samples together; bounds time and memory
NOISE_LEVELS = 20
SCALES = (1, 2, 4, 8)  # relative to the training resolution
MAX_SAMPLES = 4  # decoded at each scale
MAX_SIDE = 512  # pixels


def inpainting_arrays(
    trained: TrainedGenerator, sources: dict[str, ImageSource], *, seed: int
) -> dict[str, np.ndarray]:
    """Left halves of test images inpainted from their right halves: 8 images, fewer if they are large.

    Returns:
      float32 arrays: inpainting_original, inpainting_observed and, for each METHOD of
      inpainter.METHODS, inpainting_METHOD [n, h, w, c] in [0, 1] and inpainting_mse_METHOD [n] of
      the hidden halves. {} if the generator was trained without label dropout, which inpainting of
      images of unknown class needs.
    """
    if trained.generator.label_dropout == 0:
        return {}
    test, train = sources["test"], sources["train"]
    h, w, _ = trained.field.image_shape
    count = int(np.clip((MAX_PIXELS / (h * w)) ** 0.5, 1, MAX_IMAGES))
    indices = np.linspace(0, test.num_examples - 1, count).astype(np.int64)
    images = to_float(test.read(indices)["image"])
    result = compare_methods(
        Inpainter(trained, DEGRADATIONS["half"], steps=NOISE_LEVELS, seed=seed),
        images,
        image_ids=indices,
        samples=count,
        mean_image=mean_training_image(train, trained.field.image_shape),
    )
    return {f"inpainting_{name}": array for name, array in ({"original": images} | result).items()}


def resolution_arrays(trained: TrainedGenerator, latents: np.ndarray) -> dict[str, np.ndarray]:
    """The first 4 samples decoded at several resolutions of at most 512 pixels per side.

    Args:
      latents: [n, i, j, d] of samples.
    Returns:
      samples_1x, samples_2x, samples_4x, samples_8x [m, H, W, c] float32 in [0, 1].
    """
    side = max(trained.field.image_shape[:2])
    return {
        f"samples_{scale}x": make_decoder(
            # One image at a time: a batch at 8x the resolution has 64x the pixels.
            trained.field,
            trained.field_params,
            batch_size=1,
            scale=scale,
        )(latents[:MAX_SAMPLES])
        for scale in SCALES
        if scale * side <= MAX_SIDE
    }
