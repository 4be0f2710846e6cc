#!/usr/bin/env python3
"""Seconds from the command to the end of its first training step, with a cold and with a warm compilation cache.

    python -m tools.benchmarks.start --config=configs/cifar10_spatial.py:8x8x16,nearest,two_core

Starts `python -m functa.main` with these arguments in a new folder, once with an empty compilation
cache and --repeats times with the cache that it left, stops it after its first step, and prints the
median of the warm starts. What is read from disk comes from the page cache after the first start.

--json prints one object: cold_seconds, warm_seconds (median), spread ((max - min) / median), repeats.
"""

import argparse
import json
import os
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence

from tools.benchmarks.harness import positive

LIMIT = 600.0  # seconds that a start may take


def first_step(arguments: Sequence[str], *, cache: str) -> float:
    """Seconds until the first step is told.

    Raises:
      RuntimeError: the program ended before it; with what it said.
    """
    with tempfile.TemporaryDirectory(prefix="bench-start-") as workdir:
        command = [
            sys.executable, "-m", "functa.main", *arguments, f"--workdir={workdir}/run",
        ]  # fmt: skip
        begin = time.perf_counter()
        process = subprocess.Popen(
            command,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            env=os.environ | {"JAX_COMPILATION_CACHE_DIR": cache},
        )
        said = []
        try:
            assert process.stdout is not None
            for line in process.stdout:
                said.append(line)
                if "  first step after " in line:
                    return time.perf_counter() - begin
                if time.perf_counter() - begin > LIMIT:
                    break
            raise RuntimeError("no first step:\n" + "".join(said[-20:]))
        finally:
            process.send_signal(signal.SIGTERM)  # saves, and leaves nothing running
            process.communicate(timeout=LIMIT)


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--repeats", type=positive, default=3)
    parser.add_argument("--json", action="store_true")
    arguments, rest = parser.parse_known_args(argv)
    try:
        with tempfile.TemporaryDirectory(prefix="bench-start-") as cache:
            cold = first_step(rest, cache=cache)
            warm = [first_step(rest, cache=cache) for _ in range(arguments.repeats)]
    except RuntimeError as error:
        print(f"bench_start: {error}", file=sys.stderr)
        return 2
    middle = statistics.median(warm)
    result = {
        "cold_seconds": cold,
        "warm_seconds": middle,
        "spread": (max(warm) - min(warm)) / middle,
        "repeats": arguments.repeats,
    }
    if arguments.json:
        print(json.dumps(result))
    else:
        print(f"cold {cold:.1f} s, warm {middle:.1f} s, spread {result['spread']:.0%}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
