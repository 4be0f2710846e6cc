"""Input that is waited for; with several processes in failures_test.py."""

import functools
import os
import threading
import time

import pytest

from functa.data import read_timeout
from functa.runtime import errors
from tests.support import functaset_sets


def test_items_come_in_order_and_are_read_one_ahead():
    read = []

    def items():
        for number in range(5):
            read.append(number)
            yield number

    patient = read_timeout.patient(items(), str)
    assert [next(patient), next(patient)] == [0, 1]
    time.sleep(0.1)
    assert read == [0, 1, 2]
    assert list(patient) == [2, 3, 4]


def test_an_error_comes_where_its_item_would_have():
    def items():
        yield "good"
        raise ValueError("record 7")

    patient = read_timeout.patient(items(), str)
    assert next(patient) == "good"
    with pytest.raises(ValueError, match="record 7"):
        next(patient)


def test_its_thread_ends_with_it():
    before = set(threading.enumerate())
    patient = read_timeout.patient(iter(range(100)), str)
    next(patient)
    (own,) = set(threading.enumerate()) - before
    patient.close()
    own.join(5)
    assert not own.is_alive()


def test_what_is_read_ahead_comes_in_order_from_several_threads():
    begun, both = [], threading.Barrier(2)

    def read(number):
        begun.append(number)
        if number < 2:
            both.wait(10)  # neither comes back before both have begun
        return number

    tasks = (functools.partial(read, number) for number in range(7))
    reading = read_timeout.read_ahead(tasks, threads=2)
    assert next(reading) == 0
    assert set(begun) <= {0, 1, 2}
    assert list(reading) == [1, 2, 3, 4, 5, 6]


def test_who_reads_ahead_does_not_wait_for_a_read_that_hangs():
    begun, mended = threading.Event(), threading.Event()

    def hang():
        begun.set()
        mended.wait(20)

    reading = read_timeout.read_ahead([lambda: 1, hang, lambda: 2], threads=2)
    assert next(reading) == 1
    begun.wait(20)
    begin = time.monotonic()
    reading.close()
    assert time.monotonic() - begin < 10
    mended.set()


def test_encoding_is_given_up_where_a_read_hangs(tmp_path, monkeypatch, caplog):
    monkeypatch.setattr(read_timeout, "_TELL_SECONDS", 0.2)
    monkeypatch.setattr(read_timeout, "_HUNG_SECONDS", 0.5)
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    splits = functaset_sets.make_splits()
    read = splits["test"].read

    def blocking(indices):
        pipe.read_bytes()
        return read(indices)

    splits["test"].read = blocking
    with pytest.raises(
        errors.InputTimeoutError, match="no input of records 0 to 15 of the test split"
    ):
        functaset_sets.encode(tmp_path / "functaset", splits=splits)
    assert "waiting for input of records 0 to 15 of the test split" in caplog.text
    assert list((tmp_path / "functaset").glob("functaset-train*"))
    pipe.write_bytes(b"")
