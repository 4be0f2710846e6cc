"""The stages: what each makes of what the ones before it left in the directory of the run."""

import contextlib
import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from etils import epath
from ml_collections import ConfigDict

from functa.data import images as images_lib
from functa.data.functaset import reader
from functa.data.functaset.format import float32_latents
from functa.diffusion import sharded_sampling
from functa.evaluation import field_arrays, generation_arrays, generation_eval, pca_baseline
from functa.fields import builders
from functa.fields import psnr as metrics
from functa.fields.field import make_field
from functa.models.normalization import make_normalization
from functa.pipeline import encode as encode_lib
from functa.pipeline.load import Generator, load_classifier, load_field
from functa.runtime import config as config_lib
from functa.runtime import mesh as mesh_lib
from functa.runtime import processes, storage
from functa.runtime.errors import StopRequested, UserError, as_user_errors
from functa.runtime.preemption import PreemptionWatcher
from functa.training.checkpoint import Checkpoints, digest
from functa.training.loop import Result, train
from functa.training.progress import Bar
from functa.training.tasks import Task, classification, generation, meta_learning
from functa.training.tensorboard import Dashboard, NullDashboard


def named(config: ConfigDict) -> tuple[str, ...]:
    """config.stages; stages=encode,classify comes from the command line as one word."""
    return tuple(word for entry in config.stages for word in str(entry).split(",") if word)


class Run:
    """What all stages share: config, directories, devices, data."""

    def __init__(self, config: ConfigDict, workdir: epath.PathLike, say: Callable[[str], None]):
        self.config, self.say = config, say
        self.stages = named(config)
        self.workdir = epath.Path(workdir)
        self.processes = {
            "process_index": jax.process_index(),
            "process_count": jax.process_count(),
        }

    @functools.cached_property
    def mesh(self):
        return mesh_lib.make_mesh(**self.config.mesh)

    @functools.cached_property
    def interruption(self):
        return PreemptionWatcher()

    @functools.cached_property
    def sources(self) -> dict[str, images_lib.ImageSource]:
        with as_user_errors():
            return images_lib.open_splits(**self.config.data)

    def metrics_path(self, stage: str) -> epath.Path:
        return self.workdir / stage / "metrics.json"

    def metrics(self, stage: str) -> dict[str, Any]:
        return config_lib.read_json(self.metrics_path(stage))

    def is_complete(self, stage: str) -> bool:
        return self.incomplete(stage) is None

    def incomplete(self, stage: str) -> str | None:
        """What a stage lacks: its metrics, which end it, or a functaset that is whole; None: nothing."""
        if not self.metrics_path(stage).exists():
            return "not done"
        if stage == "encode":
            try:
                reader.open_functaset(self.workdir / "functaset", field_digest=None)
            except ValueError as error:
                return str(error)
        return None

    def foreign(self, stage: str) -> list[str]:
        """Whether a complete stage was made from something else than what stands before it now."""
        source, key = {
            "encode": ("meta_learn", "field_digest"),
            "classify": ("encode", "functaset_digest"),
            "generate": ("encode", "functaset_digest"),
        }.get(stage, (None, ""))
        if source is None or not self.metrics_path(source).exists():
            return []
        unknown = "(not recorded)"  # by a version that kept no digests
        made_from, there = (self.metrics(name).get(key, unknown) for name in (stage, source))
        if made_from == there != unknown:
            return []
        return [
            f"{self.workdir / stage} was made from {key} {made_from}, {source} has {there}: remove "
            f"{self.workdir / stage}{' and the functaset' if stage == 'encode' else ''} to make it again"
        ]

    def bind(self, stage: str, functaset: reader.Functaset) -> None:
        """Notes what a stage that begins is made from.

        Raises:
          UserError: it has begun with another functaset; what is there must not be finished with this one.
        """
        path, digest = self.workdir / stage / "functaset.json", functaset.manifest.digest
        begun = config_lib.read_json(path)["digest"] if path.exists() else digest
        if begun != digest:
            raise UserError(
                f"{self.workdir / stage} was begun with the functaset {begun}, and {functaset.path} is "
                f"{digest}: remove {self.workdir / stage} to make it again, or bring its functaset back"
            )
        if jax.process_index() == 0:
            path.parent.mkdir(parents=True, exist_ok=True)
            config_lib.write_json(path, {"digest": digest})

    def train(self, task: Task) -> Result:
        settings = self.config[task.name]
        directory = self.workdir / task.name
        writes = jax.process_index() == 0
        make = Dashboard(directory, stage=task.name) if writes else NullDashboard()
        self.interruption.align()
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
                micro_batches=settings.micro_batches,
                log_every=settings.log_every,
                eval_every=settings.eval_every,
                checkpoint_every=settings.checkpoint_every,
            )

    def write_arrays(self, stage: str, arrays: dict[str, np.ndarray]) -> None:
        if jax.process_index() == 0:
            path = self.workdir / stage / "report.npz"
            size = sum(array.nbytes for array in arrays.values())
            with storage.explain_disk_full(path, size), path.open("wb") as file:
                np.savez_compressed(file, allow_pickle=False, **arrays)


def meta_learn(run: Run) -> dict[str, Any]:
    """images -> field"""
    task = meta_learning.make(run.config, run.sources, **run.processes)
    result = run.train(task)
    field = make_field(run.config)
    field_digest = digest(result.params)
    metrics = result.metrics | {"field_digest": field_digest}
    export = Checkpoints(run.workdir / "meta_learn" / "field", keep=1)
    export.remove_after(-1)  # of a start that was killed just here
    export.save(result.metrics["best_step"], result.params, {"digest": field_digest})
    export.close()
    if jax.process_index():
        return metrics  # process 0 alone measures and draws the rest, and writes it
    params = jax.device_get(result.params)
    baseline = pca_baseline.pca_psnr(run.sources["train"], run.sources["test"], field)
    few = run.sources["test"].read(np.arange(min(16, run.sources["test"].num_examples)))
    pictures = field_arrays.field_pictures(run.config, params, few["image"])
    run.write_arrays("meta_learn", pictures | {"psnr": result.test["psnr"], "pca_psnr": baseline})
    return metrics | {
        "pca_psnr": float(np.mean(baseline)),
        "field_parameters": sum(leaf.size for leaf in jax.tree.leaves(result.params["field"])),
        "latent_floats": int(np.prod(field.latent_shape)),
        "test_images": len(baseline),
    }


def encode(run: Run) -> dict[str, Any]:
    """field + images -> functaset"""
    with as_user_errors():
        _, params = load_field(run.workdir)
    params = jax.device_get(params)  # every process encodes alone, on its own devices

    def stop() -> None:
        if run.interruption.received():
            raise StopRequested("encode stopped; finished shards are kept")

    data = run.config.data
    names = images_lib.class_names(
        source=data.source, name=data.name, data_dir=data.data_dir, num_classes=data.num_classes
    )
    result = encode_lib.encode(
        directory=run.workdir / "functaset",
        splits=run.sources,
        fit=functools.partial(builders.make_encoder(run.config), params),
        field_digest=digest(params),
        config=run.config,
        class_names=names,
        progress=Bar(run.say, "encode"),
        stop=stop,
        **run.processes,
    )
    if jax.process_index():
        return result
    functaset = reader.open_functaset(run.workdir / "functaset", field_digest=None)
    return result | {"stored_psnr": stored_psnr(run, functaset, params)}


def stored_psnr(run: Run, functaset: reader.Functaset, params: Any) -> float:
    """Mean PSNR, dB, of the test images decoded from the latents as stored, rounding included."""
    field, size = make_field(run.config), run.config.encode.batch_size  # what one device can hold
    latents, images = functaset.source("test", cache="none"), run.sources["test"]

    @jax.jit
    def score(params, latents, images):
        errors = field(params, latents) - builders.to_float(images)
        return metrics.psnr(jnp.mean(jnp.square(errors), axis=(1, 2, 3)))

    total = 0.0
    for start in range(0, images.num_examples, size):
        # The last batch is filled up with the last image: one program for all.
        rows = np.minimum(np.arange(start, start + size), images.num_examples - 1)
        values = score(
            params["field"], float32_latents(latents.read(rows)), images.read(rows)["image"]
        )
        real = np.asarray(values)[: images.num_examples - start]
        total += float(np.sum(real, dtype=np.float64))
    return total / images.num_examples


def classify(run: Run) -> dict[str, Any]:
    """functaset -> labels"""
    with as_user_errors():
        _, params = load_field(run.workdir)
        functaset = reader.open_functaset(run.workdir / "functaset", field_digest=digest(params))
        task = classification.make(run.config, functaset, **run.processes)
        run.bind("classify", functaset)
    result = run.train(task)
    confusion = classification.confusion_matrix(
        result.test["label"], result.test["prediction"], run.config.data.num_classes
    )
    names = np.asarray(functaset.manifest.class_names)
    run.write_arrays("classify", {"confusion": confusion, "class_names": names})
    return result.metrics | {
        "functaset_digest": functaset.manifest.digest,
        "classifier_parameters": sum(leaf.size for leaf in jax.tree.leaves(result.params)),
        "test_examples": int(confusion.sum()),
    }


def generate(run: Run) -> dict[str, Any]:
    """functaset -> new latents"""
    settings = run.config.generate
    with as_user_errors():
        field, params = load_field(run.workdir)
        params = jax.device_get(params)
        functaset = reader.open_functaset(run.workdir / "functaset", field_digest=digest(params))
        classes = load_classifier(run.config, functaset, run.workdir)
        count = generation_eval.sample_count(run.config, functaset)
        decode = sharded_sampling.make_decoder(field, params, batch_size=settings.sample_batch_size)
        task = generation.make(run.config, functaset, decode=decode, **run.processes)
        run.bind("generate", functaset)
    result = run.train(task)
    generator = mesh_lib.to_host(result.params)

    def stop() -> None:
        if run.interruption.received():
            raise StopRequested("generate stopped; finished samples are kept")

    normalization = make_normalization(functaset, kind=settings.normalization)
    labels = functaset.source("test", cache="none").read(np.arange(count))["label"]
    drawing = generation_eval.Drawing(run.config, run.workdir / "generate" / "samples", labels)
    rate = drawing.draw(normalization, generator, say=run.say, stop=stop, **run.processes)
    metrics = result.metrics | {
        "functaset_digest": functaset.manifest.digest,
        "generator_parameters": sum(leaf.size for leaf in jax.tree.leaves(generator)),
        "samples": count,
        "samples_per_second": rate,
    }
    processes.wait("samples")
    if jax.process_index():
        return metrics  # process 0 alone judges
    latents, swept = drawing.collect()
    with as_user_errors():
        judge = generation_eval.Judge(
            run.config, functaset, sources=run.sources, count=count, decode=decode, classes=classes
        )
    judged, arrays = judge.judge(latents, labels)
    arrays |= judge.sweep(swept, labels)
    whole = Generator(run.config, field, params, functaset, normalization, generator)
    arrays |= generation_arrays.imputed(whole, run.sources) | generation_arrays.ladder(
        whole, latents
    )
    run.write_arrays("generate", arrays)
    return metrics | judged


STAGES: dict[str, Callable[[Run], dict[str, Any]]] = {
    "meta_learn": meta_learn,
    "encode": encode,
    "classify": classify,
    "generate": generate,
}
