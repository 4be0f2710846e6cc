import numpy as np
import pytest

from functa.fields import coordinates


def test_local_coordinates_of_a_cell_with_four_pixels():
    rows = coordinates.pixel_centers(8)
    local = coordinates.axis_features("local", rows, cells=2, pixels=8)[:, 0]
    np.testing.assert_allclose(local, [0.125, 0.375, 0.625, 0.875] * 2, atol=1e-6)


def test_nearest_index_counts_cells():
    np.testing.assert_array_equal(
        coordinates.nearest_index(coordinates.pixel_centers(6), 3), [0, 0, 1, 1, 2, 2]
    )
    np.testing.assert_array_equal(coordinates.nearest_index(np.float32([0.0, 1.0]), 3), [0, 2])


@pytest.mark.parametrize(("pixels", "cells"), [(8, 2), (12, 3), (6, 1), (5, 3)])
def test_interpolation_matrix_matches_a_loop(pixels, cells):
    rng = np.random.default_rng(0)
    values = rng.normal(size=cells)
    points = coordinates.pixel_centers(pixels)
    slow = []
    for point in points:
        position = point * cells - 0.5
        left = int(np.floor(position))
        weight = position - left
        clipped = [min(max(a, 0), cells - 1) for a in (left, left + 1)]
        slow.append((1 - weight) * values[clipped[0]] + weight * values[clipped[1]])
    matrix = coordinates.interpolation_matrix(points, cells)
    np.testing.assert_allclose(matrix @ values, slow, atol=1e-6)
    np.testing.assert_allclose(matrix.sum(1), 1, atol=1e-6)


@pytest.mark.parametrize(
    ("pixels", "cells", "parts"),
    [(32, 8, 1), (32, 8, 4), (32, 4, 2), (6, 3, 1), (5, 5, 1), (28, 1, 1)],
)
def test_orthonormalizer_inverts_the_gram_matrix(pixels, cells, parts):
    points = coordinates.pixel_centers(pixels)
    root = coordinates.orthonormalizer(points, cells, parts=parts)
    values = np.repeat(np.eye(cells), parts, axis=0)
    product = coordinates.interpolation_matrix(points, cells * parts) @ values @ root
    np.testing.assert_allclose(product.T @ product * cells / pixels, np.eye(cells), atol=1e-5)
    np.testing.assert_allclose(root, root.T, atol=1e-6)
    eigenvalues = np.linalg.eigvalsh(root)
    assert eigenvalues.min() >= 1 - 1e-5
    assert eigenvalues.max() <= 2 + 1e-5


def test_binary_code_of_32_pixels_has_five_bits_most_significant_first():
    code = coordinates.axis_features("binary", coordinates.pixel_centers(32), cells=8, pixels=32)
    assert code.shape == (32, 5)
    np.testing.assert_array_equal(code @ [16, 8, 4, 2, 1], np.arange(32))


def test_binary_code_repeats_at_a_higher_resolution():
    fine = coordinates.axis_features("binary", coordinates.pixel_centers(64), cells=8, pixels=32)
    coarse = coordinates.axis_features("binary", coordinates.pixel_centers(32), cells=8, pixels=32)
    np.testing.assert_array_equal(fine[::2], coarse)
    np.testing.assert_array_equal(fine[1::2], coarse)


def test_periodic_features_are_continuous_across_cells_and_distinguish_pixels():
    border = np.float32([0.25 - 1e-6, 0.25 + 1e-6])
    left, right = coordinates.axis_features("periodic", border, cells=4, pixels=16)
    np.testing.assert_allclose(left, right, atol=2e-4)
    cell = coordinates.axis_features(
        "periodic", coordinates.pixel_centers(16)[:4], cells=4, pixels=16
    )
    distances = np.linalg.norm(cell[:, None] - cell[None], axis=-1)
    assert distances[~np.eye(4, dtype=bool)].min() > 1


def test_grid_features_put_the_row_first():
    features = coordinates.grid_features(
        "global", np.float32([0.1, 0.9]), np.float32([0.2, 0.4, 0.6]), cells=(1, 1), pixels=(2, 3)
    )
    assert features.shape == (2, 3, 2)
    np.testing.assert_allclose(features[1, 2], [0.9, 0.6])


def test_unknown_coordinates_are_rejected():
    with pytest.raises(ValueError, match="polar"):
        coordinates.axis_features("polar", np.float32([0]), cells=1, pixels=1)
