"""The training loop of all stages. Everything specific to a stage is in its Task."""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from etils import epath
from jax.sharding import Mesh

from functa.runtime import config, rng
from functa.runtime import mesh as mesh_lib
from functa.runtime.errors import DamagedFileError, StopRequested
from functa.runtime.preemption import PreemptionWatcher
from functa.training import train_step
from functa.training.checkpoint import Checkpoints
from functa.training.progress import ProgressLine, Stopwatch, duration
from functa.training.tasks import Task

_BATCHES_IN_FLIGHT = 8  # of an evaluation


class Result(NamedTuple):
    """Result of training.

    Attributes:
      params: moving average of the parameters with the best validation score.
      metrics: test metrics, the best validation score and the speed of the run.
      test: rows of `TaskMetrics.evaluate` for the test split, in order.
    """

    params: Any
    metrics: dict[str, Any]
    test: dict[str, np.ndarray]


def train(
    task: Task,
    *,
    directory: epath.PathLike,
    mesh: Mesh,
    dashboard: Any,
    preemption: PreemptionWatcher,
    say: Callable[[str], None],
    seed: int,
    steps: int,
    ema_decay: float,
    micro_batches: int,
    log_every: int,
    eval_every: int,
    checkpoint_every: int,
) -> Result:
    """Trains to `steps`, from the newest checkpoint in `directory` or from the start.

    A run resumes in this order, and then equals, bit for bit, a run that was not stopped:

      1. The state comes from the newest undamaged checkpoint.
      2. Best checkpoints and TensorBoard events of later steps are discarded.
      3. The curves are read up to the step of the state.
      4. The training data continues at that step.
      5. Random keys are functions of the seed and the step.

    Raises:
      StopRequested: the process was asked to stop; the state is saved.
      FloatingPointError: a loss, gradient, update or score is not finite. Checkpoints are finite.
    """
    trainer = Trainer(
        task, directory=directory, mesh=mesh, dashboard=dashboard, say=say, steps=steps
    )
    state = trainer.restore_or_init(seed)
    step_fn = train_step.make_step(
        task, mesh=mesh, seed=seed, ema_decay=ema_decay, micro_batches=micro_batches
    )
    first_nonfinite = jax.device_put(train_step.ALL_FINITE, mesh_lib.replicated(mesh))
    step = int(state.step)
    for batch in task.data.train_batches(step, steps):
        arrays = mesh_lib.to_devices(mesh, batch, task.batch_spec)
        state, logs, first_nonfinite = step_fn(state, arrays, first_nonfinite)
        step += 1
        if not trainer.stopwatch.first_step_seconds:
            jax.block_until_ready(logs)
            trainer.start(step)
        last = step == steps
        log = step % log_every == 0 or last
        evaluate = step % eval_every == 0 or last
        stop = preemption.should_stop_at(step)
        save = evaluate or stop or step % checkpoint_every == 0
        if log or save:
            trainer.check_finite(first_nonfinite)
            trainer.stopwatch.lap(step)
            with trainer.stopwatch.paused():
                if log:
                    trainer.log(step, state.params, logs)
                if evaluate:
                    trainer.evaluate(step, state.ema)
                if save:
                    trainer.save(step, state)
        if stop and not last:
            trainer.close()
            raise StopRequested(
                f"{task.name} stopped at step {step} of {steps}; its state is saved"
            )
    return trainer.test()


class Trainer:
    """Logs, evaluations and checkpoints of one training run."""

    def __init__(
        self,
        task: Task,
        *,
        directory: epath.PathLike,
        mesh: Mesh,
        dashboard: Any,
        say: Callable[[str], None],
        steps: int,
    ):
        self.task, self.mesh, self.dashboard = task, mesh, dashboard
        self.say, self.steps = say, steps
        self.directory = epath.Path(directory)
        self.latest = Checkpoints(self.directory / "checkpoints", keep=2)
        # Best checkpoints are written before the state that refers to them, so keep one more.
        self.best = Checkpoints(self.directory / "best", keep=3)
        self.best_score = -np.inf
        self.curves: dict[str, list[list[float]]] = {}
        self.stopwatch = Stopwatch()
        self._evaluate = jax.jit(task.metrics.evaluate, out_shardings=mesh_lib.batched(mesh))
        self._join = jax.jit(
            lambda parts: jax.tree.map(lambda *leaves: jnp.concatenate(leaves), *parts),
            out_shardings=mesh_lib.replicated(mesh),
        )

    def restore_or_init(self, seed: int) -> train_step.TrainState:
        """The state of the newest undamaged checkpoint, or an initial state."""
        shapes = train_step.state_shapes(self.task, self.mesh)
        restored = self.latest.restore(shapes)
        step, state, info = restored or (0, None, {"best_step": None, "stopwatch": {}})
        self.dashboard.resume(step)
        self.best.remove_after(step)
        if state is None:
            shardings = jax.tree.map(lambda leaf: leaf.sharding, shapes)
            init = jax.jit(
                functools.partial(train_step.initial_state, self.task), out_shardings=shardings
            )
            state = init(rng.stream_key(seed, "init"))
        else:
            self.curves = self._read_curves(step)
            if info["best_step"] not in (None, *self.best.steps()):
                raise self._best_checkpoint_lost(info["best_step"])
            self.say(f"{self.task.name}  resumes at step {step}")
        best_step = self._best_step()
        if best_step is not None:
            self.best_score = self.best.info(best_step)["score"]
        self.stopwatch = Stopwatch(**info["stopwatch"])
        return state

    def _read_curves(self, last_step: int) -> dict[str, list[list[float]]]:
        path = self.directory / "curves.json"
        curves = config.read_json(path) if path.exists() else {}
        # Test points exist if a run trained to the end and stopped before its metrics were written.
        return {
            name: [point for point in points if point[0] <= last_step]
            for name, points in curves.items()
            if not name.startswith("test_")
        }

    def start(self, step: int) -> None:
        """Starts to measure the speed after the first step of this process."""
        self.stopwatch.start(step)
        seconds = self.stopwatch.first_step_seconds
        self.say(f"{self.task.name}  first step after {seconds:.1f} s, compilation included")

    def log(self, step: int, params: Any, logs: dict[str, jax.Array]) -> None:
        """Logs scalars of the last step, the values of `Task.monitor` and the speed."""
        scalars = {name: float(value) for name, value in jax.device_get(logs).items()}
        monitored, warning = self.task.monitor(params)
        speed = self._speed()
        self._record(step, scalars | monitored | speed)
        text, rate = self.task.headline(scalars), speed["steps_per_second"]
        if rate:
            text += f"  {rate:.2f} steps/s"
        if self.stopwatch.is_reliable():
            text += f", {duration((self.steps - step) / rate)} left"
        self.say(ProgressLine(text, stage=self.task.name, done=step, total=self.steps))
        if warning:
            self._say(step, f"WARNING: {warning}")

    def _speed(self) -> dict[str, float]:
        rate = self.stopwatch.steps_per_second()
        images = rate * self.task.data.images_per_step
        return {"steps_per_second": rate, "images_per_second": images}

    def evaluate(self, step: int, params: Any) -> None:
        """Scores `params` on the validation split and keeps them if they are the best."""
        metrics, _ = self._score(step, params, "validation", params_step=step)
        score_name = self.task.metrics.score
        score = metrics[score_name]
        self._say(step, f"validation {score_name} {score:.4f}")
        if score > self.best_score:
            self.best_score = score
            # A state must not exist without the best checkpoint that it refers to. Saves do not
            # overlap: with several processes, concurrent Orbax barriers would deadlock.
            self.latest.wait()
            self.best.save(step, params, {"score": score})
            self.best.wait()
        self._illustrate(step, params)

    def _score(
        self, step: int, params: Any, split: str, *, params_step: int
    ) -> tuple[dict[str, float], dict[str, np.ndarray]]:
        """Metrics of a split, and rows of `TaskMetrics.evaluate` for its examples without padding."""
        parts: list[dict[str, jax.Array]] = []
        for batch in self.task.data.eval_batches(split):
            arrays = mesh_lib.to_devices(self.mesh, batch)
            parts.append(self._evaluate(params, arrays) | {"mask": arrays["mask"]})
            if len(parts) > _BATCHES_IN_FLIGHT:  # bounds the memory of their inputs
                jax.block_until_ready(parts[-_BATCHES_IN_FLIGHT])
        rows = mesh_lib.to_host(self._join(parts))  # one gather for all batches
        is_example = rows.pop("mask") > 0
        rows = {name: values[is_example] for name, values in rows.items()}
        metrics = self.task.metrics.summarize(rows)
        self._record(step, {f"{split}_{name}": value for name, value in metrics.items()})
        score_name = self.task.metrics.score
        if not np.isfinite(metrics[score_name]):
            raise self._not_finite(
                f"the {split} {score_name} is {metrics[score_name]} with the parameters of step {params_step}"
            )
        return metrics, rows

    def _illustrate(self, step: int, params: Any) -> None:
        """Writes pictures and histograms to TensorBoard. All processes must call it."""
        params = mesh_lib.to_host(params)
        if jax.process_index() == 0:
            illustrations = self.task.illustrate(params)
            self.dashboard.images(step, illustrations.images)
            self.dashboard.histograms(step, illustrations.histograms)
            self.dashboard.flush()

    def save(self, step: int, state: train_step.TrainState) -> None:
        """Saves the curves and, in the background, a checkpoint."""
        self._write_curves()
        info = {"stopwatch": self.stopwatch.reading(), "best_step": self._best_step()}
        self.latest.save(step, state, info)

    def _best_step(self) -> int | None:
        return max(self.best.steps(), default=None)

    def test(self) -> Result:
        """Scores the best parameters on the test split."""
        best_step = self._best_step()
        restored = self.best.restore(train_step.state_shapes(self.task, self.mesh).params)
        if restored is None or restored[0] != best_step:
            raise self._best_checkpoint_lost(best_step)
        params = restored[1]
        metrics, rows = self._score(self.steps, params, "test", params_step=restored[0])
        self.close()
        self._write_curves()
        metrics = metrics | {
            f"validation_{self.task.metrics.score}": self.best_score,
            "best_step": best_step,
            "steps": self.steps,
            **self._speed(),
            "first_step_seconds": self.stopwatch.first_step_seconds,
            "earlier_seconds": self.stopwatch.earlier_seconds,
        }
        return Result(params, metrics, rows)

    def close(self) -> None:
        """Waits for checkpoints in the background."""
        self.latest.close()
        self.best.close()

    def check_finite(self, first_nonfinite: jax.Array) -> None:
        """Raises FloatingPointError if a step had a non-finite loss, gradient or update."""
        index, value = (int(number) for number in first_nonfinite)
        if index >= 0:
            name = train_step.CHECKED_VALUES[value]
            raise self._not_finite(f"the {name} of step {index + 1} is not finite")

    def _record(self, step: int, scalars: dict[str, float]) -> None:
        for name, value in scalars.items():
            self.curves.setdefault(name, []).append([step, float(value)])
        self.dashboard.scalars(step, scalars)

    def _write_curves(self) -> None:
        if jax.process_index() == 0:
            config.write_json(self.directory / "curves.json", self.curves)

    def _say(self, step: int, text: str) -> None:
        self.say(f"{self.task.name}  step {step}/{self.steps}  {text}")

    def _not_finite(self, problem: str) -> FloatingPointError:
        self.latest.wait()
        steps = self.latest.steps()
        checkpoint = f"step {steps[-1]} in {self.latest.directory}" if steps else "none"
        return FloatingPointError(
            f"{self.task.name}: {problem}; the last finite checkpoint is: {checkpoint}. The same "
            f"command would fail again. Lower {self.task.name}.optimizer.learning_rate and use "
            "another --workdir."
        )

    def _best_checkpoint_lost(self, step: int | None) -> DamagedFileError:
        return DamagedFileError(
            f"{self.best.directory} has no checkpoint of step {step}; delete {self.directory} to "
            "train again"
        )
