"""Probes: comparable values of what a config does, computed without training.

Programs are compared as StableHLO, which contains constants but no dead code: a setting that is
computed and never used changes no probe.
"""

import functools
import hashlib
import json
import re
import types
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from unittest import mock

import jax
import jax.numpy as jnp
import numpy as np
import optax
from etils import epath
from jax.sharding import NamedSharding, PartitionSpec
from ml_collections import ConfigDict
from PIL import Image

from functa.data import image_records, images
from functa.data.functaset import reader
from functa.data.prepare import source_formats, sources, writer
from functa.diffusion.generator import Generator, build_generator
from functa.evaluation import features, generation_eval
from functa.evaluation.evaluation_samples import EvaluationSamples
from functa.pipeline import run as run_lib
from functa.pipeline import runner
from functa.report import report
from functa.runtime import config as config_lib
from functa.runtime import mesh as mesh_lib
from functa.runtime import rng
from functa.training import loop
from functa.training import train_step as step
from functa.training.checkpoint import digest
from functa.training.tasks import Illustrations, Task, TaskMetrics
from functa.training.tasks.builders import (
    build_classification,
    build_generation,
    build_meta_learning,
)
from functa.training.tensorboard import NullDashboard
from tests.support import losses

ONE_PROCESS = {"process_index": 0, "process_count": 1}
STEPS_READ = 3  # training batches that a probe looks at


def prepare_images(root: Path) -> Path:
    """Writes gray data sets: here/photos of several sizes, and of 8x8 pixels here/others, here/few
    (5 classes instead of 10) and elsewhere/photos.
    """
    random = np.random.default_rng(0)
    for k in range(320):
        folder = root / "folder" / f"class{k % 10}"
        folder.mkdir(parents=True, exist_ok=True)
        pixels = random.integers(0, 256, (16 + k % 3, 16 + k % 5), dtype=np.uint8)
        Image.fromarray(pixels).save(folder / f"{k}.png")
    for classes in (5, 10):
        arrays: dict[str, Any] = {}
        for split, n in (("train", 60), ("test", 80)):
            arrays[f"x_{split}"] = random.integers(0, 256, (n, 8, 8, 1), dtype=np.uint8)
            arrays[f"y_{split}"] = np.arange(n) % classes
        np.savez(root / f"{classes}.npz", **arrays)
    for place, name, source, fraction in (
        ("here", "photos", "folder", 0.25),
        ("here", "others", "10.npz", None),
        ("here", "few", "5.npz", None),
        ("elsewhere", "photos", "10.npz", None),
    ):
        quiet = sources.Report(lambda line: None)
        dataset = source_formats.open_source(
            [root / source], quiet, test_fraction=fraction, labels=None, min_side=None
        )
        writer.write(dataset, name=name, data_dir=epath.Path(root / place), jobs=2, report=quiet)
    return root


def mean_fit(config: ConfigDict, shapes: list[tuple[int, ...]]) -> Callable:
    """Replaces the inner loop: latents are the means of their cells times -1 ... 1.

    Appends the shape of each batch of images to `shapes`.
    """
    i, j, d = config.field.latent_shape

    def fit(batch):
        batch = np.asarray(batch)
        b, h, w, c = batch.shape
        shapes.append(batch.shape)
        means = batch.reshape(b, i, h // i, j, w // j, c).mean((2, 4, 5))
        latents = means[..., None] * np.linspace(-1, 1, d, dtype=np.float32)
        return latents, 30 + 10 * batch.mean((1, 2, 3))

    return fit


def encode(config: ConfigDict, directory: Path) -> list[tuple[int, ...]]:
    """Makes a functaset with `mean_fit`; returns the shapes of the batches of images."""
    shapes: list[tuple[int, ...]] = []
    run = run_lib.Run(config, directory, print)
    run.class_names = [f"class {label}" for label in range(config.data.num_classes)]
    encoder = run.encoder(mean_fit(config, shapes), field_digest="sha256:" + "0" * 64)
    encoder.encode(directory, progress=lambda done, total: None, stop=lambda: None, **ONE_PROCESS)
    return shapes


@contextmanager
def counted(owner: type, method: str) -> Iterator[list]:
    """Arguments of all calls of a method."""
    calls: list[Any] = []
    original = getattr(owner, method)

    def counting(self, *args):
        calls.append(args)
        return original(self, *args)

    with mock.patch.object(owner, method, counting):
        yield calls


def program(function: Callable, *arguments: Any) -> str:
    """Digest of the lowered, uncompiled program; arguments are arrays or their shapes."""
    text = jax.jit(function).lower(*arguments).as_text()
    return hashlib.sha256(text.encode()).hexdigest()


def contents(batch: dict[str, np.ndarray]) -> dict[str, Any]:
    return {name: (values.shape, digest(values)) for name, values in batch.items()}


class Probes:
    """probe(name, config) for the names in `names()`.

    Args:
      root: an empty directory.
      base: config of the functaset that the probes of classify and generate read.
    """

    def __init__(self, root: Path, base: ConfigDict):
        self._root, self._made = root, 0
        self._functaset = self._folder()
        encode(base, self._functaset)

    @staticmethod
    def names() -> list[str]:
        of_tasks = ("init", "gradient", "step", "optimizer", "evaluate", "batches", "loop")
        stages = ("meta_learn", "classify", "generate")
        tasks = [f"{stage}.{name}" for stage in stages for name in of_tasks]
        others = ("generate.sample", "generate.judged")
        return [*tasks, *others, "data", "encode", "stages", "report"]

    def __call__(self, name: str, config: ConfigDict) -> Any:
        stage, _, probe = name.rpartition(".")
        if not stage:
            return getattr(self, f"_{probe}")(config)
        return getattr(self, f"_{probe}")(self._task(stage, config), config)

    def _folder(self) -> Path:
        self._made += 1
        return self._root / str(self._made)

    def _task(self, stage: str, config: ConfigDict) -> Task:
        if stage == "meta_learn":
            sources = images.open_splits(**config.data)
            return build_meta_learning(config, sources=sources, devices=jax.device_count())
        opened = reader.open_functaset(self._functaset, field_digest=None)
        if stage == "classify":
            return build_classification(config, opened, devices=jax.device_count())
        return build_generation(config, opened, decode=lambda latents: latents)

    def _generator(self, config: ConfigDict) -> Generator:
        opened = reader.open_functaset(self._functaset, field_digest=None)
        return build_generator(config.generate, opened, num_classes=config.data.num_classes)

    def _sample(self, task, config):
        generator, four = self._generator(config), jax.ShapeDtypeStruct((4,), np.int32)
        params = jax.eval_shape(task.init, jax.random.key(0))
        key = rng.stream_key(config.seed, "sample")

        def sample(params, numbers, labels):
            return generator.sample(params, key, numbers, labels)

        return program(sample, params, four, four)

    def _judged(self, task, config):
        """Sizes of the files of samples, and settings of the feature extractor."""
        opened = reader.open_functaset(self._functaset, field_digest=None)
        settings = config.generate
        count = min(settings.samples, opened.num_examples("test"))
        folder, seen = self._folder(), []
        shape = tuple(config.field.latent_shape)

        def sample(params, key, numbers, labels, guidance_scale=None):
            return types.SimpleNamespace(latents=jnp.zeros((len(numbers), *shape)))

        samples = EvaluationSamples(
            directory=epath.Path(folder),
            generator=types.SimpleNamespace(sample=sample),
            params={},
            key=jax.random.key(0),
            labels=np.zeros(count, np.int32),
            guidance_sweep=tuple(settings.guidance_sweep),
            batch_size=settings.sample_batch_size,
        )
        samples.write(say=lambda line: None, stop=lambda: None, **ONE_PROCESS)

        def made(*arrays, **settings):
            seen.append({key: settings[key] for key in ("steps", "flip") if key in settings})
            return features.FeatureExtractor("pca", extract=None)

        rows = {"image": np.zeros((4, 8, 8, 1), np.uint8), "label": np.zeros(4, np.int32)}
        with (
            mock.patch.object(features, "train_cnn", made),
            mock.patch.object(features, "fit_pca", made),
        ):
            generation_eval.make_extractor(
                settings.features, train=rows, test=rows, num_classes=10, seed=config.seed
            )
        files = (path for path in folder.rglob("*.npy"))
        return sorted((str(f.relative_to(folder)), f.stat().st_size) for f in files), seen

    def _init(self, task, config):
        return program(task.init, jax.random.key(0))

    def _gradient(self, task, config):
        params = jax.eval_shape(task.init, jax.random.key(0))
        batch = next(task.data.train_batches(0, 1))
        return program(
            jax.grad(lambda *a: losses.whole(task)(*a)[0]), params, batch, jax.random.key(0)
        )

    def _step(self, task, config):
        """The step, with shardings."""
        mesh = run_lib.Run(config, self._folder(), say=lambda line: None).mesh
        state = step.state_shapes(task, mesh)
        place = NamedSharding(mesh, PartitionSpec(task.batch_spec[0]))
        batch = {
            name: jax.ShapeDtypeStruct(values.shape, values.dtype, sharding=place)
            for name, values in next(task.data.train_batches(0, 1)).items()
        }
        made = step.make_step(
            task,
            mesh=mesh,
            seed=0,
            ema_decay=0.0,
            micro_batches=config[task.name].micro_batches,
        )
        return program(made, state, batch, step.ALL_FINITE)

    def _optimizer(self, task, config):
        params = jax.eval_shape(task.init, jax.random.key(0))
        state = jax.eval_shape(task.optimizer.transformation.init, params)
        return program(task.optimizer.transformation.update, params, state, params)

    def _evaluate(self, task, config):
        params = jax.eval_shape(task.init, jax.random.key(0))
        batches = list(task.data.eval_batches("test"))
        return len(batches), program(task.metrics.evaluate, params, batches[0])

    def _batches(self, task, config):
        """Batches of the first steps, and the number of reads of files."""
        with (
            counted(image_records.Records, "read") as images_read,
            counted(reader.FileSource, "read") as latents_read,
        ):
            batches = list(task.data.train_batches(0, STEPS_READ))
        return [contents(batch) for batch in batches], len(images_read), len(latents_read)

    def _loop(self, task, config):
        """Steps of logs and checkpoints of the training loop, with a task of three parameters."""
        saved: list[tuple[str, int, str]] = []
        run = run_lib.Run(config, self._folder(), say=lambda line: None)
        run.__dict__["preemption"] = types.SimpleNamespace(
            should_stop_at=lambda step: False, synchronize=lambda: None
        )
        with (
            mock.patch.object(run_lib, "Dashboard", return_value=NullDashboard()),
            mock.patch.object(loop, "Checkpoints", functools.partial(InMemory, saved)),
        ):
            (run.workdir / task.name).mkdir(parents=True)
            result = run.train(toy(task))
        curves = json.loads((run.workdir / task.name / "curves.json").read_text())
        steps = {name: [step for step, _ in points] for name, points in curves.items()}
        return steps, saved, digest(result.params)

    def _data(self, config):
        splits = images.open_splits(**config.data)
        with counted(image_records.Records, "read") as reads:
            for _ in range(2):
                first = {split: source.read(np.arange(4)) for split, source in splits.items()}
        sizes = {split: source.num_examples for split, source in splits.items()}
        return sizes, {split: contents(batch) for split, batch in first.items()}, len(reads)

    def _encode(self, config):
        """Shapes of the batches, and digests of the shards without the manifest."""
        directory = self._folder()
        shapes = encode(config, directory)
        shards = sorted(directory.glob("*array_record*"))
        return shapes, {f.name: hashlib.sha256(f.read_bytes()).hexdigest() for f in shards}

    def _stages(self, config):
        done: list[str] = []

        def note(stage: str, run: run_lib.Run) -> dict:
            done.append(stage)
            return {"earlier_seconds": 0.0}

        stubs = {stage: functools.partial(note, stage) for stage in runner.STAGES}
        with mock.patch.object(runner, "STAGES", stubs):
            runner.run_stages(run_lib.Run(config, self._folder(), say=lambda line: None))
        return done

    def _report(self, config):
        """The title of the report, which also lists all settings."""
        directory = self._folder()
        config_lib.freeze(config, directory)
        return re.findall(r"<title>(.*?)</title>", report.write_report(directory).read_text())


def toy(task: Task) -> Task:
    """A task of three parameters with random gradients, on the same data."""
    return task._replace(
        init=lambda key: {"w": jax.random.normal(key, (3,))},
        sample_inputs=lambda batch, key: jax.random.normal(key, (4, 3)),
        loss=lambda params, inputs: (params["w"] @ inputs.mean(0), {}),
        finalize_logs=lambda logs: logs,
        batch_spec=mesh_lib.BY_EXAMPLE,
        shard_params=False,
        metrics=TaskMetrics(
            evaluate=lambda params, batch: {"score": jnp.sum(params["w"]) * batch["mask"]},
            summarize=lambda rows: {"score": float(rows["score"].mean())},
            score="score",
        ),
        optimizer=task.optimizer._replace(transformation=optax.sgd(0.1)),
        monitor=lambda params: ({}, ""),
        illustrate=lambda params: Illustrations({}, {}),
    )


class InMemory:
    """Checkpoints in memory. Appends (directory, step, digest) of each save to `saved`."""

    def __init__(self, saved: list, directory: epath.Path, *, keep: int):
        self.directory, self._saved = directory, saved
        self._last: tuple[int, Any, dict] | None = None

    def steps(self) -> list[int]:
        return [] if self._last is None else [self._last[0]]

    def save(self, step: int, state: Any, info: dict) -> None:
        self._saved.append((self.directory.name, step, digest(state)))
        self._last = step, jax.tree.map(jnp.copy, state), info

    def info(self, step: int) -> dict:
        assert self._last is not None
        assert step == self._last[0]
        return self._last[2]

    def remove_after(self, step: int) -> None:
        if self._last is not None and self._last[0] > step:
            self._last = None

    def restore(self, template: Any):
        return self._last

    def wait(self) -> None:
        pass

    close = wait
