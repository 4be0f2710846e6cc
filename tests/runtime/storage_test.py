"""Concurrent requests and the limit of open files."""

import subprocess
import sys
import threading

from functa.runtime import storage
from tests.support import functaset_sets


def test_thread_map_keeps_the_order_and_runs_concurrently():
    together = threading.Barrier(8, timeout=30)

    def twice(number):
        together.wait()  # for eight concurrent calls
        return 2 * number

    assert storage.thread_map(twice, range(8)) == [0, 2, 4, 6, 8, 10, 12, 14]
    assert storage.thread_map(twice, []) == []


READ_ALL = """
import resource, sys
import numpy as np
from functa.data.functaset import reader
resource.setrlimit(resource.RLIMIT_NOFILE, (40, int(sys.argv[2])))
opened = reader.open_functaset(sys.argv[1], field_digest=None)
sources = [opened.source(split) for split in ("train", "test")]
print([len(each.read(np.arange(each.num_examples))["label"]) for each in sources])
"""


def test_limit_of_open_files_is_raised(tmp_path, program_env):
    functaset_sets.write(
        tmp_path / "f", sizes={"train": 280, "validation": 0, "test": 280}, per_shard=1
    )

    def read_all(hard):
        command = [sys.executable, "-c", READ_ALL, str(tmp_path / "f"), str(hard)]
        return subprocess.run(command, env=program_env, capture_output=True, text=True, check=False)

    done = read_all(hard=900)
    assert done.stdout == "[280, 280]\n", done.stderr  # both splits stay open
    refused = read_all(hard=800)
    assert refused.returncode != 0
    assert "560" in refused.stderr
