"""What a process says of its memory."""

import subprocess
import sys

import numpy as np

from functa.runtime import memory

MEGABYTE = 1_000_000
PEAK = "from functa.runtime import memory; print(memory.peak_bytes())"


def test_the_peak_remembers_what_was_freed():
    before = memory.process_bytes("VmRSS")
    block = np.ones(300 * MEGABYTE, np.uint8)
    del block
    assert memory.peak_bytes() > before + 290 * MEGABYTE


def test_the_peak_is_none_of_the_process_that_started_this_program(program_env):
    block = np.ones(
        300 * MEGABYTE, np.uint8
    )  # which a new process has, until it is another program
    told = subprocess.run(
        [sys.executable, "-c", PEAK], env=program_env, capture_output=True, check=True
    )
    assert 1 * MEGABYTE < int(told.stdout) < 100 * MEGABYTE < block.nbytes


def test_a_machine_has_more_memory_than_this_process():
    assert memory.process_bytes("VmRSS") < memory.host_bytes() < 2**50
