import threading
import time
from concurrent import futures

import numpy as np
import pytest

from functa.data import loader
from functa.runtime import mesh, rng

ONE = {"process_index": 0, "process_count": 1}


class IndexSource:
    """A source whose examples are their own indices."""

    def __init__(self, num_examples):
        self.num_examples = num_examples

    def read(self, indices):
        return {"id": indices.astype(np.int64), "image": (indices % 251).astype(np.uint8)[:, None]}


class DamagedSource(IndexSource):
    def read(self, indices):
        raise ValueError("record 17")


def train(n, *, batch_size=8, first=0, last=10, seed=0, **processes):
    """Ids [steps, b] of training batches."""
    batches = loader.train_batches(
        IndexSource(n),
        batch_size=batch_size,
        first_step=first,
        last_step=last,
        seed=seed,
        **ONE | processes,
    )
    return [batch["id"].tolist() for batch in batches]


def reference_order(n, *, seed, epochs):
    """The documented order of `epochs`, sorted in Python."""
    order = []
    for epoch in epochs:
        entropy = np.random.SeedSequence(rng.stream_seed(seed, "order", epoch))
        bits = np.random.Philox(entropy).random_raw(n)
        order += sorted(range(n), key=lambda k: int(bits[k]))
    return order


@pytest.mark.parametrize(("n", "batch_size"), [(20, 8), (21, 8), (5, 8), (64, 8)])
def test_steps_cut_the_endless_order_into_batches(n, batch_size):
    order = reference_order(n, seed=3, epochs=range(80 // n + 1))
    expected = [order[k * batch_size : (k + 1) * batch_size] for k in range(10)]
    assert train(n, batch_size=batch_size, seed=3) == expected


@pytest.mark.parametrize(
    ("batch_size", "devices", "micro_batches"), [(6, 8, 1), (8, 3, 2), (5, 5, 1)]
)
def test_repeated_examples_fill_all_devices(batch_size, devices, micro_batches):
    repeats = mesh.batch_repeats(batch_size, devices=devices, micro_batches=micro_batches)
    assert (batch_size * repeats) % (devices * micro_batches) == 0
    once = train(20, batch_size=batch_size)
    shares = [
        train(20, batch_size=batch_size, repeats=repeats, process_index=k, process_count=devices)
        for k in range(devices)
    ]
    for batch, *parts in zip(once, *shares, strict=True):
        assert len({len(part) for part in parts}) == 1
        assert sum(parts, []) == [example for example in batch for _ in range(repeats)]


def test_epochs_and_seeds_have_permutations_of_their_own():
    # With seed + epoch as the seed of an epoch, epoch 1 of seed 0 would be epoch 0 of seed 1.
    epochs = np.reshape([train(8, last=3, seed=seed) for seed in range(4)], (12, 8))
    assert np.all(np.sort(epochs, axis=1) == np.arange(8))
    assert len({tuple(epoch) for epoch in epochs}) == 12


def test_order_is_the_same_in_every_release():
    assert train(10, batch_size=5, last=3) == [[6, 3, 7, 2, 0], [5, 4, 1, 9, 8], [3, 9, 5, 0, 6]]


@pytest.mark.parametrize("stop", [0, 1, 7, 12])
def test_resuming_continues_the_order(stop):
    assert train(37, last=stop) + train(37, first=stop, last=12) == train(37, last=12)


def test_positions_above_32_bits_are_exact():
    first, batch_size, n = 3_000_000, 4096, 21
    (batch,) = train(n, batch_size=batch_size, first=first, last=first + 1)
    epoch, offset = divmod(first * batch_size, n)
    assert first * batch_size > 2**33
    expected = reference_order(n, seed=0, epochs=range(epoch, epoch + 3))
    assert batch[:40] == expected[offset : offset + 40]


def test_threads_sort_an_order_once(monkeypatch):
    calls = []
    stream_seed = rng.stream_seed

    def slow_seed(*path):
        calls.append(path)
        time.sleep(0.05)
        return stream_seed(*path)

    monkeypatch.setattr(rng, "stream_seed", slow_seed)
    options = {"num_examples": 12_347, "seed": 9}
    with futures.ThreadPoolExecutor(8) as pool:
        for _ in range(8):
            pool.submit(loader.shuffled_examples, np.arange(5), **options)
    assert calls == [(9, "order", 0)]


@pytest.mark.parametrize("count", [1, 2, 4])
def test_processes_share_the_global_batch(count):
    shares = [train(37, process_index=p, process_count=count) for p in range(count)]
    assert [sum(step, []) for step in zip(*shares, strict=True)] == train(37)


@pytest.mark.parametrize("count", [1, 2, 4])
@pytest.mark.parametrize("n", [1, 7, 8, 9, 17])
def test_evaluation_reads_every_example_once_and_in_order(n, count):
    source = IndexSource(n)
    shares = [
        list(loader.eval_batches(source, batch_size=8, process_index=p, process_count=count))
        for p in range(count)
    ]
    assert {len(share) for share in shares} == {-(-n // 8)}
    batches = [batch for step in zip(*shares, strict=True) for batch in step]
    for batch in batches:
        dtypes = {k: v.dtype.name for k, v in batch.items()}
        assert dtypes == {"id": "int64", "image": "uint8", "mask": "float32"}
        assert {len(v) for v in batch.values()} == {8 // count}
    ids, mask = (np.concatenate([batch[name] for batch in batches]) for name in ("id", "mask"))
    np.testing.assert_array_equal(ids, np.minimum(np.arange(len(ids)), n - 1))
    np.testing.assert_array_equal(mask, np.arange(len(ids)) < n)


def test_evaluation_of_an_empty_split_has_no_batches():
    assert list(loader.eval_batches(IndexSource(0), batch_size=8, **ONE)) == []


@pytest.mark.parametrize("close", [True, False])
def test_prefetching_ends_with_the_iterator(close):
    def prefetching():
        return {t for t in threading.enumerate() if t.name.startswith("grain-prefetch")}

    before = prefetching()
    batches = loader.train_batches(
        IndexSource(100), batch_size=8, first_step=0, last_step=10**9, seed=0, **ONE
    )
    next(batches)
    assert prefetching() - before
    if close:
        batches.close()
    else:
        del batches
    deadline = time.monotonic() + 5
    while prefetching() - before and time.monotonic() < deadline:
        time.sleep(0.01)
    assert not prefetching() - before


def test_errors_of_the_source_are_raised_by_the_iterator():
    source, steps = DamagedSource(9), {"first_step": 0, "last_step": 5, "seed": 0}
    for batches in (
        loader.train_batches(source, batch_size=4, **steps, **ONE),
        loader.eval_batches(source, batch_size=4, **ONE),
    ):
        with pytest.raises(ValueError, match="record 17"):
            next(batches)


def test_processes_must_divide_the_batch():
    with pytest.raises(ValueError, match="2 processes"):
        loader.eval_batches(IndexSource(9), batch_size=9, process_index=0, process_count=2)
