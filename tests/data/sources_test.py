import numpy as np
import pytest

from functa.data.sources import InMemorySource, check_indices, load_into_memory


class SlowSource:
    """Reads rows of an array and records the number of rows per call."""

    def __init__(self, num_examples):
        self.num_examples, self.sizes = num_examples, []
        self.values = np.random.default_rng(0).normal(size=(num_examples, 3)).astype(np.float32)

    def read(self, indices):
        self.sizes.append(len(indices))
        return {"x": self.values[indices], "id": indices}


@pytest.mark.parametrize("threads", [1, 3])
@pytest.mark.parametrize("count", [0, 1, 8, 21])
def test_load_into_memory_reads_all_examples_in_blocks(count, threads):
    source = SlowSource(count)
    loaded = load_into_memory(source, block_size=4, threads=threads)
    assert loaded.num_examples == count
    assert max(source.sizes) <= 4
    assert sum(source.sizes) == count
    actual = loaded.read(np.arange(count)[::-1])
    np.testing.assert_array_equal(actual["x"], source.values[::-1])
    np.testing.assert_array_equal(actual["id"], np.arange(count)[::-1])
    assert actual["x"].dtype == np.float32


def test_reads_are_copies():
    source = InMemorySource({"x": np.ones(3)})
    source.read(np.arange(3))["x"][:] = 0
    assert source.read(np.arange(3))["x"].all()


@pytest.mark.parametrize("index", [-1, 4])
def test_indices_outside_the_split_are_refused(index):
    assert check_indices([0, 3], 4).dtype == np.int64
    with pytest.raises(IndexError, match=r"\[0, 4\)"):
        check_indices(np.array([2, index]), 4)
