"""The only training loop. It knows no task: everything it needs is in `Task`."""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import numpy as np
from etils import epath
from jax.sharding import Mesh

from functa.runtime import config, errors, rng
from functa.runtime import mesh as mesh_lib
from functa.runtime.errors import StopRequested
from functa.runtime.preemption import PreemptionWatcher
from functa.training.checkpoint import Checkpoints
from functa.training.progress import Stopwatch, duration
from functa.training.tasks import Task
from functa.training.train_step import (
    NONE_BAD,
    WATCHED,
    TrainState,
    described_state,
    initial_state,
    make_step,
)


class Result(NamedTuple):
    """params: the best by validation score (of the moving average); metrics: of the whole run;
    test: the rows of `Task.evaluate` for every example of the test split, in order."""

    params: Any
    metrics: dict[str, Any]
    test: dict[str, np.ndarray]


class Trainer:
    """State, curves and checkpoints of one stage; `train` is the story."""

    def __init__(self, task: Task, *, directory, mesh: Mesh, dashboard, say, seed: int):
        self.task, self.mesh, self.dashboard, self.say, self.seed = task, mesh, dashboard, say, seed
        self.directory = epath.Path(directory)
        self.latest = Checkpoints(self.directory / "checkpoints", keep=2)
        # One for each of the kept states, and one that is saved just before its state.
        self.best = Checkpoints(self.directory / "best", keep=3)
        self.curves: dict[str, list[list[float]]] = {}
        self._evaluate = jax.jit(task.evaluate, out_shardings=mesh_lib.batched(mesh))

    def restore_or_init(self) -> tuple[TrainState, dict[str, float]]:
        """(state, what its stopwatch showed): the newest good checkpoint, or a state born on its devices."""
        key = rng.stream_key(self.seed, "init")

        template = described_state(self.task, self.mesh)
        restored = self.latest.restore(template)
        self.dashboard.resume(0 if restored is None else restored[0])
        if restored is None:
            self.best.remove_after(-1)
            places = jax.tree.map(lambda leaf: leaf.sharding, template)
            init = functools.partial(initial_state, self.task)
            return jax.jit(init, out_shardings=places)(key), {}
        step, state, info = restored
        path = self.directory / "curves.json"
        curves = config.read_json(path) if path.exists() else {}
        self.curves = {
            name: [point for point in points if point[0] <= step]
            for name, points in curves.items()
            if not name.startswith("test_")  # of a run that ended, but was not told so
        }
        self.best.remove_after(step)  # what comes after this state comes again
        if info["best_step"] not in (None, *self.best.steps()):
            raise errors.DamagedFileError(
                f"{self.best.directory} has lost its checkpoint of step {info['best_step']}; delete "
                f"{self.directory} to train again"
            )
        self.say(f"{self.task.name}  resumes at step {step}")
        return state, info["watch"]

    def best_so_far(self) -> tuple[int | None, float]:
        """(step, score) of the best checkpoint; (None, -inf) before there is one."""
        steps = self.best.steps()
        return (steps[-1], self.best.info(steps[-1])["score"]) if steps else (None, -np.inf)

    def save_best(self, step: int, params: Any, score: float) -> None:
        """On disk before anything that builds on it: a later state must never outlive its best.

        One save at a time: two of several processes would wait for each other at one barrier of Orbax.
        """
        self.latest.wait()
        self.best.save(step, params, {"score": score})
        self.best.wait()

    def evaluate(self, params: Any, split: str) -> dict[str, np.ndarray]:
        """Rows of `Task.evaluate` for every example of a split, padding left out."""
        rows: dict[str, list[np.ndarray]] = {}
        for batch in self.task.eval_batches(split):
            results = self._evaluate(params, mesh_lib.to_devices(self.mesh, batch))
            results |= mesh_lib.to_devices(self.mesh, {"mask": batch["mask"]})
            results = mesh_lib.to_host(results)
            real = results.pop("mask") > 0
            for name, values in results.items():
                rows.setdefault(name, []).append(values[real])
        return {name: np.concatenate(parts) for name, parts in rows.items()}

    def record(self, step: int, scalars: dict[str, float]) -> None:
        for name, value in scalars.items():
            self.curves.setdefault(name, []).append([step, float(value)])
        self.dashboard.scalars(step, scalars)

    def save(self, step: int, state: TrainState, watch: Stopwatch) -> None:
        if jax.process_index() == 0:
            config.write_json(self.directory / "curves.json", self.curves)
        best_step, _ = self.best_so_far()
        self.latest.save(step, state, {"watch": watch.reading(), "best_step": best_step})

    def show(self, step: int, params: Any) -> None:
        """Pictures and histograms for the dashboard, made by process 0 alone; what it was given is written."""
        params = mesh_lib.to_host(params)
        if jax.process_index():
            return
        illustrations = self.task.illustrate(params)
        self.dashboard.images(step, illustrations.images)
        self.dashboard.histograms(step, illustrations.histograms)
        self.dashboard.flush()

    def refuse_non_finite(self, first_bad: jax.Array) -> None:
        """Stops before anything built on a broken number is saved."""
        step, which = (int(number) for number in first_bad)
        if step >= 0:
            # Steps count from one everywhere else: after this one, `step + 1` would have been saved.
            raise self.not_finite(f"the {WATCHED[which]} of step {step + 1} is not finite")

    def not_finite(self, what: str) -> FloatingPointError:
        """The error that tells it, and what a restart goes on from."""
        self.latest.wait()
        saved = self.latest.steps()
        good = (
            f"step {saved[-1]} in {self.latest.directory}"
            if saved
            else "none: the run had just begun"
        )
        return FloatingPointError(
            f"{self.task.name}: {what}; the last good checkpoint is {good}. The same command would "
            f"meet it again; a lower {self.task.name}.optimizer.learning_rate, in another "
            "--workdir, is the usual way out."
        )

    def load_best(self) -> tuple[Any, int]:
        """(params, step) of the best checkpoint."""
        best_step, _ = self.best_so_far()
        restored = self.best.restore(described_state(self.task, self.mesh).params)
        if restored is None or restored[0] != best_step:
            raise errors.DamagedFileError(
                f"{self.best.directory} has lost its checkpoint of step {best_step}; delete "
                f"{self.directory} to train again"
            )
        return restored[1], restored[0]


def train(
    task: Task,
    *,
    directory: epath.PathLike,
    mesh: Mesh,
    dashboard: Any,
    interruption: PreemptionWatcher,
    say: Callable[[str], None],
    seed: int,
    steps: int,
    ema_decay: float,
    micro_batches: int,
    log_every: int,
    eval_every: int,
    checkpoint_every: int,
) -> Result:
    """Trains to `steps`, from the newest good checkpoint in `directory` or from the start.

    What a restart needs, in this order: the newest checkpoint of the state; the curves up to its
    step; the data from the position that the step tells; keys, which depend on the step. So a run
    that was stopped and started is, bit for bit, the run that was not.

    Raises:
      StopRequested: asked to stop; the state is saved.
      FloatingPointError: a loss, gradient, update or score is not finite; the last good checkpoint is
        kept.
    """
    trainer = Trainer(task, directory=directory, mesh=mesh, dashboard=dashboard, say=say, seed=seed)
    state, reading = trainer.restore_or_init()
    step_fn = make_step(
        task, mesh=mesh, seed=seed, ema_decay=ema_decay, micro_batches=micro_batches
    )
    _, best_score = trainer.best_so_far()
    first_bad = jax.device_put(NONE_BAD, mesh_lib.replicated(mesh))
    watch = Stopwatch(**reading)
    step = logged = int(state.step)
    for batch in task.train_batches(step, steps):
        state, logs, first_bad = step_fn(
            state, mesh_lib.to_devices(mesh, batch, task.spec), first_bad
        )
        step += 1
        if not watch.first_step_seconds:
            jax.block_until_ready(logs)
            watch.started()
            logged = step
            seconds = watch.first_step_seconds
            say(f"{task.name}  first step after {seconds:.1f} s, compilation included")
        last = step == steps
        if step % log_every == 0 or last:
            scalars = {name: float(value) for name, value in logs.items()}
            trainer.refuse_non_finite(first_bad)
            watch.lap(step - logged)
            logged = step
            with watch.paused():
                watched, warning = task.watch(state.params)
            rate = watch.steps_per_second()
            trainer.record(
                step,
                scalars
                | watched
                | {"steps_per_second": rate, "images_per_second": rate * task.images_per_step},
            )
            left = f"  {rate:.2f} steps/s, {duration((steps - step) / rate)} left" if rate else ""
            say(f"{task.name}  step {step}/{steps}  loss {scalars['loss']:.4g}{left}")
            if warning:
                say(f"{task.name}  step {step}/{steps}  WARNING: {warning}")
        evaluated = step % eval_every == 0 or last
        stop = interruption.requested(step)
        if evaluated or stop or step % checkpoint_every == 0:
            trainer.refuse_non_finite(first_bad)
            watch.lap(step - logged)
            logged = step
            with watch.paused():
                if evaluated:
                    metrics = task.summarize(trainer.evaluate(state.ema, "validation"))
                    trainer.record(
                        step, {f"validation_{name}": value for name, value in metrics.items()}
                    )
                    score = metrics[task.score]
                    if not np.isfinite(score):
                        raise trainer.not_finite(
                            f"the validation {task.score} of step {step} is {score}"
                        )
                    say(f"{task.name}  step {step}/{steps}  validation {task.score} {score:.4f}")
                    if score > best_score:
                        best_score = score
                        trainer.save_best(step, state.ema, score)
                    trainer.show(step, state.ema)
                trainer.save(step, state, watch)
        if stop and not last:
            trainer.latest.close()
            trainer.best.close()
            raise StopRequested(f"{task.name} stopped at step {step} of {steps}; all is saved")
    params, best_step = trainer.load_best()
    trainer.best.close()
    rows = trainer.evaluate(params, "test")
    test = task.summarize(rows)
    if not np.isfinite(test[task.score]):
        raise trainer.not_finite(
            f"the test {task.score} is {test[task.score]} (parameters of step {best_step})"
        )
    trainer.latest.close()
    trainer.record(steps, {f"test_{name}": value for name, value in test.items()})
    if jax.process_index() == 0:
        config.write_json(trainer.directory / "curves.json", trainer.curves)
    metrics = test | {
        f"validation_{task.score}": best_score,
        "best_step": best_step,
        "steps": steps,
        "images_per_second": watch.steps_per_second() * task.images_per_step,
        "steps_per_second": watch.steps_per_second(),
        "first_step_seconds": watch.first_step_seconds,
        "earlier_seconds": reading.get("seconds", 0.0),
    }
    return Result(params, metrics, rows)
