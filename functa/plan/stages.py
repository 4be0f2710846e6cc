"""Time, memory and storage of each stage of a config on a cluster that is not at hand: a projection.

Work and traffic are counted in the traced programs, sizes are those of the arrays. Whatever depends on a machine is a
published number (functa/plan/hardware.py) or one of the `Assumptions`. A training step takes

    multiply-adds / (peak * utilization) + collectives

but no less than reading its input; a batch of the encode stage no less than writing its latents. Sines, norms and
memory traffic are part of the utilization, which is therefore far below one. Not counted: compilation, checkpoints,
restarts, augmentation, images for TensorBoard, PCA, and the evaluation of samples.
"""

import math
from collections.abc import Mapping, Sequence
from typing import Any

import jax
from ml_collections import ConfigDict

from functa.data.functaset.writer import plan_shards, records_per_shard
from functa.data.sharded_writer import Shard
from functa.evaluation import evaluation_samples
from functa.plan import compiled, operations
from functa.plan.cost import Assumptions, Source, StagePlan
from functa.plan.hardware import Cluster
from functa.plan.operations import Operations
from functa.plan.programs import Program, Programs, device_bytes
from functa.runtime import mesh as mesh_lib

_CHECKPOINTS, _BEST_CHECKPOINTS = 2, 3  # kept by functa/training/loop.py
_BLOCK = 1 << 16  # bytes of ArrayRecord's blocks, which records and index of a shard fill up
_RECORD_OVERHEAD = 55  # bytes that ArrayRecord adds to a record, measured
_ONE_DEVICE = jax.sharding.AbstractMesh((1,) * len(mesh_lib.AXES), mesh_lib.AXES)


class Planner:
    """Plans the stages of one config on one cluster.

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
        config: ConfigDict,
        cluster: Cluster,
        *,
        splits: dict[str, int],
        assumptions: Assumptions,
        stages: Sequence[str],
        devices: Sequence[jax.Device] | None = None,
        measure: bool = False,
    ):
        self.config, self.cluster, self.splits = config, cluster, splits
        self.assumptions, self.stages = assumptions, stages
        self.devices, self.measure = devices, measure
        self.mesh = cluster.mesh(**config.mesh)
        self.programs = Programs(config)
        copies = config.encode.num_augmentations
        self.records = splits | {"train": splits["train"] * copies}

    def plan(self) -> list[StagePlan]:
        planners = {"meta_learn": self._meta_learn, "encode": self._encode}
        planners |= {"classify": self._classify, "generate": self._generate}
        return [planners[name]() for name in self.stages]

    def _meta_learn(self) -> StagePlan:
        stage = self._trained("meta_learn", self.splits["train"], self._images())
        stage.storage_bytes += 4 * stage.parameters  # the exported field
        return stage

    def _encode(self) -> StagePlan:
        settings, hosts = self.config.encode, self.cluster.hosts
        layout = self.programs.record_layout
        shards = plan_shards(
            self.records,
            layout=layout,
            records_per_shard=records_per_shard(settings.shard_megabytes, layout),
        )
        batch_size = settings.batch_size * self.cluster.devices
        records, per_host = sum(self.records.values()), batch_size / hosts
        source = self._images()
        if settings.crop == "resize" and settings.num_augmentations > 1:
            source = source._replace(cache="none")  # crops are cut from images as they are stored
        cached = source.cache != "none"
        # The copies of an image are neighbors: a batch reads the image once.
        reads = 0.0 if cached else per_host * source.examples / records
        return self._stage(
            "encode",
            self.programs.encoder(_ONE_DEVICE),
            source,
            examples=records,
            steps=most_batches(shards, hosts, round(per_host)),
            batch_size=batch_size,
            reads=reads,
            read_at_first=source.examples if cached and "meta_learn" not in self.stages else 0,
            written_bytes=per_host * layout.record_bytes,
            storage_bytes=functaset_bytes(shards, layout.record_bytes),
            shards=len(shards),
        )

    def _classify(self) -> StagePlan:
        return self._trained("classify", *self._latents("classify"))

    def _generate(self) -> StagePlan:
        settings = self.config.generate
        stage = self._trained("generate", *self._latents("generate"))
        samples = min(settings.samples, self.splits["test"])
        samples_per_scale = min(samples, evaluation_samples.MAX_SWEEP_SAMPLES)
        seconds = self._sampling_seconds(samples, any_scale=False)
        if settings.guidance_sweep:
            per_scale = self._sampling_seconds(samples_per_scale, any_scale=True)
            seconds += len(settings.guidance_sweep) * per_scale
        stage.other_parts["sampling"] = seconds
        drawn = samples + len(settings.guidance_sweep) * samples_per_scale
        stage.storage_bytes += 4 * drawn * math.prod(self.config.field.latent_shape)
        return stage

    def _sampling_seconds(self, samples: int, *, any_scale: bool) -> float:
        """Every device draws whole blocks. An upper bound: guidance counts outside of its interval too."""
        blocks = -(-samples // self.config.generate.sample_batch_size)
        block_seconds = self._product_seconds(_count(self.programs.sampler(any_scale=any_scale)))
        return -(-blocks // self.cluster.devices) * block_seconds

    def _images(self) -> Source:
        return Source(
            examples=sum(self.splits.values()),
            stored_bytes=self.assumptions.image_bytes,
            cached_bytes=math.prod(self.config.data.image_shape),
            decode_seconds=1 / self.assumptions.decode_rate,
            cache=self.config.data.cache,
        )

    def _latents(self, stage: str) -> tuple[int, Source]:
        """(training records, source of all records)."""
        settings, layout = self.config[stage], self.programs.record_layout
        train = (self.splits if settings.copies == "first" else self.records)["train"]
        examples = train + self.splits["validation"] + self.splits["test"]
        sizes = layout.record_bytes, layout.latent_bytes
        return train, Source(examples, *sizes, decode_seconds=0.0, cache=settings.cache)

    def _trained(self, name: str, examples: int, source: Source) -> StagePlan:
        settings = self.config[name]
        program = self.programs.train_step(name, self.mesh)
        state = program.arguments[0]
        parameters = sum(leaf.size for leaf in jax.tree.leaves(state.params))
        whole_state = sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(state))
        cached = source.cache != "none"
        stage = self._stage(
            name,
            program,
            source,
            examples=examples,
            steps=settings.steps,
            batch_size=settings.batch_size,
            reads=0.0 if cached else settings.batch_size / self.cluster.hosts,
            read_at_first=source.examples if cached else 0,
            parameters=parameters,
            storage_bytes=_CHECKPOINTS * whole_state + _BEST_CHECKPOINTS * 4 * parameters,
        )
        # The validation split every eval_every steps and at the end, the test split once.
        evaluations = -(-settings.steps // settings.eval_every)
        evaluated = evaluations * self.splits["validation"] + self.splits["test"]
        batch_seconds = self._product_seconds(_count(self.programs.evaluation(name)))
        batches = evaluated / settings.eval_batch_size
        stage.other_parts["evaluation"] = batches * batch_seconds / self.cluster.devices
        return stage

    def _stage(
        self,
        name: str,
        program: Program,
        source: Source,
        *,
        steps: int,
        reads: float,
        read_at_first: int,
        written_bytes: float = 0.0,
        parameters: int = 0,
        **fields: Any,
    ) -> StagePlan:
        """A stage whose step is a call of `program`.

        Args:
          reads: examples that a host reads from storage in a step; read_at_first: before the first one.
          written_bytes: that a host writes in a step.
          fields: other fields of StagePlan.
        """
        cluster, assumed = self.cluster, self.assumptions
        work = _count(program)
        highest = cluster.chip.peak_highest * assumed.utilization
        host_bytes = reads * source.stored_bytes + written_bytes
        read_seconds = max(source.decode_seconds, source.stored_bytes / assumed.storage_bandwidth)
        stage = StagePlan(
            name=name,
            steps=steps,
            parameters=parameters,
            state_bytes=device_bytes(program.arguments[0]),
            work=work,
            step_parts={
                "products": self._product_seconds(work),
                "products at highest precision": 2 * work.multiply_adds_highest / highest,
                "collectives": cluster.send_seconds(work.sent_bytes, work.collectives),
                "decoding": reads * source.decode_seconds,
                "storage": host_bytes / assumed.storage_bandwidth,
            },
            other_parts={"first read": read_at_first * read_seconds},
            host_bytes=host_bytes,
            cache_bytes={source.cache: source.examples * source.cached_bytes},
            **fields,
        )
        stage.cache_bytes.pop("none", None)
        self._compile(stage)
        return stage

    def _product_seconds(self, work: Operations) -> float:
        """Time of the matrix products at the default precision on one device."""
        return 2 * work.multiply_adds / (self.cluster.chip.peak * self.assumptions.utilization)

    def _compile(self, stage: StagePlan) -> None:
        """Compiles the program of a stage for `devices`, and measures it where that was asked for."""
        if self.devices is None:
            return
        axes = self.mesh.shape
        if len(self.devices) != self.mesh.size:
            axes = smallest_mesh(axes)
        count = math.prod(axes.values())
        mesh = mesh_lib.make_mesh(self.devices[:count], **axes)
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
    """The smallest mesh on which a device has the same program: more devices on `data` have equal shares."""
    return {**axes, "data": min(axes["data"], 2)}


def most_batches(shards: Sequence[Shard], hosts: int, batch_size: int) -> int:
    """Batches of the host that has most: shard s belongs to host s % hosts, and no batch spans two shards."""
    return max(
        sum(-(-shard.num_records // batch_size) for shard in shards[host::hosts])
        for host in range(hosts)
    )


def functaset_bytes(shards: Sequence[Shard], record_bytes: int) -> int:
    """Bytes of the shards without compression. zstd saves up to 8 %."""
    record_bytes += _RECORD_OVERHEAD
    return sum(-(-shard.num_records * record_bytes // _BLOCK) + 1 for shard in shards) * _BLOCK


def _count(program: Program) -> Operations:
    return operations.count(program.function, *program.arguments)
