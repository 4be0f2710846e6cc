"""The stages in order: what is complete is skipped, what is not is begun or resumed."""

import contextlib
import functools
import time
from collections.abc import Callable
from typing import Any

import jax
import numpy as np
from etils import epath
from ml_collections import ConfigDict

from functa import config as config_lib
from functa import encode as encode_lib
from functa import illustration, metrics, optim
from functa import mesh as mesh_lib
from functa import workdir as workdir_lib
from functa.checkpoint import Checkpoints, digest
from functa.dashboard import Dashboard, NullDashboard
from functa.data import functaset as functaset_lib
from functa.data import images as images_lib
from functa.field import Field, make_field
from functa.interruption import Interrupted, Interruption
from functa.progress import Bar, device_name
from functa.tasks import Task, classification, meta_learning
from functa.train import Result, train


class Refused(ValueError):
    """Something a person has to mend first: the command, the config, the data, a damaged or foreign file."""


@contextlib.contextmanager
def refusing():
    """ValueErrors inside are about what a person gave, not about a fault of the program."""
    try:
        yield
    except ValueError as error:
        raise Refused(str(error)) from error


class Run:
    """What all stages share: config, directories, devices, data."""

    def __init__(self, config: ConfigDict, workdir: epath.PathLike, say: Callable[[str], None]):
        self.config, self.say = config, say
        self.workdir = epath.Path(workdir)
        self.processes = {
            "process_index": jax.process_index(),
            "process_count": jax.process_count(),
        }

    @functools.cached_property
    def mesh(self):
        return mesh_lib.make_mesh()

    @functools.cached_property
    def interruption(self):
        return Interruption()

    @functools.cached_property
    def sources(self) -> dict[str, images_lib.ImageSource]:
        with refusing():
            return images_lib.open_splits(**self.config.data)

    def metrics_path(self, stage: str) -> epath.Path:
        return self.workdir / stage / "metrics.json"

    def is_complete(self, stage: str) -> bool:
        """A stage ends by writing its metrics; encode is to be done again if its functaset is gone."""
        if stage == "encode" and not (self.workdir / "functaset" / "manifest.json").exists():
            return False
        return self.metrics_path(stage).exists()

    def train(self, task: Task) -> Result:
        settings = self.config[task.name]
        directory = self.workdir / task.name
        writes = jax.process_index() == 0
        make = Dashboard(directory, stage=task.name) if writes else NullDashboard()
        with contextlib.closing(make) as dashboard:
            dashboard.hparams(config_lib.flatten(config_lib.to_dict(self.config)))
            return train(
                task,
                directory=directory,
                mesh=self.mesh,
                dashboard=dashboard,
                interruption=self.interruption,
                say=self.say,
                seed=self.config.seed,
                steps=settings.steps,
                ema_decay=settings.ema_decay,
                log_every=settings.log_every,
                eval_every=settings.eval_every,
                checkpoint_every=settings.checkpoint_every,
            )

    def write_arrays(self, stage: str, arrays: dict[str, np.ndarray]) -> None:
        if jax.process_index() == 0:
            with (self.workdir / stage / "report.npz").open("wb") as file:
                np.savez_compressed(file, allow_pickle=False, **arrays)


def meta_learn(run: Run) -> dict[str, Any]:
    """images -> field"""
    task = meta_learning.make(run.config, run.sources, **run.processes)
    result = run.train(task)
    field = make_field(run.config)
    export = Checkpoints(run.workdir / "meta_learn" / "field", keep=1)
    export.save(result.metrics["best_step"], result.params, {"digest": digest(result.params)})
    export.close()
    baseline = meta_learning.pca_psnr(run.sources["train"], run.sources["test"], field)
    few = run.sources["test"].read(np.arange(min(16, run.sources["test"].num_examples)))
    pictures = illustration.field_pictures(run.config, result.params, few["image"])
    run.write_arrays("meta_learn", pictures | {"psnr": result.test["psnr"], "pca_psnr": baseline})
    return result.metrics | {
        "pca_psnr": float(np.mean(baseline)),
        "field_parameters": sum(leaf.size for leaf in jax.tree.leaves(result.params["field"])),
        "latent_floats": int(np.prod(field.latent_shape)),
        "test_images": len(baseline),
    }


def encode(run: Run) -> dict[str, Any]:
    """field + images -> functaset"""
    with refusing():
        _, params = load_field(run.workdir)
    params = jax.device_get(params)  # every process encodes alone, on its own devices
    fit = meta_learning.make_fit(run.config)

    @jax.jit
    def fit_batch(params, images):
        result = fit(params, images)
        return result.latents, metrics.psnr(result.losses[-1])

    bar = Bar(run.say, "encode")

    def progress(done: int, total: int) -> None:
        bar(done, total)
        if done < total and run.interruption.received():
            raise Interrupted(
                f"encode stopped at {done} of {total} examples; finished shards are kept"
            )

    begin = time.monotonic()
    with refusing():
        result = encode_lib.encode(
            directory=run.workdir / "functaset",
            splits=run.sources,
            fit=functools.partial(fit_batch, params),
            field_digest=digest(params),
            config=run.config,
            progress=progress,
            **run.processes,
        )
    return result | {"seconds": time.monotonic() - begin}


def classify(run: Run) -> dict[str, Any]:
    """functaset -> labels"""
    with refusing():
        _, params = load_field(run.workdir)
        functaset = functaset_lib.open_functaset(
            run.workdir / "functaset", field_digest=digest(params)
        )
    result = run.train(classification.make(run.config, functaset, **run.processes))
    confusion = classification.confusion_matrix(
        result.test["label"], result.test["prediction"], run.config.data.num_classes
    )
    run.write_arrays("classify", {"confusion": confusion})
    return result.metrics | {
        "classifier_parameters": sum(leaf.size for leaf in jax.tree.leaves(result.params)),
        "test_examples": int(confusion.sum()),
    }


STAGES: dict[str, Callable[[Run], dict[str, Any]]] = {
    "meta_learn": meta_learn,
    "encode": encode,
    "classify": classify,
}


def run_stages(
    config: ConfigDict, workdir: epath.PathLike, say: Callable[[str], None]
) -> dict[str, dict[str, Any]]:
    """Runs config.stages; returns the summary {stage: metrics} of all complete stages.

    Raises:
      Refused: something a person can mend, all of it listed; nothing was compiled or overwritten.
      Interrupted, FloatingPointError: see train.train.
    """
    run = Run(config, workdir, say)
    _ = run.interruption  # from here on SIGTERM and Ctrl-C are requests
    missing = [stage for stage in config.stages if not run.is_complete(stage)]
    problems = check_stages(run) + workdir_lib.check(run.workdir)
    if missing and not problems:
        problems = check(config)
    _refuse(problems)
    run.workdir.mkdir(parents=True, exist_ok=True)
    with contextlib.ExitStack() as stack:
        with refusing():
            stack.enter_context(workdir_lib.locked(run.workdir))
        different = config_lib.freeze(config, run.workdir) if jax.process_index() == 0 else []
        _refuse([f"{line}; give another --workdir or the same config" for line in different])
        for stage in missing:
            if run.interruption.received():
                raise Interrupted(f"stopped before {stage}; all is saved")
            run_stage(run, stage)
    if not missing:
        say(f"all stages of {run.workdir} are complete: {', '.join(config.stages)}")
    return {
        stage: config_lib.read_json(run.metrics_path(stage))
        for stage in STAGES
        if run.is_complete(stage)
    }


def run_stage(run: Run, stage: str) -> None:
    """One stage; its metrics, written last, tell that it is complete."""
    run.say(f"{stage}  {STAGES[stage].__doc__}")
    (run.workdir / stage).mkdir(parents=True, exist_ok=True)
    if jax.process_index() == 0:
        config_lib.write_json(run.workdir / "environment.json", workdir_lib.environment())
    result = STAGES[stage](run) | {"device": device_name()}
    if jax.process_index() == 0:
        config_lib.write_json(run.metrics_path(stage), result)


def _refuse(problems: list[str]) -> None:
    if problems:
        raise Refused("\n".join(f"  - {problem}" for problem in problems))


def check_stages(run: Run) -> list[str]:
    """Unknown stages, and stages whose input is neither there nor made by an earlier one."""
    order, problems = list(STAGES), []
    if not run.config.stages or len(set(run.config.stages)) < len(run.config.stages):
        problems.append(f"config.stages={run.config.stages}: name one or more, each once")
    for position, stage in enumerate(run.config.stages):
        if stage not in STAGES:
            problems.append(
                f"config.stages: unknown stage {stage!r}; known are {', '.join(STAGES)}"
            )
            continue
        for needed in order[: order.index(stage)]:
            if needed not in run.config.stages[:position] and not run.is_complete(needed):
                problems.append(
                    f"config.stages: {stage} needs {needed}, which is neither complete in {run.workdir} nor listed "
                    "before it"
                )
    return problems


def check(config: ConfigDict) -> list[str]:
    """Every error of a config and its data that can be found before anything compiles."""
    problems: list[str] = []

    def attempt(function: Callable[..., Any], *args, **kwargs) -> None:
        try:
            function(*args, **kwargs)
        except (ValueError, TypeError) as error:
            problems.append(str(error))

    attempt(meta_learning.make, config, {}, process_index=0, process_count=1)
    problems += classification.check(config)
    attempt(optim.make, **config.classify.optimizer, steps=config.classify.steps)
    attempt(encode_lib.check, config)
    attempt(lambda: problems.extend(images_lib.check(**config.data)))
    problems += config_lib.outside({"seed": (config.seed, 0, 2**32 - 1)})
    devices = jax.device_count()
    for key in ("meta_learn.batch_size", "meta_learn.eval_batch_size",
                "classify.batch_size", "classify.eval_batch_size"):  # fmt: skip
        stage, name = key.split(".")
        size = config[stage][name]
        if size < 1 or size % devices:
            problems.append(f"{key}={size} must be a positive multiple of the {devices} devices")
    for stage in ("meta_learn", "classify"):
        for name in ("log_every", "eval_every", "checkpoint_every", "steps"):
            if config[stage][name] < 1:
                problems.append(f"{stage}.{name}={config[stage][name]} must be at least 1")
        if not 0 <= config[stage].ema_decay < 1:
            problems.append(f"{stage}.ema_decay={config[stage].ema_decay} must be in [0, 1)")
    return problems


def load_field(workdir: epath.PathLike) -> tuple[Field, Any]:
    """(field, params of the task meta_learn) of a run whose stage meta_learn is complete.

    Raises:
      ValueError: there is none, or its file is damaged.
    """
    config = config_lib.load(workdir)
    directory = epath.Path(workdir) / "meta_learn" / "field"
    if not directory.exists():
        raise ValueError(
            f"{directory} does not exist: the stage meta_learn of {workdir} is not complete"
        )
    task = meta_learning.make(config, {}, process_index=0, process_count=1)
    shapes = jax.eval_shape(task.init, jax.random.key(0))
    sharding = mesh_lib.replicated(mesh_lib.make_mesh())
    template = jax.tree.map(
        lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding), shapes
    )
    checkpoints = Checkpoints(directory, keep=1)
    restored = checkpoints.restore(template)
    checkpoints.close()
    if restored is None:
        raise ValueError(f"{directory} holds no complete checkpoint")
    return make_field(config), restored[1]
