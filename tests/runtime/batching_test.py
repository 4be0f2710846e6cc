import jax
import numpy as np
import pytest

from functa.runtime import batching
from functa.runtime.batching import apply_in_batches


@pytest.mark.parametrize("count", [1, 4, 5, 8, 11])
def test_equals_one_call_with_all_rows(count):
    images = np.random.default_rng(0).random((count, 3), np.float32)
    labels = np.arange(count, dtype=np.int32)

    def function(images, labels):
        return {"double": 2 * images, "pair": (labels + 1, images.sum(-1))}

    result = apply_in_batches(jax.jit(function), images, labels, batch_size=4)
    for actual, expected in zip(
        jax.tree.leaves(result), jax.tree.leaves(function(images, labels)), strict=True
    ):
        assert isinstance(actual, np.ndarray)
        assert actual.dtype == expected.dtype
        np.testing.assert_allclose(actual, expected, rtol=1e-6)


def test_function_sees_one_shape_and_every_row_once():
    calls = []

    def function(rows):
        calls.append(rows)
        return rows

    apply_in_batches(function, np.arange(5), batch_size=2)
    np.testing.assert_array_equal(calls, [[0, 1], [2, 3], [4, 4]])


@pytest.mark.parametrize("arrays", [(np.zeros(0),), (np.zeros(2), np.zeros(3))])
def test_refuses_no_rows_and_unequal_counts(arrays):
    with pytest.raises(ValueError, match="rows"):
        apply_in_batches(lambda *arrays: arrays[0], *arrays, batch_size=2)


@pytest.mark.parametrize(
    ("count", "limit", "size"), [(1, 64, 1), (2, 64, 2), (3, 64, 4), (64, 64, 64), (65, 48, 48)]
)
def test_fitting_batches_are_powers_of_two_up_to_the_limit(count, limit, size):
    assert batching.fitting_batch_size(count, limit) == size
