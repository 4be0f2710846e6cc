"""Blocks of samples: each once, by whoever comes, whole or not at all."""

import jax.numpy as jnp
import numpy as np
import pytest

from functa.diffusion import sharded_sampling

LABELS = np.arange(23, dtype=np.int32) % 5


def sampler(params, numbers, labels):
    latents = params["scale"] * numbers.astype(jnp.float32) + labels.astype(jnp.float32)
    return jnp.broadcast_to(latents[:, None, None, None], (len(numbers), 2, 2, 3))


def draw(folder, *, stop=lambda: None, process_index=0, process_count=1, made=sampler):
    told = []
    rate = sharded_sampling.draw(
        folder,
        sampler=made,
        params={"scale": np.float32(100)},
        labels=LABELS,
        block=3,
        progress=lambda done, total: told.append((done, total)),
        stop=stop,
        process_index=process_index,
        process_count=process_count,
    )
    return rate, told


def expected():
    return np.broadcast_to((100.0 * np.arange(23) + LABELS)[:, None, None, None], (23, 2, 2, 3))


@pytest.mark.parametrize("processes", [1, 2, 3])
def test_every_sample_once_in_order(tmp_path, processes):
    for index in range(processes):
        before = len(list(tmp_path.iterdir()))
        draw(tmp_path, process_index=index, process_count=processes)
        assert len(list(tmp_path.iterdir())) - before == len(range(index, 8, processes))
    assert len(list(tmp_path.iterdir())) == 8
    np.testing.assert_array_equal(sharded_sampling.collect(tmp_path, count=23, block=3), expected())


class Stopped(Exception):
    pass


def test_what_is_there_is_not_drawn_again(tmp_path):
    turns = []

    def stop():
        turns.append(1)
        if len(turns) == 2:
            raise Stopped

    with pytest.raises(Stopped):
        draw(tmp_path, stop=stop)
    there = {path.name: path.stat().st_mtime_ns for path in tmp_path.iterdir()}
    assert 0 < len(there) < 8
    with pytest.raises(ValueError, match="is missing"):
        sharded_sampling.collect(tmp_path, count=23, block=3)
    rate, told = draw(tmp_path)
    assert rate > 0
    assert told[-1] == (8, 8)
    assert all((tmp_path / name).stat().st_mtime_ns == time for name, time in there.items())
    np.testing.assert_array_equal(sharded_sampling.collect(tmp_path, count=23, block=3), expected())
    assert draw(tmp_path, made=None) == (0.0, [])


def test_samples_of_another_count_are_told(tmp_path):
    draw(tmp_path)
    with pytest.raises(ValueError, match="holds 23 samples, not 24; remove it"):
        sharded_sampling.collect(tmp_path, count=24, block=3)


def test_a_decoder_fills_up_its_last_batch():
    class Field:
        image_shape = (1, 2, 1)

        def __call__(self, params, latents, shape):
            assert latents.shape[0] == 4
            return params * jnp.broadcast_to(latents, (4, *shape, 1))

    latents = np.linspace(-1, 1, 10, dtype=np.float32).reshape(10, 1, 1, 1)
    for scale in (1, 3):
        decode = sharded_sampling.make_decoder(
            Field(), {"field": np.float32(2)}, batch_size=4, scale=scale
        )
        expected = np.broadcast_to(np.clip(2 * latents, 0, 1), (10, scale, 2 * scale, 1))
        np.testing.assert_array_equal(decode(latents), expected)
