"""Work that processes share, with real processes."""

import json
import socket
import subprocess
import sys

import numpy as np

PROGRAM = """
import json
import numpy as np
from functa.runtime import distributed, processes
from functa.runtime.batching import apply_on_all_processes

distributed.initialize()
computed, rows_read = [], []

def compute(number):
    computed.append(number)
    return number, np.full((2, number), number / 3)

def square(rows):
    rows_read.extend(rows.tolist())
    return rows[:, None] / np.array([3.0, 7.0])

parts = [(int(n), array.tolist()) for n, array in processes.share_work(compute, 5, name="parts")]
values = apply_on_all_processes(square, 11, batch_size=4, name="values")
print(json.dumps([computed, sorted(set(rows_read)), parts, values.tolist()]))
distributed.complete()
"""


def run(env, count):
    """What PROGRAM prints in each of `count` processes."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        port = listener.getsockname()[1]
    started = []
    for index in range(count):
        variables = {
            "JAX_COORDINATOR_ADDRESS": f"127.0.0.1:{port}",
            "JAX_NUM_PROCESSES": str(count),
            "JAX_PROCESS_ID": str(index),
        }
        started.append(
            subprocess.Popen(
                [sys.executable, "-c", PROGRAM], env=env | variables, stdout=subprocess.PIPE
            )
        )
    # Gloo prints lines of its own first.
    return [json.loads(p.communicate(timeout=120)[0].splitlines()[-1]) for p in started]


def test_each_of_two_processes_does_half_of_the_work_and_has_all_results(program_env):
    expected = np.arange(11)[:, None] / np.array([3.0, 7.0])
    outputs = run(program_env, 2)
    assert [computed for computed, *_ in outputs] == [[0, 2, 4], [1, 3]]
    assert [rows for _, rows, *_ in outputs] == [[0, 1, 2, 3, 4, 5], [6, 7, 8, 9, 10]]
    for _, _, parts, values in outputs:
        assert parts == [[n, np.full((2, n), n / 3).tolist()] for n in range(5)]
        assert values == expected.tolist()  # no bit of a float64 is lost
