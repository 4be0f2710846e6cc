"""PCA of cells against the singular value decomposition."""

import numpy as np
import pytest

from functa.configs import digits
from functa.data import images
from functa.evaluation import pca_baseline
from functa.fields import psnr


def random_images(count, seed):
    """Images [n, 8, 6, 3], from dark to bright; their principal components differ in variance."""
    random = np.random.default_rng(seed)
    gray = np.sort(random.random((count, 1, 1, 1)), axis=0) + 0.3 * random.random((count, 8, 6, 3))
    return np.uint8(255 / 1.3 * gray)


def cells_of(images):
    """[n, 8, 6, 3] uint8 -> [n * 4, 36] float64, of a 2 x 2 grid."""
    quadrants = [images[:, r : r + 4, c : c + 3] for r in (0, 4) for c in (0, 3)]
    return np.stack(quadrants, axis=1).reshape(-1, 36) / 255


@pytest.mark.parametrize("block_values", [1 << 26, 8 * 6 * 3 * 16])
def test_cell_pca_equals_svd(monkeypatch, block_values):
    monkeypatch.setattr(pca_baseline, "_BLOCK_VALUES", block_values)
    train, test = random_images(70, 0), random_images(30, 1)
    pca = pca_baseline.fit_cell_pca(train, grid=(2, 2), components=5)
    cells, mean = cells_of(train), cells_of(train).mean(0)
    basis = np.linalg.svd(cells - mean, full_matrices=False)[2][:5].T
    coefficients = (cells_of(test) - mean) @ basis
    np.testing.assert_allclose(
        np.abs(pca.coefficients(test)), np.abs(coefficients.reshape(30, 4, 5)), atol=1e-4
    )

    def slow_mse(k):
        error = mean + coefficients[:, :k] @ basis[:, :k].T - cells_of(test)
        return np.square(error).reshape(30, -1).mean(1)

    np.testing.assert_allclose(pca.mse(test), slow_mse(5), rtol=1e-4)
    np.testing.assert_allclose(pca.truncate(2).mse(test), slow_mse(2), rtol=1e-4)


def test_fewer_large_images_are_needed():
    assert pca_baseline.num_training_images((32, 32, 3), 50_000) == 20_000
    assert pca_baseline.num_training_images((256, 256, 3), 1_281_167) == 1365
    assert pca_baseline.num_training_images((32, 32, 3), 77) == 77


def test_pca_of_digits_has_the_published_psnr():
    config = digits.get_config()
    sources = images.open_splits(**config.data)
    train, test = (sources[s].read(np.arange(sources[s].num_examples)) for s in ("train", "test"))
    i, j, d = config.field.latent_shape
    pca = pca_baseline.fit_cell_pca(train["image"], grid=(i, j), components=d)
    # Published for another split of the same digits.
    assert psnr.psnr(pca.mse(test["image"])).mean() == pytest.approx(18.95, abs=0.25)
