"""Peak signal-to-noise ratio."""

import numpy as np

_SMALLEST_MSE = 1e-10


def psnr(mse, data_range: float = 1.0):
    """Peak signal-to-noise ratio in dB of mean squared errors, at most 100 dB for a range of 1.

    Takes NumPy and JAX arrays. The project's `psnr` of a split is the mean over images of this
    number; `psnr_of_mean_mse`, which other code reports, is this number of the mean error, and is
    lower.
    """
    xp = mse.__array_namespace__() if hasattr(mse, "__array_namespace__") else np
    return -10 * xp.log10(xp.maximum(mse, _SMALLEST_MSE) / data_range**2)


def psnr_of_images(images: np.ndarray, references: np.ndarray) -> np.ndarray:
    """PSNR [n] in dB of images [n, h, w, c], or a scalar for one image [h, w, c].

    Args:
      images, references: uint8 in [0, 255] or float in [0, 1].
    Raises:
      ValueError: the shapes differ, or are neither [n, h, w, c] nor [h, w, c].
    """
    if images.shape != references.shape or images.ndim not in (3, 4):
        raise ValueError(
            f"images {list(images.shape)} and references {list(references.shape)} must both be "
            "[n, h, w, c] or [h, w, c]"
        )
    errors = _unit_range(images) - _unit_range(references)
    return psnr(np.mean(np.square(errors), axis=(-3, -2, -1)))


def _unit_range(images: np.ndarray) -> np.ndarray:
    return images / 255 if images.dtype == np.uint8 else images.astype(np.float64)
