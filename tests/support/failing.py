"""functa.main with injected faults: python -m tests.support.failing FAULTS ARGUMENTS...

FAULTS is a JSON object {"PROCESS": {fault: value}}; "*" is every process. Faults:
    constant   {"MODULE.NAME": number}, to shorten timeouts
    toy        number of steps: meta_learn trains a linear regression, which compiles in a second
    alone      seconds of meta_learn without any communication
    fifo       {PATH: K}: the read of batch K of the toy, from 1, blocks until PATH is written
    nan        K: batch K of the toy contains NaN
    clock      seconds by which the clock is ahead
    file_size  largest size of a file in bytes, as for `ulimit -f`
"""

import importlib
import json
import os
import pathlib
import resource
import signal
import sys
import time

import jax
import jax.numpy as jnp
import numpy as np
import optax
from absl import app

from functa import main
from functa.data import loader
from functa.pipeline import stages
from functa.report import metric_registry, report
from functa.runtime import cli_errors
from functa.runtime.errors import StopRequested
from functa.training.optimizers import Optimizer
from functa.training.tasks import Task, TaskData, TaskMetrics

# Faults that need to know the number of processes.
LATER: list = []


class Rows:
    """Examples of a linear regression; `faults` is {indices of a batch: function of the batch}."""

    num_examples = 64
    faults: dict = {}

    def read(self, indices):
        x = np.random.default_rng(0).normal(size=(64, 3)).astype(np.float32)[indices]
        batch = {"x": x, "y": x @ np.float32([1, 2, 3])}
        return self.faults.get(tuple(indices), lambda batch: batch)(batch)


def _on(number, fault):
    """Applies `fault` to this process's share of batch `number`."""
    positions = np.arange(16 * (number - 1), 16 * number).reshape(jax.process_count(), -1)
    rows = loader.shuffled_examples(positions[jax.process_index()], num_examples=64, seed=0)
    Rows.faults[tuple(rows)] = fault


def constant(values):
    for name, value in values.items():
        module, _, attribute = name.rpartition(".")
        module = importlib.import_module(module)
        assert hasattr(module, attribute), name
        setattr(module, attribute, value)


def toy(steps):
    def errors(params, batch):
        return jnp.square(batch["x"] @ params["w"] - batch["y"])

    def stage(run):
        for fault, value in LATER:
            globals()["_" + fault](value)
        order = {"batch_size": 16, "seed": 0, **run.processes}
        task = Task(
            name="meta_learn",
            init=lambda key: {"w": jax.random.normal(key, (3,))},
            sample_inputs=lambda batch, key: batch,
            loss=lambda params, inputs: (jnp.mean(errors(params, inputs)), {}),
            optimizer=Optimizer(optax.adam(0.1), lambda step: 0.1),
            data=TaskData(
                train_batches=lambda first, last: loader.train_batches(
                    Rows(), first_step=first, last_step=last, **order
                ),
                eval_batches=lambda split: loader.eval_batches(
                    Rows(), batch_size=16, **run.processes
                ),
                images_per_step=16,
            ),
            metrics=TaskMetrics(
                evaluate=lambda params, batch: {"error": errors(params, batch)},
                summarize=lambda rows: {"score": -float(rows["error"].mean())},
                score="score",
            ),
        )
        run.config.meta_learn.steps = steps
        return run.train(task).metrics

    stage.__doc__ = "a toy"
    stages.STAGES["meta_learn"] = stage
    # The summary and the report need metrics of the real stage.
    metric_registry.write_summary = metric_registry.results_table = lambda *args: ""
    report.write_report = lambda *args: ""


def alone(seconds):
    def stage(run):
        print("alone", flush=True)
        until = time.monotonic() + seconds
        while time.monotonic() < until:
            if run.preemption.should_stop():
                raise StopRequested("meta_learn stopped")
            time.sleep(0.1)
        return {"earlier_seconds": 0.0}

    stage.__doc__ = "work without communication"
    stages.STAGES["meta_learn"] = stage


def _fifo(numbers):
    for path, number in numbers.items():

        def block(batch, path=path):
            print("blocks", flush=True)
            pathlib.Path(path).read_bytes()
            return batch

        _on(number, block)


def _nan(number):
    _on(number, lambda batch: batch | {"y": np.full_like(batch["y"], np.nan)})


def clock(seconds):
    real = time.time
    time.time = lambda: real() + seconds


def file_size(size):
    # Without the signal, the write fails with EFBIG.
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, size))


if __name__ == "__main__":
    given = json.loads(sys.argv.pop(1))
    for process in ("*", os.environ.get("JAX_PROCESS_ID", "0")):
        for fault, value in given.get(process, {}).items():
            if fault in ("fifo", "nan"):
                LATER.append((fault, value))
            else:
                globals()[fault](value)
    app.run(main.main, flags_parser=cli_errors.flags_parser("functa", main._CONFIG))
