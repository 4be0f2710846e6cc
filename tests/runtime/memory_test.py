"""Peak memory of this process and memory of the machine."""

import subprocess
import sys

import numpy as np

from functa.runtime import memory

MEGABYTE = 1_000_000
PEAK = "from functa.runtime import memory; print(memory.peak_bytes())"


def test_peak_includes_freed_memory_but_not_memory_of_the_parent_process(program_env):
    before = memory.process_bytes("VmRSS")
    block = np.ones(300 * MEGABYTE, np.uint8)
    child = subprocess.run([sys.executable, "-c", PEAK], env=program_env, stdout=-1, check=True)
    assert 1 * MEGABYTE < int(child.stdout) < 100 * MEGABYTE < block.nbytes
    del block
    assert before + 290 * MEGABYTE < memory.peak_bytes() < 2**50
    assert memory.process_bytes("VmRSS") < memory.host_bytes() < 2**50


def test_other_systems_than_linux_need_none_of_its_calls(monkeypatch):
    monkeypatch.delattr("os.sched_getaffinity", raising=False)
    monkeypatch.setattr("sys.platform", "darwin")
    monkeypatch.setattr("ctypes.CDLL", None)  # there is no mallopt
    assert memory.usable_cores() >= 1
    memory.keep_freed_memory()
