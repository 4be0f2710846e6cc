"""The training loop on a linear regression: resuming, non-finite values, best checkpoints, sharding."""

import itertools
import json
import os
import shutil
import signal
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from functa.runtime import config
from functa.runtime import mesh as mesh_lib
from functa.runtime.errors import DamagedFileError, StopRequested
from functa.runtime.preemption import PreemptionWatcher
from functa.training import loop
from functa.training.checkpoint import Checkpoints
from functa.training.optimizers import Optimizer
from functa.training.tasks import Task, TaskData, TaskMetrics
from functa.training.tensorboard import NullDashboard

SETTINGS = dict(
    seed=0, steps=8, ema_decay=0.5, micro_batches=1, log_every=2, eval_every=4, checkpoint_every=2
)
WEIGHTS = np.float32([1, 2, 3])


def train_batches(first, last, nan_step=-1):
    for step in range(first, last):
        x = np.random.default_rng(step).normal(size=(8, 3)).astype(np.float32)
        y = np.where(step == nan_step, np.nan, x @ WEIGHTS).astype(np.float32)
        yield {"x": x, "y": y}


def eval_batches(split):
    """11 examples in two batches of 8."""
    for first in (0, 8):
        x = np.arange(first * 3, (first + 8) * 3, dtype=np.float32).reshape(8, 3) / 48
        mask = (np.arange(first, first + 8) < 11).astype(np.float32)
        yield {"x": x, "y": x @ WEIGHTS, "mask": mask}


def squared_errors(params, batch):
    return jnp.square(batch["x"] @ params["w"] - batch["y"])


def loss(params, inputs):
    return jnp.mean(squared_errors(params, inputs) + inputs["noise"] * params["w"][0]), {}


METRICS = TaskMetrics(
    evaluate=lambda params, batch: {"error": squared_errors(params, batch)},
    summarize=lambda rows: {
        "score": -float(rows["error"].mean()),
        "count": float(len(rows["error"])),
    },
    score="score",
)
TASK = Task(
    name="regression",
    init=lambda key: {"w": jax.random.normal(key, (3,))},
    sample_inputs=lambda batch, key: batch | {"noise": 1e-3 * jax.random.normal(key, (8,))},
    loss=loss,
    optimizer=Optimizer(optax.adam(0.1), lambda step: 0.1),
    data=TaskData(train_batches, eval_batches, images_per_step=8),
    metrics=METRICS,
    monitor=lambda params: ({"largest": float(abs(params["w"]).max())}, ""),
)


def with_nan_at(step):
    batches = lambda first, last: train_batches(first, last, nan_step=step)  # noqa: E731
    return TASK._replace(data=TASK.data._replace(train_batches=batches))


def with_scores(*scores):
    """The task with given scores of its successive evaluations."""
    scores = iter(scores)
    metrics = METRICS._replace(summarize=lambda rows: {"score": next(scores)})
    return TASK._replace(metrics=metrics)


class StopAt:
    """Stands for a PreemptionWatcher that asks to stop at one step."""

    def __init__(self, step):
        self.step = step

    def should_stop_at(self, step):
        return step == self.step


def run(directory, task=TASK, mesh=None, stop_at=None, **changes):
    """Returns the result and the logged lines."""
    lines = []
    result = loop.train(
        task,
        directory=directory,
        mesh=mesh or mesh_lib.make_mesh(),
        dashboard=NullDashboard(),
        preemption=StopAt(stop_at),
        say=lines.append,
        **(SETTINGS | changes),
    )
    return result, lines


def resumed_at(lines):
    """Step at which a run resumed, from its log."""
    (line,) = (line for line in lines if "resumes" in line)
    return int(line.split()[-1])


def array_bytes(tree):
    return [np.asarray(leaf).tobytes() for leaf in jax.tree.leaves(tree)]


def curves(directory):
    """Curves without speeds."""
    values = json.loads((directory / "curves.json").read_text())
    return {name: points for name, points in values.items() if "per_second" not in name}


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """(directory, result) of a run that was not stopped."""
    directory = tmp_path_factory.mktemp("whole")
    return directory, run(directory)[0]


@pytest.mark.parametrize("stop", [3, 4, 7])
def test_resumed_run_is_bit_for_bit_equal(tmp_path, whole, stop):
    with pytest.raises(StopRequested, match=f"step {stop} of 8"):
        run(tmp_path, stop_at=stop)
    resumed, lines = run(tmp_path)
    assert resumed_at(lines) == stop
    assert array_bytes(resumed.params) == array_bytes(whole[1].params)
    assert resumed.metrics["score"] == whole[1].metrics["score"]
    assert curves(tmp_path) == curves(whole[0])
    assert resumed.metrics["steps_per_second"] > 0
    assert resumed.metrics["images_per_second"] == 8 * resumed.metrics["steps_per_second"]


def test_finished_run_is_only_evaluated(tmp_path, whole):
    shutil.copytree(whole[0], tmp_path / "copy")
    again, lines = run(tmp_path / "copy")
    assert array_bytes(again.params) == array_bytes(whole[1].params)
    assert len(lines) == 1
    assert resumed_at(lines) == 8
    shutil.rmtree(tmp_path / "copy" / "best")
    with pytest.raises(DamagedFileError, match=f"delete {tmp_path / 'copy'}"):
        run(tmp_path / "copy")


def test_sharded_run_equals_single_device(tmp_path, whole):
    assert jax.device_count() == 4
    single, _ = run(tmp_path, mesh=mesh_lib.make_mesh(jax.devices()[:1]))
    np.testing.assert_allclose(single.params["w"], whole[1].params["w"], rtol=1e-6)
    assert single.metrics["score"] == pytest.approx(whole[1].metrics["score"], rel=1e-5)


def test_evaluation_and_log_steps(whole):
    assert whole[1].metrics["count"] == len(whole[1].test["error"]) == 11  # without padding
    points = curves(whole[0])
    steps = {name: [step for step, _ in values] for name, values in points.items()}
    assert steps["loss"] == steps["largest"] == [2, 4, 6, 8]
    assert steps["validation_score"] == [4, 8]
    assert steps["test_score"] == [8]


def test_monitor_values_are_logged_and_its_warning_is_shown(tmp_path):
    values = []

    def monitor(params):
        values.append(float(params["w"][0]))
        return {"first_weight": values[-1]}, "too large" if len(values) == 2 else ""

    _, lines = run(tmp_path, TASK._replace(monitor=monitor))
    assert [value for _, value in curves(tmp_path)["first_weight"]] == values
    (warning,) = [line for line in lines if "WARNING" in line]
    assert "step 4/8" in warning
    assert "too large" in warning


def test_nan_loss_stops_at_its_step_and_keeps_the_last_finite_state(tmp_path):
    with pytest.raises(FloatingPointError, match=r"the loss of step 6 .*step 4 in"):
        run(tmp_path, with_nan_at(5))
    result, lines = run(tmp_path)
    assert resumed_at(lines) == 4
    assert np.isfinite(result.params["w"]).all()


def test_overflowing_update_is_not_saved(tmp_path):
    overflow = optax.stateless_with_tree_map(lambda g, p: g * np.float32(1e38) * 1e3)
    task = TASK._replace(optimizer=TASK.optimizer._replace(transformation=overflow))
    with pytest.raises(FloatingPointError, match="the update of step 1 .*none"):
        run(tmp_path, task, stop_at=1)
    assert not list((tmp_path / "checkpoints").iterdir())


@pytest.mark.parametrize(
    ("scores", "message"),
    [
        ([np.nan], "validation score is nan with the parameters of step 4"),
        ([1.0, 1.0, np.nan], "test score is nan with the parameters of step 4.*step 8 in"),
    ],
)
def test_nonfinite_score_stops(tmp_path, scores, message):
    with pytest.raises(FloatingPointError, match=message):
        run(tmp_path, with_scores(*scores))


def test_best_checkpoint_is_selected_by_validation_score(tmp_path):
    result, _ = run(tmp_path, with_scores(-1.0, -3.0, -9.0))  # step 4, step 8, test
    assert result.metrics["best_step"] == 4
    assert result.metrics["validation_score"] == -1.0
    assert result.metrics["score"] == -9.0


def crash_at(call):
    """Ends this process before the `call`-th write of a checkpoint or a JSON file."""
    calls = itertools.count(1)

    def crashing(function):
        def wrapped(*args, **kwargs):
            if next(calls) == call:
                os._exit(9)
            return function(*args, **kwargs)

        return wrapped

    for owner, name in ((Checkpoints, "save"), (Checkpoints, "wait"), (config, "write_json")):
        setattr(owner, name, crashing(getattr(owner, name)))


@pytest.mark.slow
def test_crash_before_any_write_does_not_change_the_result(tmp_path, program_env):
    settings = dict(steps=6, eval_every=2)
    whole, _ = run(tmp_path / "whole", **settings)
    program = (
        "import sys; from tests.training import loop_test\n"
        f"loop_test.crash_at(int(sys.argv[2])); loop_test.run(sys.argv[1], **{settings})"
    )
    env = program_env | {"XLA_FLAGS": os.environ["XLA_FLAGS"]}
    processes = [
        subprocess.Popen(
            [sys.executable, "-c", program, str(tmp_path / str(call)), str(call)], env=env
        )
        for call in range(1, 16)
    ]
    statuses = [process.wait(timeout=300) for process in processes]
    assert statuses == sorted(statuses, reverse=True)  # 9 for each write, then 0
    assert statuses.count(9) >= 12  # three states, their best checkpoints and their curves
    for call in range(1, 1 + len(statuses)):
        again, _ = run(tmp_path / str(call), **settings)
        assert array_bytes(again.params) == array_bytes(whole.params), call
        for key in ("score", "validation_score", "best_step"):
            assert again.metrics[key] == whole.metrics[key], (call, key)


def test_damaged_state_falls_back_to_the_previous_one(tmp_path):
    expected, _ = run(tmp_path / "whole", eval_every=2)
    with pytest.raises(StopRequested):
        run(tmp_path / "damaged", eval_every=2, stop_at=6)
    for path in (tmp_path / "damaged" / "checkpoints" / "step_6").rglob("*"):
        if path.is_file() and "/d/" in str(path):
            path.write_bytes(b"?" * path.stat().st_size)
    again, lines = run(tmp_path / "damaged", eval_every=2)
    assert resumed_at(lines) == 4
    assert array_bytes(again.params) == array_bytes(expected.params)
    assert again.metrics["best_step"] == expected.metrics["best_step"]


def test_damaged_curves_are_reported(tmp_path):
    with pytest.raises(StopRequested):
        run(tmp_path, stop_at=4)
    (tmp_path / "curves.json").write_text("{")
    with pytest.raises(DamagedFileError, match=r"curves\.json"):
        run(tmp_path)


def test_sigterm_requests_a_stop():
    previous = signal.getsignal(signal.SIGTERM)
    try:
        preemption = PreemptionWatcher()
        assert not preemption.should_stop_at(1)
        os.kill(os.getpid(), signal.SIGTERM)
        assert preemption.should_stop_at(2)
    finally:
        signal.signal(signal.SIGTERM, previous)
