"""Loaders: the same examples in the same order, whatever the processes, threads and restarts."""

import threading
import time

import numpy as np
import pytest

from functa.data import loader
from functa.runtime import rng


class Numbers:
    """A source whose rows are their own indices."""

    def __init__(self, num_examples):
        self.num_examples = num_examples

    def read(self, indices):
        return {"id": indices.astype(np.int64), "image": (indices % 251).astype(np.uint8)[:, None]}


class Broken(Numbers):
    def read(self, indices):
        raise ValueError("record 17 of shard.array_record is damaged")


ONE = {"process_index": 0, "process_count": 1}


def train(n, *, batch_size=8, first=0, last=10, seed=0, **processes):
    return list(
        loader.train_batches(
            Numbers(n),
            batch_size=batch_size,
            first_step=first,
            last_step=last,
            seed=seed,
            **ONE | processes,
        )
    )


def ids(batches):
    return [batch["id"].tolist() for batch in batches]


def slow_order(n, seed, epochs):
    """The documented order, one Python sort an epoch."""
    order = []
    for epoch in range(epochs):
        bits = np.random.Philox(
            np.random.SeedSequence(rng.stream_seed(seed, "order", epoch))
        ).random_raw(n)
        order += sorted(range(n), key=lambda k: int(bits[k]))
    return order


@pytest.mark.parametrize(("n", "batch_size"), [(20, 8), (21, 8), (5, 8), (64, 8)])
def test_steps_cut_the_endless_order_into_batches(n, batch_size):
    order = slow_order(n, seed=3, epochs=80 // n + 1)
    batches = train(n, batch_size=batch_size, seed=3)
    assert ids(batches) == [order[k * batch_size : (k + 1) * batch_size] for k in range(10)]
    assert set(batches[0]) == {"id", "image"}


def test_every_epoch_is_another_permutation():
    seen = np.concatenate(ids(train(16, batch_size=4, last=12))).reshape(3, 16)
    assert np.all(np.sort(seen, axis=1) == np.arange(16))
    assert len({tuple(epoch) for epoch in seen}) == 3


def test_seeds_differ_and_do_not_follow_each_other():
    # With seed + epoch as the epoch's seed, epoch 1 of seed 0 would be epoch 0 of seed 1.
    epochs = [tuple(np.concatenate(ids(train(8, last=3, seed=seed)))) for seed in range(4)]
    pieces = [epoch[k : k + 8] for epoch in epochs for k in (0, 8, 16)]
    assert len(set(pieces)) == 12


def test_every_example_comes_to_every_place():
    seen = np.array(ids(train(4, batch_size=4, last=400)))
    for place in range(4):
        counts = np.bincount(seen[:, place], minlength=4)
        assert np.all(np.abs(counts - 100) < 40)


def test_the_order_is_the_same_in_every_release():
    assert ids(train(10, batch_size=5, last=3)) == [
        [6, 3, 7, 2, 0],
        [5, 4, 1, 9, 8],
        [3, 9, 5, 0, 6],
    ]


@pytest.mark.parametrize("stop", [0, 1, 7, 12])
def test_restarting_continues_exactly(stop):
    unbroken = ids(train(37, last=12))
    assert ids(train(37, last=stop)) + ids(train(37, first=stop, last=12)) == unbroken


def test_positions_beyond_32_bits_are_exact():
    """Step 3,000,000 of 4,096 examples begins at position 1.2e10."""
    first, batch_size, n = 3_000_000, 4096, 21
    batches = train(n, batch_size=batch_size, first=first, last=first + 1)
    epoch, offset = divmod(first * batch_size, n)
    assert first * batch_size > 2**33
    expected = []
    for number in range(epoch, epoch + 3):
        bits = np.random.Philox(
            np.random.SeedSequence(rng.stream_seed(0, "order", number))
        ).random_raw(n)
        expected += sorted(range(n), key=lambda k: int(bits[k]))
    assert batches[0]["id"][:40].tolist() == expected[offset : offset + 40]


def test_an_order_is_sorted_once_whatever_the_threads(monkeypatch):
    """All of them want the next one where an epoch ends."""
    sorted_ = []

    def slow_seed(*path):
        sorted_.append(path)
        time.sleep(0.05)
        return stream_seed(*path)

    stream_seed = rng.stream_seed
    monkeypatch.setattr(rng, "stream_seed", slow_seed)
    threads = [
        threading.Thread(
            target=loader.shuffled,
            args=(np.arange(5),),
            kwargs={"num_examples": 12_347, "seed": 9},
        )
        for _ in range(8)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted_ == [(9, "order", 0)]


@pytest.mark.parametrize("count", [1, 2, 4])
def test_processes_share_the_global_batch(count):
    parts = [ids(train(37, process_index=p, process_count=count)) for p in range(count)]
    joined = [sum(step, []) for step in zip(*parts, strict=True)]
    assert joined == ids(train(37))


@pytest.mark.parametrize("count", [1, 2, 4])
@pytest.mark.parametrize("n", [1, 7, 8, 9, 17])
def test_evaluation_sees_every_example_once_in_order(n, count):
    parts = [
        list(loader.eval_batches(Numbers(n), batch_size=8, process_index=p, process_count=count))
        for p in range(count)
    ]
    assert {len(part) for part in parts} == {-(-n // 8)}
    seen, masks = [], []
    for step in zip(*parts, strict=True):
        for batch in step:
            assert {k: v.dtype.name for k, v in batch.items()} == {
                "id": "int64",
                "image": "uint8",
                "mask": "float32",
            }
            assert {len(v) for v in batch.values()} == {8 // count}
            seen += batch["id"].tolist()
            masks += batch["mask"].tolist()
    assert [k for k, mask in zip(seen, masks, strict=True) if mask == 1] == list(range(n))
    assert masks == [1.0] * n + [0.0] * (len(masks) - n)
    assert set(seen[n:]) <= {n - 1}


def test_evaluation_of_nothing_has_no_batches():
    assert list(loader.eval_batches(Numbers(0), batch_size=8, **ONE)) == []


@pytest.mark.parametrize("closed", [True, False])
def test_reading_ahead_ends_with_the_loop(closed):
    def reading():
        return {t for t in threading.enumerate() if t.name.startswith("grain-prefetch")}

    before = reading()
    batches = loader.train_batches(
        Numbers(100), batch_size=8, first_step=0, last_step=10**9, seed=0, **ONE
    )
    next(batches)
    assert reading() - before
    if closed:
        batches.close()
    else:
        del batches
    deadline = time.monotonic() + 5
    while reading() - before and time.monotonic() < deadline:
        time.sleep(0.01)
    assert not reading() - before


def test_a_source_s_error_reaches_the_loop():
    for batches in (
        loader.train_batches(Broken(9), batch_size=4, first_step=0, last_step=5, seed=0, **ONE),
        loader.eval_batches(Broken(9), batch_size=4, **ONE),
    ):
        with pytest.raises(ValueError, match="record 17 of shard"):
            next(batches)


def test_errors_come_at_the_call_and_hold_the_numbers():
    with pytest.raises(ValueError, match="batch of 9 examples does not divide by 2"):
        loader.eval_batches(Numbers(9), batch_size=9, process_index=0, process_count=2)
    with pytest.raises(ValueError, match="batch of 0"):
        loader.eval_batches(Numbers(9), batch_size=0, **ONE)
    with pytest.raises(ValueError, match="process 2 of 2"):
        loader.eval_batches(Numbers(9), batch_size=8, process_index=2, process_count=2)
    steps = {"batch_size": 3, "seed": 0}
    with pytest.raises(ValueError, match="split of 0 examples"):
        loader.train_batches(Numbers(0), first_step=0, last_step=1, **steps, **ONE)
    with pytest.raises(ValueError, match="not 5, 4"):
        loader.train_batches(Numbers(9), first_step=5, last_step=4, **steps, **ONE)
