"""functa.data.functaset.batches: the same batches from disk, from memory and from the devices."""

import jax
import numpy as np
import pytest

from functa.data.functaset import (
    batches as latent_batches,
)
from functa.data.functaset import (
    format,
    reader,
)
from functa.data.functaset.batches import CACHES, LatentBatches
from functa.runtime import memory
from functa.runtime import mesh as mesh_lib
from tests.support import functaset_sets

ONE = {"copies": "all", "process_index": 0, "process_count": 1}


@pytest.fixture(scope="module")
def opened(tmp_path_factory):
    """{dtype: (functaset, records by split)}"""
    root = tmp_path_factory.mktemp("sets")
    found = {}
    for dtype in format.STORED_AS:
        splits = functaset_sets.write(root / dtype, dtype=dtype)
        found[dtype] = reader.open_functaset(root / dtype, field_digest=None), splits
    return found


def collect(batches):
    return [jax.tree.map(np.asarray, batch) for batch in batches]


@pytest.mark.parametrize("dtype", format.STORED_AS)
def test_every_cache_yields_the_same_batches(opened, dtype):
    opened_set, splits = opened[dtype]
    seen = {}
    for cache in CACHES:
        batches = LatentBatches(opened_set, cache=cache, **ONE)
        seen[cache] = collect(batches.train(batch_size=8, first_step=3, last_step=9, seed=1))
        seen[cache] += collect(batches.whole("test", batch_size=16))
    names = {"latents", "label"} | ({"scale"} if dtype == "int8" else set())
    assert [set(batch) for batch in seen["none"]] == [names] * 6 + [names | {"mask"}] * 2
    for cache in ("host", "device"):
        for batch, expected in zip(seen[cache], seen["none"], strict=True):
            for name, values in expected.items():
                assert batch[name].dtype == values.dtype
                np.testing.assert_array_equal(batch[name], values)
    whole = np.concatenate([batch["label"] for batch in seen["device"][6:]])
    np.testing.assert_array_equal(whole[:30], splits["test"]["label"])


@pytest.mark.parametrize("cache", CACHES)
def test_the_first_copies_are_the_images_themselves(opened, cache, monkeypatch):
    opened_set, splits = opened["float32"]
    count = opened_set.num_examples("train")
    copies = 3
    monkeypatch.setitem(opened_set.manifest.config, "encode", {"num_augmentations": copies})
    batches = LatentBatches(opened_set, cache=cache, **ONE | {"copies": "first"})
    steps = count // copies // 4
    seen = collect(batches.train(batch_size=4, first_step=0, last_step=steps, seed=1))
    found = {row.tobytes() for batch in seen for row in batch["latents"]}
    firsts = np.asarray(splits["train"]["latents"], np.float32)[: count // copies * copies : copies]
    assert found <= {row.tobytes() for row in firsts}
    assert len(found) == 4 * steps
    # Of the other splits there is one copy.
    rest = collect(batches.whole("test", batch_size=16))
    assert sum(batch["mask"].sum() for batch in rest) == opened_set.num_examples("test")


def test_device_batches_are_sharded_and_the_split_is_replicated(opened):
    mesh = mesh_lib.make_mesh()
    batches = LatentBatches(opened["float16"][0], cache="device", **ONE)
    batch = next(batches.train(batch_size=8, first_step=0, last_step=1, seed=0))
    assert mesh.size > 1
    assert batch["latents"].sharding.is_equivalent_to(mesh_lib.batched(mesh), 4)
    assert mesh_lib.to_devices(mesh, batch)["latents"] is batch["latents"]


def test_latents_travel_as_stored_and_become_float32_under_jit(opened):
    for dtype, (opened_set, splits) in opened.items():
        batches = LatentBatches(opened_set, cache="host", **ONE)
        (batch,) = batches.whole("test", batch_size=32)
        expected = format.float32_latents(batch)
        assert expected.dtype == np.float32
        np.testing.assert_array_equal(
            jax.jit(format.float32_latents)(batch), expected, err_msg=dtype
        )
        np.testing.assert_allclose(expected[:30], splits["test"]["latents"], atol=0.02)


def test_a_cache_without_room_is_refused(opened, monkeypatch):
    opened_set, _ = opened["float16"]
    examples = sum(opened_set.num_examples(split) for split in ("train", "validation", "test"))
    needed = examples * opened_set.manifest.layout.latent_bytes
    device = type("Device", (), {"memory_stats": lambda self: {"bytes_limit": needed}})()
    monkeypatch.setattr(latent_batches.jax, "local_devices", lambda: [device])
    with pytest.raises(ValueError, match=f"cache=device: the splits have {needed:,} bytes"):
        LatentBatches(opened_set, cache="device", **ONE)
    for room, refused in ((needed, False), (needed - 1, True)):
        monkeypatch.setattr(memory, "host_bytes", lambda room=room: room)
        LatentBatches(opened_set, cache="none", **ONE)
        if refused:
            with pytest.raises(ValueError, match=rf"cache=host: .* {needed:,} bytes.* use none"):
                LatentBatches(opened_set, cache="host", **ONE)
        else:
            LatentBatches(opened_set, cache="host", **ONE)
    # Of three copies the first are fewer.
    monkeypatch.setitem(opened_set.manifest.config, "encode", {"num_augmentations": 3})
    LatentBatches(opened_set, cache="host", **ONE | {"copies": "first"})


def test_a_device_counts_to_two_thousand_million(opened, monkeypatch):
    opened_set, _ = opened["float16"]
    for examples, refused in ((2**31 - 1, False), (2**31, True)):
        monkeypatch.setattr(opened_set, "num_examples", lambda split, n=examples: n)
        if refused:
            with pytest.raises(ValueError, match=r"2,147,483,648 examples, and devices count to"):
                LatentBatches(opened_set, cache="device", **ONE)
        else:
            LatentBatches(opened_set, cache="device", **ONE)


def test_an_unknown_cache_is_refused(opened):
    with pytest.raises(ValueError, match="cache must be none, host, device, not 'disk'"):
        LatentBatches(opened["float16"][0], cache="disk", **ONE)
