"""The pipeline: runs the stages of a config in order, resumes unfinished ones, skips complete ones."""

import contextlib
import json
import time
from typing import Any

import jax

from functa.data.images import ImageSource
from functa.pipeline import environment, locks, log, run_directory, validation
from functa.pipeline.run import Run
from functa.pipeline.stages import STAGES
from functa.runtime import config as config_lib
from functa.runtime import digests, processes, storage
from functa.runtime.errors import StopRequested, UserError

_READ_IMAGES = {"meta_learn", "encode", "generate"}  # stages that read images


def run_stages(run: Run) -> dict[str, dict[str, Any]]:
    """Runs the stages of a run.

    Returns:
      {stage: metrics} of all complete stages.
    Raises:
      UserError: lists every problem that the user must fix. Nothing was written, and nothing compiled
        except the check of the first inner step, which runs only if there are no other problems.
      StopRequested, FloatingPointError: see training.loop.train.
    """
    say = run.say
    _ = run.preemption  # from here on SIGTERM and Ctrl-C request a stop
    settings = config_lib.shared_settings(run.config)
    identity = {"jax": jax.__version__, "functa": digests.source_digest()}
    identity |= {f"config.{key}": value for key, value in settings.items()}
    _raise_any(processes.gather_problems(_problems(run), identity))
    run.workdir.mkdir(parents=True, exist_ok=True)
    with contextlib.ExitStack() as stack:
        _raise_any(processes.gather_problems(_lock_and_freeze(run, stack)))
        _raise_any(processes.gather_problems(run_directory.sharing_problems(run.workdir, settings)))
        # The previous owner of the lock may have completed stages in the meantime.
        incomplete = json.loads(
            processes.gather_texts(json.dumps(incomplete_stages(run)), "stages")[0]
        )
        if incomplete and jax.process_index() == 0:
            run.say = stack.enter_context(log.log_file(run.workdir, say))
            run.say(describe(run, run.sources if _READ_IMAGES & set(incomplete) else {}))
        for stage in run.stages:
            if stage not in incomplete:
                _raise_any(run.input_problems(stage))
                continue
            stops = processes.gather_texts("stop" if run.preemption.should_stop() else "", stage)
            if "stop" in stops:
                raise StopRequested(f"stopped before {stage}; everything is saved")
            run_stage(run, stage)
    if not incomplete:
        say(f"all stages of {run.workdir} are complete: {', '.join(run.stages)}")
    return {stage: run.metrics(stage) for stage in STAGES if run.is_complete(stage)}


def _problems(run: Run) -> list[str]:
    """What the user must fix before the run; nothing is written."""
    problems = run_directory.problems(run.workdir)
    if problems and storage.is_remote(run.workdir):
        return problems  # without the object store, nothing is known about the run
    problems += stage_problems(run)
    incomplete = incomplete_stages(run)
    if incomplete:
        started = (run.workdir / "meta_learn").exists()
        problems += validation.validate(
            run.config,
            (lambda: run.sources) if _READ_IMAGES & set(incomplete) else None,
            stages=incomplete,
            first_step="meta_learn" in incomplete and not started and not problems,
        )
    return problems


def incomplete_stages(run: Run) -> list[str]:
    """The stages of the command that are not complete."""
    return [stage for stage in run.stages if stage in STAGES and not run.is_complete(stage)]


def _lock_and_freeze(run: Run, stack: contextlib.ExitStack) -> list[str]:
    """Locks the run directory and writes its config, on process 0. Returns problems."""
    if jax.process_index():
        return []
    try:
        stack.enter_context(locks.directory_lock(run.workdir, run.say))
    except ValueError as error:
        return [str(error)]
    return config_lib.freeze(run.config, run.workdir)


def run_stage(run: Run, stage: str) -> None:
    """Runs one stage. Its metrics are written last and mark it as complete."""
    start = time.monotonic()
    run.say(f"{stage}  {STAGES[stage].__doc__}")
    if run.metrics_path(stage).exists():
        run.say(f"{stage}  again: {run.missing_part(stage)}")
    (run.workdir / stage).mkdir(parents=True, exist_ok=True)
    if jax.process_index() == 0:
        config_lib.write_json(run.workdir / "environment.json", environment.environment())
    metrics = STAGES[stage](run) | {"device": environment.device_name()}
    metrics["seconds"] = metrics.pop("earlier_seconds") + time.monotonic() - start
    if jax.process_index() == 0:
        config_lib.write_json(run.metrics_path(stage), metrics)
    processes.barrier(f"end of {stage}")  # the next stage reads these metrics


def describe(run: Run, sources: dict[str, ImageSource]) -> str:
    """One line on the data, the latents, the devices and the directory of a run."""
    data, field = run.config.data, run.config.field
    counts = ", ".join(f"{source.num_examples} {split}" for split, source in sources.items())
    image, latents = ("x".join(map(str, shape)) for shape in (data.image_shape, field.latent_shape))
    return (
        f"{run.config.name}  {counts or 'encoded'} images of {data.name}, {image}; latents {latents}; "
        f"{environment.device_name()}; {run.workdir}"
    )


def _raise_any(problems: list[str]) -> None:
    if problems:
        raise UserError("\n".join(f"  - {problem}" for problem in problems))


def stage_problems(run: Run) -> list[str]:
    """Unknown stages, and stages whose input neither exists nor comes from an earlier stage."""
    order, problems = list(STAGES), []
    if not run.stages or len(set(run.stages)) < len(run.stages):
        problems.append(f"config.stages={run.stages} must name at least one stage, each once")
    for position, stage in enumerate(run.stages):
        if stage not in STAGES:
            problems.append(
                f"config.stages: unknown stage {stage!r}; choose from {', '.join(STAGES)}"
            )
            continue
        problems += [
            f"config.stages: {stage} needs {needed}, which is not complete in {run.workdir} and not listed before it"
            for needed in order[: order.index(stage)]
            if needed not in run.stages[:position] and not run.is_complete(needed)
        ]
    return problems
