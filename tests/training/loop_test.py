import dataclasses
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
from functa.training import loop, train_step
from functa.training.checkpoint import Checkpoints
from functa.training.tasks import Illustrations, Task
from functa.training.tensorboard import NullDashboard

SETTINGS = dict(
    seed=0, steps=8, ema_decay=0.5, micro_batches=1, log_every=2, eval_every=4, checkpoint_every=2
)


@dataclasses.dataclass
class Data:
    """Batches of a linear regression; remembers which steps were read."""

    bad_step: int = -1

    def train(self, first, last):
        for step in range(first, last):
            rng = np.random.default_rng(step)
            x = rng.normal(size=(8, 3)).astype(np.float32)
            y = x @ np.float32([1, 2, 3])
            yield {"x": x, "y": np.where(step == self.bad_step, np.nan, y).astype(np.float32)}

    def eval(self, split):
        del split
        for first in (0, 8):
            x = np.arange(first * 3, (first + 8) * 3, dtype=np.float32).reshape(8, 3) / 48
            mask = (np.arange(first, first + 8) < 11).astype(np.float32)
            yield {"x": x, "y": x @ np.float32([1, 2, 3]), "mask": mask}


def make_task(data=None, learning_rate=0.1):
    data = data or Data()
    optimizer = optax.adam(learning_rate)

    def errors(params, batch):
        return jnp.square(batch["x"] @ params["w"] - batch["y"])

    def draw(batch, key):
        return batch | {"noise": 1e-3 * jax.random.normal(key, (8,))}

    def loss(params, drawn):
        return jnp.mean(errors(params, drawn) + drawn["noise"] * params["w"][0]), {}

    return Task(
        name="toy",
        init=lambda key: {"w": jax.random.normal(key, (3,))},
        draw=draw,
        loss=loss,
        finish=lambda logs: logs,
        evaluate=lambda params, batch: {"error": errors(params, batch)},
        summarize=lambda rows: {
            "score": -float(rows["error"].mean()),
            "count": float(len(rows["error"])),
        },
        score="score",
        optimizer=optimizer,
        learning_rate=lambda step: learning_rate,
        watch=lambda params: ({"largest": float(abs(params["w"]).max())}, ""),
        images_per_step=8,
        train_batches=data.train,
        eval_batches=data.eval,
        illustrate=lambda params: Illustrations({}, {}),
        spec=mesh_lib.BY_EXAMPLE,
        shards_params=False,
    )


def run(directory, task=None, mesh=None, interruption=None, **changes):
    lines = []
    result = loop.train(
        task or make_task(),
        directory=directory,
        mesh=mesh or mesh_lib.make_mesh(),
        dashboard=NullDashboard(),
        interruption=interruption or PreemptionWatcher(),
        say=lines.append,
        **(SETTINGS | changes),
    )
    return result, lines


class StopAt:
    """An operator who asks to stop at one step."""

    def __init__(self, step):
        self.step = step

    def requested(self, step):
        return step == self.step


def exact(tree):
    return [np.asarray(leaf).tobytes() for leaf in jax.tree.leaves(tree)]


@pytest.mark.parametrize("stop", [3, 4, 7])
def test_stopped_and_started_is_bit_for_bit_the_same(tmp_path, stop):
    whole, _ = run(tmp_path / "whole")
    with pytest.raises(StopRequested, match=f"step {stop} of 8"):
        run(tmp_path / "parts", interruption=StopAt(stop))
    parts, lines = run(tmp_path / "parts")
    assert f"toy  resumes at step {stop}" in lines
    assert sum("first step after" in line for line in lines) == 1
    assert exact(whole.params) == exact(parts.params)
    assert whole.metrics["score"] == parts.metrics["score"]
    curves = [(tmp_path / name / "curves.json").read_text() for name in ("whole", "parts")]
    kept = [
        {name: points for name, points in json.loads(text).items() if "per_second" not in name}
        for text in curves
    ]
    assert kept[0].keys() == kept[1].keys()
    # A stop between two log steps leaves the window's points alone: they are the same steps.
    assert kept[0] == kept[1]


def test_a_finished_run_only_evaluates(tmp_path):
    first, _ = run(tmp_path)
    again, lines = run(tmp_path)
    assert exact(first.params) == exact(again.params)
    assert lines == ["toy  resumes at step 8"]


def test_sharded_is_single_device(tmp_path):
    one = mesh_lib.make_mesh(jax.devices()[:1])
    single, _ = run(tmp_path / "one", mesh=one)
    sharded, _ = run(tmp_path / "four")
    assert jax.device_count() == 4
    np.testing.assert_allclose(single.params["w"], sharded.params["w"], rtol=1e-6)
    assert single.metrics["score"] == pytest.approx(sharded.metrics["score"], rel=1e-5)


def test_every_example_counts_once(tmp_path):
    result, _ = run(tmp_path)
    assert result.metrics["count"] == 11  # 16 rows, 5 of them padding
    assert len(result.test["error"]) == 11


def test_what_is_watched_is_logged_and_a_warning_is_said(tmp_path):
    seen = []

    def watch(params):
        seen.append(float(params["w"][0]))
        return {"watched": seen[-1]}, "too large" if len(seen) == 2 else ""

    _, lines = run(tmp_path, make_task()._replace(watch=watch))
    curves = json.loads((tmp_path / "curves.json").read_text())
    assert [value for _, value in curves["watched"]] == seen
    assert [step for step, _ in curves["watched"]] == [step for step, _ in curves["loss"]]
    warnings = [line for line in lines if "WARNING" in line]
    assert warnings == [f"toy  step {curves['loss'][1][0]}/8  WARNING: too large"]


def test_a_broken_number_stops_at_its_step_and_keeps_the_last_good_state(tmp_path):
    with pytest.raises(FloatingPointError, match=r"the loss of step 6 is not finite.*step 4 in"):
        run(tmp_path, make_task(Data(bad_step=5)))
    result, lines = run(tmp_path)
    assert "toy  resumes at step 4" in lines
    assert np.isfinite(result.params["w"]).all()


def test_an_update_that_overflows_is_not_saved(tmp_path):
    """Loss and gradient are fine, the parameters after the step are not."""
    task = make_task()._replace(
        optimizer=optax.stateless(
            lambda g, p: jax.tree.map(lambda x: x * np.float32(1e38) * 1e3, g)
        )
    )
    with pytest.raises(FloatingPointError, match="the update of step 1 is"):
        run(tmp_path, task, interruption=StopAt(1))


def test_a_score_that_is_no_number_stops(tmp_path):
    task = make_task()._replace(summarize=lambda rows: {"score": float("nan")})
    with pytest.raises(
        FloatingPointError, match=r"validation score of step 4 is nan.*good checkpoint is"
    ):
        run(tmp_path, task)


def test_a_test_score_that_is_no_number_is_no_result(tmp_path):
    seen = []

    def summarize(rows):
        seen.append(rows)
        return {"score": float("nan") if len(seen) == 3 else 1.0}

    with pytest.raises(
        FloatingPointError, match=r"test score is nan .parameters of step 4.*step 8 in"
    ):
        run(tmp_path, make_task()._replace(summarize=summarize))


def test_a_lost_best_is_told_with_the_way_out(tmp_path):
    run(tmp_path)
    shutil.rmtree(tmp_path / "best")
    with pytest.raises(DamagedFileError, match=f"delete {tmp_path}"):
        run(tmp_path)


def crash_at(call):
    """Ends this process just before the `call`-th time that something is to be written."""
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
def test_a_crash_before_anything_is_written_changes_nothing(tmp_path, program_env):
    settings = dict(steps=6, eval_every=2)
    whole, _ = run(tmp_path / "whole", **settings)
    program = (
        "import sys; from tests import train_test\n"
        f"train_test.crash_at(int(sys.argv[2])); train_test.run(sys.argv[1], **{settings})"
    )
    four = {"XLA_FLAGS": os.environ["XLA_FLAGS"]}
    crashing = [
        subprocess.Popen(
            [sys.executable, "-c", program, str(tmp_path / str(call)), str(call)],
            env=program_env | four,
        )
        for call in range(1, 16)
    ]
    ends = [process.wait(timeout=300) for process in crashing]
    assert ends == sorted(ends, reverse=True)  # 9 ... 9, then those that had nothing left to write
    assert ends.count(9) >= 12  # 3 states, their bests and curves
    for call in range(1, 1 + len(ends)):
        again, _ = run(tmp_path / str(call), **settings)
        assert exact(again.params) == exact(whole.params), call
        same = ("score", "validation_score", "best_step")
        assert [again.metrics[key] for key in same] == [whole.metrics[key] for key in same], call


def test_a_damaged_state_falls_back_to_the_one_before(tmp_path):
    whole, _ = run(tmp_path / "whole", eval_every=2)
    with pytest.raises(StopRequested):
        run(tmp_path / "part", eval_every=2, interruption=StopAt(6))
    (damaged,) = (tmp_path / "part" / "checkpoints").glob("step_6")
    for path in damaged.rglob("*"):
        if path.is_file() and "/d/" in str(path):
            path.write_bytes(b"?" * path.stat().st_size)
    again, lines = run(tmp_path / "part", eval_every=2)
    assert "toy  resumes at step 4" in lines
    assert exact(again.params) == exact(whole.params)
    assert again.metrics["best_step"] == whole.metrics["best_step"]


def test_rates_survive_a_late_stop(tmp_path):
    with pytest.raises(StopRequested):
        run(tmp_path, interruption=StopAt(7))
    result, _ = run(tmp_path)
    assert result.metrics["steps_per_second"] > 0
    assert result.metrics["images_per_second"] == 8 * result.metrics["steps_per_second"]


def test_damaged_curves_are_told(tmp_path):
    with pytest.raises(StopRequested):
        run(tmp_path, interruption=StopAt(4))
    (tmp_path / "curves.json").write_text("{")
    with pytest.raises(DamagedFileError, match="curves.json is damaged"):
        run(tmp_path)


def test_a_broken_first_step_has_no_checkpoint_to_name(tmp_path):
    with pytest.raises(FloatingPointError, match="the run had just begun"):
        run(tmp_path, make_task(Data(bad_step=0)))


def test_the_average_follows_with_the_stated_decay(tmp_path):
    task = make_task()
    mesh = mesh_lib.make_mesh()
    step = train_step.make_step(task, mesh=mesh, seed=0, ema_decay=0.5, micro_batches=1)
    params = {"w": jnp.ones(3)}
    state = train_step.TrainState(
        jnp.int32(0), params, task.optimizer.init(params), {"w": jnp.zeros(3)}
    )
    averages, values = [np.zeros(3)], []
    bad = train_step.NONE_BAD
    for batch in Data().train(0, 12):
        state, _, bad = step(state, mesh_lib.to_devices(mesh, batch), bad)
        values.append(np.asarray(state.params["w"]))
        averages.append(np.asarray(state.ema["w"]))
    for index, value in enumerate(values):
        decay = min(0.5, (1 + index) / (10 + index))
        expected = decay * averages[index] + (1 - decay) * value
        np.testing.assert_allclose(averages[index + 1], expected, rtol=1e-5)


def test_the_best_is_by_validation_not_the_last(tmp_path):
    scores = iter([-1.0, -3.0, -9.0])  # step 4, step 8, test
    task = make_task()._replace(summarize=lambda rows: {"score": next(scores)})
    result, _ = run(tmp_path, task)
    assert result.metrics["best_step"] == 4
    assert result.metrics["validation_score"] == -1.0
    assert result.metrics["score"] == -9.0


def test_sigterm_asks_to_stop():
    before = signal.getsignal(signal.SIGTERM)
    try:
        interruption = PreemptionWatcher()
        assert not interruption.requested(1)
        os.kill(os.getpid(), signal.SIGTERM)
        assert interruption.requested(2)
    finally:
        signal.signal(signal.SIGTERM, before)
