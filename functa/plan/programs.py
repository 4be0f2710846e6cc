"""The programs of the stages, built from a config without data, devices or a functaset."""

import functools
import math
from types import SimpleNamespace
from typing import Any, NamedTuple

import jax
import numpy as np
from etils import epath
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P
from ml_collections import ConfigDict

from functa.data.functaset import format
from functa.data.functaset.format import RecordLayout
from functa.data.functaset.reader import Functaset, Manifest
from functa.diffusion.generator import build_generator
from functa.fields.fitter import build_fitter
from functa.plan import operations
from functa.plan.operations import Operations
from functa.runtime import mesh as mesh_lib
from functa.training.tasks import Task, builders
from functa.training.train_step import ALL_FINITE, make_step, state_shapes

AnyMesh = Any  # Mesh, or AbstractMesh to trace without devices


class Program(NamedTuple):
    """A jitted function and its arguments, as `jax.ShapeDtypeStruct`s."""

    function: jax.stages.Wrapped
    arguments: tuple[Any, ...]

    def count_operations(self) -> Operations:
        """Counts the work of a call on one device."""
        return operations.count(self.function, *self.arguments)


class Programs:
    """The programs of one config."""

    def __init__(self, config: ConfigDict):
        self.config = config
        latent_shape = tuple(config.field.latent_shape)
        self.record_layout = RecordLayout(latent_shape=latent_shape, dtype=config.encode.dtype)
        self._functaset = stub_functaset(self.record_layout)
        self.task = functools.cache(self._build_task)

    def _build_task(self, stage: str) -> Task:
        if stage == "meta_learn":
            return builders.build_meta_learning(self.config, sources={})
        if stage == "classify":
            return builders.build_classification(self.config, self._functaset)
        return builders.build_generation(self.config, self._functaset, decode=np.asarray)

    def train_step(self, stage: str, mesh: AnyMesh, *, batch_size: int | None = None) -> Program:
        """The training step of a stage.

        Args:
          batch_size: global; None: that of `batch_size`.
        """
        task, settings = self.task(stage), self.config[stage]
        decay, micro_batches = settings.ema_decay, settings.micro_batches
        step = make_step(task, mesh=mesh, seed=0, ema_decay=decay, micro_batches=micro_batches)
        arguments = (
            state_shapes(task, mesh),
            _with_spec(
                self._batch(stage, batch_size or self.batch_size(stage, mesh)),
                mesh,
                P(task.batch_spec[0]),
            ),
            _with_spec(ALL_FINITE, mesh, P()),
        )
        return Program(step, arguments)

    def batch_size(self, stage: str, mesh: AnyMesh) -> int:
        """Examples of a training batch on all devices, repeated ones included."""
        settings = self.config[stage]
        return settings.batch_size * mesh_lib.batch_repeats(
            settings.batch_size,
            devices=mesh.size,
            micro_batches=settings.micro_batches,
            sharing=mesh.shape["cell"] if len(self.task(stage).batch_spec) > 1 else 1,
        )

    def evaluation(self, stage: str) -> Program:
        """The evaluation of one batch of config[stage].eval_batch_size, on one device."""
        batch = self._batch(stage, self.config[stage].eval_batch_size)
        return Program(jax.jit(self.task(stage).metrics.evaluate), (self._params(stage), batch))

    def encoder(self, mesh: AnyMesh) -> Program:
        """The fit of latents in the encode stage, on config.encode.batch_size images per device."""
        h, w, c = self.config.data.image_shape
        count = self.config.encode.batch_size * mesh.size
        images = jax.ShapeDtypeStruct((count, h, w, c), np.float32)
        arguments = (
            _with_spec(self._params("meta_learn"), mesh, P()),
            _with_spec(images, mesh, mesh_lib.BY_EXAMPLE),
        )
        return Program(jax.jit(build_fitter(self.config).encode), arguments)

    def sampler(self, *, any_scale: bool) -> Program:
        """Draws one block of config.generate.sample_batch_size samples, on one device.

        Args:
          any_scale: whether the guidance scale is an argument, as in the guidance sweep, or that of
            the config.
        """
        settings, num_classes = self.config.generate, self.config.data.num_classes
        generator = build_generator(settings, self._functaset, num_classes=num_classes)
        key = jax.random.key(0)

        def draw(params, numbers, labels, scale):
            return generator.sample(params, key, numbers, labels, guidance_scale=scale).latents

        indices = jax.ShapeDtypeStruct((settings.sample_batch_size,), np.int32)
        scale = jax.ShapeDtypeStruct((), np.float32) if any_scale else None
        return Program(jax.jit(draw), (self._params("generate"), indices, indices, scale))

    def _params(self, stage: str) -> Any:
        return jax.eval_shape(self.task(stage).init, jax.random.key(0))

    def _batch(self, stage: str, size: int) -> dict[str, jax.ShapeDtypeStruct]:
        if stage == "meta_learn":
            shape = (size, *self.config.data.image_shape)
            return {"image": jax.ShapeDtypeStruct(shape, np.uint8)}
        values = self.record_layout.unpack([])
        return {
            name: jax.ShapeDtypeStruct((size, *values[name].shape[1:]), values[name].dtype)
            for name in ("latents", "scale", "label")
            if name in values
        }


def device_bytes(tree: Any) -> int:
    """Size of the shards of all arrays on one device."""
    return sum(
        math.prod(leaf.sharding.shard_shape(leaf.shape)) * leaf.dtype.itemsize
        for leaf in jax.tree.leaves(tree)
    )


def _with_spec(tree: Any, mesh: AnyMesh, spec: P) -> Any:
    sharding = NamedSharding(mesh, spec)
    return jax.tree.map(
        lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding), tree
    )


class _StubFunctaset(Functaset):
    """Functaset without files; its latents are standard normal numbers."""

    def source(self, split: str) -> Any:
        return SimpleNamespace(num_examples=self.num_examples(split), read=self._read)

    def _read(self, indices: np.ndarray) -> dict[str, np.ndarray]:
        shape = (len(indices), *self.manifest.latent_shape)
        latents = np.random.default_rng(0).standard_normal(shape, np.float32)
        return {"latents": latents, "label": np.zeros(len(indices), np.int32)}


def stub_functaset(layout: RecordLayout) -> Functaset:
    """Stub functaset to build tasks that are traced or compiled, but do not train."""
    channels = layout.latent_shape[2]
    manifest = Manifest(
        format_version=format.FORMAT_VERSION,
        digest="",
        field_digest="",
        config={"encode": {"num_augmentations": 1}},
        latent_shape=list(layout.latent_shape),
        dtype=layout.dtype,
        class_names=[],
        splits={split: {"examples": 64, "shards": []} for split in format.SPLITS},
        mean=[0.0] * channels,
        std=[1.0] * channels,
        scalar_mean=0.0,
        scalar_std=1.0,
        files={},
    )
    return _StubFunctaset(path=epath.Path("stub"), manifest=manifest)
