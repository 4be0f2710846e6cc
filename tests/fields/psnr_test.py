import numpy as np
import pytest

from functa.fields import psnr


def test_mean_psnr_differs_from_psnr_of_mean_mse():
    mse = np.array([0.01, 0.1])
    assert psnr.psnr(mse).mean() == pytest.approx(15.0, abs=0.01)
    assert psnr.psnr(mse.mean()) == pytest.approx(12.6, abs=0.01)


def test_psnr_range_and_limit():
    assert psnr.psnr(np.array(255.0**2 / 100), data_range=255) == pytest.approx(20)
    assert psnr.psnr(np.array(0.0)) == pytest.approx(100)


def test_image_cells_match_slices():
    images = np.random.default_rng(0).random((2, 6, 8, 3))
    cells = psnr.image_cells(images, (3, 2))
    np.testing.assert_array_equal(cells[1, 2 * 2 + 1], images[1, 4:6, 4:8].ravel())


def test_pca_matches_explicit_projection():
    rng = np.random.default_rng(1)
    images = rng.random((40, 4, 4, 1)).astype(np.float32)
    cells = psnr.image_cells(images, (2, 2)).reshape(-1, 4)
    mean, basis = psnr.fit_pca(cells, 2)
    fast = psnr.pca_mse(images, (2, 2), mean, basis)
    for index in (0, 7):
        centred = psnr.image_cells(images[index : index + 1], (2, 2))[0] - mean
        slow = np.mean((centred - centred @ basis @ basis.T) ** 2)
        assert fast[index] == pytest.approx(slow, rel=1e-4)
    # No random basis has a lower mean error.
    for seed in range(5):
        other = np.linalg.qr(np.random.default_rng(seed).normal(size=(4, 2)))[0]
        assert psnr.pca_mse(images, (2, 2), mean, other).mean() > fast.mean()
    # One block gives the same bits, several blocks the same subspace.
    one = psnr.fit_pca_in_blocks([cells], 2)
    np.testing.assert_array_equal(one[0], mean)
    np.testing.assert_array_equal(one[1], basis)
    shifted = cells + np.float32([0, 3, 0, 0])  # blocks with different means
    parts = [shifted[:7], cells[7:100], shifted[100:]]
    mean_of_parts, basis_of_parts = psnr.fit_pca_in_blocks(iter(parts), 2)
    expected = psnr.fit_pca(np.concatenate(parts), 2)
    np.testing.assert_allclose(mean_of_parts, expected[0], rtol=1e-6)
    np.testing.assert_allclose(
        basis_of_parts @ basis_of_parts.T, expected[1] @ expected[1].T, atol=1e-5
    )
    full = psnr.pca_mse(images, (2, 2), *psnr.fit_pca(cells, 99))
    assert full.max() < 1e-6
