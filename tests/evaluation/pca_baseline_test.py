"""functa.evaluation.pca_baseline: PCA of many images, a part of them in memory at a time."""

import types

import numpy as np
import pytest

from functa.evaluation import pca_baseline
from functa.fields import psnr as metrics


class Images:
    """Invented images with structure, so that some directions matter more than others."""

    def __init__(self, num_examples, shape, seed):
        self.num_examples, self.reads = num_examples, []
        random = np.random.default_rng(seed)
        grey = random.random((num_examples, 1, 1, 1)) + 0.3 * random.random((num_examples, *shape))
        self.images = np.uint8(255 / 1.3 * grey)

    def read(self, indices):
        self.reads.append(len(indices))
        return {"image": self.images[indices]}


def make_field(shape=(8, 8, 3), latent_shape=(2, 2, 5)):
    return types.SimpleNamespace(image_shape=shape, latent_shape=latent_shape)


@pytest.fixture
def splits():
    return Images(70, (8, 8, 3), seed=0), Images(30, (8, 8, 3), seed=1)


def whole(train, test, field):
    """The same with all images in memory at once."""
    grid, d = field.latent_shape[:2], field.latent_shape[2]
    cells = metrics.image_cells(train.images, grid) / np.float32(255)
    mean, basis = metrics.fit_pca(cells.reshape(-1, cells.shape[-1]), d)
    return metrics.psnr(metrics.pca_mse(test.images / np.float32(255), grid, mean, basis))


def test_what_fits_into_one_part_has_the_same_bits(splits):
    np.testing.assert_array_equal(
        pca_baseline.pca_psnr(*splits, make_field()), whole(*splits, make_field())
    )
    assert splits[0].reads == [70]
    # As many images as are ever fitted on, of 32x32x3.
    train = Images(1, (32, 32, 3), seed=0)
    train.num_examples = 50_000
    field = make_field((32, 32, 3), (8, 8, 16))
    assert pca_baseline.pca_images(train, field) == pca_baseline.PCA_IMAGES
    blocks = list(pca_baseline._blocks(pca_baseline.PCA_IMAGES, field, pca_baseline._BLOCK_VALUES))
    assert [len(block) for block in blocks] == [pca_baseline.PCA_IMAGES]


def test_many_parts_are_the_whole(splits, monkeypatch):
    monkeypatch.setattr(pca_baseline, "_BLOCK_VALUES", 8 * 8 * 3 * 16)
    monkeypatch.setattr(pca_baseline, "_TEST_VALUES", 1)
    psnr = pca_baseline.pca_psnr(*splits, make_field())
    assert [split.reads for split in splits] == [[16, 16, 16, 16, 6], [1] * 30]
    np.testing.assert_allclose(psnr, whole(*splits, make_field()), atol=1e-4)


def test_large_images_are_fewer(splits, monkeypatch):
    train, test = splits
    monkeypatch.setattr(pca_baseline, "PCA_VALUES", 8 * 8 * 3 * 20 + 5)
    psnr = pca_baseline.pca_psnr(train, test, make_field())
    assert train.reads == [20]
    train.images = train.images[:20]
    np.testing.assert_array_equal(psnr, whole(train, test, make_field()))
    monkeypatch.undo()
    train.num_examples = 1_281_167
    assert pca_baseline.pca_images(train, make_field((256, 256, 3), (32, 32, 64))) == 1365
