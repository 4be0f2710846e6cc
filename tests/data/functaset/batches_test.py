import jax
import numpy as np
import pytest

from functa.data.functaset import batches as batches_lib
from functa.data.functaset import format, reader
from functa.data.functaset.batches import CACHES, LatentBatches, memory_problem
from functa.runtime import memory
from functa.runtime import mesh as mesh_lib
from tests.support import functaset_sets

ONE = {"copies": "all", "process_index": 0, "process_count": 1}


@pytest.fixture(scope="module")
def functasets(tmp_path_factory):
    """{dtype: (functaset, records by split)}"""
    root = tmp_path_factory.mktemp("functasets")
    opened = {}
    for dtype in format.STORAGE_DTYPES:
        splits = functaset_sets.write(root / dtype, dtype=dtype)
        opened[dtype] = reader.open_functaset(root / dtype, field_digest=None), splits
    return opened


def collect(batches):
    return [jax.tree.map(np.asarray, batch) for batch in batches]


@pytest.mark.parametrize("dtype", format.STORAGE_DTYPES)
def test_every_cache_yields_the_same_batches(functasets, dtype):
    functaset, splits = functasets[dtype]
    results = {}
    for cache in CACHES:
        batches = LatentBatches(functaset, cache=cache, **ONE)
        results[cache] = collect(batches.train(batch_size=8, first_step=3, last_step=9, seed=1))
        results[cache] += collect(batches.whole("test", batch_size=16))
    names = {"latents", "label"} | ({"scale"} if dtype == "int8" else set())
    assert [set(batch) for batch in results["none"]] == [names] * 6 + [names | {"mask"}] * 2
    for cache in ("host", "device"):
        for batch, expected in zip(results[cache], results["none"], strict=True):
            for name, values in expected.items():
                assert batch[name].dtype == values.dtype
                np.testing.assert_array_equal(batch[name], values)
    whole = np.concatenate([batch["label"] for batch in results["device"][6:]])
    np.testing.assert_array_equal(whole[:30], splits["test"]["label"])


@pytest.mark.parametrize("cache", CACHES)
def test_first_copies_are_the_images_themselves(functasets, cache, monkeypatch):
    functaset, splits = functasets["float32"]
    count = functaset.num_examples("train")
    copies = 2
    monkeypatch.setitem(functaset.manifest.config, "encode", {"num_augmentations": copies})
    batches = LatentBatches(functaset, cache=cache, **ONE | {"copies": "first"})
    steps = count // copies // 4
    actual = collect(batches.train(batch_size=4, first_step=0, last_step=steps, seed=1))
    latents = {row.tobytes() for batch in actual for row in batch["latents"]}
    firsts = np.asarray(splits["train"]["latents"], np.float32)[: count // copies * copies : copies]
    assert latents <= {row.tobytes() for row in firsts}
    assert len(latents) == 4 * steps
    # The other splits have one copy.
    rest = collect(batches.whole("test", batch_size=16))
    assert sum(batch["mask"].sum() for batch in rest) == functaset.num_examples("test")


def test_device_batches_are_sharded_and_the_split_is_replicated(functasets):
    mesh = mesh_lib.make_mesh()
    batches = LatentBatches(functasets["float16"][0], cache="device", **ONE)
    batch = next(batches.train(batch_size=8, first_step=0, last_step=1, seed=0))
    assert mesh.size > 1
    assert batch["latents"].sharding.is_equivalent_to(mesh_lib.batched(mesh), 4)
    assert mesh_lib.to_devices(mesh, batch)["latents"] is batch["latents"]


def test_latents_travel_as_stored_and_become_float32_under_jit(functasets):
    for dtype, (functaset, splits) in functasets.items():
        batches = LatentBatches(functaset, cache="host", **ONE)
        (batch,) = batches.whole("test", batch_size=32)
        expected = format.float32_latents(batch)
        assert expected.dtype == np.float32
        np.testing.assert_array_equal(
            jax.jit(format.float32_latents)(batch), expected, err_msg=dtype
        )
        np.testing.assert_allclose(expected[:30], splits["test"]["latents"], atol=0.02)


@pytest.mark.parametrize(("cache", "memory_bytes"), [("host", 1000), ("device", 2000), ("none", 0)])
def test_a_cache_that_does_not_fit_is_refused(monkeypatch, cache, memory_bytes):
    """Half of the memory of a device is for the model."""
    arguments = {"records": {"train": 7, "validation": 1, "test": 2}, "latent_bytes": 100}
    limit = memory_bytes
    device = type("Device", (), {"memory_stats": lambda self: {"bytes_limit": limit}})()
    monkeypatch.setattr(batches_lib.jax, "local_devices", lambda: [device])
    monkeypatch.setattr(memory, "host_bytes", lambda: limit)
    assert not memory_problem(**arguments, cache=cache)
    limit -= 2
    problem = memory_problem(**arguments, cache=cache)
    assert (f"cache={cache}" in problem) == (cache != "none")
    assert ("1,000 bytes" in problem) == (cache != "none")


def test_an_unknown_cache_is_refused(functasets):
    with pytest.raises(ValueError, match="'disk'"):
        LatentBatches(functasets["float16"][0], cache="disk", **ONE)
