"""Blocks of samples: complete, written once, independent of the number of processes."""

import jax.numpy as jnp
import numpy as np
import pytest

from functa.diffusion import sharded_sampling

LABELS = np.arange(23, dtype=np.int32) % 5
EXPECTED = np.broadcast_to((100.0 * np.arange(23) + LABELS)[:, None, None, None], (23, 2, 2, 3))


def sample_function(params, numbers, labels):
    latents = params["scale"] * numbers.astype(jnp.float32) + labels.astype(jnp.float32)
    return jnp.broadcast_to(latents[:, None, None, None], (len(numbers), 2, 2, 3))


def write_blocks(folder, *, stop=lambda: None, process_index=0, process_count=1):
    """(samples per second, calls of `progress`)."""
    progress = []
    rate = sharded_sampling.write_blocks(
        folder,
        sample=sample_function,
        params={"scale": np.float32(100)},
        labels=LABELS,
        block_size=3,
        progress=lambda *counts: progress.append(counts),
        stop=stop,
        process_index=process_index,
        process_count=process_count,
    )
    return rate, progress


def read_blocks(folder, count=23):
    return sharded_sampling.read_blocks(folder, count=count, block_size=3)


@pytest.mark.parametrize("processes", [1, 3])
def test_processes_share_the_blocks(tmp_path, processes):
    for index in range(processes):
        before = len(list(tmp_path.iterdir()))
        write_blocks(tmp_path, process_index=index, process_count=processes)
        assert len(list(tmp_path.iterdir())) - before == len(range(index, 8, processes))
    np.testing.assert_array_equal(read_blocks(tmp_path), EXPECTED)


def test_interrupted_sampling_continues_with_the_missing_blocks(tmp_path):
    calls = []

    def stop():
        calls.append(1)
        if len(calls) == 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        write_blocks(tmp_path, stop=stop)
    times = {path: path.stat().st_mtime_ns for path in tmp_path.iterdir()}
    assert 0 < len(times) < 8
    with pytest.raises(ValueError, match="block-"):
        read_blocks(tmp_path)
    rate, progress = write_blocks(tmp_path)
    assert rate > 0
    assert progress[-1] == (8, 8)
    assert all(path.stat().st_mtime_ns == time for path, time in times.items())
    np.testing.assert_array_equal(read_blocks(tmp_path), EXPECTED)
    assert write_blocks(tmp_path) == (0.0, [])


def test_another_number_of_samples_is_an_error(tmp_path):
    write_blocks(tmp_path)
    with pytest.raises(ValueError, match="23 samples, not 24"):
        read_blocks(tmp_path, count=24)
