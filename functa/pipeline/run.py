"""A run: its config, directory, mesh and data, as all stages share them."""

import contextlib
import functools
from collections.abc import Callable
from typing import Any

import jax
import numpy as np
from etils import epath
from ml_collections import ConfigDict

from functa.data import images
from functa.data.functaset import reader
from functa.fields.fitter import Fitter, build_fitter
from functa.pipeline.encode import Encoder, Fit, make_encoder
from functa.runtime import config as config_lib
from functa.runtime import mesh, storage
from functa.runtime.errors import StopRequested, UserError, as_user_errors
from functa.runtime.mesh import batch_repeats
from functa.runtime.preemption import PreemptionWatcher
from functa.training.loop import Result, train
from functa.training.tasks import Task
from functa.training.tensorboard import Dashboard, NullDashboard

# What a stage is made from: the stage before it, and the metric that identifies the result of that.
_INPUTS = {
    "encode": ("meta_learn", "field_digest"),
    "classify": ("encode", "functaset_digest"),
    "generate": ("encode", "functaset_digest"),
}
# Parts of the config that determine the records of a functaset, beside the digest of the field.
_RECORDED_KEYS = ("name", "seed", "data", "field", "inner_loop", "encode")
_LOCATION_KEYS = ("data_dir", "cache")  # of config.data; they do not change the records


class Run:
    """One run of the pipeline.

    Attributes:
      config: of the run.
      workdir: its directory.
      say: prints a line for the user.
      handle_signals: whether SIGTERM and Ctrl-C save and stop the run; of one process. If not, Ctrl-C
        raises KeyboardInterrupt, and the run resumes from the last checkpoint.
      stages: names of the stages of this command, in order.
      processes: index and number of processes, as keyword arguments.
    """

    def __init__(
        self,
        config: ConfigDict,
        workdir: epath.PathLike,
        say: Callable[[str], None],
        *,
        handle_signals: bool = True,
    ):
        self.config, self.say, self._handle_signals = config, say, handle_signals
        self.workdir = epath.Path(workdir)
        # On the command line, stages=encode,classify is one string.
        self.stages = [name for entry in config.stages for name in str(entry).split(",") if name]
        self.processes = {
            "process_index": jax.process_index(),
            "process_count": jax.process_count(),
        }

    @functools.cached_property
    def mesh(self) -> jax.sharding.Mesh:
        return mesh.make_mesh(**self.config.mesh)

    @functools.cached_property
    def sources(self) -> dict[str, images.ImageSource]:
        with as_user_errors():
            return images.open_splits(**self.config.data)

    @functools.cached_property
    def fitter(self) -> Fitter:
        return build_fitter(self.config)

    @functools.cached_property
    def class_names(self) -> list[str]:
        data = self.config.data
        return images.class_names(
            source=data.source, name=data.name, data_dir=data.data_dir, num_classes=data.num_classes
        )

    @functools.cached_property
    def preemption(self) -> PreemptionWatcher:
        return PreemptionWatcher(handle_signals=self._handle_signals)

    def metrics_path(self, stage: str) -> epath.Path:
        return self.workdir / stage / "metrics.json"

    def metrics(self, stage: str) -> dict[str, Any]:
        return config_lib.read_json(self.metrics_path(stage))

    def is_complete(self, stage: str) -> bool:
        return self.missing_part(stage) is None

    def missing_part(self, stage: str) -> str | None:
        """Why a stage is not complete: it has no metrics, or an unusable functaset. None if it is."""
        if not self.metrics_path(stage).exists():
            return "not done"
        if stage == "encode":
            try:
                reader.open_functaset(self.workdir / "functaset", field_digest=None)
            except ValueError as error:
                return str(error)
        return None

    def input_problems(self, stage: str) -> list[str]:
        """Reports a complete stage that was made from another input than the present one."""
        if stage not in _INPUTS or not self.metrics_path(_INPUTS[stage][0]).exists():
            return []
        source, key = _INPUTS[stage]
        recorded, present = (self.metrics(name).get(key) for name in (stage, source))
        if recorded == present is not None:
            return []
        functaset = " and the functaset" if stage == "encode" else ""
        return [
            f"{self.workdir / stage} was made from {key} {recorded}, but {source} has {present}: remove "
            f"{self.workdir / stage}{functaset} to make it again"
        ]

    def raise_if_stopping(self, message: str) -> None:
        """Raises StopRequested if the run was asked to stop."""
        if self.preemption.should_stop():
            raise StopRequested(message)

    def bind_functaset(self, stage: str, functaset: reader.Functaset) -> None:
        """Records the functaset that a stage starts with.

        Raises:
          UserError: the stage has started with another functaset, and must not continue with this one.
        """
        path, digest = self.workdir / stage / "functaset.json", functaset.manifest.digest
        recorded = config_lib.read_json(path)["digest"] if path.exists() else digest
        if recorded != digest:
            raise UserError(
                f"{self.workdir / stage} was started with the functaset {recorded}, but {functaset.path} is "
                f"{digest}: remove {self.workdir / stage} to make it again, or restore its functaset"
            )
        if jax.process_index() == 0:
            path.parent.mkdir(parents=True, exist_ok=True)
            config_lib.write_json(path, {"digest": digest})

    def encoder(self, fit: Fit, *, field_digest: str) -> Encoder:
        """The encoder of the run's images; see Encoder for `fit`."""
        config, values = self.config, config_lib.to_dict(self.config)
        recorded = {key: values[key] for key in _RECORDED_KEYS}
        for key in _LOCATION_KEYS:
            del recorded["data"][key]
        return make_encoder(
            config.encode,
            splits=self.sources,
            fit=fit,
            field_digest=field_digest,
            latent_shape=tuple(config.field.latent_shape),
            seed=config.seed,
            recorded=recorded,
            class_names=self.class_names,
        )

    def train(self, task: Task) -> Result:
        """Trains a task with the settings of its stage."""
        settings = self.config[task.name]
        directory = self.workdir / task.name
        repeats = batch_repeats(
            settings.batch_size,
            devices=self.mesh.size,
            micro_batches=settings.micro_batches,
            sharing=self.mesh.shape["cell"] if len(task.batch_spec) > 1 else 1,
        )
        if repeats > 1:
            self.say(
                f"{task.name}  every example of a batch of {settings.batch_size} is used {repeats} times a step, "
                f"since there are {self.mesh.size} devices; a multiple of them is faster"
            )
        writes = jax.process_index() == 0
        dashboard = Dashboard(directory, stage=task.name) if writes else NullDashboard()
        self.preemption.synchronize()
        with contextlib.closing(dashboard):
            dashboard.hparams(config_lib.flatten(config_lib.to_dict(self.config)))
            return train(
                task,
                directory=directory,
                mesh=self.mesh,
                dashboard=dashboard,
                preemption=self.preemption,
                say=self.say,
                seed=self.config.seed,
                steps=settings.steps,
                ema_decay=settings.ema_decay,
                micro_batches=settings.micro_batches,
                log_every=settings.log_every,
                eval_every=settings.eval_every,
                checkpoint_every=settings.checkpoint_every,
            )

    def write_arrays(self, stage: str, arrays: dict[str, np.ndarray]) -> None:
        """Writes the arrays that the report draws to STAGE/report.npz."""
        if jax.process_index() == 0:
            path = self.workdir / stage / "report.npz"
            size = sum(array.nbytes for array in arrays.values())
            with storage.explain_disk_full(path, size), path.open("wb") as file:
                np.savez_compressed(file, allow_pickle=False, **arrays)
