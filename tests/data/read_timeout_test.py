"""Tests with several processes are in pipeline/failures_test.py."""

import functools
import threading
import time

import pytest

from functa.data import read_timeout
from functa.runtime.errors import InputTimeoutError
from tests.support import functaset_sets


def test_items_are_in_order_and_read_one_ahead():
    read = []

    def items():
        for number in range(5):
            read.append(number)
            yield number

    iterator = read_timeout.with_timeout(items(), str)
    assert [next(iterator), next(iterator)] == [0, 1]
    time.sleep(0.1)
    assert read == [0, 1, 2]
    assert list(iterator) == [2, 3, 4]


def test_errors_are_raised_in_place_of_their_item():
    def items():
        yield "good"
        raise ValueError("record 7")

    iterator = read_timeout.with_timeout(items(), str)
    assert next(iterator) == "good"
    with pytest.raises(ValueError, match="record 7"):
        next(iterator)


def test_closing_ends_the_thread():
    before = set(threading.enumerate())
    iterator = read_timeout.with_timeout(iter(range(100)), str)
    next(iterator)
    (thread,) = set(threading.enumerate()) - before
    iterator.close()
    thread.join(5)
    assert not thread.is_alive()


def test_prefetch_yields_in_order_and_uses_several_threads():
    submitted, both = [], threading.Barrier(2)

    def read(number):
        if number < 2:
            both.wait(10)  # neither returns before both have started
        return number

    def tasks():
        for number in range(7):
            submitted.append(number)
            yield functools.partial(read, number)

    results = read_timeout.prefetch(tasks(), threads=2)
    assert next(results) == 0
    assert submitted == [0, 1]
    assert list(results) == [1, 2, 3, 4, 5, 6]


def test_closing_prefetch_does_not_wait_for_a_hanging_read():
    started, resumed = threading.Event(), threading.Event()

    def hang():
        started.set()
        resumed.wait(20)

    results = read_timeout.prefetch([lambda: 1, hang, lambda: 2], threads=2)
    assert next(results) == 1
    started.wait(20)
    begin = time.monotonic()
    results.close()
    assert time.monotonic() - begin < 10
    resumed.set()


def test_encoding_fails_where_a_read_hangs(tmp_path, monkeypatch, caplog):
    monkeypatch.setattr(read_timeout, "_WARN_SECONDS", 0.2)
    monkeypatch.setattr(read_timeout, "_TIMEOUT_SECONDS", 0.5)
    resumed = threading.Event()
    splits = functaset_sets.make_splits()
    read = splits["test"].read

    def hanging_read(indices):
        resumed.wait(60)
        return read(indices)

    splits["test"].read = hanging_read
    with pytest.raises(InputTimeoutError, match="records 0 to 15 of the test split"):
        functaset_sets.encode(tmp_path / "functaset", splits=splits)
    resumed.set()
    assert "waiting for input of records 0 to 15 of the test split" in caplog.text
    assert list((tmp_path / "functaset").glob("functaset-train*"))
