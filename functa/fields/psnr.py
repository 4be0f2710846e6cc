"""Measures of quality, each with one definition."""

from collections.abc import Iterable

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


def image_cells(images: np.ndarray, grid: tuple[int, int]) -> np.ndarray:
    """[b, h, w, c] -> [b, i * j, p * q * c]: the pixels of every cell of an i x j grid."""
    b, h, w, c = images.shape
    i, j = grid
    cells = images.reshape(b, i, h // i, j, w // j, c).swapaxes(2, 3)
    return cells.reshape(b, i * j, -1)


def fit_pca(cells: np.ndarray, components: int) -> tuple[np.ndarray, np.ndarray]:
    """Principal components of cells [n, k]: (mean [k], basis [k, min(components, k)]), float64."""
    return fit_pca_in_blocks([cells], components)


def fit_pca_in_blocks(
    blocks: Iterable[np.ndarray], components: int
) -> tuple[np.ndarray, np.ndarray]:
    """`fit_pca` of cells that come in blocks [n, k], of which one at a time is in memory.

    Source: Chan, Golub and LeVeque 1983 for sums of squares of a whole from those of its parts.
    """
    count, mean, scatter = 0, np.zeros(()), np.zeros(())
    for cells in blocks:
        own = cells.mean(0, dtype=np.float64)
        centred = cells - own.astype(cells.dtype)
        apart, share = own - mean, len(cells) / (count + len(cells))
        scatter = scatter + (centred.T @ centred).astype(np.float64)
        scatter = scatter + np.outer(apart, apart) * (count * share)  # of the first block: nothing
        mean = mean + apart * share
        count += len(cells)
    _, vectors = np.linalg.eigh(scatter)
    return mean, vectors[:, ::-1][:, :components]


def pca_mse(images: np.ndarray, grid: tuple[int, int], mean: np.ndarray, basis: np.ndarray):
    """Mean squared error of each image [b, h, w, c] projected, cell by cell, on a basis: [b]
    float64.

    The honest baseline of a functa with latents [i, j, d]: the same cells, d floats each, the best
      linear code.
    """
    centred = image_cells(images, grid) - mean.astype(images.dtype)
    coefficients = centred @ basis.astype(images.dtype)
    # The basis is orthonormal: what is lost is what the coefficients do not hold.
    lost = np.sum(np.square(centred, dtype=np.float64), -1) - np.sum(
        np.square(coefficients, dtype=np.float64), -1
    )
    return np.maximum(lost, 0).mean(-1) / basis.shape[0]
