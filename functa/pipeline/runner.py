"""The pipeline: the stages in order; what is complete is skipped, what is not is begun or resumed."""

import contextlib
import json
import time
from collections.abc import Callable
from typing import Any

import jax
from etils import epath
from ml_collections import ConfigDict

from functa.data.images import ImageSource
from functa.pipeline import run_directory, validation
from functa.pipeline.stages import STAGES, Run
from functa.runtime import config as config_lib
from functa.runtime import processes, storage
from functa.runtime.errors import StopRequested, UserError
from functa.training.progress import device_name


def run_stages(
    config: ConfigDict, workdir: epath.PathLike, say: Callable[[str], None]
) -> dict[str, dict[str, Any]]:
    """Runs config.stages; returns the summary {stage: metrics} of all complete stages.

    Raises:
      UserError: something a person can mend, all of it listed; nothing was written, and nothing compiled but,
        where all else was in order, what measures the first inner step.
      StopRequested, FloatingPointError: see train.train.
    """
    run = Run(config, workdir, say)
    _ = run.interruption  # from here on SIGTERM and Ctrl-C are requests
    problems = run_directory.check(run.workdir)
    if problems and storage.is_remote(run.workdir):
        # What is in a store that cannot be reached is not known.
        _refuse(processes.agree({}, problems))
    problems += check_stages(run)
    missing = incomplete(run)
    reads_images = bool({"meta_learn", "encode", "generate"} & set(missing))  # to judge by
    if missing:
        begun = (run.workdir / "meta_learn").exists()
        problems += validation.check(
            config,
            (lambda: run.sources) if reads_images else None,
            stages=missing,
            first_step="meta_learn" in missing and not begun and not problems,
        )
    told = {"jax": jax.__version__, "functa": processes.source_digest()}
    told |= {f"config.{key}": value for key, value in config_lib.decisive(config).items()}
    _refuse(processes.agree(told, problems))
    run.workdir.mkdir(parents=True, exist_ok=True)
    with contextlib.ExitStack() as stack:
        _refuse(processes.agree({}, take(run, stack)))
        _refuse(processes.agree({}, run_directory.check_shared(run.workdir, config)))
        # Who held the lock until now may have made some of it.
        missing = json.loads(processes.gather(json.dumps(incomplete(run)), "missing")[0])
        if missing and jax.process_index() == 0:
            run.say = stack.enter_context(run_directory.logged(run.workdir, say))
            run.say(describe(run, run.sources if reads_images else {}))
        for stage in run.stages:
            if stage not in missing:
                _refuse(run.foreign(stage))
                continue
            if "stop" in processes.gather("stop" if run.interruption.received() else "", stage):
                raise StopRequested(f"stopped before {stage}; all is saved")
            run_stage(run, stage)
    if not missing:
        say(f"all stages of {run.workdir} are complete: {', '.join(run.stages)}")
    return {stage: run.metrics(stage) for stage in STAGES if run.is_complete(stage)}


def incomplete(run: Run) -> list[str]:
    """The stages of the command that are to be made."""
    return [stage for stage in run.stages if stage in STAGES and not run.is_complete(stage)]


def take(run: Run, stack: contextlib.ExitStack) -> list[str]:
    """Keeps others out of the work directory and freezes its config; what stands against it.

    Process 0 does it for all.
    """
    if jax.process_index():
        return []
    try:
        stack.enter_context(run_directory.locked(run.workdir, run.say))
    except ValueError as error:
        return [str(error)]
    return config_lib.freeze(run.config, run.workdir)


def run_stage(run: Run, stage: str) -> None:
    """One stage; its metrics, written last, tell that it is complete."""
    begin = time.monotonic()
    run.say(f"{stage}  {STAGES[stage].__doc__}")
    if run.metrics_path(stage).exists():
        run.say(f"{stage}  again: {run.incomplete(stage)}")
    (run.workdir / stage).mkdir(parents=True, exist_ok=True)
    if jax.process_index() == 0:
        config_lib.write_json(run.workdir / "environment.json", run_directory.environment())
    result = STAGES[stage](run) | {"device": device_name()}
    result["seconds"] = result.pop("earlier_seconds") + time.monotonic() - begin
    if jax.process_index() == 0:
        config_lib.write_json(run.metrics_path(stage), result)
    processes.wait(f"end of {stage}")  # what comes next reads these metrics


def describe(run: Run, sources: dict[str, ImageSource]) -> str:
    """What is about to run, on what, and where it is written."""
    data, field = run.config.data, run.config.field
    counts = ", ".join(f"{source.num_examples} {split}" for split, source in sources.items())
    image, latents = ("x".join(map(str, shape)) for shape in (data.image_shape, field.latent_shape))
    return (
        f"{run.config.name}  {counts or 'encoded'} images of {data.name}, {image}, as latents of {latents}; "
        f"{device_name()}; {run.workdir}"
    )


def _refuse(problems: list[str]) -> None:
    if problems:
        raise UserError("\n".join(f"  - {problem}" for problem in problems))


def check_stages(run: Run) -> list[str]:
    """Unknown stages, and stages whose input is neither there nor made by an earlier one."""
    order, problems = list(STAGES), []
    if not run.stages or len(set(run.stages)) < len(run.stages):
        problems.append(f"config.stages={run.stages}: name one or more, each once")
    for position, stage in enumerate(run.stages):
        if stage not in STAGES:
            problems.append(
                f"config.stages: unknown stage {stage!r}; known are {', '.join(STAGES)}"
            )
            continue
        for needed in order[: order.index(stage)]:
            if needed not in run.stages[:position] and not run.is_complete(needed):
                problems.append(
                    f"config.stages: {stage} needs {needed}, which is neither complete in {run.workdir} nor listed "
                    "before it"
                )
    return problems
