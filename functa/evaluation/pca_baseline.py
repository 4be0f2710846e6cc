"""What a field must beat: PCA of the same cells to the same number of floats."""

import math
from collections.abc import Iterator

import numpy as np

from functa.data.images import ImageSource
from functa.fields import psnr
from functa.fields.field import Field

PCA_IMAGES = 20_000  # of the train split, which PCA is fitted on, but no more than of so many
PCA_VALUES = 1 << 28  # values: 1,365 images of 256x256x3, which have a million cells of 8x8
# In memory at once, as float32. All 20,000 images of 32x32x3 are one block.
_BLOCK_VALUES = 1 << 26
_TEST_VALUES = 1 << 22


def pca_images(train: ImageSource, field: Field) -> int:
    """How many training images, the first ones, PCA is fitted on."""
    most = max(1, PCA_VALUES // math.prod(field.image_shape))
    return min(PCA_IMAGES, most, train.num_examples)


def fit_pca(train: ImageSource, field: Field, components: int) -> tuple[np.ndarray, np.ndarray]:
    """`metrics.fit_pca` of the cells of the first `pca_images` training images."""

    def cells() -> Iterator[np.ndarray]:
        for index in _blocks(pca_images(train, field), field, _BLOCK_VALUES):
            found = psnr.image_cells(train.read(index)["image"], field.latent_shape[:2])
            yield (found / np.float32(255)).reshape(-1, found.shape[-1])

    return psnr.fit_pca_in_blocks(cells(), components)


def pca_psnr(train: ImageSource, test: ImageSource, field: Field) -> np.ndarray:
    """PSNR of every test image under PCA of the same cells to the same number of floats: [N]."""
    grid, components = field.latent_shape[:2], field.latent_shape[2]
    mean, basis = fit_pca(train, field, components)
    errors = []
    for index in _blocks(test.num_examples, field, _TEST_VALUES):
        images = test.read(index)["image"] / np.float32(255)
        errors.append(psnr.pca_mse(images, grid, mean, basis))
    return psnr.psnr(np.concatenate(errors))


def _blocks(count: int, field: Field, values: int) -> Iterator[np.ndarray]:
    """0 ... count - 1 in parts whose images have at most so many values."""
    size = max(1, values // math.prod(field.image_shape))
    for first in range(0, count, size):
        yield np.arange(first, min(first + size, count))
