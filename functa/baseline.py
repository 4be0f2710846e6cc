"""What a field must beat: PCA of the same cells to the same number of floats."""

import numpy as np

from functa import metrics
from functa.data.images import ImageSource
from functa.field import Field

PCA_IMAGES = 20_000  # of the train split, which PCA is fitted on


def pca_psnr(train: ImageSource, test: ImageSource, field: Field) -> np.ndarray:
    """PSNR of every test image under PCA of the same cells to the same number of floats: [N].

    Fitted on the first 20,000 training images.
    """
    grid, components = field.latent_shape[:2], field.latent_shape[2]
    images = train.read(np.arange(min(PCA_IMAGES, train.num_examples)))["image"]
    cells = metrics.image_cells(images, grid)
    cells = (cells / np.float32(255)).reshape(-1, cells.shape[-1])
    mean, basis = metrics.fit_pca(cells, components)
    errors = []
    for first in range(0, test.num_examples, 1000):
        index = np.arange(first, min(first + 1000, test.num_examples))
        images = test.read(index)["image"] / np.float32(255)
        errors.append(metrics.pca_mse(images, grid, mean, basis))
    return metrics.psnr(np.concatenate(errors))
