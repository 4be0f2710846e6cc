"""Evaluation samples: written once, by all processes, with their speed."""

from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from etils import epath

from functa.diffusion import sharded_sampling
from functa.evaluation.evaluation_samples import EvaluationSamples

COUNT = 80
LABELS = (np.arange(COUNT) % 4).astype(np.int32)


def stub_samples(directory, calls):
    """EvaluationSamples whose latents are 10 * number + guidance scale (9 without one)."""

    def sample(params, key, numbers, labels, guidance_scale):
        calls.append(1)
        scale = 9.0 if guidance_scale is None else guidance_scale
        value = params * numbers.astype(np.float32) + scale
        return SimpleNamespace(latents=value[:, None, None, None] + jnp.zeros((1, 2, 2, 3)))

    return EvaluationSamples(
        directory=epath.Path(directory),
        generator=SimpleNamespace(sample=sample),
        params=np.float32(10),
        key=jax.random.key(0),
        labels=LABELS,
        guidance_sweep=(0.5, 2.0),
        batch_size=16,
    )


def write(samples, process_index, process_count):
    return samples.write(
        say=lambda line: None,
        stop=lambda: None,
        process_index=process_index,
        process_count=process_count,
    )


def test_samples_are_written_once_and_their_speed_is_stored(tmp_path):
    calls = []
    samples = stub_samples(tmp_path, calls)
    write(samples, 1, 2)
    speed = write(samples, 0, 2)
    assert speed > 0
    traced = len(calls)
    assert write(samples, 0, 1) == speed
    assert len(calls) == traced
    latents, sweep = samples.read()
    np.testing.assert_array_equal(latents[:, 0, 0, 0], 10 * np.arange(COUNT) + 9)
    values = {scale: float(latents[3, 0, 0, 0]) for scale, latents in sweep.items()}
    assert values == {0.5: 30.5, 2.0: 32.0}


@pytest.mark.parametrize("processes", [1, 3, 20])
def test_speed_is_that_of_all_processes(tmp_path, monkeypatch, processes):
    """If process 0 takes a second for its share, all take a second for all samples."""
    clock = SimpleNamespace(monotonic=iter(range(100)).__next__)
    monkeypatch.setattr(sharded_sampling, "time", clock)
    assert write(stub_samples(tmp_path, []), 0, processes) == COUNT
