"""Locks of run directories in an object store and on disk, also with clocks that differ."""

import logging
import os
import time

import pytest
from etils import epath

from functa.pipeline import locks
from functa.runtime import distributed, gcs_retry
from tests.pipeline.remote_test import store  # noqa: F401  (a fixture)
from tests.runtime.gcs_retry_test import bucket, make_unavailable  # noqa: F401  (bucket: a fixture)

HOUR = 3600


@pytest.fixture(autouse=True)
def quick(monkeypatch):
    # A retry must end before the lock counts as abandoned.
    assert gcs_retry._MAX_PAUSE_SECONDS <= locks.RENEWAL_SECONDS
    monkeypatch.setattr(gcs_retry, "_MAX_PAUSE_SECONDS", 0.2)
    monkeypatch.setattr(locks, "RENEWAL_SECONDS", 0.2)


@pytest.fixture(params=["disk", "store"])
def lock(request, tmp_path):
    """Path of an object lock, on disk and in the emulator."""
    if request.param == "disk":
        return epath.Path(tmp_path) / ".lock"
    return request.getfixturevalue("bucket") / ".lock"


@pytest.fixture
def shift(monkeypatch):
    """Moves the clock of this host ahead by some seconds."""
    real = time.time
    return lambda seconds: monkeypatch.setattr(time, "time", lambda: real() + seconds)


def quiet(line):
    del line


@pytest.mark.parametrize("ahead", [0, HOUR, -HOUR])
def test_renewed_lock_excludes_a_second_program(lock, shift, ahead):
    said = []
    with locks._object_lock(lock, said.append):
        shift(ahead)
        second = locks._object_lock(lock, said.append)
        with pytest.raises(ValueError, match="another program is running .*process"), second:
            pass
        shift(0)
        assert lock.exists()
    assert not lock.exists()
    assert len(said) == 1


@pytest.mark.parametrize("ahead", [0, HOUR, -HOUR])
def test_lock_of_a_dead_program_is_taken_over(lock, shift, ahead):
    lock.write_text("process 1 on nowhere, 1.0")
    shift(ahead)
    with locks._object_lock(lock, quiet):
        first = lock.read_text()
        assert "nowhere" not in first
        deadline = time.monotonic() + 10
        while lock.read_text() in ("", first):
            assert time.monotonic() < deadline
            time.sleep(0.01)
    assert not lock.exists()


@pytest.mark.parametrize("ahead", [HOUR, -HOUR])
def test_file_lock_does_not_depend_on_the_clock(tmp_path, shift, ahead):
    with locks.directory_lock(epath.Path(tmp_path), quiet):
        shift(ahead)
        os.utime(tmp_path / ".lock", (time.time(), time.time()))
        second = locks.directory_lock(epath.Path(tmp_path), quiet)
        with pytest.raises(ValueError, match="another program is running"), second:
            pass
    os.utime(tmp_path / ".lock", (time.time(), time.time()))
    with locks.directory_lock(epath.Path(tmp_path), quiet):
        pass


def test_owner_keeps_its_lock_through_a_storage_outage(bucket, store):  # noqa: F811
    with locks._object_lock(bucket / ".lock", quiet):
        second = locks._object_lock(bucket / ".lock", lambda line: make_unavailable(store, 2))
        with pytest.raises(ValueError, match="another program is running"), second:
            pass


def test_outage_does_not_count_as_missed_renewal():
    answers = iter([(1.0, "before"), (0.0, "before"), (0.0, "renewed")])

    def content():
        seconds, text = next(answers)
        time.sleep(seconds)
        return text

    assert locks._wait_for_change(content, "before") == "renewed"


def test_program_ends_if_its_lock_is_taken_over(lock, monkeypatch, caplog):
    ended = []
    monkeypatch.setattr(distributed, "exit_process", ended.append)
    with caplog.at_level(logging.ERROR, "functa"), locks._object_lock(lock, quiet):
        lock.write_text("process 1 on another host, 5")
        deadline = time.monotonic() + 10
        while not ended:
            assert time.monotonic() < deadline
            time.sleep(0.01)
    assert set(ended) == {1}
    assert "another program has taken over" in caplog.text
    assert lock.read_text() == "process 1 on another host, 5"
