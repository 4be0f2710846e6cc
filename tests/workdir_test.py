"""The lock of a work directory in an object store; those of disks are in pipeline_test.py."""

import time

import pytest
from etils import epath

from functa import workdir


@pytest.fixture
def lock(tmp_path, monkeypatch):
    monkeypatch.setattr(workdir, "_RENEWAL_SECONDS", 0.3)
    return epath.Path(tmp_path) / ".lock"


def test_a_lock_that_is_renewed_keeps_a_second_program_out(lock):
    said = []
    with workdir._renewed(lock, said.append):
        second = workdir._renewed(lock, said.append)
        with pytest.raises(ValueError, match="another program is at work .*process"), second:
            pass
        assert lock.exists()
    assert not lock.exists()
    assert len(said) == 1


def test_a_lock_of_a_dead_program_is_taken_over(lock):
    lock.write_text("process 1 on nowhere, 1.0")
    with workdir._renewed(lock, lambda line: None):
        first = lock.read_text()
        assert "nowhere" not in first
        deadline = time.monotonic() + 10
        while lock.read_text() in ("", first):
            assert time.monotonic() < deadline
            time.sleep(0.01)
    assert not lock.exists()
