"""What each stage of a config costs on a cluster that is not at hand: a projection.

Multiply-adds are counted (functa/operations.py and its neighbours), sizes are read from described arrays and, where
asked for, from compiled programs; everything that depends on a machine is a published number (functa/clusters.py)
or an assumption, and all assumptions are in `costs.Assumptions`. A step of training takes

    products / (peak x utilisation) + all-reduce

and no less than its input takes; a batch of encoding no less than writing it takes. Sines, norms and what moves
through memory are in the utilisation, which is for that reason far below one.
Not counted: compiling, pauses for checkpoints, restarts, augmentation, the partners of mixup that devices send each
other, pictures, PCA, and the judge of samples.
"""

import functools
import math
from typing import Any, NamedTuple

from ml_collections import ConfigDict

from functa.data.functaset import size
from functa.data.functaset.format import RecordLayout
from functa.data.functaset.writer import plan_shards, records_per_shard
from functa.data.sharded_writer import Shard
from functa.evaluation import generation_eval
from functa.fields import builders
from functa.fields.field import make_field
from functa.models import classifier
from functa.plan import downstream_operations, memory_traffic, program_operations
from functa.plan.costs import HOUR, Assumptions, Stage
from functa.plan.hardware import Cluster
from functa.plan.program_operations import Cost
from functa.training.tasks import generation

_STATES_KEPT, _BEST_KEPT = 2, 3  # checkpoints of a stage, functa/train.py
_LEVELS = 8  # noise levels of an evaluation of a denoiser, functa/tasks/generation.py


class _Source(NamedTuple):
    """Where a stage's examples come from.

    Attributes:
      examples: of the train split; all_splits: of all three.
      stored_bytes: of an example in storage; decoded: images to decode in it, 1 or 0;
        kept_bytes: of it in memory.
      cache: none, host or device.
    """

    examples: int
    all_splits: int
    stored_bytes: float
    decoded: int
    kept_bytes: int
    cache: str

    def read_seconds(self, assumed: Assumptions) -> float:
        """That a host takes for an example."""
        return max(
            self.decoded / assumed.decode_rate, self.stored_bytes / assumed.storage_bandwidth
        )


class Planner:
    """The stages of one config on one cluster; a method a stage."""

    def __init__(
        self,
        config: ConfigDict,
        cluster: Cluster,
        splits: dict[str, int],
        assumptions: Assumptions,
        *,
        stages: tuple[str, ...],
        compiles: bool,
    ):
        """
        Args:
          splits: images of train, validation and test.
          stages: names of those that are planned, of one run.
          compiles: whether programs are compiled, see shares.program.
        Raises:
          ValueError: config.mesh does not make up the cluster.
        """
        self.config, self.cluster, self.splits = config, cluster, splits
        self.assumptions, self.names, self.compiles = assumptions, stages, compiles
        self.mesh = memory_traffic.described_mesh(config, cluster.devices)
        self.latent_shape: tuple[int, int, int] = tuple(config.field.latent_shape)
        self.layout = RecordLayout(latent_shape=self.latent_shape, dtype=config.encode.dtype)

    def stages(self) -> list[Stage]:
        made = {
            "meta_learn": self.meta_learn,
            "encode": self.encode,
            "classify": self.classify,
            "generate": self.generate,
        }
        return [made[name]() for name in self.names]

    @functools.cached_property
    def images(self) -> "_Source":
        h, w, c = self.config.data.image_shape
        return _Source(
            examples=self.splits["train"],
            all_splits=sum(self.splits.values()),
            stored_bytes=self.assumptions.image_bytes,
            decoded=1,
            kept_bytes=h * w * c,
            cache=self.config.data.cache,
        )

    @functools.cached_property
    def record_bytes(self) -> float:
        return size.record_bytes(self.layout, self.config.encode.compression)

    @functools.cached_property
    def records(self) -> dict[str, int]:
        """Of the functaset, by split."""
        copies = self.config.encode.num_augmentations
        return self.splits | {"train": self.splits["train"] * copies}

    def meta_learn(self) -> Stage:
        config, loop, settings = self.config, self.config.inner_loop, self.config.meta_learn
        devices_of_image = self.mesh.shape["cell"]
        images = settings.batch_size * devices_of_image // self.cluster.devices
        cost = program_operations.training(
            builders.training_band(config),
            steps=loop.steps,
            second_order=loop.second_order,
            chunks=1 if settings.cells_per_image else loop.chunks,
        )
        windows = settings.cells_per_image // settings.window**2 or 1
        stage = self._trained(
            "meta_learn",
            self.images,
            each=images,
            cost=Cost(cost.each * windows, cost.once * settings.micro_batches),
            of_evaluation=program_operations.fit(make_field(config), steps=loop.steps).each,
        )
        stage.storage_bytes += 4 * stage.parameters  # the exported field
        return stage

    def encode(self) -> Stage:
        config, cluster, assumed = self.config, self.cluster, self.assumptions
        source = self.images
        of_shard = records_per_shard(config.encode.shard_megabytes, self.layout)
        shards = plan_shards(self.records, layout=self.layout, records_per_shard=of_shard)
        total = sum(self.records.values())
        batch = config.encode.batch_size * cluster.devices
        steps = most_batches(shards, cluster.hosts, batch // cluster.hosts)
        cost = program_operations.fit(make_field(config), steps=config.inner_loop.steps)
        # What is kept in memory has been read by meta_learn, but as it was resized. Else an image is read and decoded
        # once for those of its copies that are in a batch: they are neighbours.
        parts = config.encode.crop == "resize" and config.encode.num_augmentations > 1
        keeps = source.cache != "none" and not parts
        images = 0.0 if keeps else batch / cluster.hosts * source.all_splits / total
        again = source.all_splits if keeps and "meta_learn" not in self.names else 0
        moved = images * assumed.image_bytes + batch / cluster.hosts * self.record_bytes
        program = memory_traffic.program(config, "encode", self.mesh) if self.compiles else None
        share = memory_traffic.of_stage(config, "meta_learn", self.mesh)
        parameters = program_operations.numbers(share.parameters)
        return Stage(
            name="encode",
            examples=total,
            steps=steps,
            batch_size=batch,
            parameters=0,
            state_bytes=4 * parameters,
            cost=cost,
            optimizer=0,
            operations=2.0 * (cost.each * total + cost.once * steps * cluster.devices),
            program=program,
            sent_bytes=0.0,
            seconds={
                "products": self._seconds(cost.each * config.encode.batch_size + cost.once),
                "optimizer": 0.0,
                "all-reduce": 0.0,
                "input": images * source.decoded / assumed.decode_rate,
                "storage": moved / assumed.storage_bandwidth,
            },
            traffic_seconds=self._traffic_seconds(program),
            extra_hours={"first read": again * source.read_seconds(assumed) / HOUR},
            host_bytes=moved,
            read_bytes=(again * cluster.hosts if keeps else source.all_splits)
            * source.stored_bytes,
            kept_bytes={source.cache: source.all_splits * source.kept_bytes} if keeps else {},
            storage_bytes=size.shard_bytes(shards, self.record_bytes),
            shards=len(shards),
        )

    def classify(self) -> Stage:
        module = classifier.make_model(
            num_classes=self.config.data.num_classes, **self.config.classify.model
        )
        return self._of_latents("classify", module, levels=1)

    def generate(self) -> Stage:
        config, settings = self.config, self.config.generate
        module = generation.make_model(config)
        stage = self._of_latents("generate", module, levels=_LEVELS)
        count = min(settings.samples, self.splits["test"])
        seconds = self._drawing_seconds(module, count, settings.guidance.scale)
        # Scales that are compared share a program, which is always guided.
        swept = self._drawing_seconds(module, min(count, generation_eval.MOST_SWEPT), math.inf)
        stage.extra_hours["sampling"] = (seconds + len(settings.sweep) * swept) / HOUR
        drawn = count + len(settings.sweep) * min(count, generation_eval.MOST_SWEPT)
        stage.storage_bytes += 4 * drawn * math.prod(self.latent_shape)
        return stage

    def _drawing_seconds(self, module: Any, count: int, scale: float) -> float:
        """Of so many samples at a scale of guidance; every device draws whole blocks."""
        settings = self.config.generate
        blocks = -(-count // settings.sample_batch_size)
        evaluations = downstream_operations.evaluations(
            schedule=settings.schedule,
            solver=settings.solver,
            scale=scale,
            interval=tuple(settings.guidance.interval),
        )
        one = downstream_operations.forward(module, self.latent_shape)
        turns = -(-blocks // self.cluster.devices)
        return turns * self._seconds(evaluations * one * settings.sample_batch_size)

    def _of_latents(self, stage: str, module: Any, *, levels: int) -> Stage:
        """levels: how often an evaluation asks the module."""
        settings = self.config[stage]
        examples = (self.splits if settings.copies == "first" else self.records)["train"]
        source = _Source(
            examples=examples,
            all_splits=examples + self.splits["validation"] + self.splits["test"],
            stored_bytes=self.record_bytes,
            decoded=0,
            kept_bytes=self.layout.latent_bytes,
            cache=settings.cache,
        )
        return self._trained(
            stage,
            source,
            each=settings.batch_size // self.cluster.devices,
            cost=Cost(downstream_operations.training(module, self.latent_shape), 0),
            of_evaluation=levels * downstream_operations.forward(module, self.latent_shape),
        )

    def _trained(
        self, stage: str, source: "_Source", *, each: int, cost: Cost, of_evaluation: int
    ) -> Stage:
        """
        Args:
          each: examples of a step on a device; cost: of a step.
          of_evaluation: multiply-adds of one example.
        """
        cluster, assumed, settings = self.cluster, self.assumptions, self.config[stage]
        share = memory_traffic.of_stage(self.config, stage, self.mesh)
        parameters = program_operations.numbers(share.parameters)
        optimizer = program_operations.optimizer(settings.optimizer.name, share.parameters)
        program = memory_traffic.program(self.config, stage, self.mesh) if self.compiles else None
        # What a host reads: all at first, or what it needs of every batch.
        keeps = source.cache != "none"
        in_step = 0.0 if keeps else settings.batch_size / cluster.hosts
        at_first = source.all_splits if keeps else 0
        read = at_first * cluster.hosts if keeps else settings.steps * settings.batch_size
        evaluated = -(-settings.steps // settings.eval_every) * self.splits["validation"]
        evaluated += self.splits["test"]
        products = cost.each * each + cost.once
        return Stage(
            name=stage,
            examples=source.examples,
            steps=settings.steps,
            batch_size=settings.batch_size,
            parameters=parameters,
            state_bytes=share.state_bytes,
            cost=cost,
            optimizer=optimizer,
            operations=2.0 * settings.steps * cluster.devices * (products + optimizer),
            program=program,
            sent_bytes=share.sent_bytes,
            seconds={
                "products": self._seconds(products),
                "optimizer": 2 * optimizer / (cluster.chip.peak_highest * assumed.utilisation),
                "all-reduce": cluster.send_seconds(share.sent_bytes, share.collectives),
                "input": in_step * source.decoded / assumed.decode_rate,
                "storage": in_step * source.stored_bytes / assumed.storage_bandwidth,
            },
            traffic_seconds=self._traffic_seconds(program),
            extra_hours={
                "evaluation": self._seconds(evaluated * of_evaluation) / cluster.devices / HOUR,
                "first read": at_first * source.read_seconds(assumed) / HOUR,
            },
            host_bytes=in_step * source.stored_bytes,
            read_bytes=read * source.stored_bytes,
            kept_bytes={source.cache: at_first * source.kept_bytes} if keeps else {},
            storage_bytes=float(_STATES_KEPT * share.whole_bytes + _BEST_KEPT * 4 * parameters),
            shards=0,
        )

    def _seconds(self, multiply_adds: float) -> float:
        """Of products on one device."""
        return 2 * multiply_adds / (self.cluster.chip.peak * self.assumptions.utilisation)

    def _traffic_seconds(self, program: memory_traffic.Program | None) -> float:
        return program.moved_bytes / self.cluster.chip.bandwidth if program else 0.0


def most_batches(shards: list[Shard], hosts: int, batch_size: int) -> int:
    """Batches of the host that has most: shard s belongs to host s % hosts, and no batch spans two shards."""
    return max(
        sum(-(-shard.num_records // batch_size) for shard in shards[host::hosts])
        for host in range(hosts)
    )
