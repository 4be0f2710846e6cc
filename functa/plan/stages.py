"""Projected time, memory and storage of each stage of a config on a cluster.

Work and traffic are counted in the traced programs, and sizes are those of the arrays. Everything that
depends on the machine is a published number (functa/plan/hardware.py) or one of the `Assumptions`.
A training step takes

    multiply-adds / (peak * utilization) + collectives

or the time to read its input, whichever is longer. A batch of the encode stage takes at least the time
to write its latents. The utilization is far below one because element-wise work and memory traffic are
part of it. Not counted: compilation, checkpoints, restarts, augmentation, images for TensorBoard, PCA,
and the evaluation of samples.
"""

import math
from collections.abc import Mapping, Sequence
from typing import Any

import jax

from functa.data.functaset.writer import plan_shards, records_per_shard
from functa.data.sharded_writer import Shard
from functa.evaluation import evaluation_samples
from functa.plan import compiled
from functa.plan.cost import Assumptions, Source, StagePlan
from functa.plan.hardware import Cluster
from functa.plan.operations import Operations
from functa.plan.programs import Program, Programs, device_bytes
from functa.runtime import mesh as mesh_lib

_CHECKPOINTS, _BEST_CHECKPOINTS = 2, 3  # as in functa/training/loop.py
_BLOCK_BYTES = 1 << 16  # of ArrayRecord; the records and the index of a shard fill whole blocks
_RECORD_OVERHEAD = 55  # bytes that ArrayRecord adds to a record, measured
_ONE_DEVICE = jax.sharding.AbstractMesh((1,) * len(mesh_lib.AXES), mesh_lib.AXES)


class Planner:
    """Plans the stages of one config, that of `programs`, on one cluster.

    Args:
      splits: number of images of train, validation and test.
      stages: names of the stages of the run.
      devices: to compile the programs for; None: the programs are only traced.
      measure: whether to run the compiled steps on `devices`.
    Raises:
      ValueError: config.mesh does not fit the cluster.
    """

    def __init__(
        self,
        programs: Programs,
        cluster: Cluster,
        *,
        splits: dict[str, int],
        assumptions: Assumptions,
        stages: Sequence[str],
        devices: Sequence[jax.Device] | None = None,
        measure: bool = False,
    ):
        self.programs, self.config, self.cluster = programs, programs.config, cluster
        self.splits = splits
        self.assumptions, self.stages = assumptions, stages
        self.devices, self.measure = devices, measure
        self.mesh = cluster.mesh(**self.config.mesh)
        copies = self.config.encode.num_augmentations
        self.records = splits | {"train": splits["train"] * copies}

    def plan(self) -> list[StagePlan]:
        planners = {
            "meta_learn": self._meta_learn,
            "encode": self._encode,
            "classify": lambda: self._trained("classify", *self._latents("classify")),
            "generate": self._generate,
        }
        return [planners[name]() for name in self.stages]

    def _meta_learn(self) -> StagePlan:
        stage = self._trained("meta_learn", self.splits["train"], self._images())
        stage.storage_bytes += 4 * stage.parameters  # the exported field
        return stage

    def _encode(self) -> StagePlan:
        settings, hosts = self.config.encode, self.cluster.hosts
        layout = self.programs.record_layout
        per_shard = records_per_shard(settings.shard_megabytes, layout)
        shards = plan_shards(self.records, layout=layout, records_per_shard=per_shard)
        batch_size = settings.batch_size * self.cluster.devices
        records, per_host = sum(self.records.values()), batch_size / hosts
        source = self._images()
        if settings.crop == "resize" and settings.num_augmentations > 1:
            source = source._replace(cache="none")  # crops are cut from the stored images
        cached = source.cache != "none"
        return self._stage(
            "encode",
            self.programs.encoder(_ONE_DEVICE),
            source,
            examples=records,
            steps=most_batches(shards, hosts, round(per_host)),
            batch_size=batch_size,
            # The copies of an image are neighbors, so a batch reads the image once.
            reads=0.0 if cached else per_host * source.examples / records,
            first_reads=source.examples if cached and "meta_learn" not in self.stages else 0,
            written_bytes=per_host * layout.record_bytes,
            storage_bytes=functaset_bytes(shards, layout.record_bytes),
            shards=len(shards),
        )

    def _generate(self) -> StagePlan:
        settings = self.config.generate
        stage = self._trained("generate", *self._latents("generate"))
        samples = min(settings.samples, self.splits["test"])
        stage.other_parts["sampling"] = self._sampling_seconds(samples, any_scale=False)
        if scales := len(settings.guidance_sweep):
            per_scale = min(samples, evaluation_samples.MAX_SWEEP_SAMPLES)
            seconds = self._sampling_seconds(per_scale, any_scale=True)
            stage.other_parts["sampling"] += scales * seconds
            samples += scales * per_scale
        stage.storage_bytes += 4 * samples * math.prod(self.config.field.latent_shape)
        return stage

    def _sampling_seconds(self, samples: int, *, any_scale: bool) -> float:
        """Each device draws whole blocks. An upper bound: guidance counts outside of its interval too."""
        blocks = math.ceil(samples / self.config.generate.sample_batch_size)
        work = self.programs.sampler(any_scale=any_scale).count_operations()
        return math.ceil(blocks / self.cluster.devices) * self._product_seconds(work)

    def _images(self) -> Source:
        return Source(
            examples=sum(self.splits.values()),
            stored_bytes=self.assumptions.image_bytes,
            cached_bytes=math.prod(self.config.data.image_shape),
            decode_seconds=1 / self.assumptions.decode_rate,
            cache=self.config.data.cache,
        )

    def _latents(self, stage: str) -> tuple[int, Source]:
        """Returns the number of training records, and all records as a source."""
        settings, layout = self.config[stage], self.programs.record_layout
        train = (self.splits if settings.copies == "first" else self.records)["train"]
        examples = train + self.splits["validation"] + self.splits["test"]
        return train, Source(
            examples, layout.record_bytes, layout.latent_bytes, 0.0, cache=settings.cache
        )

    def _trained(self, name: str, examples: int, source: Source) -> StagePlan:
        settings = self.config[name]
        program = self.programs.train_step(name, self.mesh)
        state = program.arguments[0]
        parameters = sum(leaf.size for leaf in jax.tree.leaves(state.params))
        state_bytes = sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(state))
        cached = source.cache != "none"
        stage = self._stage(
            name,
            program,
            source,
            examples=examples,
            steps=settings.steps,
            batch_size=self.programs.batch_size(name, self.mesh),
            reads=0.0 if cached else settings.batch_size / self.cluster.hosts,
            first_reads=source.examples if cached else 0,
            parameters=parameters,
            storage_bytes=_CHECKPOINTS * state_bytes + _BEST_CHECKPOINTS * 4 * parameters,
        )
        # The validation split every eval_every steps and at the end, the test split once.
        evaluations = math.ceil(settings.steps / settings.eval_every)
        evaluated = evaluations * self.splits["validation"] + self.splits["test"]
        batch_seconds = self._product_seconds(self.programs.evaluation(name).count_operations())
        batches = evaluated / settings.eval_batch_size
        stage.other_parts["evaluation"] = batches * batch_seconds / self.cluster.devices
        return stage

    def _stage(
        self,
        name: str,
        program: Program,
        source: Source,
        *,
        reads: float,
        first_reads: int,
        written_bytes: float = 0.0,
        **fields: Any,
    ) -> StagePlan:
        """A stage whose step is a call of `program`.

        Args:
          reads, first_reads: examples that a host reads from storage in a step, and before the first.
          written_bytes: bytes that a host writes in a step.
          fields: other fields of StagePlan.
        """
        cluster, assumed = self.cluster, self.assumptions
        work = program.count_operations()
        highest = cluster.chip.peak_highest * assumed.utilization
        host_bytes = reads * source.stored_bytes + written_bytes
        read_seconds = max(source.decode_seconds, source.stored_bytes / assumed.storage_bandwidth)
        cached_bytes = source.examples * source.cached_bytes
        stage = StagePlan(
            name=name,
            state_bytes=device_bytes(program.arguments[0]),
            work=work,
            step_parts={
                "products": self._product_seconds(work),
                "products at highest precision": 2 * work.multiply_adds_highest / highest,
                "collectives": cluster.send_seconds(work.sent_bytes, work.collectives),
                "decoding": reads * source.decode_seconds,
                "storage": host_bytes / assumed.storage_bandwidth,
            },
            other_parts={"first read": first_reads * read_seconds},
            host_bytes=host_bytes,
            cache_bytes={} if source.cache == "none" else {source.cache: cached_bytes},
            **fields,
        )
        if self.devices is not None:
            self._compile(stage, self.devices)
        return stage

    def _product_seconds(self, work: Operations) -> float:
        """Time of the matrix products at the default precision on one device."""
        return 2 * work.multiply_adds / (self.cluster.chip.peak * self.assumptions.utilization)

    def _compile(self, stage: StagePlan, devices: Sequence[jax.Device]) -> None:
        """Compiles the step of a stage; adds its memory to the plan and, with `measure`, its time."""
        whole = len(devices) == self.mesh.size
        axes = self.mesh.shape if whole else smallest_mesh(self.mesh.shape)
        count = math.prod(axes.values())
        mesh = mesh_lib.make_mesh(devices[:count], **axes)
        if stage.name == "encode":
            program = self.programs.encoder(mesh)
        else:
            batch_size = stage.batch_size * count // self.mesh.size
            program = self.programs.train_step(stage.name, mesh, batch_size=batch_size)
        executable = program.function.lower(*program.arguments).compile()
        stage.analysis = compiled.analyze(executable)
        if self.measure:
            stage.measured_seconds = compiled.measure_seconds(executable, program.arguments)


def smallest_mesh(axes: Mapping[str, int]) -> dict[str, int]:
    """The smallest mesh with the same program per device: all devices of `data` do the same work."""
    return {**axes, "data": min(axes["data"], 2)}


def most_batches(shards: Sequence[Shard], hosts: int, batch_size: int) -> int:
    """Batches of the host with most: host s % hosts writes shard s, and a batch is of one shard."""
    return max(
        sum(math.ceil(shard.num_records / batch_size) for shard in shards[host::hosts])
        for host in range(hosts)
    )


def functaset_bytes(shards: Sequence[Shard], record_bytes: int) -> int:
    """Size of the shards without compression; zstd saves up to 8 %."""
    record_bytes += _RECORD_OVERHEAD
    blocks = [math.ceil(shard.num_records * record_bytes / _BLOCK_BYTES) for shard in shards]
    return (sum(blocks) + len(shards)) * _BLOCK_BYTES
